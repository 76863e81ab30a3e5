/**
 * How a node gets back what its disk has lost: it asks others of its cell for entries of the log, by index. docs/log-format.md,
 * "Repair".
 */
import type { Codec } from './codec.ts'
import { MessageType } from './message-types.ts'
import { checkCellId, PEER_ENTRY_BYTES, type PeerEntry, readEntry, writeEntry } from './messages-peer.ts'

/** Payload of one answer at most, unless a single entry has more. */
export const FETCH_BYTES_MAX = 4 * 1024 * 1024

/**
 * Entries [first, last] of the log, as many as fit into `bytesMax` of payload, but one at least. From the receiver's own disk: it does not ask
 * others in turn. → PeerFetched
 *
 *     string cellId | u64 first | u64 last | u32 bytesMax
 */
export interface PeerFetch {
  readonly type: typeof MessageType.PeerFetch
  readonly cellId: string
  readonly first: number
  readonly last: number
  readonly bytesMax: number
}

export const PeerFetchCodec: Codec<PeerFetch> = {
  type: MessageType.PeerFetch,
  name: 'PeerFetch',
  bulk: 'none',
  encode(w, m) {
    w.string(m.cellId)
    w.u64(m.first)
    w.u64(m.last)
    w.u32(m.bytesMax)
  },
  decode(r) {
    const cellId = r.checked('cellId', checkCellId)
    const first = r.u64('first')
    const last = r.u64('last')
    if (first < 1 || last < first) r.fail(`entries ${first} to ${last}`)
    return { type: MessageType.PeerFetch, cellId, first, last, bytesMax: r.u32('bytesMax') }
  },
}

/**
 * Entries from the `first` that was asked for on; none: this node does not have it (its log is what it says it is).
 *
 *     u64 beginIndex | u64 appliedIndex | u32 count | count × { entry | bool void }      bulk, sectioned: the payloads
 */
export interface PeerFetched {
  readonly type: typeof MessageType.PeerFetched
  /** First entry that the sender's log holds. */
  readonly beginIndex: number
  /** Up to here the sender knows which entries are void: committed, and without effect. */
  readonly appliedIndex: number
  readonly entries: readonly { readonly entry: PeerEntry; readonly isVoid: boolean }[]
}

export const PeerFetchedCodec: Codec<PeerFetched> = {
  type: MessageType.PeerFetched,
  name: 'PeerFetched',
  bulk: 'sectioned',
  encode(w, m) {
    w.u64(m.beginIndex)
    w.u64(m.appliedIndex)
    w.u32(m.entries.length)
    for (const { entry, isVoid } of m.entries) {
      writeEntry(w, entry)
      w.bool(isVoid)
    }
  },
  decode(r) {
    const beginIndex = r.u64('beginIndex')
    const appliedIndex = r.u64('appliedIndex')
    const count = r.count('entries', PEER_ENTRY_BYTES + 1)
    const entries = Array.from({ length: count }, () => ({
      entry: readEntry(r),
      isVoid: r.bool('void'),
    }))
    return { type: MessageType.PeerFetched, beginIndex, appliedIndex, entries }
  },
  sections(m, visit) {
    let offset = 0
    for (const {
      entry: { payloadBytes, payloadCrc },
    } of m.entries) {
      if (payloadBytes === 0) continue
      visit(offset, payloadBytes, payloadCrc)
      offset += payloadBytes
    }
  },
}
