/**
 * Reads pages: from the cache if they are there, otherwise made by workers and put there.
 *
 * The way of a batch whose pages are all cached has no await in it: it is a look-up per page, and the answer can leave in
 * the same turn of the event loop. What is missing is requested from the pool in tasks of a bounded number of pages; two
 * readers that miss the same version wait for the same slot.
 */

import { formatPageId, type Lsn } from '../../protocol/ids.ts'
import { PageStatus } from '../../protocol/messages-page.ts'
import { internalError, retryError, toPalimpsestError } from '../shared/errors.ts'
import type { WorkerPool } from '../shared/worker-pool.ts'
import type { LayerSource, MissingLayers } from './layer-files.ts'
import type { PageCache } from './page-cache.ts'
import type { PageHistoryInput, PageHistoryResult } from './page-history.ts'
import type { PageRequest } from './reconstruct.ts'
import type { MakePageResult } from './worker.ts'

/** Pages that one task makes: enough to hide the round trip, few enough to leave the other threads some. */
const TASK_PAGES_MAX = 16

/** Everything a worker must be told to make pages of a timeline at one LSN; frozen in time until `release`. */
export interface ReadSnapshot {
  readonly layers: readonly LayerSource[]
  /** Has the files of these layers brought here; they stay until `release`. */
  fetch(places: readonly number[]): Promise<void>
  /** After damage in one of these layers: true if that was a bad copy, so that it is worth trying again. */
  renew(places: readonly number[], message: string): boolean
  /** The request for a page, or the status that it has instead. */
  request(space: number, page: number): PageRequest | PageStatus
  release(): void
}

/** What the reader needs of a timeline. */
export interface ReadableTimeline {
  /** The cache's number for a tablespace of this timeline that exists. */
  cacheSpace(space: number): number
  /** The same for whatever number a request has: -1 if no page of it was ever cached. */
  knownCacheSpace(space: number): number
  /** Whether `lsn` is the newest, so that what is made for it is the newest version of each page. */
  isNewest(lsn: Lsn): boolean
  snapshot(lsn: Lsn): ReadSnapshot
  /** A page could not be made: for the log and the status. */
  pageDamaged(message: string, lsn: Lsn | undefined): void
}

/** One page of an answer. A slot is pinned for the receiver, who calls `PageCache.unpin` when it is done with it. */
export interface ReadPages {
  /** Per page: its slot if the status is OK, else -1. */
  readonly slots: Int32Array
  readonly status: Uint8Array
}

type Pool = WorkerPool<typeof import('./worker.ts')>

export class PageReader {
  readonly cache: PageCache
  readonly #workers: Pool
  /** Pages of answers: found in the cache, made, not there at that LSN, not to be made. */
  hits = 0
  misses = 0
  absent = 0
  damaged = 0

  constructor(cache: PageCache, workers: Pool) {
    this.cache = cache
    this.#workers = workers
  }

  /**
   * Pages [from, to) of `pages` (pairs of space and page number) if all of them are cached, else undefined. Never waits.
   */
  readCached(
    timeline: ReadableTimeline,
    lsn: Lsn,
    pages: Uint32Array,
    from: number,
    to: number,
  ): Int32Array | undefined {
    const { cache } = this
    const slots = new Int32Array(to - from)
    let space = -1
    let cacheSpace = 0
    for (let i = from; i < to; i++) {
      const wanted = pages[2 * i]!
      if (wanted !== space) {
        space = wanted
        cacheSpace = timeline.knownCacheSpace(space)
      }
      const slot = cacheSpace < 0 ? -1 : cache.find(cacheSpace, pages[2 * i + 1]!, lsn)
      if (slot < 0 || !cache.isReady(slot)) {
        for (let j = 0; j < i - from; j++) cache.unpin(slots[j]!)
        return undefined
      }
      cache.pin(slot)
      slots[i - from] = slot
    }
    this.hits += to - from
    return slots
  }

