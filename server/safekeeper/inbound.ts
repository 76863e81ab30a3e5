/** A message of entries, taken apart: what the log stores, and what the core is told of it. */
import type { PeerAppend } from '../../protocol/messages.ts'
import { decodeMembership } from './cell-state.ts'
import type { EntryRun, MembershipAt, Message, Term } from './core/types.ts'
import type { LogEntry } from './log/entry.ts'
import { logEntries } from './peer-entries.ts'

export interface UnpackedAppend {
  readonly message: Message
  /** Their payloads are pieces of the bulk. */
  readonly entries: readonly LogEntry[]
}

export function unpack(sent: PeerAppend, bulk: Uint8Array): UnpackedAppend {
  const entries = logEntries(sent.entries, sent.prev.index + 1, bulk)
  const runs: EntryRun[] = []
  const memberships: MembershipAt[] = []
  let run: { term: Term; count: number } | undefined
  for (const { index, term, kind, payload } of entries) {
    if (kind === 'membership') memberships.push({ index, membership: decodeMembership(payload) })
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
