/** What readers of a timeline's redo get. */
import type { Lsn } from '../../../protocol/ids.ts'
import type { LogIndex } from '../core/types.ts'
import type { LogEntry } from './entry.ts'

/** A range of a timeline's redo as its writer appended it, or a gap. */
export interface TimelineChunk {
  readonly index: LogIndex
  readonly kind: 'redo' | 'gap'
  readonly beginLsn: Lsn
  readonly endLsn: Lsn
  readonly wallTimeUs: number
  /** Empty for a gap. Gone after `release`. */
  readonly payload: Uint8Array
  /** Checked, if the payload comes from a disk. */
  readonly payloadCrc: number
  /** Called once, when the payload is not needed any more: its memory is then used for others. */
  readonly release: () => void
}

/** As it was found: perhaps without its redo. */
export interface ReadChunk extends TimelineChunk {
  readonly dropped: boolean
}

/** Its payload is in memory that is nobody's to give back. */
export function chunkOf(entry: LogEntry): ReadChunk {
  const { index, kind, beginLsn, endLsn, wallTimeUs, payload, payloadCrc, dropped } = entry
  return {
    index,
    kind: kind as 'redo' | 'gap',
    beginLsn,
    endLsn,
    wallTimeUs,
    payload,
    payloadCrc,
    release: nothing,
    dropped,
  }
}

function nothing(): void {}
