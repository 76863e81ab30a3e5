/** Which term each entry of the log has: one row per run of equal terms, so a few rows for millions of entries. */
import type { EntryRun, LogIndex, Term } from '../core/types.ts'

export class TermList {
  /** First index of each run, ascending, and its term. */
  readonly #firsts: number[] = []
  readonly #terms: Term[] = []
  #baseIndex: number
  #baseTerm: Term
  #last: number

  constructor(baseIndex: LogIndex, baseTerm: Term) {
    this.#baseIndex = baseIndex
    this.#baseTerm = baseTerm
    this.#last = baseIndex
  }

  get lastIndex(): LogIndex {
    return this.#last as LogIndex
  }

  get lastTerm(): Term {
    return this.#terms.at(-1) ?? this.#baseTerm
  }

  push(term: Term, count = 1): void {
    if (count <= 0) return
    if (this.#terms.length === 0 || this.#terms.at(-1) !== term) {
      this.#firsts.push(this.#last + 1)
      this.#terms.push(term)
    }
    this.#last += count
  }

  /** Of an entry, or of the base; undefined outside. */
  termAt(index: number): Term | undefined {
    if (index === this.#baseIndex) return this.#baseTerm
    if (index < this.#baseIndex || index > this.#last) return undefined
    let low = 0
    let high = this.#firsts.length
    while (low < high) {
      const middle = (low + high) >>> 1
      if (this.#firsts[middle]! <= index) low = middle + 1
      else high = middle
    }
    return this.#terms[low - 1]
  }

  reset(baseIndex: LogIndex, baseTerm: Term): void {
    this.#firsts.length = 0
    this.#terms.length = 0
    this.#baseIndex = baseIndex
    this.#baseTerm = baseTerm
    this.#last = baseIndex
  }

  cutAfter(index: number): void {
    while (this.#firsts.length > 0 && this.#firsts.at(-1)! > index) {
      this.#firsts.pop()
      this.#terms.pop()
    }
    this.#last = Math.min(this.#last, index)
  }

  /** Makes an entry of the list its base. */
  trimTo(index: number): void {
    const term = this.termAt(index)
    if (term === undefined) return
    let gone = 0
    while (gone < this.#firsts.length && (this.#firsts[gone + 1] ?? this.#last + 1) <= index + 1) gone++
    this.#firsts.splice(0, gone)
    this.#terms.splice(0, gone)
    if (this.#firsts.length > 0 && this.#firsts[0]! <= index) this.#firsts[0] = index + 1
    this.#baseIndex = index
    this.#baseTerm = term
  }

  /** Of the entries in (base, last]. */
  runs(): EntryRun[] {
    return this.#terms.map((term, i) => ({
      term,
      count: (this.#firsts[i + 1] ?? this.#last + 1) - this.#firsts[i]!,
    }))
  }
}
