/**
 * Reads layer files of both kinds. Synchronous, for use in a worker; one reader per open file and thread.
 *
 * Opening reads header, footer and index, and checks every number in the index once, so that later look-ups can trust
 * it: what is used is inside the file, in order, and bounded. Blocks and pages are checked against their CRC-32C when
 * they are read. Errors are of kind `corrupt` and name file and byte.
 *
 * A *handle* is a page's row in the index (0 .. pages - 1, in the order of pages), or -1.
 */
import { closeSync, fstatSync, openSync, readSync } from 'node:fs'
import { crc32c } from '../../protocol/crc32c.ts'
import type { Lsn, PageId } from '../../protocol/ids.ts'
import { corruptError, retryError } from '../shared/errors.ts'
import { zstdDecompress } from '../shared/zstd.ts'
import type { BlockCache } from './block-cache.ts'
import { type CatalogueEvent, decodeCatalogueEvents } from './catalogue-codec.ts'
import { EntryCursor } from './entry-cursor.ts'
import {
  assertLittleEndian,
  BLOCK_COLUMNS,
  BLOCK_RAW_BYTES_MAX,
  BlockColumn,
  corruptLayer,
  DELTA_COLUMNS,
  DeltaColumn,
  decodeLayerFooter,
  decodeLayerHeader,
  Encoding,
  FRAGMENT_HEADER_BYTES,
  IMAGE_COLUMNS,
  ImageColumn,
  LAYER_FOOTER_BYTES,
  LAYER_HEADER_BYTES,
  type LayerFooter,
  LayerKind,
  PHYSICAL_PAGE_BYTES_MAX,
  SectionKind,
} from './layer-format.ts'
import { decodeTimeSamples, type TimeSample } from './time-samples.ts'

export type EntryCallback = (buf: Buffer, start: number, end: number, lsn: Lsn, flags: number) => void

export interface LayerReaderOptions {
  /** Keeps uncompressed blocks for several readers of a thread; without it a reader keeps the one it used last. */
  readonly blockCache?: BlockCache
}

const HIGH = 0x100000000
const EMPTY = Buffer.alloc(0)
let nextReaderId = 1
/** What was read from a file and is copied or decompressed at once. */
let scratch: Buffer = Buffer.allocUnsafeSlow(128 << 10)

export class LayerReader {
  readonly path: string
  readonly footer: LayerFooter
  /** Bytes of memory that the index takes. */
  readonly indexBytes: number
  readonly #fd: number
  readonly #dataEnd: number
  readonly #cache: BlockCache | undefined
  readonly #cacheId = nextReaderId++
  /** Page index and block index, column after column. */
  readonly #index: Uint32Array
  readonly #blocks: Uint32Array
  readonly #pages: number
  readonly #blockCount: number
  #lastBlock = -1
  #lastBlockBytes: Buffer = EMPTY
  #closed = false

