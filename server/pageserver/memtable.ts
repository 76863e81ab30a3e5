/**
 * The newest redo of a timeline, readable by page: which runs each page has, over the arenas that hold them.
 *
 * A memtable is open (the last one of its timeline, growing), then frozen (waiting for, or being, written to a layer), then
 * flushed. Its LSN range (beginLsn, endLsn] is contiguous with that of its neighbours. The arenas are let go when it has
 * been flushed and no task reads them any more.
 */
import type { Lsn } from '../../protocol/ids.ts'
import { PAIR_ABSENT, PairTable } from '../shared/shared-memory.ts'
import { type ArenaPool, NO_WORD } from './arena.ts'
import type { CatalogueEvent } from './catalogue-codec.ts'
import { RangeView } from './run-index.ts'

/** Told of each page that a range changes, in the order (space, page). */
export type PageChanged = (space: number, page: number, firstLsn: Lsn) => void

export class Memtable {
  readonly beginLsn: Lsn
  endLsn: Lsn
  /** Redo bytes; indexes come on top. */
  bytes = 0
  /** When its first redo was linked, in milliseconds of a monotonic clock; for the flush by age. */
  firstLinkedAtMs: number | undefined
  readonly events: CatalogueEvent[] = []
  readonly #runs = new PairTable(1024)
  readonly #arenas = new Set<number>()
  readonly #pool: ArenaPool
  #readers = 0
  #flushed = false

  constructor(pool: ArenaPool, beginLsn: Lsn) {
    this.#pool = pool
    this.beginLsn = beginLsn
    this.endLsn = beginLsn
  }

  get isEmpty(): boolean {
    return this.endLsn === this.beginLsn
  }

  get pages(): number {
    return this.#runs.size
  }

  get arenas(): ReadonlySet<number> {
    return this.#arenas
  }

  /** Holds the arena until the memtable is flushed and read no more. */
  hold(arena: number): void {
    if (this.#arenas.has(arena)) return
    this.#pool.retain(arena)
    this.#arenas.add(arena)
  }

  /** Joins an indexed range, whose redo follows `endLsn` directly, to the memtable. */
  link(header: number, redoBytes: number, endLsn: Lsn, changed: PageChanged): void {
    const range = new RangeView(this.#pool.memory, header)
    if (range.begin !== this.endLsn)
      throw new Error(`a range of redo from LSN ${range.begin} is linked after LSN ${this.endLsn}`)
    const runs = this.#runs
    for (let p = 0; p < range.pages; p++) {
      const space = range.space(p)
      const page = range.page(p)
      const run = range.run(p)
      const previous = runs.set(space, page, run)
      range.setPrevious(run, previous === PAIR_ABSENT ? NO_WORD : previous)
      changed(space, page, range.firstLsn(p))
    }
    this.endLsn = endLsn
    this.bytes += redoBytes
  }

  /** The newest run of the page, or NO_WORD. */
  newestRun(space: number, page: number): number {
    const run = this.#runs.get(space, page)
    return run === PAIR_ABSENT ? NO_WORD : run
  }

  /** (space, page, newest run) of every page, unsorted, for the worker that writes the layer. */
  toTriples(): Uint32Array<ArrayBuffer> {
    return this.#runs.toTriples()
  }

  /** A task reads the arenas until `release`. */
  acquire(): void {
    this.#readers++
  }

  release(): void {
    this.#readers--
    this.#letGo()
  }

  /** The layer is in the manifest: whoever looks from now on finds the redo there. */
  markFlushed(): void {
    this.#flushed = true
    this.#letGo()
  }

  #letGo(): void {
    if (!this.#flushed || this.#readers > 0) return
    for (const arena of this.#arenas) this.#pool.release(arena)
    this.#arenas.clear()
  }
}
