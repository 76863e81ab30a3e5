/** Starts a page server: memory, workers, timelines, and its requests on a listener. */
import { mkdir, rm } from 'node:fs/promises'
import { availableParallelism } from 'node:os'
import { join } from 'node:path'
import type { Address } from '../../protocol/dial.ts'
import type { ConnectionSecurity } from '../../protocol/security.ts'
import { lockDirectory } from '../shared/dir-lock.ts'
import { internalError, invalidError } from '../shared/errors.ts'
import { DATA_DIRECTORY_MODE } from '../shared/file-modes.ts'
import type { Listener } from '../shared/listener.ts'
import type { Log } from '../shared/log.ts'
import { MeteredObjectStore } from '../shared/metered-object-store.ts'
import { type MetricsSource, NO_METRICS } from '../shared/metrics.ts'
import type { ObjectStore } from '../shared/object-store.ts'
import { SafekeeperWatch } from '../shared/safekeeper-watch.ts'
import { WorkerPool, WorkerPoolMetrics } from '../shared/worker-pool.ts'
import { ArenaMemory, ArenaPool } from './arena.ts'
import { delay, type PageServerEnvironment, type PageServerPool } from './environment.ts'
import { indexingThreads } from './ingest.ts'
import { LayerCache } from './layer-cache.ts'
import { type LayerStore, LayersInPlace } from './layer-store.ts'
import { planMemory } from './memory-plan.ts'
import { PageServerMetrics } from './metrics.ts'
import { loadNodeId } from './node-id.ts'
import { PageCache } from './page-cache.ts'
import { PageReader } from './page-reader.ts'
import { PageService } from './page-service.ts'
import { Timelines } from './timelines.ts'
import type { PageServerWorkerData } from './worker.ts'

const FLUSH_AGE_MS = 10 * 60_000
const HOUSEKEEPING_MS = 5_000
const CACHE_BYTES = 10 * 2 ** 30
/** A stop makes the last redo durable; with a store that does not answer it ends after this all the same. */
const STORE_CLOSE_MS = 20_000
const WORKER_START_MS = 60_000
/** An import that nobody has gone on with for so long is given up. */
const IMPORT_IDLE_MS = 30 * 60_000

export interface PageServerOptions {
  /** For files under construction and copies of layers. The store is elsewhere. */
  readonly dataDir: string
  /** Closed together with the page server. */
  readonly store: ObjectStore
  readonly safekeepers: readonly Address[]
  /** TLS and token towards the safekeepers. */
  readonly security?: ConnectionSecurity | undefined
  readonly listener: Listener
  readonly log: Log
  readonly metrics?: MetricsSource | undefined
  /** Everything together; default 1 GiB. */
  readonly memoryBytes?: number | undefined
  /** Threads that index redo and make pages; default the number of cores. */
  readonly workers?: number | undefined
  /** Disk for copies of layers, where the store is not a directory; default 10 GiB. */
  readonly cacheBytes?: number | undefined
  /** Timelines that damaged redo stopped are to try it again. */
  readonly retryStopped?: boolean | undefined
  readonly flushBytes?: number | undefined
  readonly flushAgeMs?: number | undefined
}

export interface PageServer {
  readonly timelines: Timelines
  readonly env: PageServerEnvironment
  close(): Promise<void>
}

export async function startPageServer(options: PageServerOptions): Promise<PageServer> {
  if (options.safekeepers.length === 0) throw invalidError('a page server needs the address of a safekeeper')
  const unlock = lockDirectory(options.dataDir)
  try {
    return await startWithin(options, unlock)
  } catch (error) {
    unlock()
    throw error
  }
}

