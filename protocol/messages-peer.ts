/**
 * What the nodes of a cell say to each other. A node dials every other one and *subscribes*: what the other has to say to
 * it comes as a stream, so nothing is answered twice, and TCP's window is the back-pressure. Each pair has two streams
 * in either direction, one for messages without entries and one for entries, so that a heartbeat never queues behind
 * megabytes. docs/consensus.md has the rules; the fields' names are Raft's.
 */
import { type Codec, orEmpty } from './codec.ts'
import type { ByteReader, ByteWriter } from './cursor.ts'
import { InvalidIdError, type Lsn, type TimelineId, type WriterEpoch } from './ids.ts'
import { MessageType } from './message-types.ts'

const NODE_NAME = /^[A-Za-z0-9_-]{1,32}$/
const NODE_ID = /^[A-Za-z0-9_-]{1,32}\.[0-9a-f]{16}$/
const CELL_ID = /^(?:[0-9a-f]{32})?$/
const PRINTABLE = /^[\x20-\x7e]*$/
export const NODES_MAX = 64

/** 1 to 32 of letters, digits, `_` and `-`. */
export function checkNodeName(text: string): string {
  if (!NODE_NAME.test(text))
    throw new InvalidIdError(`node name ${JSON.stringify(text)} is not 1 to 32 letters, digits, "_" or "-"`)
  return text
}

/** `NAME.INCARNATION`: the incarnation is 16 hexadecimal digits, made with the data folder. */
export function checkNodeId(text: string): string {
  if (!NODE_ID.test(text)) throw new InvalidIdError(`node id ${JSON.stringify(text)} is not NAME.INCARNATION`)
  return text
}

/** 32 hexadecimal digits, or empty: in no cell. */
export function checkCellId(text: string): string {
  if (!CELL_ID.test(text))
    throw new InvalidIdError(`cell id ${JSON.stringify(text)} is not 32 hexadecimal digits`)
  return text
}

/** HOST:PORT as dial takes it; may be empty where the receiver says so. */
export function checkPeerAddress(text: string): string {
  if (text.length > 300 || !PRINTABLE.test(text))
    throw new InvalidIdError(`address ${JSON.stringify(text)} is not printable or longer than 300`)
  return text
}

/** A label of where a node stands; empty: none. At most 64 printable ASCII characters. */
export function checkZone(text: string): string {
  if (text.length > 64 || !PRINTABLE.test(text))
    throw new InvalidIdError(`zone ${JSON.stringify(text)} is not printable or longer than 64`)
  return text
}

/** `string nodeId | string address (HOST:PORT) | string zone`. */
export interface PeerNode {
  readonly nodeId: string
  readonly address: string
  readonly zone: string
}

export function writeNode(w: ByteWriter, node: PeerNode): void {
  w.string(node.nodeId)
  w.string(node.address)
  w.string(node.zone)
}

export function readNode(r: ByteReader): PeerNode {
  return {
    nodeId: r.checked('nodeId', checkNodeId),
    address: r.checked('address', checkPeerAddress),
    zone: r.checked('zone', checkZone),
  }
}

function readNodes(r: ByteReader): PeerNode[] {
  const count = r.count('nodes', 6)
  if (count > NODES_MAX) r.fail(`${count} nodes, at most ${NODES_MAX} are allowed`)
  return Array.from({ length: count }, () => readNode(r))
}

/**
 * Who is there? Changes nothing. → PeerHelloReply
 *
 *     string cellId (empty: in no cell) | node
 */
export interface PeerHello {
  readonly type: typeof MessageType.PeerHello
  readonly cellId: string
  readonly node: PeerNode
}

export const PeerHelloCodec: Codec<PeerHello> = {
  type: MessageType.PeerHello,
  name: 'PeerHello',
  bulk: 'none',
  encode(w, m) {
    w.string(m.cellId)
    writeNode(w, m.node)
  },
  decode: r => ({ type: MessageType.PeerHello, cellId: r.checked('cellId', checkCellId), node: readNode(r) }),
}

/**
 *     string cellId (empty: in no cell) | node
 *     string leader (its node id; empty: none known) | string leaderAddress | u64 term
 *     u32 count | count × node: the members that the cell was seeded with; none if the asker is not among them
 */
export interface PeerHelloReply {
  readonly type: typeof MessageType.PeerHelloReply
  readonly cellId: string
  readonly node: PeerNode
  readonly leader: string
  readonly leaderAddress: string
  readonly term: number
  readonly seed: readonly PeerNode[]
}

