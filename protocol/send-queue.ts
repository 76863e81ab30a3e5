/**
 * Frames on their way into one socket. What is given in one turn of the event loop leaves in one system call, and frames with
 * little bulk are one piece of memory by then: a stream's bookkeeping and the kernel's cost as much for each piece as the copy
 * of some kilobytes.
 *
 * Memory: slabs go round. One comes back when the kernel has all that was in it; a frame's bytes are the queue's until then.
 */
import type { Socket } from 'node:net'
import { SLAB_BYTES } from './cursor.ts'
import { type FrameToSend, FrameWriter } from './frame.ts'

/** Slabs that no queue of this process uses at present. */
const spares: Buffer<ArrayBuffer>[] = []
const SPARES_MAX = 64

export class SendQueue {
  private readonly writer: FrameWriter
  private pieces: Uint8Array[] = []
  /** Frames that lie one behind the other in `slab`, at [runBegin, runEnd). */
  private slab: Buffer<ArrayBuffer>
  private runBegin = 0
  private runEnd = 0
  /** Slabs that the writer has left. */
  private left: Buffer<ArrayBuffer>[] = []
  private callbacks: (() => void)[] = []
  private bytes_ = 0

  constructor() {
    this.writer = new FrameWriter(() => spares.pop())
    this.slab = this.writer.slab
  }

  /** Of a frame that the peer takes. */
  get frameBytesMax(): number {
    return this.writer.frameBytesMax
  }

  set frameBytesMax(bytes: number) {
    this.writer.frameBytesMax = bytes
  }

  /** Not given to the socket yet. */
  get bytes(): number {
    return this.bytes_
  }

  /**
   * Takes a frame, which leaves with `flush`; `sent` is called once when the kernel has it, or the socket has failed. Returns the
   * frame's bytes. Throws MalformedError if it cannot be sent to this peer.
   */
  push(frame: FrameToSend, sent?: () => void): number {
    const { writer } = this
    const parts = writer.write(frame)
    const { slab, begin, end } = writer
    if (slab !== this.slab) {
      this.endRun()
      this.left.push(this.slab)
      this.slab = slab
      this.runBegin = begin
    } else if (begin !== this.runEnd) {
      this.endRun()
      this.runBegin = begin
    }
    this.runEnd = end
    let bytes = end - begin
    if (parts.length > 0) {
      this.endRun()
      for (const part of parts) {
        bytes += part.length
        this.pieces.push(part)
      }
    }
    if (sent !== undefined) this.callbacks.push(sent)
    this.bytes_ += bytes
    return bytes
  }

  private endRun(): void {
    if (this.runEnd > this.runBegin) this.pieces.push(this.slab.subarray(this.runBegin, this.runEnd))
    this.runBegin = this.runEnd
  }

  /** Gives the socket all there is; `written` is called when the kernel has it. */
  flush(socket: Socket, written?: () => void): void {
    if (this.bytes_ === 0) return
    this.endRun()
    const { pieces, left, callbacks } = this
    this.pieces = []
    this.left = []
    this.callbacks = []
    this.bytes_ = 0
    const done = (): void => {
      for (const slab of left) if (slab.length === SLAB_BYTES && spares.length < SPARES_MAX) spares.push(slab)
      for (const callback of callbacks) callback()
      written?.()
    }
    if (pieces.length === 1) {
      socket.write(pieces[0]!, done)
      return
    }
    socket.cork()
    const last = pieces.length - 1
    for (let i = 0; i < last; i++) socket.write(pieces[i]!)
    socket.write(pieces[last]!, done)
    socket.uncork()
  }

  /** The socket is gone: nothing of this will leave. */
  drop(): void {
    const { callbacks } = this
    this.pieces = []
    this.callbacks = []
    this.bytes_ = 0
    this.runBegin = this.runEnd
    for (const callback of callbacks) callback()
  }
}
