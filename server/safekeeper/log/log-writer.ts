/**
 * The one writer of the cell's log. Entries queue in memory; one loop writes all that wait as a batch, another syncs what was
 * written, so that the next batch is written while the last one syncs. Nobody waits for a timer: a lone entry is
 * written and synced at once, many that come meanwhile share one sync.
 *
 * Invariants: flushed <= written <= last. `flushed` rises only after a sync that began after the write had ended. A new segment
 * begins only when all before it is synced. Nothing is written between the request of a cut and its end; entries that
 * are appended meanwhile wait in the queue.
 */
import { internalError, retryError } from '../../shared/errors.ts'
import type { Clock } from '../../shared/seams.ts'
import type { EntryId, LogIndex, Term } from '../core/types.ts'
import { ENTRY_HEADER_BYTES, encodeEntryHeader, entryBytes, isTimelineKind, type LogEntry } from './entry.ts'
import type { LogFiles, Tail } from './log-files.ts'
import { isNoSpace } from './reserve.ts'
import { SEGMENT_DATA_OFFSET } from './segment-file.ts'
import type { TermList } from './term-list.ts'

/** Bytes of one batch: bounds how long those that come after it wait for its sync. */
const BATCH_BYTES_MAX = 16 * 1024 * 1024
const BATCH_ENTRIES_MAX = 4096
/**
 * A batch of so many bytes, or of an eighth of a segment, goes past the kernel's cache, unless the log is being read from the disk:
 * smaller ones gain nothing.
 */
const PAST_CACHE_BYTES_MIN = 512 * 1024
const PAST_CACHE_SEGMENT_PART = 8
/** Newest entries kept in memory for readers at the tail. */
const RECENT_BYTES_MAX = 16 * 1024 * 1024
const RECENT_ENTRIES_MAX = 16384
/**
 * The next segment is filled with zeros (see segment-file.ts) if there is time for it, half a segment having taken so long, and
 * if it pays: so many syncs of half a segment, each 0.1 ms shorter in space that was written before, against writing all of it twice.
 */
const FILL_HALF_SEGMENT_MS = 1000
const FILL_SYNCS = 2000
/** What may still be written on a full disk. */
const SMALL_BYTES_MAX = 64 * 1024
const PROBE_MS = 1000

export interface WriterEvents {
  onFlushed(id: EntryId): void
  /** false: the disk is full, and what did not fit is gone from the log's end. */
  onWritable(writable: boolean): void
  onRolled(): void
  /** Whether what is written is likely to be read from the disk soon. */
  isReadBack(): boolean
  onFatal(error: Error): void
}

interface Change {
  /** Cut after it (an entry of the log), or begin after it (reset). */
  readonly to: EntryId
  readonly reset: boolean
  readonly done: (() => void)[]
}

export class LogWriter {
  readonly #files: LogFiles
  readonly #clock: Clock
  readonly #events: WriterEvents
  readonly #terms: TermList
  #tail: Tail
  #written: EntryId
  #flushed: EntryId
  #queue: LogEntry[] = []
  #queuedBytes = 0
  #running: Promise<void> | undefined
  #syncing: Promise<void> | undefined
  #change: Change | undefined
  /** Newest entries, contiguous, up to the last; those before `written` may be given up. */
  #recent: LogEntry[] = []
  #recentBytes = 0
  #preparedFor: unknown
  readonly #pastCacheBytes: number
  #sealWanted: unknown
  #segmentSinceMs: number
  #syncsBefore = 0
  #writable = true
  #failure: Error | undefined
  #closed = false
  /** Why the last write was refused; empty once space is back. */
  lastError = ''
  syncs = 0
  batches = 0

  constructor(files: LogFiles, tail: Tail, terms: TermList, clock: Clock, events: WriterEvents) {
    this.#files = files
    this.#tail = tail
    this.#terms = terms
    this.#clock = clock
    this.#events = events
    this.#segmentSinceMs = clock.monotonicMs()
    this.#written = { index: terms.lastIndex, term: terms.lastTerm }
    this.#flushed = this.#written
    this.#pastCacheBytes = Math.min(PAST_CACHE_BYTES_MIN, files.segmentBytes / PAST_CACHE_SEGMENT_PART)
  }

