/** A message of entries, taken apart: what the log stores, and what the core is told of it. */
import type { PeerAppend } from '../../protocol/messages.ts'
import { decodeMembership } from './cell-state.ts'
import type { EntryRun, LogIndex, MembershipAt, Message, Term } from './core/types.ts'
import type { LogEntry } from './log/entry.ts'

const NOTHING = Buffer.alloc(0)

export interface Inbound {
  readonly message: Message
  /** Their payloads are pieces of the bulk. */
  readonly entries: readonly LogEntry[]
}

export function unpack(sent: PeerAppend, bulk: Uint8Array): Inbound {
  const entries: LogEntry[] = []
  const runs: EntryRun[] = []
  const memberships: MembershipAt[] = []
  let offset = 0
  let index = sent.prev.index
  let run: { term: Term; count: number } | undefined
  for (const head of sent.entries) {
    const term = head.term as Term
    const payload = head.payloadBytes === 0 ? NOTHING : bulk.subarray(offset, offset + head.payloadBytes)
    offset += head.payloadBytes
    index++
    const { kind, timeline, epoch, beginLsn, endLsn, wallTimeUs, payloadCrc, dropped } = head
    entries.push({
      index: index as LogIndex,
      term,
      kind,
      timeline,
      epoch,
      beginLsn,
      endLsn,
      wallTimeUs,
      payload,
      payloadCrc,
      dropped,
    })
    if (kind === 'membership')
      memberships.push({ index: index as LogIndex, membership: decodeMembership(payload) })
    if (run?.term === term) run.count++
    else {
      run = { term, count: 1 }
      runs.push(run)
    }
  }
  const { term, prev, commit, round } = sent
  const message = { type: 'append', term, prev, runs, memberships, commit, round } as unknown as Message
  return { message, entries }
}
