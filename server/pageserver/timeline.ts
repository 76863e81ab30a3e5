/**
 * One timeline at run time: its memtables, its layers, where it stands.
 *
 *     states      importing  no import has ended yet: redo is taken in, nothing can be read
 *                 active     redo is taken in and can be read
 *                 stopped    redo that is damaged, or another owner: nothing more is taken in, reads go on
 *                 deleting
 *
 * All state lives on the main thread and changes synchronously, so that a reader sees each range of redo, each flush and each
 * compaction wholly or not at all: it takes a snapshot (memtables and layers together) and holds what it names until it is
 * done. A memtable leaves the list in the same turn in which its layer joins it.
 *
 * Order of a flush: 1. freeze, 2. a worker writes the layer to a scratch file, 3. store, 4. manifest, 5. durableLsn rises and
 * the safekeeper may trim. Files are written side by side; manifests in LSN order.
 */
import { join } from 'node:path'
import type { SpaceEvent } from '../../parser/space-events.ts'
import { LSN_MAX, type Lsn, type TimelineId } from '../../protocol/ids.ts'
import type { TimelineState } from '../../protocol/messages-timeline.ts'
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
import type { Catalogue } from './core/catalogue.ts'
import { awaitsImport, gapAt } from './core/gaps.ts'
import { LayerMap } from './core/layer-map.ts'
import type { TimeMap } from './core/time-map.ts'
import { delay, type PageServerEnvironment } from './environment.ts'
import { type LinkedRange, RedoIngest } from './ingest.ts'
import { type LayerExtras, readLayerExtras } from './layer-extras.ts'
import type { LayerSummary } from './layer-file-writer.ts'
import { LayerSet, missingLayer } from './layer-store.ts'
import { LsnWaiters } from './lsn-waiters.ts'
import {
  type LayerEntry,
  layerEntry,
  type Manifest,
  type ManifestGap,
  ManifestStore,
  timelineOfKey,
} from './manifest.ts'
import { Memtable } from './memtable.ts'
import type { ReadableTimeline } from './page-reader.ts'
import { type TimelineSnapshot, takeSnapshot } from './timeline-snapshot.ts'

