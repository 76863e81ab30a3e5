/**
 * Frames: the unit of the wire. Little-endian, every frame a multiple of 8 bytes, header 40 bytes:
 *
 *      0 u32 frameBytes      all of it: 40 + headBytes + padding + bulkWireBytes + padding
 *      4 u32 headCrc         CRC-32C of bytes [8, 40 + headBytes)
 *      8 u64 requestId       chosen by the client, repeated by every frame of the answer; below 2^53
 *     16 u16 type            message-types.ts
 *     18 u16 flags           1 REPLY, 2 MORE (other frames of the answer follow), 4 ERROR, 8 BULK_ZSTD, 16 BULK_SECTIONED
 *     20 u32 headBytes       the message's fields, without padding
 *     24 u32 bulkBytes       of the bulk, uncompressed
 *     28 u32 bulkWireBytes   of the bulk as sent; equal to bulkBytes unless BULK_ZSTD
 *     32 u32 bulkCrc         CRC-32C of the uncompressed bulk; 0 if BULK_SECTIONED (then the head has one per section)
 *     36 u32 0
 *     40 head, zero padding to 8, bulk, zero padding to 8
 *
 * The bulk (redo, pages, files) has a checksum of its own, which is made once by whoever made the bytes and travels with
 * them: a server does not read a page again to send it. docs/protocol.md says what else was weighed.
 */
import { zstdCompressSync, zstdDecompressSync } from 'node:zlib'
import { crc32c } from './crc32c.ts'
import { ByteReader, ByteWriter } from './cursor.ts'
import { MalformedError, PalimpsestError } from './errors.ts'
import {
  type AnyMessage,
  codecOf,
  decodeMessage,
  encodeMessage,
  type Message,
  messageName,
} from './messages.ts'

export const FRAME_HEADER_BYTES = 40
export const FRAME_BYTES_MAX_DEFAULT = 16 * 1024 * 1024
/** The smallest limit that a peer may ask for: a chunk of redo (1 MiB and one mini-transaction) always fits. */
export const FRAME_BYTES_MAX_LEAST = 4 * 1024 * 1024
/** Nobody may ask for more. */
export const FRAME_BYTES_MAX_MOST = 256 * 1024 * 1024
/** Limit until both hellos are exchanged. */
export const HELLO_FRAME_BYTES_MAX = 8192

export const FrameFlag = { REPLY: 1, MORE: 2, ERROR: 4, BULK_ZSTD: 8, BULK_SECTIONED: 16 } as const
const FLAGS_KNOWN = 31
const TWO32 = 0x1_0000_0000
const pad8 = (bytes: number) => (bytes + 7) & ~7
const NO_BYTES = Buffer.alloc(0)
const ZEROS = Buffer.alloc(8)

export interface FrameHeader {
  readonly requestId: number
  readonly type: number
  readonly flags: number
  readonly headBytes: number
  readonly bulkBytes: number
  readonly bulkWireBytes: number
  readonly bulkCrc: number
}

export interface Frame {
  readonly header: FrameHeader
  readonly message: Message
  /**
   * `header.bulkBytes` bytes, or none. Belongs to the receiver: either the memory that its `bulkTarget` gave, or fresh
   * memory that nobody else refers to.
   */
  readonly bulk: Uint8Array
}

export interface FrameToSend {
  readonly requestId: number
  readonly flags?: number
  readonly message: AnyMessage
  /** One buffer, or several that are sent one after the other. Must not change until they are sent. */
  readonly bulk?: Uint8Array | readonly Uint8Array[] | undefined
  /** CRC-32C of the bulk if its maker gave one; else it is computed. Not for sectioned messages. */
  readonly bulkCrc?: number | undefined
  /** Compress the bulk (only if the peer offered Feature.ZSTD); it goes out as it is where that gains nothing. */
  readonly compress?: boolean | undefined
}

/** A bulk of up to so many bytes is copied behind its head: that costs less than a buffer of its own on the way to the kernel. */
const COPIED_BYTES_MAX = 16 * 1024

/** Makes the bytes of frames. One writer per connection: it keeps a slab for headers and heads. */
export class FrameWriter {
  private readonly w: ByteWriter
  /** The peer's limit; a larger frame is refused here with an error of kind invalid. */
  frameBytesMax = FRAME_BYTES_MAX_DEFAULT

