/**
 * The synthetic writer: as fast as the cell takes it, through the client library, on a timeline of its own; and the reader that
 * compares every acknowledged byte on every node.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import { Connection } from '../../protocol/connection.ts'
import type { Address, DialOptions } from '../../protocol/dial.ts'
import type { Lsn, TimelineId } from '../../protocol/ids.ts'
import { MessageType } from '../../protocol/messages.ts'
import { askLeader } from '../../server/shared/cell-client.ts'
import { toPalimpsestError } from '../../server/shared/errors.ts'
import { createLog } from '../../server/shared/log.ts'
import { WalWriter } from '../../server/shared/log-client.ts'
import { SeededRandom } from '../support/workloads/random.ts'
import { LsnContent } from './content.ts'

export const SYNTHETIC = '5a'.repeat(16) as TimelineId
const START = 8192 as Lsn
const CONSUMER = 'chaos'
const APPEND_BYTES_MAX = 64 * 1024
const WINDOW_BYTES = 4 << 20
const SLOW_MS = 20

export interface SyntheticOptions {
  readonly safekeepers: readonly Address[]
  readonly dial: DialOptions
  readonly seed: number
  /** The writer slows down when the log holds more than this that was not compared on all nodes. */
  readonly holdBytesMax: number
  /** 0: as fast as it goes. */
  readonly bytesPerSecond: number
}

export class SyntheticWriter {
  private readonly options: SyntheticOptions
  private readonly content: LsnContent
  private readonly writer: WalWriter
  private readonly random: SeededRandom
  private isStopping = false
  private done: Promise<void> = Promise.resolve()
  /** By node: all below was read there and is right. */
  private readonly compared = new Map<string, Lsn>()
  /** All below was compared on every node, and is not held any more. */
  private trimmed: Lsn = START
  private settled: Lsn = START
  private lastAckMs = performance.now()
  private heldUp = false
  private onAckAfter: (() => void) | undefined
  /** The longest time without an acknowledgement, since it was last set to 0. */
  longestGapMs = 0
  comparedBytes = 0

  private constructor(options: SyntheticOptions, content: LsnContent, writer: WalWriter) {
    this.options = options
    this.content = content
    this.writer = writer
    this.random = new SeededRandom(options.seed)
  }

  static async open(options: SyntheticOptions): Promise<SyntheticWriter> {
    await askLeader(
      options.safekeepers,
      { type: MessageType.WalCreate, timeline: SYNTHETIC, startLsn: START, name: 'synthetic' },
      { dial: options.dial },
    )
    let self: SyntheticWriter | undefined
    const writer = await WalWriter.open({
      safekeepers: options.safekeepers,
      timeline: SYNTHETIC,
      name: 'chaos',
      log: createLog({ name: 'synthetic', level: 'silent' }),
      windowBytesMax: WINDOW_BYTES,
      dial: options.dial,
      onFlushed: () => self?.acked(),
      onHeldUp: () => {
        if (self !== undefined) self.heldUp = true
      },
    })
    self = new SyntheticWriter(options, new LsnContent(options.seed), writer)
    return self
  }

  get ackedLsn(): Lsn {
    return this.writer.flushedLsn
  }

  get ackedBytes(): number {
    return this.writer.flushedLsn - START
  }

  private acked(): void {
    const now = performance.now()
    this.longestGapMs = Math.max(this.longestGapMs, now - this.lastAckMs)
    this.lastAckMs = now
    if (!this.heldUp) return
    this.heldUp = false
    this.onAckAfter?.()
    this.onAckAfter = undefined
  }

  /**
   * The next acknowledgement that did not come over the connection which it has now: what a killed leader had sent off yet
   * does not count. @returns the time of it, as performance.now() tells it
   */
  async ackOfNextLeader(timeoutMs: number): Promise<number> {
    this.heldUp = false
    const timeout = new AbortController()
    const acked = new Promise<number>(resolve => {
      this.onAckAfter = () => resolve(performance.now())
    })
    const late = sleep(timeoutMs, undefined, { signal: timeout.signal }).then(
      () => {
        throw new Error(`no append was acknowledged by another leader within ${timeoutMs} ms`)
      },
      () => 0,
    )
    try {
      return await Promise.race([acked, late])
    } finally {
      timeout.abort()
    }
  }

  start(): void {
    this.done = this.run()
    // Whoever awaits it later sees the failure; until then it is not unhandled.
    this.done.catch(() => {})
  }

