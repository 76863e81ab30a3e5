/** Sorts rows of 32-bit words by page, by their digits: many times a second over some thousand pages, so without comparisons. */

/** Up to so many rows, sorting by insertion is quicker. */
const INSERTION_ROWS_MAX = 48
const DIGIT_BITS = 11
const DIGIT_MASK = (1 << DIGIT_BITS) - 1
const WORD_BITS = 32

/** Where in a row the two words are that it is sorted by. */
export interface RowLayout {
  readonly rowWords: number
  readonly space: number
  readonly page: number
}

/** With working memory that it keeps. */
export class RowSort {
  readonly #layout: RowLayout
  #order = new Uint32Array(1024)
  #orderBefore = new Uint32Array(1024)
  readonly #digits = new Uint32Array(1 << DIGIT_BITS)

  constructor(layout: RowLayout) {
    this.#layout = layout
  }

  /**
   * The first `count` rows' numbers, ordered by (space, page). The array may be longer than that, and is valid until the next
   * call.
   */
  sort(words: Uint32Array, count: number): Uint32Array {
    if (this.#order.length < count) {
      this.#order = new Uint32Array(2 * count)
      this.#orderBefore = new Uint32Array(2 * count)
    }
    for (let i = 0; i < count; i++) this.#order[i] = i
    if (count <= INSERTION_ROWS_MAX) this.#byInsertion(words, count)
    else {
      this.#byWord(words, this.#layout.page, count)
      this.#byWord(words, this.#layout.space, count)
    }
    return this.#order
  }

  #byInsertion(words: Uint32Array, count: number): void {
    const order = this.#order
    const { rowWords, space: spaceAt, page: pageAt } = this.#layout
    for (let i = 1; i < count; i++) {
      const space = words[rowWords * i + spaceAt]!
      const page = words[rowWords * i + pageAt]!
      let to = i
      for (; to > 0; to--) {
        const other = rowWords * order[to - 1]!
        const otherSpace = words[other + spaceAt]!
        if (otherSpace < space || (otherSpace === space && words[other + pageAt]! < page)) break
        order[to] = order[to - 1]!
      }
      order[to] = i
    }
  }

  /** By one word, its lowest digit first, leaving out those in which no two rows differ: most of them. */
  #byWord(words: Uint32Array, word: number, count: number): void {
    const { rowWords } = this.#layout
    const first = words[word]!
    let differing = 0
    for (let at = word, end = rowWords * count; at < end; at += rowWords) differing |= words[at]! ^ first
    for (let shift = 0; shift < WORD_BITS; shift += DIGIT_BITS)
      if (((differing >>> shift) & DIGIT_MASK) !== 0) this.#byDigit(words, word, shift, count)
  }

  #byDigit(words: Uint32Array, word: number, shift: number, count: number): void {
    const { rowWords } = this.#layout
    const digits = this.#digits
    digits.fill(0)
    for (let at = word, end = rowWords * count; at < end; at += rowWords)
      digits[(words[at]! >>> shift) & DIGIT_MASK]!++
    let place = 0
    for (let digit = 0; digit <= DIGIT_MASK; digit++) {
      const many = digits[digit]!
      digits[digit] = place
      place += many
    }
    const from = this.#order
    const to = this.#orderBefore
    for (let i = 0; i < count; i++) {
      const row = from[i]!
      to[digits[(words[rowWords * row + word]! >>> shift) & DIGIT_MASK]!++] = row
    }
    this.#order = to
    this.#orderBefore = from
  }
}
