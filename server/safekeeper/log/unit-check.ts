/**
 * Reads a sealed file of the log whole, from the disk and past all caches, and tells which of its entries do not read back. Nothing is
 * changed. docs/log-format.md, "Repair".
 */
import { crc32c } from '../../../protocol/crc32c.ts'
import { corruptError, PalimpsestError } from '../../shared/errors.ts'
import type { Disk, DiskFile } from '../../shared/seams.ts'
import { decodeEntryHeader, ENTRY_HEADER_BYTES, isPayloadRight } from './entry.ts'
import { PackFile } from './pack-file.ts'
import { type PackSource, readPackGroup, readPackHead, readPackTable } from './pack-reader.ts'
import type { RawSegment } from './raw-segment.ts'
import { readSegmentHeader, SEGMENT_DATA_OFFSET } from './segment-file.ts'

export type LogUnit = PackFile | RawSegment

/** Entries of a segment that are read at once, unless a single one is longer. */
const READ_BYTES = 1024 * 1024

/** Entries `first` to `last`, both included. */
export interface IndexRange {
  readonly first: number
  readonly last: number
}

export interface UnitCheck {
  /** The first thing that is wrong; undefined: the file is as it was written. */
  readonly damage: Error | undefined
  /** Entries that cannot be read; ascending. Empty if only what lies around them is damaged. */
  readonly bad: readonly IndexRange[]
}

/** Called with the bytes that were just read; may hold the reader up. */
export type Pace = (bytes: number) => Promise<void>

/** Whether a disk gives back something else than was written to it, or nothing: not whether it is full or busy. */
export function isDamage(error: unknown): error is Error {
  if (error instanceof PalimpsestError) return error.kind === 'corrupt'
  const code = (error as NodeJS.ErrnoException | undefined)?.code
  return code === 'EIO' || code === 'EBADMSG' || code === 'EUCLEAN' || code === 'ENOENT'
}

/**
 * Throws what is no damage. What it tells of a file that was retired in the meantime (packed, trimmed) means nothing; of the segment that is
 * appended to, entries up to the last one that is written are looked at.
 */
export async function checkUnit(disk: Disk, unit: LogUnit, pace: Pace): Promise<UnitCheck> {
  const all = { first: unit.firstIndex, last: unit.lastIndex }
  let file: DiskFile
  try {
    file = await disk.open(unit.path, 'read')
  } catch (error) {
    if (!isDamage(error)) throw error
    return { damage: corruptError(`log file ${unit.path} cannot be opened: ${error.message}`), bad: [all] }
  }
  try {
    return unit instanceof PackFile
      ? await checkPack(unit, file, all, pace)
      : await checkSegment(unit, file, all.last, pace)
  } finally {
    await file.close()
  }
}

class Findings {
  damage: Error | undefined
  readonly #bad: { first: number; last: number }[] = []

  found(error: unknown): void {
    if (!isDamage(error)) throw error
    this.damage ??= error
  }

  lost(first: number, last = first): void {
    const before = this.#bad.at(-1)
    if (before !== undefined && before.last === first - 1) before.last = last
    else this.#bad.push({ first, last })
  }