const WAIT_MS_DEFAULT = 10_000
const RETRY_FLUSH_MS = 1000
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

  #ingestedLsn: Lsn
  #lastWallTimeUs = 0
  #stopped: PalimpsestError | undefined
  #problem = ''
  #deleting = false
  #open: Memtable
  /** Oldest first. */
  readonly #frozen: Memtable[] = []
  #layers: LayerMap<LayerEntry>
  /** Layer files are written side by side; their manifests one after the other. */
  #commits: Promise<void> = Promise.resolve()
  readonly #waiters = new LsnWaiters()
  readonly #cacheSpaces = new Map<number, number>()
  readonly #snapshots = new Set<Promise<void>>()
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
    this.#layers = new LayerMap(current.layers)
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
    return this.#stopped?.message ?? this.#problem
  }

  /** Redo that is in memory and not yet in layers. */
  get arenaBytes(): number {
    return this.#frozen.reduce((sum, memtable) => sum + memtable.bytes, this.#open.bytes)
  }

  /** When the oldest redo that is in memory only was ingested, on `env.nowMs`'s clock. */
  get undurableSinceMs(): number | undefined {
    return (this.#frozen[0] ?? this.#open).firstLinkedAtMs
  }

  get openBytes(): number {
    return this.#open.bytes
  }

  get flushing(): boolean {
    return this.#frozen.length > 0
  }

  get layers(): readonly LayerEntry[] {
    return this.manifest.current.layers
  }

  get layerMap(): LayerMap<LayerEntry> {
    return this.#layers
  }

  followerState(problem: string): void {
    this.#problem = problem
  }

  pageDamaged(message: string, lsn: Lsn | undefined): void {
    this.log.error({ lsn }, message)
    this.#problem = message
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
        cacheSpace = this.cacheSpace(space)
      }
      cache.invalidate(cacheSpace, page, firstLsn)
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
    if (event.kind === 'delete' || event.kind === 'trim')
      this.env.cache.invalidateSpace(
        this.cacheSpace(event.space),
        event.kind === 'trim' ? event.pages : 0,
        event.lsn,
      )
  }

  /** Ingestion ends here. What was ingested can be read and will still become durable, unless another owner took over. */
  stop(error: PalimpsestError): void {
    if (this.#stopped !== undefined) return
    this.#stopped = error
    this.log.error(
      { err: error, lsn: error.lsn, ingestedLsn: this.#ingestedLsn },
      'ingestion of this timeline stopped',
    )
    this.ingest.close()
    this.#waiters.rejectAll(lsn => this.#stoppedError(lsn))
    this.onStopped()
    if (error.kind === 'corrupt') this.#rememberStop()
  }

  /**
   * A restart must not begin where the damage is as if nothing were known of it. What came before it is made durable first,
   * or else it could not be read any more: with the last memtable's manifest, or with one of its own if that is durable
   * already.
   */
  #rememberStop(): void {
    this.freeze()
    this.#commits = this.#commits
      .then(async () => {
        while (this.manifest.current.stopped === null && this.durableLsn === this.#ingestedLsn)
          try {
            await this.manifest.update(current => ({
              ...current,
              stopped: this.#stoppedAt(current.durableLsn),
            }))
          } catch (error) {
            await this.#retryOrThrow(
              error,
              'noting in the manifest that the redo is damaged failed; trying again',
            )
          }
      })
      .catch(error => this.#flushFailed(error))
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

  /** Resolves once `lsn` is ingested. Throws `retry` when that takes longer than `timeoutMs`. */
  waitForLsn(lsn: Lsn, timeoutMs: number = WAIT_MS_DEFAULT): Promise<void> {
    if (lsn <= this.#ingestedLsn) return Promise.resolve()
    if (this.#stopped !== undefined) return Promise.reject(this.#stoppedError(lsn))
    return this.#waiters.wait(lsn, timeoutMs, () => {
      const behind = this.#problem === '' ? '' : ` (${this.#problem})`
      return retryError(
        `timeline ${this.name} did not reach LSN ${lsn} within ${timeoutMs} ms; it is at ${this.#ingestedLsn}${behind}`,
      )
    })
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
    for (const cacheSpace of this.#cacheSpaces.values())
      this.env.cache.invalidateSpace(cacheSpace, 0, (fromLsn + 1) as Lsn)
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
    this.#frozen.push(memtable)
    this.#open = new Memtable(this.env.arenas, memtable.endLsn)
    const since = this.env.nowMs()
    const written = this.#write(memtable)
    // Its failure is dealt with where it is awaited.
    written.catch(() => {})
    this.#commits = this.#commits
      .then(() => this.#commit(memtable, written))
      .then(() => this.env.metrics.flushSeconds.observe((this.env.nowMs() - since) / 1000))
      .catch(error => this.#flushFailed(error))
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
    await this.#commits
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

  /**
   * Has a worker write the layer, and puts it into the store; both again and again: the redo stays in memory until it is
   * durable. Several layers may be on their way at a time.
   */
  async #write(memtable: Memtable): Promise<{ key: string; summary: LayerSummary }> {
    const { path, summary } = await this.#writeFile(memtable)
    const key = this.manifest.layerKey('delta', 0, memtable.beginLsn, memtable.endLsn)
    for (;;) {
      try {
        await this.env.layers.put(key, path)
        return { key, summary }
      } catch (error) {
        await this.#retryOrThrow(error, 'storing a layer failed; trying again')
      }
    }
  }

  async #writeFile(memtable: Memtable): Promise<{ path: string; summary: LayerSummary }> {
    for (;;) {
      const path = this.scratchPath('delta')
      try {
        const triples = memtable.toTriples()
        const input = {
          triples,
          path,
          timeline: this.id,
          generation: this.manifest.current.generation,
          lsnStart: memtable.beginLsn,
          lsnEnd: memtable.endLsn,
          events: memtable.events,
          samples: this.times.samplesIn(memtable.beginLsn, memtable.endLsn),
        }
        return { path, summary: await this.env.background.run('flush', input, [triples.buffer]) }
      } catch (error) {
        await this.#retryOrThrow(error, 'writing a layer failed; trying again')
      }
    }
  }

  async #commit(memtable: Memtable, written: Promise<{ key: string; summary: LayerSummary }>): Promise<void> {
    const { key, summary } = await written
    const entry = layerEntry(key, 0, summary)
    for (;;) {
      try {
        await this.manifest.update(current => ({
          ...current,
          durableLsn: memtable.endLsn,
          stopped: this.#stoppedAt(memtable.endLsn),
          layers: [...current.layers, entry],
        }))
        break
      } catch (error) {
        await this.#retryOrThrow(error, 'committing the manifest failed; trying again')
      }
    }
    // In one turn: the layer is in the map, the memtable is not in the list any more.
    this.layersChanged()
    this.#frozen.splice(this.#frozen.indexOf(memtable), 1)
    memtable.markFlushed()
    // The arenas may still be ours, with nothing in them.
    if (this.env.arenas.awaited && !this.env.arenas.hasRoom) this.env.arenasStarved()
    this.times.forget(memtable.endLsn)
    this.env.metrics.layerBytes.flush += summary.bytes
    this.log.debug(
      { lsnEnd: memtable.endLsn, redoBytes: memtable.bytes, layerBytes: summary.bytes, pages: summary.pages },
      'layer written',
    )
    this.onDurable()
  }

  async #retryOrThrow(error: unknown, what: string): Promise<void> {
    const known = toPalimpsestError(error)
    if (known.kind === 'fenced' || this.#deleting || this.#closed) throw known
    this.#problem = known.message
    this.log.warn({ err: known }, what)
    await delay(RETRY_FLUSH_MS)
  }

  #flushFailed(error: unknown): void {
    const known = toPalimpsestError(error)
    if (this.#closed || this.#deleting) return
    this.stop(
      known.kind === 'fenced'
        ? fencedError(`another page server owns timeline ${this.name}: ${known.message}`)
        : known,
    )
  }

  /** The manifest lists other layers than before. */
  layersChanged(): void {
    this.#layers = new LayerMap(this.manifest.current.layers)
    this.onLayers()
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

  /** Deletes layers that the manifest does not name any more, once nobody reads them. What is left over, the next start removes. */
  async retire(layers: readonly LayerEntry[]): Promise<void> {
    if (layers.length === 0) return
    await this.readersGone()
    for (const { key } of layers)
      try {
        await this.env.layers.delete(key)
      } catch (error) {
        this.log.warn({ err: error, layer: key }, 'a layer that is not needed any more could not be deleted')
      }
  }

  /** An import as of `lsn` has become part of the timeline: layers, catalogue, gaps. */
  imported(lsn: Lsn): void {
    this.layersChanged()
    for (const cacheSpace of this.#cacheSpaces.values()) this.env.cache.invalidateSpace(cacheSpace, 0, lsn)
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

  isNewest(lsn: Lsn): boolean {
    return lsn === this.#ingestedLsn
  }

  /**
   * The LSN at which a request for `lsn` (0: the newest) is answered: the same, or, beyond what is ingested, the newest, since
   * the caller vouches for the pages not having changed after `notModifiedSince`. Throws where the timeline cannot be read.
   */
  readLsn(lsn: Lsn): Lsn {
    const at = lsn === 0 || lsn > this.#ingestedLsn ? this.#ingestedLsn : lsn
    const { gaps } = this.manifest.current
    if (gaps.length === 0)
      throw retryError(`timeline ${this.name} cannot be read yet: no import of its pages has ended`)
    const found = gapAt(gaps, at)
    if (found === undefined) return at
    const { gap, isFirst } = found
    const unlogged = gap.cause === 'unlogged'
    if (gap.readableFrom === LSN_MAX)
      throw retryError(
        `LSN ${at} of timeline ${this.name} cannot be read yet: ${
          unlogged
            ? `at LSN ${gap.from} tablespaces got content that is not in the redo (IMPORT TABLESPACE, or other undo tablespaces), and the import that brings it`
            : `redo from LSN ${gap.from} on was lost, and the import that mends it`
        } has not ended`,
      )
    if (at === this.#ingestedLsn && lsn !== at)
      throw retryError(
        `timeline ${this.name} is at LSN ${at}; it can be read once it has reached LSN ${gap.readableFrom}`,
      )
    const between = `between LSN ${gap.from} and LSN ${gap.readableFrom}`
    throw invalidError(
      `LSN ${at} of timeline ${this.name} cannot be read: ${
        isFirst
          ? `it is readable from LSN ${gap.readableFrom}, where its import ended`
          : unlogged
            ? `${between} tablespaces got content that is not in the redo (IMPORT TABLESPACE, or other undo tablespaces)`
            : `${between} redo was lost`
      }`,
      at,
    )
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
    for (let i = this.#frozen.length - 1; i >= 0; i--)
      if (this.#frozen[i]!.beginLsn < lsn) memtables.push(this.#frozen[i]!)
    return takeSnapshot({
      lsn,
      catalogue: this.catalogue,
      memtables,
      map: this.#layers,
      set: this.guardedLayers(),
      inherited: this.ancestor && {
        snapshot: this.ancestor.timeline.snapshot(this.ancestor.lsn),
        lsn: this.ancestor.lsn,
      },
    })
  }

  /** Layers to work with. It is for the caller to see that they are not deleted meanwhile. */
  layerSet(): LayerSet {
    return new LayerSet(this.env.layers, (error, layer) => this.#cannotFetch(error, layer))
  }

  /** Layers that `readersGone` waits for. */
  guardedLayers(): LayerSet {
    const set = this.layerSet()
    this.#snapshots.add(set.done)
    void set.done.then(() => this.#snapshots.delete(set.done))
    return set
  }

  /** What a layer holds beside pages. It must be one that the manifest names at this moment. */
  async layerExtras(entry: LayerEntry): Promise<LayerExtras> {
    const set = this.guardedLayers()
    try {
      return await readLayerExtras(this.env, set, entry)
    } finally {
      set.release()
    }
  }

  /** A layer that is not in the store is either lost, or another page server has replaced it. */
  async #cannotFetch(error: unknown, layer: LayerEntry): Promise<PalimpsestError> {
    const known = toPalimpsestError(error)
    if (known.kind !== 'refresh') return known
    const owner = timelineOfKey(layer.key)
    try {
      const now = owner && (await ManifestStore.read(this.env.store, owner))
      if (now?.layers.some(other => other.key === layer.key)) return missingLayer(layer.key, this.env.store)
    } catch (failure) {
      return toPalimpsestError(failure)
    }
    if (owner === this.id)
      this.stop(
        fencedError(`another page server owns timeline ${this.name}: it has replaced layer ${layer.key}`),
      )
    return retryError(`${known.message}: another page server owns timeline ${this.name}; ask that one`)
  }

  /** Resolves when nobody reads any more what could be read at the time of the call. */
  async readersGone(): Promise<void> {
    await Promise.all(this.#snapshots)
  }

  // The end.

  #closed = false

  /** Stops taking in redo and waits for what is being written. Nothing is lost that is not written. */
  async close(deleting = false): Promise<void> {
    this.#closed = true
    this.#deleting ||= deleting
    this.ingest.close()
    this.#waiters.rejectAll(() =>
      retryError(`timeline ${this.name} is being ${deleting ? 'deleted' : 'closed'}`),
    )
    await this.#commits
  }

  /** Lets go of all memory; after `close`. */
  discard(): void {
    for (const memtable of [...this.#frozen, this.#open]) memtable.markFlushed()
    for (const cacheSpace of this.#cacheSpaces.values())
      this.env.cache.invalidateSpace(cacheSpace, 0, 0 as Lsn)
  }
}
