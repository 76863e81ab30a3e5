/**
 * What one range of redo has for each page, as it lies in an arena, and the chains that join the runs of a page.
 *
 * A *range* is one or more adjacent chunks that a worker indexed together; a *run* is what a range has for one page: its
 * entries (parser/chunk-index.ts), copied out of the redo and put one behind the other, oldest first, each as
 *
 *     varint LSN's distance from the entry before (the run's first: from the range's begin)
 *     varint length << 2 | flags, and the bytes as they stand in the log
 *
 * which is also how a delta layer has them. So the redo itself can go as soon as its range is linked, a reader finds all of
 * a run in one place, and writing a run to a layer is one copy. The copying is done where it is cheap: by the worker
 * that has just parsed the range and has it in its cache. From the word H (arena.ts) on, in 32-bit units:
 *
 *     0  LSN at which the range begins, low    3  pages P
 *     1  the same, high                        4..7  reserved
 *     2  bytes of redo in the range
 *     8  P rows of ten units, ordered by (space, page):
 *        0  the page's previous run           5  bytes of its entries; the highest bit: HAS_INIT
 *        1  H                                  6  number of entries
 *        2  space    3  page                   7  LSN of the first, from the range's begin
 *        4  first byte of its entries, from H  8  LSN of the last    9  bytes without the varints
 *     then the entries, and 8 bytes of nothing
 *
 * A run is named by the word of its row. So one 32-bit number leads to a run, and from there to every older run of the
 * page in the same memtable. The worker fills in everything but the previous run, which the main thread does when it links
 * the range, in LSN order.
 */
import {
  CHUNK_INDEX_HEADER_WORDS,
  CHUNK_INDEX_WORDS_PER_PAGE,
  EntryFlag,
  PageFlag,
} from '../../parser/chunk-index.ts'
import type { Lsn } from '../../protocol/ids.ts'
import { ARENA_SLACK_BYTES, type ArenaMemory, NO_WORD } from './arena.ts'

const HEADER_UNITS = 8
const H_LSN_LOW = 0
const H_LSN_HIGH = 1
const H_BYTES = 2
const H_PAGES = 3

const ROW_UNITS = 10
const R_PREVIOUS = 0
const R_HEADER = 1
const R_SPACE = 2
const R_PAGE = 3
const R_AT = 4
const R_BYTES = 5
const R_ENTRIES = 6
const R_FIRST_LSN = 7
const R_LAST_LSN = 8
const R_PAYLOAD = 9

const HAS_INIT = 0x80000000
/** Above, one call into native code copies faster than a loop. */
const COPY_LOOP_BYTES_MAX = 256

const TWO_32 = 4294967296

function varintBytes(value: number): number {
  return value < 1 << 7 ? 1 : value < 1 << 14 ? 2 : value < 1 << 21 ? 3 : value < 1 << 28 ? 4 : 5
}

/** Puts ranges into arenas: first `measure`, which tells how much room it takes, then `place`. One for each thread. */
export class RangeWriter {
  readonly #memory: ArenaMemory
  readonly #native: Buffer
  /** Of each page's entries. */
  #pageBytes = new Uint32Array(1024)

  constructor(memory: ArenaMemory) {
    this.#memory = memory
    this.#native = Buffer.from(memory.geometry.buffer)
  }

