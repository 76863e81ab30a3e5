/**
 * Follows the log of one timeline: subscribes at a safekeeper where ingestion stands, lets chunks arrive straight in the
 * arena, tells the safekeeper what is durable, and comes back after every lost connection.
 *
 * Back-pressure: when ingestion has no room for the next chunk, the socket is not read until it has. Each timeline has a
 * connection of its own, so that nobody else waits meanwhile; trimming goes over it too, in the other direction.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import type { Connection } from '../../protocol/connection.ts'
import { BULK_WAIT } from '../../protocol/frame.ts'
import type { Lsn, TimelineId } from '../../protocol/ids.ts'
import { MessageType, type WalParting, type WalRead, type WalTrim } from '../../protocol/messages.ts'
import { PalimpsestError, toPalimpsestError } from '../shared/errors.ts'
import type { Log } from '../shared/log.ts'
import type { SafekeeperWatch } from '../shared/safekeeper-watch.ts'
import type { RedoIngest } from './ingest.ts'

const RETRY_MS_MIN = 50
const RETRY_MS_MAX = 3000

/** What the follower asks of its timeline. */
export interface FollowedTimeline {
  readonly id: TimelineId
  readonly ingest: RedoIngest
  readonly durableLsn: Lsn
  /** End of the safekeeper's committed log, as it was with the last chunk. */
  committedLsn: Lsn
  /** The safekeeper's log jumps: from the end of what arrived to `toLsn`. Resolves when it is taken care of. */
  logGap(fromLsn: Lsn, toLsn: Lsn, wallTimeUs: number): Promise<void>
  /**
   * Where the log ended whenever its cell was made again. Stops the timeline if what arrived goes beyond one that is new.
   * Throws retry if the safekeeper that says so has not heard of all, or is of another cell.
   */
  logParted(partings: readonly WalParting[]): Promise<void>
  /** For the status: what keeps the follower from following; empty when nothing does. */
  followerState(problem: string): void
}

export interface WalFollowerOptions {
  /** Dials the safekeeper to read from, in turn with all other timelines, and says when to leave it. */
  readonly safekeepers: SafekeeperWatch
  /** How the safekeeper knows us: what we have made durable is kept under this name. */
  readonly consumer: string
  readonly log: Log
}

export class WalFollower {
  readonly #timeline: FollowedTimeline
  readonly #options: WalFollowerOptions
  readonly #stop = new AbortController()
  #connection: Connection | undefined
  #isFollowing = false
  /** The last one that failed us. */
  #avoid: string | undefined
  #trimmedLsn = -1
  #trimming = false
  readonly #done: Promise<void>

  constructor(timeline: FollowedTimeline, options: WalFollowerOptions) {
    this.#timeline = timeline
    this.#options = options
    this.#done = this.#run()
  }

  /** Whether a safekeeper gives redo from where ingestion stands: the log has all that was taken in. */
  get isFollowing(): boolean {
    return this.#isFollowing
  }

  async close(): Promise<void> {
    this.#stop.abort(new PalimpsestError('retry', 'the page server is shutting down'))
    this.#connection?.close()
    await this.#done
  }

  /** Tells the safekeeper of a higher durable LSN; what was missed while disconnected is told on the next connection. */
  async trim(): Promise<void> {
    const connection = this.#connection
    const durableLsn = this.#timeline.durableLsn
    if (connection === undefined || this.#trimming || durableLsn <= this.#trimmedLsn) return
    this.#trimming = true
    let isTold = false
    try {
      const request: WalTrim = {
        type: MessageType.WalTrim,
        timeline: this.#timeline.id,
        durableLsn,
        consumer: this.#options.consumer,
      }
      await connection.request(request)
      this.#trimmedLsn = durableLsn
      isTold = true
    } catch (error) {
      this.#options.log.debug(
        { err: error },
        'trimming the log failed; it is tried again with the next layer',
      )
    } finally {
      this.#trimming = false
    }
    if (isTold && this.#connection === connection) void this.trim()
  }

  async #run(): Promise<void> {
    let delayMs = RETRY_MS_MIN
    const { signal } = this.#stop
    while (!signal.aborted && !this.#timeline.ingest.isStopped) {
      const before = this.#timeline.ingest.arrivedLsn
      try {
        await this.#follow()
      } catch (error) {
        if (signal.aborted) return
        const problem = toPalimpsestError(error)
        this.#timeline.followerState(problem.message)
        this.#options.log.debug({ kind: problem.kind, reason: problem.message }, 'not following')
      } finally {
        this.#isFollowing = false
        this.#connection?.close()
        this.#connection = undefined
        this.#timeline.ingest.abandon()
      }
      delayMs = this.#timeline.ingest.arrivedLsn > before ? RETRY_MS_MIN : Math.min(delayMs * 2, RETRY_MS_MAX)
      // All timelines lose a safekeeper in the same moment; they do not come back in the same one.
      await sleep(delayMs * (0.5 + Math.random()), undefined, { signal }).catch(() => {})
    }
  }

  async #partings(connection: Connection): Promise<readonly WalParting[]> {
    try {
      const timeline = this.#timeline.id
      return (await connection.request({ type: MessageType.WalPartings, timeline })).message.partings
    } catch (error) {
      // A safekeeper of before this message refuses it, and its cell was never made again.
      if (error instanceof PalimpsestError && error.kind === 'invalid') return []
      throw error
    }
  }

  async #follow(): Promise<void> {
    const { ingest } = this.#timeline
    const connection = await this.#options.safekeepers.dial(this.#stop.signal, this.#avoid)
    this.#connection = connection
    this.#avoid = connection.address
    const unfollow = this.#options.safekeepers.follow(connection.address, () => connection.close())
    connection.closed.addEventListener('abort', unfollow)
    this.#trimmedLsn = -1
    await this.#timeline.logParted(await this.#partings(connection))
    if (ingest.isStopped) return
    let waiting = false
    const waitForRoom = (): void => {
      if (waiting) return
      waiting = true
      void ingest.room().then(() => {
        waiting = false
        if (this.#connection === connection) connection.resumeReading()
      })
    }
    const subscription: WalRead = {
      type: MessageType.WalRead,
      timeline: this.#timeline.id,
      fromLsn: ingest.arrivedLsn,
      follow: true,
    }
    // Reservations belong to the frames in the order in which they arrive; a frame without bulk has none.
    const frames = connection.stream(subscription, {
      deadlineMs: 0,
      signal: this.#stop.signal,
      // Workers check every mini-transaction's own checksum, which covers more than the frame's.
      leaveBulkCheck: true,
      queueBytesMax: 32 << 20,
      bulkTarget: header => {
        if (header.bulkBytes === 0) return undefined
        const target = ingest.reserve(header.bulkBytes)
        if (target !== undefined) return target
        waitForRoom()
        return BULK_WAIT
      },
    })
    void this.trim()
    this.#timeline.followerState('')
    this.#isFollowing = true
    for await (const { message } of frames) {
      switch (message.type) {
        case MessageType.WalData:
          ingest.commit(message.beginLsn, message.wallTimeUs)
          this.#timeline.committedLsn = message.committedLsn
          break
        case MessageType.WalGap:
          if (message.toLsn > ingest.arrivedLsn)
            await this.#timeline.logGap(message.fromLsn, message.toLsn, message.wallTimeUs)
          break
        default:
          return
      }
      if (ingest.isStopped) return
    }
  }
}
