/**
 * What the page server's worker threads can do: the entry file of the Piscina pools, one exported task each.
 *
 * A thread gets the shared memories once, as `workerData`, and keeps its indexer, its applier and its open layer files from
 * task to task. Tasks are synchronous: a thread does one thing at a time, and the pool decides which.
 */
import { setPriority } from 'node:os'
import { workerData } from 'node:worker_threads'
import { ChunkIndexer } from '../../parser/chunk-index.ts'
import type { SpaceEvent } from '../../parser/space-events.ts'
import type { Lsn } from '../../protocol/ids.ts'
import { isCorrupt } from '../shared/errors.ts'
import { task } from '../shared/worker-pool.ts'
import { type ArenaGeometry, ArenaMemory } from './arena.ts'
import type { CatalogueEvent } from './catalogue-codec.ts'
import {
  type CostlyPagesInput,
  costlyPages as findCostlyPages,
  type ImageSliceInput,
  type ImageSliceResult,
  type MergeInput,
  type MergeResult,
  mergeLayers,
  writeImages,
} from './compact-layers.ts'
import { type FlushInput, flushMemtable } from './flush.ts'
import { type ImportSpoolInput, layerFromSpool } from './import-layer.ts'
import type { LayerSummary } from './layer-file-writer.ts'
import { LayerFiles, type LayerSource, type MissingLayers } from './layer-files.ts'
import { HistoryReader, type PageHistoryInput, type PageHistoryResult } from './page-history.ts'
import { type MadePage, type PageRequest, Reconstructor } from './reconstruct.ts'
import { RangeWriter } from './run-index.ts'
import type { TimeSample } from './time-samples.ts'

export interface PageServerWorkerData {
  readonly arenas: ArenaGeometry
  readonly cache: SharedArrayBuffer
  /** Memory of this thread for layer indexes and uncompressed blocks. */
  readonly layerBytesMax: number
  /** This thread writes layers, and gives way to those that somebody waits for. */
  readonly background: boolean
  /** One counter: threads of the pool that have loaded their code. */
  readonly started: SharedArrayBuffer
}

// Piscina wraps the data: [its own, ours].
const data = (Array.isArray(workerData) ? workerData[1] : workerData) as PageServerWorkerData
if (data.background) {
  try {
    // On Linux this is about the calling thread alone.
    if (process.platform === 'linux') setPriority(0, 10)
  } catch {
    // Priorities are a courtesy.
  }
}
const arenas = new ArenaMemory(data.arenas)
const cache = new Uint8Array(data.cache)
const layerFiles = new LayerFiles(data.layerBytesMax)
const reconstructor = new Reconstructor(arenas, layerFiles)
const historyReader = new HistoryReader(arenas, layerFiles)

const rangeWriter = new RangeWriter(arenas)
const indexers = new Map<number, ChunkIndexer>()

function indexerFor(innodbPageSize: number): ChunkIndexer {
  let indexer = indexers.get(innodbPageSize)
  if (indexer === undefined) {
    indexer = new ChunkIndexer({ pageBytesMax: innodbPageSize, hashSeed: (Math.random() * 0x7fffffff) | 0 })
    indexers.set(innodbPageSize, indexer)
  }
  return indexer
}

export interface IndexRangeInput {
  /** Byte offset of the redo in the arena memory. */
  readonly at: number
  readonly bytes: number
  readonly begin: Lsn
  readonly indexArena: number
  /** Bytes of it that are set aside for this range. */
  readonly indexBytes: number
  readonly innodbPageSize: number
}

export type IndexRangeResult =
  | {
      readonly status: 'ok'
      /** Word of the range's index. */
      readonly header: number
      readonly events: SpaceEvent[]
      readonly mtrs: number
      readonly records: number
    }
  /** The arena has no room for the index, which has `bytes`. What was set aside was given back. */
  | { readonly status: 'no-room'; readonly bytes: number }

/** Verifies and indexes a range of redo and puts what it has for each page into an arena. */
export const indexRange = task((input: IndexRangeInput): IndexRangeResult => {
  const indexer = indexerFor(input.innodbPageSize)
  const found = indexer.index(arenas.region.bytes, input.at, input.at + input.bytes, input.begin)
  const bytes = rangeWriter.rangeBytes(indexer)
  const at = arenas.takeTop(input.indexArena, bytes, input.indexBytes)
  if (at < 0) return { status: 'no-room', bytes }
  const header = rangeWriter.place(at, input.begin, input.bytes, input.at, indexer)
  return { status: 'ok', header, events: found.events, mtrs: found.mtrs, records: found.records }
})

export interface MakePagesInput {
  readonly lsn: Lsn
  readonly layers: readonly LayerSource[]
  /** `at`: byte offset of the slot in the page cache. */
  readonly pages: readonly (PageRequest & { readonly at: number })[]
}

/** A page, or what it needs, or why it could not be made. */
export type MakePageResult =
  | MadePage
  | MissingLayers
  | { readonly error: string; readonly lsn: Lsn | undefined }

/** Makes pages as of one LSN and puts them into slots of the page cache. A damaged page does not spoil the others. */
export const makePages = task((input: MakePagesInput): MakePageResult[] => {
  layerFiles.sweep()
  return input.pages.map(page => {
    const target = cache.subarray(page.at, page.at + page.bytes)
    try {
      return reconstructor.make(page, input.layers, input.lsn, target)
    } catch (error) {
      if (isCorrupt(error)) return { error: error.message, lsn: error.lsn }
      throw error
    }
  })
})

export const flush = task((input: FlushInput): LayerSummary => flushMemtable(arenas, input))

export const pageHistory = task((input: PageHistoryInput): PageHistoryResult | MissingLayers =>
  historyReader.read(input),
)

/** Turns the pages that an import has spooled into an image layer. */
export const importLayer = task((input: ImportSpoolInput): LayerSummary => layerFromSpool(input))

/** What a layer has beside pages. */
export const layerExtras = task(
  (input: { readonly path: string }): { events: CatalogueEvent[]; samples: TimeSample[] } => {
    const reader = layerFiles.open(input.path)
    return { events: reader.catalogueEvents(), samples: reader.timeSamples() }
  },
)

/** One slice of a compaction. */
export const merge = task((input: MergeInput): MergeResult => {
  layerFiles.sweep()
  return mergeLayers(layerFiles, input)
})

export const costlyPages = task((input: CostlyPagesInput): Uint32Array | MissingLayers =>
  findCostlyPages(layerFiles, input),
)

export const images = task((input: ImageSliceInput): ImageSliceResult | MissingLayers =>
  writeImages(reconstructor, input),
)

Atomics.add(new Int32Array(data.started), 0, 1)
