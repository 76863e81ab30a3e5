/**
 * The world of a simulation: one time, one queue of what is to happen, ordered by (time, sequence), one seed. A run is a function of
 * its seed alone. Knows nothing of what is simulated.
 */

/** Draws that depend on the seed and the stream's name only: a new draw in one stream leaves the others as they were. */
export class SimRandom {
  private state: number
  private readonly seed: string

  constructor(seed: string) {
    this.seed = seed
    let hash = 2166136261
    for (let i = 0; i < seed.length; i++) hash = Math.imul(hash ^ seed.charCodeAt(i), 16777619)
    this.state = hash | 0
    for (let i = 0; i < 4; i++) this.next()
  }

  fork(name: string): SimRandom {
    return new SimRandom(`${this.seed}/${name}`)
  }

  /** In [0, 1). Mulberry32. */
  next(): number {
    this.state = (this.state + 0x6d2b79f5) | 0
    let t = this.state
    t = Math.imul(t ^ (t >>> 15), t | 1)
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61)
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296
  }

  /** Whole number in [from, to]. */
  int(from: number, to: number): number {
    return from + Math.floor(this.next() * (to - from + 1))
  }

  /** Number in [from, to). */
  between(from: number, to: number): number {
    return from + this.next() * (to - from)
  }

  chance(probability: number): boolean {
    return this.next() < probability
  }

  pick<T>(from: readonly T[]): T {
    if (from.length === 0) throw new Error('nothing to pick from')
    return from[Math.floor(this.next() * from.length)]!
  }
}

interface Planned {
  readonly atMs: number
  readonly sequence: number
  readonly run: () => void
}

export class World {
  /** Milliseconds since the world began. */
  nowMs = 0
  readonly random: SimRandom
  /** Called after each event. */
  afterEvent: () => void = () => {}
  events = 0
  private sequence = 0
  /** Binary heap. */
  private readonly planned: Planned[] = []

  constructor(seed: number | string) {
    this.random = new SimRandom(String(seed))
  }

  /** Events that are planned. */
  get waiting(): number {
    return this.planned.length
  }

  after(ms: number, run: () => void): void {
    this.at(this.nowMs + ms, run)
  }

  at(ms: number, run: () => void): void {
    const item = { atMs: Math.max(ms, this.nowMs), sequence: this.sequence++, run }
    const heap = this.planned
    let at = heap.length
    while (at > 0) {
      const parent = (at - 1) >> 1
      if (!isBefore(item, heap[parent]!)) break
      heap[at] = heap[parent]!
      at = parent
    }
    heap[at] = item
  }

  /** Lets happen what is planned up to `ms`, or until `isOver` says so. */
  runUntil(ms: number, isOver: () => boolean = () => false): void {
    while (this.planned.length > 0 && this.planned[0]!.atMs <= ms) {
      const next = this.take()
      this.nowMs = next.atMs
      this.events++
      next.run()
      this.afterEvent()
      if (isOver()) return
    }
    this.nowMs = Math.max(this.nowMs, ms)
  }

  private take(): Planned {
    const heap = this.planned
    const first = heap[0]!
    const item = heap.pop()!
    const length = heap.length
    if (length === 0) return first
    let at = 0
    for (;;) {
      let child = 2 * at + 1
      if (child >= length) break
      if (child + 1 < length && isBefore(heap[child + 1]!, heap[child]!)) child++
      if (!isBefore(heap[child]!, item)) break
      heap[at] = heap[child]!
      at = child
    }
    heap[at] = item
    return first
  }
}

function isBefore(a: Planned, b: Planned): boolean {
  return a.atMs < b.atMs || (a.atMs === b.atMs && a.sequence < b.sequence)
}
