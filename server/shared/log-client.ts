/**
 * The writer's end of a timeline's log: becomes the only writer, appends with a bounded window in flight, finds the leader of
 * the cell by itself, and after a lost connection, the leader's death or a full disk goes on exactly where the log ends.
 * What it was given stays in its window until it is committed, so that nobody else has to remember it.
 *
 * Nothing is lost or written twice: 1. an append that was not answered is sent again, with the same LSN, bytes and epoch;
 * 2. the log takes only what begins at its end, and answers what lies below it like the first time; 3. before it goes
 * on, the writer asks the new leader (which answers with what is committed) for the epoch, so one that was fenced
 * meanwhile stops.
 *
 * A leader that stands still is noticed by what the others say (leader-scout.ts): while appends have been without an answer
 * for a second, they are asked who leads.
 *
 * It gives up for good (`failed`) when another writer took over, or when the safekeeper's log and ours do not fit.
 */
import { type Address, parseAddress } from '../../protocol/dial.ts'
import type { Lsn, TimelineId, WriterEpoch } from '../../protocol/ids.ts'
import { MessageType } from '../../protocol/messages.ts'
import { LeaderDialer, type LeaderDialerOptions } from './cell-client.ts'
import { fencedError, internalError, type PalimpsestError, retryError, toPalimpsestError } from './errors.ts'
import type { Channel } from './leader-scout.ts'
import type { Log } from './log.ts'
import { nodeClock } from './node-seams.ts'
import type { Clock } from './seams.ts'

export interface WalWriterOptions extends LeaderDialerOptions {
  readonly safekeepers: readonly Address[]
  readonly timeline: TimelineId
  /** For logs and for the one who is fenced: 1 to 128 printable ASCII characters. */
  readonly name: string
  readonly log: Log
  /** Redo sent and not yet durable, before `append` waits. 16 MiB unless told. */
  readonly windowBytesMax?: number | undefined
  /** How long `open` goes on trying where no leader is found. 15 s unless told. */
  readonly openMs?: number | undefined
  /** An append without an answer for so long is sent again over a new connection, whoever leads. 10 s unless told. */
  readonly silenceMs?: number | undefined
  /** Gives up `open`. */
  readonly signal?: AbortSignal | undefined
  /** Called whenever more is durable. */
  readonly onFlushed?: ((flushedLsn: Lsn) => void) | undefined
  /** Called when appends begin to be held up. */
  readonly onHeldUp?: ((reason: string) => void) | undefined
}

const WINDOW_BYTES_MAX_DEFAULT = 16 * 1024 * 1024
const RETRY_MS_MIN = 20
const OPEN_MS_DEFAULT = 15_000
const SILENCE_MS_DEFAULT = 10_000
/** Until a node has heard of a leader, and the leader of its quorum. */
const ASK_MS = 5000
const RETRY_MS_MAX = 1000

interface Item {
  readonly beginLsn: Lsn
  readonly endLsn: Lsn
  readonly wallTimeUs: number
  /** Undefined for a skip. */
  readonly bytes: Uint8Array | undefined
}

export class WalWriter {
  /** Given by the safekeeper; older writers are refused. */
  readonly epoch: WriterEpoch
  /** The oldest LSN that the safekeeper held when we opened. */
  readonly beginLsn: Lsn
  private readonly options: WalWriterOptions
  private readonly dialer: LeaderDialer
  private readonly clock: Clock
  private readonly windowBytesMax: number
  private connection: Channel
  private window: Item[] = []
  /** How many of the window, from its beginning, have gone out. */
  private sentItems = 0
  private windowBytes = 0
  private endLsn_: Lsn
  private flushedLsn_: Lsn
  private resyncing = false
  private retryMs = RETRY_MS_MIN
  private failure: PalimpsestError | undefined
  private closed = false
  private waiters: (() => void)[] = []
  /** When the leader last answered, or had nothing left to answer. */
  private heardMs = 0
  private lookingOut = false
  /** Ends with the connection. */
  private over = new AbortController()

  /** Makes this the timeline's only writer. Goes on trying while no leader is found. */
  static async open(options: WalWriterOptions): Promise<WalWriter> {
    const clock = options.clock ?? nodeClock
    const dialer = new LeaderDialer(options.safekeepers, options)
    const until = clock.monotonicMs() + (options.openMs ?? OPEN_MS_DEFAULT)
    for (let attempt = 1; ; attempt++) {
      options.signal?.throwIfAborted()
      let isReached = false
      try {
        const { connection, answer } = await dialer.reach(connection => {
          isReached = true
          return connection.request(
            { type: MessageType.WalOpen, timeline: options.timeline, writer: options.name },
            { deadlineMs: ASK_MS },
          )
        })
        return new WalWriter(options, dialer, connection, answer.message)
      } catch (thrown) {
        const error = toPalimpsestError(thrown)
        const isElsewhere = dialer.learn(error) || (error.kind === 'retry' && dialer.isHinted)
        // An address may be of a page server: another one is the safekeeper's.
        const isHopeless =
          error.kind !== 'retry' && !isElsewhere && (isReached || attempt >= options.safekeepers.length)
        if (isHopeless || clock.monotonicMs() > until) throw error
        if (!isElsewhere && attempt % options.safekeepers.length === 0)
          await clock.sleep(Math.min(RETRY_MS_MIN * attempt, RETRY_MS_MAX))
      }
    }
  }

