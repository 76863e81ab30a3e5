/**
 * The two pieces of work of a compaction that run in a worker: merging delta layers, and finding pages that have become
 * costly to read. Both are cut into slices by the main thread, so that what somebody waits for is never long behind.
 */
import type { Lsn, PageId, TimelineId } from '../../protocol/ids.ts'
import { comparePages } from './core/layer-map.ts'
import { deservesImage, type PlanPolicy } from './core/plan.ts'
import { DeltaLayerWriter } from './delta-layer.ts'
import { ImageLayerWriter } from './image-layer.ts'
import type { LayerSummary } from './layer-file-writer.ts'
import { type LayerFiles, type LayerSource, MISSING_LAYERS_MAX, type MissingLayers } from './layer-files.ts'
import type { LayerReader } from './layer-reader.ts'
import type { PageRequest, Reconstructor } from './reconstruct.ts'
import type { TimeSample } from './time-samples.ts'

export interface MergeInput {
  /** Oldest first. */
  readonly inputs: readonly LayerSource[]
  readonly path: string
  readonly timeline: TimelineId
  readonly generation: number
  readonly lsnStart: Lsn
  readonly lsnEnd: Lsn
  /** The first page of this slice; null: from the beginning, with what the inputs have beside pages. */
  readonly from: PageId | null
  /** Size at which the slice ends. */
  readonly layerBytes: number
}

export interface MergeResult {
  readonly summary: LayerSummary
  /** Where the next slice begins; null when this was the last. */
  readonly next: PageId | null
}

/** Writes one layer with the entries of all inputs, page by page, from `from` on until it is large enough. */
export function mergeLayers(files: LayerFiles, input: MergeInput): MergeResult {
  const { timeline, generation, lsnStart, lsnEnd, from } = input
  const readers = input.inputs.map(layer => files.reader(layer))
  const places = readers.map(reader => (from === null ? 0 : reader.lowerBound(from.space, from.page)))
  const writer = new DeltaLayerWriter(input.path, { timeline, generation, lsnStart, lsnEnd })
  try {
    let page = lowest(readers, places)
    while (page !== null && writer.bytesWritten < input.layerBytes) {
      writer.beginPage(page.space, page.page)
      for (const [i, reader] of readers.entries()) {
        const handle = places[i]!
        if (
          handle >= reader.pages ||
          reader.space(handle) !== page.space ||
          reader.page(handle) !== page.page
        )
          continue
        places[i] = handle + 1
        reader.forEachEntry(handle, lsnStart, lsnEnd, (buf, start, end, lsn, flags) =>
          writer.addEntry(lsn, flags, buf, start, end - start),
        )
      }
      page = lowest(readers, places)
    }
    const summary =
      from === null
        ? writer.finish({
            catalogueEvents: readers.flatMap(reader => reader.catalogueEvents()),
            timeSamples: mergeSamples(readers),
          })
        : writer.finish()
    return { summary, next: page }
  } catch (error) {
    writer.abort()
    throw error
  }
}

function mergeSamples(readers: readonly LayerReader[]): TimeSample[] {
  return readers.flatMap(reader => reader.timeSamples()).sort((a, b) => a.lsn - b.lsn)
}

/** The lowest page at the readers' places, or null when all are at their ends. */
function lowest(readers: readonly LayerReader[], places: readonly number[]): PageId | null {
  let found: PageId | null = null
  for (const [i, reader] of readers.entries()) {
    const handle = places[i]!
    if (handle >= reader.pages) continue
    const page = reader.pageId(handle)
    if (found === null || comparePages(page, found) < 0) found = page
  }
  return found
}

export interface CostlyPagesInput {
  /** The layer whose pages are looked at. */
  readonly layer: LayerSource
  /** All layers at or before its end that may have these pages, newest first; itself among them. */
  readonly layers: readonly LayerSource[]
  readonly policy: PlanPolicy
}

/** Pairs of space and page number of those that an image would make cheaper, ascending; or what must be fetched first. */
export function costlyPages(files: LayerFiles, input: CostlyPagesInput): Uint32Array | MissingLayers {
  const own = files.reader(input.layer)
  const found: number[] = []
  const missing = new Set<number>()
  for (let handle = 0; handle < own.pages; handle++) {
    const space = own.space(handle)
    const page = own.page(handle)
    const cost = { redoBytes: 0, entries: 0, layers: 0 }
    for (const [place, layer] of input.layers.entries()) {
      if (layer.path === undefined) {
        // Whether the page needs it shows when those above it are here; other pages may go on.
        missing.add(place)
        break
      }
      const reader = files.reader(layer)
      const at = reader.findPage(space, page)
      if (at < 0) continue
      if (layer.kind === 'image') break
      cost.redoBytes += reader.entryBytes(at)
      cost.entries += reader.entryCount(at)
      cost.layers++
      if (deservesImage(cost, input.policy)) {
        found.push(space, page)
        break
      }
      // A page that was initialised here needs nothing older.
      if (reader.initLsn(at) > 0) break
    }
  }
  if (missing.size > 0) return { missing: [...missing].slice(0, MISSING_LAYERS_MAX) }
  return Uint32Array.from(found)
}

export interface ImageSliceInput {
  readonly layers: readonly LayerSource[]
  readonly requests: readonly PageRequest[]
  readonly lsn: Lsn
  readonly path: string
  readonly timeline: TimelineId
  readonly generation: number
}

export interface ImageSliceResult {
  readonly summary: LayerSummary
  /** Pages that could not be made: what is wrong with them. They go without an image. */
  readonly damaged: string[]
}

/**
 * Makes the pages as of one LSN and writes them as an image layer. Free pages get none. Where layers have to be fetched
 * first, there is no file, and it is to be done again.
 */
export function writeImages(
  reconstructor: Reconstructor,
  input: ImageSliceInput,
): ImageSliceResult | MissingLayers {
  const { lsn, timeline, generation } = input
  const writer = new ImageLayerWriter(input.path, { lsn, timeline, generation })
  const buffer = Buffer.alloc(65536)
  const damaged: string[] = []
  const missing = new Set<number>()
  try {
    for (const request of input.requests) {
      const target = buffer.subarray(0, request.bytes)
      try {
        const made = reconstructor.make(request, input.layers, lsn, target)
        if ('missing' in made) {
          for (const place of made.missing) missing.add(place)
          continue
        }
        if (made.freed || missing.size > 0) continue
        writer.addPage(request.space, request.page, target, 0, target.length, made.pageLsn)
      } catch (error) {
        if ((error as { kind?: unknown }).kind !== 'corrupt') throw error
        damaged.push((error as Error).message)
      }
    }
    if (missing.size > 0) {
      writer.abort()
      return { missing: [...missing] }
    }
    return { summary: writer.finish(), damaged }
  } catch (error) {
    writer.abort()
    throw error
  }
}
