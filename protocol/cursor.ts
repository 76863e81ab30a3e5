/**
 * Bounds-checked reading and writing of little-endian fields.
 *
 * ByteReader never reads beyond its range and throws MalformedError, which names the field's place. What it returns never
 * refers to the bytes read: strings and arrays are copies, so the buffer may be reused as soon as a decoder returned.
 *
 * ByteWriter carves what it writes from slabs. A finished range belongs to the caller until the garbage collector
 * finds nobody using the slab; the writer never touches it again.
 */
import { MalformedError } from './errors.ts'
import { InvalidIdError, type Lsn, type TimelineId } from './ids.ts'

const TWO32 = 0x1_0000_0000
/** High word of 2^53 - 1. */
const HIGH_WORD_MAX = 0x1f_ffff
export const STRING_BYTES_MAX = 0xffff
const NO_TIMELINE = '0'.repeat(32)

// biome-ignore lint/suspicious/noControlCharactersInRegex: they are what it looks for.
const UNPRINTABLE = /[\x01-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]/g
const strictUtf8 = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true })
/** The host's byte order; every platform that Node 24 runs on except s390x is little-endian. */
export const HOST_LITTLE_ENDIAN = new Uint8Array(new Uint32Array([1]).buffer)[0] === 1

function asBuffer(bytes: Uint8Array): Buffer {
  return Buffer.isBuffer(bytes) ? bytes : Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength)
}

export class ByteReader {
  private buf: Buffer
  private pos: number
  private end: number
  private begin: number

  constructor(buf: Uint8Array, begin = 0, end = buf.length) {
    this.buf = asBuffer(buf)
    this.begin = begin
    this.pos = begin
    this.end = end
  }

  reset(buf: Uint8Array, begin: number, end: number): this {
    this.buf = asBuffer(buf)
    this.begin = begin
    this.pos = begin
    this.end = end
    return this
  }

  get remaining(): number {
    return this.end - this.pos
  }

  /** Offset of the next byte from where the reader began. */
  get offset(): number {
    return this.pos - this.begin
  }

  fail(what: string): never {
    throw new MalformedError(`${what} at offset ${this.pos - this.begin}`)
  }

  private need(bytes: number, what: string): number {
    const at = this.pos
    if (this.end - at < bytes) this.fail(`${what} needs ${bytes} bytes, ${this.end - at} are left`)
    this.pos = at + bytes
    return at
  }

  u8(what = 'u8'): number {
    return this.buf[this.need(1, what)]!
  }

  u16(what = 'u16'): number {
    const at = this.need(2, what)
    return this.buf[at]! | (this.buf[at + 1]! << 8)
  }

  u32(what = 'u32'): number {
    const at = this.need(4, what)
    const b = this.buf
    return (b[at]! | (b[at + 1]! << 8) | (b[at + 2]! << 16) | (b[at + 3]! << 24)) >>> 0
  }

  /** An unsigned 64-bit number that must not exceed 2^53 - 1. */
  u64(what = 'u64'): number {
    const low = this.u32(what)
    const high = this.u32(what)
    if (high > HIGH_WORD_MAX) {
      this.pos -= 8
      this.fail(`${what} ${(BigInt(high) << 32n) | BigInt(low)} exceeds 2^53-1`)
    }
    return high * TWO32 + low
  }

  lsn(what = 'LSN'): Lsn {
    return this.u64(what) as Lsn
  }

  /** A byte that must be 0 or 1. */
  bool(what = 'flag'): boolean {
    const value = this.u8(what)
    if (value > 1) this.fail(`${what} ${value} is neither 0 nor 1`)
    return value === 1
  }

  /** A timeline's id. All zeros stand for none and are refused. */
  timeline(what = 'timeline id'): TimelineId {
    return this.timelineOrNone(what) ?? this.fail(`${what} is all zeros`)
  }

  /** A timeline's id, or undefined for 16 zero bytes. */
  timelineOrNone(what = 'timeline id'): TimelineId | undefined {
    const at = this.need(16, what)
    const id = this.buf.toString('hex', at, at + 16)
    return id === NO_TIMELINE ? undefined : (id as TimelineId)
  }

  /** u16 length and so many bytes of UTF-8, at most `bytesMax`. No NUL bytes. */
  string(what = 'string', bytesMax = STRING_BYTES_MAX): string {
    const bytes = this.u16(what)
    if (bytes > bytesMax) this.fail(`${what} has ${bytes} bytes, at most ${bytesMax} are allowed`)
    const at = this.need(bytes, what)
    const b = this.buf
    let all = 0
    for (let i = at; i < at + bytes; i++) {
      if (b[i] === 0) this.fail(`${what} contains a NUL byte`)
      all |= b[i]!
    }
    if (all < 0x80) return b.toString('latin1', at, at + bytes)
    try {
      return strictUtf8.decode(b.subarray(at, at + bytes))
    } catch {
      return this.fail(`${what} is not valid UTF-8`)
    }
  }

  /**
   * A string that the other side made for people: an error, a status, the name of a program. What would act on a terminal or
   * change how the rest is read (control characters but for tab and newline, bidirectional overrides) becomes question
   * marks, in as many bytes: the text may be passed on.
   */
  text(what: string, bytesMax = STRING_BYTES_MAX): string {
    return this.string(what, bytesMax).replace(UNPRINTABLE, c => '?'.repeat(Buffer.byteLength(c)))
  }

  /** A string that `check` accepts or refuses by throwing InvalidIdError. */
  checked(what: string, check: (text: string) => unknown): string {
    const text = this.string(what)
    try {
      check(text)
    } catch (error) {
      if (error instanceof InvalidIdError) this.fail(error.message)
      throw error
    }
    return text
  }