  private constructor(
    options: WalWriterOptions,
    dialer: LeaderDialer,
    connection: Channel,
    opened: { readonly epoch: WriterEpoch; readonly beginLsn: Lsn; readonly endLsn: Lsn },
  ) {
    this.options = options
    this.dialer = dialer
    this.clock = options.clock ?? nodeClock
    this.windowBytesMax = options.windowBytesMax ?? WINDOW_BYTES_MAX_DEFAULT
    this.connection = connection
    this.epoch = opened.epoch
    this.beginLsn = opened.beginLsn
    this.endLsn_ = opened.endLsn
    this.flushedLsn_ = opened.endLsn
    this.watch(connection)
  }

  /** Where the next append must begin. */
  get endLsn(): Lsn {
    return this.endLsn_
  }

  /** All below is durable. */
  get flushedLsn(): Lsn {
    return this.flushedLsn_
  }

  /** Why this writer has given up. */
  get failed(): PalimpsestError | undefined {
    return this.failure
  }

  /**
   * Hands over whole mini-transactions that begin at `endLsn`; `bytes` must not change until they are durable. Resolves
   * when there is room in the window, not when they are durable: `durable` tells that.
   */
  async append(beginLsn: Lsn, bytes: Uint8Array, wallTimeUs = this.clock.wallTimeUs()): Promise<void> {
    await this.add({ beginLsn, endLsn: (beginLsn + bytes.length) as Lsn, wallTimeUs, bytes })
  }

  /** The redo from `endLsn` to `toLsn` is lost; the log goes on at `toLsn`. */
  async skip(toLsn: Lsn, wallTimeUs = this.clock.wallTimeUs()): Promise<void> {
    await this.add({ beginLsn: this.endLsn_, endLsn: toLsn, wallTimeUs, bytes: undefined })
  }

  private async add(item: Item): Promise<void> {
    this.check()
    if (item.beginLsn !== this.endLsn_)
      throw internalError(`append at LSN ${item.beginLsn}, this writer is at ${this.endLsn_}`)
    this.endLsn_ = item.endLsn
    this.window.push(item)
    this.windowBytes += item.bytes?.length ?? 0
    this.pump()
    while (this.windowBytes > this.windowBytesMax) await this.change()
  }

  /** Resolves when the log is durable up to `lsn`. Rejects if this writer gives up before. */
  async durable(lsn: Lsn = this.endLsn_): Promise<void> {
    while (this.flushedLsn_ < lsn) await this.change()
  }

  private check(): void {
    if (this.failure !== undefined) throw this.failure
    if (this.closed) throw retryError('the log writer is closed')
  }

  private async change(): Promise<void> {
    this.check()
    await new Promise<void>(resolve => this.waiters.push(resolve))
    this.check()
  }

  private wake(): void {
    for (const waiter of this.waiters.splice(0)) waiter()
  }

  private pump(): void {
    if (this.resyncing || this.failure !== undefined || this.closed) return
    const { timeline } = this.options
    if (this.sentItems === 0 && this.window.length > 0) this.heardMs = this.clock.monotonicMs()
    while (this.sentItems < this.window.length) {
      const item = this.window[this.sentItems++]!
      const { connection, epoch } = this
      const { beginLsn, endLsn, wallTimeUs, bytes } = item
      const deadlineMs = this.options.silenceMs ?? SILENCE_MS_DEFAULT
      const answer =
        bytes === undefined
          ? connection.request(
              {
                type: MessageType.WalSkip,
                timeline,
                epoch,
                fromLsn: beginLsn,
                toLsn: endLsn,
                wallTimeUs,
              },
              { deadlineMs },
            )
          : connection.request(
              { type: MessageType.WalAppend, timeline, epoch, beginLsn, wallTimeUs },
              { bulk: bytes, deadlineMs },
            )
      answer.then(
        ({ message }) => {
          if (connection === this.connection) this.heardMs = this.clock.monotonicMs()
          this.flushed(message.flushedLsn)
        },
        error => this.trouble(connection, error),
      )
    }
    if (this.sentItems > 0 && !this.lookingOut) this.lookOut()
  }

