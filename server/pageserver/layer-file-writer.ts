/**
 * What the writers of both kinds of layer share: a temporary local file, buffered output, sections, footer.
 *
 * Synchronous, for use in a worker. The file is nobody's until it was put into the object store: a writer that is
 * abandoned (`abort`) removes it; what a crash leaves, the next start removes with the rest of the scratch directory. It is
 * not synced here: the store does that, where its objects are local files, before it gives the file a name.
 */
import { closeSync, openSync, unlinkSync, writeSync } from 'node:fs'
import { crc32c } from '../../protocol/crc32c.ts'
import { internalError, retryError } from '../shared/errors.ts'
import { DATA_FILE_MODE } from '../shared/file-modes.ts'
import { checkZstdLevel, zstdCompress } from '../shared/zstd.ts'
import { type CatalogueEvent, encodeCatalogueEvents } from './catalogue-codec.ts'
import {
  assertLittleEndian,
  Encoding,
  encodeLayerFooter,
  encodeLayerHeader,
  LAYER_FOOTER_BYTES,
  LAYER_HEADER_BYTES,
  type LayerFooter,
  type LayerIdentity,
  SECTION_COUNT,
  SECTION_RAW_BYTES_MAX,
  type SectionInfo,
  type SectionKind,
  SectionKind as Sections,
} from './layer-format.ts'
import { encodeTimeSamples, type TimeSample } from './time-samples.ts'

/** Compression level for blocks, pages and sections; bench/micro/layer.ts shows what the others cost. */
export const LAYER_ZSTD_LEVEL = 1
const OUTPUT_BUFFER_BYTES = 256 << 10
const DIRECT_BYTES_MIN = 32 << 10

export interface LayerWriterOptions extends Omit<LayerIdentity, 'kind'> {
  /** 0: blocks and pages are stored as they are, for a layer that will soon be merged into others. */
  readonly zstdLevel?: number
}

/** What a layer's file holds beside pages: the catalogue's events and the wall clock of its LSN range. */
export interface LayerExtras {
  readonly catalogueEvents?: readonly CatalogueEvent[]
  readonly timeSamples?: readonly TimeSample[]
}

/** What the manifest must know of a finished layer. */
export interface LayerSummary extends LayerIdentity {
  readonly bytes: number
  readonly entries: number
  readonly pages: number
  readonly rawBytes: number
  /** First and last page in it; undefined for a layer without pages. */
  readonly first: { readonly space: number; readonly page: number } | undefined
  readonly last: { readonly space: number; readonly page: number } | undefined
  readonly minTimeUs: number
  readonly maxTimeUs: number
}

export class LayerFileWriter {
  readonly path: string
  readonly identity: LayerIdentity
  readonly zstdLevel: number
  #fd: number
  #output = Buffer.allocUnsafeSlow(OUTPUT_BUFFER_BYTES)
  #buffered = 0
  #written = 0
  readonly #sections: SectionInfo[] = Array.from({ length: SECTION_COUNT }, () => ({
    encoding: Encoding.ZERO,
    offset: 0,
    storedBytes: 0,
    rawBytes: 0,
    crc: 0,
  }))

  constructor(path: string, identity: LayerIdentity, zstdLevel = LAYER_ZSTD_LEVEL) {
    assertLittleEndian()
    this.path = path
    this.identity = identity
    this.zstdLevel = zstdLevel === 0 ? 0 : checkZstdLevel(zstdLevel)
    this.#fd = openSync(path, 'wx', DATA_FILE_MODE)
    this.append(encodeLayerHeader(identity), 0, LAYER_HEADER_BYTES)
  }

  /** Bytes so far, written or buffered: where the next ones go. */
  get position(): number {
    return this.#written + this.#buffered
  }

  get open(): boolean {
    return this.#fd >= 0
  }

  append(bytes: Buffer, start: number, end: number): void {
    const length = end - start
    // Large pieces go to the file from where they are: a copy costs more than a call to the system.
    const direct = length >= DIRECT_BYTES_MIN
    if (direct || this.#buffered + length > OUTPUT_BUFFER_BYTES) this.#flush()
    if (direct) {
      this.#write(bytes, start, end)
    } else {
      bytes.copy(this.#output, this.#buffered, start, end)
      this.#buffered += length
    }
  }

  addSection(kind: SectionKind, raw: Buffer): void {
    if (raw.length > SECTION_RAW_BYTES_MAX)
      throw internalError(
        `layer file ${this.path}: section ${kind} would have ${raw.length} bytes; cut layers smaller`,
      )
    if (raw.length === 0) return
    const packed = zstdCompress(raw, this.zstdLevel || LAYER_ZSTD_LEVEL)
    const pays = packed.length < raw.length
    const stored = pays ? packed : raw
    this.#sections[kind] = {
      encoding: pays ? Encoding.ZSTD : Encoding.RAW,
      offset: this.position,
      storedBytes: stored.length,
      rawBytes: raw.length,
      crc: crc32c(stored, 0, stored.length),
    }
    this.append(stored, 0, stored.length)
  }

  /** Writes sections and footer, and closes the file. */
  finish(
    counts: Pick<LayerFooter, 'entries' | 'pages' | 'blocks' | 'rawBytes'>,
    extras: LayerExtras,
  ): { bytes: number; minTimeUs: number; maxTimeUs: number } {
    if (extras.catalogueEvents !== undefined && extras.catalogueEvents.length > 0)
      this.addSection(Sections.CATALOGUE, encodeCatalogueEvents(extras.catalogueEvents))
    let minTimeUs = 0
    let maxTimeUs = 0
    if (extras.timeSamples !== undefined && extras.timeSamples.length > 0) {
      this.addSection(Sections.TIMES, encodeTimeSamples(extras.timeSamples))
      minTimeUs = extras.timeSamples[0]!.timeUs
      for (const { timeUs } of extras.timeSamples) {
        if (timeUs < minTimeUs) minTimeUs = timeUs
        if (timeUs > maxTimeUs) maxTimeUs = timeUs
      }
    }
    const bytes = this.position + LAYER_FOOTER_BYTES
    const footer = {
      ...this.identity,
      ...counts,
      fileBytes: bytes,
      minTimeUs,
      maxTimeUs,
      sections: this.#sections,
    }
    this.append(encodeLayerFooter(footer), 0, LAYER_FOOTER_BYTES)
    this.#flush()
    this.#close()
    return { bytes, minTimeUs, maxTimeUs }
  }

  /** Gives the file up. May be called at any time, also after `finish`, when it does nothing. */
  abort(): void {
    if (this.#fd < 0) return
    this.#close()
    try {
      unlinkSync(this.path)
    } catch {
      // It is scratch: what cannot be removed now is removed at the next start.
    }
  }

  #close(): void {
    const fd = this.#fd
    this.#fd = -1
    this.#output = Buffer.alloc(0)
    closeSync(fd)
  }

  #flush(): void {
    const buffered = this.#buffered
    this.#buffered = 0
    if (buffered > 0) this.#write(this.#output, 0, buffered)
  }

  #write(bytes: Buffer, start: number, end: number): void {
    let at = start
    while (at < end) {
      try {
        at += writeSync(this.#fd, bytes, at, end - at)
      } catch (error) {
        throw retryError(`writing ${this.path} failed after ${this.#written} bytes; is the disk full?`, error)
      }
    }
    this.#written += end - start
  }
}
