/**
 * Writes delta layers: all redo entries of an LSN range, by page and then by LSN.
 *
 * Entries go into a staging block of 64 KiB. When it is full it is compressed and written, so that memory stays at a
 * block, an output buffer and the index that is being made (56 bytes a page). Where nothing is compressed, blocks gather
 * to a mebibyte instead: the system then makes larger pieces of its cache and spends a fourth less on them. Within a block, consecutive entries of one
 * page form a *fragment*:
 *
 *     u32 space  u32 page  u32 entries  u32 bytes | MORE   then per entry:
 *     varint LSN's distance from the entry before (the fragment's first: from lsnStart)
 *     varint length << 2 | flags, and the bytes as they stand in the log
 *
 * A fragment ends with its block, and before each entry that begins with INIT_PAGE, so that the index can point readers
 * at the last such entry.
 */
import { crc32c } from '../../protocol/crc32c.ts'
import { internalError } from '../shared/errors.ts'
import { zstdCompress } from '../shared/zstd.ts'
import {
  type LayerExtras,
  LayerFileWriter,
  type LayerSummary,
  type LayerWriterOptions,
} from './layer-file-writer.ts'
import {
  BLOCK_COLUMNS,
  BLOCK_RAW_BYTES_MAX,
  BlockColumn,
  DELTA_COLUMNS,
  DeltaColumn,
  ENTRY_BYTES_MAX,
  ENTRY_FLAG_INIT,
  ENTRY_FLAGS_MASK,
  Encoding,
  FRAGMENT_HEADER_BYTES,
  FRAGMENT_MORE,
  LayerKind,
  SectionKind,
} from './layer-format.ts'
import { getVarint, putVarint, VARINT_BYTES_MAX } from './varint.ts'
import { WordTable } from './word-table.ts'

/** Uncompressed size at which a block is closed: large enough for zstd, small enough to be read for one page. */
export const DELTA_BLOCK_BYTES = 65536
/** What is written at once where blocks are stored as they are. */
const GATHER_BYTES = 1 << 20
/** Up to here copying byte by byte beats the call into native code, … */
const COPY_LOOP_BYTES_MAX = 24
/** … and up to here copying eight bytes at a time. */
const COPY_WORDS_BYTES_MAX = 256
const ENTRY_HEADER_BYTES_MAX = VARINT_BYTES_MAX + 5

export interface DeltaLayerOptions extends LayerWriterOptions {
  readonly blockBytes?: number
}

/** Entries of one page, oldest first, in the encoding of a fragment: bytes [runStart, runEnd) of a buffer. */
export interface EncodedEntries {
  /** From where the distance of the first one's LSN counts. */
  readonly begin: number
  readonly firstLsn: number
  readonly lastLsn: number
  readonly entryCount: number
  readonly runStart: number
  readonly runEnd: number
  /** Bytes of the entries themselves. */
  readonly payloadBytes: number
}

export class DeltaLayerWriter {
  readonly #file: LayerFileWriter
  readonly #lsnStart: number
  readonly #lsnEnd: number
  readonly #blockBytes: number
  readonly #pages = new WordTable(DELTA_COLUMNS)
  readonly #blocks = new WordTable(BLOCK_COLUMNS)

  #stage: Buffer
  #stageView: DataView
  /** Where the open block begins in the stage; before it lie blocks that are to be written as they are. */
  #blockStart = 0
  /** Where the next byte goes. */
  #fill = 0
  /** View of what `addEntries` copied from last. */
  #source: Buffer | undefined
  #sourceView: DataView = new DataView(new ArrayBuffer(0))
  #blockFirstLsn = 0
  /** Where the open fragment's header lies in the stage, or -1. */
  #fragment = -1
  #fragmentEntries = 0
  #previousLsn = 0

  #space = -1
  #page = -1
  #pageBegun = false
  #pageEntries = 0
  #pageBytes = 0
  #pageBlock = 0
  #pageOffset = 0
  #firstLsn = 0
  #lastLsn = 0
  #initLsn = 0
  #initBlock = 0
  #initOffset = 0

  #entries = 0
  #rawBytes = 0