  result(): UnitCheck {
    return { damage: this.damage, bad: this.#bad }
  }
}

async function checkPack(pack: PackFile, file: DiskFile, all: IndexRange, pace: Pace): Promise<UnitCheck> {
  const findings = new Findings()
  const source: PackSource = {
    name: pack.path,
    size: () => file.size(),
    read: (target, position) => file.read(target, position),
  }
  try {
    const head = await readPackHead(source)
    if (head.header.firstIndex !== all.first || head.header.lastIndex !== all.last)
      throw corruptError(`log pack ${pack.path} is another one than it was`)
    const table = await readPackTable(source, head)
    await pace(head.footer.table.storedBytes + head.footer.summary.storedBytes)
    const isBad = new Uint8Array(table.rows)
    const { rowsOf, starts } = byGroup(table.groups, head.summary.groups.length)
    for (const [number, group] of head.summary.groups.entries()) {
      const rows = rowsOf.subarray(starts[number], starts[number + 1])
      try {
        const bytes = await readPackGroup(source, group)
        for (const row of rows) {
          const at = table.offsets[row]!
          if (crc32c(bytes, at, at + table.payloadBytes[row]!) === table.crcs[row]) continue
          findings.found(
            corruptError(
              `log pack ${pack.path} is damaged at offset ${group.offset}: the payload of entry ${all.first + row} has a wrong CRC-32C`,
            ),
          )
          isBad[row] = 1
        }
      } catch (error) {
        findings.found(error)
        for (const row of rows) isBad[row] = 1
      }
      await pace(group.storedBytes)
    }
    for (let row = 0; row < table.rows; row++) if (isBad[row] === 1) findings.lost(all.first + row)
  } catch (error) {
    findings.found(error)
    return { damage: findings.damage, bad: [all] }
  }
  return findings.result()
}

/** Rows of each group: those of group g are rowsOf[starts[g], starts[g + 1]). */
function byGroup(groups: Int32Array, count: number): { rowsOf: Uint32Array; starts: Uint32Array } {
  const starts = new Uint32Array(count + 1)
  for (const group of groups) if (group >= 0) starts[group + 1]!++
  for (let group = 0; group < count; group++) starts[group + 1]! += starts[group]!
  const rowsOf = new Uint32Array(starts[count]!)
  const next = starts.slice()
  for (let row = 0; row < groups.length; row++) {
    const group = groups[row]!
    if (group >= 0) rowsOf[next[group]!++] = row
  }
  return { rowsOf, starts }
}

async function checkSegment(
  segment: RawSegment,
  file: DiskFile,
  last: number,
  pace: Pace,
): Promise<UnitCheck> {
  const findings = new Findings()
  const { firstIndex, path } = segment
  try {
    const header = await readSegmentHeader(file, path, firstIndex)
    if (header.headerCrc !== segment.headerCrc)
      throw corruptError(`log segment ${path}: its header is another one than it was (offset 0)`)
  } catch (error) {
    findings.found(error)
  }
  /** Of the entry before; undefined if that could not be read. */
  let chainCrc: number | undefined = segment.headerCrc
  let begin = SEGMENT_DATA_OFFSET
  for (let from: number = firstIndex; from <= last && !segment.retired; ) {
    let to = from
    while (to < last && segment.offsetOf(to + 2) - begin <= READ_BYTES) to++
    const bytes = Buffer.allocUnsafeSlow(segment.offsetOf(to + 1) - begin)
    let got = 0
    try {
      got = await file.read(bytes, begin)
    } catch (error) {
      if (!isDamage(error)) throw error
      // One sector that cannot be read: those beside it may be well.
      if (to > from) {
        to = from
        got = await file.read(bytes.subarray(0, segment.offsetOf(from + 1) - begin), begin).catch(() => 0)
      }
      if (got === 0) findings.found(error)
    }
    for (let index = from; index <= to; index++) {
      const at = segment.offsetOf(index) - begin
      const entry = got >= at + ENTRY_HEADER_BYTES ? decodeEntryHeader(bytes, at) : undefined
      const payloadAt = at + ENTRY_HEADER_BYTES
      const payloadEnd = payloadAt + (entry?.payloadBytes ?? 0)
      const isRight =
        entry !== undefined &&
        entry.index === index &&
        (chainCrc === undefined || entry.chainCrc === chainCrc) &&
        payloadEnd <= got &&
        isPayloadRight(entry, bytes, payloadAt, payloadEnd)
      chainCrc = entry?.index === index ? entry.headerCrc : undefined
      if (isRight) continue
      findings.lost(index)
      findings.found(
        corruptError(
          `log segment ${path} is damaged at offset ${begin + at} (index ${index}): the entry there is not what was written`,
        ),
      )
    }
    await pace(bytes.length)
    begin = segment.offsetOf(to + 1)
    from = to + 1
  }
  return findings.result()
}
