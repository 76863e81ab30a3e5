/** Messages about a cell of safekeepers: who its members are, how they are, and changing that. */
import { type Codec, orEmpty, TEXT_BYTES_MAX } from './codec.ts'
import type { ByteReader, ByteWriter } from './cursor.ts'
import { MessageType } from './message-types.ts'
import {
  checkCellId,
  checkNodeId,
  checkNodeName,
  checkPeerAddress,
  checkZone,
  NODES_MAX,
} from './messages-peer.ts'

/** How this node stands, from its own view; any node answers at once. No fields. → CellStatusReply */
export interface CellStatus {
  readonly type: typeof MessageType.CellStatus
}

export const CellStatusCodec: Codec<CellStatus> = {
  type: MessageType.CellStatus,
  name: 'CellStatus',
  bulk: 'none',
  encode() {},
  decode: () => ({ type: MessageType.CellStatus }),
}

/** In the order of their numbers on the wire, from 0. `waiting`: in no cell yet. */
export const NODE_ROLES = [
  'waiting',
  'follower',
  'preCandidate',
  'candidate',
  'leader',
  'recovering',
  'learner',
] as const
export type NodeRole = (typeof NODE_ROLES)[number]

/** In the order of their numbers on the wire, from 0. */
export const MEMBER_KINDS = ['voter', 'learner', 'outgoing'] as const
export type MemberKind = (typeof MEMBER_KINDS)[number]

export interface CellMember {
  readonly nodeId: string
  readonly address: string
  readonly zone: string
  readonly kind: MemberKind
  /** Up to which it is known to have the log; 0: not known (only the leader knows). */
  readonly matchIndex: number
  /** Since the last word from it, in milliseconds; undefined: not heard of. 0 for the node that answers. */
  readonly silentMs: number | undefined
}

/**
 *     string nodeId | string cellId (empty: in no cell) | u8 role | string zone | u64 term
 *     string leader (node id; empty: none known) | string leaderAddress | u64 leaderSilentMs (2^53-1: not heard)
 *     u64 beginIndex | u64 lastIndex | u64 flushedIndex | u64 commitIndex | u64 appliedIndex
 *     u64 diskBytes | u64 rawBytes (of the redo held) | u64 storedBytes (of that redo, as stored)
 *     u32 timelines | bool writable | string lastError
 *     u32 count | count × { node | u8 kind | u64 matchIndex | u64 silentMs (2^53-1: not heard) }
 */
export interface CellStatusReply {
  readonly type: typeof MessageType.CellStatusReply
  readonly nodeId: string
  readonly cellId: string
  readonly role: NodeRole
  readonly zone: string
  readonly term: number
  readonly leader: string
  readonly leaderAddress: string
  readonly leaderSilentMs: number | undefined
  readonly beginIndex: number
  readonly lastIndex: number
  readonly flushedIndex: number
  readonly commitIndex: number
  readonly appliedIndex: number
  readonly diskBytes: number
  readonly rawBytes: number
  readonly storedBytes: number
  readonly timelines: number
  /** Whether its disk takes entries. */
  readonly writable: boolean
  readonly lastError: string
  readonly members: readonly CellMember[]
}

const NEVER = Number.MAX_SAFE_INTEGER

function writeSilence(w: ByteWriter, ms: number | undefined): void {
  w.u64(ms === undefined ? NEVER : Math.round(ms))
}

function readSilence(r: ByteReader): number | undefined {
  const ms = r.u64('silentMs')
  return ms === NEVER ? undefined : ms
}

