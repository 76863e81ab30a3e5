/**
 * LEB128 varints (7 bits a byte, lowest first) up to 2^53 - 1, and small readers and writers over them, for what is
 * stored in layers. Not InnoDB's varint, which parser/record-decoder.ts has.
 */

/** A varint of a number up to 2^53 - 1 has 8 bytes at most. */
export const VARINT_BYTES_MAX = 8

/** Writes `value` at `buf[pos]`; returns the position after it. The caller has made room. */
export function putVarint(buf: Uint8Array, pos: number, value: number): number {
  let v = value
  let at = pos
  while (v >= 0x10000000) {
    buf[at++] = (v % 128) | 0x80
    v = Math.floor(v / 128)
  }
  while (v >= 128) {
    buf[at++] = (v & 0x7f) | 0x80
    v >>>= 7
  }
  buf[at++] = v
  return at
}

/** The varint at `buf[pos]`, which is known to be whole, and the position after it. */
export function getVarint(buf: Uint8Array, pos: number): { readonly value: number; readonly end: number } {
  let byte = buf[pos]!
  let end = pos + 1
  let value = byte & 0x7f
  for (let scale = 128; byte >= 128; scale *= 128) {
    byte = buf[end++]!
    value += (byte & 0x7f) * scale
  }
  return { value, end }
}

export class ByteWriter {
  #buf: Buffer
  #at = 0

  constructor(capacity = 256) {
    this.#buf = Buffer.allocUnsafeSlow(Math.max(16, capacity))
  }

  #room(bytes: number): void {
    if (this.#at + bytes <= this.#buf.length) return
    const larger = Buffer.allocUnsafeSlow(Math.max(this.#buf.length * 2, this.#at + bytes))
    this.#buf.copy(larger, 0, 0, this.#at)
    this.#buf = larger
  }

  varint(value: number): void {
    if (!Number.isSafeInteger(value) || value < 0) throw new RangeError(`${value} is no varint`)
    this.#room(VARINT_BYTES_MAX)
    this.#at = putVarint(this.#buf, this.#at, value)
  }

  /** Zigzag: small in either direction is short. `value` is within ±2^52. */
  signed(value: number): void {
    this.varint(value < 0 ? -value * 2 - 1 : value * 2)
  }

  u8(value: number): void {
    this.#room(1)
    this.#buf[this.#at++] = value
  }

  raw(bytes: Uint8Array): void {
    this.#room(bytes.length)
    this.#buf.set(bytes, this.#at)
    this.#at += bytes.length
  }

  /** Length and UTF-8. */
  text(value: string): void {
    const bytes = Buffer.from(value, 'utf8')
    this.varint(bytes.length)
    this.raw(bytes)
  }

  bytes(): Buffer {
    return this.#buf.subarray(0, this.#at)
  }
}

const utf8 = new TextDecoder('utf-8', { fatal: true })

/** Reads with every bound checked; throws a plain Error that names the offset. The caller adds the file. */
export class ByteReader {
  readonly #buf: Uint8Array
  #at = 0

  constructor(bytes: Uint8Array) {
    this.#buf = bytes
  }

  get left(): number {
    return this.#buf.length - this.#at
  }

  varint(): number {
    let value = 0
    let scale = 1
    for (let i = 0; i < VARINT_BYTES_MAX; i++) {
      if (this.#at >= this.#buf.length) throw new Error(`cut short at byte ${this.#at}`)
      const byte = this.#buf[this.#at++]!
      value += (byte & 0x7f) * scale
      if (byte < 128) {
        if (value > Number.MAX_SAFE_INTEGER) break
        return value
      }
      scale *= 128
    }
    throw new Error(`a number beyond 2^53-1 at byte ${this.#at}`)
  }

  signed(): number {
    const value = this.varint()
    return value % 2 === 0 ? value / 2 : -(value + 1) / 2
  }

  u8(): number {
    if (this.#at >= this.#buf.length) throw new Error(`cut short at byte ${this.#at}`)
    return this.#buf[this.#at++]!
  }

  /** A copy of the next `length` bytes. */
  raw(length: number): Buffer {
    if (length > this.left)
      throw new Error(`${length} bytes expected at byte ${this.#at}, ${this.left} are left`)
    const copy = Buffer.from(this.#buf.subarray(this.#at, this.#at + length))
    this.#at += length
    return copy
  }

  text(bytesMax: number): string {
    const length = this.varint()
    if (length > bytesMax)
      throw new Error(`a text of ${length} bytes at byte ${this.#at}; at most ${bytesMax} are allowed`)
    return utf8.decode(this.raw(length))
  }

  end(): void {
    if (this.left !== 0) throw new Error(`${this.left} bytes too many after byte ${this.#at}`)
  }
}
