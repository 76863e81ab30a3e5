/**
 * The parts of compaction that only read and write layer files. Synchronous, for use in a worker.
 *
 * `mergeLayers` makes of several delta layers of consecutive LSN ranges layers of the whole range that are cut by pages.
 * It walks the sorted indexes of all inputs at once and copies entries page by page, so that it holds a block of each
 * input and a block of the output, whatever their sizes.
 *
 * `costlyPages` finds, among the pages of a layer, those that have become costly to read.
 */
import { rmSync } from 'node:fs'
import type { Lsn, TimelineId } from '../../protocol/ids.ts'
import { deservesImage, type PlanPolicy } from './core/plan.ts'
import { DeltaLayerWriter } from './delta-layer.ts'
import type { LayerSummary } from './layer-file-writer.ts'
import { LayerReader } from './layer-reader.ts'

export interface MergeInput {
  /** Paths of delta layers, oldest first; each begins where the one before ends, or later. */
  readonly inputs: readonly string[]
  /** Outputs are made at this path followed by `-0`, `-1`, …; none of them may exist. */
  readonly outputPrefix: string
  readonly timeline: TimelineId
  readonly generation: number
  readonly lsnStart: Lsn
  readonly lsnEnd: Lsn
  /** Size at which an output is closed and the next one begun. */
  readonly layerBytes: number
  readonly zstdLevel?: number
}

export interface MergedLayer {
  readonly path: string
  readonly summary: LayerSummary
}

/** The outputs, in the order of their pages: at least one, of which the first has all events and samples. */
export function mergeLayers(input: MergeInput): MergedLayer[] {
  const readers: LayerReader[] = []
  const writers: DeltaLayerWriter[] = []
  const done: MergedLayer[] = []
  const { timeline, generation, lsnStart, lsnEnd, zstdLevel } = input
  const begin = (): DeltaLayerWriter => {
    const level = zstdLevel === undefined ? {} : { zstdLevel }
    const path = `${input.outputPrefix}-${writers.length}`
    const writer = new DeltaLayerWriter(path, { timeline, generation, lsnStart, lsnEnd, ...level })
    writers.push(writer)
    return writer
  }
  const finish = (writer: DeltaLayerWriter): void => {
    const extras =
      done.length > 0
        ? {}
        : {
            catalogueEvents: readers.flatMap(reader => reader.catalogueEvents()),
            timeSamples: readers.flatMap(reader => reader.timeSamples()),
          }
    done.push({ path: writer.path, summary: writer.finish(extras) })
  }
  try {
    for (const path of input.inputs) readers.push(LayerReader.open(path))
    const next = readers.map(() => 0)
    let writer = begin()
    for (;;) {
      // The least page that any input has next. Inputs are few: looking at each beats a heap.
      let space = -1
      let page = -1
      for (let i = 0; i < readers.length; i++) {
        const reader = readers[i]!
        const handle = next[i]!
        if (handle >= reader.pages) continue
        const s = reader.space(handle)
        const p = reader.page(handle)
        if (space < 0 || s < space || (s === space && p < page)) {
          space = s
          page = p
        }
      }
      if (space < 0) break
      if (writer.bytesWritten >= input.layerBytes) {
        finish(writer)
        writer = begin()
      }
      writer.beginPage(space, page)
      for (let i = 0; i < readers.length; i++) {
        const reader = readers[i]!
        const handle = next[i]!
        if (handle >= reader.pages || reader.space(handle) !== space || reader.page(handle) !== page) continue
        next[i] = handle + 1
        const cursor = reader.cursor(handle, 0, lsnEnd)
        while (cursor.next())
          writer.addEntry(cursor.lsn, cursor.flags, cursor.buf, cursor.start, cursor.end - cursor.start)
      }
    }
    finish(writer)
    return done
  } catch (error) {
    for (const writer of writers) writer.abort()
    for (const { path } of done) rmSync(path, { force: true })
    throw error
  } finally {
    for (const reader of readers) reader.close()
  }
}

export interface CostlyPagesInput {
  /** The delta layer whose pages are in question. */
  readonly layer: string
  /** Layers older than it that may have pages of its range, newest first. */
  readonly older: readonly { readonly path: string; readonly kind: 'delta' | 'image' }[]
  readonly policy: PlanPolicy
  readonly pagesMax: number
}

/**
 * Pages (space, page, space, page, …; ascending) of the layer that deserve an image as of the layer's lsnEnd. `open` gives
 * the reader of a path and keeps it: the caller closes it.
 */
export function costlyPages(input: CostlyPagesInput, open: (path: string) => LayerReader): Uint32Array {
  const { policy, pagesMax } = input
  const layer = open(input.layer)
  const older = input.older.map(({ path, kind }) => ({ reader: open(path), image: kind === 'image' }))
  const found: number[] = []
  for (let handle = 0; handle < layer.pages && found.length < 2 * pagesMax; handle++) {
    const space = layer.space(handle)
    const page = layer.page(handle)
    let redoBytes = layer.entryBytes(handle)
    let entries = layer.entryCount(handle)
    let layers = 1
    // A page that was initialised within the layer needs nothing older.
    if (layer.initLsn(handle) === 0)
      for (const { reader, image } of older) {
        const there = reader.findPage(space, page)
        if (there < 0) continue
        if (image) break
        redoBytes += reader.entryBytes(there)
        entries += reader.entryCount(there)
        layers++
        if (reader.initLsn(there) !== 0) break
      }
    if (deservesImage({ redoBytes, entries, layers }, policy)) found.push(space, page)
  }
  return Uint32Array.from(found)
}
