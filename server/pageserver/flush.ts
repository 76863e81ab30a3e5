/**
 * Writes a frozen memtable to a local file as one delta layer: every page's entries, pages sorted. Runs in a worker.
 *
 * The arenas have each range sorted by page already, in the encoding of a layer, and a page's runs chained newest first; so
 * this is a walk over the sorted pages with one turn of each chain, and runs go from the arena into the layer's blocks whole.
 */
import { RowSort } from '../../parser/row-sort.ts'
import type { Lsn, TimelineId } from '../../protocol/ids.ts'
import { type ArenaMemory, NO_WORD } from './arena.ts'
import type { CatalogueEvent } from './catalogue-codec.ts'
import { DeltaLayerWriter } from './delta-layer.ts'
import type { LayerSummary } from './layer-file-writer.ts'
import { RunCursor } from './run-index.ts'
import type { TimeSample } from './time-samples.ts'

export interface FlushInput {
  /** (space, page, newest run) of each page, in any order. */
  readonly triples: Uint32Array
  /** Where the file is made; it must not exist. */
  readonly path: string
  readonly timeline: TimelineId
  readonly generation: number
  readonly lsnStart: Lsn
  readonly lsnEnd: Lsn
  readonly events: readonly CatalogueEvent[]
  readonly samples: readonly TimeSample[]
}

/** Of `FlushInput.triples`. */
const TRIPLE = { rowWords: 3, space: 0, page: 1 } as const
const NEWEST_RUN = 2

/** Walks pages with their runs into the writer. */
class PageWalk {
  readonly #writer: DeltaLayerWriter
  readonly #bytes: Buffer
  readonly #cursor: RunCursor
  /** Runs of the page at hand, newest first. */
  readonly #chain: number[] = []

  constructor(memory: ArenaMemory, writer: DeltaLayerWriter) {
    this.#writer = writer
    this.#bytes = Buffer.from(memory.geometry.buffer)
    this.#cursor = new RunCursor(memory)
  }

  // Methods of their own, and not the insides of one loop: those V8 would compile again each time that such a loop has ended.

  page(space: number, page: number, newestRun: number): void {
    const chain = this.#chain
    chain.length = 0
    for (let run = newestRun; run !== NO_WORD; run = this.#cursor.previous(run)) chain.push(run)
    this.#writer.beginPage(space, page)
    for (let c = chain.length - 1; c >= 0; c--) this.#run(chain[c]!)
  }

  #run(run: number): void {
    const cursor = this.#cursor
    cursor.open(run)
    if (cursor.hasInit) this.#entries()
    else this.#writer.addEntries(this.#bytes, cursor)
  }

  /** One by one: the index of a layer points at entries with INIT_PAGE, so the writer must be told of each. */
  #entries(): void {
    const cursor = this.#cursor
    while (cursor.next())
      this.#writer.addEntry(cursor.lsn, cursor.flags, this.#bytes, cursor.start, cursor.end - cursor.start)
  }
}

/** The file is complete when this returns; on an error it is gone. */
export function flushMemtable(memory: ArenaMemory, input: FlushInput): LayerSummary {
  const { triples } = input
  const pages = triples.length / TRIPLE.rowWords
  const order = new RowSort(TRIPLE).sort(triples, pages)
  const writer = new DeltaLayerWriter(input.path, {
    timeline: input.timeline,
    generation: input.generation,
    lsnStart: input.lsnStart,
    lsnEnd: input.lsnEnd,
    // The next compaction reads it once and replaces it; compressing it twice would cost more than anything else here.
    zstdLevel: 0,
  })
  try {
    const walk = new PageWalk(memory, writer)
    for (let i = 0; i < pages; i++) {
      const row = TRIPLE.rowWords * order[i]!
      walk.page(triples[row + TRIPLE.space]!, triples[row + TRIPLE.page]!, triples[row + NEWEST_RUN]!)
    }
    return writer.finish({ catalogueEvents: input.events, timeSamples: input.samples })
  } catch (error) {
    writer.abort()
    throw error
  }
}