  /** `spare`: see ByteWriter. */
  constructor(spare?: () => Buffer<ArrayBuffer> | undefined) {
    this.w = new ByteWriter(spare)
  }

  /** The frame as buffers to be written in this order. Those of a large bulk are among them, not copies. */
  encode(frame: FrameToSend): Uint8Array[] {
    const parts = this.write(frame)
    return [this.w.take(), ...parts]
  }

  /** Where `write` has put its bytes. */
  get slab(): Buffer<ArrayBuffer> {
    return this.w.slab
  }

  get begin(): number {
    return this.w.begin
  }

  get end(): number {
    return this.w.end
  }

  /**
   * Puts a frame into `slab`, at [begin, end), right behind the one before if it is the same slab; what of it comes after
   * that is returned.
   */
  write(frame: FrameToSend): readonly Uint8Array[] {
    const w = this.w
    w.start(FRAME_HEADER_BYTES)
    const codec = encodeMessage(w, frame.message)
    const headBytes = w.length - FRAME_HEADER_BYTES
    w.skip(pad8(headBytes) - headBytes)

    let flags = frame.flags ?? 0
    let parts: readonly Uint8Array[] =
      frame.bulk === undefined ? NO_PARTS : isList(frame.bulk) ? frame.bulk : [frame.bulk]
    let bulkBytes = 0
    for (const part of parts) bulkBytes += part.length
    let bulkWireBytes = bulkBytes
    let bulkCrc = 0
    if (codec.bulk === 'sectioned') flags |= FrameFlag.BULK_SECTIONED
    else if (bulkBytes > 0) {
      if (codec.bulk === 'none') throw new MalformedError(`${codec.name} has no bulk`)
      bulkCrc = frame.bulkCrc ?? crcOfParts(parts)
    }
    if (frame.compress && bulkBytes > 0) {
      const packed = zstdCompressSync(parts.length === 1 ? parts[0]! : Buffer.concat(parts))
      if (packed.length < bulkBytes) {
        parts = [packed]
        bulkWireBytes = packed.length
        flags |= FrameFlag.BULK_ZSTD
      }
    }
    const frameBytes = FRAME_HEADER_BYTES + pad8(headBytes) + pad8(bulkWireBytes)
    if (frameBytes > this.frameBytesMax || FRAME_HEADER_BYTES + bulkBytes > this.frameBytesMax)
      throw new MalformedError(
        `${codec.name} of ${Math.max(frameBytes, bulkBytes)} bytes exceeds the peer's limit of ${this.frameBytesMax}`,
      )

    const padding = pad8(bulkWireBytes) - bulkWireBytes
    const isCopied = bulkWireBytes <= COPIED_BYTES_MAX
    if (isCopied) {
      for (const part of parts) w.bytes(part)
      w.skip(padding)
    }
    const { slab: out, begin } = w
    putU32(out, begin, frameBytes)
    putU32(out, begin + 8, frame.requestId >>> 0)
    putU32(out, begin + 12, Math.floor(frame.requestId / TWO32))
    putU32(out, begin + 16, frame.message.type | (flags << 16))
    putU32(out, begin + 20, headBytes)
    putU32(out, begin + 24, bulkBytes)
    putU32(out, begin + 28, bulkWireBytes)
    putU32(out, begin + 32, bulkCrc)
    putU32(out, begin + 36, 0)
    putU32(out, begin + 4, crc32c(out, begin + 8, begin + FRAME_HEADER_BYTES + headBytes))
    if (isCopied) return NO_PARTS
    return padding === 0 ? parts : [...parts, ZEROS.subarray(0, padding)]
  }
}

const NO_PARTS: readonly Uint8Array[] = []

function putU32(b: Buffer, at: number, value: number): void {
  b[at] = value
  b[at + 1] = value >>> 8
  b[at + 2] = value >>> 16
  b[at + 3] = value >>> 24
}

function isList(bulk: Uint8Array | readonly Uint8Array[]): bulk is readonly Uint8Array[] {
  return Array.isArray(bulk)
}