async function startWithin(options: PageServerOptions, unlock: () => void): Promise<PageServer> {
  const { dataDir } = options
  const part = (name: string) => options.metrics?.part(name) ?? NO_METRICS
  const store =
    options.metrics === undefined ? options.store : new MeteredObjectStore(options.store, part('store'))
  const metrics = new PageServerMetrics(part('pageserver'))
  const poolMetrics = new WorkerPoolMetrics(part('pool'))
  const threads = options.workers ?? availableParallelism()
  const plan = planMemory(options.memoryBytes ?? 1 << 30, threads)
  const scratchDir = join(dataDir, 'scratch')
  await rm(scratchDir, { recursive: true, force: true })
  await mkdir(scratchDir, { recursive: true, mode: DATA_DIRECTORY_MODE })
  const consumer = await loadNodeId(dataDir, store)
  const log = options.log.child({ node: consumer })

  const layers = openLayers(store, join(dataDir, 'layer-cache'), options.cacheBytes ?? CACHE_BYTES, log)

  const memory = ArenaMemory.allocate(plan.arenaBytesTotal, plan.arenaBytes)
  const cache = new PageCache(plan.cacheBytes)
  const started = new SharedArrayBuffer(4)
  const workerData = (background: boolean): PageServerWorkerData => ({
    arenas: memory.geometry,
    cache: cache.region.buffer,
    layerBytesMax: plan.layerBytesPerThread,
    background,
    started,
  })
  const filename = new URL('./worker.ts', import.meta.url).href
  const foreground: PageServerPool = new WorkerPool({
    filename,
    threads,
    workerData: workerData(false),
    name: 'foreground',
    gathered: { tasks: ['indexRange'], threads: indexingThreads(threads) },
    metrics: poolMetrics,
    heapMbMax: plan.heapMbPerThread,
  })
  const background: PageServerPool = new WorkerPool({
    filename,
    threads: plan.backgroundThreads,
    concurrentTasksPerWorker: 1,
    workerData: workerData(true),
    name: 'background',
    metrics: poolMetrics,
    heapMbMax: plan.heapMbPerThread,
  })

  let cacheSpaces = 0
  const env: PageServerEnvironment = {
    store,
    layers,
    scratchDir,
    arenas: new ArenaPool(memory),
    cache,
    reader: new PageReader(cache, foreground),
    foreground,
    background,
    safekeepers: new SafekeeperWatch(options.safekeepers, { security: options.security }),
    consumer,
    log,
    metrics,
    flushBytes: options.flushBytes ?? plan.flushBytes,
    flushAgeMs: options.flushAgeMs ?? FLUSH_AGE_MS,
    nextCacheSpace: () => cacheSpaces++,
    arenasStarved: () => timelines.relieve(),
    nowMs: () => performance.now(),
  }
  const timelines = new Timelines(env)
  const service = new PageService(env, timelines)
  try {
    // Loading their code takes threads a good part of a second, which is better spent before the first request.
    const counter = new Int32Array(started)
    const since = performance.now()
    while (Atomics.load(counter, 0) < threads + plan.backgroundThreads) {
      if (performance.now() - since > WORKER_START_MS)
        throw internalError('worker threads did not start in time')
      await delay(5)
    }
    await timelines.open(options.retryStopped)
  } catch (error) {
    store.close()
    await Promise.all([foreground.close(), background.close()])
    throw error
  }
  metrics.register({ timelines, reader: env.reader, cache, arenas: env.arenas, layers })
  options.listener.addService(service)
  const housekeeping = setInterval(() => {
    timelines.freezeOld(env.flushAgeMs)
    void service.imports.expire(IMPORT_IDLE_MS)
    void timelines.retryBroken()
  }, HOUSEKEEPING_MS)
  housekeeping.unref()
  log.info({ memory: plan, threads }, 'page server started')
  return {
    timelines,
    env,
    close: async () => {
      clearInterval(housekeeping)
      // A store that does not answer must not keep the process: what is not stored is still with the safekeeper.
      const giveUp = setTimeout(() => store.close(), STORE_CLOSE_MS)
      await service.imports.abortAll()
      await timelines.close()
      clearTimeout(giveUp)
      store.close()
      await layers.close()
      await Promise.all([foreground.close(), background.close()])
      unlock()
    },
  }
}

/** Any key does for the question whether objects are files. */
const ANY_KEY = 'timelines'

function openLayers(store: ObjectStore, dir: string, bytesMax: number, log: Log): LayerStore {
  if (store.localPath(ANY_KEY) !== undefined) return new LayersInPlace(store)
  const cache = new LayerCache(store, { dir, bytesMax, log })
  log.info({ dir, bytesMax, bytes: cache.bytes, copies: cache.copies }, 'layer cache opened')
  return cache
}
