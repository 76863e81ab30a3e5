/**
 * From the ring to the safekeeper: reads as fast as the safekeeper makes durable, a bounded number of bytes in flight,
 * and looks again every few milliseconds when there is nothing.
 */
import type { Lsn } from '../../protocol/ids.ts'
import type { WalWriter } from '../shared/log-client.ts'
import type { RingTail, TailStep } from './ring-tail.ts'

const POLL_MS_MIN = 1
const POLL_MS_MAX = 10
/** So many looks without news, and the pause grows. */
const POLLS_PER_STEP = 20

/** Something is to be done between two mini-transactions of a chunk. */
export interface Cut {
  /** Offset in the chunk: the end of a mini-transaction, or 0. */
  readonly at: number
  readonly action: (lsn: Lsn) => Promise<void>
}

export interface RedoPumpOptions {
  readonly tail: RingTail
  readonly writer: WalWriter
  /** Looks at a chunk before it is sent. Each `Cut`, in order of place, has the part before it made durable, then waits for `action`. */
  readonly inspect?: (chunk: Extract<TailStep, { kind: 'chunk' }>) => readonly Cut[]
  /** What to do when the ring has overtaken the reader. It reads on when that is done. */
  readonly onOvertaken: (step: Extract<TailStep, { kind: 'overtaken' }>) => Promise<void>
  readonly now?: () => number
}

export class RedoPump {
  readonly #options: RedoPumpOptions
  #sentLsn: Lsn
  #redoBytes = 0
  #chunks = 0
  #endSeenAtMs = performance.now()
  #failure: unknown
  #failed: ((error: unknown) => void)[] = []
  #ended = false
  #idleSince: number | undefined
  #stopped = false
  #caughtUp: (() => void)[] = []

  constructor(options: RedoPumpOptions) {
    this.#options = options
    this.#sentLsn = options.tail.position
  }

  /** Everything below is committed by the safekeepers. */
  get flushedLsn(): Lsn {
    return this.#options.writer.flushedLsn
  }

  get sentLsn(): Lsn {
    return this.#sentLsn
  }

  get redoBytes(): number {
    return this.#redoBytes
  }

  get chunks(): number {
    return this.#chunks
  }

  /** When the end of the server's log was last seen, by `performance.now()`. */
  get endSeenAtMs(): number {
    return this.#endSeenAtMs
  }

  /** No news at the last look. */
  get isIdle(): boolean {
    return this.#idleSince !== undefined
  }

  /**
   * The server may overwrite, at any moment, redo that was not read yet: everything else has to wait.
   * It cannot while its checkpoint is at or below our position.
   */
  get isInDanger(): boolean {
    return !this.isIdle && this.#options.tail.checkpointLsn > this.#options.tail.position
  }

  stop(): void {
    this.#stopped = true
  }

  /** Runs until `stop`, or until something fails. When it returns, all that was read is durable. */
  async run(): Promise<void> {
    try {
      let polls = 0
      let pauseMs = POLL_MS_MIN
      while (!this.#stopped) {
        if (this.#failure) throw this.#failure
        // Who asks while this look is under way is told by the next one.
        const waiters = this.#caughtUp.slice()
        const step = await this.#options.tail.step(waiters.length > 0)
        if (step.kind === 'chunk') {
          this.#idleSince = undefined
          polls = 0
          pauseMs = POLL_MS_MIN
          await this.#take(step)
          // A server that always has something to write is never seen idle.
          if (step.atEnd) this.#seenEnd(waiters)
        } else if (step.kind === 'idle') {
          this.#idleSince ??= performance.now()
          this.#seenEnd(waiters)
          if (++polls % POLLS_PER_STEP === 0) pauseMs = Math.min(POLL_MS_MAX, pauseMs + 1)
          await new Promise(done => setTimeout(done, pauseMs))
        } else if (step.kind === 'wait') {
          await new Promise(done => setTimeout(done, POLL_MS_MAX))
        } else {
          await this.#drained()
          await this.#options.onOvertaken(step)
          this.#sentLsn = this.#options.tail.position
        }
      }
      await this.#drained()
    } catch (error) {
      this.fail(error)
      throw error
    } finally {
      this.#stopped = true
      this.#ended = true
      for (const resolve of this.#caughtUp.splice(0)) resolve()
    }
  }

  #seenEnd(waiters: readonly (() => void)[]): void {
    this.#endSeenAtMs = performance.now()
    if (waiters.length === 0) return
    this.#caughtUp = this.#caughtUp.filter(resolve => !waiters.includes(resolve))
    for (const resolve of waiters) resolve()
  }

  async #take(step: Extract<TailStep, { kind: 'chunk' }>): Promise<void> {
    let at = 0
    for (const cut of this.#options.inspect?.(step) ?? []) {
      if (cut.at > at) await this.#send((step.beginLsn + at) as Lsn, step.bytes.subarray(at, cut.at))
      at = cut.at
      await this.#drained()
      await cut.action((step.beginLsn + at) as Lsn)
    }
    if (at < step.bytes.length)
      await this.#send((step.beginLsn + at) as Lsn, at === 0 ? step.bytes : step.bytes.subarray(at))
  }

  async #send(beginLsn: Lsn, bytes: Uint8Array): Promise<void> {
    if (this.#failure) throw this.#failure
    this.#redoBytes += bytes.length
    this.#chunks++
    this.#sentLsn = (beginLsn + bytes.length) as Lsn
    const wallTimeUs = (this.#options.now ?? Date.now)() * 1000
    // Waits for room in the writer's window; it keeps the bytes until they are committed.
    await this.#orFailure(this.#options.writer.append(beginLsn, bytes, wallTimeUs))
  }

  /** Ends the pump: all that wait for it fail with `error`. */
  fail(error: unknown): void {
    this.#failure ??= error
    for (const reject of this.#failed.splice(0)) reject(this.#failure)
    for (const resolve of this.#caughtUp.splice(0)) resolve()
  }

  async #drained(): Promise<void> {
    if (this.#failure) throw this.#failure
    await this.#orFailure(this.#options.writer.durable())
  }

  async #orFailure<T>(waited: Promise<T>): Promise<T> {
    let reject: ((error: unknown) => void) | undefined
    const failed = new Promise<never>((_, no) => {
      reject = no
      this.#failed.push(no)
    })
    try {
      return await Promise.race([waited, failed])
    } catch (error) {
      waited.catch(() => {})
      throw this.#failure ?? error
    } finally {
      this.#failed = this.#failed.filter(other => other !== reject)
      failed.catch(() => {})
    }
  }

  /** Waits until the safekeepers have everything up to `lsn`. */
  async durable(lsn: Lsn): Promise<void> {
    if (this.flushedLsn >= lsn) return
    if (this.#failure) throw this.#failure
    if (this.#ended && lsn > this.#sentLsn)
      throw new Error(`the log ended at LSN ${this.#sentLsn}, before LSN ${lsn}`)
    await this.#orFailure(this.#options.writer.durable(lsn))
  }

  /** Waits until the reader has seen the end of the log, at some moment after this call. @returns that LSN, durable */
  async caughtUp(): Promise<Lsn> {
    if (!this.#stopped) {
      await new Promise<void>(resolve => this.#caughtUp.push(resolve))
    }
    if (this.#failure) throw this.#failure
    const lsn = this.#sentLsn
    await this.durable(lsn)
    return lsn
  }
}
