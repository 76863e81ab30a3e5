/**
 * Memory that the main thread and its workers see at the same addresses.
 *
 * Everything large in a page server lies in a few SharedArrayBuffers that are made once, at start, and handed to every
 * worker once. After that only numbers travel between threads: a place, a length, a result. This module has the two
 * things that need care everywhere: views that are made once and not per use (a fresh `subarray` costs more than many
 * of the things done with it), and a table keyed by two 32-bit numbers that neither allocates nor hashes strings.
 */

/** A SharedArrayBuffer with the views that its users want, made once per thread. */
export class SharedRegion {
  readonly buffer: SharedArrayBuffer
  readonly bytes: Uint8Array
  readonly u32: Uint32Array
  readonly i32: Int32Array

  constructor(buffer: SharedArrayBuffer) {
    this.buffer = buffer
    this.bytes = new Uint8Array(buffer)
    this.u32 = new Uint32Array(buffer)
    this.i32 = new Int32Array(buffer)
  }

  static allocate(byteLength: number): SharedRegion {
    return new SharedRegion(new SharedArrayBuffer(byteLength))
  }
}

/** What `PairTable.get` answers when the key is not there; never a valid value. */
export const PAIR_ABSENT = 0xffffffff

const SLOT_EMPTY = 0
const SLOT_USED = 1

/**
 * Open-addressing hash table from a pair of unsigned 32-bit numbers to an unsigned 32-bit number below `PAIR_ABSENT`,
 * in typed arrays, for one thread. Linear probing at a load of at most one half; deletion shifts the rest of the run
 * back, so that no tombstones slow later lookups.
 */
export class PairTable {
  #capacity: number
  #mask: number
  #a: Uint32Array
  #b: Uint32Array
  #value: Uint32Array
  #state: Uint8Array
  #size = 0

  constructor(expected = 64) {
    let capacity = 128
    while (capacity < expected * 2) capacity *= 2
    this.#capacity = capacity
    this.#mask = capacity - 1
    this.#a = new Uint32Array(capacity)
    this.#b = new Uint32Array(capacity)
    this.#value = new Uint32Array(capacity)
    this.#state = new Uint8Array(capacity)
  }

  get size(): number {
    return this.#size
  }

  #slot(a: number, b: number): number {
    // Two odd multipliers and a final mix: neighbouring page numbers of one space spread over the whole table.
    let h = Math.imul(a, 0x9e3779b1) ^ Math.imul(b, 0x85ebca6b)
    h ^= h >>> 15
    h = Math.imul(h, 0x2c1b3c6d)
    h ^= h >>> 13
    return h & this.#mask
  }

  get(a: number, b: number): number {
    let i = this.#slot(a, b)
    while (this.#state[i] === SLOT_USED) {
      if (this.#b[i] === b && this.#a[i] === a) return this.#value[i]!
      i = (i + 1) & this.#mask
    }
    return PAIR_ABSENT
  }

  /** Sets the value and returns the one before, or `PAIR_ABSENT`. */
  set(a: number, b: number, value: number): number {
    let i = this.#slot(a, b)
    while (this.#state[i] === SLOT_USED) {
      if (this.#b[i] === b && this.#a[i] === a) {
        const before = this.#value[i]!
        this.#value[i] = value
        return before
      }
      i = (i + 1) & this.#mask
    }
    this.#state[i] = SLOT_USED
    this.#a[i] = a
    this.#b[i] = b
    this.#value[i] = value
    if (++this.#size * 2 > this.#capacity) this.#grow()
    return PAIR_ABSENT
  }

  delete(a: number, b: number): boolean {
    let i = this.#slot(a, b)
    while (this.#state[i] === SLOT_USED) {
      if (this.#b[i] === b && this.#a[i] === a) {
        this.#closeGap(i)
        this.#size--
        return true
      }
      i = (i + 1) & this.#mask
    }
    return false
  }

  #closeGap(start: number): void {
    let gap = start
    let i = (gap + 1) & this.#mask
    while (this.#state[i] === SLOT_USED) {
      const home = this.#slot(this.#a[i]!, this.#b[i]!)
      // The entry may move back to the gap unless its home lies cyclically in (gap, i].
      const stays = gap <= i ? gap < home && home <= i : gap < home || home <= i
      if (!stays) {
        this.#a[gap] = this.#a[i]!
        this.#b[gap] = this.#b[i]!
        this.#value[gap] = this.#value[i]!
        gap = i
      }
      i = (i + 1) & this.#mask
    }
    this.#state[gap] = SLOT_EMPTY
  }

  #grow(): void {
    const a = this.#a
    const b = this.#b
    const value = this.#value
    const state = this.#state
    this.#capacity *= 2
    this.#mask = this.#capacity - 1
    this.#a = new Uint32Array(this.#capacity)
    this.#b = new Uint32Array(this.#capacity)
    this.#value = new Uint32Array(this.#capacity)
    this.#state = new Uint8Array(this.#capacity)
    for (let i = 0; i < state.length; i++) {
      if (state[i] !== SLOT_USED) continue
      let j = this.#slot(a[i]!, b[i]!)
      while (this.#state[j] === SLOT_USED) j = (j + 1) & this.#mask
      this.#state[j] = SLOT_USED
      this.#a[j] = a[i]!
      this.#b[j] = b[i]!
      this.#value[j] = value[i]!
    }
  }

  forEach(visit: (a: number, b: number, value: number) => void): void {
    for (let i = 0; i < this.#capacity; i++)
      if (this.#state[i] === SLOT_USED) visit(this.#a[i]!, this.#b[i]!, this.#value[i]!)
  }

  /** All entries as triples (a, b, value) in one array, in no particular order. */
  toTriples(): Uint32Array<ArrayBuffer> {
    const out = new Uint32Array(this.#size * 3)
    let at = 0
    this.forEach((a, b, value) => {
      out[at++] = a
      out[at++] = b
      out[at++] = value
    })
    return out
  }

  /** Bytes that the table takes, for the memory account. */
  get byteLength(): number {
    return this.#capacity * 13
  }
}
