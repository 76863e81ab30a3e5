/**
 * Tells mini-transactions that the server wrote from remains that only look like some.
 *
 * InnoDB writes its log in whole blocks, and the last one is filled up with whatever the log buffer held before, with a
 * zero byte in front of it. But other threads go on appending to that very buffer while the block is being written: one
 * has reserved its place and not yet copied its records there, so that the zero is gone and old bytes stand in the place. If
 * by chance an old mini-transaction begins exactly there, it is whole, its checksum is right, and so is its sequence bit;
 * the next write of the block, some milliseconds later, replaces it. (`log_t::write_buf`, log0log.cc: the case where
 * less than a block is to be written, after `latch.wr_unlock()`.) Someone who reads all the time will meet this; in ten
 * seconds of sysbench it was met once.
 *
 * What gives the remains away: the buffer begins at a block boundary, so they are an exact copy of a mini-transaction
 * that was written a little earlier at the same place of a block. Only the last block can hold them, and they cannot go
 * beyond it. So a mini-transaction in the last block that repeats an earlier one at the same offset is not believed until
 * the log has gone on beyond its block, or until nothing has changed for longer than the server ever leaves its log buffer
 * unwritten.
 */

/** Smallest block of a log file: places are compared modulo this. A log may use larger blocks, up to the next. */
const BLOCK_BYTES_LEAST = 512
/** Largest block of a log file (`log_t::WRITE_SIZE_MAX`): so much of the end may be remains. */
export const BLOCK_BYTES_MOST = 4096

const WAYS = 4
/** Four ways each: a million mini-transactions, some 100 MB of redo. A log buffer has 16 MB, and there are two. */
const BUCKETS = 1 << 18

/** Once so much was seen, what came before cannot be in the log buffers any more. */
const BEFORE_KEPT_BYTES = 32 << 20

export class StaleGuard {
  /** Fingerprints, newest first within a bucket; 0 is none. */
  readonly #table = new Int32Array(BUCKETS * WAYS)
  /** Redo from before the first mini-transaction that was seen, raw. */
  #before: Uint8Array = new Uint8Array(0)
  #beforeEnd = 0

  /** Redo that precedes what will be seen, as far as it can be had; `end` is its end's LSN less the log's first LSN. */
  preload(raw: Uint8Array, end: number): void {
    this.#before = raw
    this.#beforeEnd = end
  }

  /** A mini-transaction that is part of the log. @param offset of its first byte, from the log's first LSN */
  add(offset: number, crc: number): void {
    const print = fingerprint(offset, crc)
    const at = bucket(print)
    const table = this.#table
    if (table[at] === print) return
    table[at + 3] = table[at + 2]!
    table[at + 2] = table[at + 1]!
    table[at + 1] = table[at]!
    table[at] = print
  }

  /** Whether an earlier mini-transaction at the same place of a block was the same. */
  isRepeated(offset: number, crc: number, buf: Uint8Array, start: number, end: number): boolean {
    const print = fingerprint(offset, crc)
    const at = bucket(print)
    for (let way = 0; way < WAYS; way++) if (this.#table[at + way] === print) return true
    return this.#wasBefore(offset, buf, start, end)
  }

  #wasBefore(offset: number, buf: Uint8Array, start: number, end: number): boolean {
    const before = this.#before
    if (before.length === 0) return false
    if (offset - this.#beforeEnd > BEFORE_KEPT_BYTES) {
      this.#before = new Uint8Array(0)
      return false
    }
    const begin = this.#beforeEnd - before.length
    const length = end - start
    // The last place at the same offset of a block that still lies in what came before.
    const steps = Math.max(1, Math.ceil((offset + length - this.#beforeEnd) / BLOCK_BYTES_LEAST))
    candidates: for (let at = offset - steps * BLOCK_BYTES_LEAST - begin; at >= 0; at -= BLOCK_BYTES_LEAST) {
      for (let i = 0; i < length; i++) if (before[at + i] !== buf[start + i]) continue candidates
      return true
    }
    return false
  }
}

function fingerprint(offset: number, crc: number): number {
  const print = crc ^ Math.imul((offset % BLOCK_BYTES_LEAST) + 1, 0x9e3779b1)
  return print === 0 ? 1 : print | 0
}

function bucket(print: number): number {
  return ((Math.imul(print, 0x85ebca6b) >>> 14) & (BUCKETS - 1)) * WAYS
}
