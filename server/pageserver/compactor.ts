/**
 * Keeps reads cheap as redo grows: merges layers and makes images, in the background. What to do is decided by
 * core/plan.ts; this carries it out, one thing at a time for each timeline.
 *
 *     merge   1. slices, each a new layer of level 1, 2. store, 3. one manifest that has these instead of the inputs,
 *             4. when the last reader of the inputs has gone, delete them
 *     images  1. which pages of a new level 1 layer are costly, 2. slices of images as of the layer's end, 3. store,
 *             4. one manifest that has them and says that the layer is done
 *
 * A crash before the manifest leaves objects that nobody names, which the next start removes; one after it leaves inputs
 * that nobody names any more, likewise.
 *
 * Work is in slices of one layer file, in threads of low priority that also write memtables out; a slice is only begun
 * when no memtable waits for a thread, so that compaction never holds up ingestion for longer than a slice.
 */
import { unlink } from 'node:fs/promises'
import type { Lsn, PageId } from '../../protocol/ids.ts'
import { internalError, toPalimpsestError } from '../shared/errors.ts'
import { catalogueSnapshotDue } from './catalogue-store.ts'
import type { ImageSliceInput, ImageSliceResult, MergeInput, MergeResult } from './compact-layers.ts'
import { compareAge, comparePages } from './core/layer-map.ts'
import {
  type CompactionPlan,
  DEFAULT_PLAN_POLICY,
  type PlanPolicy,
  planCompaction,
  planImages,
  replaceLayers,
} from './core/plan.ts'
import { delay, removeScratch } from './environment.ts'
import type { LayerSet } from './layer-store.ts'
import { ImpossibleManifestError, type LayerEntry, layerEntry, type Manifest } from './manifest.ts'
import type { PageRequest } from './reconstruct.ts'
import type { Timeline } from './timeline.ts'
import type { TimelineSnapshot } from './timeline-snapshot.ts'

/** Images in one slice: some 16 MiB of pages. */
const IMAGE_SLICE_BYTES = 16 << 20
/** Image layers of a compaction, to tell them from those of imports. */
const COMPACTED_IMAGE_LEVEL = 2
const RETRY_MS = 1000
/** What does not pass by itself (a damaged layer) is not tried again at once: each time costs a compaction's work. */
const FAILED_MS = 60_000
const PAUSE_STEP_MS = 100
/** A merge holds the page indexes of all its inputs, 56 bytes for each page. */
const MERGE_PAGES_MAX = 600_000
/** While so much redo waits to be taken in, threads are better used for that … */
const BEHIND_BYTES = 32 << 20
/** … until so many layers of level 0 have gathered that reads suffer. */
const LEVEL0_HARD = 48
const POSTPONE_MS = 200

export class Compactor {
  readonly #timeline: Timeline
  readonly #policy: PlanPolicy
  #running: Promise<void> | undefined
  #closed = false
  #again = false

  constructor(timeline: Timeline, policy: PlanPolicy = DEFAULT_PLAN_POLICY) {
    this.#timeline = timeline
    this.#policy = policy
  }

  /** There may be something to do. */
  wake(): void {
    this.#again = true
    if (this.#running !== undefined || this.#closed) return
    this.#running = this.#run().finally(() => {
      this.#running = undefined
      if (this.#again && !this.#closed) this.wake()
    })
  }

  /** Resolves when there is nothing left to do. */
  async idle(): Promise<void> {
    while (this.#running !== undefined) await this.#running
  }

  async close(): Promise<void> {
    this.#closed = true
    await this.#running
  }

  async #run(): Promise<void> {
    while (!this.#closed) {
      this.#again = false
      try {
        const goesOn = await this.#step()
        this.#timeline.compactorState('')
        if (!goesOn) return
      } catch (error) {
        const known = toPalimpsestError(error)
        if (this.#closed || known.kind === 'fenced') return
        this.#timeline.compactorState(`layers cannot be merged: ${known.message}`)
        this.#timeline.log.warn({ err: known }, 'compaction failed; it is tried again')
        await this.#pause(known.kind === 'retry' ? RETRY_MS : FAILED_MS)
      }
    }
  }

  async #timed(kind: 'merge' | 'images', work: Promise<void>): Promise<void> {
    const { metrics, nowMs } = this.#timeline.env
    const since = nowMs()
    await work
    metrics.compactionSeconds.observe((nowMs() - since) / 1000, kind)
  }

