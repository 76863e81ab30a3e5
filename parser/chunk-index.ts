/**
 * A chunk of redo to an index by page: the hot path of ingestion.
 *
 * A chunk is a range of whole mini-transactions. Indexing verifies every checksum and every record's form, and cuts the
 * page records into *entries*: an entry is a run of records of one mini-transaction for one page, beginning with an
 * explicit page id, so that it can be applied without anything around it. INIT_PAGE and FREE_PAGE always begin an entry,
 * since nothing before them matters to the page any more. The bytes stay where they are; the index says where.
 *
 * The output region is shared memory that the caller owns, as 32-bit words. After four header words come two structures
 * of arrays, P pages sorted by (space, page), and E entries grouped by page in that order and by LSN within it:
 *
 *     word 0  P    word 1  E    word 2  mini-transactions    word 3  records
 *     4 + 0P  space            4 + 4P  first LSN             4 + 8P + 0E  offset of the entry's bytes
 *     4 + 1P  page number      4 + 5P  last LSN              4 + 8P + 1E  length in bytes
 *     4 + 2P  first entry      4 + 6P  flags (PageFlag)      4 + 8P + 2E  LSN
 *     4 + 3P  entry count      4 + 7P  last init entry       4 + 8P + 3E  flags (EntryFlag)
 *
 * LSNs are those of the mini-transaction's end, relative to the chunk's beginning. It is a layout in memory between the
 * threads of one process, in its byte order (every platform of Node's that we run on is little-endian, which the sorting
 * relies on); it is not stored.
 */
import type { Lsn } from '../protocol/ids.ts'
import { ChecksumChain } from './checksum-chain.ts'
import { CorruptRedoError } from './corrupt-redo-error.ts'
import { EntryFlag, EntryTable, PlainMtrScan } from './entry-table.ts'
import { describeScanResult, MTR_TRAILER_BYTES, MtrScanner, ScanResult } from './mtr-scanner.ts'
import { PAGE_BYTES_MAX, RecordCursor, RecordType } from './record-decoder.ts'
import { collectSpaceEvents, mayHoldSpaceEvent, type SpaceEvent } from './space-events.ts'

export const CHUNK_INDEX_HEADER_WORDS = 4
export const CHUNK_INDEX_WORDS_PER_PAGE = 8
export const CHUNK_INDEX_WORDS_PER_ENTRY = 4
/** In "last init entry": the page has none. */
export const NO_ENTRY = 0xffffffff

export const PageFlag = {
  /** One of the page's entries begins with INIT_PAGE or FREE_PAGE. */
  HAS_INIT: 1,
} as const

export { EntryFlag }

/** The largest chunk. Every entry has 3 bytes or more, so this also bounds the indexer's memory. */
export const CHUNK_BYTES_MAX = 16 << 20

/** How much log is parsed before its checksums are compared. */
const STRETCH_BYTES = 128 << 10

export interface ChunkCounters {
  readonly mtrs: number
  readonly records: number
  readonly entries: number
  readonly pages: number
}

export type ChunkIndexResult =
  | (ChunkCounters & {
      readonly status: 'ok'
      /** Words of the region that are in use. */
      readonly words: number
      /** In the order of the log. */
      readonly events: SpaceEvent[]
    })
  /** Nothing in the region may be used. Give a region of `words`, or split the chunk at a mini-transaction. */
  | { readonly status: 'region-too-small'; readonly words: number }

export interface ChunkIndexOptions {
  /** innodb_page_size where it is known; records that reach beyond it are corruption. */
  readonly pageBytesMax?: number
  /** Mixed into the hash of page ids. A random number per process keeps crafted page ids from colliding on purpose. */
  readonly hashSeed?: number
}

/**
 * Indexes chunks one after the other, with working memory that it keeps and reuses: one indexer per worker. The working
 * memory grows with the largest chunk seen and is bounded by CHUNK_BYTES_MAX.
 */
export class ChunkIndexer {
  readonly #scanner = new MtrScanner()
  readonly #cursor: RecordCursor
  readonly #seed: number

