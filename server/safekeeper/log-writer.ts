/**
 * The one writer of a timeline's log. Entries queue in memory; one loop writes all that wait as a batch, another syncs
 * what was written, so that the next batch is written while the last one syncs. Nobody waits for a timer: a lone entry
 * is written and synced at once, many that come meanwhile share one sync.
 *
 * Invariants: flushedLsn <= writtenLsn <= endLsn; each is the end of an entry. `flushedLsn` rises only after a sync that
 * began after the write had ended. A new segment begins only when all before it is synced.
 */
import type { Lsn } from '../../protocol/ids.ts'
import { internalError, retryError } from '../shared/errors.ts'
import type { Log } from '../shared/log.ts'
import type { Clock } from '../shared/seams.ts'
import { ENTRY_HEADER_BYTES, encodeEntryHeader, entryBytes, type LogEntry } from './log-entry.ts'
import type { LogSegments, LogTail, Segment } from './log-segments.ts'
import { SEGMENT_DATA_OFFSET } from './segment-file.ts'

/** Bytes of one batch: bounds how long those that come after it wait for its sync. */
const BATCH_BYTES_MAX = 16 * 1024 * 1024
const BATCH_ENTRIES_MAX = 4096
/** Newest entries kept in memory for readers at the tail. */
const RECENT_BYTES_MAX = 16 * 1024 * 1024
const RECENT_ENTRIES_MAX = 16384
/** If half a segment took longer than this, there is time to fill the next one with zeros (see segment-file.ts). */
const SLOW_HALF_SEGMENT_MS = 1000
const PADDING = Buffer.alloc(8)

interface Waiter {
  readonly lsn: Lsn
  resolve(): void
  reject(error: Error): void
}

export class LogWriter {
  private readonly segments: LogSegments
  private readonly clock: Clock
  private readonly log: Log
  /** A sync failed: what is on disk is unknown, the node must stop. */
  private readonly onFatal: (error: Error) => void
  private tail: LogTail
  private endLsn_: Lsn
  private writtenLsn: Lsn
  private flushedLsn_: Lsn
  private wallTimeUs: number
  private queue: LogEntry[] = []
  /** Ascending by LSN. */
  private waiters: Waiter[] = []
  private writing = false
  private syncing: Promise<void> | undefined
  private preparedAfter: Segment | undefined
  private segmentSinceMs: number
  private failure: Error | undefined
  private closed = false
  /** Why the last write was refused; empty once one succeeded. */
  lastError = ''
  private readonly recent = new Map<Lsn, LogEntry>()
  private recentBytes = 0
  private readonly followers = new Set<() => void>()

  constructor(segments: LogSegments, tail: LogTail, clock: Clock, log: Log, onFatal: (error: Error) => void) {
    this.segments = segments
    this.clock = clock
    this.segmentSinceMs = clock.monotonicMs()
    this.tail = tail
    this.log = log
    this.onFatal = onFatal
    this.endLsn_ = tail.endLsn
    this.writtenLsn = tail.endLsn
    this.flushedLsn_ = tail.endLsn
    this.wallTimeUs = tail.lastWallTimeUs
  }

  /** Where the next entry must begin. */
  get endLsn(): Lsn {
    return this.endLsn_
  }

  get flushedLsn(): Lsn {
    return this.flushedLsn_
  }

  get lastWallTimeUs(): number {
    return this.wallTimeUs
  }

  /** Largest payload that fits in a segment. */
  get payloadBytesMax(): number {
    return this.segments.segmentBytes - SEGMENT_DATA_OFFSET - ENTRY_HEADER_BYTES - 8
  }

