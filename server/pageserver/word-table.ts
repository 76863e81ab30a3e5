/**
 * A growing table of 32-bit words, row after row while it is written, column after column (structure of arrays) when it
 * is stored, so that a reader can search one column without touching the others and without an object per row.
 */
export class WordTable {
  readonly width: number
  rows = 0
  /** Row-major; valid up to `rows * width`. Replaced when it grows: fetch it after `add`. */
  words: Uint32Array

  constructor(width: number, rowsExpected = 256) {
    this.width = width
    this.words = new Uint32Array(width * rowsExpected)
  }

  /** Adds a row of undefined contents and returns the position of its first word. */
  add(): number {
    const at = this.rows * this.width
    if (at + this.width > this.words.length) {
      const larger = new Uint32Array(this.words.length * 2)
      larger.set(this.words)
      this.words = larger
    }
    this.rows++
    return at
  }

  set64(at: number, value: number): void {
    const high = Math.floor(value / 0x100000000)
    this.words[at] = value - high * 0x100000000
    this.words[at + 1] = high
  }

  /** All rows, or those of `order` in that order, column after column, little-endian. */
  columns(order?: Uint32Array): Buffer {
    const rows = order === undefined ? this.rows : order.length
    const out = new Uint32Array(rows * this.width)
    for (let column = 0; column < this.width; column++)
      if (order === undefined) this.#column(column, out)
      else this.#orderedColumn(column, order, out)
    return Buffer.from(out.buffer)
  }

  // Methods of their own: as the insides of the loop over columns, V8 compiles them again for every table.

  #column(column: number, out: Uint32Array): void {
    const { width, words, rows } = this
    for (let to = column * rows, end = to + rows, from = column; to < end; to++, from += width)
      out[to] = words[from]!
  }

  #orderedColumn(column: number, order: Uint32Array, out: Uint32Array): void {
    const { width, words } = this
    let to = column * order.length
    for (let i = 0; i < order.length; i++) out[to++] = words[order[i]! * width + column]!
  }
}
