/** Varints (LEB128, up to 53 bits) into a growing buffer and out of one; for the tables of packs. */

export class VarintWriter {
  #bytes = Buffer.allocUnsafe(4096)
  #length = 0

  get length(): number {
    return this.#length
  }

  /** What was written. Valid until the next write. */
  bytes(): Buffer {
    return this.#bytes.subarray(0, this.#length)
  }

  #room(bytes: number): void {
    if (this.#length + bytes <= this.#bytes.length) return
    const grown = Buffer.allocUnsafe(Math.max(this.#bytes.length * 2, this.#length + bytes))
    this.#bytes.copy(grown, 0, 0, this.#length)
    this.#bytes = grown
  }

  /** A whole number, 0 to 2^53 - 1. */
  unsigned(value: number): void {
    this.#room(8)
    const bytes = this.#bytes
    let at = this.#length
    while (value >= 0x80) {
      bytes[at++] = (value % 0x80) | 0x80
      value = Math.floor(value / 0x80)
    }
    bytes[at++] = value
    this.#length = at
  }

  /** A whole number, -2^52 + 1 to 2^52 - 1: sign in the lowest bit. */
  signed(value: number): void {
    this.unsigned(value < 0 ? -value * 2 - 1 : value * 2)
  }

  u32(value: number): void {
    this.#room(4)
    this.#bytes.writeUInt32LE(value, this.#length)
    this.#length += 4
  }

  byte(value: number): void {
    this.#room(1)
    this.#bytes[this.#length++] = value
  }

  raw(bytes: Uint8Array): void {
    this.#room(bytes.length)
    this.#bytes.set(bytes, this.#length)
    this.#length += bytes.length
  }
}

/** What was to be decoded is not what a writer wrote. */
export class VarintError extends Error {
  override name = 'VarintError'
}

export class VarintReader {
  readonly #bytes: Buffer
  #at = 0

  constructor(bytes: Buffer) {
    this.#bytes = bytes
  }

  get left(): number {
    return this.#bytes.length - this.#at
  }

  unsigned(): number {
    let value = 0
    let scale = 1
    for (let i = 0; i < 8; i++) {
      const byte = this.byte()
      value += (byte & 0x7f) * scale
      if (byte < 0x80) {
        if (!Number.isSafeInteger(value)) throw new VarintError('a number beyond 2^53 - 1')
        return value
      }
      scale *= 0x80
    }
    throw new VarintError('a number of more than 8 bytes')
  }

  signed(): number {
    const value = this.unsigned()
    return value % 2 === 0 ? value / 2 : -(value + 1) / 2
  }

  /** A count of things that take at least `bytesEach` bytes of what is left. */
  count(bytesEach: number): number {
    const value = this.unsigned()
    if (value * bytesEach > this.left) throw new VarintError(`${value} items do not fit`)
    return value
  }

  u32(): number {
    return this.raw(4).readUInt32LE(0)
  }

  byte(): number {
    if (this.#at >= this.#bytes.length) throw new VarintError('it ends too early')
    return this.#bytes[this.#at++]!
  }

  raw(bytes: number): Buffer {
    if (bytes > this.left) throw new VarintError('it ends too early')
    this.#at += bytes
    return this.#bytes.subarray(this.#at - bytes, this.#at)
  }

  end(): void {
    if (this.left !== 0) throw new VarintError(`${this.left} bytes too many`)
  }
}
