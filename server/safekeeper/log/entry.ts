/**
 * Entries of the cell's log, in memory and in a segment. Little-endian; an entry is a header of 104 bytes and the payload,
 * padded with zeros to 8:
 *
 *      0 u32 magic "PLE2"
 *      4 u32 headerCrc       CRC-32C of bytes [8, 104)
 *      8 u64 index
 *     16 u64 term
 *     24 u64 flushed         all up to this index was synced on this node when the entry was written
 *     32 timeline            16 bytes; 0 for what is the cell's
 *     48 u64 beginLsn
 *     56 u64 endLsn          redo: beginLsn + bytes; gap: where the log goes on; else 0
 *     64 u64 wallTimeUs      when the writer saw the redo
 *     72 u64 epoch           of the writer
 *     80 u32 payloadBytes
 *     84 u32 payloadCrc      CRC-32C as its maker computed it
 *     88 u32 chainCrc        headerCrc of the entry before; of the segment's header for the first
 *     92 u32 generation      of the log's end; grows with each cut
 *     96 u8  kind            1 no-op, 2 membership, 3 command, 4 redo, 5 gap
 *     97 u8  flags           1 dropped
 *     98 6 bytes 0
 *
 * chainCrc ties each entry to its predecessor, flushed tells a torn end from damage, generation tells what was cut off from
 * both. docs/log-format.md gives the reasons.
 */
import { crc32c } from '../../../protocol/crc32c.ts'
import type { Lsn, TimelineId, WriterEpoch } from '../../../protocol/ids.ts'
import type { LogIndex, Term } from '../core/types.ts'

export const ENTRY_HEADER_BYTES = 104
/** "PLE2" read as a little-endian u32. */
export const ENTRY_MAGIC = 0x32454c50
export const ENTRY_MAGIC_BYTES = Buffer.from('PLE2', 'latin1')
/** CRC-32C of nothing. */
export const EMPTY_CRC = 0
export const NO_PAYLOAD: Uint8Array = Buffer.alloc(0)
const FLAG_DROPPED = 1
const TWO32 = 0x1_0000_0000

export type EntryKind = 'noop' | 'membership' | 'command' | 'redo' | 'gap'

/** Kinds by their number on disk. */
const KINDS: readonly (EntryKind | undefined)[] = [undefined, 'noop', 'membership', 'command', 'redo', 'gap']
export const KIND_NUMBERS: Record<EntryKind, number> = { noop: 1, membership: 2, command: 3, redo: 4, gap: 5 }

export function kindOfNumber(number: number): EntryKind | undefined {
  return KINDS[number]
}

export interface LogEntry {
  readonly index: LogIndex
  readonly term: Term
  readonly kind: EntryKind
  /** Of redo and gap; undefined for the rest. */
  readonly timeline: TimelineId | undefined
  /** Of redo and gap; else 0, as the LSNs and the time are. */
  readonly epoch: WriterEpoch
  readonly beginLsn: Lsn
  /** Redo: beginLsn + its bytes, also if they were dropped. Gap: where the log goes on. */
  readonly endLsn: Lsn
  readonly wallTimeUs: number
  /** Redo, JSON (membership, command), or empty. Never changes while the entry is in use. */
  readonly payload: Uint8Array
  readonly payloadCrc: number
  /** Redo that is held no longer: the payload is empty though endLsn > beginLsn. */
  readonly dropped: boolean
}

export interface EntryHeader extends Omit<LogEntry, 'payload'> {
  readonly flushed: LogIndex
  readonly payloadBytes: number
  readonly chainCrc: number
  readonly headerCrc: number
  readonly generation: number
}

/** Whether an entry is a timeline's, rather than the cell's own. */
export function isTimelineKind(kind: EntryKind): boolean {
  return kind === 'redo' || kind === 'gap'
}

/** Bytes of an entry in its segment. */
export function entryBytes(payloadBytes: number): number {
  return ENTRY_HEADER_BYTES + paddedBytes(payloadBytes)
}

export function paddedBytes(payloadBytes: number): number {
  return Math.ceil(payloadBytes / 8) * 8
}