  /** Bytes of arena that the range with this chunk index takes. */
  measure(index: Uint32Array): number {
    const pages = index[0]!
    const entries = index[1]!
    const counts = CHUNK_INDEX_HEADER_WORDS + 3 * pages
    const lengths = CHUNK_INDEX_HEADER_WORDS + CHUNK_INDEX_WORDS_PER_PAGE * pages + entries
    const lsns = lengths + entries
    if (this.#pageBytes.length < pages) this.#pageBytes = new Uint32Array(2 * pages)
    const pageBytes = this.#pageBytes
    let total = 0
    for (let p = 0, e = 0; p < pages; p++) {
      let bytes = 0
      let previous = 0
      for (const end = e + index[counts + p]!; e < end; e++) {
        const length = index[lengths + e]!
        const lsn = index[lsns + e]!
        bytes += varintBytes(lsn - previous) + varintBytes(length << 2) + length
        previous = lsn
      }
      pageBytes[p] = bytes
      total += bytes
    }
    return (HEADER_UNITS + ROW_UNITS * pages) * 4 + ((total + 7) & ~7) + ARENA_SLACK_BYTES
  }

  /**
   * Puts the range that was measured last at byte offset `at`, a multiple of 8, and returns its word H. Its redo begins
   * at LSN `begin`; entry offsets in `index` count from byte `base` of the arena memory.
   */
  place(at: number, begin: Lsn, redoBytes: number, base: number, index: Uint32Array): number {
    const { u32 } = this.#memory.region
    const pages = index[0]!
    const entries = index[1]!
    const header = at / 8
    const unit = at / 4
    u32[unit + H_LSN_LOW] = begin % TWO_32
    u32[unit + H_LSN_HIGH] = Math.floor(begin / TWO_32)
    u32[unit + H_BYTES] = redoBytes
    u32[unit + H_PAGES] = pages
    u32.fill(0, unit + 4, unit + HEADER_UNITS)
    const columns = CHUNK_INDEX_HEADER_WORDS
    const lengths = columns + CHUNK_INDEX_WORDS_PER_PAGE * pages + entries
    let row = unit + HEADER_UNITS
    let to = (HEADER_UNITS + ROW_UNITS * pages) * 4
    for (let p = 0; p < pages; p++) {
      const first = index[columns + 2 * pages + p]!
      const count = index[columns + 3 * pages + p]!
      const hasInit = (index[columns + 6 * pages + p]! & PageFlag.HAS_INIT) !== 0
      const bytes = this.#pageBytes[p]!
      u32[row + R_PREVIOUS] = NO_WORD
      u32[row + R_HEADER] = header
      u32[row + R_SPACE] = index[columns + p]!
      u32[row + R_PAGE] = index[columns + pages + p]!
      u32[row + R_AT] = to
      u32[row + R_BYTES] = hasInit ? (bytes | HAS_INIT) >>> 0 : bytes
      u32[row + R_ENTRIES] = count
      u32[row + R_FIRST_LSN] = index[columns + 4 * pages + p]!
      u32[row + R_LAST_LSN] = index[columns + 5 * pages + p]!
      u32[row + R_PAYLOAD] = this.#copyEntries(
        at + to,
        base,
        index,
        lengths - entries + first,
        entries,
        count,
      )
      row += ROW_UNITS
      to += bytes
    }
    return header
  }

  /** Entries of one page: `entry` is the place of the first one's offset, the other columns follow. Returns their bytes. */
  #copyEntries(
    at: number,
    base: number,
    index: Uint32Array,
    entry: number,
    stride: number,
    count: number,
  ): number {
    const { region, view } = this.#memory
    const { bytes } = region
    let to = at
    let previous = 0
    let payload = 0
    for (let offsetAt = entry; offsetAt < entry + count; offsetAt++) {
      const lengthAt = offsetAt + stride
      const lsnAt = lengthAt + stride
      const length = index[lengthAt]!
      const lsn = index[lsnAt]!
      let v = lsn - previous
      previous = lsn
      while (v >= 128) {
        bytes[to++] = (v & 0x7f) | 0x80
        v >>>= 7
      }
      bytes[to++] = v
      v = (length << 2) | index[lsnAt + stride]!
      while (v >= 128) {
        bytes[to++] = (v & 0x7f) | 0x80
        v >>>= 7
      }
      bytes[to++] = v
      const from = base + index[offsetAt]!
      if (length <= COPY_LOOP_BYTES_MAX) {
        // Four bytes at a time, the last ones with some too many: what comes next is put over them.
        for (let i = 0; i < length; i += 4) view.setInt32(to + i, view.getInt32(from + i, true), true)
      } else {
        this.#native.copy(this.#native, to, from, from + length)
      }
      to += length
      payload += length
    }
    return payload
  }
}

/** Reads the range at a word H: for the main thread, which links it. */
export class RangeView {
  readonly begin: Lsn
  readonly pages: number
  readonly #u32: Uint32Array
  readonly #rows: number

  constructor(memory: ArenaMemory, header: number) {
    const u32 = memory.region.u32
    const unit = header * 2
    this.#u32 = u32
    this.begin = (u32[unit + H_LSN_HIGH]! * TWO_32 + u32[unit + H_LSN_LOW]!) as Lsn
    this.pages = u32[unit + H_PAGES]!
    this.#rows = unit + HEADER_UNITS
  }