export const PeerHelloReplyCodec: Codec<PeerHelloReply> = {
  type: MessageType.PeerHelloReply,
  name: 'PeerHelloReply',
  bulk: 'none',
  encode(w, m) {
    w.string(m.cellId)
    writeNode(w, m.node)
    w.string(m.leader)
    w.string(m.leaderAddress)
    w.u64(m.term)
    w.u32(m.seed.length)
    for (const node of m.seed) writeNode(w, node)
  },
  decode: r => ({
    type: MessageType.PeerHelloReply,
    cellId: r.checked('cellId', checkCellId),
    node: readNode(r),
    leader: r.checked('leader', orEmpty(checkNodeId)),
    leaderAddress: r.checked('leaderAddress', checkPeerAddress),
    term: r.u64('term'),
    seed: readNodes(r),
  }),
}

/**
 * Be a node of this cell: as one of its first members, or (without members) as one that is about to be added. Only for a
 * node in no cell; again with the same content is Ok. Durable when answered. → Ok
 *
 *     string cellId | u32 count | count × node
 */
export interface PeerSeed {
  readonly type: typeof MessageType.PeerSeed
  readonly cellId: string
  readonly members: readonly PeerNode[]
}

export const PeerSeedCodec: Codec<PeerSeed> = {
  type: MessageType.PeerSeed,
  name: 'PeerSeed',
  bulk: 'none',
  encode(w, m) {
    w.string(m.cellId)
    w.u32(m.members.length)
    for (const node of m.members) writeNode(w, node)
  },
  decode(r) {
    const cellId = r.checked('cellId', checkCellId)
    if (cellId === '') r.fail('a seed without cell id')
    return { type: MessageType.PeerSeed, cellId, members: readNodes(r) }
  },
}

/** In the order of their numbers on the wire, from 0. */
export const PEER_LANES = ['control', 'entries'] as const
export type PeerLane = (typeof PEER_LANES)[number]

/**
 * Asks for all that the receiver has to say to `node`, the sender. A newer subscription of the same node and lane ends the
 * older. → PeerWelcome, then PeerRaft (control), PeerAppend and PeerSnapshot (entries), until one side closes
 *
 *     string cellId | node | u8 lane (0 control, 1 entries)
 */
export interface PeerSubscribe {
  readonly type: typeof MessageType.PeerSubscribe
  readonly cellId: string
  readonly node: PeerNode
  readonly lane: PeerLane
}

export const PeerSubscribeCodec: Codec<PeerSubscribe> = {
  type: MessageType.PeerSubscribe,
  name: 'PeerSubscribe',
  bulk: 'none',
  encode(w, m) {
    w.string(m.cellId)
    writeNode(w, m.node)
    w.u8(PEER_LANES.indexOf(m.lane))
  },
  decode(r) {
    const cellId = r.checked('cellId', checkCellId)
    const node = readNode(r)
    const number = r.u8('lane')
    const lane = PEER_LANES[number] ?? r.fail(`lane ${number} is unknown`)
    return { type: MessageType.PeerSubscribe, cellId, node, lane }
  },
}

/** First frame of a subscription: who speaks. `node`. */
export interface PeerWelcome {
  readonly type: typeof MessageType.PeerWelcome
  readonly node: PeerNode
}

export const PeerWelcomeCodec: Codec<PeerWelcome> = {
  type: MessageType.PeerWelcome,
  name: 'PeerWelcome',
  bulk: 'none',
  encode: (w, m) => writeNode(w, m.node),
  decode: r => ({ type: MessageType.PeerWelcome, node: readNode(r) }),
}

export interface RaftPoint {
  readonly index: number
  readonly term: number
}

/** A message of the consensus that brings no entries. */
export type RaftMessage =
  | {
      readonly type: 'vote'
      readonly term: number
      readonly last: RaftPoint
      readonly pre: boolean
      readonly transfer: boolean
    }
  | { readonly type: 'voteReply'; readonly term: number; readonly pre: boolean; readonly granted: boolean }
  | {
      readonly type: 'append'
      readonly term: number
      readonly prev: RaftPoint
      readonly commit: number
      readonly round: number
    }
  | {
      readonly type: 'appendReply'
      readonly term: number
      readonly ok: boolean
      readonly match: number
      readonly rejected: number
      readonly hint: RaftPoint
      readonly round: number
      readonly paused: boolean
    }
  | { readonly type: 'timeoutNow'; readonly term: number }

const RAFT_KINDS = ['vote', 'voteReply', 'append', 'appendReply', 'timeoutNow'] as const

