/**
 * One timeline at run time: its memtables, its layers, where it stands.
 *
 *     states      importing  no import has ended yet: redo is taken in, nothing can be read
 *                 active     redo is taken in and can be read
 *                 stopped    redo that is damaged, another owner, or layers that no manifest can name: nothing more is taken
 *                            in, reads go on
 *                 deleting
 *
 * All state lives on the main thread and changes synchronously, so that a reader sees each range of redo, each flush and each
 * compaction wholly or not at all: it takes a snapshot (memtables and layers together) and holds what it names until it is
 * done. A memtable leaves the list in the same turn in which its layer joins it.
 *
 * What it consists of: ingest.ts and memtable.ts (redo comes in), flusher.ts (and becomes layers), timeline-layers.ts (which
 * are read, compacted, replaced), readable.ts and timeline-snapshot.ts (what is read).
 */
import { join } from 'node:path'
import type { SpaceEvent } from '../../parser/space-events.ts'
import { LSN_MAX, type Lsn, type TimelineId } from '../../protocol/ids.ts'
import type { TimelineState } from '../../protocol/messages-timeline.ts'
import type { WalParting } from '../../protocol/messages-wal.ts'
import {
  corruptError,
  fencedError,
  internalError,
  invalidError,
  type PalimpsestError,
  retryError,
  toPalimpsestError,
} from '../shared/errors.ts'
import type { Log } from '../shared/log.ts'
import type { CapturedFiles } from './captured-files.ts'
import { saveCatalogue } from './catalogue-store.ts'
import type { Catalogue } from './core/catalogue.ts'
import { awaitsImport } from './core/gaps.ts'
import type { TimeMap } from './core/time-map.ts'
import { delay, type PageServerEnvironment } from './environment.ts'
import { Flusher } from './flusher.ts'
import { type LinkedRange, RedoIngest } from './ingest.ts'
import { LsnWaiters } from './lsn-waiters.ts'
import type { LayerEntry, Manifest, ManifestGap, ManifestStore } from './manifest.ts'
import { Memtable } from './memtable.ts'
import type { ReadableTimeline } from './page-reader.ts'
import { checkReadable } from './readable.ts'
import { TimelineLayers } from './timeline-layers.ts'
import { type TimelineSnapshot, takeSnapshot } from './timeline-snapshot.ts'

const WAIT_MS_DEFAULT = 10_000

/** What a timeline is built from: loaded by timelines.ts. */
export interface TimelineParts {
  readonly manifest: ManifestStore
  readonly catalogue: Catalogue
  readonly times: TimeMap
  readonly files: CapturedFiles
  /** Of a branch: whose pages are its own up to and including this LSN. */
  readonly ancestor?: Ancestor | undefined
}

export interface Ancestor {
  readonly timeline: Timeline
  readonly lsn: Lsn
}

export class Timeline implements ReadableTimeline {
  readonly id: TimelineId
  readonly env: PageServerEnvironment
  readonly log: Log
  readonly manifest: ManifestStore
  readonly catalogue: Catalogue
  readonly times: TimeMap
  readonly files: CapturedFiles
  readonly ancestor: Ancestor | undefined
  readonly ingest: RedoIngest
  readonly stack: TimelineLayers

  #ingestedLsn: Lsn
  #lastWallTimeUs = 0
  #stopped: PalimpsestError | undefined
  /** What it had in memory when it stopped is given up: it can be read up to the durable LSN. */
  #hasForgotten = false
  /** What keeps it from following the log, from making or merging layers, or a page from being made; empty if nothing does. */
  readonly #problems = { follower: '', flusher: '', page: '', compactor: '' }
  #deleting = false
  #open: Memtable
  readonly #flusher: Flusher
  readonly #waiters = new LsnWaiters()
  readonly #cacheSpaces = new Map<number, number>()
  #scratchNumber = 0
  #replacements = 0

  /** End of the safekeeper's committed log, as far as we heard. */
  committedLsn: Lsn

  /** Told when durableLsn has risen, when ingestion has stopped, and when layers were added. */
  onDurable: () => void = () => {}
  onStopped: () => void = () => {}
  onLayers: () => void = () => {}

