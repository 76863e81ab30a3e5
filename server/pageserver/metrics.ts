/**
 * What a page server tells about itself. What happens is counted where it happens, through the fields here; what is (LSNs,
 * layers, memory) is read off the timelines when metrics are scraped.
 */
import {
  firstFew,
  type HistogramMetric,
  MEMORY_SECONDS,
  type MetricsPart,
  TASK_SECONDS,
  TIMELINES_MAX,
} from '../shared/metrics.ts'
import type { ArenaPool } from './arena.ts'
import { LayerCache } from './layer-cache.ts'
import type { LayerStore } from './layer-store.ts'
import type { PageCache } from './page-cache.ts'
import type { PageReader } from './page-reader.ts'
import type { Timeline } from './timeline.ts'
import type { Timelines } from './timelines.ts'

export class PageServerMetrics {
  readonly #part: MetricsPart
  /** From a GetPages request to its last frame; label: source. */
  readonly readSeconds: HistogramMetric
  readonly flushSeconds: HistogramMetric
  /** Label: kind (merge, images). */
  readonly compactionSeconds: HistogramMetric
  ingestedBytes = 0
  /** Of new layer files, by what made them. */
  readonly layerBytes = { flush: 0, merge: 0, images: 0 }

  constructor(part: MetricsPart) {
    this.#part = part
    this.readSeconds = part.histogram(
      'read_seconds',
      'GetPages requests, from arrival to the last frame handed over: all pages cached, or some made from layers',
      MEMORY_SECONDS,
      ['source'],
    )
    this.flushSeconds = part.histogram(
      'flush_seconds',
      'from freezing a memtable to the manifest that lists its layer',
      TASK_SECONDS,
    )
    this.compactionSeconds = part.histogram(
      'compaction_seconds',
      'one merge of layers, or the images of one layer, with the waits for others',
      TASK_SECONDS,
      ['kind'],
    )
  }

  /** Once, when the page server has been put together. */
  register(server: {
    readonly timelines: Timelines
    readonly reader: PageReader
    readonly cache: PageCache
    readonly arenas: ArenaPool
    readonly layers: LayerStore
  }): void {
    const { timelines, reader, cache, arenas, layers } = server
    const part = this.#part
    this.#registerTimelines(timelines)
    if (layers instanceof LayerCache) this.#registerLayerCache(layers)
    part.sampledCounter('ingested_bytes_total', 'bytes of redo taken into memtables', [], put =>
      put(this.ingestedBytes),
    )
    part.sampledCounter('layer_written_bytes_total', 'bytes of layer files made', ['by'], put => {
      for (const [by, bytes] of Object.entries(this.layerBytes)) put(bytes, by)
    })
    part.sampledCounter(
      'read_pages_total',
      'pages of answers: cached, made from layers and redo, absent (no such page at that LSN), or damaged',
      ['source'],
      put => {
        put(reader.hits, 'cache')
        put(reader.misses, 'layers')
        put(reader.absent, 'absent')
        put(reader.damaged, 'damaged')
      },
    )
    part.sampledCounter('evicted_pages_total', 'page versions that left the cache for others', [], put =>
      put(cache.evictions),
    )
    part.sampledGauge('cached_pages', 'pages with a version in the cache', [], put => put(cache.pages))
    part.sampledGauge('cache_bytes', 'size of the page cache', [], put => put(cache.byteLength))
    part.sampledGauge('arena_bytes', 'memory for redo that is not in layers', ['state'], put => {
      put(arenas.freeCount * arenas.arenaBytes, 'free')
      put((arenas.total - arenas.freeCount) * arenas.arenaBytes, 'used')
    })
  }