function crcOfParts(parts: readonly Uint8Array[]): number {
  let crc = 0
  for (const part of parts) crc = crc32c(part, 0, part.length, crc)
  return crc
}

/** Answer of `bulkTarget`: no memory now. The reader stops until `resume()`, then asks again. */
export const BULK_WAIT: unique symbol = Symbol('bulk-wait')

export interface FrameSink {
  /** A whole frame, its bulk checked (unless `leaveBulkCheck`). */
  onFrame(frame: Frame): void
  /** A frame whose message is refused; its bulk is skipped and the next frame is read. `message` tells why. */
  onRefused(header: FrameHeader, error: PalimpsestError): void
  /** Where to put a bulk: at least `bulkBytes` long; undefined: fresh memory; BULK_WAIT: none now, stop reading. */
  bulkTarget?(header: FrameHeader, message: Message): Uint8Array | typeof BULK_WAIT | undefined
  /** True if whoever gets the frame checks the bulk's CRC (or those of its sections) itself. */
  leaveBulkCheck?(header: FrameHeader, message: Message): boolean
}

/** Bytes read at once when no bulk can be read in place. */
const STAGING_BYTES = 128 * 1024
/** A remaining bulk of at least this many bytes is read in place; below, a copy costs less than one more system call. */
const DIRECT_BYTES_MIN = 64 * 1024
const SCRATCH_BYTES = 4096

/**
 * Bytes to frames, however they are split. Two ways in: `push(chunk)`, or `target()` and `received(bytes)` for a socket
 * that reads into memory it is given (`onread`), where a large bulk lands at its place without a copy. Heads are decoded
 * before the call returns and never refer to the caller's bytes afterwards; what `stop()` left unread does, until
 * `resume()`. Throws a fatal MalformedError when the next frame's place is not known any more; the reader is then dead.
 */
export class FrameReader {
  /** Our own limit, told to the peer in the hello. Checked before any memory is taken. */
  frameBytesMax: number
  private readonly sink: FrameSink
  private readonly reader = new ByteReader(NO_BYTES)
  private stopped = false
  private dead = false
  /** Received and not yet looked at, because the reader was stopped. */
  private leftover: Uint8Array = NO_BYTES

  /** Header and head that did not arrive in one piece: `scratch[0, scratchBytes)`. */
  private scratch = NO_BYTES
  private scratchBytes = 0
  private readonly staging: { bytes: Buffer | undefined; inUse: boolean } = { bytes: undefined, inUse: false }

  /** The frame whose bulk is being received, if any. */
  private header: FrameHeader | undefined
  private message: Message | undefined
  private refusal: PalimpsestError | undefined
  /** Head is decoded, memory for the bulk was not to be had. */
  private waitsForTarget = false
  private target_: Uint8Array | undefined
  /** Where the wire bytes of the bulk go: the target itself, or memory for compressed bytes. */
  private wire: Uint8Array = NO_BYTES
  private wireAt = 0
  /** Bytes to pass over: padding, or the bulk of a refused frame. */
  private skip = 0

  constructor(sink: FrameSink, frameBytesMax = FRAME_BYTES_MAX_DEFAULT) {
    this.sink = sink
    this.frameBytesMax = frameBytesMax
  }

  get isStopped(): boolean {
    return this.stopped
  }

  /** A part of a bulk has come, and the rest goes into memory that `bulkTarget` gave. */
  get isFilling(): boolean {
    return this.target_ !== undefined && this.target_.length > 0
  }

  /** True between frames: an end of the stream here is clean. */
  get isIdle(): boolean {
    return (
      this.header === undefined && this.scratchBytes === 0 && this.skip === 0 && this.leftover.length === 0
    )
  }

  /** No more callbacks after the one that is running, until `resume()`. The caller also stops the socket. */
  stop(): void {
    this.stopped = true
  }

  /** Goes on with what was left. Returns false if it stopped again. */
  resume(): boolean {
    this.stopped = false
    const rest = this.leftover
    this.leftover = NO_BYTES
    this.consume(rest)
    return !this.stopped
  }

  /** A chunk of the stream; must not change while the reader is stopped. Returns false if the reader stopped. */
  push(chunk: Uint8Array): boolean {
    if (this.stopped) this.leftover = concat(this.leftover, chunk)
    else this.consume(chunk)
    return !this.stopped
  }

