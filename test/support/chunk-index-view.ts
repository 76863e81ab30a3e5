/** The tables of a chunk's index (parser/chunk-index.ts) by page: pages sorted, entries grouped by page and by LSN within it. */
import type { ChunkIndexer } from '../../parser/chunk-index.ts'
import { ENTRY_WORDS, EntryWord } from '../../parser/entry-table.ts'
import { PAGE_WORDS, PageWord } from '../../parser/page-table.ts'

interface Entry {
  readonly offset: number
  readonly length: number
  readonly lsn: number
  readonly flags: number
}

export class ChunkIndexView {
  readonly pageCount: number
  readonly entryCount: number
  readonly pageSpace: number[] = []
  readonly pageNumber: number[] = []
  readonly pageEntryCount: number[] = []
  /** LSNs are relative to the chunk's beginning. */
  readonly pageFirstLsn: number[] = []
  readonly pageLastLsn: number[] = []
  /** Flags of all entries of the page together. */
  readonly pageFlags: number[] = []
  readonly pagePayload: number[] = []
  /** Bytes of the page's entries with their varints. */
  readonly pageBytes: number[] = []
  readonly entryLength: number[] = []
  readonly #entries: Entry[][]

  constructor(indexer: ChunkIndexer) {
    const { pages, entries } = indexer
    this.pageCount = pages.count
    this.entryCount = entries.count
    const order = [...pages.sorted().subarray(0, pages.count)]
    for (const row of order) {
      const word = (which: number) => pages.words[PAGE_WORDS * row + which]!
      this.pageSpace.push(word(PageWord.SPACE))
      this.pageNumber.push(word(PageWord.PAGE))
      this.pageEntryCount.push(word(PageWord.ENTRIES))
      this.pageFirstLsn.push(word(PageWord.FIRST_LSN))
      this.pageLastLsn.push(word(PageWord.LAST_LSN))
      this.pageFlags.push(word(PageWord.FLAGS))
      this.pagePayload.push(word(PageWord.PAYLOAD))
      this.pageBytes.push(word(PageWord.BYTES))
    }
    const byRow: Entry[][] = Array.from({ length: pages.count }, () => [])
    for (let e = 0; e < entries.count; e++) {
      const word = (which: number) => entries.words[ENTRY_WORDS * e + which]!
      const lengthFlags = word(EntryWord.LENGTH_FLAGS)
      const length = lengthFlags >>> 2
      this.entryLength.push(length)
      byRow[word(EntryWord.PAGE_ROW)]!.push({
        offset: word(EntryWord.START),
        length,
        lsn: word(EntryWord.LSN),
        flags: lengthFlags & 3,
      })
    }
    this.#entries = order.map(row => byRow[row]!)
  }

  /** Calls `visit` for each entry of the page with that ordinal, oldest first. */
  forEachEntry(
    pageOrdinal: number,
    visit: (offset: number, length: number, lsnRelative: number, flags: number) => void,
  ): void {
    for (const { offset, length, lsn, flags } of this.#entries[pageOrdinal]!)
      visit(offset, length, lsn, flags)
  }
}