  /** The same pages, cached or not. Pages that do not exist, or are damaged, have a status and no slot. */
  async read(
    timeline: ReadableTimeline,
    lsn: Lsn,
    pages: Uint32Array,
    from: number,
    to: number,
  ): Promise<ReadPages> {
    const count = to - from
    const slots = new Int32Array(count).fill(-1)
    const status = new Uint8Array(count)
    try {
      // A slot that another reader was filling may have failed, or been evicted before our turn: then we try ourselves.
      for (let attempt = 0; attempt < 10; attempt++) {
        if (await this.#readOnce(timeline, lsn, pages, from, slots, status)) return { slots, status }
      }
      throw internalError(
        `page ${formatPageId({ space: pages[2 * from]!, page: pages[2 * from + 1]! })} keeps vanishing`,
      )
    } catch (error) {
      for (const slot of slots) if (slot >= 0) this.cache.unpin(slot)
      throw error
    }
  }

  /** One pass over what is still missing; false if something has to be tried again. */
  async #readOnce(
    timeline: ReadableTimeline,
    lsn: Lsn,
    pages: Uint32Array,
    from: number,
    slots: Int32Array,
    status: Uint8Array,
  ): Promise<boolean> {
    const { cache } = this
    const toMake: { index: number; slot: number; request: PageRequest }[] = []
    const awaited: Promise<void>[] = []
    const open = timeline.isNewest(lsn)
    let snapshot: ReadSnapshot | undefined
    try {
      for (let i = 0; i < slots.length; i++) {
        if (slots[i]! >= 0 || status[i] !== PageStatus.OK) continue
        const space = pages[2 * (from + i)]!
        const page = pages[2 * (from + i) + 1]!
        const known = timeline.knownCacheSpace(space)
        const slot = known < 0 ? -1 : cache.find(known, page, lsn)
        if (slot >= 0) {
          if (cache.isReady(slot)) {
            cache.pin(slot)
            slots[i] = slot
            this.hits++
          } else {
            awaited.push(cache.filled(slot))
          }
          continue
        }
        snapshot ??= timeline.snapshot(lsn)
        const request = snapshot.request(space, page)
        if (typeof request === 'number') {
          status[i] = request
          this.absent++
          continue
        }
        const made = cache.begin(timeline.cacheSpace(space), page, lsn, open, request.bytes)
        if (made < 0)
          throw retryError('all slots of the page cache are being read; try again, or give it more memory')
        toMake.push({ index: i, slot: made, request })
        this.misses++
      }
    } catch (error) {
      for (const { slot } of toMake) cache.fail(slot)
      snapshot?.release()
      throw error
    }
    if (toMake.length > 0 && snapshot !== undefined) {
      const held = snapshot
      const perTask = Math.min(TASK_PAGES_MAX, Math.ceil(toMake.length / this.#workers.threads))
      const tasks: Promise<void>[] = []
      for (let at = 0; at < toMake.length; at += perTask)
        tasks.push(this.#make(timeline, lsn, held, toMake.slice(at, at + perTask), slots, status))
      const outcomes = await Promise.allSettled(tasks)
      held.release()
      for (const outcome of outcomes) if (outcome.status === 'rejected') throw outcome.reason
    } else {
      snapshot?.release()
    }
    if (awaited.length === 0) return true
    await Promise.all(awaited)
    return false
  }

  async #make(
    timeline: ReadableTimeline,
    lsn: Lsn,
    snapshot: ReadSnapshot,
    batch: readonly { index: number; slot: number; request: PageRequest }[],
    slots: Int32Array,
    status: Uint8Array,
  ): Promise<void> {
    const { cache } = this
    let rest = [...batch]
    try {
      while (rest.length > 0) {
        const results = await this.#makeOnce(lsn, snapshot, rest)
        const again: typeof rest = []
        const wanted = new Set<number>()
        for (const [i, page] of rest.entries()) {
          const made = results[i]!
          if ('missing' in made) {
            for (const layer of made.missing) wanted.add(layer)
            again.push(page)
          } else if ('error' in made) {
            // Copies of layers may be damaged where the layers are not.
            if (snapshot.renew(page.request.layers, made.error)) {
              again.push(page)
              continue
            }
            cache.fail(page.slot)
            status[page.index] = PageStatus.CORRUPT
            this.damaged++
            timeline.pageDamaged(made.error, made.lsn)
          } else {
            cache.fill(page.slot, made)
            slots[page.index] = page.slot
          }
        }
        // First of all, so that the slots of these fail if the layers cannot be fetched.
        rest = again
        await snapshot.fetch([...wanted])
      }
    } catch (error) {
      for (const { slot } of rest) cache.fail(slot)
      throw error
    }
  }

  /** One task. Places of layers that it misses are those of the snapshot. */
  async #makeOnce(
    lsn: Lsn,
    snapshot: ReadSnapshot,
    batch: readonly { slot: number; request: PageRequest }[],
  ): Promise<MakePageResult[]> {
    // Only the layers that these pages may be in travel with the task.
    const layers: LayerSource[] = []
    const places = new Map<number, number>()
    const originals: number[] = []
    const pages = batch.map(({ slot, request }) => ({
      ...request,
      at: this.cache.offset(slot),
      layers: request.layers.map(layer => {
        let place = places.get(layer)
        if (place === undefined) {
          place = layers.push(snapshot.layers[layer]!) - 1
          places.set(layer, place)
          originals.push(layer)
        }
        return place
      }),
    }))
    const results = await this.#workers.run('makePages', { lsn, layers, pages })
    return results.map(made =>
      'missing' in made ? { missing: made.missing.map(place => originals[place]!) } : made,
    )
  }

  /** The changes of a page, newest first. */
  async history(
    snapshot: ReadSnapshot,
    question: Omit<PageHistoryInput, 'layers'>,
  ): Promise<PageHistoryResult> {
    for (;;) {
      let result: PageHistoryResult | MissingLayers
      try {
        result = await this.#workers.run('pageHistory', { ...question, layers: snapshot.layers })
      } catch (error) {
        const { kind, message } = toPalimpsestError(error)
        if (kind === 'corrupt' && snapshot.renew(question.request.layers, message)) continue
        throw error
      }
      if (!('missing' in result)) return result
      await snapshot.fetch(result.missing)
    }
  }
}
