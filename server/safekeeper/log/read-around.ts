/** Reads of the log by index where its files are damaged: what still reads back, and what others have. docs/log-format.md, "Repair". */
import { retryError } from '../../shared/errors.ts'
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
  for (let last = to; last > from; ) {
    last = from + Math.floor((last - from) / 2)
    try {
      return await unit.read(from, last, bytesMax)
    } catch (again) {
      if (!isDamage(again)) throw again
    }
  }
  return repair.fetch(unit, from, Math.min(to, unit.lastIndex), bytesMax)
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
 * when this is called: an entry that is packed while it is read leaves the log's own list.
 */
export async function readHere(
  files: LogFiles,
  voids: ReadonlySet<number>,
  from: LogIndex,
  last: LogIndex,
  bytesMax: number,
): Promise<PackEntry[]> {
  const unit = files.find(from)
  if (unit === undefined) return []
  try {
    return await readWithVoids(unit, from, Math.min(last, unit.lastIndex), bytesMax, voids)
  } catch (error) {
    if (unit.retired) throw retryError(`the log's files have just changed: ask again`)
    throw files.damaged(unit, error)
  }
}
