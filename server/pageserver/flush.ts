/**
 * Writes a frozen memtable to a local file as one delta layer: every page's entries, pages sorted. Runs in a worker.
 *
 * The arenas have each range sorted by page already, in the encoding of a layer, and a page's runs chained newest first; so
 * this is a walk over the sorted pages with one turn of each chain, and runs go from the arena into the layer's blocks whole.
 */
import type { Lsn, TimelineId } from '../../protocol/ids.ts'
import { PairTable } from '../shared/shared-memory.ts'
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

/** Pages in ascending order with their newest run, as a sorted array of keys (space in the high half) and a table. */
function sortPages(triples: Uint32Array): { keys: Uint32Array; runs: PairTable } {
  const pages = triples.length / 3
  const keys = new BigUint64Array(pages)
  // Little-endian: the low half of a key comes first.
  const words = new Uint32Array(keys.buffer)
  const runs = new PairTable(pages)
  for (let i = 0; i < pages; i++) {
    words[2 * i] = triples[3 * i + 1]!
    words[2 * i + 1] = triples[3 * i]!
    runs.set(triples[3 * i]!, triples[3 * i + 1]!, triples[3 * i + 2]!)
  }
  keys.sort()
  return { keys: words, runs }
}

/** The file is complete and synced when this returns; on an error it is gone. */
export function flushMemtable(memory: ArenaMemory, input: FlushInput): LayerSummary {
  const bytes = Buffer.from(memory.geometry.buffer)
  const cursor = new RunCursor(memory)
  const { keys, runs } = sortPages(input.triples)
  const writer = new DeltaLayerWriter(input.path, {
    timeline: input.timeline,
    generation: input.generation,
    lsnStart: input.lsnStart,
    lsnEnd: input.lsnEnd,
    // The next compaction reads it once and replaces it; compressing it twice would cost more than anything else here.
    zstdLevel: 0,
  })
  try {
    const chain: number[] = []
    for (let i = 0; i < keys.length; i += 2) {
      const page = keys[i]!
      const space = keys[i + 1]!
      writer.beginPage(space, page)
      chain.length = 0
      for (let run = runs.get(space, page); run !== NO_WORD; run = cursor.previous(run)) chain.push(run)
      for (let c = chain.length - 1; c >= 0; c--) {
        cursor.open(chain[c]!)
        // The index of a layer points at entries with INIT_PAGE, so the writer must be told of each.
        if (!cursor.hasInit) writer.addEntries(bytes, cursor)
        else
          while (cursor.next())
            writer.addEntry(cursor.lsn, cursor.flags, bytes, cursor.start, cursor.end - cursor.start)
      }
    }
    return writer.finish({ catalogueEvents: input.events, timeSamples: input.samples })
  } catch (error) {
    writer.abort()
    throw error
  }
}
