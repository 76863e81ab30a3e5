/** Reads of the log by index where its files are damaged: what still reads back, and what others have. docs/log-format.md, "Repair". */
import { corruptError, retryError } from '../../shared/errors.ts'
import type { LogIndex } from '../core/types.ts'
import type { LogEntry } from './entry.ts'
import type { LogFiles } from './log-files.ts'
import type { PackEntry } from './pack-codec.ts'
import { PackFile } from './pack-file.ts'
import type { LogRepair } from './repair.ts'
import { isDamage, type LogUnit } from './unit-check.ts'

/**
 * For a read of `unit` that failed with `error`: the entries before those that are damaged; if the first one is, what others have in its
 * place. Throws what the reader is to be told.
 */
export async function readAround(
  files: LogFiles,
  repair: LogRepair,
  unit: LogUnit,
  { from, to, bytesMax }: { readonly from: LogIndex; readonly to: number; readonly bytesMax: number },
  error: unknown,
): Promise<LogEntry[]> {
  const told = files.damaged(unit, error)
  if (!isDamage(error) || told === error) throw told
  const before = await beforeDamage(from, to, last => unit.read(from, last, bytesMax))
  return before ?? repair.fetch(unit, from, Math.min(to, unit.lastIndex), bytesMax)
}

/** What can be read of a range that cannot be read as a whole: its beginning; undefined if already its first entry cannot. */
async function beforeDamage<E>(
  from: number,
  to: number,
  read: (last: number) => Promise<E[]>,
): Promise<E[] | undefined> {
  for (let last = to; last > from; ) {
    last = from + Math.floor((last - from) / 2)
    try {
      return await read(last)
    } catch (error) {
      if (!isDamage(error)) throw error
    }
  }
  return undefined
}

/** Entries of a file of the log, and which are void: a pack tells that itself, of a raw segment's `voids` does. */
export async function readWithVoids(
  unit: LogUnit,
  from: number,
  to: number,
  bytesMax: number,
  voids: ReadonlySet<number>,
): Promise<PackEntry[]> {
  if (unit instanceof PackFile) return unit.readAll(from, to, bytesMax)
  const entries = await unit.read(from, to, bytesMax)
  return entries.map(entry => ({ ...entry, isVoid: voids.has(entry.index) }))
}

/**
 * Entries of the file that holds `from`, from this disk alone; none if no file does. `voids`: void entries of raw segments, as they are
 * when this is called: an entry that is packed while it is read leaves the log's own list. Where the file is damaged: what lies before.
 * Throws corrupt if already the first entry is and that is certain, retry while it is not: whoever asks has others to ask.
 */
export async function readHere(
  files: LogFiles,
  repair: LogRepair,
  voids: ReadonlySet<number>,
  from: LogIndex,
  last: LogIndex,
  bytesMax: number,
): Promise<PackEntry[]> {
  const unit = files.find(from)
  if (unit === undefined) return []
  const to = Math.min(last, unit.lastIndex)
  try {
    return await readWithVoids(unit, from, to, bytesMax, voids)
  } catch (error) {
    if (unit.retired) throw retryError(`the log's files have just changed: ask again`)
    const told = files.damaged(unit, error)
    if (!isDamage(error)) throw told
    const before = await beforeDamage(from, to, until => readWithVoids(unit, from, until, bytesMax, voids))
    if (before !== undefined && !unit.retired) return before
    throw repair.isFound(unit) ? corruptError(`it is damaged there, too: ${error.message}`) : told
  }
}
