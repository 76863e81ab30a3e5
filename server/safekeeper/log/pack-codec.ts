/**
 * The bytes of a pack: a run of entries of the cell's log, compressed, with an index. Knows nothing of disks: the log keeps
 * packs as files, the backup as objects. Little-endian:
 *
 *     header, 64 bytes
 *        0 8 bytes "PLCELPAK"
 *        8 u32 version 1
 *       12 u32 crc           CRC-32C of bytes [16, 64)
 *       16 u64 firstIndex
 *       24 u64 lastIndex
 *       32 u64 prevTerm      term of the entry before the first
 *       40 u32 generation    of the log when it was made
 *       44 20 bytes 0
 *     groups                 payloads, each group a zstd frame or raw
 *     entry table            zstd; see encodeTable
 *     summary                zstd; see encodeSummary
 *     footer, 64 bytes
 *        0 u32 crc           CRC-32C of bytes [4, 64)
 *        4 "PLPF"
 *        8 entry table: u64 offset, u32 stored bytes, u32 raw bytes, u32 CRC-32C of the stored bytes, u32 0
 *       32 summary: the same
 *       56 u64 length of the pack
 *
 * Why it is so: docs/log-format.md, "Packs". Decoding never trusts: whatever does not fit is a PackDamage with an offset.
 */
import { crc32c } from '../../../protocol/crc32c.ts'
import type { Lsn, TimelineId, WriterEpoch } from '../../../protocol/ids.ts'
import { zstdDecompress, zstdDecompressBeside } from '../../shared/zstd.ts'
import type { EntryRun, LogIndex, Term } from '../core/types.ts'
import {
  type EntryKind,
  isTimelineKind,
  KIND_NUMBERS,
  kindOfNumber,
  type LogEntry,
  NO_PAYLOAD,
  readU64,
  writeU64,
} from './entry.ts'
import { VarintError, VarintReader, VarintWriter } from './varint.ts'

export const PACK_HEADER_BYTES = 64
export const PACK_FOOTER_BYTES = 64
const MAGIC = Buffer.from('PLCELPAK', 'latin1')
const FOOTER_MAGIC = 0x46504c50
const VERSION = 1
const KIND_MASK = 7
const FLAG_DROPPED = 8
const FLAG_VOID = 16
/** More rows than any segment can hold. */
const ROWS_MAX = 1 << 26
/** Bound of a table's raw bytes per row: six varints, a kind, a CRC. */
const ROW_BYTES_MAX = 64

/** Something in a pack is not as it was written. */
export class PackDamage extends Error {
  override name = 'PackDamage'
  readonly offset: number

  constructor(offset: number, message: string) {
    super(message)
    this.offset = offset
  }
}

export interface PackHeader {
  readonly firstIndex: LogIndex
  readonly lastIndex: LogIndex
  readonly prevTerm: Term
  readonly generation: number
}

export interface PackSection {
  readonly offset: number
  readonly storedBytes: number
  readonly rawBytes: number
  readonly crc: number
}

export interface PackFooter {
  readonly table: PackSection
  readonly summary: PackSection
  readonly packBytes: number
}

export interface PackGroup extends PackSection {
  readonly compressed: boolean
  /** Whose payloads are in it, how many and how long, one after the other. */
  readonly runs: readonly PackRun[]
}

export interface PackRun {
  /** 0: the cell itself; else place in the summary's timelines + 1. */
  readonly owner: number
  readonly count: number
  readonly bytes: number
}

export interface PackTimeline {
  readonly id: TimelineId
  readonly entries: number
  /** Of valid entries; 0 both if there are none. */
  readonly beginLsn: Lsn
  readonly endLsn: Lsn
  /** Redo that is held, without what was dropped. */
  readonly rawBytes: number
  /** Its share of the groups. */
  readonly storedBytes: number
  /** End of the valid redo that was dropped; 0 if none was. */
  readonly droppedEndLsn: Lsn
}

export interface PackSummary {
  readonly groups: readonly PackGroup[]
  /** Ascending by id. */
  readonly timelines: readonly PackTimeline[]
  readonly runs: readonly EntryRun[]
  readonly memberships: readonly LogIndex[]
}

