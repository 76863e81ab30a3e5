/**
 * Memory that redo is read into on its way to readers, used again and again. Fresh buffers for each read cost more in garbage
 * collection than reading and sending together.
 */

/** Of a read, unless a single entry is longer. */
export const WINDOW_BYTES = 2 * 1024 * 1024
/** The same while so many readers are slow that much memory is in use. */
const WINDOW_BYTES_MIN = 256 * 1024
const USED_BYTES_MANY = 64 * 1024 * 1024
const KEPT_BYTES_MAX = 32 * 1024 * 1024

/** Memory with as many users as there are payloads in it that were not released. */
export class ReadWindow {
  readonly buffer: Buffer
  /** Called once for each user. */
  readonly release: () => void
  #users = 0

  constructor(buffer: Buffer, free: (window: ReadWindow) => void) {
    this.buffer = buffer
    this.release = () => {
      if (--this.#users === 0) free(this)
    }
  }

  /** There is at least one. */
  set users(count: number) {
    this.#users = count
  }
}

/**
 * Windows of one log. What is not given back is collected as any other memory is; whoever reads bounds how many it holds. At most
 * 32 MiB are kept that nobody uses.
 */
export class ReadWindows {
  /** By length, a power of two. */
  readonly #free = new Map<number, ReadWindow[]>()
  #freeBytes = 0
  #usedBytes = 0
  /** So often memory was taken. */
  taken = 0

  /** How much one read should bring. */
  get bytesWanted(): number {
    return this.#usedBytes > USED_BYTES_MANY ? WINDOW_BYTES_MIN : WINDOW_BYTES
  }

  get bytes(): number {
    return this.#freeBytes + this.#usedBytes
  }

  /** At least so long, with one user: the caller. */
  take(bytes: number): ReadWindow {
    this.taken++
    let length = WINDOW_BYTES_MIN
    while (length < bytes) length *= 2
    let window = this.#free.get(length)?.pop()
    if (window === undefined) window = new ReadWindow(Buffer.allocUnsafeSlow(length), this.#give)
    else this.#freeBytes -= length
    this.#usedBytes += length
    window.users = 1
    return window
  }

  readonly #give = (window: ReadWindow): void => {
    const { length } = window.buffer
    this.#usedBytes -= length
    if (this.#freeBytes + length > KEPT_BYTES_MAX) return
    this.#freeBytes += length
    const kept = this.#free.get(length)
    if (kept === undefined) this.#free.set(length, [window])
    else kept.push(window)
  }
}