  /** Only where the store is not a directory. */
  #registerLayerCache(layers: LayerCache): void {
    const part = this.#part
    part.sampledGauge('layer_cache_bytes', 'copies of layers on the local disk', [], put => put(layers.bytes))
    part.sampledGauge('layer_cache_limit_bytes', '--cache-size', [], put => put(layers.bytesMax))
    part.sampledCounter('layer_cache_hits_total', 'layers found on the local disk', [], put =>
      put(layers.hits),
    )
    part.sampledCounter('layer_fetches_total', 'layers fetched from the store', [], put =>
      put(layers.fetches),
    )
    part.sampledCounter('layer_fetched_bytes_total', 'bytes of layers fetched from the store', [], put =>
      put(layers.fetchedBytes),
    )
    part.sampledCounter('layer_evictions_total', 'copies of layers given up for others', [], put =>
      put(layers.evictions),
    )
  }

  #registerTimelines(timelines: Timelines): void {
    const part = this.#part
    part.sampledGauge(
      'known_timelines',
      'timelines by state; broken: could not be opened',
      ['state'],
      put => {
        const states = new Map<string, number>([
          ['active', 0],
          ['importing', 0],
          ['stopped', 0],
          ['broken', timelines.brokenCount],
        ])
        for (const { state } of timelines.all) states.set(state, (states.get(state) ?? 0) + 1)
        for (const [state, count] of states) put(count, state)
      },
    )
    part.sampledGauge(
      'unlisted_timelines',
      `timelines beyond the first ${TIMELINES_MAX}, which have no series of their own; the worst_ and sum_ metrics cover them`,
      [],
      put => put(Math.max(0, count(timelines.all) - TIMELINES_MAX)),
    )
    const worst = (name: string, help: string, of: (timeline: Timeline) => number | undefined): void =>
      part.sampledGauge(name, help, [], put => {
        let most = 0
        for (const timeline of timelines.all) most = Math.max(most, of(timeline) ?? 0)
        put(most)
      })
    worst('worst_lag_bytes', 'largest lag_bytes of all timelines', lagBytes)
    worst('worst_lag_seconds', 'largest lag_seconds of all timelines', lagSeconds)
    worst('worst_undurable_seconds', 'largest undurable_seconds of all timelines', undurableSeconds)
    part.sampledGauge('sum_memtable_bytes', 'memtable_bytes of all timelines together', [], put => {
      let sum = 0
      for (const timeline of timelines.all) sum += timeline.arenaBytes
      put(sum)
    })
    part.sampledGauge('sum_layer_bytes', 'layer_bytes of all timelines together', [], put => {
      let sum = 0
      for (const timeline of timelines.all) for (const layer of timeline.layers) sum += layer.bytes
      put(sum)
    })

    const each = (name: string, help: string, of: (timeline: Timeline) => number | undefined): void =>
      part.sampledGauge(name, help, ['timeline'], put => {
        for (const timeline of firstFew(timelines.all)) {
          const value = of(timeline)
          if (value !== undefined) put(value, timeline.name)
        }
      })
    each(
      'committed_lsn',
      'end of the log that safekeepers have told us of',
      ({ committedLsn }) => committedLsn,
    )
    each('ingested_lsn', 'pages can be read up to here', ({ ingestedLsn }) => ingestedLsn)
    each('durable_lsn', 'in layers up to here; safekeepers may trim', ({ durableLsn }) => durableLsn)
    each('lag_bytes', 'redo committed and not yet ingested', lagBytes)
    each('lag_seconds', 'age of the newest ingested redo while there is more to ingest, else 0', lagSeconds)
    each('undurable_seconds', 'time for which the oldest redo has been in memory only', undurableSeconds)
    each('memtable_bytes', 'redo in memory that is in no layer yet', ({ arenaBytes }) => arenaBytes)
    part.sampledGauge('listed_layers', 'layers in the manifest', ['timeline', 'kind', 'level'], put => {
      for (const timeline of firstFew(timelines.all))
        for (const [kind, level, layers] of byLevel(timeline)) put(layers, timeline.name, kind, level)
    })
    each('layer_bytes', 'size of all layers', ({ layers }) =>
      layers.reduce((sum, { bytes }) => sum + bytes, 0),
    )
    each('open_gaps', 'stretches of lost redo that cannot be read', ({ manifest }) =>
      Math.max(0, manifest.current.gaps.length - 1),
    )
  }
}

function count(all: Iterable<unknown>): number {
  let n = 0
  for (const _ of all) n++
  return n
}

function lagBytes(timeline: Timeline): number {
  return Math.max(0, timeline.committedLsn - timeline.ingestedLsn)
}

/** Undefined where no moment is known: nothing was ingested since the start, though there is something. */
function lagSeconds(timeline: Timeline): number | undefined {
  if (lagBytes(timeline) === 0) return 0
  if (timeline.lastWallTimeUs === 0) return undefined
  return Math.max(0, Date.now() / 1000 - timeline.lastWallTimeUs / 1e6)
}

function undurableSeconds(timeline: Timeline): number {
  const since = timeline.undurableSinceMs
  return since === undefined ? 0 : Math.max(0, timeline.env.nowMs() - since) / 1000
}

function byLevel(timeline: Timeline): Iterable<readonly [kind: string, level: string, layers: number]> {
  const counts = new Map<string, [string, string, number]>()
  for (const { kind, level } of timeline.layers) {
    const key = `${kind} ${level}`
    const known = counts.get(key)
    if (known === undefined) counts.set(key, [kind, String(level), 1])
    else known[2]++
  }
  return counts.values()
}