/** An entry on its way into a pack. */
export interface PackEntry extends LogEntry {
  /** Committed, and changed nothing. */
  readonly isVoid: boolean
}

/** What the table says of the entries; row r is entry firstIndex + r. */
export interface PackTable {
  readonly rows: number
  readonly kinds: Uint8Array
  /** 0: the cell itself; else place in the summary's timelines + 1. */
  readonly owners: Uint32Array
  readonly begins: Float64Array
  readonly ends: Float64Array
  readonly wallTimes: Float64Array
  readonly epochs: Float64Array
  readonly payloadBytes: Uint32Array
  readonly crcs: Uint32Array
  /** -1: no payload. */
  readonly groups: Int32Array
  /** Within the group, uncompressed. */
  readonly offsets: Uint32Array
  /** Valid rows of timelines, by owner: those of owner o are order[starts[o], starts[o + 1]), ascending. */
  readonly order: Uint32Array
  readonly starts: Uint32Array
}

export function encodePackHeader(header: PackHeader): Buffer {
  const bytes = Buffer.alloc(PACK_HEADER_BYTES)
  MAGIC.copy(bytes, 0)
  bytes.writeUInt32LE(VERSION, 8)
  writeU64(bytes, 16, header.firstIndex)
  writeU64(bytes, 24, header.lastIndex)
  writeU64(bytes, 32, header.prevTerm)
  bytes.writeUInt32LE(header.generation, 40)
  bytes.writeUInt32LE(crc32c(bytes, 16, PACK_HEADER_BYTES), 12)
  return bytes
}

export function decodePackHeader(bytes: Buffer): PackHeader {
  if (bytes.length < PACK_HEADER_BYTES || !bytes.subarray(0, 8).equals(MAGIC))
    throw new PackDamage(0, 'it is no pack')
  if (crc32c(bytes, 16, PACK_HEADER_BYTES) !== bytes.readUInt32LE(12))
    throw new PackDamage(0, 'its header has a wrong CRC-32C')
  const version = bytes.readUInt32LE(8)
  if (version !== VERSION) throw new PackDamage(8, `format version ${version}, this release knows ${VERSION}`)
  const header: PackHeader = {
    firstIndex: readU64(bytes, 16) as LogIndex,
    lastIndex: readU64(bytes, 24) as LogIndex,
    prevTerm: readU64(bytes, 32) as Term,
    generation: bytes.readUInt32LE(40),
  }
  const rows = header.lastIndex - header.firstIndex + 1
  if (
    ![header.firstIndex, header.lastIndex, header.prevTerm].every(Number.isSafeInteger) ||
    header.firstIndex < 1 ||
    rows < 1 ||
    rows > ROWS_MAX
  )
    throw new PackDamage(16, `it claims entries ${header.firstIndex} to ${header.lastIndex}`)
  return header
}

export function encodePackFooter(footer: PackFooter): Buffer {
  const bytes = Buffer.alloc(PACK_FOOTER_BYTES)
  bytes.writeUInt32LE(FOOTER_MAGIC, 4)
  for (const [at, section] of [
    [8, footer.table],
    [32, footer.summary],
  ] as const) {
    writeU64(bytes, at, section.offset)
    bytes.writeUInt32LE(section.storedBytes, at + 8)
    bytes.writeUInt32LE(section.rawBytes, at + 12)
    bytes.writeUInt32LE(section.crc, at + 16)
  }
  writeU64(bytes, 56, footer.packBytes)
  bytes.writeUInt32LE(crc32c(bytes, 4, PACK_FOOTER_BYTES), 0)
  return bytes
}