  /** Creates the file at `path`, which must not exist yet. */
  constructor(path: string, options: DeltaLayerOptions) {
    const { blockBytes = DELTA_BLOCK_BYTES, zstdLevel, timeline, generation, lsnStart, lsnEnd } = options
    if (blockBytes < 1024 || blockBytes > BLOCK_RAW_BYTES_MAX / 4)
      throw new RangeError(`block size ${blockBytes}`)
    if (lsnEnd < lsnStart) throw new RangeError(`LSN range ${lsnStart}..${lsnEnd}`)
    this.#file = new LayerFileWriter(
      path,
      { kind: LayerKind.DELTA, timeline, generation, lsnStart, lsnEnd },
      zstdLevel,
    )
    this.#lsnStart = lsnStart
    this.#lsnEnd = lsnEnd
    this.#blockBytes = blockBytes
    this.#stage = Buffer.allocUnsafeSlow(blockBytes + 4096 + (this.#file.zstdLevel === 0 ? GATHER_BYTES : 0))
    this.#stageView = new DataView(this.#stage.buffer, this.#stage.byteOffset, this.#stage.length)
  }

  get path(): string {
    return this.#file.path
  }

  /** About the size of the file if it were finished now, but for the index of pages. */
  get bytesWritten(): number {
    return this.#file.position + this.#blockStart + ((this.#fill - this.#blockStart) >>> 1)
  }

  get pages(): number {
    return this.#pages.rows + (this.#pageBegun ? 1 : 0)
  }

  get entries(): number {
    return this.#entries
  }

  /** Pages come in ascending order of (space, page), each once. A page without entries leaves no trace. */
  beginPage(space: number, page: number): void {
    if (space < this.#space || (space === this.#space && page <= this.#page))
      throw internalError(`${this.path}: page ${space}:${page} after ${this.#space}:${this.#page}`)
    this.#endPage()
    this.#space = space
    this.#page = page
    this.#initLsn = 0
    this.#pageEntries = 0
    this.#pageBytes = 0
    this.#lastLsn = this.#lsnStart
    // A page that begins near the end of a block would mostly be read with two.
    if (this.#blockFill > this.#blockBytes - (this.#blockBytes >>> 3)) this.#flushBlock()
  }

  /**
   * Adds `buf[offset, offset + length)` to the page begun last. LSNs ascend within a page; several entries may share
   * one. `flags` are those of parser/chunk-index.ts (1 begins with INIT_PAGE, 2 with FREE_PAGE). The bytes are copied.
   * `buf` should be a Buffer: long entries are then copied without making a view first.
   */
  addEntry(lsn: number, flags: number, buf: Buffer, offset: number, length: number): void {
    if (
      lsn < this.#lastLsn ||
      lsn <= this.#lsnStart ||
      lsn > this.#lsnEnd ||
      length > ENTRY_BYTES_MAX ||
      length <= 0
    )
      this.#refuse(lsn, length)
    if (this.#blockFill + length + FRAGMENT_HEADER_BYTES + ENTRY_HEADER_BYTES_MAX > this.#blockBytes)
      this.#makeRoom(length)
    let at = this.#fill
    const init = (flags & ENTRY_FLAG_INIT) !== 0
    if (this.#fragment < 0 || init) at = this.#beginFragment(lsn, init)
    const stage = this.#stage

    at = putVarint(stage, at, lsn - this.#previousLsn)
    at = putVarint(stage, at, (length << 2) | (flags & ENTRY_FLAGS_MASK))
    if (length <= COPY_LOOP_BYTES_MAX) {
      for (let i = offset, end = offset + length; i < end; i++) stage[at++] = buf[i]!
      this.#fill = at
    } else {
      buf.copy(stage, at, offset, offset + length)
      this.#fill = at + length
    }
    this.#previousLsn = lsn
    this.#lastLsn = lsn
    this.#fragmentEntries++
    this.#pageEntries++
    this.#pageBytes += length
  }

  /**
   * Adds a run of entries that are encoded already, as a fragment has them, but for the LSN of the first one. None of them
   * may begin with INIT_PAGE. The bytes are copied.
   */
  addEntries(buf: Buffer, run: EncodedEntries): void {
    const { firstLsn, lastLsn, runEnd } = run
    if (
      firstLsn < this.#lastLsn ||
      firstLsn <= this.#lsnStart ||
      lastLsn > this.#lsnEnd ||
      lastLsn < firstLsn
    )
      this.#refuse(firstLsn, runEnd - run.runStart)
    // The next entry, the LSN of the one before it, and how many there are.
    let at = run.runStart
    let lsn: number = run.begin
    let left = run.entryCount
    while (left > 0) {
      // A fragment's first distance is its own; from the entry's length on, everything is as in the run.
      let word = getVarint(buf, at)
      const first = lsn + word.value
      const begin = word.end
      const rest = runEnd - begin
      const room = this.#blockBytes - this.#blockFill - FRAGMENT_HEADER_BYTES - VARINT_BYTES_MAX
      if (rest <= room) {
        this.#appendEncoded(first, lastLsn, buf, begin, runEnd, left)
        break
      }
      if (this.#blockFill > 0 && rest <= this.#blockBytes >>> 3) {
        this.#flushBlock()
        continue
      }
      // As many as the block still takes.
      let count = 0
      let last = first
      let end = begin
      for (let next = first, from = begin; ; ) {
        word = getVarint(buf, from)
        const stop = word.end + Math.floor(word.value / 4)
        if (stop - begin > room) {
          // Longer than a block: it gets one of its own.
          if (count > 0 || this.#blockFill > 0) break
          this.#makeRoom(stop - begin)
        }
        count++
        last = next
        end = stop
        if (count === left || stop - begin > room) break
        word = getVarint(buf, stop)
        next += word.value
        from = word.end
      }
      if (count === 0) {
        this.#flushBlock()
        continue
      }
      this.#appendEncoded(first, last, buf, begin, end, count)
      at = end
      lsn = last
      left -= count
    }
    this.#pageBytes += run.payloadBytes
  }

  #appendEncoded(first: number, last: number, buf: Buffer, begin: number, end: number, count: number): void {
    let at = this.#fill
    if (this.#fragment < 0) at = this.#beginFragment(first, false)
    at = putVarint(this.#stage, at, first - this.#previousLsn)
    const length = end - begin
    if (length > COPY_WORDS_BYTES_MAX || length < 8) buf.copy(this.#stage, at, begin, end)
    else {
      if (buf !== this.#source) {
        this.#source = buf
        this.#sourceView = new DataView(buf.buffer, buf.byteOffset, buf.length)
      }
      const from = this.#sourceView
      const to = this.#stageView
      const rest = length - 8
      // The last eight once more with some before.
      for (let i = 0; i < rest; i += 8) to.setBigInt64(at + i, from.getBigInt64(begin + i, true), true)
      to.setBigInt64(at + rest, from.getBigInt64(begin + rest, true), true)
    }
    this.#fill = at + length
    this.#previousLsn = last
    this.#lastLsn = last
    this.#fragmentEntries += count
    this.#pageEntries += count
  }

  #refuse(lsn: number, length: number): never {
    throw internalError(
      `${this.path}: entry of ${length} bytes at LSN ${lsn} for page ${this.#space}:${this.#page}` +
        ` after LSN ${this.#lastLsn}, in a layer of ${this.#lsnStart}..${this.#lsnEnd}`,
    )
  }

  /** The entry does not fit what is left: closes the block, and makes the stage larger for a very long entry. */
  #makeRoom(length: number): void {
    if (this.#blockFill > 0) this.#flushBlock()
    const needed = length + FRAGMENT_HEADER_BYTES + ENTRY_HEADER_BYTES_MAX
    if (this.#blockStart + needed <= this.#stage.length) return
    this.#writeGathered()
    if (needed <= this.#stage.length) return
    this.#stage = Buffer.allocUnsafeSlow(needed)
    this.#stageView = new DataView(this.#stage.buffer, this.#stage.byteOffset, this.#stage.length)
  }

  #beginFragment(lsn: number, init: boolean): number {
    if (!this.#pageBegun && this.#space < 0) throw internalError(`${this.path}: addEntry before beginPage`)
    this.#endFragment(true)
    const at = this.#fill
    if (at === this.#blockStart) this.#blockFirstLsn = lsn
    if (this.#pageEntries === 0) {
      this.#pageBegun = true
      this.#pageBlock = this.#blocks.rows
      this.#pageOffset = at - this.#blockStart
      this.#firstLsn = lsn
    }
    if (init) {
      this.#initLsn = lsn
      this.#initBlock = this.#blocks.rows
      this.#initOffset = at - this.#blockStart
    }
    this.#stage.writeUInt32LE(this.#space, at)
    this.#stage.writeUInt32LE(this.#page, at + 4)
    this.#fragment = at
    this.#fragmentEntries = 0
    this.#previousLsn = this.#lsnStart
    this.#fill = at + FRAGMENT_HEADER_BYTES
    return this.#fill
  }

  #endFragment(more: boolean): void {
    const at = this.#fragment
    if (at < 0) return
    const bytes = this.#fill - at - FRAGMENT_HEADER_BYTES
    this.#stage.writeUInt32LE(this.#fragmentEntries, at + 8)
    this.#stage.writeUInt32LE((more ? bytes | FRAGMENT_MORE : bytes) >>> 0, at + 12)
    this.#fragment = -1
  }

  #endPage(): void {
    if (!this.#pageBegun) return
    this.#endFragment(false)
    this.#pageBegun = false
    this.#entries += this.#pageEntries
    this.#rawBytes += this.#pageBytes
    const row = this.#pages.add()
    const words = this.#pages.words
    words[row + DeltaColumn.SPACE] = this.#space
    words[row + DeltaColumn.PAGE] = this.#page
    words[row + DeltaColumn.BLOCK] = this.#pageBlock
    words[row + DeltaColumn.OFFSET] = this.#pageOffset
    words[row + DeltaColumn.ENTRIES] = this.#pageEntries
    words[row + DeltaColumn.BYTES] = Math.min(this.#pageBytes, 0xffffffff)
    this.#pages.set64(row + DeltaColumn.FIRST_LSN_LOW, this.#firstLsn)
    this.#pages.set64(row + DeltaColumn.LAST_LSN_LOW, this.#lastLsn)
    this.#pages.set64(row + DeltaColumn.INIT_LSN_LOW, this.#initLsn)
    words[row + DeltaColumn.INIT_BLOCK] = this.#initLsn > 0 ? this.#initBlock : 0
    words[row + DeltaColumn.INIT_OFFSET] = this.#initLsn > 0 ? this.#initOffset : 0
  }

  get #blockFill(): number {
    return this.#fill - this.#blockStart
  }

  /** Called between entries; the page under way goes on in the next block. */
  #flushBlock(): void {
    if (this.#blockFill === 0) return
    this.#endFragment(true)
    const raw = this.#stage.subarray(this.#blockStart, this.#fill)
    const level = this.#file.zstdLevel
    const packed = level === 0 ? raw : zstdCompress(raw, level)
    const pays = packed.length < raw.length
    const stored = pays ? packed : raw
    const row = this.#blocks.add()
    const words = this.#blocks.words
    this.#blocks.set64(row + BlockColumn.OFFSET_LOW, this.#file.position + this.#blockStart)
    words[row + BlockColumn.STORED_BYTES] = stored.length
    words[row + BlockColumn.RAW_BYTES] = raw.length
    words[row + BlockColumn.ENCODING] = pays ? Encoding.ZSTD : Encoding.RAW
    words[row + BlockColumn.CRC] = crc32c(stored, 0, stored.length)
    this.#blocks.set64(row + BlockColumn.FIRST_LSN_LOW, this.#blockFirstLsn)
    if (level === 0) {
      this.#blockStart = this.#fill
      if (this.#blockStart + this.#blockBytes > this.#stage.length) this.#writeGathered()
    } else {
      this.#file.append(stored, 0, stored.length)
      this.#fill = this.#blockStart
    }
  }

  /** Between blocks: writes those that wait in the stage. */
  #writeGathered(): void {
    if (this.#blockStart === 0) return
    this.#file.append(this.#stage, 0, this.#blockStart)
    this.#blockStart = 0
    this.#fill = 0
  }

  /** Writes the index, syncs and closes the file. The writer is of no further use. */
  finish(extras: LayerExtras = {}): LayerSummary {
    this.#endPage()
    this.#flushBlock()
    this.#writeGathered()
    const pages = this.#pages.rows
    this.#file.addSection(SectionKind.PAGES, this.#pages.columns())
    this.#file.addSection(SectionKind.BLOCKS, this.#blocks.columns())
    const counts = { entries: this.#entries, pages, blocks: this.#blocks.rows, rawBytes: this.#rawBytes }
    const end = this.#file.finish(counts, extras)
    return {
      ...this.#file.identity,
      ...end,
      entries: this.#entries,
      pages,
      rawBytes: this.#rawBytes,
      first: pages === 0 ? undefined : this.#pageAt(0),
      last: pages === 0 ? undefined : this.#pageAt(pages - 1),
    }
  }

  #pageAt(index: number): { space: number; page: number } {
    const row = index * DELTA_COLUMNS
    return { space: this.#pages.words[row]!, page: this.#pages.words[row + 1]! }
  }

  /** Gives the file up and removes it. */
  abort(): void {
    this.#file.abort()
  }
}
