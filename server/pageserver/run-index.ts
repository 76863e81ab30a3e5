/**
 * The index of one range of redo as it lies in an arena, and the chains that join the runs of a page.
 *
 * A *range* is one or more adjacent chunks that a worker indexed together; a *run* is what a range has for one page. From
 * the word H (arena.ts) on, in 32-bit units:
 *
 *     0  LSN at which the range begins, low    4  word of the first link
 *     1  the same, high                        5  pages P
 *     2  word from which entry offsets count   6  entries E
 *     3  bytes of redo in the range            7  reserved
 *     8  the chunk index (parser/chunk-index.ts)
 *     then, from the next multiple of 8 bytes, P links of two units: [the page's previous run, H]
 *
 * A run is named by the word of its link; its place among the P links is its page's ordinal in the chunk index. So one
 * 32-bit number leads to a run, and from there to every older run of the page in the same memtable. The worker that made
 * the index fills in everything but the previous run, which the main thread does when it links the range, in LSN order.
 */
import { CHUNK_INDEX_HEADER_WORDS, CHUNK_INDEX_WORDS_PER_PAGE, NO_ENTRY } from '../../parser/chunk-index.ts'
import type { Lsn } from '../../protocol/ids.ts'
import { type ArenaMemory, NO_WORD } from './arena.ts'

const HEADER_UNITS = 8
const H_LSN_LOW = 0
const H_LSN_HIGH = 1
const H_BASE_WORD = 2
const H_BYTES = 3
const H_LINKS = 4
const H_PAGES = 5
const H_ENTRIES = 6

const TWO_32 = 4294967296

/** Bytes of arena that the index of a range takes. */
export function rangeIndexBytes(indexUnits: number, pages: number): number {
  const units = HEADER_UNITS + indexUnits
  return ((units + 1) & ~1) * 4 + pages * 8
}

/** Puts a finished chunk index with its header and empty links at byte offset `at` and returns its word H. */
export function placeRangeIndex(
  memory: ArenaMemory,
  at: number,
  begin: Lsn,
  baseWord: number,
  bytes: number,
  index: Uint32Array,
  indexUnits: number,
): number {
  const u32 = memory.region.u32
  const header = at / 8
  const unit = at / 4
  const pages = index[0]!
  const links = header + (((HEADER_UNITS + indexUnits + 1) & ~1) >> 1)
  u32[unit + H_LSN_LOW] = begin % TWO_32
  u32[unit + H_LSN_HIGH] = Math.floor(begin / TWO_32)
  u32[unit + H_BASE_WORD] = baseWord
  u32[unit + H_BYTES] = bytes
  u32[unit + H_LINKS] = links
  u32[unit + H_PAGES] = pages
  u32[unit + H_ENTRIES] = index[1]!
  u32[unit + 7] = 0
  u32.set(index.subarray(0, indexUnits), unit + HEADER_UNITS)
  for (let p = 0, to = links * 2; p < pages; p++) {
    u32[to++] = NO_WORD
    u32[to++] = header
  }
  return header
}

/** Reads the range at a word H: for the main thread, which links it. */
export class RangeView {
  readonly begin: Lsn
  readonly pages: number
  readonly entries: number
  readonly #u32: Uint32Array
  readonly #units: number
  readonly #links: number

  constructor(memory: ArenaMemory, header: number) {
    const u32 = memory.region.u32
    const unit = header * 2
    this.#u32 = u32
    this.begin = (u32[unit + H_LSN_HIGH]! * TWO_32 + u32[unit + H_LSN_LOW]!) as Lsn
    this.pages = u32[unit + H_PAGES]!
    this.entries = u32[unit + H_ENTRIES]!
    this.#links = u32[unit + H_LINKS]!
    this.#units = unit + HEADER_UNITS + CHUNK_INDEX_HEADER_WORDS
  }

  space(ordinal: number): number {
    return this.#u32[this.#units + ordinal]!
  }

  page(ordinal: number): number {
    return this.#u32[this.#units + this.pages + ordinal]!
  }

  /** LSN of the first change of the page in this range. */
  firstLsn(ordinal: number): Lsn {
    return (this.begin + this.#u32[this.#units + 4 * this.pages + ordinal]!) as Lsn
  }

  /** The word that names the run of the page. */
  run(ordinal: number): number {
    return this.#links + ordinal
  }

  setPrevious(run: number, previous: number): void {
    this.#u32[run * 2] = previous
  }
}

/** Walks the runs of one page, newest first, and the entries of a run. One cursor serves any number of pages. */
export class RunCursor {
  /** Of the run at hand: entries [firstEntry, firstEntry + entryCount) of its range. */
  run = NO_WORD
  entryCount = 0
  /** LSN of the run's first and last entry. */
  firstLsn = 0 as Lsn
  lastLsn = 0 as Lsn
  /** Ordinal, within the run, of its newest entry that begins with INIT_PAGE or FREE_PAGE; -1 without. */
  lastInit = -1

  readonly #u32: Uint32Array
  #begin = 0
  #baseByte = 0
  #entries = 0
  #firstEntryUnit = 0

  constructor(memory: ArenaMemory) {
    this.#u32 = memory.region.u32
  }

  /** The run before `run` of the same page, or NO_WORD. */
  previous(run: number): number {
    return this.#u32[run * 2]!
  }

  open(run: number): void {
    const u32 = this.#u32
    const unit = u32[run * 2 + 1]! * 2
    const ordinal = run - u32[unit + H_LINKS]!
    const pages = u32[unit + H_PAGES]!
    const entries = u32[unit + H_ENTRIES]!
    this.run = run
    this.#begin = u32[unit + H_LSN_HIGH]! * TWO_32 + u32[unit + H_LSN_LOW]!
    this.#baseByte = u32[unit + H_BASE_WORD]! * 8
    const page = unit + HEADER_UNITS + CHUNK_INDEX_HEADER_WORDS + ordinal
    const first = u32[page + 2 * pages]!
    this.entryCount = u32[page + 3 * pages]!
    this.firstLsn = (this.#begin + u32[page + 4 * pages]!) as Lsn
    this.lastLsn = (this.#begin + u32[page + 5 * pages]!) as Lsn
    const init = u32[page + 7 * pages]!
    this.lastInit = init === NO_ENTRY ? -1 : init - first
    this.#entries = entries
    this.#firstEntryUnit =
      unit + HEADER_UNITS + CHUNK_INDEX_HEADER_WORDS + CHUNK_INDEX_WORDS_PER_PAGE * pages + first
  }

  /** Byte offset in the arena memory of entry `e` of the run. */
  offset(e: number): number {
    return this.#baseByte + this.#u32[this.#firstEntryUnit + e]!
  }

  length(e: number): number {
    return this.#u32[this.#firstEntryUnit + this.#entries + e]!
  }

  lsn(e: number): Lsn {
    return (this.#begin + this.#u32[this.#firstEntryUnit + 2 * this.#entries + e]!) as Lsn
  }

  flags(e: number): number {
    return this.#u32[this.#firstEntryUnit + 3 * this.#entries + e]!
  }
}