  /**
   * Adds an entry that begins at `endLsn`; resolves when it is durable. Rejects with kind retry if the disk is full:
   * then the entry, and all that were queued after it, are not in the log, and `endLsn` is back where it was.
   */
  append(entry: LogEntry): Promise<void> {
    if (this.failure !== undefined) return Promise.reject(this.failure)
    if (this.closed) return Promise.reject(retryError('the log keeper is shutting down'))
    if (entry.beginLsn !== this.endLsn_)
      throw internalError(`entry at ${entry.beginLsn}, log ends at ${this.endLsn_}`)
    if (entry.payload.length > this.payloadBytesMax)
      throw internalError(`entry of ${entry.payload.length} bytes does not fit in a segment`)
    this.queue.push(entry)
    this.endLsn_ = entry.endLsn
    const durable = this.whenFlushed(entry.endLsn)
    if (!this.writing) void this.writeLoop()
    return durable
  }

  /** Resolves when the log is durable up to `lsn`, which must not lie beyond `endLsn`. */
  whenFlushed(lsn: Lsn): Promise<void> {
    if (lsn <= this.flushedLsn_) return Promise.resolve()
    if (this.failure !== undefined) return Promise.reject(this.failure)
    return new Promise((resolve, reject) => {
      const waiter = { lsn, resolve, reject }
      const last = this.waiters.at(-1)
      if (last === undefined || last.lsn <= lsn) this.waiters.push(waiter)
      else {
        const at = this.waiters.findIndex(other => other.lsn > lsn)
        this.waiters.splice(at, 0, waiter)
      }
    })
  }

  /** Calls back whenever more of the log is durable. Returns what ends it. */
  follow(callback: () => void): () => void {
    this.followers.add(callback)
    return () => this.followers.delete(callback)
  }

  /** The entry that begins at `lsn`, if it is among the newest. */
  recentEntry(lsn: Lsn): LogEntry | undefined {
    return this.recent.get(lsn)
  }

  private async writeLoop(): Promise<void> {
    this.writing = true
    try {
      // Let all entries of this turn of the event loop come into the first batch.
      await Promise.resolve()
      while (this.queue.length > 0 && this.failure === undefined) await this.writeBatch()
    } catch (error) {
      this.refuse(error as NodeJS.ErrnoException)
    } finally {
      this.writing = false
    }
  }

  private async writeBatch(): Promise<void> {
    if (!this.fits(this.queue[0]!, this.tail.offset)) {
      await this.syncWritten()
      if (this.failure !== undefined) return
      await this.roll(this.queue[0]!.beginLsn)
    }
    const { file, offset } = this.tail
    let { chainCrc } = this.tail
    const batch: LogEntry[] = []
    const buffers: Uint8Array[] = []
    let at = offset
    while (
      batch.length < this.queue.length &&
      batch.length < BATCH_ENTRIES_MAX &&
      at - offset < BATCH_BYTES_MAX
    ) {
      const entry = this.queue[batch.length]!
      if (!this.fits(entry, at)) break
      const header = Buffer.allocUnsafe(ENTRY_HEADER_BYTES)
      chainCrc = encodeEntryHeader(header, 0, entry, this.flushedLsn_, chainCrc)
      buffers.push(header)
      if (entry.payload.length > 0) buffers.push(entry.payload)
      if (entry.payload.length % 8 !== 0) buffers.push(PADDING.subarray(entry.payload.length % 8))
      at += entryBytes(entry.payload.length)
      batch.push(entry)
    }
    // The batch stays in the queue until it is written: if that fails, nothing has changed.
    await file.write(buffers, offset)
    if (this.failure !== undefined) return
    this.queue.splice(0, batch.length)
    const last = batch.at(-1)!
    this.tail = { ...this.tail, offset: at, endLsn: last.endLsn, chainCrc, lastWallTimeUs: last.wallTimeUs }
    this.writtenLsn = last.endLsn
    this.lastError = ''
    for (const entry of batch) this.remember(entry)
    this.syncing ??= this.syncLoop()
    if (at > this.segments.segmentBytes / 2) this.prepareNext()
  }

  private fits(entry: LogEntry, offset: number): boolean {
    return offset + entryBytes(entry.payload.length) <= this.segments.segmentBytes
  }

  private async roll(baseLsn: Lsn): Promise<void> {
    const old = this.tail
    const { file, segment } = await this.segments.roll(baseLsn, old.chainCrc)
    this.tail = {
      file,
      segment,
      offset: SEGMENT_DATA_OFFSET,
      endLsn: baseLsn,
      chainCrc: segment.headerCrc,
      lastWallTimeUs: old.lastWallTimeUs,
    }
    this.segmentSinceMs = this.clock.monotonicMs()
    await old.file.close()
  }

