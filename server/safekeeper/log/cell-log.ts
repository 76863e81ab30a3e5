/**
 * The log of a cell on one node's disk: entries by index, redo by timeline and LSN. Who may append, what is committed and
 * what may go is decided above (core/, docs/consensus.md); how it lies on disk is docs/log-format.md.
 *
 * Order of calls: `append`, `truncateAfter` and `reset` change the log in memory at once and may follow each other without
 * waiting; the disk follows in the same order. `applied` is told of committed entries in order.
 */

import type { Lsn, TimelineId } from '../../../protocol/ids.ts'
import { internalError, invalidError, refreshError } from '../../shared/errors.ts'
import type { Log } from '../../shared/log.ts'
import type { Clock, Disk } from '../../shared/seams.ts'
import { Turns } from '../../shared/turns.ts'
import type { EntryId, EntryRun, LogIndex, Term } from '../core/types.ts'
import type { LogEntry } from './entry.ts'
import { LogFiles, type Tail } from './log-files.ts'
import { LogWriter } from './log-writer.ts'
import { PACK_LEVEL_DEFAULT } from './pack-builder.ts'
import type { PackEntry, PackSummary } from './pack-codec.ts'
import { PackCache, PackFile } from './pack-file.ts'
import { PackLedger } from './pack-ledger.ts'
import { PACK_AT_ONCE, PACK_WHEN_QUIET, type PackPolicy } from './pack-policy.ts'
import { boundaryInPacks, seekInPacks } from './pack-search.ts'
import { inlinePackRunner, type PackRunner } from './packer.ts'
import { type NeededFrom, Packing } from './packing.ts'
import { RawSegment } from './raw-segment.ts'
import { readAround, readHere } from './read-around.ts'
import { ReadWindows } from './read-windows.ts'
import type { Damage, EntryVisitor } from './recovery.ts'
import { type EntrySource, LogRepair } from './repair.ts'
import { LogScrub, type ScrubOptions } from './scrub.ts'
import { CELL_SEGMENT_BYTES_DEFAULT } from './segment-file.ts'
import type { TermList } from './term-list.ts'
import { TimelineCursor } from './timeline-cursor.ts'
import { TimelineIndex } from './timeline-index.ts'
import type { LogUnit } from './unit-check.ts'

export type { EntryKind, LogEntry } from './entry.ts'
export type { Damage } from './recovery.ts'
export type { TimelineChunk, TimelineCursor } from './timeline-cursor.ts'

const RESERVE_BYTES_DEFAULT = 8 * 1024 * 1024
/** What an append costs besides its bytes, in the time of so many bytes. */
const APPEND_TRAFFIC_BYTES = 8192
/** For so long after a read of raw segments, others are expected. */
const READ_BACK_MS = 10_000
/** How often a read begins again because the file that it read was replaced in the meantime. */
const READ_ATTEMPTS_MAX = 8

export interface CellLogOptions {
  readonly disk: Disk
  readonly clock: Clock
  /** Made by `create`; the log's alone. */
  readonly dir: string
  readonly log: Log
  /** Of new segments; the largest entry must fit. Default 64 MiB. */
  readonly segmentBytes?: number
  /** Space kept for small entries on a full disk. Default 8 MiB; 0: none. */
  readonly reserveBytes?: number
  /**
   * The snapshot's index: redo up to here was applied before this start and is taken into the timeline index; of what comes after,
   * `applied` will be told again.
   */
  readonly appliedTo: LogIndex
  /** Whether damage is accepted: the log is then cut before it. Else it is an error of kind corrupt and nothing is changed. */
  readonly acceptDamage?: boolean
  /** Makes packs. Default: in place, on this thread; a node passes `workerPackRunner()`. 'off': segments stay as they are. */
  readonly packs?: PackRunner | 'off'
  /** When; default: at once if they are made in place, else when it is quiet. */
  readonly packPolicy?: PackPolicy
  /** zstd level of packs; default 3. */
  readonly packLevel?: number
  /** A sync or write failed: what is on disk is unknown, the process must end. */
  onFatal(error: Error): void
}

export interface LogStart {
  readonly base: EntryId
  /** Of the entries (base.index, lastIndex]. */
  readonly runs: EntryRun[]
  readonly memberships: readonly { readonly index: LogIndex; readonly payload: Uint8Array }[]
  /** Accepted: all from there on was set aside. */
  readonly damage: Damage | undefined
}

