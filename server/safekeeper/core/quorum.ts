/**
 * What majorities say: how far the log is on a quorum, and how a vote stands. Joint memberships need both majorities.
 * Pure; test/property/quorum.test.ts holds it against a slow version that counts.
 */
import type { LogIndex, Membership, NodeId } from './types.ts'

export type VoteResult = 'won' | 'lost' | 'open'

/** Members that are needed of `count` voters. */
export function majorityOf(count: number): number {
  return Math.floor(count / 2) + 1
}

/** The largest value that a majority of `voters` has reached. Infinity for no voters: they hold nothing up. */
function majorityValue(voters: readonly NodeId[], reached: (id: NodeId) => number): number {
  const count = voters.length
  if (count === 0) return Number.POSITIVE_INFINITY
  // At most seven: insertion sort, descending.
  const values: number[] = []
  for (let i = 0; i < count; i++) {
    const value = reached(voters[i]!)
    let at = i
    for (; at > 0 && values[at - 1]! < value; at--) values[at] = values[at - 1]!
    values[at] = value
  }
  return values[majorityOf(count) - 1]!
}

/** The largest value that a quorum has reached; `reached` must be total over the voters. */
export function quorumValue(membership: Membership, reached: (id: NodeId) => number): number {
  const incoming = majorityValue(membership.voters, reached)
  if (membership.outgoing === undefined) return incoming
  return Math.min(incoming, majorityValue(membership.outgoing, reached))
}

/** How far the log is flushed on a quorum; `matchOf` is 0 for those that nothing is known of. */
export function quorumIndex(membership: Membership, matchOf: (id: NodeId) => LogIndex): LogIndex {
  return quorumValue(membership, matchOf) as LogIndex
}

/** Whether those for whom `has` holds are a quorum. */
export function isQuorum(membership: Membership, has: (id: NodeId) => boolean): boolean {
  return quorumValue(membership, id => (has(id) ? 1 : 0)) >= 1
}

function majorityVote(voters: readonly NodeId[], votes: ReadonlyMap<NodeId, boolean>): VoteResult {
  let granted = 0
  let missing = 0
  for (const voter of voters) {
    const vote = votes.get(voter)
    if (vote === undefined) missing++
    else if (vote) granted++
  }
  const needed = majorityOf(voters.length)
  if (voters.length === 0 || granted >= needed) return 'won'
  return granted + missing >= needed ? 'open' : 'lost'
}

/** How an election stands; `votes` of others than the voters count nothing. */
export function voteResult(membership: Membership, votes: ReadonlyMap<NodeId, boolean>): VoteResult {
  const incoming = majorityVote(membership.voters, votes)
  if (membership.outgoing === undefined || incoming === 'lost') return incoming
  const outgoing = majorityVote(membership.outgoing, votes)
  if (outgoing === 'lost') return 'lost'
  return incoming === 'won' && outgoing === 'won' ? 'won' : 'open'
}

export function isVoter(membership: Membership, id: NodeId): boolean {
  return membership.voters.includes(id) || (membership.outgoing?.includes(id) ?? false)
}

/** All that receive the log, each once. */
export function allMembers(membership: Membership): NodeId[] {
  return [...new Set([...membership.voters, ...(membership.outgoing ?? []), ...membership.learners])]
}