  space(ordinal: number): number {
    return this.#u32[this.#rows + ROW_UNITS * ordinal + R_SPACE]!
  }

  page(ordinal: number): number {
    return this.#u32[this.#rows + ROW_UNITS * ordinal + R_PAGE]!
  }

  /** LSN of the first change of the page in this range. */
  firstLsn(ordinal: number): Lsn {
    return (this.begin + this.#u32[this.#rows + ROW_UNITS * ordinal + R_FIRST_LSN]!) as Lsn
  }

  /** The word that names the run of the page. */
  run(ordinal: number): number {
    return (this.#rows + ROW_UNITS * ordinal) >>> 1
  }

  setPrevious(run: number, previous: number): void {
    this.#u32[run * 2 + R_PREVIOUS] = previous
  }
}

/**
 * Walks the runs of one page, newest first, and the entries of a run, oldest first:
 *
 *     for (let run = newest; run !== NO_WORD; run = cursor.previous(run)) {
 *       cursor.open(run)
 *       while (cursor.next()) …
 *     }
 *
 * One cursor serves any number of pages.
 */
export class RunCursor {
  /** Of the run at hand. */
  entryCount = 0
  firstLsn = 0 as Lsn
  lastLsn = 0 as Lsn
  /** Whether any of its entries begins with INIT_PAGE or FREE_PAGE. */
  hasInit = false
  /** Its entries as they are stored: bytes [runStart, runEnd) of the arena memory, the first LSN counted from `begin`. */
  begin = 0 as Lsn
  runStart = 0
  runEnd = 0
  /** Bytes of its entries without the varints. */
  payloadBytes = 0

  /** Of the entry at hand: its bytes are [start, end) of the arena memory. */
  start = 0
  end = 0
  lsn = 0 as Lsn
  flags = 0

  readonly #u32: Uint32Array
  readonly #bytes: Uint8Array

  constructor(memory: ArenaMemory) {
    this.#u32 = memory.region.u32
    this.#bytes = memory.region.bytes
  }

  /** The run before `run` of the same page, or NO_WORD. */
  previous(run: number): number {
    return this.#u32[run * 2 + R_PREVIOUS]!
  }

  open(run: number): void {
    const u32 = this.#u32
    const row = run * 2
    const header = u32[row + R_HEADER]!
    const begin = u32[header * 2 + H_LSN_HIGH]! * TWO_32 + u32[header * 2 + H_LSN_LOW]!
    const bytes = u32[row + R_BYTES]!
    this.entryCount = u32[row + R_ENTRIES]!
    this.begin = begin as Lsn
    this.firstLsn = (begin + u32[row + R_FIRST_LSN]!) as Lsn
    this.lastLsn = (begin + u32[row + R_LAST_LSN]!) as Lsn
    this.hasInit = bytes >= HAS_INIT
    this.payloadBytes = u32[row + R_PAYLOAD]!
    this.runStart = header * 8 + u32[row + R_AT]!
    this.runEnd = this.runStart + (bytes & ~HAS_INIT)
    this.end = this.runStart
    this.lsn = this.begin
  }

  /** Moves to the run's next entry; false behind the last. */
  next(): boolean {
    const bytes = this.#bytes
    let at = this.end
    if (at >= this.runEnd) return false
    let byte = bytes[at++]!
    let step = byte & 0x7f
    for (let shift = 7; byte >= 128; shift += 7) {
      byte = bytes[at++]!
      step |= (byte & 0x7f) << shift
    }
    byte = bytes[at++]!
    let word = byte & 0x7f
    for (let shift = 7; byte >= 128; shift += 7) {
      byte = bytes[at++]!
      word |= (byte & 0x7f) << shift
    }
    this.lsn = (this.lsn + step) as Lsn
    this.flags = word & 3
    this.start = at
    this.end = at + (word >>> 2)
    return true
  }

  /** LSN of the run's newest entry, not above `lsn`, that begins with INIT_PAGE; 0 without. Ends the walk. */
  newestInit(lsn: Lsn): Lsn {
    let found = 0 as Lsn
    if (this.hasInit)
      while (this.next() && this.lsn <= lsn) if ((this.flags & EntryFlag.INIT_PAGE) !== 0) found = this.lsn
    return found
  }
}