  readonly #chain = new ChecksumChain()
  readonly #entries = new EntryTable()
  readonly #plain: PlainMtrScan
  /** Per page, in the order of first appearance: page number low, space high, so that sorting the 64 bits sorts pages. */
  #pageKeys = new BigUint64Array(1024)
  #pageKeyWords = new Uint32Array(this.#pageKeys.buffer)
  #pageEntryCount = new Uint32Array(1024)
  /** Per page, where its next entry goes. */
  #pageNext = new Uint32Array(1024)
  #sortedKeys = new BigUint64Array(1024)
  #sortedKeyWords = new Uint32Array(this.#sortedKeys.buffer)
  /** Open addressing: page ordinal + 1, or 0. A power of two, at least twice the pages. */
  #slots = new Uint32Array(4096)
  #pageCount = 0

  constructor(options: ChunkIndexOptions = {}) {
    const pageBytesMax = options.pageBytesMax ?? PAGE_BYTES_MAX
    this.#cursor = new RecordCursor(pageBytesMax)
    this.#plain = new PlainMtrScan(this.#entries, pageBytesMax)
    this.#seed = (options.hashSeed ?? 0x9e3779b9) | 0
  }

  /**
   * Indexes `buf[start, end)`, which begins at LSN `begin` and ends with a mini-transaction, into `region`. Entry offsets
   * are relative to `buf[base]`. Throws `CorruptRedoError`, with LSN and offset in `buf`, at the first thing that is
   * wrong; the region is then garbage.
   */
  index(
    buf: Uint8Array,
    start: number,
    end: number,
    begin: Lsn,
    region: Uint32Array,
    base = 0,
  ): ChunkIndexResult {
    if (!(start >= 0 && start <= end && end <= buf.length && end - start <= CHUNK_BYTES_MAX))
      throw new RangeError(
        `chunk ${start}..${end} does not fit a buffer of ${buf.length} bytes or exceeds 16 MiB`,
      )
    if (!(base <= start && end - base <= 0xffffffff))
      throw new RangeError(`chunk ${start}..${end} is not within 4 GiB after ${base}`)
    // A view of its own: positions stay small numbers wherever in a large slab the chunk lies.
    const chunk = buf.subarray(start, end)
    try {
      return this.#index(chunk, begin, region, start - base)
    } catch (error) {
      if (error instanceof CorruptRedoError)
        throw new CorruptRedoError(error.reason, start + error.offset, error.lsn)
      throw error
    }
  }

  /** `shift`: what to add to positions in the chunk to have entry offsets. */
  #index(chunk: Uint8Array, begin: Lsn, region: Uint32Array, shift: number): ChunkIndexResult {
    const end = chunk.length
    this.#slots.fill(0)
    this.#pageCount = 0
    const events: SpaceEvent[] = []
    const table = this.#entries
    const plain = this.#plain
    table.count = 0
    const chain = this.#chain
    let mtrs = 0
    let records = 0
    let at = 0
    // Checksums are compared a stretch at a time, while its bytes are still in the processor's cache.
    let stretch = 0
    chain.reset()
    while (at < end) {
      const firstEntry = table.count
      let terminator = plain.scan(chunk, at, end)
      if (terminator >= 0 && terminator + MTR_TRAILER_BYTES <= end) {
        records += plain.records
      } else {
        // Not plain, or wrong: the thorough way finds out. What led here may be damage further back, though.
        table.count = firstEntry
        if (stretch < at && !chain.matches(chunk, stretch, at)) this.#findDamage(chunk, stretch, end, begin)
        stretch = at
        chain.reset()
        records += this.#indexThoroughly(chunk, at, end, (begin + at) as Lsn, events)
        terminator = this.#scanner.recordsEnd
      }
      chain.add(terminator - at, chunk[terminator]!, i32(chunk, terminator + 1))
      at = terminator + MTR_TRAILER_BYTES
      for (let e = firstEntry; e < table.count; e++) {
        table.lsn[e] = at
        table.ordinal[e] = this.#pageOrdinal(table.space[e]!, table.page[e]!)
      }
      mtrs++
      if (at - stretch >= STRETCH_BYTES || at >= end) {
        if (!chain.matches(chunk, stretch, at)) this.#findDamage(chunk, stretch, end, begin)
        stretch = at
        chain.reset()
      }
    }

