/**
 * From the ring to the safekeeper: reads as fast as the safekeeper makes durable, a bounded number of bytes in flight,
 * and looks again every few milliseconds when there is nothing.
 */
import type { Connection } from '../../protocol/connection.ts'
import type { Lsn, TimelineId, WriterEpoch } from '../../protocol/ids.ts'
import { MessageType } from '../../protocol/messages.ts'
import type { RingTail, TailStep } from './ring-tail.ts'

/** Redo sent and not yet acknowledged. */
const IN_FLIGHT_BYTES_MAX = 16 << 20
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
  readonly safekeeper: Connection
  readonly timeline: TimelineId
  readonly epoch: WriterEpoch
  /** Looks at a chunk before it is sent. Each `Cut`, in order of place, has the part before it made durable, then waits for `action`. */
  readonly inspect?: (chunk: Extract<TailStep, { kind: 'chunk' }>) => readonly Cut[]
  /** What to do when the ring has overtaken the reader. It reads on when that is done. */
  readonly onOvertaken: (step: Extract<TailStep, { kind: 'overtaken' }>) => Promise<void>
  readonly now?: () => number
}

export class RedoPump {
  readonly #options: RedoPumpOptions
  #flushedLsn: Lsn
  #sentLsn: Lsn
  #inFlightBytes = 0
  #inFlight = 0
  #redoBytes = 0
  #chunks = 0
  #endSeenAtMs = performance.now()
  #failure: unknown
  #wakeRoom: (() => void) | undefined
  #idleSince: number | undefined
  #stopped = false
  #waiters: { readonly lsn: Lsn; readonly resolve: () => void; readonly reject: (error: unknown) => void }[] =
    []
  #caughtUp: (() => void)[] = []

  constructor(options: RedoPumpOptions) {
    this.#options = options
    this.#flushedLsn = options.tail.position
    this.#sentLsn = options.tail.position
  }

  /** Everything below is durable at the safekeeper. */
  get flushedLsn(): Lsn {
    return this.#flushedLsn
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
          this.#flushedLsn = this.#options.tail.position
        }
      }
      await this.#drained()
    } catch (error) {
      this.#fail(error)
      throw error
    } finally {
      this.#stopped = true
      for (const resolve of this.#caughtUp.splice(0)) resolve()
      this.#settle()
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
    while (this.#inFlight > 0 && this.#inFlightBytes + bytes.length > IN_FLIGHT_BYTES_MAX && !this.#failure)
      await new Promise<void>(resolve => {
        this.#wakeRoom = resolve
      })
    if (this.#failure) throw this.#failure
    const { safekeeper, timeline, epoch } = this.#options
    this.#inFlight++
    this.#inFlightBytes += bytes.length
    this.#redoBytes += bytes.length
    this.#chunks++
    this.#sentLsn = (beginLsn + bytes.length) as Lsn
    const wallTimeUs = (this.#options.now ?? Date.now)() * 1000
    safekeeper
      .request({ type: MessageType.WalAppend, timeline, epoch, beginLsn, wallTimeUs }, { bulk: bytes })
      .then(
        ({ message }) => {
          if (message.flushedLsn > this.#flushedLsn) this.#flushedLsn = message.flushedLsn
        },
        error => this.#fail(error),
      )
      .finally(() => {
        this.#inFlight--
        this.#inFlightBytes -= bytes.length
        this.#wakeRoom?.()
        this.#wakeRoom = undefined
        this.#settle()
      })
  }

  #fail(error: unknown): void {
    this.#failure ??= error
    this.#wakeRoom?.()
    this.#settle()
  }

  #settle(): void {
    this.#waiters = this.#waiters.filter(waiter => {
      if (this.#flushedLsn >= waiter.lsn) waiter.resolve()
      else if (this.#failure) waiter.reject(this.#failure)
      else if (this.#stopped && this.#inFlight === 0)
        waiter.reject(new Error(`the log ended at LSN ${this.#flushedLsn}, before LSN ${waiter.lsn}`))
      else return true
      return false
    })
  }

  async #drained(): Promise<void> {
    while (this.#inFlight > 0 && !this.#failure)
      await new Promise<void>(resolve => {
        this.#wakeRoom = resolve
      })
    if (this.#failure) throw this.#failure
  }

  /** Waits until the safekeeper has everything up to `lsn`. */
  async durable(lsn: Lsn): Promise<void> {
    if (this.#flushedLsn >= lsn) return
    if (this.#failure) throw this.#failure
    await new Promise<void>((resolve, reject) => {
      this.#waiters.push({ lsn, resolve, reject })
      this.#settle()
    })
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