  /** A u32 count of items that have at least `itemBytesMin` bytes each: what cannot fit is refused before allocation. */
  count(what: string, itemBytesMin: number): number {
    const count = this.u32(what)
    if (count * itemBytesMin > this.end - this.pos)
      this.fail(
        `${count} ${what} of at least ${itemBytesMin} bytes do not fit in the ${this.end - this.pos} left`,
      )
    return count
  }

  /** `words` little-endian u32 as an array of their own. */
  words(words: number, what: string): Uint32Array {
    const at = this.need(words * 4, what)
    const out = new Uint32Array(words)
    if (HOST_LITTLE_ENDIAN) new Uint8Array(out.buffer).set(this.buf.subarray(at, at + words * 4))
    else {
      const view = new DataView(this.buf.buffer, this.buf.byteOffset + at)
      for (let i = 0; i < words; i++) out[i] = view.getUint32(i * 4, true)
    }
    return out
  }

  /** Bytes that must be zero. */
  zeros(bytes: number, what = 'reserved bytes'): void {
    const at = this.need(bytes, what)
    for (let i = at; i < at + bytes; i++)
      if (this.buf[i] !== 0) {
        this.pos = i
        this.fail(`${what} must be zero`)
      }
  }

  finish(what: string): void {
    if (this.pos !== this.end) this.fail(`${what}: ${this.end - this.pos} bytes too many`)
  }
}

export const SLAB_BYTES = 64 * 1024

export class ByteWriter {
  /** What is being written lies in it, at [begin, end). */
  slab: Buffer<ArrayBuffer> = Buffer.allocUnsafeSlow(SLAB_BYTES)
  begin = 0
  private pos = 0
  /** Gives a slab of `SLAB_BYTES` that nobody uses any more, if there is one. */
  private readonly spare: () => Buffer<ArrayBuffer> | undefined

  constructor(spare: () => Buffer<ArrayBuffer> | undefined = () => undefined) {
    this.spare = spare
  }

  /** Begins a new range of at least `reserve` bytes, 8-byte aligned, those first bytes left for the caller to fill. */
  start(reserve: number): void {
    this.begin = (this.pos + 7) & ~7
    this.pos = this.begin
    this.room(reserve)
  }

  get end(): number {
    return this.pos
  }

  /** Bytes written since `start`. */
  get length(): number {
    return this.pos - this.begin
  }

  /** The range since `start`. The writer never touches it again. */
  take(): Buffer {
    return this.slab.subarray(this.begin, this.pos)
  }

  /** Where the next `bytes` go, in `slab`. */
  private room(bytes: number): number {
    const at = this.pos
    if (at + bytes > this.slab.length) {
      const written = at - this.begin
      const least = (written + bytes) * 2
      const next =
        (least <= SLAB_BYTES ? this.spare() : undefined) ??
        Buffer.allocUnsafeSlow(Math.max(SLAB_BYTES, least))
      next.set(this.slab.subarray(this.begin, at))
      this.slab = next
      this.begin = 0
      this.pos = written + bytes
      return written
    }
    this.pos = at + bytes
    return at
  }

  /** Zeros. */
  skip(bytes: number): void {
    const at = this.room(bytes)
    for (let i = at; i < at + bytes; i++) this.slab[i] = 0
  }

  bytes(value: Uint8Array): void {
    const at = this.room(value.length)
    this.slab.set(value, at)
  }

  u8(value: number): void {
    const at = this.room(1)
    this.slab[at] = value
  }

  bool(value: boolean): void {
    this.u8(value ? 1 : 0)
  }

  u16(value: number): void {
    const at = this.room(2)
    this.slab[at] = value
    this.slab[at + 1] = value >>> 8
  }

  u32(value: number): void {
    const at = this.room(4)
    const b = this.slab
    b[at] = value
    b[at + 1] = value >>> 8
    b[at + 2] = value >>> 16
    b[at + 3] = value >>> 24
  }

  u64(value: number): void {
    if (!Number.isSafeInteger(value) || value < 0)
      throw new MalformedError(`${value} is not a whole number in 0..2^53-1`)
    const at = this.room(8)
    const b = this.slab
    const low = value >>> 0
    const high = (value - low) / TWO32
    b[at] = low
    b[at + 1] = low >>> 8
    b[at + 2] = low >>> 16
    b[at + 3] = low >>> 24
    b[at + 4] = high
    b[at + 5] = high >>> 8
    b[at + 6] = high >>> 16
    b[at + 7] = high >>> 24
  }

  /** Without a value: none. */
  timeline(id: TimelineId | undefined): void {
    const value = id ?? NO_TIMELINE
    const at = this.room(16)
    if (this.slab.write(value, at, 16, 'hex') !== 16 || value.length !== 32)
      throw new MalformedError(`"${value}" is no timeline id`)
  }

  string(value: string, what = 'string', bytesMax = STRING_BYTES_MAX): void {
    const bytes = Buffer.byteLength(value)
    if (bytes > bytesMax)
      throw new MalformedError(`${what} has ${bytes} bytes, at most ${bytesMax} are allowed`)
    if (value.includes('\0') || !value.isWellFormed())
      throw new MalformedError(`${what} contains a NUL character or half a surrogate pair`)
    this.u16(bytes)
    const at = this.room(bytes)
    this.slab.write(value, at, bytes, 'utf8')
  }

  /** The first `words` of the array, little-endian. */
  words(array: Uint32Array, words = array.length): void {
    const at = this.room(words * 4)
    if (HOST_LITTLE_ENDIAN) this.slab.set(new Uint8Array(array.buffer, array.byteOffset, words * 4), at)
    else for (let i = 0; i < words; i++) this.slab.writeUInt32LE(array[i]!, at + i * 4)
  }
}