/** Writes the header into `out[at, at + 104)` and returns its CRC, which the next entry carries on. */
export function encodeEntryHeader(
  out: Buffer,
  at: number,
  entry: LogEntry,
  flushed: LogIndex,
  chainCrc: number,
  generation: number,
): number {
  out.writeUInt32LE(ENTRY_MAGIC, at)
  writeU64(out, at + 8, entry.index)
  writeU64(out, at + 16, entry.term)
  writeU64(out, at + 24, flushed)
  if (entry.timeline === undefined) out.fill(0, at + 32, at + 48)
  else out.write(entry.timeline, at + 32, 16, 'hex')
  writeU64(out, at + 48, entry.beginLsn)
  writeU64(out, at + 56, entry.endLsn)
  writeU64(out, at + 64, entry.wallTimeUs)
  writeU64(out, at + 72, entry.epoch)
  out.writeUInt32LE(entry.payload.length, at + 80)
  out.writeUInt32LE(entry.payloadCrc, at + 84)
  out.writeUInt32LE(chainCrc, at + 88)
  out.writeUInt32LE(generation, at + 92)
  out.writeUInt32LE(KIND_NUMBERS[entry.kind] | (entry.dropped ? FLAG_DROPPED << 8 : 0), at + 96)
  out.writeUInt32LE(0, at + 100)
  const crc = crc32c(out, at + 8, at + ENTRY_HEADER_BYTES)
  out.writeUInt32LE(crc, at + 4)
  return crc
}

/** The header at `buf[at, at + 104)`, or undefined if there is no valid one. Never throws. */
export function decodeEntryHeader(buf: Buffer, at: number): EntryHeader | undefined {
  if (buf.length - at < ENTRY_HEADER_BYTES || buf.readUInt32LE(at) !== ENTRY_MAGIC) return undefined
  const headerCrc = buf.readUInt32LE(at + 4)
  if (crc32c(buf, at + 8, at + ENTRY_HEADER_BYTES) !== headerCrc) return undefined
  const kind = KINDS[buf.readUInt8(at + 96)]
  if (kind === undefined) return undefined
  const isTimelines = isTimelineKind(kind)
  const header: EntryHeader = {
    index: readU64(buf, at + 8) as LogIndex,
    term: readU64(buf, at + 16) as Term,
    flushed: readU64(buf, at + 24) as LogIndex,
    timeline: isTimelines ? (buf.toString('hex', at + 32, at + 48) as TimelineId) : undefined,
    beginLsn: readU64(buf, at + 48) as Lsn,
    endLsn: readU64(buf, at + 56) as Lsn,
    wallTimeUs: readU64(buf, at + 64),
    epoch: readU64(buf, at + 72) as WriterEpoch,
    payloadBytes: buf.readUInt32LE(at + 80),
    payloadCrc: buf.readUInt32LE(at + 84),
    chainCrc: buf.readUInt32LE(at + 88),
    generation: buf.readUInt32LE(at + 92),
    kind,
    dropped: (buf.readUInt8(at + 97) & FLAG_DROPPED) !== 0,
    headerCrc,
  }
  return isConsistent(header) ? header : undefined
}

/** Whether lengths, LSNs and kind go together, and all numbers are exact. */
export function isConsistent(
  entry: Omit<EntryHeader, 'flushed' | 'chainCrc' | 'headerCrc' | 'generation'>,
): boolean {
  const { kind, beginLsn, endLsn, payloadBytes, index, term, wallTimeUs, epoch } = entry
  if (![index, term, beginLsn, endLsn, wallTimeUs, epoch].every(Number.isSafeInteger) || index < 1)
    return false
  if (entry.dropped) return kind === 'redo' && payloadBytes === 0 && endLsn > beginLsn
  if (kind === 'redo') return payloadBytes > 0 && endLsn === beginLsn + payloadBytes
  if (kind === 'gap') return payloadBytes === 0 && endLsn > beginLsn
  return beginLsn === 0 && endLsn === 0 && epoch === 0 && (kind !== 'noop' || payloadBytes === 0)
}

/**
 * Whether `bytes[begin, end)` is the entry's payload. Dropped redo has none: its CRC still tells what was there, so that an
 * append which comes again is known.
 */
export function isPayloadRight(header: EntryHeader, bytes: Uint8Array, begin: number, end: number): boolean {
  return header.dropped ? begin === end : crc32c(bytes, begin, end) === header.payloadCrc
}

/** The entry whose payload was found in its place. */
export function entryOf(header: EntryHeader, payload: Uint8Array): LogEntry {
  const { index, term, kind, timeline, epoch, beginLsn, endLsn, wallTimeUs, payloadCrc, dropped } = header
  return { index, term, kind, timeline, epoch, beginLsn, endLsn, wallTimeUs, payload, payloadCrc, dropped }
}

export function writeU64(out: Buffer, at: number, value: number): void {
  out.writeUInt32LE(value >>> 0, at)
  out.writeUInt32LE(Math.floor(value / TWO32), at + 4)
}

export function readU64(buf: Buffer, at: number): number {
  return buf.readUInt32LE(at) + buf.readUInt32LE(at + 4) * TWO32
}