  /** Memory for the next read. */
  target(): Uint8Array {
    const remaining = this.wire.length - this.wireAt
    if (
      this.header !== undefined &&
      !this.waitsForTarget &&
      this.skip === 0 &&
      remaining >= DIRECT_BYTES_MIN
    ) {
      this.staging.inUse = false
      return this.wire.subarray(this.wireAt)
    }
    this.staging.inUse = true
    this.staging.bytes ??= Buffer.allocUnsafeSlow(STAGING_BYTES)
    return this.staging.bytes
  }

  /** `bytes` have arrived in what `target()` gave last. Returns false if the reader stopped. */
  received(bytes: number): boolean {
    if (this.staging.inUse) return this.push(this.staging.bytes!.subarray(0, bytes))
    this.wireAt += bytes
    if (this.wireAt === this.wire.length) this.guard(() => this.bulkComplete())
    return !this.stopped
  }

  private guard(run: () => void): void {
    if (this.dead) throw new MalformedError('the stream was already given up', true)
    try {
      run()
    } catch (error) {
      this.dead = true
      throw error
    }
  }

  private consume(chunk: Uint8Array): void {
    this.guard(() => {
      let at = 0
      while (!this.stopped) {
        if (this.waitsForTarget && !this.takeTarget()) break
        if (this.skip > 0) {
          const bytes = Math.min(this.skip, chunk.length - at)
          this.skip -= bytes
          at += bytes
          if (this.skip > 0) return
        }
        if (this.header !== undefined) {
          const bytes = Math.min(this.wire.length - this.wireAt, chunk.length - at)
          this.wire.set(chunk.subarray(at, at + bytes), this.wireAt)
          this.wireAt += bytes
          at += bytes
          if (this.wireAt < this.wire.length) return
          this.bulkComplete()
        } else {
          if (at === chunk.length) return
          at = this.scratchBytes === 0 ? this.headInPlace(chunk, at) : this.headInScratch(chunk, at)
        }
      }
      this.leftover = chunk.subarray(at)
    })
  }

  /** Header and head from the chunk itself if they are whole; returns where to go on. */
  private headInPlace(chunk: Uint8Array, at: number): number {
    const available = chunk.length - at
    if (available >= FRAME_HEADER_BYTES) {
      const end = FRAME_HEADER_BYTES + this.checkHeader(chunk, at)
      if (available >= end) {
        this.headComplete(chunk, at)
        return at + end
      }
    }
    this.keep(chunk, at, chunk.length)
    return chunk.length
  }

  private headInScratch(chunk: Uint8Array, at: number): number {
    if (this.scratchBytes < FRAME_HEADER_BYTES) {
      const bytes = Math.min(FRAME_HEADER_BYTES - this.scratchBytes, chunk.length - at)
      this.keep(chunk, at, at + bytes)
      at += bytes
      if (this.scratchBytes < FRAME_HEADER_BYTES) return at
    }
    const end = FRAME_HEADER_BYTES + this.checkHeader(this.scratch, 0)
    const bytes = Math.min(end - this.scratchBytes, chunk.length - at)
    this.keep(chunk, at, at + bytes)
    if (this.scratchBytes === end) {
      this.scratchBytes = 0
      this.headComplete(this.scratch, 0)
      if (this.scratch.length > SCRATCH_BYTES) this.scratch = NO_BYTES
    }
    return at + bytes
  }

  /** The scratch grows with what really arrived, not with what a header claims. */
  private keep(chunk: Uint8Array, from: number, to: number): void {
    const bytes = this.scratchBytes + to - from
    if (bytes > this.scratch.length) {
      const next = Buffer.allocUnsafeSlow(Math.max(SCRATCH_BYTES, bytes * 2))
      next.set(this.scratch.subarray(0, this.scratchBytes))
      this.scratch = next
    }
    this.scratch.set(chunk.subarray(from, to), this.scratchBytes)
    this.scratchBytes = bytes
  }

