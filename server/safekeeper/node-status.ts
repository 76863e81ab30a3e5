/** What a node tells of itself (CellStatus): its own view, of whatever it knows. */
import { type CellMember, type CellStatusReply, MessageType } from '../../protocol/messages.ts'
import type { NodeId } from './core/types.ts'
import type { Member } from './node-member.ts'

export interface NodeIdentity {
  readonly nodeId: NodeId
  /** Empty: in none yet. */
  readonly cellId: string
  readonly zone: string
  /** Empty: there is no leader, or it is not known where. */
  readonly leaderAddress: string
}

/** `member` undefined: in no cell yet. */
export function nodeStatus(identity: NodeIdentity, member: Member | undefined): CellStatusReply {
  const base = { type: MessageType.CellStatusReply, ...identity } as const
  if (member === undefined)
    return {
      ...base,
      role: 'waiting',
      term: 0,
      leader: '',
      leaderSilentMs: undefined,
      beginIndex: 0,
      lastIndex: 0,
      flushedIndex: 0,
      commitIndex: 0,
      appliedIndex: 0,
      diskBytes: 0,
      rawBytes: 0,
      storedBytes: 0,
      timelines: 0,
      writable: true,
      lastError: '',
      members: [],
    }
  const { driver, log, removal, duplicates } = member
  const stats = log.stats()
  return {
    ...base,
    role: driver.role,
    term: driver.term,
    leader: driver.leader ?? '',
    leaderSilentMs: driver.leaderSilentMs,
    beginIndex: log.beginIndex,
    lastIndex: log.lastIndex,
    flushedIndex: log.flushed.index,
    commitIndex: driver.commitIndex,
    appliedIndex: driver.state.last.index,
    diskBytes: stats.diskBytes,
    rawBytes: stats.packedRawBytes,
    storedBytes: stats.packedBytes,
    timelines: driver.state.timelines.size,
    writable: driver.writable,
    lastError: [removal.problem, log.lastError || stats.damageProblem, duplicates.problem]
      .filter(problem => problem !== '')
      .join('; '),
    members: describeMembers(member, identity.nodeId),
  }
}

function describeMembers({ driver, members, addresses }: Member, self: NodeId): CellMember[] {
  const { voters, outgoing = [], learners } = members.membership
  const kinds = new Map<NodeId, CellMember['kind']>()
  for (const id of outgoing) kinds.set(id, 'outgoing')
  for (const id of learners) kinds.set(id, 'learner')
  for (const id of voters) kinds.set(id, 'voter')
  return [...kinds].map(([nodeId, kind]) => ({
    nodeId,
    address: addresses.addressOf(nodeId),
    zone: driver.state.nodes.get(nodeId)?.zone ?? '',
    kind,
    matchIndex: driver.role === 'leader' ? driver.matchOf(nodeId) : 0,
    silentMs: nodeId === self ? 0 : driver.silentMs(nodeId),
  }))
}
