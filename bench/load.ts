// The load generator: asks a source for pages in three patterns and measures how many come a second.
import { build } from 'hdr-histogram-js'

/** Something that can be asked for pages: our protocol's client, or a bare socket. */
export interface PageSource {
  readonly name: string
  /**
   * Asks for pages in one request and waits for all of them.
   * @param pages pairs: space id, page number
   * @throws if one of them did not come
   */
  fetch(pages: Uint32Array): Promise<void>
  close(): Promise<void>
}

export type Pattern = { name: string; depth: number; pagesPerRequest: number }

/** One at a time; many requests in flight; many pages a request. */
export const patterns: readonly Pattern[] = [
  { name: 'one at a time', depth: 1, pagesPerRequest: 1 },
  { name: 'pipelined, 32 in flight', depth: 32, pagesPerRequest: 1 },
  { name: 'batches of 64', depth: 4, pagesPerRequest: 64 },
]

export type Measured = {
  pages: number
  seconds: number
  pagesPerSecond: number
  latencyUsP50: number
  latencyUsP99: number
}

/** Gives the next page to ask for: writes space and page number at `words[at]` and `words[at + 1]`; false if none is left. */
export type Chooser = (words: Uint32Array, at: number) => boolean

/** Asks for pages at random, again and again, from a list of pairs. */
export function atRandom(pages: Uint32Array): Chooser {
  const count = pages.length >>> 1
  let state = 0x9e3779b9
  return (words, at) => {
    // xorshift32: cheap, and the same sequence in each run
    state ^= state << 13
    state ^= state >>> 17
    state ^= state << 5
    const i = (state >>> 0) % count
    words[at] = pages[2 * i]!
    words[at + 1] = pages[2 * i + 1]!
    return true
  }
}

/** Asks for each page of a list once, in a fixed order that is not the list's. */
export function eachOnce(pages: Uint32Array): Chooser {
  const order = new Uint32Array(pages)
  let state = 0x2545f491
  for (let i = (order.length >>> 1) - 1; i > 0; i--) {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0
    const j = state % (i + 1)
    for (const half of [0, 1]) {
      const kept = order[2 * i + half]!
      order[2 * i + half] = order[2 * j + half]!
      order[2 * j + half] = kept
    }
  }
  let next = 0
  return (words, at) => {
    if (next >= order.length) return false
    words[at] = order[next++]!
    words[at + 1] = order[next++]!
    return true
  }
}

/**
 * Drives one source in one pattern.
 * @param seconds how long to measure, after `warmupSeconds` that do not count; ends early when the chooser has no more
 */
export async function drive(
  source: PageSource,
  pattern: Pattern,
  choose: Chooser,
  seconds: number,
  warmupSeconds = 0,
): Promise<Measured> {
  const histogram = build({
    lowestDiscernibleValue: 1,
    highestTrackableValue: 60_000_000,
    numberOfSignificantValueDigits: 3,
  })
  const { depth, pagesPerRequest } = pattern
  let from = performance.now() + warmupSeconds * 1000
  const until = from + seconds * 1000
  if (warmupSeconds === 0) from = performance.now()
  let pages = 0
  let last = from
  const lane = async (): Promise<void> => {
    const words = new Uint32Array(2 * pagesPerRequest)
    for (;;) {
      let count = 0
      while (count < pagesPerRequest && choose(words, 2 * count)) count++
      if (count === 0) return
      const sent = performance.now()
      if (sent >= until) return
      await source.fetch(count === pagesPerRequest ? words : words.subarray(0, 2 * count))
      const now = performance.now()
      if (now < from) continue
      if (now > until) return
      histogram.recordValue(Math.max(1, Math.round((now - sent) * 1000)))
      pages += count
      last = now
    }
  }
  await Promise.all(Array.from({ length: depth }, lane))
  const elapsed = (last - from) / 1000
  return {
    pages,
    seconds: elapsed,
    pagesPerSecond: elapsed > 0 ? pages / elapsed : 0,
    latencyUsP50: histogram.getValueAtPercentile(50),
    latencyUsP99: histogram.getValueAtPercentile(99),
  }
}