  /** Checks what can be checked before the head is there; returns headBytes. */
  private checkHeader(buf: Uint8Array, at: number): number {
    const frameBytes = u32(buf, at)
    const headBytes = u32(buf, at + 20)
    const bulkBytes = u32(buf, at + 24)
    const bulkWireBytes = u32(buf, at + 28)
    const flags = buf[at + 18]! | (buf[at + 19]! << 8)
    if (frameBytes > this.frameBytesMax || bulkBytes > this.frameBytesMax)
      fatal(`frame of ${Math.max(frameBytes, bulkBytes)} bytes exceeds the limit of ${this.frameBytesMax}`)
    const expected = FRAME_HEADER_BYTES + Math.ceil(headBytes / 8) * 8 + Math.ceil(bulkWireBytes / 8) * 8
    if (frameBytes !== expected)
      fatal(`frameBytes is ${frameBytes}, its parts make ${expected}: not a Palimpsest frame`)
    if (flags & ~FLAGS_KNOWN) fatal(`frame flags 0x${flags.toString(16)} are unknown`)
    if (bulkWireBytes !== bulkBytes && (flags & FrameFlag.BULK_ZSTD) === 0)
      fatal(`bulkWireBytes ${bulkWireBytes} differs from bulkBytes ${bulkBytes} without compression`)
    if (u32(buf, at + 12) > 0x1f_ffff) fatal('requestId exceeds 2^53-1')
    if (u32(buf, at + 36) !== 0) fatal('the reserved field of the frame header is not zero')
    return headBytes
  }

  private headComplete(buf: Uint8Array, at: number): void {
    const headBytes = u32(buf, at + 20)
    const end = at + FRAME_HEADER_BYTES + headBytes
    const crc = crc32c(buf, at + 8, end)
    if (crc !== u32(buf, at + 4))
      fatal(`CRC-32C of the frame's head is ${hex(crc)}, the header says ${hex(u32(buf, at + 4))}`)
    const header: FrameHeader = {
      requestId: u32(buf, at + 8) + u32(buf, at + 12) * TWO32,
      type: buf[at + 16]! | (buf[at + 17]! << 8),
      flags: buf[at + 18]! | (buf[at + 19]! << 8),
      headBytes,
      bulkBytes: u32(buf, at + 24),
      bulkWireBytes: u32(buf, at + 28),
      bulkCrc: u32(buf, at + 32),
    }
    this.skip = pad8(headBytes) - headBytes
    this.header = header
    this.wireAt = 0
    try {
      this.message = decodeMessage(header.type, this.reader.reset(buf, at + FRAME_HEADER_BYTES, end))
      checkBulk(header, this.message)
    } catch (error) {
      if (!(error instanceof MalformedError)) throw error
      this.refusal = error
    }
    this.takeTarget()
  }

  /** Finds memory for the bulk. False if there is none now: then the reader is stopped. */
  private takeTarget(): boolean {
    const header = this.header!
    this.waitsForTarget = false
    if (this.refusal !== undefined) {
      this.skip += pad8(header.bulkWireBytes)
      this.wire = NO_BYTES
      return true
    }
    if (header.bulkBytes === 0) {
      this.target_ = NO_BYTES
      this.wire = NO_BYTES
      this.skip += pad8(header.bulkWireBytes)
      return true
    }
    const target = this.sink.bulkTarget?.(header, this.message!)
    if (target === BULK_WAIT) {
      this.waitsForTarget = true
      this.stopped = true
      return false
    }
    if (target !== undefined && target.length < header.bulkBytes)
      throw new Error(`bulkTarget gave ${target.length} bytes for a bulk of ${header.bulkBytes}`)
    const compressed = (header.flags & FrameFlag.BULK_ZSTD) !== 0
    this.target_ = target?.subarray(0, header.bulkBytes)
    this.wire =
      compressed || this.target_ === undefined ? Buffer.allocUnsafeSlow(header.bulkWireBytes) : this.target_
    return true
  }

