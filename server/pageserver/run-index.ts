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
 *     then the entries
 *
 * A run is named by the word of its row. So one 32-bit number leads to a run, and from there to every older run of the
 * page in the same memtable. The worker fills in everything but the previous run, which the main thread does when it links
 * the range, in LSN order.
 */
import type { ChunkIndexer } from '../../parser/chunk-index.ts'
import { ENTRY_WORDS, EntryFlag, EntryWord } from '../../parser/entry-table.ts'
import { PAGE_WORDS, PageWord } from '../../parser/page-table.ts'
import type { Lsn } from '../../protocol/ids.ts'
import { type ArenaMemory, NO_WORD } from './arena.ts'

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

/** What two words of a page's row (parser/page-table.ts) are used for while entries are copied. */
const NEXT_AT = PageWord.BYTES
const PREVIOUS_LSN = PageWord.LAST_LSN

/** Puts ranges into arenas: `rangeBytes` tells how much room one takes, then comes `place`. One for each thread. */
export class RangeWriter {
  readonly #memory: ArenaMemory
  readonly #native: Buffer

  constructor(memory: ArenaMemory) {
    this.#memory = memory
    this.#native = Buffer.from(memory.geometry.buffer)
  }

  /** Bytes of arena that the chunk takes that `index` has indexed last. */
  rangeBytes(index: ChunkIndexer): number {
    const { count, words } = index.pages
    let bytes = 0
    for (let at = PageWord.BYTES, end = PAGE_WORDS * count; at < end; at += PAGE_WORDS) bytes += words[at]!
    return (HEADER_UNITS + ROW_UNITS * count) * 4 + bytes
  }

  /**
   * Puts that chunk at byte offset `at`, a multiple of 8, and returns its word H. Its redo begins at LSN `begin` and lies
   * from byte `redoAt` of the arena memory on. Afterwards the index is of no further use.
   */
  place(at: number, begin: Lsn, redoBytes: number, redoAt: number, index: ChunkIndexer): number {
    const { u32 } = this.#memory.region
    const { pages } = index
    const { words } = pages
    const order = pages.sorted()
    const header = at / 8
    const unit = at / 4
    u32[unit + H_LSN_LOW] = begin % TWO_32
    u32[unit + H_LSN_HIGH] = Math.floor(begin / TWO_32)
    u32[unit + H_BYTES] = redoBytes
    u32[unit + H_PAGES] = pages.count
    u32.fill(0, unit + 4, unit + HEADER_UNITS)
    let row = unit + HEADER_UNITS
    let to = (HEADER_UNITS + ROW_UNITS * pages.count) * 4
    for (let p = 0; p < pages.count; p++) {
      const page = PAGE_WORDS * order[p]!
      const bytes = words[page + PageWord.BYTES]!
      u32[row + R_PREVIOUS] = NO_WORD
      u32[row + R_HEADER] = header
      u32[row + R_SPACE] = words[page + PageWord.SPACE]!
      u32[row + R_PAGE] = words[page + PageWord.PAGE]!
      u32[row + R_AT] = to
      u32[row + R_BYTES] = words[page + PageWord.FLAGS] === 0 ? bytes : (bytes | HAS_INIT) >>> 0
      u32[row + R_ENTRIES] = words[page + PageWord.ENTRIES]!
      u32[row + R_FIRST_LSN] = words[page + PageWord.FIRST_LSN]!
      u32[row + R_LAST_LSN] = words[page + PageWord.LAST_LSN]!
      u32[row + R_PAYLOAD] = words[page + PageWord.PAYLOAD]!
      // From here on the page's row says where its next entry goes, and where its LSN counts from.
      words[page + NEXT_AT] = to
      words[page + PREVIOUS_LSN] = 0
      row += ROW_UNITS
      to += bytes
    }
    this.#copyEntries(at, redoAt, index)
    return header
  }

  /** Copies each entry to its page's place, in the order of the log, which the processor likes better than that of the pages. */
  #copyEntries(rangeAt: number, redoAt: number, index: ChunkIndexer): void {
    const { region, view } = this.#memory
    const { bytes } = region
    const pages = index.pages.words
    const { words } = index.entries
    for (let e = 0, end = ENTRY_WORDS * index.entries.count; e < end; e += ENTRY_WORDS) {
      const page = PAGE_WORDS * words[e + EntryWord.PAGE_ROW]!
      const lsn = words[e + EntryWord.LSN]!
      const lengthFlags = words[e + EntryWord.LENGTH_FLAGS]!
      const length = lengthFlags >>> 2
      const from = redoAt + words[e + EntryWord.START]!
      let to = rangeAt + pages[page + NEXT_AT]!
      let v = lsn - pages[page + PREVIOUS_LSN]!
      pages[page + PREVIOUS_LSN] = lsn
      while (v >= 128) {
        bytes[to++] = (v & 0x7f) | 0x80
        v >>>= 7
      }
      bytes[to++] = v
      v = lengthFlags
      while (v >= 128) {
        bytes[to++] = (v & 0x7f) | 0x80
        v >>>= 7
      }
      bytes[to++] = v
      if (length > COPY_LOOP_BYTES_MAX) this.#native.copy(this.#native, to, from, from + length)
      else if (length >= 8) {
        // Eight bytes at a time (numbers of the machine's words to the compiler), the last ones once more with some before.
        const last = length - 8
        for (let i = 0; i < last; i += 8) view.setBigInt64(to + i, view.getBigInt64(from + i, true), true)
        view.setBigInt64(to + last, view.getBigInt64(from + last, true), true)
      } else for (let i = 0; i < length; i++) bytes[to + i] = bytes[from + i]!
      pages[page + NEXT_AT] = to + length - rangeAt
    }
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
