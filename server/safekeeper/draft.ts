/** What an entry says before it has an index, and the entries that the cell makes for itself. */
import { crc32c } from '../../protocol/crc32c.ts'
import type { Lsn, WriterEpoch } from '../../protocol/ids.ts'
import { type CellCommand, encodeCommand, encodeMembership } from './cell-state.ts'
import type { Effect } from './core/types.ts'
import { type LogEntry, NO_PAYLOAD } from './log/entry.ts'

export interface Draft extends Omit<LogEntry, 'index' | 'term' | 'dropped'> {
  readonly kind: 'command' | 'redo' | 'gap'
}

/** What all entries have in common that are no timeline's. */
const OF_THE_CELL = {
  timeline: undefined,
  epoch: 0 as WriterEpoch,
  beginLsn: 0 as Lsn,
  endLsn: 0 as Lsn,
  wallTimeUs: 0,
} as const

export function commandDraft(command: CellCommand): Draft {
  const payload = encodeCommand(command)
  return {
    kind: 'command',
    ...OF_THE_CELL,
    payload,
    payloadCrc: crc32c(payload, 0, payload.length),
  }
}

/** The entry that the core has written of its own accord: a no-op, or a membership. */
export function ownEntry({ id, entry }: Extract<Effect, { type: 'appendOwn' }>): LogEntry {
  const payload = entry.kind === 'membership' ? encodeMembership(entry.membership) : NO_PAYLOAD
  return {
    index: id.index,
    term: id.term,
    kind: entry.kind,
    ...OF_THE_CELL,
    payload,
    payloadCrc: payload.length === 0 ? 0 : crc32c(payload, 0, payload.length),
    dropped: false,
  }
}