  private bulkComplete(): void {
    const header = this.header!
    const message = this.message
    const refusal = this.refusal
    const target = this.target_
    const wire = this.wire
    this.header = undefined
    this.message = undefined
    this.refusal = undefined
    this.target_ = undefined
    this.wire = NO_BYTES
    this.wireAt = 0
    if (refusal !== undefined) {
      this.sink.onRefused(header, refusal)
      return
    }
    if (header.bulkBytes > 0) this.skip += pad8(header.bulkWireBytes) - header.bulkWireBytes
    let bulk: Uint8Array
    try {
      bulk = header.bulkBytes > 0 && header.flags & FrameFlag.BULK_ZSTD ? inflate(header, wire, target) : wire
      if (!this.sink.leaveBulkCheck?.(header, message!)) verifyBulk(header, message!, bulk)
    } catch (error) {
      if (!(error instanceof PalimpsestError)) throw error
      this.sink.onRefused(header, error)
      return
    }
    this.sink.onFrame({ header, message: message!, bulk })
  }
}

function checkBulk(header: FrameHeader, message: Message): void {
  const codec = codecOf(message.type)!
  const sectioned = (header.flags & FrameFlag.BULK_SECTIONED) !== 0
  if (sectioned !== (codec.bulk === 'sectioned'))
    throw new MalformedError(`${codec.name} ${sectioned ? 'must not' : 'must'} have flag BULK_SECTIONED`)
  if (header.bulkBytes === 0) {
    if (header.bulkWireBytes !== 0) throw new MalformedError(`${codec.name}: compressed bulk of zero bytes`)
  } else if (codec.bulk === 'none') throw new MalformedError(`${codec.name} has no bulk`)
  if (sectioned) {
    if (header.bulkCrc !== 0)
      throw new MalformedError(`${codec.name}: a sectioned bulk has no CRC in the header`)
    let bytes = 0
    codec.sections!(message, (_, sectionBytes) => {
      bytes += sectionBytes
    })
    if (bytes !== header.bulkBytes)
      throw new MalformedError(
        `${codec.name}: sections have ${bytes} bytes, the bulk has ${header.bulkBytes}`,
      )
  }
}

/** Checks a bulk against the CRC in its header, or those of its sections. Throws an error of kind corrupt. */
export function verifyBulk(header: FrameHeader, message: AnyMessage, bulk: Uint8Array): void {
  if ((header.flags & FrameFlag.BULK_SECTIONED) === 0) {
    const crc = crc32c(bulk, 0, bulk.length)
    if (crc !== header.bulkCrc)
      throw new PalimpsestError(
        'corrupt',
        `${messageName(header.type)}: CRC-32C of the ${bulk.length} bytes of bulk is ${hex(crc)}, the header says ` +
          `${hex(header.bulkCrc)}: damaged on the way`,
      )
    return
  }
  codecOf(message.type)!.sections!(message, (offset, bytes, expected) => {
    const crc = crc32c(bulk, offset, offset + bytes)
    if (crc !== expected)
      throw new PalimpsestError(
        'corrupt',
        `${messageName(header.type)}: CRC-32C of the section at bulk offset ${offset} (${bytes} bytes) is ` +
          `${hex(crc)}, the head says ${hex(expected)}: damaged on the way`,
      )
  })
}

function inflate(header: FrameHeader, packed: Uint8Array, target: Uint8Array | undefined): Uint8Array {
  let bytes: Buffer
  try {
    bytes = zstdDecompressSync(packed, { maxOutputLength: header.bulkBytes })
  } catch (cause) {
    throw new PalimpsestError('corrupt', `${messageName(header.type)}: the compressed bulk does not unpack`, {
      cause,
    })
  }
  if (bytes.length !== header.bulkBytes)
    throw new PalimpsestError(
      'corrupt',
      `${messageName(header.type)}: the bulk unpacks to ${bytes.length} bytes, the header says ${header.bulkBytes}`,
    )
  if (target === undefined) return bytes
  target.set(bytes)
  return target
}

function u32(b: Uint8Array, at: number): number {
  return (b[at]! | (b[at + 1]! << 8) | (b[at + 2]! << 16) | (b[at + 3]! << 24)) >>> 0
}

function hex(value: number): string {
  return `0x${value.toString(16).padStart(8, '0')}`
}

function fatal(message: string): never {
  throw new MalformedError(message, true)
}

function concat(a: Uint8Array, b: Uint8Array): Uint8Array {
  return a.length === 0 ? b : Buffer.concat([a, b])
}
