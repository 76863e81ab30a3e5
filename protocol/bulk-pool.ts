/**
 * Memory for bulks that their receivers give back. Fresh memory for each megabyte of pages costs a third of a client's
 * time: the kernel fills its pages with zeros on first touch, and the collector has to find out that nobody uses it.
 * Giving back is a choice; what is not given back is the collector's, as any other buffer.
 */

/** Smaller ones are cheap to allocate. */
const BYTES_MIN = 8 * 1024

export class BulkPool {
  private readonly freeBytesMax: number
  private readonly free = new Map<number, Buffer[]>()
  private freeBytes = 0
  /** Those handed out by `take` and not given back: nothing else may come in. */
  private readonly out = new WeakSet<ArrayBufferLike>()

  constructor(freeBytesMax: number) {
    this.freeBytesMax = freeBytesMax
  }

  /** At least `bytes` of memory with anything in it; undefined for small ones. */
  take(bytes: number): Buffer | undefined {
    if (bytes < BYTES_MIN) return undefined
    const size = sizeClass(bytes)
    let buffer = this.free.get(size)?.pop()
    if (buffer === undefined) buffer = Buffer.allocUnsafeSlow(size)
    else this.freeBytes -= size
    this.out.add(buffer.buffer)
    return buffer
  }

  /** Takes back what a buffer from `take`, or a view of it, lies in. Anything else is ignored. */
  give(view: Uint8Array): void {
    const { buffer } = view
    if (!this.out.delete(buffer)) return
    const size = buffer.byteLength
    if (this.freeBytes + size > this.freeBytesMax) return
    this.freeBytes += size
    const list = this.free.get(size)
    const whole = Buffer.from(buffer, 0, size)
    if (list === undefined) this.free.set(size, [whole])
    else list.push(whole)
  }
}

/** Four sizes to each power of two: at most a quarter is wasted. */
function sizeClass(bytes: number): number {
  const step = 2 ** Math.max(0, Math.floor(Math.log2(bytes - 1)) - 2)
  return Math.ceil(bytes / step) * step
}
