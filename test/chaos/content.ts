/** Bytes that tell their LSN: a seeded pattern, and the LSN itself at the beginning of each 4 KiB. What is lost, shifted or doubled shows. */
import { SeededRandom } from '../support/workloads/random.ts'

/** Prime, so that the pattern's phase and the blocks never fall together again. */
const PATTERN_BYTES = 1_048_573
const BLOCK_BYTES = 4096

export class LsnContent {
  private readonly pattern: Buffer
  private readonly stamp = Buffer.alloc(8)

  constructor(seed: number) {
    const random = new SeededRandom(seed)
    this.pattern = Buffer.alloc(PATTERN_BYTES)
    for (let i = 0; i < PATTERN_BYTES; i++) this.pattern[i] = random.below(256)
  }

  /** The bytes from `lsn` on, into all of `into`. */
  fill(lsn: number, into: Buffer): Buffer {
    for (let done = 0; done < into.length; ) {
      const phase = (lsn + done) % PATTERN_BYTES
      done += this.pattern.copy(into, done, phase, Math.min(PATTERN_BYTES, phase + into.length - done))
    }
    const end = lsn + into.length
    for (let block = lsn - (lsn % BLOCK_BYTES); block < end; block += BLOCK_BYTES) {
      this.stamp.writeBigUInt64LE(BigInt(block))
      const from = Math.max(block, lsn)
      const to = Math.min(block + 8, end)
      if (from < to) this.stamp.copy(into, from - lsn, from - block, to - block)
    }
    return into
  }

  make(lsn: number, bytes: number): Buffer {
    return this.fill(lsn, Buffer.allocUnsafe(bytes))
  }

  /** @returns the first LSN whose byte is wrong, undefined if none is */
  wrongAt(lsn: number, bytes: Uint8Array): number | undefined {
    const expected = this.make(lsn, bytes.length)
    if (expected.equals(bytes)) return undefined
    return lsn + expected.findIndex((byte, i) => byte !== bytes[i])
  }
}
