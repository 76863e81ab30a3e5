/**
 * A worker's open layer files: opened when first asked for, kept while they are used, bounded by the memory of their indexes.
 *
 * The main thread deletes a layer's file only when no task that names it is under way, so a path in a task can be opened. A
 * file that is deleted while it is open here stays readable; it is closed when it ages out.
 */
import { existsSync } from 'node:fs'
import { LRUCache } from 'lru-cache'
import { EntryFlag } from '../../parser/chunk-index.ts'
import type { Lsn } from '../../protocol/ids.ts'
import { internalError } from '../shared/errors.ts'
import { BlockCache } from './block-cache.ts'
import { corruptLayer, LAYER_FOOTER_BYTES, LayerKind } from './layer-format.ts'
import { type EntryCallback, LayerReader } from './layer-reader.ts'

/** A layer as a task names it. */
export interface LayerSource {
  readonly kind: 'delta' | 'image'
  /** Undefined: its file has to be fetched before a task can read it. */
  readonly path: string | undefined
  /**
   * Entries in (lsnStart, lsnEnd] count; for an image both are what its pages are as of. The file may have later entries:
   * where a branch reads its ancestor's layer, those belong to the ancestor alone.
   */
  readonly lsnStart: Lsn
  readonly lsnEnd: Lsn
}

/** What a task answers that turned out to need layers whose files are not here: their places in the task's list. */
export interface MissingLayers {
  readonly missing: readonly number[]
}

/** Layers that a task asks for at once: more than it may turn out to need, so that few rounds are needed. */
export const MISSING_LAYERS_MAX = 4

/** Files open at a time in one worker; several workers must stay below the usual limit of 1024 descriptors. */
const OPEN_FILES_MAX = 100
const SWEEP_MS = 5000

export class LayerFiles {
  readonly #readers: LRUCache<string, LayerReader>
  readonly #blocks: BlockCache
  #nextSweepMs = 0

  /** Evicted, and still usable until the task under way ends: a task that needs more than fits opens nothing twice. */
  readonly #evicted = new Map<string, LayerReader>()

  /** @param bytesMax memory for indexes (three quarters) and for uncompressed blocks */
  constructor(bytesMax: number) {
    this.#blocks = new BlockCache(bytesMax >> 2)
    this.#readers = new LRUCache({
      max: OPEN_FILES_MAX,
      maxSize: Math.max(1 << 20, bytesMax - (bytesMax >> 2)),
      sizeCalculation: reader => reader.indexBytes + 1024,
      dispose: (reader, path) => {
        // Tasks are synchronous: in the event loop's next phase none is under way.
        if (this.#evicted.size === 0) setImmediate(() => this.#closeEvicted())
        this.#evicted.set(path, reader)
      },
    })
  }

  #closeEvicted(): void {
    for (const reader of this.#evicted.values()) reader.close()
    this.#evicted.clear()
  }

  /** Closes files that were deleted, so that their space on the disk comes free. To be called now and then. */
  sweep(): void {
    const now = performance.now()
    if (now < this.#nextSweepMs) return
    this.#nextSweepMs = now + SWEEP_MS
    for (const path of [...this.#readers.keys()]) if (!existsSync(path)) this.#readers.delete(path)
  }

  open(path: string): LayerReader {
    let reader = this.#readers.get(path) ?? this.#evicted.get(path)
    if (reader === undefined) {
      reader = LayerReader.open(path, { blockCache: this.#blocks })
      // An index larger than the whole budget is not kept, and would be closed at once: the LRU refuses it silently.
      this.#readers.set(path, reader, { size: Math.min(reader.indexBytes + 1024, this.#readers.maxSize) })
    }
    return reader
  }

  reader(layer: LayerSource): LayerReader {
    if (layer.path === undefined)
      throw internalError(`a layer of LSN ${layer.lsnStart} to ${layer.lsnEnd} is read that was not fetched`)
    const reader = this.open(layer.path)
    const { kind, lsnStart, lsnEnd, fileBytes } = reader.footer
    // Whoever restores an object store may give a file another's name.
    if (
      (kind === LayerKind.IMAGE) !== (layer.kind === 'image') ||
      lsnStart !== layer.lsnStart ||
      lsnEnd < layer.lsnEnd
    )
      throw corruptLayer(
        layer.path,
        fileBytes - LAYER_FOOTER_BYTES,
        `it is of LSN ${lsnStart} to ${lsnEnd}, the manifest has ${layer.kind === 'image' ? 'an image' : 'a delta'} layer of LSN ${layer.lsnStart} to ${layer.lsnEnd} under this name`,
      )
    return reader
  }

  /** The page's handle in the layer, or -1. */
  find(layer: LayerSource, space: number, page: number): number {
    return this.reader(layer).findPage(space, page)
  }

  readImage(layer: LayerSource, handle: number, target: Uint8Array): void {
    const reader = this.reader(layer)
    const bytes = reader.imageBytes(handle)
    if (bytes !== target.length)
      throw new Error(`layer ${layer.path} holds ${bytes} bytes of a page of ${target.length}`)
    reader.readImage(handle, target)
  }

  /** LSN of the page's last INIT_PAGE in a delta layer, or 0. */
  lastInit(layer: LayerSource, handle: number): Lsn {
    return this.reader(layer).initLsn(handle)
  }

  /** LSN of the newest INIT_PAGE of the page in (after, upTo], or 0. */
  newestInit(layer: LayerSource, handle: number, after: Lsn, upTo: Lsn): Lsn {
    const reader = this.reader(layer)
    const end = least(upTo, layer.lsnEnd)
    const last = reader.initLsn(handle)
    if (last <= after) return 0 as Lsn
    if (last <= end) return last
    let found = 0 as Lsn
    reader.forEachEntry(handle, after, end, (_buf, _start, _end, lsn, flags) => {
      if ((flags & EntryFlag.INIT_PAGE) !== 0) found = lsn
    })
    return found
  }

  /** With `fromInit`, what comes before the last INIT_PAGE in the range is left out. */
  forEachEntry(
    layer: LayerSource,
    handle: number,
    after: Lsn,
    upTo: Lsn,
    callback: EntryCallback,
    fromInit = false,
  ): void {
    this.reader(layer).forEachEntry(handle, after, least(upTo, layer.lsnEnd), callback, fromInit)
  }
}

function least(a: Lsn, b: Lsn): Lsn {
  return a < b ? a : b
}
