/**
 * How a page server's memory is divided: pure arithmetic over `--memory`.
 *
 *     fixed      each thread's JavaScript heap and code, the main thread's, buffers of sockets
 *     arenas     redo that is in no layer yet, with its indexes; 4 GiB at most
 *     cache      finished pages
 *     layers     per thread: indexes of open layer files and uncompressed blocks
 */
import { invalidError } from '../shared/errors.ts'
import { arenasMax } from './arena.ts'

export const MEMORY_BYTES_MIN = 256 << 20

export interface MemoryPlan {
  readonly arenaBytes: number
  readonly arenaBytesTotal: number
  readonly cacheBytes: number
  readonly layerBytesPerThread: number
  readonly heapMbPerThread: number
  readonly backgroundThreads: number
  /** Redo in one memtable. */
  readonly flushBytes: number
}

const MIB = 1 << 20

/** @throws PalimpsestError of kind invalid when it cannot be done with so little */
export function planMemory(memoryBytes: number, threads: number): MemoryPlan {
  if (memoryBytes < MEMORY_BYTES_MIN)
    throw invalidError(
      `a page server needs at least ${MEMORY_BYTES_MIN / MIB} MiB of memory, not ${Math.floor(memoryBytes / MIB)}`,
    )
  const backgroundThreads = memoryBytes < 512 * MIB ? 1 : Math.min(4, Math.max(1, threads))
  const all = threads + backgroundThreads
  // Measured under load: a worker has 50 to 70 MiB beside what is shared (most of it freed memory that
  // malloc keeps), the main thread and its sockets about 190.
  const fixed = Math.min(memoryBytes * 0.5, (190 + 65 * all) * MIB)
  const layerBytesPerThread = Math.floor(Math.min(24 * MIB, (memoryBytes * 0.1) / all))
  const large = memoryBytes - fixed - layerBytesPerThread * all
  const arenaBytes = memoryBytes >= 768 * MIB ? 16 * MIB : 8 * MIB
  const arenas = Math.min(arenasMax(arenaBytes), Math.max(6, Math.floor((large * 0.5) / arenaBytes)))
  const arenaBytesTotal = arenas * arenaBytes
  return {
    arenaBytes,
    arenaBytesTotal,
    cacheBytes: Math.max(16 * MIB, Math.floor(large - arenaBytesTotal)),
    layerBytesPerThread,
    // A bound against the unforeseen, not a share of the budget.
    heapMbPerThread: 512,
    backgroundThreads,
    // Indexes are about as large as the redo they are made from; two memtables are written while a third one fills.
    flushBytes: Math.min(64 * MIB, Math.floor(arenaBytesTotal / 5)),
  }
}