  /** While appends wait in silence: does another one lead? */
  private lookOut(): void {
    const { connection, dialer } = this
    const { signal } = this.over
    const { address } = connection
    this.lookingOut = true
    const isWaiting = () => connection === this.connection && this.sentItems > 0
    void dialer.scout
      .watch({
        asked: parseAddress(address),
        standing: () => dialer.standing,
        silentMs: () => (isWaiting() ? this.clock.monotonicMs() - this.heardMs : undefined),
        signal,
        found: sighting => this.trouble(connection, dialer.move(address, sighting)),
      })
      .finally(() => {
        this.lookingOut = false
        // What has come while it was ending.
        if (!this.closed && !this.resyncing && this.failure === undefined && this.sentItems > 0)
          this.lookOut()
      })
  }

  private flushed(lsn: Lsn): void {
    if (lsn <= this.flushedLsn_) return
    this.flushedLsn_ = lsn
    this.retryMs = RETRY_MS_MIN
    let done = 0
    while (done < this.window.length && this.window[done]!.endLsn <= lsn)
      this.windowBytes -= this.window[done++]!.bytes?.length ?? 0
    this.window.splice(0, done)
    this.sentItems = Math.max(0, this.sentItems - done)
    this.options.onFlushed?.(lsn)
    this.wake()
  }

  private watch(connection: Channel): void {
    connection.closed.addEventListener('abort', () => this.trouble(connection, connection.closed.reason))
  }

  /** retry and refresh are waited out; whatever else is final. */
  private trouble(connection: Channel, thrown: unknown): void {
    if (this.closed || this.failure !== undefined || this.resyncing || connection !== this.connection) return
    const error = toPalimpsestError(thrown)
    this.dialer.learn(error)
    if (error.kind !== 'retry' && error.kind !== 'refresh') {
      this.fail(error)
      return
    }
    this.resyncing = true
    this.over.abort()
    this.options.log.warn(
      { reason: error.message, flushedLsn: this.flushedLsn_, waitingBytes: this.windowBytes },
      'log writer: appends are held up and will be sent again',
    )
    this.options.onHeldUp?.(error.message)
    void this.resync()
  }

  private fail(error: PalimpsestError): void {
    this.failure = error
    this.over.abort()
    this.connection.close()
    this.wake()
  }

  /**
   * 1. A connection of our own again; answers of the old one count no more. 2. The safekeeper tells the epoch (another
   * writer may have come meanwhile) and what is durable. 3. All beyond goes out again; what still waits in its queue
   * from before is answered as a duplicate.
   */
  private async resync(): Promise<void> {
    this.connection.close()
    while (!this.closed) {
      await this.clock.sleep(this.retryMs)
      this.retryMs = Math.min(this.retryMs * 2, RETRY_MS_MAX)
      if (this.closed) return
      let isReached = false
      let opened: Channel | undefined
      try {
        const { timeline } = this.options
        const { connection, answer } = await this.dialer.reach(connection => {
          isReached = true
          return connection.request({ type: MessageType.WalState, timeline }, { deadlineMs: ASK_MS })
        })
        opened = connection
        const { message } = answer
        if (message.flushedLsn < this.flushedLsn_)
          throw fencedError(
            `the log of "${message.name}" ends at LSN ${message.flushedLsn} at ${connection.address}, but the safekeepers had acknowledged it up ` +
              `to LSN ${this.flushedLsn_}: what lies between was lost with them, and the cell was made again of what was left (by ${message.writer || 'nobody that is known'}). ` +
              'This writer stops',
          )
        if (message.epoch !== this.epoch)
          throw fencedError(
            `"${message.name}" has a newer writer, ${message.writer} (epoch ${message.epoch}): stop`,
          )
        if (message.flushedLsn > this.endLsn_)
          throw internalError(
            `${connection.address} has the log up to LSN ${message.flushedLsn}, it had acknowledged ${this.flushedLsn_} ` +
              `and was sent up to ${this.endLsn_}: not the same log`,
          )
        if (this.closed) {
          connection.close()
          return
        }
        this.connection = connection
        this.flushed(message.flushedLsn)
        this.sentItems = 0
        this.resyncing = false
        this.over = new AbortController()
        this.watch(connection)
        this.pump()
        return
      } catch (thrown) {
        opened?.close()
        const error = toPalimpsestError(thrown)
        if (this.dialer.learn(error) || this.dialer.isHinted) this.retryMs = RETRY_MS_MIN
        // One that is no safekeeper is passed over, if there are others.
        const isOfAddress = !isReached && this.options.safekeepers.length > 1
        if (error.kind !== 'retry' && error.kind !== 'refresh' && !isOfAddress) {
          this.fail(error)
          return
        }
        this.options.log.debug({ reason: error.message }, 'log writer: still held up')
      }
    }
  }

  /** Does not wait for what is in flight; `await durable()` before, if that matters. */
  close(): void {
    if (this.closed) return
    this.closed = true
    this.over.abort()
    this.connection.close()
    this.wake()
  }
}