  get last(): EntryId {
    return { index: this.#terms.lastIndex, term: this.#terms.lastTerm }
  }

  get flushed(): EntryId {
    return this.#flushed
  }

  get queuedBytes(): number {
    return this.#queuedBytes
  }

  get writable(): boolean {
    return this.#writable
  }

  /** Largest payload that fits in a segment. */
  get payloadBytesMax(): number {
    return this.#files.segmentBytes - SEGMENT_DATA_OFFSET - ENTRY_HEADER_BYTES - 8
  }

  /** Throws kind retry if the disk is full and the entries are not small, internal if they are not the next ones. */
  append(entries: readonly LogEntry[]): void {
    if (this.#failure !== undefined) throw this.#failure
    if (this.#closed) throw retryError('the log is closed')
    if (!this.#writable && !entries.every(isSmall)) throw retryError(this.lastError)
    for (const entry of entries) {
      const { lastIndex, lastTerm } = this.#terms
      if (entry.index !== lastIndex + 1 || entry.term < lastTerm)
        throw internalError(
          `entry ${entry.index} of term ${entry.term}, but the log ends at ${lastIndex} of term ${lastTerm}`,
        )
      if (entry.payload.length > this.payloadBytesMax)
        throw internalError(`entry of ${entry.payload.length} bytes does not fit in a segment`)
      this.#terms.push(entry.term)
      this.#queue.push(entry)
      this.#queuedBytes += entry.payload.length + ENTRY_HEADER_BYTES
      this.#recent.push(entry)
      this.#recentBytes += entry.payload.length
    }
    this.#kick()
  }

  /** Entries [from, last] from memory, at least one and at most `bytesMax`; undefined if `from` is older than that. */
  recent(from: number, last: number, bytesMax: number): LogEntry[] | undefined {
    const first = this.#recent[0]
    if (first === undefined || from < first.index) return undefined
    const at = from - first.index
    let end = at
    let bytes = 0
    while (end < this.#recent.length && this.#recent[end]!.index <= last) {
      bytes += entryBytes(this.#recent[end]!.payload.length)
      if (end > at && bytes > bytesMax) break
      end++
    }
    return this.#recent.slice(at, end)
  }

  get recentBytes(): number {
    return this.#recentBytes
  }

  /** Cuts the log after `index`. In memory at once; resolves when it is durable. */
  truncateAfter(index: LogIndex): Promise<void> {
    if (index >= this.#terms.lastIndex) return Promise.resolve()
    const term = this.#terms.termAt(index)
    if (term === undefined) throw internalError(`cut after entry ${index}, which the log does not have`)
    this.#terms.cutAfter(index)
    this.#forgetAfter(index)
    return this.#request({ index, term }, false)
  }

  /** Empties the log; it begins after `base`. In memory at once; resolves when it is durable. */
  reset(base: EntryId): Promise<void> {
    this.#terms.reset(base.index, base.term)
    this.#forgetAfter(0)
    return this.#request(base, true)
  }

  #request(to: EntryId, reset: boolean): Promise<void> {
    return new Promise(resolve => {
      const before = this.#change
      // A cut on the way to a lower one, or to a reset, is part of that one. What was appended in between never was on disk.
      const wins = before === undefined || reset || (!before.reset && to.index <= before.to.index)
      this.#change = wins
        ? { to, reset, done: [...(before?.done ?? []), resolve] }
        : { ...before, done: [...before.done, resolve] }
      if (!reset || to.index < this.#flushed.index) this.#flushed = lower(this.#flushed, to)
      this.#kick()
    })
  }

  #forgetAfter(index: number): void {
    this.#queue = this.#queue.filter(entry => entry.index <= index)
    this.#queuedBytes = sum(this.#queue)
    while (this.#recent.length > 0 && this.#recent.at(-1)!.index > index)
      this.#recentBytes -= this.#recent.pop()!.payload.length
  }

  #kick(): void {
    this.#running ??= this.#run()
  }

  async #run(): Promise<void> {
    try {
      // Let all entries of this turn of the event loop come into the first batch.
      await Promise.resolve()
      while (this.#failure === undefined) {
        if (this.#change !== undefined) await this.#applyChange()
        else if (this.#isSealWanted()) await this.#seal()
        else if (this.#queue.length > 0) await this.#writeBatch()
        else break
      }
    } catch (error) {
      this.#fail(`writing ${this.#tail.segment.path} failed`, error)
    } finally {
      this.#running = undefined
    }
  }

  async #applyChange(): Promise<void> {
    await this.#syncWritten()
    if (this.#failure !== undefined) return
    const { to, reset, done } = this.#change!
    if (reset || to.index < this.#written.index) {
      const old = this.#tail.file
      try {
        this.#tail = await (reset ? this.#files.reset(to) : this.#files.cut(to.index, to.term))
      } catch (error) {
        if (!isNoSpace(error)) throw error
        // Nothing was changed yet, or what was changed is done again. It must be done before anything else.
        if (this.#closed) throw error
        if (!(await this.#files.exclusive(() => this.#files.reserve.release()))) {
          if (this.#setFull(error as Error)) this.#events.onWritable(false)
          await this.#clock.sleep(PROBE_MS)
        }
        return
      }
      await old.close()
      this.#written = to
      this.#flushed = lower(to, this.#change!.to)
      this.#segmentSinceMs = this.#clock.monotonicMs()
      this.#syncsBefore = this.syncs
    }
    // Another request may have come meanwhile: it keeps its own, and this one is part of it only if it was joined above.
    if (this.#change!.to === to && this.#change!.reset === reset) {
      const all = this.#change!.done
      this.#change = undefined
      for (const resolve of all) resolve()
    } else for (const resolve of done) resolve()
  }

  async #writeBatch(): Promise<void> {
    if (!this.#fits(this.#queue[0]!, this.#tail.segment.endOffset)) {
      await this.#syncWritten()
      if (this.#failure !== undefined || this.#change !== undefined) return
      try {
        await this.#roll()
      } catch (error) {
        if (!isNoSpace(error)) throw error
        await this.#refuse(error as Error)
      }
      return
    }
    const { file, segment } = this.#tail
    const { generation } = this.#files.state
    const begin = segment.endOffset
    let count = 0
    let end = begin
    while (count < this.#queue.length && count < BATCH_ENTRIES_MAX && end - begin < BATCH_BYTES_MAX) {
      const entry = this.#queue[count]!
      if (!this.#fits(entry, end)) break
      end += entryBytes(entry.payload.length)
      count++
    }
    const batch = this.#queue.slice(0, count)
    const { buffers, chainCrc } = encodeBatch(batch, this.#flushed.index, this.#tail.chainCrc, generation)
    try {
      await file.write(buffers, begin, end - begin >= this.#pastCacheBytes && !this.#events.isReadBack())
    } catch (error) {
      if (!isNoSpace(error)) throw error
      await this.#refuse(error as Error)
      return
    }
    // What was cut off meanwhile is on disk all the same; the cut that waits will see to it.
    let kept = 0
    for (; kept < count && this.#queue[kept] === batch[kept]; kept++)
      this.#queuedBytes -= batch[kept]!.payload.length + ENTRY_HEADER_BYTES
    this.#queue.splice(0, kept)
    for (const entry of batch) segment.push(entry.kind, entry.payload.length)
    const last = batch.at(-1)!
    this.#tail = { ...this.#tail, chainCrc }
    this.#written = { index: last.index, term: last.term }
    this.batches++
    this.#shrinkRecent()
    this.#syncing ??= this.#syncLoop()
    if (end > this.#files.segmentBytes / 2) this.#prepareNext()
  }

  /** Ends the segment that is appended to, although it is not full. */
  sealTail(): void {
    this.#sealWanted = this.#tail.segment
    this.#kick()
  }

  #isSealWanted(): boolean {
    const { segment } = this.#tail
    return this.#sealWanted === segment && segment.count > 0 && this.#writable && !this.#closed
  }

  async #seal(): Promise<void> {
    this.#sealWanted = undefined
    await this.#syncWritten()
    if (this.#failure !== undefined || this.#change !== undefined) return
    try {
      await this.#roll()
    } catch (error) {
      // On a full disk it stays as it is; whoever wanted it asks again.
      if (!isNoSpace(error)) throw error
    }
  }

  #fits(entry: LogEntry, offset: number): boolean {
    return offset + entryBytes(entry.payload.length) <= this.#tail.segment.segmentBytes
  }

  async #roll(): Promise<void> {
    const old = this.#tail
    const { index, term } = this.#written
    this.#tail = await this.#files.roll((index + 1) as LogIndex, term as Term, old.chainCrc)
    this.#segmentSinceMs = this.#clock.monotonicMs()
    this.#syncsBefore = this.syncs
    await old.file.close()
    this.#events.onRolled()
  }

  /** Makes the next segment's file while there is still room in this one. A failure shows again at `roll`. */
  #prepareNext(): void {
    if (this.#preparedFor === this.#tail.segment) return
    this.#preparedFor = this.#tail.segment
    const isSlow = this.#clock.monotonicMs() - this.#segmentSinceMs >= FILL_HALF_SEGMENT_MS
    this.#files
      .prepare(isSlow && this.syncs - this.#syncsBefore >= FILL_SYNCS)
      .catch(error => this.#files.log.warn({ err: error }, 'cannot prepare the next log segment'))
  }

  async #syncWritten(): Promise<void> {
    while (this.#syncing !== undefined) await this.#syncing
  }

  async #syncLoop(): Promise<void> {
    let synced = -1
    while (synced < this.#written.index && this.#failure === undefined) {
      const target = this.#written
      try {
        await this.#tail.file.datasync()
      } catch (cause) {
        // The kernel may have dropped the dirty pages and would report success next time: never try again.
        this.#fail(`sync of ${this.#tail.segment.path} failed`, cause)
        break
      }
      synced = target.index
      this.syncs++
      // A cut that waits has made void what lies behind it, and the same indexes may have been given out again.
      const told = this.#change === undefined ? target : lower(target, this.#change.to)
      if (this.#change?.reset !== true && told.index > this.#flushed.index) {
        this.#flushed = told
        this.#events.onFlushed(told)
      }
    }
    this.#syncing = undefined
  }

  /** There is no space for the first entries of the queue: small ones get the reserve, the rest is dropped. */
  async #refuse(cause: Error): Promise<void> {
    // 1. From here on only small entries are taken. 2. The log's end goes back, and who asks is told. 3. Then that it is full.
    const wasWritable = this.#setFull(cause)
    if (this.#change === undefined) {
      let small = 0
      while (small < this.#queue.length && isSmall(this.#queue[small]!)) small++
      const keep = small > 0 && (await this.#files.exclusive(() => this.#files.reserve.release())) ? small : 0
      if (this.#change === undefined && this.#dropAfter(keep)) return this.#events.onWritable(false)
    }
    if (wasWritable) this.#events.onWritable(false)
  }

  /** Drops all but the first `keep` entries of the queue from the end of the log; whether there were any. */
  #dropAfter(keep: number): boolean {
    const last: EntryId =
      keep > 0 ? { index: this.#queue[keep - 1]!.index, term: this.#queue[keep - 1]!.term } : this.#written
    if (last.index === this.#terms.lastIndex) return false
    this.#terms.cutAfter(last.index)
    this.#forgetAfter(last.index)
    return true
  }

  /** Returns whether that is new. */
  #setFull(cause: Error): boolean {
    const { dir, log } = this.#files
    this.lastError = `no space for the log in ${dir}: ${(cause as NodeJS.ErrnoException).code}; redo is refused until space is freed`
    if (!this.#writable) return false
    this.#writable = false
    log.warn({ dir }, 'disk full: redo is refused; votes, reads and trims go on')
    void this.#probeLoop()
    return true
  }

  async #probeLoop(): Promise<void> {
    while (!this.#writable && !this.#closed && this.#failure === undefined) {
      await this.#clock.sleep(PROBE_MS)
      await this.probe()
    }
  }

  /** Looks whether a full disk has space again; for whoever has just freed some. */
  async probe(): Promise<void> {
    if (this.#writable || this.#closed) return
    const regained = await this.#files
      .exclusive(() => this.#files.reserve.regained())
      .catch((error: unknown) => {
        this.#files.log.warn({ err: error }, 'cannot tell whether the disk is still full')
        return false
      })
    if (!regained || this.#writable || this.#closed) return
    this.#writable = true
    this.lastError = ''
    this.#files.log.info({ dir: this.#files.dir }, 'the disk has space again')
    this.#events.onWritable(true)
  }

  #fail(what: string, cause: unknown): void {
    if (this.#failure !== undefined) return
    const error = internalError(
      `${what}: ${(cause as Error).message}; what is on disk is unknown, this node stops`,
      cause,
    )
    this.#failure = error
    this.lastError = error.message
    this.#events.onFatal(error)
  }

  #shrinkRecent(): void {
    if (this.#recentBytes <= RECENT_BYTES_MAX && this.#recent.length <= RECENT_ENTRIES_MAX) return
    // While a cut waits, `written` counts entries that are void.
    if (this.#change !== undefined) return
    // Down to three quarters at once, so that not every batch moves the array.
    let gone = 0
    let bytes = this.#recentBytes
    while (
      gone < this.#recent.length &&
      this.#recent[gone]!.index <= this.#written.index &&
      (bytes > RECENT_BYTES_MAX * 0.75 || this.#recent.length - gone > RECENT_ENTRIES_MAX * 0.75)
    )
      bytes -= this.#recent[gone++]!.payload.length
    this.#recent = this.#recent.slice(gone)
    this.#recentBytes = bytes
  }

  /** Writes and syncs what is queued, then closes the file. Whoever appends afterwards is refused. */
  async close(): Promise<void> {
    this.#closed = true
    while (this.#failure === undefined && (this.#running ?? this.#syncing) !== undefined)
      await (this.#running ?? this.#syncing)
    await this.#files.settled()
    await this.#tail.file.close()
  }
}

function lower(a: EntryId, b: EntryId): EntryId {
  return a.index <= b.index ? a : b
}

function isSmall(entry: LogEntry): boolean {
  return !isTimelineKind(entry.kind) && entry.payload.length <= SMALL_BYTES_MAX
}

function sum(entries: readonly LogEntry[]): number {
  let bytes = 0
  for (const entry of entries) bytes += entry.payload.length + ENTRY_HEADER_BYTES
  return bytes
}

/** The batch as it is written: all headers, each with the padding of the payload before it, in one buffer; payloads as they are. */
function encodeBatch(
  batch: readonly LogEntry[],
  flushed: LogIndex,
  chainCrc: number,
  generation: number,
): { buffers: Uint8Array[]; chainCrc: number } {
  const headers = Buffer.allocUnsafe(batch.length * (ENTRY_HEADER_BYTES + 8))
  const buffers: Uint8Array[] = []
  let from = 0
  let at = 0
  for (const entry of batch) {
    chainCrc = encodeEntryHeader(headers, at, entry, flushed, chainCrc, generation)
    at += ENTRY_HEADER_BYTES
    const { payload } = entry
    if (payload.length > 0) {
      buffers.push(headers.subarray(from, at), payload)
      from = at
      const padding = -payload.length & 7
      headers.fill(0, at, at + padding)
      at += padding
    }
  }
  if (at > from) buffers.push(headers.subarray(from, at))
  return { buffers, chainCrc }
}