export const CellStatusReplyCodec: Codec<CellStatusReply> = {
  type: MessageType.CellStatusReply,
  name: 'CellStatusReply',
  bulk: 'none',
  encode(w, m) {
    w.string(m.nodeId)
    w.string(m.cellId)
    w.u8(NODE_ROLES.indexOf(m.role))
    w.string(m.zone)
    w.u64(m.term)
    w.string(m.leader)
    w.string(m.leaderAddress)
    writeSilence(w, m.leaderSilentMs)
    w.u64(m.beginIndex)
    w.u64(m.lastIndex)
    w.u64(m.flushedIndex)
    w.u64(m.commitIndex)
    w.u64(m.appliedIndex)
    w.u64(m.diskBytes)
    w.u64(m.rawBytes)
    w.u64(m.storedBytes)
    w.u32(m.timelines)
    w.bool(m.writable)
    w.string(m.lastError, 'lastError', TEXT_BYTES_MAX)
    w.u32(m.members.length)
    for (const member of m.members) {
      w.string(member.nodeId)
      w.string(member.address)
      w.string(member.zone)
      w.u8(MEMBER_KINDS.indexOf(member.kind))
      w.u64(member.matchIndex)
      writeSilence(w, member.silentMs)
    }
  },
  decode(r) {
    const nodeId = r.checked('nodeId', checkNodeId)
    const cellId = r.checked('cellId', checkCellId)
    const roleNumber = r.u8('role')
    const role = NODE_ROLES[roleNumber] ?? r.fail(`role ${roleNumber} is unknown`)
    const zone = r.checked('zone', checkZone)
    const term = r.u64('term')
    const leader = r.checked('leader', orEmpty(checkNodeId))
    const leaderAddress = r.checked('leaderAddress', checkPeerAddress)
    const leaderSilentMs = readSilence(r)
    const beginIndex = r.u64('beginIndex')
    const lastIndex = r.u64('lastIndex')
    const flushedIndex = r.u64('flushedIndex')
    const commitIndex = r.u64('commitIndex')
    const appliedIndex = r.u64('appliedIndex')
    const diskBytes = r.u64('diskBytes')
    const rawBytes = r.u64('rawBytes')
    const storedBytes = r.u64('storedBytes')
    const timelines = r.u32('timelines')
    const writable = r.bool('writable')
    const lastError = r.text('lastError', TEXT_BYTES_MAX)
    const count = r.count('members', 23)
    if (count > NODES_MAX) r.fail(`${count} members, at most ${NODES_MAX} are allowed`)
    const members = Array.from({ length: count }, (): CellMember => {
      const id = r.checked('nodeId', checkNodeId)
      const address = r.checked('address', checkPeerAddress)
      const memberZone = r.checked('zone', checkZone)
      const number = r.u8('kind')
      const kind = MEMBER_KINDS[number] ?? r.fail(`member kind ${number} is unknown`)
      const matchIndex = r.u64('matchIndex')
      return { nodeId: id, address, zone: memberZone, kind, matchIndex, silentMs: readSilence(r) }
    })
    return {
      type: MessageType.CellStatusReply,
      nodeId,
      cellId,
      role,
      zone,
      term,
      leader,
      leaderAddress,
      leaderSilentMs,
      beginIndex,
      lastIndex,
      flushedIndex,
      commitIndex,
      appliedIndex,
      diskBytes,
      rawBytes,
      storedBytes,
      timelines,
      writable,
      lastError,
      members,
    }
  },
}

/**
 * Makes the node that listens at `address`, is called `name` and is in no cell, a member: first a learner, then, once it
 * has caught up, a voter. Answered when that is committed; again is harmless. → Ok
 *
 *     string name | string address
 */
export interface MemberAdd {
  readonly type: typeof MessageType.MemberAdd
  readonly name: string
  readonly address: string
}

export const MemberAddCodec: Codec<MemberAdd> = {
  type: MessageType.MemberAdd,
  name: 'MemberAdd',
  bulk: 'none',
  encode(w, m) {
    w.string(m.name)
    w.string(m.address)
  },
  decode: r => ({
    type: MessageType.MemberAdd,
    name: r.checked('name', checkNodeName),
    address: r.checked('address', checkPeerAddress),
  }),
}

/** Takes a member out. `string name`. → Ok, when it is committed */
export interface MemberRemove {
  readonly type: typeof MessageType.MemberRemove
  readonly name: string
}

export const MemberRemoveCodec: Codec<MemberRemove> = {
  type: MessageType.MemberRemove,
  name: 'MemberRemove',
  bulk: 'none',
  encode(w, m) {
    w.string(m.name)
  },
  decode: r => ({ type: MessageType.MemberRemove, name: r.checked('name', checkNodeName) }),
}

/**
 * Puts the node at `address`, called `name`, in the place of the member `old`, in one step once it has caught up. Both
 * names may be the same: a node with an empty disk. → Ok
 *
 *     string old | string name | string address
 */
export interface MemberReplace {
  readonly type: typeof MessageType.MemberReplace
  readonly old: string
  readonly name: string
  readonly address: string
}

export const MemberReplaceCodec: Codec<MemberReplace> = {
  type: MessageType.MemberReplace,
  name: 'MemberReplace',
  bulk: 'none',
  encode(w, m) {
    w.string(m.old)
    w.string(m.name)
    w.string(m.address)
  },
  decode: r => ({
    type: MessageType.MemberReplace,
    old: r.checked('old', checkNodeName),
    name: r.checked('name', checkNodeName),
    address: r.checked('address', checkPeerAddress),
  }),
}

/** Makes another voter the leader. `string name`. → Ok, when the node asked leads no more */
export interface TransferLeadership {
  readonly type: typeof MessageType.TransferLeadership
  readonly name: string
}

export const TransferLeadershipCodec: Codec<TransferLeadership> = {
  type: MessageType.TransferLeadership,
  name: 'TransferLeadership',
  bulk: 'none',
  encode(w, m) {
    w.string(m.name)
  },
  decode: r => ({ type: MessageType.TransferLeadership, name: r.checked('name', checkNodeName) }),
}
