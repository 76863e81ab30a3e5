/**
 * Writes image layers: whole pages as of one LSN, each stored by itself so that reading one costs one page.
 *
 * Pages may come in any order, since only the index is sorted; a page that comes again replaces the earlier one (an
 * import reads a page again that it found torn).
 */
import { crc32c } from '../../protocol/crc32c.ts'
import type { Lsn } from '../../protocol/ids.ts'
import { internalError } from '../shared/errors.ts'
import { zstdCompress } from '../shared/zstd.ts'
import {
  type LayerExtras,
  LayerFileWriter,
  type LayerSummary,
  type LayerWriterOptions,
} from './layer-file-writer.ts'
import {
  Encoding,
  IMAGE_COLUMNS,
  ImageColumn,
  LayerKind,
  PHYSICAL_PAGE_BYTES_MAX,
  SectionKind,
} from './layer-format.ts'
import { WordTable } from './word-table.ts'

export interface ImageLayerOptions extends Omit<LayerWriterOptions, 'lsnStart' | 'lsnEnd'> {
  /** What the pages are as of. */
  readonly lsn: Lsn
}

export class ImageLayerWriter {
  readonly #file: LayerFileWriter
  readonly #table = new WordTable(IMAGE_COLUMNS)
  #rawBytes = 0

  constructor(path: string, options: ImageLayerOptions) {
    const { lsn, timeline, generation, zstdLevel } = options
    const identity = { kind: LayerKind.IMAGE, timeline, generation, lsnStart: lsn, lsnEnd: lsn }
    this.#file = new LayerFileWriter(path, identity, zstdLevel)
  }

  get path(): string {
    return this.#file.path
  }

  get bytesWritten(): number {
    return this.#file.position
  }

  get pages(): number {
    return this.#table.rows
  }

  /**
   * Adds the page in `bytes[start, end)`: 1 to 65536 bytes, a physical page as it stands in the file. `pageLsn` is its
   * FIL_PAGE_LSN. Returns the CRC-32C of the bytes.
   */
  addPage(space: number, page: number, bytes: Buffer, start = 0, end = bytes.length, pageLsn = 0): number {
    const length = end - start
    if (length <= 0 || length > PHYSICAL_PAGE_BYTES_MAX || end > bytes.length)
      throw internalError(`${this.path}: page ${space}:${page} of ${length} bytes`)
    const raw = start === 0 && end === bytes.length ? bytes : bytes.subarray(start, end)
    const crc = crc32c(raw, 0, length)
    let encoding: Encoding = Encoding.ZERO
    let stored = raw
    const offset = this.#file.position
    if (!isZero(raw)) {
      const level = this.#file.zstdLevel
      const packed = level === 0 ? raw : zstdCompress(raw, level)
      encoding = packed.length < length ? Encoding.ZSTD : Encoding.RAW
      if (encoding === Encoding.ZSTD) stored = packed
      this.#file.append(stored, 0, stored.length)
    }
    const row = this.#table.add()
    const words = this.#table.words
    words[row + ImageColumn.SPACE] = space
    words[row + ImageColumn.PAGE] = page
    this.#table.set64(row + ImageColumn.OFFSET_LOW, offset)
    words[row + ImageColumn.STORED_BYTES] = encoding === Encoding.ZERO ? 0 : stored.length
    words[row + ImageColumn.SIZE_ENCODING] = length | (encoding << 24)
    words[row + ImageColumn.CRC] = crc
    this.#table.set64(row + ImageColumn.PAGE_LSN_LOW, pageLsn)
    this.#rawBytes += length
    return crc
  }

  finish(extras: LayerExtras = {}): LayerSummary {
    const order = this.#sortedRows()
    const pages = order.length
    this.#file.addSection(SectionKind.PAGES, this.#table.columns(order))
    const end = this.#file.finish({ entries: pages, pages, blocks: 0, rawBytes: this.#rawBytes }, extras)
    const at = (index: number) => ({
      space: this.#table.words[order[index]! * IMAGE_COLUMNS + ImageColumn.SPACE]!,
      page: this.#table.words[order[index]! * IMAGE_COLUMNS + ImageColumn.PAGE]!,
    })
    return {
      ...this.#file.identity,
      ...end,
      entries: pages,
      pages,
      rawBytes: this.#rawBytes,
      first: pages === 0 ? undefined : at(0),
      last: pages === 0 ? undefined : at(pages - 1),
    }
  }

  /** Row numbers by (space, page), of equal ones only the last added. */
  #sortedRows(): Uint32Array {
    const { rows, words, width } = this.#table
    const order = Uint32Array.from({ length: rows }, (_, i) => i)
    order.sort((a, b) => {
      const bySpace = words[a * width]! - words[b * width]!
      if (bySpace !== 0) return bySpace
      const byPage = words[a * width + 1]! - words[b * width + 1]!
      return byPage !== 0 ? byPage : a - b
    })
    let kept = 0
    for (let i = 0; i < rows; i++) {
      const row = order[i]! * width
      const next = i + 1 < rows ? order[i + 1]! * width : -1
      const replaced = next >= 0 && words[next] === words[row] && words[next + 1] === words[row + 1]
      if (!replaced) order[kept++] = order[i]!
    }
    return order.subarray(0, kept)
  }

  /** Gives the file up and removes it. */
  abort(): void {
    this.#file.abort()
  }
}

function isZero(bytes: Buffer): boolean {
  // The first bytes settle it for almost every page that is not.
  for (let i = 0; i < bytes.length && i < 64; i++) if (bytes[i] !== 0) return false
  return bytes.equals(ZEROES.subarray(0, bytes.length))
}

const ZEROES = Buffer.alloc(PHYSICAL_PAGE_BYTES_MAX)
