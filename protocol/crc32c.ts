/**
 * CRC-32C (Castagnoli, reflected polynomial 0x82f63b78): the checksum of redo log blocks and mini-transactions
 * (InnoDB's `my_crc32c`), of full_crc32 pages and of our own frames and files.
 *
 * Two ways to the same number. A mini-transaction has 130 bytes on average, and for so few the call into native code
 * plus a fresh `subarray` costs more than the sum itself; so short ranges go through eight lookup tables in JavaScript
 * (slicing-by-8; by-16 gained nothing measurable) and only longer ones through the processor's own instruction.
 * Words are read in the machine's byte order, which is little-endian wherever Node's prebuilt packages run.
 */
import { crc32c as nativeCrc32c } from '@node-rs/crc32'

/** From this many bytes on the native call wins; bench/micro/redo-parse.ts prints both sides of the crossing. */
export const CRC32C_NATIVE_BYTES_MIN = 256
/** The same for the faster loop of Crc32cOfBuffer. */
const WORDS_NATIVE_BYTES_MIN = 384

const TABLES = buildTables()
const T0 = TABLES[0]!
const T1 = TABLES[1]!
const T2 = TABLES[2]!
const T3 = TABLES[3]!
const T4 = TABLES[4]!
const T5 = TABLES[5]!
const T6 = TABLES[6]!
const T7 = TABLES[7]!

function buildTables(): Int32Array[] {
  const tables = Array.from({ length: 8 }, () => new Int32Array(256))
  for (let n = 0; n < 256; n++) {
    let c = n
    for (let bit = 0; bit < 8; bit++) c = c & 1 ? (c >>> 1) ^ 0x82f63b78 : c >>> 1
    tables[0]![n] = c
  }
  for (let k = 1; k < 8; k++)
    for (let n = 0; n < 256; n++) {
      const c = tables[k - 1]![n]!
      tables[k]![n] = (c >>> 8) ^ tables[0]![c & 0xff]!
    }
  return tables
}

/**
 * CRC-32C of `buf[start, end)`, continuing from `seed` (the CRC of what came before; 0 at the beginning), as an
 * unsigned 32-bit number. The caller guarantees 0 <= start <= end <= buf.length. `buf` may be a view of shared memory.
 */
export function crc32c(buf: Uint8Array, start: number, end: number, seed = 0): number {
  if (end - start >= CRC32C_NATIVE_BYTES_MIN) return nativeCrc32c(buf.subarray(start, end), seed)
  return crc32cTables(buf, start, end, seed)
}

/** The same, always by table lookup, byte by byte from memory. */
export function crc32cTables(buf: Uint8Array, start: number, end: number, seed = 0): number {
  let c = ~seed
  let i = start
  for (const stop = end - 7; i < stop; i += 8) {
    c ^= buf[i]! | (buf[i + 1]! << 8) | (buf[i + 2]! << 16) | (buf[i + 3]! << 24)
    c =
      T7[c & 0xff]! ^
      T6[(c >>> 8) & 0xff]! ^
      T5[(c >>> 16) & 0xff]! ^
      T4[c >>> 24]! ^
      T3[buf[i + 4]!]! ^
      T2[buf[i + 5]!]! ^
      T1[buf[i + 6]!]! ^
      T0[buf[i + 7]!]!
  }
  for (; i < end; i++) c = (c >>> 8) ^ T0[(c ^ buf[i]!) & 0xff]!
  return ~c >>> 0
}

/**
 * CRC-32C of many short ranges of one buffer: bound to the buffer, it reads aligned 32-bit words, which makes the table
 * loop half as fast again. For the scanner, which sums each of some million mini-transactions a second.
 */
export class Crc32cOfBuffer {
  #buf: Uint8Array = new Uint8Array(0)
  #words: Int32Array = new Int32Array(0)
  /** How many bytes of the first word lie before `buf[0]`. */
  #shift = 0

  /** Binds to `buf`; costs nothing if it is bound to it already. */
  bind(buf: Uint8Array): void {
    if (buf === this.#buf) return
    this.#buf = buf
    // (With the buffer at an odd address, the first word begins before it; that word is never read.)
    this.#shift = buf.byteOffset & 3
    this.#words = new Int32Array(buf.buffer, buf.byteOffset - this.#shift, (this.#shift + buf.length) >>> 2)
  }

  /** CRC-32C of `[start, end)` of the bound buffer, unsigned. The same guarantees as for `crc32c`. */
  sum(start: number, end: number): number {
    if (end - start >= WORDS_NATIVE_BYTES_MIN) return nativeCrc32c(this.#buf.subarray(start, end))
    return this.sumByTables(start, end)
  }

  /** The same, always by table lookup. */
  sumByTables(start: number, end: number): number {
    const buf = this.#buf
    const words = this.#words
    const shift = this.#shift
    let c = -1
    let i = start
    for (; ((i + shift) & 3) !== 0 && i < end; i++) c = (c >>> 8) ^ T0[(c ^ buf[i]!) & 0xff]!
    let w = (i + shift) >>> 2
    const stop = ((end + shift) >>> 2) - 1
    for (; w < stop; w += 2) {
      c ^= words[w]!
      const d = words[w + 1]!
      c =
        T7[c & 0xff]! ^
        T6[(c >>> 8) & 0xff]! ^
        T5[(c >>> 16) & 0xff]! ^
        T4[c >>> 24]! ^
        T3[d & 0xff]! ^
        T2[(d >>> 8) & 0xff]! ^
        T1[(d >>> 16) & 0xff]! ^
        T0[d >>> 24]!
      i += 8
    }
    for (; i < end; i++) c = (c >>> 8) ^ T0[(c ^ buf[i]!) & 0xff]!
    return ~c >>> 0
  }
}

const POLYNOMIAL = 0x82f63b78 | 0

/** The polynomial is (x + 1) times one of degree 31 that is primitive: x^(2^31) is x again. */
const POWERS_PERIOD = 31
/** x^(2^k) modulo the polynomial, in the reflected order of bits: bit 31 is x^0. */
const POWERS = buildPowers()

function buildPowers(): Int32Array {
  const powers = new Int32Array(POWERS_PERIOD)
  let p = 1 << 30
  for (let k = 0; k < POWERS_PERIOD; k++) {
    powers[k] = p
    p = multiply(p, p)
  }
  return powers
}

/** The product of two polynomials over GF(2), modulo ours. */
function multiply(a: number, b: number): number {
  let product = 0
  for (; a !== 0; a <<= 1) {
    product ^= (a >> 31) & b
    b = (b >>> 1) ^ (-(b & 1) & POLYNOMIAL)
  }
  return product
}

/**
 * CRC-32C of two ranges one behind the other, from theirs and the length of the second, without looking at a byte: some tenths of a
 * microsecond, so it pays from a kilobyte on.
 */
export function crc32cCombine(first: number, second: number, secondBytes: number): number {
  let shifted = first
  // By x^(8 × bytes): a factor for each bit of the length.
  for (let k = 3, bytes = secondBytes; bytes > 0; k++, bytes = Math.floor(bytes / 2))
    if (bytes % 2 === 1) shifted = multiply(POWERS[k % POWERS_PERIOD]!, shifted)
  return (shifted ^ second) >>> 0
}
