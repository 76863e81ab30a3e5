/**
 * What the page server's worker threads can do: the entry file of the Piscina pools, one exported task each.
 *
 * A thread gets the shared memories once, as `workerData`, and keeps its indexer, its applier and its open layer files from
 * task to task. Tasks are synchronous: a thread does one thing at a time, and the pool decides which.
 */
import { workerData } from 'node:worker_threads'
import { ChunkIndexer } from '../../parser/chunk-index.ts'
import type { SpaceEvent } from '../../parser/space-events.ts'
import type { Lsn } from '../../protocol/ids.ts'
import { task } from '../shared/worker-pool.ts'
import { type ArenaGeometry, ArenaMemory } from './arena.ts'
import { placeRangeIndex, rangeIndexBytes } from './run-index.ts'

export interface PageServerWorkerData {
  readonly arenas: ArenaGeometry
  readonly cache: SharedArrayBuffer
}

// Piscina wraps the data: [its own, ours].
const data = (Array.isArray(workerData) ? workerData[1] : workerData) as PageServerWorkerData
const arenas = new ArenaMemory(data.arenas)

const indexers = new Map<number, ChunkIndexer>()
let scratch = new Uint32Array(1 << 20)

function indexerFor(innodbPageSize: number): ChunkIndexer {
  let indexer = indexers.get(innodbPageSize)
  if (indexer === undefined) {
    indexer = new ChunkIndexer({ pageBytesMax: innodbPageSize, hashSeed: (Math.random() * 0x7fffffff) | 0 })
    indexers.set(innodbPageSize, indexer)
  }
  return indexer
}

export interface IndexRangeInput {
  /** Byte offset of the redo in the arena memory. */
  readonly at: number
  readonly bytes: number
  readonly begin: Lsn
  readonly indexArena: number
  readonly innodbPageSize: number
}

export type IndexRangeResult =
  | {
      readonly status: 'ok'
      /** Word of the range's index. */
      readonly header: number
      readonly events: SpaceEvent[]
      readonly mtrs: number
      readonly records: number
    }
  /** The arena has no room for the index. */
  | { readonly status: 'no-room' }

/** Verifies and indexes a range of redo and puts the index into an arena. */
export const indexRange = task((input: IndexRangeInput): IndexRangeResult => {
  const indexer = indexerFor(input.innodbPageSize)
  const baseWord = Math.floor(input.at / 8)
  for (;;) {
    const end = input.at + input.bytes
    const found = indexer.index(arenas.region.bytes, input.at, end, input.begin, scratch, baseWord * 8)
    if (found.status === 'region-too-small') {
      scratch = new Uint32Array(Math.ceil(found.words * 1.25))
      continue
    }
    const at = arenas.takeTop(input.indexArena, rangeIndexBytes(found.words, found.pages))
    if (at < 0) return { status: 'no-room' }
    const header = placeRangeIndex(arenas, at, input.begin, baseWord, input.bytes, scratch, found.words)
    return { status: 'ok', header, events: found.events, mtrs: found.mtrs, records: found.records }
  }
})