/**
 *     u8 kind | u64 term | then
 *     1 vote: u64 lastIndex | u64 lastTerm | bool pre | bool transfer
 *     2 voteReply: bool pre | bool granted
 *     3 append (a heartbeat): u64 prevIndex | u64 prevTerm | u64 commit | u64 round
 *     4 appendReply: bool ok | bool paused | u64 match | u64 rejected | u64 hintIndex | u64 hintTerm | u64 round
 *     5 timeoutNow
 */
export interface PeerRaft {
  readonly type: typeof MessageType.PeerRaft
  readonly message: RaftMessage
}

export const PeerRaftCodec: Codec<PeerRaft> = {
  type: MessageType.PeerRaft,
  name: 'PeerRaft',
  bulk: 'none',
  encode(w, { message: m }) {
    w.u8(RAFT_KINDS.indexOf(m.type) + 1)
    w.u64(m.term)
    switch (m.type) {
      case 'vote':
        w.u64(m.last.index)
        w.u64(m.last.term)
        w.bool(m.pre)
        w.bool(m.transfer)
        break
      case 'voteReply':
        w.bool(m.pre)
        w.bool(m.granted)
        break
      case 'append':
        w.u64(m.prev.index)
        w.u64(m.prev.term)
        w.u64(m.commit)
        w.u64(m.round)
        break
      case 'appendReply':
        w.bool(m.ok)
        w.bool(m.paused)
        w.u64(m.match)
        w.u64(m.rejected)
        w.u64(m.hint.index)
        w.u64(m.hint.term)
        w.u64(m.round)
        break
      case 'timeoutNow':
        break
    }
  },
  decode: r => ({ type: MessageType.PeerRaft, message: readRaft(r) }),
}

function readPoint(r: ByteReader, what: string): RaftPoint {
  const index = r.u64(`${what} index`)
  return { index, term: r.u64(`${what} term`) }
}

function readRaft(r: ByteReader): RaftMessage {
  const number = r.u8('kind')
  const type = RAFT_KINDS[number - 1] ?? r.fail(`kind ${number} is unknown`)
  const term = r.u64('term')
  switch (type) {
    case 'vote': {
      const last = readPoint(r, 'last')
      const pre = r.bool('pre')
      return { type, term, last, pre, transfer: r.bool('transfer') }
    }
    case 'voteReply': {
      const pre = r.bool('pre')
      return { type, term, pre, granted: r.bool('granted') }
    }
    case 'append': {
      const prev = readPoint(r, 'prev')
      const commit = r.u64('commit')
      return { type, term, prev, commit, round: r.u64('round') }
    }
    case 'appendReply': {
      const ok = r.bool('ok')
      const paused = r.bool('paused')
      const match = r.u64('match')
      const rejected = r.u64('rejected')
      const hint = readPoint(r, 'hint')
      return { type, term, ok, paused, match, rejected, hint, round: r.u64('round') }
    }
    case 'timeoutNow':
      return { type, term }
  }
}

/** In the order of their numbers on the wire, from 1. */
export const PEER_ENTRY_KINDS = ['noop', 'membership', 'command', 'redo', 'gap'] as const
export type PeerEntryKind = (typeof PEER_ENTRY_KINDS)[number]

/** An entry without its index and its payload. */
export interface PeerEntry {
  readonly term: number
  readonly kind: PeerEntryKind
  /** Redo that no node holds any more: it has no payload. */
  readonly dropped: boolean
  /** Of redo and gap; else undefined. */
  readonly timeline: TimelineId | undefined
  readonly epoch: WriterEpoch
  readonly beginLsn: Lsn
  readonly endLsn: Lsn
  readonly wallTimeUs: number
  readonly payloadBytes: number
  /** CRC-32C as the writer made it; travels with the payload from end to end. */
  readonly payloadCrc: number
}

/**
 * Entries of the log after `prev`, in order.
 *
 *     u64 term (the sender's) | u64 prevIndex | u64 prevTerm | u64 commit | u64 round
 *     u32 count | count × entry      bulk, sectioned: the payloads, one after the other
 *     entry: u64 term | u8 kind (1 noop, 2 membership, 3 command, 4 redo, 5 gap) | bool dropped | u16 0
 *            u32 payloadBytes | u32 payloadCrc | timeline | u64 epoch | u64 beginLsn | u64 endLsn | u64 wallTimeUs
 */
export interface PeerAppend {
  readonly type: typeof MessageType.PeerAppend
  readonly term: number
  readonly prev: RaftPoint
  readonly commit: number
  readonly round: number
  readonly entries: readonly PeerEntry[]
}

export const PEER_ENTRY_BYTES = 68