  /** One piece of work; false if there is none. */
  async #step(): Promise<boolean> {
    const { manifest } = this.#timeline
    if (catalogueSnapshotDue(manifest.current)) {
      await this.#timeline.saveCatalogue()
      return true
    }
    const { committedLsn, ingestedLsn, ingest } = this.#timeline
    // One that has stopped will not catch up, and is still read.
    if (!ingest.isStopped && committedLsn - ingestedLsn > BEHIND_BYTES) {
      const waiting = manifest.current.layers.filter(layer => layer.level === 0).length
      if (waiting < LEVEL0_HARD) {
        await delay(POSTPONE_MS)
        return true
      }
    }
    const plan = planCompaction(manifest.current.layers, this.#policy)
    if (plan !== undefined) {
      await this.#timed('merge', this.#merge(withinMemory(plan)))
      return true
    }
    const layer = this.#timeline.awaitsImport ? undefined : planImages(manifest.current.layers)
    if (layer !== undefined) {
      await this.#timed('images', this.#makeImages(layer))
      return true
    }
    return false
  }

  /** Waits until no memtable waits for a background thread. */
  async #turn(): Promise<void> {
    while (this.#timeline.env.background.queued > 0 && !this.#closed) await delay(20)
    if (this.#closed) throw internalError('the compaction was interrupted')
  }

  async #merge(plan: CompactionPlan<LayerEntry>): Promise<void> {
    const { log } = this.#timeline
    const set = this.#timeline.stack.set()
    const outputs: LayerEntry[] = []
    try {
      await this.#mergeSlices(plan, set, outputs)
    } catch (error) {
      await this.#deleteUnnamed(outputs)
      throw error
    } finally {
      set.release()
    }
    await this.#commit(outputs, current => ({
      ...current,
      layers: replaceLayers(current.layers, plan.inputs, outputs),
    }))
    this.#timeline.stack.changed()
    log.debug({ inputs: plan.inputs.length, outputs: outputs.length, lsnEnd: plan.lsnEnd }, 'layers merged')
    await this.#timeline.stack.retire(plan.inputs)
  }

  async #mergeSlices(plan: CompactionPlan<LayerEntry>, set: LayerSet, outputs: LayerEntry[]): Promise<void> {
    for (const input of plan.inputs) set.add(input)
    for (let from: PageId | null | undefined = null; from !== undefined; ) {
      await set.fetchAll()
      await this.#turn()
      const start: PageId | null = from
      from = await this.#withScratch('merge', path => this.#mergeSlice(plan, set, start, path, outputs))
    }
  }

  /** Where the next slice begins; undefined when this was the last. */
  async #mergeSlice(
    plan: CompactionPlan<LayerEntry>,
    set: LayerSet,
    from: PageId | null,
    path: string,
    outputs: LayerEntry[],
  ): Promise<PageId | null | undefined> {
    const { manifest, env, id } = this.#timeline
    const slice: MergeInput = {
      inputs: set.sources,
      path,
      timeline: id,
      generation: manifest.current.generation,
      lsnStart: plan.lsnStart,
      lsnEnd: plan.lsnEnd,
      from,
      layerBytes: this.#policy.layerBytes,
    }
    const merged: MergeResult | undefined = await renewing(set, () => env.background.run('merge', slice))
    // The same again, with the copy that was bad fetched anew.
    if (merged === undefined) return from
    const { summary, next } = merged
    const key = manifest.layerKey('delta', 1, plan.lsnStart, plan.lsnEnd)
    await this.#put(key, path)
    outputs.push(layerEntry(key, 1, summary))
    env.metrics.layerBytes.merge += summary.bytes
    return next ?? undefined
  }

  /** The file of a finished layer is made durable. While the store cannot be reached it is tried again: the work is done. */
  #put(key: string, path: string): Promise<void> {
    return this.#patiently(() => this.#timeline.env.layers.put(key, path))
  }

  /** @param made layers that the change would name */
  async #commit(made: readonly LayerEntry[], change: (current: Manifest) => Manifest): Promise<void> {
    try {
      await this.#patiently(() => this.#timeline.manifest.update(change))
    } catch (error) {
      // After any other error the manifest may have come into being.
      if (error instanceof ImpossibleManifestError) await this.#deleteUnnamed(made)
      throw error
    }
  }

  /** Layers that no manifest names. What cannot be deleted now, the next start removes. */
  async #deleteUnnamed(layers: readonly LayerEntry[]): Promise<void> {
    for (const { key } of layers) await this.#timeline.env.layers.delete(key).catch(() => {})
  }

  /** A path for a file under construction, which is removed, unless the store has taken it, when the work ends. */
  async #withScratch<T>(what: string, work: (path: string) => Promise<T>): Promise<T> {
    const path = this.#timeline.scratchPath(what)
    try {
      return await work(path)
    } finally {
      await removeScratch(path)
    }
  }

  async #patiently(work: () => Promise<unknown>): Promise<void> {
    for (;;)
      try {
        await work()
        return
      } catch (error) {
        const known = toPalimpsestError(error)
        if (this.#closed || known.kind !== 'retry') throw known
        this.#timeline.log.warn({ err: known }, 'storing what a compaction made failed; trying again')
        await this.#pause(RETRY_MS)
      }
  }

  /** Ends early when the compactor is closed. */
  async #pause(ms: number): Promise<void> {
    for (let waited = 0; waited < ms && !this.#closed; waited += PAUSE_STEP_MS) await delay(PAUSE_STEP_MS)
  }

  async #makeImages(layer: LayerEntry): Promise<void> {
    const { log, replacements } = this.#timeline
    const lsn = layer.lsnEnd
    const costly = await this.#findCostly(layer)
    const images: LayerEntry[] = []
    try {
      await this.#makeSlices(lsn, costly, images)
    } catch (error) {
      await this.#deleteUnnamed(images)
      throw error
    }
    let outdated = false
    await this.#commit(images, current => {
      // An import has brought other pages meanwhile than those that these are made of.
      outdated = this.#timeline.replacements !== replacements || this.#timeline.awaitsImport
      if (outdated) return current
      const layers = current.layers.map(other =>
        other.key === layer.key ? { ...other, imagesDone: true } : other,
      )
      return { ...current, layers: [...layers, ...images] }
    })
    if (outdated) {
      await this.#timeline.stack.retire(images)
      return
    }
    this.#timeline.stack.changed()
    log.debug({ lsn, pages: costly.length / 2, layers: images.length }, 'images made')
  }

  /** Of the layer's pages. */
  async #findCostly(layer: LayerEntry): Promise<Uint32Array> {
    await this.#turn()
    const older = this.#timeline.layers
      .filter(
        other =>
          other.lsnEnd <= layer.lsnEnd &&
          other.first !== null &&
          comparePages(other.first, layer.last!) <= 0 &&
          comparePages(other.last!, layer.first!) >= 0,
      )
      .sort(compareAge)
    return this.#costlyPages(layer, older)
  }

  /** Layers of images of these pages as of the LSN, in the store; `images` has them also if it fails half-way. */
  async #makeSlices(lsn: Lsn, costly: Uint32Array, images: LayerEntry[]): Promise<void> {
    for (let at = 0; at < costly.length; ) {
      await this.#turn()
      const snapshot = this.#timeline.snapshot(lsn)
      try {
        const requests: PageRequest[] = []
        for (let bytes = 0; at < costly.length && bytes < IMAGE_SLICE_BYTES; at += 2) {
          const request = snapshot.request(costly[at]!, costly[at + 1]!)
          // Of a tablespace that is gone by then.
          if (typeof request === 'number') continue
          requests.push(request)
          bytes += request.bytes
        }
        if (requests.length === 0) continue
        await this.#withScratch('images', path => this.#makeSlice(snapshot, { requests, lsn, path }, images))
      } finally {
        snapshot.release()
      }
    }
  }

  async #makeSlice(
    snapshot: TimelineSnapshot,
    slice: Pick<ImageSliceInput, 'requests' | 'lsn' | 'path'>,
    images: LayerEntry[],
  ): Promise<void> {
    const { manifest, env, log, id } = this.#timeline
    const { lsn, path } = slice
    const { generation } = manifest.current
    const { summary, damaged } = await this.#writeImages(snapshot, { ...slice, timeline: id, generation })
    for (const message of damaged) log.error({ lsn }, message)
    if (summary.pages === 0) return
    const key = manifest.layerKey('image', COMPACTED_IMAGE_LEVEL, lsn, lsn)
    await this.#put(key, path)
    images.push(layerEntry(key, COMPACTED_IMAGE_LEVEL, summary))
    env.metrics.layerBytes.images += summary.bytes
  }

  async #costlyPages(layer: LayerEntry, older: readonly LayerEntry[]): Promise<Uint32Array> {
    // An import that ends may make images needless, and delete them.
    const set = this.#timeline.stack.guarded()
    try {
      const own = set.add(layer)
      const places = older.map(other => set.add(other))
      await set.fetch([own])
      for (;;) {
        const input = {
          layer: set.sources[own]!,
          layers: places.map(place => set.sources[place]!),
          policy: this.#policy,
        }
        const found = await renewing(set, () => this.#timeline.env.background.run('costlyPages', input))
        if (found === undefined) await set.fetch([own])
        else if ('missing' in found) await set.fetch(found.missing.map(at => places[at]!))
        else return found
        await this.#turn()
      }
    } finally {
      set.release()
    }
  }

  async #writeImages(
    snapshot: TimelineSnapshot,
    input: Omit<ImageSliceInput, 'layers'>,
  ): Promise<ImageSliceResult> {
    for (;;) {
      const result = await this.#timeline.env.background.run('images', { ...input, layers: snapshot.layers })
      if ('missing' in result) {
        await snapshot.fetch(result.missing)
        continue
      }
      const places = [...snapshot.layers.keys()]
      if (!result.damaged.some(message => snapshot.renew(places, message))) return result
      // It was made without the pages whose layers had a bad copy: again.
      await unlink(input.path)
    }
  }
}

/** Undefined after damage in a copy of a layer: it is thrown away, to be fetched and read again. */
async function renewing<T>(set: LayerSet, work: () => Promise<T>): Promise<T | undefined> {
  try {
    return await work()
  } catch (error) {
    const { kind, message } = toPalimpsestError(error)
    if (kind === 'corrupt' && set.renew(set.sources.keys(), message)) return undefined
    throw error
  }
}

/** The oldest of the inputs, as many as have no more than `MERGE_PAGES_MAX` pages together; at least two. */
function withinMemory(plan: CompactionPlan<LayerEntry>): CompactionPlan<LayerEntry> {
  let pages = 0
  let count = 0
  for (const input of plan.inputs) {
    pages += input.pages
    if (count >= 2 && pages > MERGE_PAGES_MAX) break
    count++
  }
  const inputs = plan.inputs.slice(0, count)
  return {
    inputs,
    lsnStart: Math.min(...inputs.map(layer => layer.lsnStart)) as Lsn,
    lsnEnd: Math.max(...inputs.map(layer => layer.lsnEnd)) as Lsn,
  }
}
