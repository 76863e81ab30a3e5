/** A small seeded generator (mulberry32): the same seed gives the same workload, which a failing test prints. */
export class SeededRandom {
  private state: number

  constructor(seed: number) {
    this.state = seed >>> 0
  }

  /** A float in [0, 1). */
  next(): number {
    this.state = (this.state + 0x6d2b79f5) >>> 0
    let x = this.state
    x = Math.imul(x ^ (x >>> 15), x | 1)
    x ^= x + Math.imul(x ^ (x >>> 7), x | 61)
    return ((x ^ (x >>> 14)) >>> 0) / 2 ** 32
  }

  /** An integer in [0, bound). */
  below(bound: number): number {
    return Math.floor(this.next() * bound)
  }

  /** One of `items`, which must not be empty. */
  pick<T>(items: readonly T[]): T {
    const item = items[this.below(items.length)]
    if (item === undefined) throw new Error('pick from an empty list')
    return item
  }

  /** Lower-case letters and spaces, `length` of them: text that compresses like text. */
  text(length: number): string {
    let out = ''
    while (out.length < length) out += `${this.pick(words)} `
    return out.slice(0, length)
  }
}

const words =
  'vellum ink quill scribe margin gloss folio codex scrape erase write again under above leaf gather bind chapter verse'.split(
    ' ',
  )