export const PeerAppendCodec: Codec<PeerAppend> = {
  type: MessageType.PeerAppend,
  name: 'PeerAppend',
  bulk: 'sectioned',
  encode(w, m) {
    w.u64(m.term)
    w.u64(m.prev.index)
    w.u64(m.prev.term)
    w.u64(m.commit)
    w.u64(m.round)
    w.u32(m.entries.length)
    for (const e of m.entries) writeEntry(w, e)
  },
  decode(r) {
    const term = r.u64('term')
    const prev = readPoint(r, 'prev')
    const commit = r.u64('commit')
    const round = r.u64('round')
    const count = r.count('entries', PEER_ENTRY_BYTES)
    if (count === 0) r.fail('no entries')
    const entries = Array.from({ length: count }, () => readEntry(r))
    return { type: MessageType.PeerAppend, term, prev, commit, round, entries }
  },
  sections(m, visit) {
    let offset = 0
    for (const { payloadBytes, payloadCrc } of m.entries) {
      if (payloadBytes === 0) continue
      visit(offset, payloadBytes, payloadCrc)
      offset += payloadBytes
    }
  },
}

export function writeEntry(w: ByteWriter, e: PeerEntry): void {
  w.u64(e.term)
  w.u8(PEER_ENTRY_KINDS.indexOf(e.kind) + 1)
  w.bool(e.dropped)
  w.u16(0)
  w.u32(e.payloadBytes)
  w.u32(e.payloadCrc)
  w.timeline(e.timeline)
  w.u64(e.epoch)
  w.u64(e.beginLsn)
  w.u64(e.endLsn)
  w.u64(e.wallTimeUs)
}

export function readEntry(r: ByteReader): PeerEntry {
  const term = r.u64('entry term')
  const number = r.u8('kind')
  const kind = PEER_ENTRY_KINDS[number - 1] ?? r.fail(`entry kind ${number} is unknown`)
  const dropped = r.bool('dropped')
  r.zeros(2)
  const payloadBytes = r.u32('payloadBytes')
  const payloadCrc = r.u32('payloadCrc')
  const timeline = r.timelineOrNone()
  const epoch = r.u64('epoch') as WriterEpoch
  const beginLsn = r.lsn('beginLsn')
  const endLsn = r.lsn('endLsn')
  const wallTimeUs = r.u64('wallTimeUs')
  const isRange = kind === 'redo' || kind === 'gap'
  if (isRange ? endLsn <= beginLsn : beginLsn !== 0 || endLsn !== 0)
    r.fail(`a ${kind} from LSN ${beginLsn} to ${endLsn}`)
  if (isRange !== (timeline !== undefined))
    r.fail(`a ${kind} of ${timeline === undefined ? 'no timeline' : `timeline ${timeline}`}`)
  const expected = kind === 'redo' ? (dropped ? 0 : endLsn - beginLsn) : undefined
  if (expected !== undefined && payloadBytes !== expected)
    r.fail(`redo of ${payloadBytes} bytes for ${expected} of LSN`)
  if ((kind === 'noop' || kind === 'gap') && payloadBytes !== 0) r.fail(`a ${kind} with payload`)
  if (dropped && kind !== 'redo') r.fail(`a ${kind} that was dropped`)
  return {
    term,
    kind,
    dropped,
    timeline,
    epoch,
    beginLsn,
    endLsn,
    wallTimeUs,
    payloadBytes,
    payloadCrc,
  }
}

/** Longest snapshot that a node takes from another. */
export const SNAPSHOT_BYTES_MAX = 512 * 1024 * 1024

/**
 * A piece of the cell's state after entry `last`; pieces come in order, from offset 0, nothing between them.
 *
 *     u64 term (the sender's) | u64 lastIndex | u64 lastTerm | u64 offset | u64 totalBytes      bulk: the piece
 */
export interface PeerSnapshot {
  readonly type: typeof MessageType.PeerSnapshot
  readonly term: number
  readonly last: RaftPoint
  readonly offset: number
  readonly totalBytes: number
}

export const PeerSnapshotCodec: Codec<PeerSnapshot> = {
  type: MessageType.PeerSnapshot,
  name: 'PeerSnapshot',
  bulk: 'plain',
  encode(w, m) {
    w.u64(m.term)
    w.u64(m.last.index)
    w.u64(m.last.term)
    w.u64(m.offset)
    w.u64(m.totalBytes)
  },
  decode(r) {
    const term = r.u64('term')
    const last = readPoint(r, 'last')
    const offset = r.u64('offset')
    const totalBytes = r.u64('totalBytes')
    if (totalBytes > SNAPSHOT_BYTES_MAX || offset > totalBytes)
      r.fail(`a piece at ${offset} of a snapshot of ${totalBytes} bytes`)
    return { type: MessageType.PeerSnapshot, term, last, offset, totalBytes }
  },
}
