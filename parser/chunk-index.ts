/**
 * A chunk of redo to an index by page: the hot path of ingestion.
 *
 * A chunk is a range of whole mini-transactions. Indexing verifies every checksum and every record's form, and cuts the
 * page records into *entries*: an entry is a run of records of one mini-transaction for one page, beginning with an
 * explicit page id, so that it can be applied without anything around it. INIT_PAGE and FREE_PAGE always begin an entry,
 * since nothing before them matters to the page any more. The bytes stay where they are; the index says where.
 *
 * The index is two tables that the indexer keeps until the next chunk: the entries in the order of the log, each with its
 * page's row (entry-table.ts), and the pages with what their entries come to (page-table.ts). So whoever wants the
 * entries by page (server/pageserver/run-index.ts) first gives each page its place and then goes through the log once.
 */
import type { Lsn } from '../protocol/ids.ts'
import { ChecksumChain } from './checksum-chain.ts'
import { CorruptRedoError } from './corrupt-redo-error.ts'
import { ENTRY_WORDS, EntryFlag, EntryTable, EntryWord, PlainMtrScan } from './entry-table.ts'
import { describeScanResult, MTR_TRAILER_BYTES, MtrScanner, ScanResult } from './mtr-scanner.ts'
import { PageTable } from './page-table.ts'
import { PAGE_BYTES_MAX, RecordCursor, RecordType } from './record-decoder.ts'
import { collectSpaceEvents, mayHoldSpaceEvent, type SpaceEvent } from './space-events.ts'

export { EntryFlag }

/** The largest chunk. Every entry has 3 bytes or more, so this also bounds the indexer's memory. */
export const CHUNK_BYTES_MAX = 16 << 20

/** How much log is parsed before its checksums are compared: it is to be in the processor's cache still. */
const STRETCH_BYTES = 64 << 10

export interface ChunkIndexResult {
  readonly mtrs: number
  readonly records: number
  readonly entries: number
  readonly pages: number
  /** In the order of the log. */
  readonly events: SpaceEvent[]
}

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
  /** Of the chunk indexed last, in the order of the log. Positions and LSNs count from its beginning. */
  readonly entries = new EntryTable()
  /** Its pages. */
  readonly pages: PageTable
  readonly #scanner = new MtrScanner()
  readonly #cursor: RecordCursor
  readonly #chain = new ChecksumChain()
  readonly #plain: PlainMtrScan

  constructor(options: ChunkIndexOptions = {}) {
    const pageBytesMax = options.pageBytesMax ?? PAGE_BYTES_MAX
    this.pages = new PageTable(options.hashSeed ?? 0x9e3779b9)
    this.#cursor = new RecordCursor(pageBytesMax)
    this.#plain = new PlainMtrScan(this.entries, pageBytesMax)
  }

  /**
   * Indexes `buf[start, end)`, which begins at LSN `begin` and ends with a mini-transaction. Throws `CorruptRedoError`, with
   * LSN and offset in `buf`, at the first thing that is wrong; the tables are then garbage.
   */
  index(buf: Uint8Array, start: number, end: number, begin: Lsn): ChunkIndexResult {
    if (!(start >= 0 && start <= end && end <= buf.length && end - start <= CHUNK_BYTES_MAX))
      throw new RangeError(
        `chunk ${start}..${end} does not fit a buffer of ${buf.length} bytes or exceeds 16 MiB`,
      )
    // A view of its own: positions stay small numbers wherever in a large slab the chunk lies.
    const chunk = Buffer.from(buf.buffer, buf.byteOffset + start, end - start)
    try {
      return this.#index(chunk, begin)
    } catch (error) {
      if (error instanceof CorruptRedoError)
        throw new CorruptRedoError(error.reason, start + error.offset, error.lsn)
      throw error
    }
  }

  #index(chunk: Buffer, begin: Lsn): ChunkIndexResult {
    const end = chunk.length
    const events: SpaceEvent[] = []
    const table = this.entries
    const plain = this.#plain
    const pages = this.pages
    table.count = 0
    pages.clear()
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
      chain.add(terminator)
      at = terminator + MTR_TRAILER_BYTES
      const { words } = table
      for (let e = ENTRY_WORDS * firstEntry, to = ENTRY_WORDS * table.count; e < to; e += ENTRY_WORDS) {
        const lengthFlags = words[e + EntryWord.LENGTH_FLAGS]!
        words[e + EntryWord.PAGE_ROW] = pages.note(
          words[e + EntryWord.SPACE]!,
          words[e + EntryWord.PAGE]!,
          lengthFlags,
          at,
        )
        words[e + EntryWord.LSN] = at
      }
      mtrs++
      if (at - stretch >= STRETCH_BYTES || at >= end) {
        if (!chain.matches(chunk, stretch, at)) this.#findDamage(chunk, stretch, end, begin)
        stretch = at
        chain.reset()
      }
    }
    return { mtrs, records, entries: table.count, pages: pages.count, events }
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
    const table = this.entries
    const found = scanner.scan(buf, at, end, begin, null)
    if (found !== ScanResult.COMPLETE) throw new CorruptRedoError(describeScanResult(found), at, begin)
    const lsn = (begin + (scanner.mtrEnd - at)) as Lsn
    let records = 0
    // Whether an entry is under construction, and for which page.
    let open = false
    let openStart = 0
    let openSpace = 0
    let openPage = 0
    let openFlags = 0
    cursor.reset(buf, at, scanner.recordsEnd)
    try {
      while (cursor.next()) {
        records++
        const type = cursor.type
        if (mayHoldSpaceEvent(cursor)) {
          collectSpaceEvents(cursor, buf, lsn, events)
          if (type !== RecordType.WRITE) {
            // A file record or TRIM_PAGES: not a change of a page.
            if (open) table.add(openStart, cursor.recordStart, openSpace, openPage, openFlags)
            open = false
            continue
          }
        }
        if (cursor.samePage) continue
        if (open && cursor.page === openPage && cursor.space === openSpace && type > RecordType.INIT_PAGE)
          continue
        if (open) table.add(openStart, cursor.recordStart, openSpace, openPage, openFlags)
        open = true
        openStart = cursor.recordStart
        openSpace = cursor.space
        openPage = cursor.page
        openFlags =
          type === RecordType.INIT_PAGE
            ? EntryFlag.INIT_PAGE
            : type === RecordType.FREE_PAGE
              ? EntryFlag.FREE_PAGE
              : 0
      }
    } catch (error) {
      if (error instanceof CorruptRedoError) throw error.withLsn(begin)
      throw error
    }
    if (open) table.add(openStart, scanner.recordsEnd, openSpace, openPage, openFlags)
    return records
  }
}