export interface CellLogStats {
  readonly entries: number
  readonly rawSegments: number
  readonly packs: number
  /** Raw segments count in full length, with spare and reserve. */
  readonly diskBytes: number
  /** In packs: redo uncompressed, and the packs' length. */
  readonly packedRawBytes: number
  readonly packedBytes: number
  /** With redo in raw segments, and in packs. */
  readonly indexedTimelines: number
  readonly packedTimelines: number
  /** Caches of packs and newest entries, and memory for readers, bytes. */
  readonly cacheBytes: number
  /** Why packing does not go on; empty if it does. */
  readonly packError: string
  /** Of the disk, read to see whether it gives back what was written. */
  readonly scrubbedBytes: number
  readonly scrubPasses: number
  /** Files that do not read back at present; and found, and repaired, since the start. */
  readonly damagedFiles: number
  readonly damagesFound: number
  readonly damagesRepaired: number
  /** Why what is damaged cannot be repaired; empty if it can. */
  readonly damageProblem: string
}

export class CellLog {
  readonly #files: LogFiles
  readonly #writer: LogWriter
  readonly #terms: TermList
  readonly #index: TimelineIndex
  readonly #ledger: PackLedger
  readonly #cache: PackCache
  readonly #packing: Packing | undefined
  readonly #windows = new ReadWindows()
  readonly #clock: Clock
  /** When raw segments were last read; how many reads of readers were known then. */
  #readMs = Number.NEGATIVE_INFINITY
  #readsSeen = 0
  readonly #repair: LogRepair
  readonly #scrub: LogScrub
  /** Redo written, each entry a little more than it has, and read by timelines' readers. */
  #trafficBytes = 0
  readonly #trims = new Turns()
  #appliedIndex: number
  /** Void entries found since the state was last written. */
  #voids: number[]
  #voidsDirty = false
  #base: EntryId

  /** Each time more is synced. */
  onFlushed: (id: EntryId) => void = () => {}
  /**
   * Whether redo is taken. false: the disk is full; entries that did not fit are gone from the log's end, so `last` has gone back. It is
   * called with false again if later even small entries (the cell's own) do not fit.
   */
  onWritable: (writable: boolean) => void = () => {}