/** `bytes`: the last 64 of a pack that is `packBytes` long. */
export function decodePackFooter(bytes: Buffer, packBytes: number, header: PackHeader): PackFooter {
  const at = packBytes - PACK_FOOTER_BYTES
  if (at < PACK_HEADER_BYTES || bytes.length !== PACK_FOOTER_BYTES || bytes.readUInt32LE(4) !== FOOTER_MAGIC)
    throw new PackDamage(Math.max(0, at), 'it has no footer: it is shorter or longer than it was')
  if (crc32c(bytes, 4, PACK_FOOTER_BYTES) !== bytes.readUInt32LE(0))
    throw new PackDamage(at, 'its footer has a wrong CRC-32C')
  const section = (from: number): PackSection => ({
    offset: readU64(bytes, from),
    storedBytes: bytes.readUInt32LE(from + 8),
    rawBytes: bytes.readUInt32LE(from + 12),
    crc: bytes.readUInt32LE(from + 16),
  })
  const footer = { table: section(8), summary: section(32), packBytes: readU64(bytes, 56) }
  const { table, summary } = footer
  const rows = header.lastIndex - header.firstIndex + 1
  if (
    footer.packBytes !== packBytes ||
    table.offset < PACK_HEADER_BYTES ||
    table.offset + table.storedBytes !== summary.offset ||
    summary.offset + summary.storedBytes !== at ||
    table.rawBytes > rows * ROW_BYTES_MAX + 64 ||
    summary.rawBytes > rows * 2 * ROW_BYTES_MAX + 64
  )
    throw new PackDamage(at, 'its footer names places that it cannot have')
  return footer
}

function checkSection(stored: Buffer, { offset, storedBytes, crc }: PackSection): void {
  if (stored.length !== storedBytes) throw new PackDamage(offset, 'it ends too early')
  if (crc32c(stored, 0, storedBytes) !== crc) throw new PackDamage(offset, 'wrong CRC-32C of stored bytes')
}

/** The raw bytes of the entry table or the summary. */
export function unpackSection(stored: Buffer, section: PackSection): Buffer {
  checkSection(stored, section)
  try {
    return zstdDecompress(stored, section.rawBytes)
  } catch (error) {
    throw new PackDamage(section.offset, (error as Error).message)
  }
}

/** The raw bytes of a group: `stored` itself, or decompressed beside the event loop. */
export async function unpackGroup(stored: Buffer, group: PackGroup): Promise<Buffer> {
  checkSection(stored, group)
  if (!group.compressed) return stored
  try {
    return await zstdDecompressBeside(stored, group.rawBytes)
  } catch (error) {
    throw new PackDamage(group.offset, (error as Error).message)
  }
}

/** Columns, one after the other, each with its length before it: kinds, owners, begins, lengths, wall times, epochs, CRCs. */
export function encodeTable(
  entries: readonly Omit<PackEntry, 'payload'>[],
  payloadBytes: readonly number[],
  places: ReadonlyMap<TimelineId | undefined, number>,
): Buffer {
  const columns = Array.from({ length: 7 }, () => new VarintWriter())
  const [kinds, owners, begins, lengths, wallTimes, epochs, crcs] = columns as [
    VarintWriter,
    VarintWriter,
    VarintWriter,
    VarintWriter,
    VarintWriter,
    VarintWriter,
    VarintWriter,
  ]
  const endOf = new Float64Array(places.size)
  const epochOf = new Float64Array(places.size)
  let wallTime = 0
  for (let row = 0; row < entries.length; row++) {
    const entry = entries[row]!
    kinds.byte(KIND_NUMBERS[entry.kind] | (entry.dropped ? FLAG_DROPPED : 0) | (entry.isVoid ? FLAG_VOID : 0))
    if (!isTimelineKind(entry.kind)) {
      lengths.unsigned(payloadBytes[row]!)
      if (payloadBytes[row]! > 0) crcs.u32(entry.payloadCrc)
      continue
    }
    const owner = places.get(entry.timeline)!
    owners.unsigned(owner)
    begins.signed(entry.beginLsn - endOf[owner]!)
    lengths.unsigned(entry.endLsn - entry.beginLsn)
    wallTimes.signed(entry.wallTimeUs - wallTime)
    epochs.signed(entry.epoch - epochOf[owner]!)
    if (entry.kind === 'redo') crcs.u32(entry.payloadCrc)
    endOf[owner] = entry.endLsn
    epochOf[owner] = entry.epoch
    wallTime = entry.wallTimeUs
  }
  const out = new VarintWriter()
  for (const column of columns) out.unsigned(column.length)
  for (const column of columns) out.raw(column.bytes())
  return out.bytes()
}

