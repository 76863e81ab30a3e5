/**
 * Which layers may hold a page at an LSN, newest first. Pure: made anew from the manifest's list whenever that changes.
 *
 * How a reader uses the answer. Deltas come with descending lsnEnd, an image as of LSN I comes before the deltas that
 * end at or before I and after those that end later. So a reader that walks the list and has found the page in an image
 * as of I needs of the deltas it has met only what lies in (I, lsn], and nothing of what follows: it stops. The same
 * holds for a delta layer in which the page's INIT_PAGE lies at or before the LSN. Images are sparse: one whose
 * range includes the page need not hold it, and only its index tells.
 *
 * Layers cut by pages (level 1 and images) are found through *segments*: the key space is cut at every layer's first and
 * last page, and each segment has the list of the layers that cover it. Layers that cover most of it (level 0, or an image
 * of a few pages far apart) would be in every list; they have one of their own, which is merged in.
 */
import type { Lsn, PageId } from '../../../protocol/ids.ts'

export interface MapLayer {
  readonly key: string
  readonly kind: 'delta' | 'image'
  readonly level: number
  /** Entries with lsnStart < LSN <= lsnEnd; for an image both are what its pages are as of. */
  readonly lsnStart: Lsn
  readonly lsnEnd: Lsn
  /** First and last page, both inclusive; null for a layer without pages. */
  readonly first: PageId | null
  readonly last: PageId | null
}

/** A layer that covers more segments than this is kept in the list of wide ones. */
const SEGMENTS_MAX = 32

export class LayerMap<L extends MapLayer> {
  /** Newest first. A layer's *rank* is its place here. */
  readonly #byAge: readonly L[]
  /** Where each segment begins, ascending; the first segment begins at 0:0. */
  readonly #space: Uint32Array
  readonly #page: Uint32Array
  /** Per segment, ranks ascending. */
  readonly #segments: readonly (readonly number[])[]
  /** Ranks ascending. */
  readonly #wide: readonly number[]

  constructor(layers: readonly L[]) {
    this.#byAge = layers
      .map((layer, index) => ({ layer, index }))
      .filter(({ layer }) => layer.first !== null)
      .sort((a, b) => compareAge(a.layer, b.layer) || b.index - a.index)
      .map(({ layer }) => layer)

    const narrow = this.#byAge.filter(layer => layer.level > 0)
    const starts = boundaries(narrow)
    this.#space = Uint32Array.from(starts, start => start.space)
    this.#page = Uint32Array.from(starts, start => start.page)
    const segments: number[][] = starts.map(() => [])
    const wide: number[] = []
    this.#byAge.forEach((layer, rank) => {
      const from = this.#segmentOf(layer.first!.space, layer.first!.page)
      const to = this.#segmentOf(layer.last!.space, layer.last!.page)
      if (layer.level === 0 || to - from >= SEGMENTS_MAX) wide.push(rank)
      else for (let segment = from; segment <= to; segment++) segments[segment]!.push(rank)
    })
    this.#segments = segments
    this.#wide = wide
  }

  /** All layers that have pages, newest first. */
  get layers(): readonly L[] {
    return this.#byAge
  }

  /**
   * Appends to `out`, newest first, the layers that may hold entries of the page in (floor, lsn] or an image of it in
   * that range. `floor` is an LSN at or before which nothing matters (a truncation, a version that is at hand already).
   */
  candidates(space: number, page: number, lsn: Lsn, floor: Lsn, out: L[]): L[] {
    const segment = this.#segments[this.#segmentOf(space, page)]!
    const wide = this.#wide
    let s = 0
    let w = 0
    while (s < segment.length || w < wide.length) {
      const fromSegment = w >= wide.length || (s < segment.length && segment[s]! < wide[w]!)
      const layer = this.#byAge[fromSegment ? segment[s++]! : wide[w++]!]!
      // Ranks ascend with falling lsnEnd: what follows is older still.
      if (layer.lsnEnd <= floor) break
      if (layer.kind === 'image' ? layer.lsnEnd > lsn : layer.lsnStart >= lsn) continue
      if (covers(layer, space, page)) out.push(layer)
    }
    return out
  }

  /** The last segment that begins at or before the page. */
  #segmentOf(space: number, page: number): number {
    let low = 0
    let high = this.#space.length - 1
    while (low < high) {
      const middle = (low + high + 1) >>> 1
      const s = this.#space[middle]!
      if (s < space || (s === space && this.#page[middle]! <= page)) low = middle
      else high = middle - 1
    }
    return low
  }
}

/** Sorts newest first: by falling lsnEnd, images before the deltas that end where they are. */
export function compareAge(a: MapLayer, b: MapLayer): number {
  if (a.lsnEnd !== b.lsnEnd) return b.lsnEnd - a.lsnEnd
  if (a.kind !== b.kind) return a.kind === 'image' ? -1 : 1
  return b.lsnStart - a.lsnStart
}

export function comparePages(a: PageId, b: PageId): number {
  return a.space - b.space || a.page - b.page
}

export function covers(layer: MapLayer, space: number, page: number): boolean {
  const { first, last } = layer
  if (first === null || last === null) return false
  return (
    (first.space < space || (first.space === space && first.page <= page)) &&
    (last.space > space || (last.space === space && last.page >= page))
  )
}

function boundaries(layers: readonly MapLayer[]): PageId[] {
  const starts: PageId[] = [{ space: 0, page: 0 }]
  for (const { first, last } of layers) {
    starts.push(first!)
    if (last!.page < 0xffffffff) starts.push({ space: last!.space, page: last!.page + 1 })
    else if (last!.space < 0xffffffff) starts.push({ space: last!.space + 1, page: 0 })
  }
  starts.sort(comparePages)
  return starts.filter((start, i) => i === 0 || comparePages(starts[i - 1]!, start) !== 0)
}
