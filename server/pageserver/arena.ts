/**
 * Where redo lies between its arrival and its layer: a fixed number of equal *arenas* in one SharedArrayBuffer.
 *
 *     arena:  | redo bytes, in LSN order  → | free | ← indexes of ranges |
 *
 * The main thread puts redo at the bottom (the socket reads straight into it); workers put what they have made of it, ordered
 * by page (run-index.ts), at the top of the same or, when there is much, of another arena. Neither knows exactly how far
 * the other will come, so both take their bytes first from one atomic counter per arena: as long as the counter does not go
 * below zero, bottom and top cannot meet.
 *
 * A place in the memory is a *word*: its byte offset divided by 8. Word 0 lies in the control block and therefore serves as
 * "nothing". All of it lies below 4 GiB: Node.js's Buffer.copy takes offsets in 32 bits, and beyond copies other bytes without
 * a word.
 *
 * Arenas are counted references: redo holds its arena until it is linked, each memtable those that have any of its indexes.
 * An arena may belong to two memtables (one was frozen while it was half full), and is free again when the last of them has been flushed and
 * its readers have gone.
 */
import { SharedRegion } from '../shared/shared-memory.ts'

/** Bytes before the first arena: the control block, one cache line for each arena's two counters. */
const CONTROL_BYTES_PER_ARENA = 64
const FREE_BYTES = 0
const TOP_BYTES = 1

export const NO_WORD = 0

/** Control block and arenas together. */
const MEMORY_BYTES_MAX = 2 ** 32

/** As many arenas of that size as there can be. */
export function arenasMax(arenaBytes: number): number {
  return Math.floor(MEMORY_BYTES_MAX / (arenaBytes + CONTROL_BYTES_PER_ARENA))
}

/** What workers need to know to use the memory. Structured-cloneable. */
export interface ArenaGeometry {
  readonly buffer: SharedArrayBuffer
  readonly arenaBytes: number
  readonly arenas: number
  readonly firstByte: number
}

/** The view of the arenas that any thread may have: bytes, and space for indexes. */
export class ArenaMemory {
  readonly region: SharedRegion
  readonly view: DataView
  readonly geometry: ArenaGeometry

  constructor(geometry: ArenaGeometry) {
    this.geometry = geometry
    this.region = new SharedRegion(geometry.buffer)
    this.view = new DataView(geometry.buffer)
  }

  static allocate(totalBytes: number, arenaBytes: number): ArenaMemory {
    const arenas = Math.max(3, Math.floor(totalBytes / arenaBytes))
    if (arenas > arenasMax(arenaBytes))
      throw new RangeError(`${arenas} arenas of ${arenaBytes} bytes: they must lie below 4 GiB`)
    const firstByte = arenas * CONTROL_BYTES_PER_ARENA
    const buffer = new SharedArrayBuffer(firstByte + arenas * arenaBytes)
    return new ArenaMemory({ buffer, arenaBytes, arenas, firstByte })
  }

  start(arena: number): number {
    return this.geometry.firstByte + arena * this.geometry.arenaBytes
  }

  reset(arena: number): void {
    const at = (arena * CONTROL_BYTES_PER_ARENA) >> 2
    Atomics.store(this.region.i32, at + FREE_BYTES, this.geometry.arenaBytes)
    Atomics.store(this.region.i32, at + TOP_BYTES, this.geometry.arenaBytes)
  }

  /** Takes `bytes` (rounded up to 8) out of the arena's free ones; false when there are not so many. */
  take(arena: number, bytes: number): boolean {
    const rounded = (bytes + 7) & ~7
    const at = ((arena * CONTROL_BYTES_PER_ARENA) >> 2) + FREE_BYTES
    if (Atomics.sub(this.region.i32, at, rounded) >= rounded) return true
    Atomics.add(this.region.i32, at, rounded)
    return false
  }

  /** Gives back what `take` took and nobody used. */
  giveBack(arena: number, bytes: number): void {
    const at = ((arena * CONTROL_BYTES_PER_ARENA) >> 2) + FREE_BYTES
    Atomics.add(this.region.i32, at, (bytes + 7) & ~7)
  }

  /**
   * For an index: room at the arena's top, as a byte offset in the memory (a multiple of 8), or -1. `taken` bytes of it
   * were taken before; what is too much of them, or all of them if there is no room, is given back. Any thread.
   */
  takeTop(arena: number, bytes: number, taken = 0): number {
    const rounded = (bytes + 7) & ~7
    const before = (taken + 7) & ~7
    if (rounded <= before) this.giveBack(arena, before - rounded)
    else if (!this.take(arena, rounded - before)) {
      this.giveBack(arena, before)
      return -1
    }
    const at = ((arena * CONTROL_BYTES_PER_ARENA) >> 2) + TOP_BYTES
    return this.start(arena) + Atomics.sub(this.region.i32, at, rounded) - rounded
  }

  freeBytes(arena: number): number {
    return Atomics.load(this.region.i32, ((arena * CONTROL_BYTES_PER_ARENA) >> 2) + FREE_BYTES)
  }
}

/** The main thread's account of the arenas: which are free, who holds which, where the next redo byte goes. */
export class ArenaPool {
  readonly memory: ArenaMemory
  readonly #references: Int32Array
  readonly #free: number[] = []
  readonly #waiters: (() => void)[] = []
  /** Arenas that redo must leave alone, so that the index of what has arrived always finds room. */
  readonly #reserve: number

  constructor(memory: ArenaMemory) {
    this.memory = memory
    const { arenas } = memory.geometry
    this.#references = new Int32Array(arenas)
    for (let i = arenas - 1; i >= 0; i--) this.#free.push(i)
    this.#reserve = arenas >= 6 ? 2 : 1
  }

  get arenaBytes(): number {
    return this.memory.geometry.arenaBytes
  }

  get total(): number {
    return this.memory.geometry.arenas
  }

  get freeCount(): number {
    return this.#free.length
  }

  /** Whether somebody waits for an arena. */
  get awaited(): boolean {
    return this.#waiters.length > 0
  }

  /** Whether redo could have an arena now. */
  get hasRoom(): boolean {
    return this.#free.length > this.#reserve
  }

  /** An empty arena with one reference, or -1. `forIndex` may use the reserve as well. */
  acquire(forIndex: boolean): number {
    if (this.#free.length <= (forIndex ? 0 : this.#reserve)) return -1
    const arena = this.#free.pop()!
    this.memory.reset(arena)
    this.#references[arena] = 1
    return arena
  }

  retain(arena: number): void {
    if (this.#references[arena]! <= 0) throw new Error(`arena ${arena} is retained but free`)
    this.#references[arena] = this.#references[arena]! + 1
  }

  release(arena: number): void {
    const left = this.#references[arena]! - 1
    if (left < 0) throw new Error(`arena ${arena} is released but free`)
    this.#references[arena] = left
    if (left > 0) return
    this.#free.push(arena)
    for (const wake of this.#waiters.splice(0)) wake()
  }

  /** Resolves when an arena has become free since the call. */
  freed(): Promise<void> {
    return new Promise(resolve => this.#waiters.push(resolve))
  }
}