  /** Makes the next segment's file while there is still room in this one. A failure shows again at `roll`. */
  private prepareNext(): void {
    if (this.preparedAfter === this.tail.segment) return
    this.preparedAfter = this.tail.segment
    const isSlow = this.clock.monotonicMs() - this.segmentSinceMs > SLOW_HALF_SEGMENT_MS
    this.segments
      .prepare(isSlow)
      .catch(error => this.log.warn({ err: error }, 'cannot prepare the next log segment'))
  }

  /** Resolves when all that was written is synced. */
  private async syncWritten(): Promise<void> {
    while (this.flushedLsn_ < this.writtenLsn && this.failure === undefined) {
      this.syncing ??= this.syncLoop()
      await this.syncing
    }
  }

  private async syncLoop(): Promise<void> {
    while (this.flushedLsn_ < this.writtenLsn) {
      const lsn = this.writtenLsn
      const { file, lastWallTimeUs } = this.tail
      try {
        await file.datasync()
      } catch (cause) {
        // The kernel may have dropped the dirty pages and would report success next time: never try again.
        this.fail(
          internalError(
            `sync of ${this.tail.segment.path} failed: ${(cause as Error).message}; what is on disk is unknown, this node stops`,
            cause,
          ),
        )
        break
      }
      this.flushedLsn_ = lsn
      this.wallTimeUs = lastWallTimeUs
      let done = 0
      while (done < this.waiters.length && this.waiters[done]!.lsn <= lsn) this.waiters[done++]!.resolve()
      this.waiters.splice(0, done)
      for (const follower of this.followers) follower()
    }
    this.syncing = undefined
  }

  /** A write did not succeed and nothing of it counts. A full disk is waited out by the writers; the rest is fatal. */
  private refuse(cause: NodeJS.ErrnoException): void {
    if (cause.code !== 'ENOSPC' && cause.code !== 'EDQUOT') {
      this.fail(
        internalError(`writing ${this.tail.segment.path} failed: ${cause.message}; this node stops`, cause),
      )
      return
    }
    this.lastError = `no space for the log in ${this.segments.dir}: ${cause.code}`
    this.log.warn(
      { dir: this.segments.dir, code: cause.code },
      'disk full: appends are refused, reads and trims go on',
    )
    const error = retryError(
      `${this.lastError}; appends are refused until space is freed or the page server has trimmed the log`,
      cause,
    )
    this.queue = []
    this.endLsn_ = this.writtenLsn
    const refused = this.waiters.filter(waiter => waiter.lsn > this.writtenLsn)
    this.waiters = this.waiters.filter(waiter => waiter.lsn <= this.writtenLsn)
    for (const waiter of refused) waiter.reject(error)
  }

  private fail(error: Error): void {
    if (this.failure !== undefined) return
    this.failure = error
    this.lastError = error.message
    for (const waiter of this.waiters.splice(0)) waiter.reject(error)
    this.queue = []
    this.onFatal(error)
  }

  private remember(entry: LogEntry): void {
    this.recent.set(entry.beginLsn, entry)
    this.recentBytes += entry.payload.length
    for (const [lsn, old] of this.recent) {
      if (this.recentBytes <= RECENT_BYTES_MAX && this.recent.size <= RECENT_ENTRIES_MAX) break
      this.recent.delete(lsn)
      this.recentBytes -= old.payload.length
    }
  }

  /** Writes and syncs what is queued, then closes the file. Returns the end of the log. */
  async close(): Promise<Lsn> {
    this.closed = true
    while (this.failure === undefined && this.endLsn_ > this.flushedLsn_) {
      if (!this.writing && this.queue.length > 0) await this.writeLoop()
      await this.whenFlushed(this.endLsn_).catch(() => {})
    }
    await this.segments.settled()
    await this.tail.file.close()
    return this.flushedLsn_
  }
}
