/**
 * Verifies the checksums of many mini-transactions with one pass of the processor's own CRC instruction.
 *
 * A mini-transaction has 130 bytes on average: too few for a call into native code, and in JavaScript a sum by tables
 * costs as much as everything else that parsing does. But CRCs can be joined: that of A followed by B is
 *
 *     crc(A B) = shift(crc(A), length of B) ^ crc(B)
 *
 * where `shift` advances a register over so many zero bytes, which is linear. So from the checksums that the log *says*
 * its mini-transactions have, and their lengths, follows what the CRC of the whole stretch of log must be, at a dozen
 * table look-ups each, without looking at their records. That is compared with its real CRC, made natively.
 *
 * If one mini-transaction of the stretch is damaged, in its records or its checksum, the two differ for certain: every
 * step is invertible. If several are, they agree with a chance of 2^-32, the same that a single one has to be damaged
 * without being noticed. Which one it is, the caller finds out by summing them one by one.
 */
import { crc32c, crc32cTables } from '../protocol/crc32c.ts'

/** Terminator and stored checksum. */
const TRAILER_BYTES = 5
/** `shift` goes by the hexadecimal digits of a length: 16 tables of a digit's 16 values each. */
const DIGIT_BITS = 4
const DIGITS = 6
/** Beyond any mini-transaction. */
const SHIFT_BYTES_MAX = 16 ** DIGITS - 1
/** A linear function of 32 bits, by the bytes of its argument: four times 256 words. */
const WORDS_PER_FUNCTION = 1024

/** Writes the tables of the linear function that gives `images[bit]` for each single bit. */
function tabulate(images: Int32Array, tables: Int32Array, at: number): void {
  for (let k = 0; k < 4; k++)
    for (let byte = 0; byte < 256; byte++) {
      let sum = 0
      for (let bit = 0; bit < 8; bit++) if (byte & (1 << bit)) sum ^= images[8 * k + bit]!
      tables[at + 256 * k + byte] = sum
    }
}

/** Of a linear function in `tables` from word `at` on. */
function apply(tables: Int32Array, at: number, x: number): number {
  return (
    tables[at + (x & 0xff)]! ^
    tables[at + 256 + ((x >>> 8) & 0xff)]! ^
    tables[at + 512 + ((x >>> 16) & 0xff)]! ^
    tables[at + 768 + (x >>> 24)]!
  )
}

/** For each digit place, for each value of the digit, the function that advances a register by so many zero bytes. */
function buildShifts(): Int32Array[] {
  const places: Int32Array[] = []
  // One zero byte: what is left of the difference between two sums of it with different seeds.
  const zero = new Uint8Array(1)
  const images = new Int32Array(32)
  for (let bit = 0; bit < 32; bit++)
    images[bit] = crc32cTables(zero, 0, 1, (1 << bit) >>> 0) ^ crc32cTables(zero, 0, 1)
  for (let place = 0; place < DIGITS; place++) {
    const tables = new Int32Array(WORDS_PER_FUNCTION << DIGIT_BITS)
    const step = new Int32Array(WORDS_PER_FUNCTION)
    tabulate(images, step, 0)
    // Digit 0 leaves the register as it is; each further one is the one before and a step.
    for (let bit = 0; bit < 32; bit++) images[bit] = 1 << bit
    for (let digit = 0; digit < 1 << DIGIT_BITS; digit++) {
      tabulate(images, tables, digit * WORDS_PER_FUNCTION)
      for (let bit = 0; bit < 32; bit++) images[bit] = apply(step, 0, images[bit]!)
    }
    places.push(tables)
  }
  return places
}

/** From a stored checksum s to shift(s, 5) ^ crc(terminator 0, s as it stands in the log) ^ TRAILERS[0]. */
function buildTrailerFunction(): Int32Array {
  const images = new Int32Array(32)
  const none = trailerCrc(0, 0)
  for (let bit = 0; bit < 32; bit++)
    images[bit] = shift(1 << bit, TRAILER_BYTES) ^ trailerCrc(0, 1 << bit) ^ none
  const tables = new Int32Array(WORDS_PER_FUNCTION)
  tabulate(images, tables, 0)
  return tables
}

/** CRC-32C of a terminator and a stored checksum, which is big-endian. */
function trailerCrc(terminator: number, stored: number): number {
  const bytes = Uint8Array.of(terminator, stored >>> 24, stored >>> 16, stored >>> 8, stored)
  return crc32cTables(bytes, 0, TRAILER_BYTES)
}

const SHIFTS = buildShifts()
const SHIFT_0 = SHIFTS[0]!
const SHIFT_1 = SHIFTS[1]!
const TRAILER = buildTrailerFunction()
/** By terminator. */
const TRAILERS = Int32Array.of(trailerCrc(0, 0), trailerCrc(1, 0))

/** `crc` as it is after `bytes` zero bytes more, without the inversions at either end. */
function shift(crc: number, bytes: number): number {
  let c = crc
  for (let place = 0, rest = bytes; rest > 0; place++, rest >>>= DIGIT_BITS)
    c = apply(SHIFTS[place]!, (rest & 0x0f) << 10, c)
  return c
}

/** What the CRC-32C of a stretch of log must be if all of its mini-transactions' checksums are right. */
export class ChecksumChain {
  #crc = 0

  /** A new stretch begins. */
  reset(): void {
    this.#crc = 0
  }

  /**
   * Adds the next mini-transaction: `recordBytes` bytes of records, then the terminator 0 or 1, then the checksum
   * `stored` (as a 32-bit number, signed or not).
   */
  add(recordBytes: number, terminator: number, stored: number): void {
    const bytes = recordBytes + TRAILER_BYTES
    let c = this.#crc
    if (bytes < 256) {
      // The two least digits, in line: nearly all of them.
      let at = (bytes & 0x0f) << 10
      c =
        SHIFT_0[at + (c & 0xff)]! ^
        SHIFT_0[at + 256 + ((c >>> 8) & 0xff)]! ^
        SHIFT_0[at + 512 + ((c >>> 16) & 0xff)]! ^
        SHIFT_0[at + 768 + (c >>> 24)]!
      at = (bytes >>> 4) << 10
      c =
        SHIFT_1[at + (c & 0xff)]! ^
        SHIFT_1[at + 256 + ((c >>> 8) & 0xff)]! ^
        SHIFT_1[at + 512 + ((c >>> 16) & 0xff)]! ^
        SHIFT_1[at + 768 + (c >>> 24)]!
    } else {
      if (bytes > SHIFT_BYTES_MAX) throw new RangeError(`a mini-transaction of ${bytes} bytes`)
      c = shift(c, bytes)
    }
    this.#crc =
      c ^
      TRAILER[stored & 0xff]! ^
      TRAILER[256 + ((stored >>> 8) & 0xff)]! ^
      TRAILER[512 + ((stored >>> 16) & 0xff)]! ^
      TRAILER[768 + (stored >>> 24)]! ^
      TRAILERS[terminator]!
  }

  /** Whether `buf[start, end)`, which must be exactly what was added since `reset`, is what the checksums say. */
  matches(buf: Uint8Array, start: number, end: number): boolean {
    return crc32c(buf, start, end) === this.#crc >>> 0
  }
}
