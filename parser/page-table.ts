/**
 * The pages that a chunk of redo changes, and how many bytes each of them has: filled entry by entry in the order of the log,
 * then sorted. A hash table over rows of eight words, so that an entry touches one slot and one row.
 */
import { RowSort } from './row-sort.ts'

export const PAGE_WORDS = 8
/** What a row has, 32-bit words. LSNs count from the chunk's beginning. */
export const PageWord = {
  PAGE: 0,
  SPACE: 1,
  /** Bytes of its entries, each with the two varints that a range and a layer put before it (docs/storage-format.md). */
  BYTES: 2,
  ENTRIES: 3,
  FIRST_LSN: 4,
  LAST_LSN: 5,
  /** Bytes of its entries alone. */
  PAYLOAD: 6,
  /** Flags of all of its entries together (EntryFlag). */
  FLAGS: 7,
} as const

export class PageTable {
  count = 0
  /** Rows in the order of first appearance. Replaced when it grows. */
  words = new Uint32Array(PAGE_WORDS * 1024)
  /** Open addressing: row + 1, or 0. A power of two, at least twice the pages. */
  #slots = new Uint32Array(4096)
  readonly #seed: number
  readonly #sort = new RowSort({ rowWords: PAGE_WORDS, space: PageWord.SPACE, page: PageWord.PAGE })

  /** `seed`: mixed into the hash of page ids. */
  constructor(seed: number) {
    this.#seed = seed | 0
  }

  clear(): void {
    this.count = 0
    this.#slots.fill(0)
  }

  /**
   * Notes an entry of a page, `lengthFlags` as EntryTable has it, and returns the page's row. LSNs ascend from call to call.
   */
  note(space: number, page: number, lengthFlags: number, lsn: number): number {
    const row = this.#row(space, page)
    const { words } = this
    const at = PAGE_WORDS * row
    const distance = lsn - words[at + PageWord.LAST_LSN]!
    const length = lengthFlags >>> 2
    words[at + PageWord.BYTES]! +=
      length +
      (distance < 1 << 7 ? 1 : distance < 1 << 14 ? 2 : distance < 1 << 21 ? 3 : 4) +
      (lengthFlags < 1 << 7 ? 1 : lengthFlags < 1 << 14 ? 2 : lengthFlags < 1 << 21 ? 3 : 4)
    if (words[at + PageWord.ENTRIES]!++ === 0) words[at + PageWord.FIRST_LSN] = lsn
    words[at + PageWord.LAST_LSN] = lsn
    words[at + PageWord.PAYLOAD]! += length
    words[at + PageWord.FLAGS]! |= lengthFlags & 3
    return row
  }

  /** The page's row, new or known. */
  #row(space: number, page: number): number {
    const slots = this.#slots
    const words = this.words
    const mask = slots.length - 1
    let slot = hashPage(space, page, this.#seed) & mask
    for (;;) {
      const row = slots[slot]! - 1
      if (row < 0) break
      if (
        words[PAGE_WORDS * row + PageWord.PAGE] === page &&
        words[PAGE_WORDS * row + PageWord.SPACE] === space
      )
        return row
      slot = (slot + 1) & mask
    }
    const row = this.count++
    slots[slot] = row + 1
    if (PAGE_WORDS * this.count > words.length) this.#growRows()
    const at = PAGE_WORDS * row
    this.words.fill(0, at, at + PAGE_WORDS)
    this.words[at + PageWord.PAGE] = page
    this.words[at + PageWord.SPACE] = space
    if (2 * this.count > slots.length) this.#growSlots()
    return row
  }

  #growRows(): void {
    const larger = new Uint32Array(2 * this.words.length)
    larger.set(this.words)
    this.words = larger
  }

  #growSlots(): void {
    const { words } = this
    const slots = new Uint32Array(2 * this.#slots.length)
    const mask = slots.length - 1
    for (let row = 0; row < this.count; row++) {
      const at = PAGE_WORDS * row
      let slot = hashPage(words[at + PageWord.SPACE]!, words[at + PageWord.PAGE]!, this.#seed) & mask
      while (slots[slot] !== 0) slot = (slot + 1) & mask
      slots[slot] = row + 1
    }
    this.#slots = slots
  }

  /** All rows, ordered by (space, page). The array is longer than `count`, and valid until the next call. */
  sorted(): Uint32Array {
    return this.#sort.sort(this.words, this.count)
  }
}

/** The finaliser of MurmurHash3 over both halves. */
function hashPage(space: number, page: number, seed: number): number {
  let h = Math.imul(space ^ seed, 0x85ebca6b)
  h = Math.imul(h ^ (h >>> 15) ^ page, 0xc2b2ae35)
  h = Math.imul(h ^ (h >>> 13), 0x27d4eb2f)
  return (h ^ (h >>> 16)) >>> 0
}