  private async run(): Promise<void> {
    const { writer, options } = this
    const begun = performance.now()
    let written = 0
    while (!this.isStopping) {
      const at = writer.endLsn
      const bytes = 1 + this.random.below(this.random.below(4) === 0 ? APPEND_BYTES_MAX : 8192)
      await writer.append(at, this.content.make(at, bytes))
      written += bytes
      const aheadMs =
        options.bytesPerSecond === 0
          ? 0
          : (written / options.bytesPerSecond) * 1000 - (performance.now() - begun)
      if (aheadMs > 0) await sleep(Math.min(aheadMs, 100))
      // Slowly rather than not at all: that the cell goes on has to be seen.
      if (writer.endLsn - this.trimmed > options.holdBytesMax) await sleep(SLOW_MS)
    }
    await writer.durable()
  }

  /** Waits until something that is appended from now on is acknowledged. */
  async progress(timeoutMs = 60_000): Promise<void> {
    const { ackedLsn } = this
    const until = performance.now() + timeoutMs
    while (this.ackedLsn <= ackedLsn) {
      if (this.writer.failed !== undefined) throw this.writer.failed
      if (performance.now() > until)
        throw new Error(`no append was acknowledged for ${timeoutMs} ms; acknowledged is LSN ${ackedLsn}`)
      await sleep(5)
    }
  }

  /** No more appends; returns when all are acknowledged. */
  async stop(): Promise<void> {
    this.isStopping = true
    await this.done
    if (this.writer.flushedLsn !== this.writer.endLsn) throw new Error('not all that was appended is durable')
  }

  close(): void {
    this.isStopping = true
    this.writer.close()
  }

  /**
   * Reads all that is acknowledged by now from every node and compares it byte by byte; then lets the log give up what it did
   * so with the last time. @throws if a byte is wrong, or a node does not come to have it all
   */
  async compare(nodes: ReadonlyMap<string, Address>, timeoutMs: number): Promise<void> {
    if (this.writer.failed !== undefined) throw this.writer.failed
    const target = this.ackedLsn
    for (const name of this.compared.keys()) if (!nodes.has(name)) this.compared.delete(name)
    await Promise.all([...nodes].map(([name, address]) => this.compareNode(name, address, target, timeoutMs)))
    // What was compared this time is left for the next node that has to be given a log, unless it is a lot.
    const durableLsn = target - this.trimmed > this.options.holdBytesMax / 2 ? target : this.settled
    if (durableLsn > this.trimmed) {
      await askLeader(
        this.options.safekeepers,
        { type: MessageType.WalTrim, timeline: SYNTHETIC, consumer: CONSUMER, durableLsn },
        { dial: this.options.dial },
      )
      this.trimmed = durableLsn
    }
    this.settled = target
  }

  /** A node whose folder was emptied has to be read again from the beginning of what is held. */
  forget(name: string): void {
    this.compared.delete(name)
  }

  private async compareNode(name: string, address: Address, target: Lsn, timeoutMs: number): Promise<void> {
    const until = performance.now() + timeoutMs
    let why = ''
    let at = this.compared.get(name) ?? this.trimmed
    while (at < target) {
      if (performance.now() > until)
        throw new Error(
          `${name} has the log only up to LSN ${at} after ${timeoutMs} ms; LSN ${target} is acknowledged${why && ` (${why})`}`,
        )
      let connection: Connection | undefined
      try {
        connection = await Connection.connect({ deadlineMs: 3000, ...this.options.dial, ...address })
        const request = {
          type: MessageType.WalRead,
          timeline: SYNTHETIC,
          fromLsn: at,
          follow: false,
        } as const
        for await (const { message, bulk } of connection.stream(request)) {
          if (message.type === MessageType.WalGap)
            throw new WrongLog(
              `${name} has a gap from LSN ${message.fromLsn} to ${message.toLsn}, which nobody wrote`,
            )
          if (message.type !== MessageType.WalData) continue
          if (message.beginLsn !== at)
            throw new WrongLog(`${name} sends LSN ${message.beginLsn} where ${at} goes on`)
          const wrong = this.content.wrongAt(at, bulk)
          if (wrong !== undefined) throw new WrongLog(`${name} has another byte at LSN ${wrong}`)
          at = (at + bulk.length) as Lsn
          this.comparedBytes += bulk.length
          this.compared.set(name, at)
        }
      } catch (thrown) {
        if (thrown instanceof WrongLog) throw thrown
        const error = toPalimpsestError(thrown)
        why = error.message
        if (error.kind !== 'retry' && error.kind !== 'refresh')
          throw new Error(`${name}: ${why}`, { cause: thrown })
      } finally {
        connection?.close()
      }
      if (at < target) await sleep(50)
    }
  }
}

class WrongLog extends Error {}