  constructor(env: PageServerEnvironment, parts: TimelineParts) {
    const { current } = parts.manifest
    this.env = env
    this.id = current.timeline
    this.log = env.log.child({ timeline: this.id, timelineName: current.name })
    this.manifest = parts.manifest
    this.catalogue = parts.catalogue
    this.times = parts.times
    this.files = parts.files
    this.ancestor = parts.ancestor
    this.#ingestedLsn = current.durableLsn
    this.committedLsn = current.durableLsn
    this.#open = new Memtable(env.arenas, current.durableLsn)
    this.#flusher = new Flusher({
      env,
      log: this.log,
      manifest: this.manifest,
      times: this.times,
      scratchPath: what => this.scratchPath(what),
      stoppedAt: durableLsn => this.#stoppedAt(durableLsn),
      layerAdded: () => this.stack.changed(),
      held: problem => {
        this.#problems.flusher = problem
      },
      flushFailed: error => this.#flushFailed(error),
      madeDurable: () => {
        this.#problems.flusher = ''
        this.onDurable()
      },
    })
    this.stack = new TimelineLayers({
      env,
      log: this.log,
      manifest: this.manifest,
      onChanged: () => this.onLayers(),
      onFenced: error => this.#flushFailed(error),
    })
    if (current.stopped !== null) this.#stopped = corruptError(current.stopped.message, current.stopped.lsn)
    this.ingest = new RedoIngest(env.arenas, env.foreground, current.innodbPageSize, current.durableLsn, {
      link: range => this.#link(range),
      stopped: error => this.stop(error),
      starved: () => env.arenasStarved(),
    })
    if (this.#stopped !== undefined) this.ingest.close()
    this.manifest.onFenced = error => this.#flushFailed(error)
  }

  // Where it stands.

  get name(): string {
    return this.manifest.current.name
  }

  get ingestedLsn(): Lsn {
    return this.#ingestedLsn
  }

  get durableLsn(): Lsn {
    return this.manifest.current.durableLsn
  }

  /** LSN of the end of the first import; LSN_MAX before. */
  get readableFromLsn(): Lsn {
    if (this.ancestor !== undefined) return this.ancestor.timeline.readableFromLsn
    return this.manifest.current.gaps[0]?.readableFrom ?? LSN_MAX
  }

  /** What cannot be read although it is above `readableFromLsn`, the ancestor's included. */
  get gaps(): ManifestGap[] {
    // The first gap is that before the end of the first import, which readableFromLsn tells.
    const own = this.manifest.current.gaps.slice(1)
    if (this.ancestor === undefined) return own
    const { timeline, lsn } = this.ancestor
    return [...timeline.gaps.filter(gap => gap.from < lsn), ...own]
  }

  get lastWallTimeUs(): number {
    return this.#lastWallTimeUs
  }

  get state(): TimelineState {
    if (this.#deleting) return 'deleting'
    if (this.#stopped !== undefined) return 'stopped'
    return this.manifest.current.gaps.length === 0 ? 'importing' : 'active'
  }

  /** Why it stopped or waits; empty if all is well. */
  get lastError(): string {
    const { follower, flusher, page, compactor } = this.#problems
    return this.#stopped?.message ?? (follower || flusher || page || compactor)
  }

  /** Redo that is in memory and not yet in layers. */
  get arenaBytes(): number {
    return this.#flusher.memtables.reduce((sum, memtable) => sum + memtable.bytes, this.#open.bytes)
  }

  /** When the oldest redo that is in memory only was ingested, on `env.nowMs`'s clock. */
  get undurableSinceMs(): number | undefined {
    return (this.#flusher.memtables[0] ?? this.#open).firstLinkedAtMs
  }

  get openBytes(): number {
    return this.#open.bytes
  }

  get flushing(): boolean {
    return this.#flusher.memtables.length > 0
  }

  get layers(): readonly LayerEntry[] {
    return this.manifest.current.layers
  }

  followerState(problem: string): void {
    this.#problems.follower = problem
  }

  compactorState(problem: string): void {
    this.#problems.compactor = problem
  }

  pageDamaged(message: string, lsn: Lsn | undefined): void {
    this.log.error({ lsn }, message)
    this.#problems.page = message
  }

  // Redo comes in.

  #link(range: LinkedRange): void {
    const { cache } = this.env
    const memtable = this.#open
    memtable.hold(range.arena)
    for (const event of range.events) this.#event(memtable, event)
    let space = -1
    let cacheSpace = 0
    memtable.link(range.header, range.bytes, range.endLsn, (pageSpace, page, firstLsn) => {
      if (pageSpace !== space) {
        space = pageSpace
        cacheSpace = this.knownCacheSpace(space)
      }
      if (cacheSpace >= 0) cache.invalidate(cacheSpace, page, firstLsn)
    })
    for (const { lsn, wallTimeUs } of range.samples) if (wallTimeUs > 0) this.times.add(lsn, wallTimeUs)
    memtable.firstLinkedAtMs ??= this.env.nowMs()
    this.#lastWallTimeUs = range.samples[range.samples.length - 1]?.wallTimeUs ?? this.#lastWallTimeUs
    // Only now: whoever sees the new LSN must find everything up to it.
    this.#ingestedLsn = range.endLsn
    this.#waiters.reached(this.#ingestedLsn)
    this.env.metrics.ingestedBytes += range.bytes
    if (memtable.bytes >= this.env.flushBytes) this.freeze()
  }

  #event(memtable: Memtable, event: SpaceEvent): void {
    if (event.kind === 'checkpoint') return
    this.catalogue.apply(event)
    memtable.events.push(event)
    if (event.kind !== 'delete' && event.kind !== 'trim') return
    const cacheSpace = this.knownCacheSpace(event.space)
    const firstPage = event.kind === 'trim' ? event.pages : 0
    if (cacheSpace >= 0) this.env.cache.invalidateSpaces(new Set([cacheSpace]), firstPage, event.lsn)
  }

  /** Ingestion ends here. What was ingested can be read and will still become durable. */
  stop(error: PalimpsestError): void {
    if (this.#stopped !== undefined) return
    this.#halt(error)
    if (error.kind !== 'corrupt') return
    this.freeze()
    this.#flusher.rememberStop()
  }

  #halt(error: PalimpsestError): void {
    this.#stopped = error
    this.log.error(
      { err: error, lsn: error.lsn, ingestedLsn: this.#ingestedLsn },
      'ingestion of this timeline stopped',
    )
    this.ingest.close()
    this.#waiters.rejectAll(lsn => this.#stoppedError(lsn))
    this.onStopped()
  }

  /**
   * What is in memory can never become durable, and others need the memory: another owner takes the same redo in, or the
   * manifest refuses it. Damage in the redo may have been found before.
   */
  #giveUp(error: PalimpsestError): void {
    if (this.#hasForgotten) return
    this.#hasForgotten = true
    this.#halt(error)
    this.#flusher.abandon()
    this.#open.markFlushed()
    this.#open = new Memtable(this.env.arenas, this.#ingestedLsn)
  }

  /** What the manifest is to say once everything up to the damage is durable. */
  #stoppedAt(durableLsn: Lsn): Manifest['stopped'] {
    const error = this.#stopped
    if (error?.kind !== 'corrupt' || durableLsn !== this.#ingestedLsn) return null
    return { lsn: error.lsn ?? durableLsn, message: error.message.slice(0, 4000) }
  }

  #stoppedError(lsn: Lsn): PalimpsestError {
    return retryError(
      `timeline ${this.name} stopped at LSN ${this.#ingestedLsn} and will not reach LSN ${lsn}: ${this.#stopped?.message}`,
    )
  }

  /** Resolves once `lsn` is ingested. Throws `retry` when that takes longer than `timeoutMs`, or when nobody waits any more. */
  waitForLsn(lsn: Lsn, timeoutMs: number = WAIT_MS_DEFAULT, signal?: AbortSignal): Promise<void> {
    if (lsn <= this.#ingestedLsn) return Promise.resolve()
    if (this.#stopped !== undefined) return Promise.reject(this.#stoppedError(lsn))
    const late = (): PalimpsestError => {
      const problem = this.lastError
      const behind = problem === '' ? '' : ` (${problem})`
      return retryError(
        `timeline ${this.name} did not reach LSN ${lsn} within ${timeoutMs} ms; it is at ${this.#ingestedLsn}${behind}`,
      )
    }
    return this.#waiters.wait(lsn, timeoutMs, late, signal)
  }

  /**
   * The cell of the safekeepers was made again of what was left of it, and the log had ended at these LSNs. If more than that arrived here before, the log
   * may say something else of it now: no more is taken in, and what is in memory only is given up.
   */
  async logParted(partings: readonly WalParting[]): Promise<void> {
    const { partings: known, durableLsn, name } = this.manifest.current
    const told = partings.map(({ cellId }) => cellId)
    for (const [i, cellId] of (known ?? []).entries())
      if (told[i] !== cellId)
        throw retryError(
          `timeline ${name} follows the cell ${cellId} that was made of what was left of another; this safekeeper has not heard of that yet, or is ` +
            `of ${told[i] === undefined ? 'the old one' : `another one, ${told[i]}`}: nothing is read from it`,
        )
    if (known?.length === told.length) return
    const news = known === null ? [] : partings.slice(known.length)
    const parted = news.find(({ lsn }) => lsn < this.ingest.arrivedLsn)?.lsn
    if (parted === undefined) {
      await this.manifest.update(current => ({ ...current, partings: told }))
      return
    }
    const what =
      `the safekeepers lost redo of timeline ${name}: their cell was made again of what was left, and its log ended at LSN ${parted} then. This page ` +
      `server had taken it in up to LSN ${this.ingest.arrivedLsn}, and takes in no more, since the log may say something else of what lies between. `
    this.#giveUp(
      invalidError(
        durableLsn <= parted
          ? `${what}It has made it durable up to LSN ${durableLsn} only: restart the page server, which goes on from there`
          : `${what}It stays readable up to LSN ${durableLsn}; to go on, attach the database under a new timeline name`,
        parted,
      ),
    )
  }

  /** The log goes on at `toLsn`; between lies redo that is lost. Nothing after the gap can be read until an import mends it. */
  async logGap(fromLsn: Lsn, toLsn: Lsn, wallTimeUs: number): Promise<void> {
    while (!this.ingest.idle && !this.ingest.isStopped) await delay(5)
    if (this.#stopped !== undefined) return
    if (this.ingest.arrivedLsn !== fromLsn)
      throw internalError(`the log has a gap from LSN ${fromLsn}, but LSN ${this.ingest.arrivedLsn} is next`)
    await this.checkpoint()
    await this.manifest.update(current => ({
      ...current,
      durableLsn: toLsn,
      gaps: [...current.gaps, { from: fromLsn, readableFrom: LSN_MAX }],
    }))
    this.log.warn(
      { fromLsn, toLsn },
      'redo was lost; later LSNs can be read once an import has mended the gap',
    )
    this.#forgetPages((fromLsn + 1) as Lsn)
    this.#open = new Memtable(this.env.arenas, toLsn)
    this.ingest.skipTo(toLsn)
    this.#lastWallTimeUs = wallTimeUs
    this.#ingestedLsn = toLsn
    this.#waiters.reached(this.#ingestedLsn)
    this.onDurable()
  }

  // Redo becomes layers.

  /** Freezes the open memtable, unless it is empty, and has it written out. */
  freeze(): void {
    const memtable = this.#open
    if (memtable.isEmpty) return
    this.#open = new Memtable(this.env.arenas, memtable.endLsn)
    this.#flusher.add(memtable)
  }

  /** Freezes the memtable if its oldest redo is older than `ageMs`. */
  freezeIfOlder(ageMs: number): void {
    const since = this.#open.firstLinkedAtMs
    if (since !== undefined && this.env.nowMs() - since >= ageMs) this.freeze()
  }

  /** Everything ingested so far is durable when this resolves. */
  async checkpoint(): Promise<Lsn> {
    const target = this.#ingestedLsn
    this.freeze()
    await this.#flusher.idle()
    if (this.durableLsn < target)
      throw (
        this.#stopped ??
        retryError(`timeline ${this.name} could not be made durable up to LSN ${target}; see the log`)
      )
    return this.durableLsn
  }

  scratchPath(what: string): string {
    return join(this.env.scratchDir, `${this.id}-${this.#scratchNumber++}-${what}`)
  }

  #flushFailed(error: unknown): void {
    if (this.#flusher.isClosed) return
    const { kind, message } = toPalimpsestError(error)
    const { name, durableLsn } = this
    this.#giveUp(
      kind === 'fenced'
        ? fencedError(`another page server owns timeline ${name}: ${message}`)
        : internalError(
            `timeline ${name} cannot be made durable beyond LSN ${durableLsn}: ${message}. Its redo from there on is still with the safekeepers: restart the page server, which takes it in again; if it stops here again, keep the object store as it is and report this`,
            error,
          ),
    )
  }

  /** Images that are made of what could be read before an import ended are not to be kept after it has: see `pagesReplaced`. */
  get replacements(): number {
    return this.#replacements
  }

  pagesReplaced(): void {
    this.#replacements++
  }

  /** Pages are still to come: what is made of the redo alone may be wrong. */
  get awaitsImport(): boolean {
    return awaitsImport(this.manifest.current.gaps)
  }

  /** Saves all that the catalogue knows up to the durable LSN. */
  saveCatalogue(): Promise<void> {
    return saveCatalogue(this.env.store, this.manifest, this.catalogue, this.durableLsn)
  }

  /** An import as of `lsn` has become part of the timeline: layers, catalogue, gaps. */
  imported(lsn: Lsn): void {
    this.stack.changed()
    this.#forgetPages(lsn)
  }

  // Reads.

  cacheSpace(space: number): number {
    let known = this.#cacheSpaces.get(space)
    if (known === undefined) {
      known = this.env.nextCacheSpace()
      this.#cacheSpaces.set(space, known)
    }
    return known
  }

  knownCacheSpace(space: number): number {
    return this.#cacheSpaces.get(space) ?? -1
  }

  #forgetPages(lsn: Lsn): void {
    this.env.cache.invalidateSpaces(new Set(this.#cacheSpaces.values()), 0, lsn)
  }

  isNewest(lsn: Lsn): boolean {
    return lsn === this.#ingestedLsn
  }

  /**
   * The LSN at which a request for `lsn` (0: the newest) is answered: the same, or, beyond what is ingested, the newest, since
   * the caller vouches for the pages not having changed after `notModifiedSince`. Throws where the timeline cannot be read.
   */
  readLsn(lsn: Lsn): Lsn {
    const at = lsn === 0 || lsn > this.#ingestedLsn ? this.#ingestedLsn : lsn
    const { name, ingestedLsn } = this
    if (this.#deleting) throw invalidError(`timeline ${name} is being deleted`)
    if (at > this.durableLsn && this.#stopped !== undefined && this.#hasForgotten)
      throw this.#stopped.kind === 'fenced'
        ? retryError(`${this.#stopped.message}; ask that one`)
        : this.#stopped
    checkReadable({ name, gaps: this.manifest.current.gaps, asked: lsn, lsn: at, ingestedLsn })
    return at
  }

  /** Who answers a request for `lsn` (0: the newest), and at which LSN: a branch leaves its beginnings to its ancestor. */
  readAt(lsn: Lsn): { timeline: Timeline; lsn: Lsn } {
    const at = lsn === 0 || lsn > this.#ingestedLsn ? this.#ingestedLsn : lsn
    if (this.ancestor !== undefined && at <= this.ancestor.lsn) return this.ancestor.timeline.readAt(at)
    return { timeline: this, lsn: this.readLsn(lsn) }
  }

  /** Everything from which a page can be made as of `lsn`, which must be above the ancestor's. */
  snapshot(lsn: Lsn): TimelineSnapshot {
    const memtables: Memtable[] = []
    if (this.#open.beginLsn < lsn && !this.#open.isEmpty) memtables.push(this.#open)
    const frozen = this.#flusher.memtables
    for (let i = frozen.length - 1; i >= 0; i--) if (frozen[i]!.beginLsn < lsn) memtables.push(frozen[i]!)
    return takeSnapshot({
      lsn,
      catalogue: this.catalogue,
      memtables,
      map: this.stack.map,
      set: this.stack.guarded(),
      inherited: this.ancestor && {
        snapshot: this.ancestor.timeline.snapshot(this.ancestor.lsn),
        lsn: this.ancestor.lsn,
      },
    })
  }

  // The end.

  /** Stops taking in redo and waits for what is being written. Nothing is lost that is not written. */
  async close(deleting = false): Promise<void> {
    this.#deleting ||= deleting
    this.ingest.close()
    this.#waiters.rejectAll(() =>
      retryError(`timeline ${this.name} is being ${deleting ? 'deleted' : 'closed'}`),
    )
    await this.#flusher.close()
  }

  /** Lets go of all memory; after `close`. */
  discard(): void {
    this.#flusher.abandon()
    this.#open.markFlushed()
    this.#forgetPages(0 as Lsn)
  }
}
