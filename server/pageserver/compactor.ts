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
import type { Lsn } from '../../protocol/ids.ts'
import { internalError, toPalimpsestError } from '../shared/errors.ts'
import { catalogueSnapshotDue, saveCatalogue } from './catalogue-store.ts'
import type { MergeResult } from './compact-layers.ts'
import { compareAge, comparePages } from './core/layer-map.ts'
import {
  type CompactionPlan,
  DEFAULT_PLAN_POLICY,
  type PlanPolicy,
  planCompaction,
  planImages,
  replaceLayers,
} from './core/plan.ts'
import { delay } from './environment.ts'
import { type LayerEntry, layerEntry } from './manifest.ts'
import type { PageRequest } from './reconstruct.ts'
import type { Timeline } from './timeline.ts'

/** Images in one slice: some 16 MiB of pages. */
const IMAGE_SLICE_BYTES = 16 << 20
/** Image layers of a compaction, to tell them from those of imports. */
const COMPACTED_IMAGE_LEVEL = 2
const RETRY_MS = 1000
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
        if (!(await this.#step())) return
      } catch (error) {
        const known = toPalimpsestError(error)
        if (this.#closed || known.kind === 'fenced') return
        this.#timeline.log.warn({ err: known }, 'compaction failed; it is tried again')
        await delay(RETRY_MS)
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
    const { manifest, env, catalogue, durableLsn } = this.#timeline
    if (catalogueSnapshotDue(manifest.current)) {
      await saveCatalogue(env.store, manifest, catalogue, durableLsn)
      return true
    }
    if (this.#timeline.committedLsn - this.#timeline.ingestedLsn > BEHIND_BYTES) {
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
    const layer = planImages(manifest.current.layers)
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
    const { manifest, env, log, id } = this.#timeline
    const inputs = plan.inputs.map(layer => this.#timeline.source(layer))
    const outputs: LayerEntry[] = []
    let from: { space: number; page: number } | null = null
    for (;;) {
      await this.#turn()
      const path = this.#timeline.scratchPath('merge')
      const { summary, next }: MergeResult = await env.background.run('merge', {
        inputs,
        path,
        timeline: id,
        generation: manifest.current.generation,
        lsnStart: plan.lsnStart,
        lsnEnd: plan.lsnEnd,
        from,
        layerBytes: this.#policy.layerBytes,
      })
      const key = manifest.layerKey('delta', 1, plan.lsnStart, plan.lsnEnd)
      if (!(await env.store.putFile(key, path))) throw internalError(`layer ${key} exists already`)
      outputs.push(layerEntry(key, 1, summary))
      env.metrics.layerBytes.merge += summary.bytes
      if (next === null) break
      from = next
    }
    await manifest.update(current => ({
      ...current,
      layers: replaceLayers(current.layers, plan.inputs, outputs),
    }))
    this.#timeline.layersChanged()
    log.debug({ inputs: inputs.length, outputs: outputs.length, lsnEnd: plan.lsnEnd }, 'layers merged')
    await this.#timeline.readersGone()
    for (const input of plan.inputs) await env.store.delete(input.key)
  }

  async #makeImages(layer: LayerEntry): Promise<void> {
    const { manifest, env, log, id } = this.#timeline
    const lsn = layer.lsnEnd
    await this.#turn()
    const older = manifest.current.layers
      .filter(
        other =>
          other.lsnEnd <= lsn &&
          other.first !== null &&
          comparePages(other.first, layer.last!) <= 0 &&
          comparePages(other.last!, layer.first!) >= 0,
      )
      .sort(compareAge)
    const costly = await env.background.run('costlyPages', {
      layer: this.#timeline.source(layer),
      layers: older.map(other => this.#timeline.source(other)),
      policy: this.#policy,
    })
    const images: LayerEntry[] = []
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
        const path = this.#timeline.scratchPath('images')
        const { summary, damaged } = await env.background.run('images', {
          layers: snapshot.layers,
          requests,
          lsn,
          path,
          timeline: id,
          generation: manifest.current.generation,
        })
        for (const message of damaged) log.error({ lsn }, message)
        const key = manifest.layerKey('image', COMPACTED_IMAGE_LEVEL, lsn, lsn)
        if (!(await env.store.putFile(key, path))) throw internalError(`layer ${key} exists already`)
        images.push(layerEntry(key, COMPACTED_IMAGE_LEVEL, summary))
        env.metrics.layerBytes.images += summary.bytes
      } finally {
        snapshot.release()
      }
    }
    await manifest.update(current => ({
      ...current,
      layers: [
        ...current.layers.map(other => (other.key === layer.key ? { ...other, imagesDone: true } : other)),
        ...images,
      ],
    }))
    this.#timeline.layersChanged()
    log.debug({ lsn, pages: costly.length / 2, layers: images.length }, 'images made')
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
