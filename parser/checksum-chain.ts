/**
 * Verifies the checksums of many mini-transactions with one pass of the processor's own CRC instruction.
 *
 * A mini-transaction has 130 bytes on average: too few for a call into native code, and in JavaScript a sum by tables
 * costs as much as everything else that parsing does. But a CRC register that is fed its own value goes to a fixed state.
 * So if, behind the records of each mini-transaction, the five bytes of terminator and stored checksum are replaced by
 * five bytes that, after records of that checksum, lead the register back to where a CRC begins, then the register is there
 * again at the end of the stretch, however many mini-transactions it has: the CRC of the whole is that of nothing, 0.
 * The four bytes to put there are the stored checksum with a constant, the fifth is NUL. This is done in a copy, since
 * the log is not ours to change.
 *
 * If one mini-transaction of the stretch is damaged, in its records or its checksum, the sum is not 0 for certain: every
 * step is invertible. If several are, it is 0 with a chance of 2^-32, the same that a single one has to be damaged
 * without being noticed. Which one it is, the caller finds out by summing them one by one.
 */
import { crc32c } from '../protocol/crc32c.ts'

/** CRC-32C's polynomial, reflected. */
const POLYNOMIAL = 0x82f63b78
/** Terminator and stored checksum. */
const TRAILER_BYTES = 5

/** The register that `bits` zero bits turn into `register`. */
function before(register: number, bits: number): number {
  let c = register
  // One step forward is (c >>> 1), with the polynomial if the bit that fell out was set; only then is the highest bit set.
  for (let i = 0; i < bits; i++) c = c < 0 ? ((c ^ POLYNOMIAL) << 1) | 1 : c << 1
  return c
}

/**
 * A register r that takes in a word w is like one of r ^ w that takes in zeros. After records of checksum s the register is
 * ~s; with w = s ^ PATCH and a NUL it is what five NULs turn into ~0, the register of a CRC that begins.
 */
const PATCH = ~before(-1, 8 * TRAILER_BYTES)

/** A stretch of whole mini-transactions, of which only the terminators' positions are known. */
export class ChecksumChain {
  #count = 0
  #terminators = new Uint32Array(1024)
  #copy = Buffer.alloc(0)
  #view = new DataView(new ArrayBuffer(0))

  /** A new stretch begins. */
  reset(): void {
    this.#count = 0
  }

  /** Adds the next mini-transaction, whose terminator is `buf[terminator]` of the buffer that `matches` will be given. */
  add(terminator: number): void {
    if (this.#count === this.#terminators.length) {
      const larger = new Uint32Array(2 * this.#count)
      larger.set(this.#terminators)
      this.#terminators = larger
    }
    this.#terminators[this.#count++] = terminator
  }

  /**
   * Whether all checksums of `buf[start, end)` are right, which must be exactly the mini-transactions that were added since
   * `reset`.
   */
  matches(buf: Buffer, start: number, end: number): boolean {
    const bytes = end - start
    if (bytes > this.#copy.length) {
      this.#copy = Buffer.alloc(bytes + (bytes >>> 2))
      this.#view = new DataView(this.#copy.buffer, this.#copy.byteOffset, this.#copy.length)
    }
    const view = this.#view
    const terminators = this.#terminators
    buf.copy(this.#copy, 0, start, end)
    for (let i = 0, count = this.#count; i < count; i++) {
      const at = terminators[i]! - start
      // Big-endian in the log; the register takes its lowest byte first.
      view.setInt32(at, view.getInt32(at + 1) ^ PATCH, true)
      view.setUint8(at + 4, 0)
    }
    return crc32c(this.#copy, 0, bytes) === 0
  }
}