  static open(path: string, options: LayerReaderOptions = {}): LayerReader {
    assertLittleEndian()
    let fd: number
    try {
      fd = openSync(path, 'r')
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === 'ENOENT')
        throw corruptError(
          `layer file ${path} is missing: restore it from a copy of the object store, unless another page server has opened the store and replaced it`,
          undefined,
          error,
        )
      throw retryError(`layer file ${path} cannot be opened: ${(error as Error).message}`, error)
    }
    try {
      return new LayerReader(path, fd, options)
    } catch (error) {
      closeSync(fd)
      throw error
    }
  }

  private constructor(path: string, fd: number, options: LayerReaderOptions) {
    this.path = path
    this.#fd = fd
    this.#cache = options.blockCache
    const fileBytes = fstatSync(fd).size
    if (fileBytes < LAYER_HEADER_BYTES + LAYER_FOOTER_BYTES)
      throw corruptLayer(path, fileBytes, 'too short to be a layer file')
    const header = decodeLayerHeader(path, this.#read(0, LAYER_HEADER_BYTES))
    const footerAt = fileBytes - LAYER_FOOTER_BYTES
    const footer = decodeLayerFooter(path, this.#read(footerAt, LAYER_FOOTER_BYTES), fileBytes)
    this.footer = footer
    this.#dataEnd = footerAt
    if (
      header.kind !== footer.kind ||
      header.timeline !== footer.timeline ||
      header.lsnStart !== footer.lsnStart ||
      header.lsnEnd !== footer.lsnEnd ||
      header.generation !== footer.generation
    )
      throw corruptLayer(path, footerAt, 'header and footer do not belong together')
    this.#pages = footer.pages
    this.#blockCount = footer.blocks
    const columns = footer.kind === LayerKind.DELTA ? DELTA_COLUMNS : IMAGE_COLUMNS
    this.#index = this.#words(SectionKind.PAGES, footer.pages * columns)
    this.#blocks = this.#words(SectionKind.BLOCKS, footer.blocks * BLOCK_COLUMNS)
    this.indexBytes = this.#index.byteLength + this.#blocks.byteLength
    if (footer.kind === LayerKind.DELTA) this.#checkDelta()
    else this.#checkImage()
  }

  get isImage(): boolean {
    return this.footer.kind === LayerKind.IMAGE
  }

  /** Number of pages in the layer: handles are below it. */
  get pages(): number {
    return this.#pages
  }

  /** The page's handle, or -1 if the layer has nothing of it. */
  findPage(space: number, page: number): number {
    const at = this.lowerBound(space, page)
    return at < this.#pages && this.#index[at] === space && this.#index[this.#pages + at] === page ? at : -1
  }

  /** The first handle whose page is at or after (space, page); `pages` if there is none. */
  lowerBound(space: number, page: number): number {
    const index = this.#index
    const pages = this.#pages
    let low = 0
    let high = pages
    while (low < high) {
      const middle = (low + high) >>> 1
      const s = index[middle]!
      if (s < space || (s === space && index[pages + middle]! < page)) low = middle + 1
      else high = middle
    }
    return low
  }

  space(handle: number): number {
    return this.#index[handle]!
  }

  page(handle: number): number {
    return this.#index[this.#pages + handle]!
  }

  pageId(handle: number): PageId {
    return { space: this.space(handle), page: this.page(handle) }
  }

  #word(column: number, handle: number): number {
    return this.#index[column * this.#pages + handle]!
  }

  #lsn(column: number, handle: number): Lsn {
    return (this.#word(column + 1, handle) * HIGH + this.#word(column, handle)) as Lsn
  }

  // Delta layers.

  entryCount(handle: number): number {
    return this.#word(DeltaColumn.ENTRIES, handle)
  }

  /** Sum of the lengths of the page's entries. */
  entryBytes(handle: number): number {
    return this.#word(DeltaColumn.BYTES, handle)
  }

  firstLsn(handle: number): Lsn {
    return this.#lsn(DeltaColumn.FIRST_LSN_LOW, handle)
  }

  lastLsn(handle: number): Lsn {
    return this.#lsn(DeltaColumn.LAST_LSN_LOW, handle)
  }

  /** LSN of the page's last entry that begins with INIT_PAGE, which needs nothing older; 0 if there is none. */
  initLsn(handle: number): Lsn {
    return this.#lsn(DeltaColumn.INIT_LSN_LOW, handle)
  }

  /**
   * Calls back for each entry of the page with afterLsn < LSN <= upToLsn, in the order of the log. The bytes are valid
   * until the next call of this reader. With `fromInit`, begins at the last init entry if that lies within the range.
   */
  forEachEntry(
    handle: number,
    afterLsn: number,
    upToLsn: number,
    callback: EntryCallback,
    fromInit = false,
  ): void {
    const cursor = this.cursor(handle, afterLsn, upToLsn, fromInit)
    while (cursor.next()) callback(cursor.buf, cursor.start, cursor.end, cursor.lsn, cursor.flags)
  }

  /** The same, to be driven by the caller. */
  cursor(handle: number, afterLsn: number, upToLsn: number, fromInit = false): EntryCursor {
    return new EntryCursor(this, handle).seek(handle, afterLsn, upToLsn, fromInit)
  }

  /** For EntryCursor: block and offset at which reading the page for (afterLsn, …] may begin. */
  startOf(
    handle: number,
    afterLsn: number,
    upToLsn: number,
    fromInit: boolean,
  ): { block: number; offset: number } {
    const initLsn = this.initLsn(handle)
    let block = this.#word(DeltaColumn.BLOCK, handle)
    let offset = this.#word(DeltaColumn.OFFSET, handle)
    // What lies before the last init entry is at or below its LSN, and void from it on.
    if (initLsn > 0 && (initLsn <= afterLsn || (fromInit && initLsn <= upToLsn))) {
      block = this.#word(DeltaColumn.INIT_BLOCK, handle)
      offset = this.#word(DeltaColumn.INIT_OFFSET, handle)
    }
    // Blocks between the page's first and last hold nothing else, and the last begins with it.
    let low = block + 1
    let high = this.#lastBlockOf(handle)
    while (low <= high) {
      const middle = (low + high) >>> 1
      if (this.#blockLsn(middle) <= afterLsn) {
        block = middle
        offset = 0
        low = middle + 1
      } else high = middle - 1
    }
    return { block, offset }
  }

  #lastBlockOf(handle: number): number {
    if (handle + 1 >= this.#pages) return this.#blockCount - 1
    const next = this.#word(DeltaColumn.BLOCK, handle + 1)
    return this.#word(DeltaColumn.OFFSET, handle + 1) === 0 ? next - 1 : next
  }

  #blockWord(column: number, block: number): number {
    return this.#blocks[column * this.#blockCount + block]!
  }

  #blockLsn(block: number): number {
    return (
      this.#blockWord(BlockColumn.FIRST_LSN_HIGH, block) * HIGH +
      this.#blockWord(BlockColumn.FIRST_LSN_LOW, block)
    )
  }

  #blockOffset(block: number): number {
    return (
      this.#blockWord(BlockColumn.OFFSET_HIGH, block) * HIGH + this.#blockWord(BlockColumn.OFFSET_LOW, block)
    )
  }

  get blockCount(): number {
    return this.#blockCount
  }

  /** The uncompressed bytes of a block. They are shared: not to be changed. */
  readBlock(block: number): Buffer {
    const cache = this.#cache
    if (cache !== undefined)
      return cache.get(this.#cacheId, block) ?? cache.put(this.#cacheId, block, this.#loadBlock(block))
    if (block === this.#lastBlock) return this.#lastBlockBytes
    this.#lastBlockBytes = Buffer.from(this.#loadBlock(block))
    this.#lastBlock = block
    return this.#lastBlockBytes
  }

  /** The result may lie in the scratch memory: it is to be copied before anything else is read. */
  #loadBlock(block: number): Buffer {
    const offset = this.#blockOffset(block)
    const stored = this.#readScratch(offset, this.#blockWord(BlockColumn.STORED_BYTES, block))
    if (crc32c(stored, 0, stored.length) !== this.#blockWord(BlockColumn.CRC, block))
      throw corruptLayer(this.path, offset, `block ${block} does not match its CRC-32C`)
    const encoding = this.#blockWord(BlockColumn.ENCODING, block)
    return this.#unpack(
      encoding,
      stored,
      this.#blockWord(BlockColumn.RAW_BYTES, block),
      offset,
      `block ${block}`,
    )
  }

  /** For EntryCursor: an error about a byte of an uncompressed block. */
  blockError(block: number, offset: number, reason: string): Error {
    return corruptLayer(
      this.path,
      this.#blockOffset(block),
      `block ${block}, uncompressed byte ${offset}: ${reason}`,
    )
  }

  // Image layers.

  /** Physical size of the page in bytes. */
  imageBytes(handle: number): number {
    return this.#word(ImageColumn.SIZE_ENCODING, handle) & 0xffffff
  }

  /** CRC-32C of the page's bytes. */
  imageCrc(handle: number): number {
    return this.#word(ImageColumn.CRC, handle)
  }

  /** FIL_PAGE_LSN of the image; it may exceed the layer's LSN for pages that were imported while they changed. */
  imagePageLsn(handle: number): Lsn {
    return this.#lsn(ImageColumn.PAGE_LSN_LOW, handle)
  }

  /** Copies the page to `dst[offset, …)` and returns its size in bytes. `dst` may be a view of shared memory. */
  readImage(handle: number, dst: Uint8Array, offset = 0): number {
    const size = this.imageBytes(handle)
    if (offset + size > dst.length)
      throw new RangeError(`a page of ${size} bytes does not fit ${dst.length - offset}`)
    const encoding = this.#word(ImageColumn.SIZE_ENCODING, handle) >>> 24
    const what = `page ${this.space(handle)}:${this.page(handle)}`
    const at = this.#imageOffset(handle)
    if (encoding === Encoding.ZERO) {
      dst.fill(0, offset, offset + size)
    } else {
      const stored = this.#readScratch(at, this.#word(ImageColumn.STORED_BYTES, handle))
      dst.set(this.#unpack(encoding, stored, size, at, what), offset)
    }
    if (crc32c(dst, offset, offset + size) !== this.imageCrc(handle))
      throw corruptLayer(this.path, at, `${what} does not match its CRC-32C`)
    return size
  }

  #imageOffset(handle: number): number {
    return this.#word(ImageColumn.OFFSET_HIGH, handle) * HIGH + this.#word(ImageColumn.OFFSET_LOW, handle)
  }

  // Both.

  catalogueEvents(): CatalogueEvent[] {
    return this.#decodeSection(SectionKind.CATALOGUE, decodeCatalogueEvents)
  }

  timeSamples(): TimeSample[] {
    return this.#decodeSection(SectionKind.TIMES, decodeTimeSamples)
  }

  close(): void {
    if (this.#closed) return
    this.#closed = true
    this.#lastBlock = -1
    this.#lastBlockBytes = EMPTY
    closeSync(this.#fd)
  }

  #decodeSection<T>(kind: SectionKind, decode: (bytes: Buffer) => T[]): T[] {
    const raw = this.#section(kind)
    if (raw.length === 0) return []
    try {
      return decode(raw)
    } catch (error) {
      throw corruptLayer(this.path, this.footer.sections[kind]!.offset, (error as Error).message, error)
    }
  }

  #section(kind: SectionKind): Buffer {
    const section = this.footer.sections[kind]!
    if (section.rawBytes === 0) return EMPTY
    const stored = this.#read(section.offset, section.storedBytes)
    if (crc32c(stored, 0, stored.length) !== section.crc)
      throw corruptLayer(this.path, section.offset, `section ${kind} does not match its CRC-32C`)
    return this.#unpack(section.encoding, stored, section.rawBytes, section.offset, `section ${kind}`)
  }

  #words(kind: SectionKind, words: number): Uint32Array {
    const section = this.footer.sections[kind]!
    if (section.rawBytes !== words * 4)
      throw corruptLayer(
        this.path,
        section.offset,
        `section ${kind} has ${section.rawBytes} bytes where the footer's counts make ${words * 4}`,
      )
    if (words === 0) return new Uint32Array(0)
    const raw = this.#section(kind)
    if (raw.byteOffset % 4 === 0) return new Uint32Array(raw.buffer, raw.byteOffset, words)
    return new Uint32Array(Uint8Array.from(raw).buffer, 0, words)
  }

  #unpack(encoding: number, stored: Buffer, rawBytes: number, at: number, what: string): Buffer {
    if (encoding === Encoding.RAW) return stored
    try {
      return zstdDecompress(stored, rawBytes)
    } catch (error) {
      throw corruptLayer(this.path, at, `${what} cannot be decompressed: ${(error as Error).message}`, error)
    }
  }

  #read(offset: number, length: number): Buffer {
    return this.#readInto(Buffer.allocUnsafeSlow(length), offset, length)
  }

  /** Into memory that all readers of a thread share. */
  #readScratch(offset: number, length: number): Buffer {
    if (scratch.length < length) scratch = Buffer.allocUnsafeSlow(length)
    return this.#readInto(scratch, offset, length).subarray(0, length)
  }

  #readInto(buf: Buffer, offset: number, length: number): Buffer {
    let got = 0
    while (got < length) {
      let n: number
      try {
        n = readSync(this.#fd, buf, got, length - got, offset + got)
      } catch (error) {
        throw retryError(
          `reading ${this.path} at byte ${offset + got} failed: ${(error as Error).message}`,
          error,
        )
      }
      if (n === 0) throw corruptLayer(this.path, offset + got, 'the file ends here')
      got += n
    }
    return buf
  }

  #indexError(handle: number, reason: string): Error {
    const at = this.footer.sections[SectionKind.PAGES]!.offset
    return corruptLayer(this.path, at, `row ${handle} of the page index: ${reason}`)
  }

  #checkOrder(handle: number): void {
    if (handle === 0) return
    const before = this.space(handle - 1)
    const space = this.space(handle)
    if (before > space || (before === space && this.page(handle - 1) >= this.page(handle)))
      throw this.#indexError(handle, 'pages are not in order')
  }

  #checkDelta(): void {
    const { lsnStart, lsnEnd } = this.footer
    let end = LAYER_HEADER_BYTES
    for (let block = 0; block < this.#blockCount; block++) {
      const stored = this.#blockWord(BlockColumn.STORED_BYTES, block)
      const raw = this.#blockWord(BlockColumn.RAW_BYTES, block)
      const encoding = this.#blockWord(BlockColumn.ENCODING, block)
      const lsn = this.#blockLsn(block)
      const sized = encoding === Encoding.RAW ? stored === raw : encoding === Encoding.ZSTD && stored > 0
      if (
        !sized ||
        raw <= FRAGMENT_HEADER_BYTES ||
        raw > BLOCK_RAW_BYTES_MAX ||
        stored > BLOCK_RAW_BYTES_MAX ||
        this.#blockOffset(block) !== end ||
        end + stored > this.#dataEnd ||
        lsn <= lsnStart ||
        lsn > lsnEnd
      )
        throw corruptLayer(
          this.path,
          this.footer.sections[SectionKind.BLOCKS]!.offset,
          `row ${block} of the block index is impossible`,
        )
      end += stored
    }
    for (let handle = 0; handle < this.#pages; handle++) {
      this.#checkOrder(handle)
      const first = this.firstLsn(handle)
      const last = this.lastLsn(handle)
      const init = this.initLsn(handle)
      if (first <= lsnStart || last < first || last > lsnEnd || (init !== 0 && (init < first || init > last)))
        throw this.#indexError(handle, `LSNs ${first}, ${last}, ${init} in a layer of ${lsnStart}..${lsnEnd}`)
      const block = this.#word(DeltaColumn.BLOCK, handle)
      const offset = this.#word(DeltaColumn.OFFSET, handle)
      if (!this.#isFragmentPlace(block, offset) || this.entryCount(handle) === 0)
        throw this.#indexError(handle, `block ${block}, offset ${offset} is not in the file`)
      if (handle > 0) {
        const before = this.#word(DeltaColumn.BLOCK, handle - 1)
        if (before > block || (before === block && this.#word(DeltaColumn.OFFSET, handle - 1) >= offset))
          throw this.#indexError(handle, 'its entries do not come after those of the page before')
      }
      if (init > 0) {
        const initBlock = this.#word(DeltaColumn.INIT_BLOCK, handle)
        const initOffset = this.#word(DeltaColumn.INIT_OFFSET, handle)
        if (
          !this.#isFragmentPlace(initBlock, initOffset) ||
          initBlock < block ||
          (initBlock === block && initOffset < offset)
        )
          throw this.#indexError(handle, 'its init entry lies outside its entries')
      }
    }
  }

  #isFragmentPlace(block: number, offset: number): boolean {
    return (
      block < this.#blockCount &&
      offset + FRAGMENT_HEADER_BYTES < this.#blockWord(BlockColumn.RAW_BYTES, block)
    )
  }

  #checkImage(): void {
    for (let handle = 0; handle < this.#pages; handle++) {
      this.#checkOrder(handle)
      const size = this.imageBytes(handle)
      const encoding = this.#word(ImageColumn.SIZE_ENCODING, handle) >>> 24
      const stored = this.#word(ImageColumn.STORED_BYTES, handle)
      const offset = this.#imageOffset(handle)
      const sized =
        encoding === Encoding.ZERO
          ? stored === 0
          : encoding === Encoding.RAW
            ? stored === size
            : encoding === Encoding.ZSTD && stored > 0 && stored < size
      if (
        !sized ||
        size === 0 ||
        size > PHYSICAL_PAGE_BYTES_MAX ||
        offset < LAYER_HEADER_BYTES ||
        offset + stored > this.#dataEnd ||
        this.#word(ImageColumn.PAGE_LSN_HIGH, handle) > 0x1fffff
      )
        throw this.#indexError(handle, 'size, place or LSN of the page is impossible')
    }
  }
}