/** Throws PackDamage if it is not the table of a pack with this header and summary. `at`: its offset, for the error. */
export function decodeTable(raw: Buffer, header: PackHeader, summary: PackSummary, at: number): PackTable {
  try {
    return decodeTableChecked(raw, header, summary)
  } catch (error) {
    if (error instanceof VarintError) throw new PackDamage(at, `entry table: ${error.message}`)
    throw error
  }
}

function decodeTableChecked(raw: Buffer, header: PackHeader, summary: PackSummary): PackTable {
  const reader = new VarintReader(raw)
  const lengthsOf = Array.from({ length: 7 }, () => reader.unsigned())
  const columns = lengthsOf.map(length => new VarintReader(reader.raw(length)))
  reader.end()
  const [kinds, owners, begins, lengths, wallTimes, epochs, crcs] = columns as [
    VarintReader,
    VarintReader,
    VarintReader,
    VarintReader,
    VarintReader,
    VarintReader,
    VarintReader,
  ]
  const rows = header.lastIndex - header.firstIndex + 1
  if (rows !== lengthsOf[0]) throw new VarintError(`${lengthsOf[0]} rows for ${rows} entries`)
  const ownerCount = summary.timelines.length + 1
  const table: PackTable = {
    rows,
    kinds: new Uint8Array(rows),
    owners: new Uint32Array(rows),
    begins: new Float64Array(rows),
    ends: new Float64Array(rows),
    wallTimes: new Float64Array(rows),
    epochs: new Float64Array(rows),
    payloadBytes: new Uint32Array(rows),
    crcs: new Uint32Array(rows),
    groups: new Int32Array(rows).fill(-1),
    offsets: new Uint32Array(rows),
    order: new Uint32Array(rows),
    starts: new Uint32Array(ownerCount + 1),
  }
  const endOf = new Float64Array(ownerCount)
  const epochOf = new Float64Array(ownerCount)
  const slots = new GroupSlots(summary.groups, ownerCount)
  let wallTime = 0
  for (let row = 0; row < rows; row++) {
    const flags = kinds.byte()
    const kind = kindOfNumber(flags & KIND_MASK)
    const dropped = (flags & FLAG_DROPPED) !== 0
    if (
      kind === undefined ||
      flags > 31 ||
      (dropped && kind !== 'redo') ||
      ((flags & FLAG_VOID) !== 0 && !isTimelineKind(kind))
    )
      throw new VarintError(`an entry of kind ${flags} in row ${row}`)
    table.kinds[row] = flags
    const isTimelines = isTimelineKind(kind)
    const length = lengths.unsigned()
    let owner = 0
    if (isTimelines) {
      owner = owners.unsigned()
      if (owner < 1 || owner >= ownerCount) throw new VarintError(`timeline ${owner} in row ${row}`)
      const begin = endOf[owner]! + begins.signed()
      wallTime += wallTimes.signed()
      const epoch = epochOf[owner]! + epochs.signed()
      const end = begin + length
      if (
        begin < 0 ||
        length === 0 ||
        wallTime < 0 ||
        epoch < 0 ||
        ![end, wallTime, epoch].every(Number.isSafeInteger)
      )
        throw new VarintError(`LSNs ${begin} to ${end} in row ${row}`)
      table.owners[row] = owner
      table.begins[row] = begin
      table.ends[row] = end
      table.wallTimes[row] = wallTime
      table.epochs[row] = epoch
      endOf[owner] = end
      epochOf[owner] = epoch
    }
    const payloadBytes = kind === 'gap' || dropped ? 0 : length
    if (payloadBytes > 0 || kind === 'redo') table.crcs[row] = crcs.u32()
    if (payloadBytes === 0) continue
    if (kind === 'noop' || payloadBytes > 0xffffffff)
      throw new VarintError(`${payloadBytes} bytes in row ${row}`)
    table.payloadBytes[row] = payloadBytes
    const slot = slots.next(owner, payloadBytes)
    table.groups[row] = slot.group
    table.offsets[row] = slot.offset
  }
  for (const column of columns) column.end()
  slots.end()
  orderByOwner(table)
  return table
}

