/**
 * Entries of a log segment. Little-endian; an entry is a header of 64 bytes and the payload, padded with zeros to 8:
 *
 *      0 u32 magic "PLEN"
 *      4 u32 headerCrc       CRC-32C of bytes [8, 64)
 *      8 u64 beginLsn
 *     16 u64 endLsn          data: beginLsn + payloadBytes; gap: where the log goes on
 *     24 u64 wallTimeUs      when the writer saw the redo
 *     32 u64 epoch           of the writer
 *     40 u64 ackedLsn        all below was durable and acknowledged when this entry was written
 *     48 u32 payloadBytes
 *     52 u32 payloadCrc      CRC-32C as the writer made it
 *     56 u32 chainCrc        headerCrc of the entry before; of the segment's header for the first
 *     60 u16 kind            1 data, 2 gap
 *     62 u16 0
 *
 * chainCrc ties each entry to its predecessor, so that what an earlier use of the space left behind is never taken for
 * a continuation. ackedLsn lets recovery tell a torn tail (nobody was told of it) from damage to acknowledged redo.
 * docs/log-format.md gives the reasons.
 */
import { crc32c } from '../../protocol/crc32c.ts'
import type { Lsn, WriterEpoch } from '../../protocol/ids.ts'

export const ENTRY_HEADER_BYTES = 64
/** "PLEN" read as a little-endian u32. */
export const ENTRY_MAGIC = 0x4e454c50
const KIND_DATA = 1
const KIND_GAP = 2
const TWO32 = 0x1_0000_0000

export interface LogEntry {
  readonly kind: 'data' | 'gap'
  readonly beginLsn: Lsn
  readonly endLsn: Lsn
  readonly wallTimeUs: number
  readonly epoch: WriterEpoch
  /** Redo; empty for a gap. Never changes while the entry is in use. */
  readonly payload: Uint8Array
  readonly payloadCrc: number
}

export interface EntryHeader extends Omit<LogEntry, 'payload'> {
  readonly ackedLsn: Lsn
  readonly payloadBytes: number
  readonly chainCrc: number
  readonly headerCrc: number
}

/** Bytes of an entry in its segment. */
export function entryBytes(payloadBytes: number): number {
  return ENTRY_HEADER_BYTES + ((payloadBytes + 7) & ~7)
}

/** Writes the header into `out[at, at + 64)` and returns its CRC, which the next entry carries on. */
export function encodeEntryHeader(
  out: Buffer,
  at: number,
  entry: LogEntry,
  ackedLsn: Lsn,
  chainCrc: number,
): number {
  out.writeUInt32LE(ENTRY_MAGIC, at)
  writeU64(out, at + 8, entry.beginLsn)
  writeU64(out, at + 16, entry.endLsn)
  writeU64(out, at + 24, entry.wallTimeUs)
  writeU64(out, at + 32, entry.epoch)
  writeU64(out, at + 40, ackedLsn)
  out.writeUInt32LE(entry.payload.length, at + 48)
  out.writeUInt32LE(entry.payloadCrc, at + 52)
  out.writeUInt32LE(chainCrc, at + 56)
  out.writeUInt16LE(entry.kind === 'data' ? KIND_DATA : KIND_GAP, at + 60)
  out.writeUInt16LE(0, at + 62)
  const crc = crc32c(out, at + 8, at + ENTRY_HEADER_BYTES)
  out.writeUInt32LE(crc, at + 4)
  return crc
}

/** The header at `buf[at, at + 64)`, or undefined if there is no valid one. Never throws. */
export function decodeEntryHeader(buf: Buffer, at: number): EntryHeader | undefined {
  if (buf.length - at < ENTRY_HEADER_BYTES || buf.readUInt32LE(at) !== ENTRY_MAGIC) return undefined
  const headerCrc = buf.readUInt32LE(at + 4)
  if (crc32c(buf, at + 8, at + ENTRY_HEADER_BYTES) !== headerCrc) return undefined
  const kind = buf.readUInt16LE(at + 60)
  const beginLsn = readU64(buf, at + 8)
  const endLsn = readU64(buf, at + 16)
  const payloadBytes = buf.readUInt32LE(at + 48)
  if (kind === KIND_DATA ? endLsn !== beginLsn + payloadBytes : kind !== KIND_GAP || payloadBytes !== 0)
    return undefined
  if (endLsn <= beginLsn || !Number.isSafeInteger(endLsn)) return undefined
  return {
    kind: kind === KIND_DATA ? 'data' : 'gap',
    beginLsn: beginLsn as Lsn,
    endLsn: endLsn as Lsn,
    wallTimeUs: readU64(buf, at + 24),
    epoch: readU64(buf, at + 32) as WriterEpoch,
    ackedLsn: readU64(buf, at + 40) as Lsn,
    payloadBytes,
    payloadCrc: buf.readUInt32LE(at + 52),
    chainCrc: buf.readUInt32LE(at + 56),
    headerCrc,
  }
}

export function writeU64(out: Buffer, at: number, value: number): void {
  out.writeUInt32LE(value >>> 0, at)
  out.writeUInt32LE(Math.floor(value / TWO32), at + 4)
}

export function readU64(buf: Buffer, at: number): number {
  return buf.readUInt32LE(at) + buf.readUInt32LE(at + 4) * TWO32
}
