/**
 * When to pack. A core that compresses is missing to whoever writes or reads at full speed, and nothing is in a hurry: segments that
 * nobody needs go as they are, and those that stay are packed when it is quiet. Unless there are so many that the next start, which
 * reads them all, or the memory for their places would suffer.
 */
export interface PackPolicy {
  /** It is quiet while less than this is written and read, together, per second. Infinity: always. */
  readonly quietBytesPerSecond: number
  /** Sealed segments of more bytes are packed at once, one after the other. */
  readonly rawBytesMax: number
  /** The same for entries of timelines in raw segments. */
  readonly rowsMax: number
}

export const PACK_AT_ONCE: PackPolicy = {
  quietBytesPerSecond: Number.POSITIVE_INFINITY,
  rawBytesMax: 0,
  rowsMax: 0,
}

export const PACK_WHEN_QUIET: PackPolicy = {
  quietBytesPerSecond: 16e6,
  rawBytesMax: 2 * 1024 * 1024 * 1024,
  rowsMax: 4 * 1024 * 1024,
}

/** Over less time a rate says nothing: who reads a log may be busy for seconds with what came before. */
const SAMPLE_MS = 5000

/** Tells from the traffic whether it is quiet. Asked now and then; what it says is of the last five seconds or more. */
export class Quiet {
  readonly #policy: PackPolicy
  readonly #nowMs: () => number
  readonly #trafficBytes: () => number
  #sinceMs: number
  #sinceBytes: number
  #quiet = false

  /** `trafficBytes`: written and read until now. */
  constructor(policy: PackPolicy, nowMs: () => number, trafficBytes: () => number) {
    this.#policy = policy
    this.#nowMs = nowMs
    this.#trafficBytes = trafficBytes
    this.#sinceMs = nowMs()
    this.#sinceBytes = trafficBytes()
  }

  get isQuiet(): boolean {
    const { quietBytesPerSecond } = this.#policy
    if (quietBytesPerSecond === Number.POSITIVE_INFINITY) return true
    const ms = this.#nowMs() - this.#sinceMs
    if (ms < SAMPLE_MS) return this.#quiet
    const bytes = this.#trafficBytes()
    this.#quiet = (bytes - this.#sinceBytes) / (ms / 1000) < quietBytesPerSecond
    this.#sinceMs += ms
    this.#sinceBytes = bytes
    return this.#quiet
  }
}
