/** Entries as another node sends them: a list of heads, and their payloads one after the other in the bulk. */
import type { PeerEntry } from '../../protocol/messages.ts'
import type { LogIndex, Term } from './core/types.ts'
import { type LogEntry, NO_PAYLOAD } from './log/entry.ts'

/** `heads` as entries of the log from index `first` on; their payloads are pieces of `bulk`. */
export function logEntries(heads: readonly PeerEntry[], first: number, bulk: Uint8Array): LogEntry[] {
  const entries: LogEntry[] = []
  let index = first
  let offset = 0
  for (const head of heads) {
    const { kind, timeline, epoch, beginLsn, endLsn, wallTimeUs, payloadBytes, payloadCrc, dropped } = head
    // Each field by its name: every entry then has the same shape, which is worth much on the way of all redo.
    entries.push({
      index: index++ as LogIndex,
      term: head.term as Term,
      kind,
      timeline,
      epoch,
      beginLsn,
      endLsn,
      wallTimeUs,
      payload: payloadBytes === 0 ? NO_PAYLOAD : bulk.subarray(offset, offset + payloadBytes),
      payloadCrc,
      dropped,
    })
    offset += payloadBytes
  }
  return entries
}