function orderByOwner({ rows, kinds, owners, order, starts }: PackTable): void {
  const isListed = (row: number) => owners[row]! > 0 && (kinds[row]! & FLAG_VOID) === 0
  for (let row = 0; row < rows; row++) if (isListed(row)) starts[owners[row]! + 1]!++
  for (let owner = 1; owner < starts.length; owner++) starts[owner]! += starts[owner - 1]!
  const next = starts.slice()
  for (let row = 0; row < rows; row++) if (isListed(row)) order[next[owners[row]!]!++] = row
}

/** Gives each payload its place: the runs of an owner are filled in order. */
class GroupSlots {
  /** Of each owner, in order: the group, where the run begins in it, and what is left of it. */
  readonly #runs: { group: number; offset: number; count: number; bytes: number }[][]
  readonly #at: Uint32Array

  constructor(groups: readonly PackGroup[], owners: number) {
    this.#runs = Array.from({ length: owners }, () => [])
    this.#at = new Uint32Array(owners)
    for (const [group, { runs }] of groups.entries()) {
      let offset = 0
      for (const { owner, count, bytes } of runs) {
        this.#runs[owner]!.push({ group, offset, count, bytes })
        offset += bytes
      }
    }
  }

  next(owner: number, bytes: number): { group: number; offset: number } {
    const run = this.#runs[owner]![this.#at[owner]!]
    if (run === undefined || run.bytes < bytes)
      throw new VarintError('payloads and groups do not go together')
    const { group, offset } = run
    run.offset += bytes
    run.bytes -= bytes
    if (--run.count === 0) {
      if (run.bytes !== 0) throw new VarintError('payloads and groups do not go together')
      this.#at[owner]!++
    }
    return { group, offset }
  }

