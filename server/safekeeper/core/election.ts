/**
 * Who leads: pre-votes, votes, time-outs. docs/consensus.md, "Elections".
 */
import { becomeLeader } from './leader.ts'
import { isVoter, voteResult } from './quorum.ts'
import {
  becomeFollower,
  type CoreState,
  forgetLeader,
  isHardStateDurable,
  isSoleVoter,
  membershipOf,
  random,
  resetElectionDue,
  send,
  setHardState,
} from './state.ts'
import { lastEntry } from './term-runs.ts'
import type { EntryId, Message, NodeId, Term } from './types.ts'

type Vote = Extract<Message, { type: 'vote' }>
type VoteReply = Extract<Message, { type: 'voteReply' }>

/** Time went on, and this node does not lead. */
export function tickElection(state: CoreState): void {
  if (state.nowMs < state.electionDueMs && !(state.role === 'follower' && isSoleVoter(state))) return
  if (!mayStand(state)) {
    becomeFollower(state, state.term, undefined)
    resetElectionDue(state)
    return
  }
  askForPreVotes(state)
}

/**
 * A node that recovers might miss what it acknowledged; one that takes in a snapshot has a log in name only. A voter whose removal is in
 * its log but not committed stands, though it will not count itself: the log of the others may be behind its own, and then they
 * would wait for each other for ever (Ongaro 2014, 4.2.2).
 */
function mayStand(state: CoreState): boolean {
  if (state.recovering || state.installing !== undefined) return false
  return state.memberships.some(at => isVoter(at.membership, state.self))
}

function askForPreVotes(state: CoreState): void {
  state.role = 'preCandidate'
  state.leader = undefined
  forgetLeader(state)
  resetElectionDue(state)
  state.votes.clear()
  state.votes.set(state.self, true)
  if (voteResult(membershipOf(state), state.votes) === 'won') {
    stand(state, false)
    return
  }
  askAll(state, (state.term + 1) as Term, true, false)
}

/** A new term, this node's vote for itself, and votes asked for. Its own vote counts once it is durable. */
function stand(state: CoreState, transfer: boolean): void {
  state.role = 'candidate'
  state.leader = undefined
  forgetLeader(state)
  resetElectionDue(state)
  state.votes.clear()
  setHardState(state, (state.term + 1) as Term, state.self)
  askAll(state, state.term, false, transfer)
}

function askAll(state: CoreState, term: Term, pre: boolean, transfer: boolean): void {
  const membership = membershipOf(state)
  const last = lastEntry(state.log)
  const voters = new Set([...membership.voters, ...(membership.outgoing ?? [])])
  for (const voter of voters) {
    if (voter !== state.self) send(state, voter, { type: 'vote', term, last, pre, transfer })
  }
}

/** The hard state became durable: a candidate's own vote among it. */
export function countOwnVote(state: CoreState): void {
  if (state.role !== 'candidate' || !isHardStateDurable(state)) return
  state.votes.set(state.self, true)
  countVotes(state)
}

function countVotes(state: CoreState): void {
  const result = voteResult(membershipOf(state), state.votes)
  if (result === 'lost') becomeFollower(state, state.term, undefined)
  if (result !== 'won') return
  if (state.role === 'preCandidate') stand(state, false)
  // Votes of others are no use before the own one is durable: it could be forgotten and given anew in the same term.
  else if (isHardStateDurable(state)) becomeLeader(state)
}

function isUpToDate(state: CoreState, last: EntryId): boolean {
  const own = lastEntry(state.log)
  return last.term > own.term || (last.term === own.term && last.index >= own.index)
}

/** While a leader is heard nobody else gets a vote: one that was cut off cannot disturb the others. */
function isLeaderHeard(state: CoreState): boolean {
  if (state.role === 'leader') return true
  return state.leader !== undefined && state.nowMs - state.heardLeaderMs < state.timing.electionMsMin
}

export function onVote(state: CoreState, from: NodeId, vote: Vote): void {
  const held = isLeaderHeard(state) && !vote.transfer
  if (vote.pre) {
    const granted = vote.term > state.term && !held && !state.recovering && isUpToDate(state, vote.last)
    send(state, from, { type: 'voteReply', term: granted ? vote.term : state.term, pre: true, granted })
    return
  }
  if (vote.term > state.term && !held) becomeFollower(state, vote.term, undefined)
  const granted =
    vote.term === state.term &&
    !state.recovering &&
    (state.votedFor === from || (state.votedFor === undefined && state.leader === undefined)) &&
    isUpToDate(state, vote.last)
  if (granted) {
    if (state.votedFor !== from) setHardState(state, state.term, from)
    resetElectionDue(state)
  }
  send(state, from, { type: 'voteReply', term: state.term, pre: false, granted })
}

export function onVoteReply(state: CoreState, from: NodeId, reply: VoteReply): void {
  if (reply.pre) {
    if (state.role !== 'preCandidate') return
    // A refusal has the voter's own term, which is at most ours here: see consensus.ts.
    if (reply.granted && reply.term !== state.term + 1) return
  } else if (state.role !== 'candidate' || reply.term !== state.term) return
  // A vote once given stands, even if a refusal that is older comes after it.
  if (state.votes.get(from) === true) return
  state.votes.set(from, reply.granted)
  countVotes(state)
}

/** The leader wishes that this node takes over. */
export function onTimeoutNow(state: CoreState, from: NodeId): void {
  if (state.role !== 'follower' || state.leader !== from || !state.writable || !mayStand(state)) return
  stand(state, true)
}

/** The connection to the leader broke. If its process died the others see that too, and need not wait for the time-out. */
export function onLeaderLost(state: CoreState): void {
  const { electionMsMin, heartbeatMs } = state.timing
  state.heardLeaderMs = Number.NEGATIVE_INFINITY
  const soon = state.nowMs + heartbeatMs + (random(state) * electionMsMin) / 2
  if (state.writable && soon < state.electionDueMs) state.electionDueMs = soon
}
