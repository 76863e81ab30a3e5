/**
 * Uncompressed blocks of delta layers that a thread's readers share, least recently used goes first.
 *
 * The memory is made once, in slots of a block's size, and written over: fresh memory for every block would be garbage
 * faster than it is collected, and a worker that reads much would grow by gigabytes. A block that was given out is good
 * until `BLOCKS_MIN` others were put, so whoever walks several readers at a time, each within one block, is safe.
 */

/** A block and what it may be longer than `DELTA_BLOCK_BYTES` for its last entry; longer ones are not kept. */
const SLOT_BYTES = 65536
const BLOCKS_MIN = 48
/** Blocks of one reader; a layer file has far fewer. */
const BLOCKS_PER_READER = 2 ** 24

export class BlockCache {
  readonly #slotsMax: number
  readonly #slots: Buffer[] = []
  /** Key to slot, in the order of use. */
  readonly #places = new Map<number, { readonly slot: number; readonly bytes: Buffer }>()

  constructor(bytesMax: number) {
    this.#slotsMax = Math.max(BLOCKS_MIN, Math.floor(bytesMax / SLOT_BYTES))
  }

  get(reader: number, block: number): Buffer | undefined {
    const key = reader * BLOCKS_PER_READER + block
    const found = this.#places.get(key)
    if (found === undefined) return undefined
    this.#places.delete(key)
    this.#places.set(key, found)
    return found.bytes
  }

  /** Keeps a copy of the block and gives it. What `raw` lies in may be used for something else afterwards. */
  put(reader: number, block: number, raw: Buffer): Buffer {
    if (raw.length > SLOT_BYTES) return Buffer.from(raw)
    const slot = this.#slot()
    const bytes = this.#slots[slot]!.subarray(0, raw.length)
    raw.copy(bytes)
    this.#places.set(reader * BLOCKS_PER_READER + block, { slot, bytes })
    return bytes
  }

  #slot(): number {
    if (this.#slots.length < this.#slotsMax) return this.#slots.push(Buffer.allocUnsafeSlow(SLOT_BYTES)) - 1
    const [[key, oldest]] = this.#places as unknown as [[number, { slot: number }]]
    this.#places.delete(key)
    return oldest.slot
  }
}