    const entries = table.count
    const pages = this.#pageCount
    const words =
      CHUNK_INDEX_HEADER_WORDS + pages * CHUNK_INDEX_WORDS_PER_PAGE + entries * CHUNK_INDEX_WORDS_PER_ENTRY
    if (words > region.length) return { status: 'region-too-small', words }
    region[0] = pages
    region[1] = entries
    region[2] = mtrs
    region[3] = records
    this.#writePages(region, pages)
    this.#writeEntries(region, pages, entries, shift)
    return { status: 'ok', words, mtrs, records, entries, pages, events }
  }

  /** Throws for the first mini-transaction from `start` on that is wrong, when one is known to be. */
  #findDamage(chunk: Uint8Array, start: number, end: number, begin: Lsn): never {
    const events: SpaceEvent[] = []
    for (let at = start; at < end; at = this.#scanner.mtrEnd)
      this.#indexThoroughly(chunk, at, end, (begin + at) as Lsn, events)
    throw new Error(
      `the mini-transactions from LSN ${begin + start} on are right each, but not together: is the memory of this machine sound?`,
    )
  }

  /**
   * The mini-transaction at `buf[at]`, record by record with every check; appends its entries and events and returns the
   * number of its records. Afterwards `#scanner` knows where it ends. `begin` is the LSN where it begins.
   */
  #indexThoroughly(buf: Uint8Array, at: number, end: number, begin: Lsn, events: SpaceEvent[]): number {
    const scanner = this.#scanner
    const cursor = this.#cursor
    const table = this.#entries
    const found = scanner.scan(buf, at, end, begin, null)
    if (found !== ScanResult.COMPLETE) throw new CorruptRedoError(describeScanResult(found), at, begin)
    const lsn = (begin + (scanner.mtrEnd - at)) as Lsn
    let records = 0
    // Whether an entry is under construction, and for which page.
    let open = false
    let openSpace = 0
    let openPage = 0
    cursor.reset(buf, at, scanner.recordsEnd)
    try {
      while (cursor.next()) {
        records++
        const type = cursor.type
        if (mayHoldSpaceEvent(cursor)) {
          collectSpaceEvents(cursor, buf, lsn, events)
          if (type !== RecordType.WRITE) {
            // A file record or TRIM_PAGES: not a change of a page.
            if (open) table.end[table.count - 1] = cursor.recordStart
            open = false
            continue
          }
        }
        if (cursor.samePage) continue
        if (open && cursor.page === openPage && cursor.space === openSpace && type > RecordType.INIT_PAGE)
          continue
        if (open) table.end[table.count - 1] = cursor.recordStart
        open = true
        openSpace = cursor.space
        openPage = cursor.page
        const flags =
          type === RecordType.INIT_PAGE
            ? EntryFlag.INIT_PAGE
            : type === RecordType.FREE_PAGE
              ? EntryFlag.FREE_PAGE
              : 0
        table.add(cursor.recordStart, openSpace, openPage, flags)
      }
    } catch (error) {
      if (error instanceof CorruptRedoError) throw error.withLsn(begin)
      throw error
    }
    if (open) table.end[table.count - 1] = scanner.recordsEnd
    return records
  }

  /** The ordinal of a page, new or known. */
  #pageOrdinal(space: number, page: number): number {
    const slots = this.#slots
    const mask = slots.length - 1
    let slot = hashPage(space, page, this.#seed) & mask
    for (;;) {
      const ordinal = slots[slot]! - 1
      if (ordinal < 0) break
      if (this.#pageKeyWords[2 * ordinal] === page && this.#pageKeyWords[2 * ordinal + 1] === space) {
        this.#pageEntryCount[ordinal]!++
        return ordinal
      }
      slot = (slot + 1) & mask
    }
    const ordinal = this.#pageCount++
    slots[slot] = ordinal + 1
    if (ordinal === this.#pageEntryCount.length) this.#growPages()
    this.#pageKeyWords[2 * ordinal] = page
    this.#pageKeyWords[2 * ordinal + 1] = space
    this.#pageEntryCount[ordinal] = 1
    if (2 * this.#pageCount > slots.length) this.#growSlots()
    return ordinal
  }

  #findOrdinal(space: number, page: number): number {
    const slots = this.#slots
    const mask = slots.length - 1
    let slot = hashPage(space, page, this.#seed) & mask
    for (;;) {
      const ordinal = slots[slot]! - 1
      if (this.#pageKeyWords[2 * ordinal] === page && this.#pageKeyWords[2 * ordinal + 1] === space)
        return ordinal
      slot = (slot + 1) & mask
    }
  }

  #writePages(region: Uint32Array, pages: number): void {
    const keys = this.#sortedKeys
    keys.set(this.#pageKeys.subarray(0, pages))
    keys.subarray(0, pages).sort()
    let spaceAt = CHUNK_INDEX_HEADER_WORDS
    let pageAt = spaceAt + pages
    let firstAt = pageAt + pages
    let countAt = firstAt + pages
    let first = 0
    for (let p = 0; p < pages; p++) {
      const page = this.#sortedKeyWords[2 * p]!
      const space = this.#sortedKeyWords[2 * p + 1]!
      const ordinal = this.#findOrdinal(space, page)
      const count = this.#pageEntryCount[ordinal]!
      region[spaceAt++] = space
      region[pageAt++] = page
      region[firstAt++] = first
      region[countAt++] = count
      this.#pageNext[ordinal] = first
      first += count
    }
  }

  #writeEntries(region: Uint32Array, pages: number, entries: number, shift: number): void {
    const offsets = CHUNK_INDEX_HEADER_WORDS + CHUNK_INDEX_WORDS_PER_PAGE * pages
    const lengths = offsets + entries
    const lsns = lengths + entries
    const flags = lsns + entries
    const next = this.#pageNext
    const { start, end, lsn, ordinal, flags: entryFlags } = this.#entries
    for (let e = 0; e < entries; e++) {
      const to = next[ordinal[e]!]!++
      const from = start[e]!
      region[offsets + to] = from + shift
      region[lengths + to] = end[e]! - from
      region[lsns + to] = lsn[e]!
      region[flags + to] = entryFlags[e]!
    }
    let firstAt = CHUNK_INDEX_HEADER_WORDS + 2 * pages
    let countAt = firstAt + pages
    let firstLsnAt = countAt + pages
    let lastLsnAt = firstLsnAt + pages
    let flagsAt = lastLsnAt + pages
    let initAt = flagsAt + pages
    for (let p = 0; p < pages; p++) {
      const from = region[firstAt++]!
      const to = from + region[countAt++]!
      let init = NO_ENTRY
      for (let e = to - 1; e >= from; e--)
        if (region[flags + e] !== 0) {
          init = e
          break
        }
      region[firstLsnAt++] = region[lsns + from]!
      region[lastLsnAt++] = region[lsns + to - 1]!
      region[flagsAt++] = init === NO_ENTRY ? 0 : PageFlag.HAS_INIT
      region[initAt++] = init
    }
  }

  #growPages(): void {
    const size = 2 * this.#pageEntryCount.length
    this.#pageKeys = grown(this.#pageKeys, new BigUint64Array(size))
    this.#pageKeyWords = new Uint32Array(this.#pageKeys.buffer)
    this.#sortedKeys = new BigUint64Array(size)
    this.#sortedKeyWords = new Uint32Array(this.#sortedKeys.buffer)
    this.#pageEntryCount = grown(this.#pageEntryCount, new Uint32Array(size))
    this.#pageNext = new Uint32Array(size)
  }

  #growSlots(): void {
    const slots = new Uint32Array(2 * this.#slots.length)
    const mask = slots.length - 1
    for (let ordinal = 0; ordinal < this.#pageCount; ordinal++) {
      let slot =
        hashPage(this.#pageKeyWords[2 * ordinal + 1]!, this.#pageKeyWords[2 * ordinal]!, this.#seed) & mask
      while (slots[slot] !== 0) slot = (slot + 1) & mask
      slots[slot] = ordinal + 1
    }
    this.#slots = slots
  }
}

function i32(buf: Uint8Array, at: number): number {
  return (buf[at]! << 24) | (buf[at + 1]! << 16) | (buf[at + 2]! << 8) | buf[at + 3]!
}

function grown<T extends Uint32Array | BigUint64Array>(from: T, to: T): T {
  // The two are of one kind, which TypeScript cannot tell.
  ;(to as Uint32Array).set(from as Uint32Array)
  return to
}

/** The finaliser of MurmurHash3 over both halves. */
function hashPage(space: number, page: number, seed: number): number {
  let h = Math.imul(space ^ seed, 0x85ebca6b)
  h = Math.imul(h ^ (h >>> 15) ^ page, 0xc2b2ae35)
  h = Math.imul(h ^ (h >>> 13), 0x27d4eb2f)
  return (h ^ (h >>> 16)) >>> 0
}

/** Reads a region that `ChunkIndexer.index` filled; works on any thread that has the same shared memory. */
export class ChunkIndexView {
  readonly pageCount: number
  readonly entryCount: number
  readonly mtrCount: number
  readonly recordCount: number
  readonly pageSpace: Uint32Array
  readonly pageNumber: Uint32Array
  /** Ordinal of the page's first entry; its entries follow one another. */
  readonly pageFirstEntry: Uint32Array
  readonly pageEntryCount: Uint32Array
  /** LSNs are relative to the chunk's beginning. */
  readonly pageFirstLsn: Uint32Array
  readonly pageLastLsn: Uint32Array
  readonly pageFlags: Uint32Array
  /** Ordinal of the newest entry that begins with INIT_PAGE or FREE_PAGE, or NO_ENTRY. */
  readonly pageLastInitEntry: Uint32Array
  readonly entryOffset: Uint32Array
  readonly entryLength: Uint32Array
  readonly entryLsn: Uint32Array
  readonly entryFlags: Uint32Array

  /** Throws RangeError if the header claims more than the region holds. */
  constructor(region: Uint32Array) {
    const pages = region[0] ?? 0
    const entries = region[1] ?? 0
    const words =
      CHUNK_INDEX_HEADER_WORDS + pages * CHUNK_INDEX_WORDS_PER_PAGE + entries * CHUNK_INDEX_WORDS_PER_ENTRY
    if (words > region.length)
      throw new RangeError(`a chunk index of ${pages} pages and ${entries} entries in ${region.length} words`)
    let at = CHUNK_INDEX_HEADER_WORDS
    const take = (count: number) => {
      at += count
      return region.subarray(at - count, at)
    }
    this.pageCount = pages
    this.entryCount = entries
    this.mtrCount = region[2]!
    this.recordCount = region[3]!
    this.pageSpace = take(pages)
    this.pageNumber = take(pages)
    this.pageFirstEntry = take(pages)
    this.pageEntryCount = take(pages)
    this.pageFirstLsn = take(pages)
    this.pageLastLsn = take(pages)
    this.pageFlags = take(pages)
    this.pageLastInitEntry = take(pages)
    this.entryOffset = take(entries)
    this.entryLength = take(entries)
    this.entryLsn = take(entries)
    this.entryFlags = take(entries)
  }

  /** Ordinal of the first page >= (space, page) in the sorted table; pageCount if there is none. */
  lowerBound(space: number, page: number): number {
    let low = 0
    let high = this.pageCount
    while (low < high) {
      const middle = (low + high) >>> 1
      const s = this.pageSpace[middle]!
      if (s < space || (s === space && this.pageNumber[middle]! < page)) low = middle + 1
      else high = middle
    }
    return low
  }

  /** Ordinal of the page, or -1. */
  findPage(space: number, page: number): number {
    const p = this.lowerBound(space, page)
    return p < this.pageCount && this.pageSpace[p] === space && this.pageNumber[p] === page ? p : -1
  }

  /** Calls `visit` for each entry of the page with that ordinal, oldest first. */
  forEachEntry(
    pageOrdinal: number,
    visit: (offset: number, length: number, lsnRelative: number, flags: number) => void,
  ): void {
    const from = this.pageFirstEntry[pageOrdinal]!
    const to = from + this.pageEntryCount[pageOrdinal]!
    for (let e = from; e < to; e++)
      visit(this.entryOffset[e]!, this.entryLength[e]!, this.entryLsn[e]!, this.entryFlags[e]!)
  }
}
