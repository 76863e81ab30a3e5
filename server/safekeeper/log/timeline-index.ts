/**
 * Which entries of the raw segments are a timeline's redo: what has been applied and is valid, by LSN. (What lies in packs is
 * found through their own tables.) A timeline without any costs nothing.
 */
import type { Lsn, TimelineId } from '../../../protocol/ids.ts'

/** Rows ascend in index and LSN, and each begins where the one before ends: only such redo is valid. */
interface Rows {
  indexes: number[]
  begins: number[]
  /** Rows before it have gone. */
  head: number
  endLsn: Lsn
}

export interface IndexHit {
  /** Of the entry that begins at the LSN. */
  readonly index: number
  /** Following rows of the timeline, this one first: for reading ahead. */
  readonly following: (count: number) => number[]
}

export class TimelineIndex {
  readonly #timelines = new Map<TimelineId, Rows>()
  #rows = 0

  get timelines(): number {
    return this.#timelines.size
  }

  get rows(): number {
    return this.#rows
  }

  add(timeline: TimelineId, index: number, beginLsn: Lsn, endLsn: Lsn): void {
    let rows = this.#timelines.get(timeline)
    if (rows === undefined) {
      rows = { indexes: [], begins: [], head: 0, endLsn }
      this.#timelines.set(timeline, rows)
    }
    rows.indexes.push(index)
    rows.begins.push(beginLsn)
    rows.endLsn = endLsn
    this.#rows++
  }

  /** LSNs that are held for a timeline here; undefined if none. */
  range(timeline: TimelineId): { beginLsn: Lsn; endLsn: Lsn } | undefined {
    const rows = this.#timelines.get(timeline)
    return rows && { beginLsn: rows.begins[rows.head]! as Lsn, endLsn: rows.endLsn }
  }

  /** The entry of a timeline that begins at `lsn`, or the LSNs of entries around it. The caller has looked at `range`. */
  seek(timeline: TimelineId, lsn: Lsn): IndexHit | { readonly before: Lsn; readonly after: Lsn } {
    const rows = this.#timelines.get(timeline)!
    const { begins, indexes } = rows
    let low = rows.head
    let high = begins.length
    while (low < high) {
      const middle = (low + high) >>> 1
      if (begins[middle]! < lsn) low = middle + 1
      else high = middle
    }
    if (begins[low] !== lsn)
      return { before: begins[low - 1] as Lsn, after: (begins[low] ?? rows.endLsn) as Lsn }
    return { index: indexes[low]!, following: count => indexes.slice(low, low + count) }
  }

  /** Whether any timeline has redo in entries up to `index` that ends beyond what is `neededFrom`. */
  isNeeded(index: number, neededFrom: (timeline: TimelineId) => Lsn | undefined): boolean {
    for (const [timeline, { indexes, begins, head, endLsn }] of this.#timelines) {
      let low = head
      let high = indexes.length
      while (low < high) {
        const middle = (low + high) >>> 1
        if (indexes[middle]! <= index) low = middle + 1
        else high = middle
      }
      if (low === head) continue
      const end = begins[low] ?? endLsn
      if (end > (neededFrom(timeline) ?? Number.MAX_SAFE_INTEGER)) return true
    }
    return false
  }

  /** Forgets the entries up to `index`: they are in a pack now, or gone. */
  dropThrough(index: number): void {
    for (const [timeline, rows] of this.#timelines) {
      const { indexes } = rows
      let head = rows.head
      while (head < indexes.length && indexes[head]! <= index) head++
      this.#rows -= head - rows.head
      rows.head = head
      if (head === indexes.length) this.#timelines.delete(timeline)
      else if (head > 1024 || head > indexes.length / 2) {
        rows.indexes = indexes.slice(head)
        rows.begins = rows.begins.slice(head)
        rows.head = 0
      }
    }
  }

  forget(timeline: TimelineId): void {
    const rows = this.#timelines.get(timeline)
    if (rows === undefined) return
    this.#rows -= rows.indexes.length - rows.head
    this.#timelines.delete(timeline)
  }

  clear(): void {
    this.#timelines.clear()
    this.#rows = 0
  }
}