  end(): void {
    for (const [owner, runs] of this.#runs.entries())
      if (this.#at[owner] !== runs.length) throw new VarintError('groups hold more than the entries')
  }
}

export function encodeSummary(summary: PackSummary): Buffer {
  const out = new VarintWriter()
  out.unsigned(summary.groups.length)
  for (const { storedBytes, rawBytes, crc, compressed, runs } of summary.groups) {
    out.unsigned(storedBytes)
    out.unsigned(rawBytes)
    out.u32(crc)
    out.byte(compressed ? 1 : 0)
    out.unsigned(runs.length)
    for (const { owner, count, bytes } of runs) {
      out.unsigned(owner)
      out.unsigned(count)
      out.unsigned(bytes)
    }
  }
  out.unsigned(summary.timelines.length)
  for (const timeline of summary.timelines) {
    out.raw(Buffer.from(timeline.id, 'hex'))
    out.unsigned(timeline.entries)
    out.unsigned(timeline.beginLsn)
    out.unsigned(timeline.endLsn)
    out.unsigned(timeline.rawBytes)
    out.unsigned(timeline.storedBytes)
    out.unsigned(timeline.droppedEndLsn)
  }
  out.unsigned(summary.runs.length)
  for (const { term, count } of summary.runs) {
    out.unsigned(term)
    out.unsigned(count)
  }
  out.unsigned(summary.memberships.length)
  for (const index of summary.memberships) out.unsigned(index)
  return out.bytes()
}

/** Throws PackDamage if it is not the summary of a pack with this header and footer. */
export function decodeSummary(raw: Buffer, header: PackHeader, footer: PackFooter): PackSummary {
  try {
    return decodeSummaryChecked(raw, header, footer)
  } catch (error) {
    if (error instanceof VarintError) throw new PackDamage(footer.summary.offset, `summary: ${error.message}`)
    throw error
  }
}

function decodeSummaryChecked(raw: Buffer, header: PackHeader, footer: PackFooter): PackSummary {
  const reader = new VarintReader(raw)
  const groups: PackGroup[] = []
  let offset = PACK_HEADER_BYTES
  for (let left = reader.count(8); left > 0; left--) {
    const storedBytes = reader.unsigned()
    const rawBytes = reader.unsigned()
    const crc = reader.u32()
    const flags = reader.byte()
    const runs: PackRun[] = []
    let bytesOfRuns = 0
    for (let more = reader.count(3); more > 0; more--) {
      const run = { owner: reader.unsigned(), count: reader.unsigned(), bytes: reader.unsigned() }
      if (run.count === 0 || run.bytes < run.count) throw new VarintError('a run without payloads')
      bytesOfRuns += run.bytes
      runs.push(run)
    }
    const compressed = flags === 1
    if (
      flags > 1 ||
      bytesOfRuns !== rawBytes ||
      rawBytes > 0xffffffff ||
      (!compressed && storedBytes !== rawBytes)
    )
      throw new VarintError(`a group of ${storedBytes} for ${rawBytes} bytes`)
    groups.push({ offset, storedBytes, rawBytes, crc, compressed, runs })
    offset += storedBytes
  }
  if (offset !== footer.table.offset)
    throw new VarintError(`groups end at ${offset}, not ${footer.table.offset}`)
  const timelines: PackTimeline[] = []
  for (let left = reader.count(22); left > 0; left--) {
    const id = reader.raw(16).toString('hex') as TimelineId
    const timeline: PackTimeline = {
      id,
      entries: reader.unsigned(),
      beginLsn: reader.unsigned() as Lsn,
      endLsn: reader.unsigned() as Lsn,
      rawBytes: reader.unsigned(),
      storedBytes: reader.unsigned(),
      droppedEndLsn: reader.unsigned() as Lsn,
    }
    if (timelines.length > 0 && timelines.at(-1)!.id >= id) throw new VarintError('timelines do not ascend')
    if (timeline.endLsn < timeline.beginLsn) throw new VarintError(`timeline ${id} ends before it begins`)
    timelines.push(timeline)
  }
  for (const { runs } of groups)
    for (const { owner } of runs) if (owner > timelines.length) throw new VarintError(`no timeline ${owner}`)
  const runs: EntryRun[] = []
  let entries = 0
  let term: number = header.prevTerm
  for (let left = reader.count(2); left > 0; left--) {
    const run = { term: reader.unsigned() as Term, count: reader.unsigned() }
    if (run.count === 0 || run.term < term || (runs.length > 0 && run.term === term))
      throw new VarintError('terms do not ascend')
    term = run.term
    entries += run.count
    runs.push(run)
  }
  if (entries !== header.lastIndex - header.firstIndex + 1)
    throw new VarintError(`terms of ${entries} entries`)
  const memberships: LogIndex[] = []
  for (let left = reader.count(1); left > 0; left--) {
    const index = reader.unsigned() as LogIndex
    if (index <= (memberships.at(-1) ?? header.firstIndex - 1) || index > header.lastIndex)
      throw new VarintError(`a membership at ${index}`)
    memberships.push(index)
  }
  reader.end()
  return { groups, timelines, runs, memberships }
}

/** The entry of a row, whose payload was found in its place. */
export function entryOfRow(
  table: PackTable,
  row: number,
  header: PackHeader,
  summary: PackSummary,
  term: Term,
  payload: Uint8Array = NO_PAYLOAD,
): PackEntry {
  const flags = table.kinds[row]!
  const owner = table.owners[row]!
  return {
    index: (header.firstIndex + row) as LogIndex,
    term,
    kind: kindOfRow(table, row),
    timeline: owner === 0 ? undefined : summary.timelines[owner - 1]!.id,
    epoch: table.epochs[row]! as WriterEpoch,
    beginLsn: table.begins[row]! as Lsn,
    endLsn: table.ends[row]! as Lsn,
    wallTimeUs: table.wallTimes[row]!,
    payload,
    payloadCrc: table.crcs[row]!,
    dropped: (flags & FLAG_DROPPED) !== 0,
    isVoid: (flags & FLAG_VOID) !== 0,
  }
}

export function kindOfRow(table: PackTable, row: number): EntryKind {
  return kindOfNumber(table.kinds[row]! & KIND_MASK)!
}
