/** What all timelines of one page server share. */
import { rm } from 'node:fs/promises'
import type { Log } from '../shared/log.ts'
import type { ObjectStore } from '../shared/object-store.ts'
import type { SafekeeperWatch } from '../shared/safekeeper-watch.ts'
import type { WorkerPool } from '../shared/worker-pool.ts'
import type { ArenaPool } from './arena.ts'
import type { LayerStore } from './layer-store.ts'
import type { PageServerMetrics } from './metrics.ts'
import type { PageCache } from './page-cache.ts'
import type { PageReader } from './page-reader.ts'

export type PageServerPool = WorkerPool<typeof import('./worker.ts')>

export interface PageServerEnvironment {
  readonly store: ObjectStore
  /** Layers go into the store, and come out of it, through this. */
  readonly layers: LayerStore
  /** Files under construction; emptied at start. */
  readonly scratchDir: string
  readonly arenas: ArenaPool
  readonly cache: PageCache
  readonly reader: PageReader
  /** Indexes redo and makes pages: short tasks that somebody waits for. */
  readonly foreground: PageServerPool
  /** Writes layers: long tasks, at low priority. */
  readonly background: PageServerPool
  readonly safekeepers: SafekeeperWatch
  /** Under which name the safekeeper knows this page server. */
  readonly consumer: string
  readonly log: Log
  readonly metrics: PageServerMetrics
  /** Redo in one memtable before it is frozen and written out. */
  readonly flushBytes: number
  /** Age at which a memtable is written out however small it is. */
  readonly flushAgeMs: number
  /** A number for a tablespace in the page cache, never given out before. */
  nextCacheSpace(): number
  /** No arena is free: the fullest memtable is to be written out if nothing else is on its way. */
  arenasStarved(): void
  nowMs(): number
}

/** A file under construction that is given up. What cannot be removed now is removed at the next start. */
export async function removeScratch(path: string): Promise<void> {
  await rm(path, { force: true }).catch(() => {})
}

export function delay(ms: number): Promise<void> {
  return new Promise(resolve => setTimeout(resolve, ms))
}

/** Waits for the promise, but no longer than `ms`; then undefined. */
export async function atMost<T>(promise: Promise<T>, ms: number): Promise<T | undefined> {
  let timer: NodeJS.Timeout | undefined
  const late = new Promise<undefined>(resolve => {
    timer = setTimeout(() => resolve(undefined), ms)
  })
  try {
    return await Promise.race([promise, late])
  } finally {
    clearTimeout(timer)
  }
}

/** Does the work for each of the items, so many at a time. After a failure nothing more is begun; it is what is thrown. */
export async function forEachAtMost<T>(
  places: number,
  items: Iterable<T>,
  work: (item: T) => Promise<void>,
): Promise<void> {
  const rest = items[Symbol.iterator]()
  let hasFailed = false
  const worker = async (): Promise<void> => {
    for (let next = rest.next(); !next.done && !hasFailed; next = rest.next())
      try {
        await work(next.value)
      } catch (error) {
        hasFailed = true
        throw error
      }
  }
  const outcomes = await Promise.allSettled(Array.from({ length: places }, worker))
  for (const outcome of outcomes) if (outcome.status === 'rejected') throw outcome.reason
}
