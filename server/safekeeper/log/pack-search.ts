/** Finds a timeline's redo among the packs of a log. Packs ascend in the LSNs of each timeline, so few are looked into. */
import type { Lsn, TimelineId } from '../../../protocol/ids.ts'
import type { LogFiles } from './log-files.ts'
import type { PackFile, PackHit } from './pack-file.ts'

const ATTEMPTS_MAX = 8

/** The place in the first pack that holds redo of the timeline which ends beyond `lsn`; undefined if none does. */
export async function seekInPacks(
  files: LogFiles,
  timeline: TimelineId,
  lsn: Lsn,
): Promise<PackHit | undefined> {
  for (let attempt = 1; ; attempt++) {
    const packs = files.packs.filter(pack => pack.mayHold(timeline))
    try {
      return await search(files, packs, timeline, lsn)
    } catch (error) {
      // A pack that was replaced or removed while we read may hold anything by now.
      if (!packs.some(pack => pack.retired) || attempt >= ATTEMPTS_MAX) throw error
    }
  }
}

/** What cannot be read is reported as damage. */
async function seek(
  files: LogFiles,
  pack: PackFile,
  timeline: TimelineId,
  lsn: Lsn,
): Promise<PackHit | undefined> {
  try {
    return await pack.seek(timeline, lsn)
  } catch (error) {
    throw pack.retired ? error : files.damaged(pack, error)
  }
}

async function search(
  files: LogFiles,
  packs: PackFile[],
  timeline: TimelineId,
  lsn: Lsn,
): Promise<PackHit | undefined> {
  let found: PackHit | undefined
  let low = 0
  let high = packs.length
  while (low < high) {
    const middle = (low + high) >>> 1
    const hit = await seek(files, packs[middle]!, timeline, lsn)
    if (hit === undefined) {
      // Another timeline of the same first bytes, or nothing but void entries.
      packs.splice(middle, 1)
      high--
    } else if (hit.endLsn <= lsn) low = middle + 1
    else {
      found = hit
      high = middle
    }
  }
  return found
}

/** The newest LSN at or below `lsn` at which a chunk of the timeline begins, or its redo in packs ends. */
export async function boundaryInPacks(
  files: LogFiles,
  timeline: TimelineId,
  lsn: Lsn,
): Promise<Lsn | undefined> {
  const hit = await seekInPacks(files, timeline, lsn)
  if (hit !== undefined) return hit.nextLsn === lsn ? lsn : hit.before
  const last = files.packs.findLast(pack => pack.mayHold(timeline))
  return last && (await seek(files, last, timeline, lsn))?.endLsn
}
