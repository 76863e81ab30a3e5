/** Uncompressed blocks of delta layers that a thread's readers share, bounded in bytes, least recently used goes first. */
import { LRUCache } from 'lru-cache'

/** Blocks of one reader; a layer file has far fewer. */
const BLOCKS_PER_READER = 2 ** 24

export class BlockCache {
  readonly #lru: LRUCache<number, Buffer>

  constructor(bytesMax: number) {
    this.#lru = new LRUCache({ maxSize: bytesMax, sizeCalculation: block => block.length + 64 })
  }

  get(reader: number, block: number): Buffer | undefined {
    return this.#lru.get(reader * BLOCKS_PER_READER + block)
  }

  set(reader: number, block: number, bytes: Buffer): void {
    this.#lru.set(reader * BLOCKS_PER_READER + block, bytes)
  }
}
