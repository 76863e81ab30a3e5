/**
 * Where mini-transactions begin and end, and whether they are whole.
 *
 * A mini-transaction is its records, one terminator byte 0 or 1 (no record begins with these), and the CRC-32C of the
 * records. Nothing marks its beginning: one starts where the one before it ended. Follows log0recv.cc
 * (`log_parse_start`).
 *
 * For whoever follows the ring file of a live server, anything but a whole mini-transaction with the right sequence bit
 * means "nothing here yet": these bytes are zeros, half-written, or left from the lap before. For everybody downstream
 * the log is a plain sequence of bytes in which the terminator is 0 or 1 and anything else is corruption.
 */
import { Crc32cOfBuffer } from '../protocol/crc32c.ts'
import type { Lsn } from '../protocol/ids.ts'
import type { LogGeometry } from './log-file.ts'
import { decodeVarint, MTR_BYTES_MAX, varintBytes } from './record-decoder.ts'

/** What `scan` found. All from EMPTY on mean that no mini-transaction begins here. */
export const ScanResult = {
  /** A whole mini-transaction with the right checksum. */
  COMPLETE: 0,
  /** The bytes given end inside what may be one. */
  NEED_MORE: 1,
  /** The first byte is 0 or 1: no mini-transaction is empty. In a fresh log file these are the zeros after the end. */
  EMPTY: 2,
  /** A record or the whole is longer than InnoDB allows. */
  TOO_LONG: 3,
  /** The terminator has the other lap's sequence bit. */
  SEQUENCE_BIT: 4,
  CHECKSUM: 5,
} as const
export type ScanResult = (typeof ScanResult)[keyof typeof ScanResult]

const DESCRIPTIONS = [
  'a whole mini-transaction',
  'a mini-transaction that is cut off',
  'an empty mini-transaction',
  'a mini-transaction that is too long',
  'a mini-transaction with the wrong sequence bit',
  'a mini-transaction whose checksum is wrong',
] as const

export function describeScanResult(result: ScanResult): string {
  return DESCRIPTIONS[result]
}

/** Terminator and CRC-32C. */
export const MTR_TRAILER_BYTES = 5

/**
 * Whoever holds this many bytes from the start of a mini-transaction on is never told NEED_MORE. InnoDB counts only the
 * bytes after each record's first one towards its limit of 1 MiB and lets the last record exceed it, hence three times
 * that limit.
 */
export const MTR_SCAN_BYTES_MAX = 3 * MTR_BYTES_MAX + 32

/** What `scanRange` found. */
export interface RangeScan {
  /** Bytes of whole, right mini-transactions from the start on. */
  readonly consumedBytes: number
  readonly mtrs: number
  /** COMPLETE: the range ends with a mini-transaction's end. Otherwise what lies at the first byte not consumed. */
  readonly stop: ScanResult
}

/** Finds one mini-transaction after another. Keeps nothing between calls but the positions of the last one. */
export class MtrScanner {
  /** After COMPLETE: the first record's first byte, … */
  recordsStart = 0
  /** … the terminator, which is also the end of the last record, … */
  recordsEnd = 0
  /** … and where the next mini-transaction begins. */
  mtrEnd = 0
  readonly #crc = new Crc32cOfBuffer()

  /**
   * Looks at the mini-transaction that begins at `buf[pos]`, with bytes up to `end`. Those who read the ring give its
   * `geometry` and the LSN of `pos`, so that the sequence bit is checked (the bit is that of the terminator's own LSN,
   * which matters when the ring wraps in the middle); the caller has laid the ring's bytes out contiguously. Others pass
   * null. The checksum is always verified.
   */
  scan(buf: Uint8Array, pos: number, end: number, lsn: Lsn, geometry: LogGeometry | null): ScanResult {
    if (!(pos >= 0 && end <= buf.length))
      throw new RangeError(`scan range ${pos}..${end} is outside the buffer`)
    if (pos >= end) return ScanResult.NEED_MORE
    if (buf[pos]! <= 1) return ScanResult.EMPTY
    let at = pos
    // As log_parse_start counts: the bytes after each record's first.
    let counted = 0
    for (;;) {
      if (at >= end) return ScanResult.NEED_MORE
      if (counted >= MTR_BYTES_MAX) return ScanResult.TOO_LONG
      const first = buf[at]!
      if (first <= 1) break
      let rest = first & 0x0f
      at++
      if (rest === 0) {
        if (at >= end) return ScanResult.NEED_MORE
        const bytes = varintBytes(buf[at]!)
        if (bytes > 5) return ScanResult.TOO_LONG
        if (at + bytes > end) return ScanResult.NEED_MORE
        const added = decodeVarint(buf, at)
        if (added < 0 || added >= MTR_BYTES_MAX) return ScanResult.TOO_LONG
        rest = added + 15
      }
      at += rest
      counted += rest
    }
    if (geometry !== null && buf[at] !== geometry.sequenceBit(lsn + (at - pos)))
      return ScanResult.SEQUENCE_BIT
    if (at + MTR_TRAILER_BYTES > end) return ScanResult.NEED_MORE
    const stored = ((buf[at + 1]! << 24) | (buf[at + 2]! << 16) | (buf[at + 3]! << 8) | buf[at + 4]!) >>> 0
    this.#crc.bind(buf)
    if (this.#crc.sum(pos, at) !== stored) return ScanResult.CHECKSUM
    this.recordsStart = pos
    this.recordsEnd = at
    this.mtrEnd = at + MTR_TRAILER_BYTES
    return ScanResult.COMPLETE
  }

  /**
   * As many whole mini-transactions as `buf[pos, end)` holds, the first one beginning at `lsn`. Reading a ring, any
   * `stop` is the present end of the log (NEED_MORE: have more bytes read first); downstream, only COMPLETE and
   * NEED_MORE are honest.
   */
  scanRange(buf: Uint8Array, pos: number, end: number, lsn: Lsn, geometry: LogGeometry | null): RangeScan {
    let at = pos
    let mtrs = 0
    let stop: ScanResult = ScanResult.COMPLETE
    while (at < end) {
      stop = this.scan(buf, at, end, (lsn + (at - pos)) as Lsn, geometry)
      if (stop !== ScanResult.COMPLETE) break
      at = this.mtrEnd
      mtrs++
    }
    return { consumedBytes: at - pos, mtrs, stop }
  }
}