  private constructor(
    options: CellLogOptions,
    files: LogFiles,
    terms: TermList,
    index: TimelineIndex,
    ledger: PackLedger,
    cache: PackCache,
    tail: Tail,
  ) {
    this.#ledger = ledger
    this.#clock = options.clock
    this.#cache = cache
    this.#files = files
    this.#terms = terms
    this.#index = index
    this.#base = files.state.base
    this.#appliedIndex = Math.min(Math.max(options.appliedTo, files.state.base.index), terms.lastIndex)
    this.#voids = [...files.state.voids].filter(other => other <= this.#appliedIndex)
    this.#writer = new LogWriter(files, tail, terms, options.clock, {
      onFlushed: id => this.onFlushed(id),
      onWritable: writable => this.onWritable(writable),
      onRolled: () => this.#packing?.kick(),
      isReadBack: () => this.#isReadBack(),
      onFatal: error => options.onFatal(error),
    })
    const { packs = inlinePackRunner(options.disk), packLevel = PACK_LEVEL_DEFAULT } = options
    const packPolicy = options.packPolicy ?? (options.packs === undefined ? PACK_AT_ONCE : PACK_WHEN_QUIET)
    if (packs !== 'off')
      this.#packing = new Packing({
        files,
        index,
        ledger,
        cache,
        runner: packs,
        level: packLevel,
        policy: packPolicy,
        nowMs: () => options.clock.monotonicMs(),
        trafficBytes: () => this.#trafficBytes,
        appliedIndex: () => this.#appliedIndex,
        voids: () => this.#voids,
      })
    this.#repair = new LogRepair({
      files,
      cache,
      clock: options.clock,
      termAt: index => terms.termAt(index),
      appliedIndex: () => this.#appliedIndex,
      voids: () => this.#voids,
      sealTail: () => this.#writer.sealTail(),
      packBefore: () => this.packed(),
      cleared: unit => this.#packing?.allow(unit),
      adopted: (unit, old, _, summary) => this.#repaired(unit, old, summary),
    })
    this.#scrub = new LogScrub(files, options.clock, files.log)
    files.damaged = (unit, error) => this.#repair.damaged(unit, error)
    this.#packing?.kick()
  }

  /** Makes an empty log that begins after `base`. Throws kind invalid if there is one. */
  static async create(
    options: Pick<CellLogOptions, 'disk' | 'dir' | 'segmentBytes'>,
    base: EntryId,
  ): Promise<void> {
    if (await LogFiles.exists(options.disk, options.dir))
      throw invalidError(`${options.dir} has a log already`)
    await LogFiles.create(options.disk, options.dir, base, options.segmentBytes ?? CELL_SEGMENT_BYTES_DEFAULT)
  }

  static exists(disk: Disk, dir: string): Promise<boolean> {
    return LogFiles.exists(disk, dir)
  }

  static async open(options: CellLogOptions): Promise<{ log: CellLog; start: LogStart }> {
    const index = new TimelineIndex()
    const ledger = new PackLedger()
    const cache = new PackCache()
    const { disk, dir, log } = options
    const voids = new Set((await LogFiles.loadState(disk, dir)).voids)
    const visitor: EntryVisitor = {
      entry: header => {
        if (header.index > options.appliedTo || header.timeline === undefined) return
        if (!voids.has(header.index)) index.add(header.timeline, header.index, header.beginLsn, header.endLsn)
      },
      pack: (_, summary) => ledger.add(summary),
      restart: () => {
        index.clear()
        ledger.clear()
      },
    }
    const { files, tail, found, damage } = await LogFiles.open(
      {
        disk,
        dir,
        log,
        segmentBytes: options.segmentBytes ?? CELL_SEGMENT_BYTES_DEFAULT,
        reserveBytes: options.reserveBytes ?? RESERVE_BYTES_DEFAULT,
        acceptDamage: options.acceptDamage ?? false,
      },
      visitor,
      cache,
    )
    // Without the reserve the log works all the same, until the disk is full.
    if (files.reserve.wanted)
      await files.reserve
        .hold()
        .catch(error => log.warn({ err: error, dir }, 'cannot keep a reserve for a full disk'))
    const { base } = files.state
    log.info(
      {
        dir,
        begin: base.index + 1,
        last: found.terms.lastIndex,
        packs: files.packs.length,
        raw: files.raws.length,
      },
      'log opened',
    )
    return {
      log: new CellLog(options, files, found.terms, index, ledger, cache, tail),
      start: { base, runs: found.terms.runs(), memberships: found.memberships, damage },
    }
  }

  /** Index of the first entry that is held. */
  get beginIndex(): LogIndex {
    return (this.#base.index + 1) as LogIndex
  }

  /** The last entry before the log's beginning. */
  get base(): EntryId {
    return this.#base
  }

  get lastIndex(): LogIndex {
    return this.#terms.lastIndex
  }

  get last(): EntryId {
    return this.#writer.last
  }

  get flushed(): EntryId {
    return this.#writer.flushed
  }

  /** Bytes that wait to be written; whoever appends bounds it. */
  get queuedBytes(): number {
    return this.#writer.queuedBytes
  }

  get writable(): boolean {
    return this.#writer.writable
  }

  /** Why redo is refused; empty if it is not. */
  get lastError(): string {
    return this.#writer.lastError
  }

  /** Largest payload of an entry. */
  get payloadBytesMax(): number {
    return this.#writer.payloadBytesMax
  }

  /** Of an entry that is held, or of the base. */
  termAt(index: LogIndex): Term | undefined {
    return this.#terms.termAt(index)
  }

  /**
   * Adds the next entries; `onFlushed` tells when they are durable. Their payloads are used as they are and must not change.
   * Throws kind retry if the disk is full and one of them is redo.
   */
  append(entries: readonly LogEntry[]): void {
    this.#writer.append(entries)
    for (const { payload } of entries) this.#trafficBytes += payload.length + APPEND_TRAFFIC_BYTES
  }

  /** Cuts the log after `index`, durably when it resolves. Never below what was applied. */
  truncateAfter(index: LogIndex): Promise<void> {
    if (index < this.#appliedIndex)
      throw internalError(`cut after entry ${index}, but ${this.#appliedIndex} is applied`)
    return this.#writer.truncateAfter(index)
  }

  /** Forgets everything; the log begins after `base`, durably when it resolves. */
  reset(base: EntryId): Promise<void> {
    this.#base = base
    this.#appliedIndex = base.index
    this.#voids = []
    this.#voidsDirty = false
    this.#index.clear()
    this.#ledger.clear()
    this.#packing?.forget()
    // Packs that were just then put in place were counted; they have gone too.
    return this.#writer.reset(base).then(() => this.#ledger.clear())
  }

  /**
   * Entries from `from` on, up to `last`, as many as fit into `bytesMax` (headers included) and lie together, but at least one;
   * none if `from` is beyond the end. What the disk does not give back as it was written is fetched from elsewhere (`repairFrom`).
   * Throws refresh if `from` is trimmed; if an entry can be had nowhere, corrupt (path, offset), or retry if somebody was not reached.
   */
  async read(from: LogIndex, last: LogIndex, bytesMax: number): Promise<LogEntry[]> {
    for (let attempt = 1; ; attempt++) {
      if (from <= this.#base.index)
        throw refreshError(`entry ${from} was trimmed; the log begins at ${this.beginIndex}`)
      const to = Math.min(last, this.#terms.lastIndex)
      if (from > to) return []
      const recent = this.#writer.recent(from, to, bytesMax)
      if (recent !== undefined) return recent
      const unit = this.#files.find(from)
      try {
        if (unit === undefined) throw internalError(`no file of the log holds entry ${from}`)
        if (unit instanceof RawSegment) this.#readMs = this.#clock.monotonicMs()
        const entries = await unit.read(from, to, bytesMax)
        // Cut off, and perhaps given out again, while we read.
        const good = entries.findIndex(entry => this.#terms.termAt(entry.index) !== entry.term)
        if (good !== 0) return good === -1 ? entries : entries.slice(0, good)
      } catch (error) {
        // A file that was packed or trimmed while we read may hold anything by now.
        if (unit !== undefined && !unit.retired)
          return readAround(this.#files, this.#repair, unit, { from, to, bytesMax }, error)
        if (attempt >= READ_ATTEMPTS_MAX) throw error
      }
      if (attempt >= READ_ATTEMPTS_MAX)
        throw internalError(`entry ${from} cannot be read: the log changes too fast`)
    }
  }

  /** Whether raw segments were read of late: then what is written now will probably be read soon too, and belongs into the kernel's cache. */
  #isReadBack(): boolean {
    const nowMs = this.#clock.monotonicMs()
    if (this.#windows.taken !== this.#readsSeen) {
      this.#readsSeen = this.#windows.taken
      this.#readMs = nowMs
    }
    return nowMs - this.#readMs < READ_BACK_MS
  }

  /**
   * The same from this disk alone, and only what is written: for others that have lost it. `isVoid` is right for entries that are
   * applied before.
   */
  async readOwn(from: LogIndex, last: LogIndex, bytesMax: number): Promise<PackEntry[]> {
    if (from <= this.#base.index) return []
    const entries = await readHere(this.#files, this.#repair, new Set(this.#voids), from, last, bytesMax)
    return entries.filter(entry => this.#terms.termAt(entry.index) === entry.term)
  }

  /** Of applied entries [first, last], those that are void, and perhaps others; undefined: a file that knows cannot be read at present. */
  async voids(first: number, last: number): Promise<ReadonlySet<number> | undefined> {
    // What is packed from here on leaves this list.
    const voids = new Set(this.#voids)
    const packs = this.#files.packs.filter(pack => pack.lastIndex >= first && pack.firstIndex <= last)
    for (const pack of packs) {
      const found = await pack.voids().catch(() => undefined)
      if (found === undefined || pack.retired) return undefined
      for (const index of found) voids.add(index)
    }
    return voids
  }

  /** Has damage repaired with what these others have; whom to ask first first. `isNeeded`: whether anybody wants this redo. */
  repairFrom(sources: () => readonly EntrySource[], isNeeded: (entry: LogEntry) => boolean): void {
    this.#repair.sources = sources
    this.#repair.isNeeded = isNeeded
  }

  /** Looks for damage all the time, slowly. */
  scrub(options: ScrubOptions): void {
    this.#scrub.start(options)
  }

  /** Writes `state` anew if it does not read back. Returns whether that was so. */
  checkState(): Promise<boolean> {
    return this.#files.checkState()
  }

  async #repaired(unit: LogUnit, old: PackSummary | undefined, summary: PackSummary): Promise<void> {
    if (unit instanceof PackFile && old === undefined) await this.#recount()
    else {
      if (old !== undefined) this.#ledger.remove(old)
      this.#ledger.add(summary)
    }
    if (!(unit instanceof PackFile)) this.#index.dropThrough(unit.lastIndex)
    this.#packing?.kick()
  }

  /** What the packs hold of each timeline, where it is not known what a pack that has gone held. */
  async #recount(): Promise<void> {
    const summaries: PackSummary[] = []
    for (const pack of [...this.#files.packs])
      await pack.summary().then(
        summary => summaries.push(summary),
        () => {},
      )
    this.#ledger.clear()
    for (const summary of summaries) this.#ledger.add(summary)
  }

  /**
   * A committed entry, each of them, in order. Redo and gaps become readable by timeline, unless the entry was found void: then it
   * stays in the log and belongs to no timeline.
   */
  applied(entry: Pick<LogEntry, 'index' | 'timeline' | 'beginLsn' | 'endLsn'>, isVoid = false): void {
    const { index, timeline } = entry
    if (index !== this.#appliedIndex + 1 || index > this.#terms.lastIndex)
      throw internalError(
        `entry ${index} applied after ${this.#appliedIndex}; the log ends at ${this.#terms.lastIndex}`,
      )
    this.#appliedIndex = index
    if (timeline === undefined) return
    if (isVoid) {
      this.#voids.push(index)
      this.#voidsDirty = true
    } else this.#index.add(timeline, index, entry.beginLsn, entry.endLsn)
    // Mostly the newest segment is being written, and there is nothing to pack.
    if (index === this.#files.raws[0]!.lastIndex) this.#packing?.kick()
  }

  get appliedIndex(): LogIndex {
    return this.#appliedIndex as LogIndex
  }

  /**
   * Call before a snapshot of the state at `appliedIndex` is made durable: what it relies on that only the log knows (void
   * entries, which hardly ever occur) is made durable first. At once if there is nothing.
   */
  async settleApplied(): Promise<void> {
    if (!this.#voidsDirty) return
    await this.#files.exclusive(async () => {
      // Packs know those of their entries themselves.
      const packed = this.#files.packs.at(-1)?.lastIndex ?? this.#base.index
      this.#voids = this.#voids.filter(index => index > packed)
      this.#voidsDirty = false
      await this.#files.changeState({ voids: this.#voids })
    })
  }

  /** The timeline's applied redo from `fromLsn` on. */
  timelineCursor(timeline: TimelineId, fromLsn: Lsn): TimelineCursor {
    return new TimelineCursor(
      {
        index: this.#index,
        files: this.#files,
        windows: this.#windows,
        recent: index => this.#writer.recent(index, index, 0)?.[0],
        onRead: bytes => {
          this.#trafficBytes += bytes
        },
      },
      timeline,
      fromLsn,
    )
  }

  /**
   * Gives up what nobody needs: files at the log's beginning that lie below `keepFrom` and hold no redo that is needed go at once,
   * packs of which enough is not needed are made anew in the background. Of packs that go beyond `dropThrough` nothing is given up.
   * Returns the new base.
   */
  trim(options: {
    readonly keepFrom: LogIndex
    readonly neededFrom: NeededFrom
    readonly dropThrough?: number | undefined
  }): Promise<EntryId> {
    return this.#trims.run(async () => {
      const packing = this.#packing
      if (packing === undefined) return this.#base
      const free = await packing.examine(
        options.keepFrom,
        options.neededFrom,
        options.dropThrough ?? Number.POSITIVE_INFINITY,
      )
      if (free !== undefined && !free.retired) {
        const base: EntryId = { index: free.lastIndex, term: this.#terms.termAt(free.lastIndex)! }
        // Readers are refused from here on; a reset in the meantime has its own base, which lies above.
        if (base.index > this.#base.index) {
          this.#base = base
          this.#terms.trimTo(base.index)
          this.#index.dropThrough(base.index)
          const gone = await this.#files.trimTo(base)
          if (gone.includes(undefined)) await this.#recount()
          else for (const summary of gone) this.#ledger.remove(summary!)
        }
      }
      packing.kick()
      void this.#writer.probe()
      return this.#base
    })
  }

  /** Resolves when nothing is left to pack. */
  async packed(): Promise<void> {
    await this.#packing?.idle()
  }

  /** The newest LSN at or below `lsn` at which a chunk of the timeline begins or its redo ends; undefined if none is held. */
  async boundaryAtOrBelow(timeline: TimelineId, lsn: Lsn): Promise<Lsn | undefined> {
    const range = this.#index.range(timeline)
    if (range !== undefined && lsn >= range.beginLsn) {
      if (lsn >= range.endLsn) return range.endLsn
      const hit = this.#index.seek(timeline, lsn)
      return 'before' in hit ? hit.before : lsn
    }
    return boundaryInPacks(this.#files, timeline, lsn)
  }

  /** Index of the timeline's first entry that ends beyond `lsn`; undefined if none is held. */
  firstIndexFrom(timeline: TimelineId, lsn: Lsn): LogIndex | undefined | Promise<LogIndex | undefined> {
    const range = this.#index.range(timeline)
    if (range === undefined || lsn < range.beginLsn) return this.#firstIndexInPacks(timeline, lsn)
    if (lsn >= range.endLsn) return undefined
    const hit = this.#index.seek(timeline, lsn)
    const at = 'before' in hit ? this.#index.seek(timeline, hit.before) : hit
    return 'index' in at ? (at.index as LogIndex) : undefined
  }

  async #firstIndexInPacks(timeline: TimelineId, lsn: Lsn): Promise<LogIndex | undefined> {
    const hit = await seekInPacks(this.#files, timeline, lsn)
    if (hit !== undefined) {
      // Within an entry: that one.
      if (hit.nextLsn !== lsn && hit.before !== undefined)
        return (await seekInPacks(this.#files, timeline, hit.before))?.index as LogIndex | undefined
      return hit.index as LogIndex | undefined
    }
    const range = this.#index.range(timeline)
    const first = range && this.#index.seek(timeline, range.beginLsn)
    return first !== undefined && 'index' in first ? (first.index as LogIndex) : undefined
  }

  /** A deleted timeline: its redo is no longer found. What it takes on disk goes with the next trims. */
  forget(timeline: TimelineId): void {
    this.#index.forget(timeline)
  }

  /** Redo of a timeline that is held, and what it takes on disk. */
  timelineStats(timeline: TimelineId): { rawBytes: number; storedBytes: number } {
    const range = this.#index.range(timeline)
    const plainBytes = range === undefined ? 0 : range.endLsn - range.beginLsn
    const { rawBytes, storedBytes } = this.#ledger.of(timeline)
    return { rawBytes: rawBytes + plainBytes, storedBytes: storedBytes + plainBytes }
  }

  stats(): CellLogStats {
    const { packs, raws, segmentBytes } = this.#files
    return {
      entries: this.#terms.lastIndex - this.#base.index,
      rawSegments: raws.length,
      packs: packs.length,
      diskBytes:
        raws.reduce((bytes, raw) => bytes + raw.segmentBytes, this.#files.spares * segmentBytes) +
        packs.reduce((bytes, pack) => bytes + pack.packBytes, 0),
      packedRawBytes: packs.reduce((bytes, pack) => bytes + pack.rawBytes, 0),
      packedBytes: packs.reduce((bytes, pack) => bytes + pack.packBytes, 0),
      indexedTimelines: this.#index.timelines,
      packedTimelines: this.#ledger.timelines,
      cacheBytes: this.#cache.bytes + this.#writer.recentBytes + this.#windows.bytes,
      packError: this.#packing?.lastError ?? '',
      scrubbedBytes: this.#scrub.bytes,
      scrubPasses: this.#scrub.passes,
      damagedFiles: this.#repair.damagedFiles,
      damagesFound: this.#repair.found,
      damagesRepaired: this.#repair.repaired,
      damageProblem: this.#repair.problem,
    }
  }

  /** Makes durable what was appended. Whoever appends afterwards is refused. */
  async close(): Promise<void> {
    this.#scrub.close()
    this.#repair.close()
    await this.#packing?.close()
    await this.#writer.close()
    const { state } = this.#files
    if (this.#writer.lastError === '' && this.flushed.index > state.flushed)
      await this.#files.exclusive(() => this.#files.changeState({ flushed: this.flushed.index }))
    await this.#files.close()
  }
}
