/**
 * The consensus core: `step(state, event) → effects`. No I/O, no clock, no chance but what comes in; the same events give the same
 * effects. docs/consensus.md tells the rules; types.ts what comes in and goes out; election.ts, follower.ts,
 * leader.ts with replication.ts, transfer.ts and membership.ts are the rules; state.ts is what they share.
 */
import { CoreError } from './core-error.ts'
import { countOwnVote, onLeaderLost, onTimeoutNow, onVote, onVoteReply, tickElection } from './election.ts'
import { acknowledgeFlushed, onAppend, onInstalled, onSnapshot, refuseOld } from './follower.ts'
import { onAppendReply, onOwnFlushed, onPropose, onRead, tickLeader } from './leader.ts'
import { onChange } from './membership.ts'
import type { CoreStatus } from './progress.ts'
import { onPeerLost, pump } from './replication.ts'
import {
  advanceApplied,
  becomeFollower,
  type CoreState,
  cutLog,
  membershipOf,
  resetElectionDue,
  setHardState,
  tellMembershipApplied,
  tellRole,
} from './state.ts'
import { createRuns, lastTerm, termAt, trimRuns } from './term-runs.ts'
import { handOver, onTransfer, stepDown } from './transfer.ts'
import {
  CORE_TIMING,
  type CoreEvent,
  type CoreStart,
  type Effect,
  type EntryId,
  type LogIndex,
  type Message,
  type NodeId,
  type Term,
} from './types.ts'

export { CoreError } from './core-error.ts'
export { type CoreState, membershipIndex } from './state.ts'

/**
 * The state of a node as it starts. Its first effects come with the first event, which should be a tick.
 * Throws CoreError if the log's terms fall or there is no membership.
 */
export function createCore(start: CoreStart): CoreState {
  const log = createRuns(start.base, start.runs)
  const applied = start.applied ?? log.base.index
  if (applied < log.base.index || applied > log.last) {
    throw new CoreError(`applied up to ${applied}, but the log is (${log.base.index}, ${log.last}]`)
  }
  const memberships = start.memberships.filter(at => at.index <= log.last)
  if (memberships.length === 0) throw new CoreError('no membership: neither in the snapshot nor in the log')
  const { hardState } = start
  const state: CoreState = {
    self: start.self,
    timing: { ...CORE_TIMING, ...start.timing },
    term: hardState.term,
    votedFor: hardState.votedFor,
    durable: hardState,
    log,
    flushed: log.last,
    commit: applied,
    applied,
    verified: applied,
    roundHeard: 0,
    memberships,
    membershipApplied: -1 as LogIndex,
    role: 'follower',
    recovering: start.recovering,
    leader: undefined,
    lead: undefined,
    votes: new Map(),
    nowMs: 0,
    clockMs: start.nowMs,
    electionDueMs: 0,
    heardLeaderMs: Number.NEGATIVE_INFINITY,
    randomState: start.seed | 0,
    writable: true,
    installing: undefined,
    effects: [],
    told: undefined,
  }
  tellMembershipApplied(state)
  if (memberships.length > 1) {
    state.effects.push({ type: 'membership', membership: membershipOf(state), committed: false })
  }
  resetElectionDue(state)
  // Entries of a term can be durable before the term itself is. No vote of that term can have left then.
  const newest = Math.max(hardState.term, lastTerm(log)) as Term
  // A node that recovers goes one further: no acknowledgement from before the damage is in a term of which it hears again.
  const term = (start.recovering ? newest + 1 : newest) as Term
  if (term > state.term) setHardState(state, term, undefined)
  return state
}

/** Takes one event. Changes `state` in place; the effects are to be carried out in order. Throws CoreError for what cannot be. */
export function step(state: CoreState, event: CoreEvent): Effect[] {
  take(state, event)
  tellRole(state)
  if (state.lead !== undefined) pump(state, state.lead)
  const effects = state.effects
  state.effects = []
  return effects
}

function take(state: CoreState, event: CoreEvent): void {
  switch (event.type) {
    case 'tick':
      onTick(state, event.nowMs)
      return
    case 'message':
      onMessage(state, event.from, event.message)
      return
    case 'propose':
      onPropose(state, event.count)
      return
    case 'change':
      onChange(state, event.change)
      return
    case 'transfer':
      onTransfer(state, event.to)
      return
    case 'read':
      onRead(state, event.id)
      return
    case 'persisted':
      state.durable = event.hardState
      countOwnVote(state)
      return
    case 'flushed':
      onFlushed(state, event.last)
      return
    case 'installed':
      onInstalled(state, event.last)
      return
    case 'trimmed':
      onTrimmed(state, event.last)
      return
    case 'peerLost':
      if (state.lead !== undefined) onPeerLost(state, state.lead, event.peer)
      else if (state.leader === event.peer) onLeaderLost(state)
      return
    case 'writable':
      onWritable(state, event.writable)
      return
    case 'dropped':
      onDropped(state, event.last)
      return
  }
}

function onTick(state: CoreState, nowMs: number): void {
  // Time in which this process did not run is not time in which the others were silent: what they sent is still to be read.
  const passed = Math.max(0, nowMs - state.clockMs)
  state.clockMs = nowMs
  state.nowMs += Math.min(passed, state.timing.electionMsMin / 2)
  if (state.lead !== undefined) tickLeader(state, state.lead)
  else tickElection(state)
}

function onMessage(state: CoreState, from: NodeId, message: Message): void {
  const { type, term } = message
  if (type === 'vote') {
    onVote(state, from, message)
    return
  }
  const isFromLeader = type === 'append' || type === 'snapshot'
  // A granted pre-vote names the term that the asker would have.
  const isPreGrant = type === 'voteReply' && message.pre && message.granted
  if (term > state.term && !isPreGrant) becomeFollower(state, term, isFromLeader ? from : undefined)
  if (term < state.term) {
    if (isFromLeader) refuseOld(state, from, 0)
    return
  }
  switch (type) {
    case 'voteReply':
      onVoteReply(state, from, message)
      return
    case 'append':
      onAppend(state, from, message)
      return
    case 'appendReply':
      if (state.lead !== undefined) onAppendReply(state, state.lead, from, message)
      return
    case 'snapshot':
      onSnapshot(state, from, message)
      return
    case 'timeoutNow':
      onTimeoutNow(state, from)
      return
  }
}

function onFlushed(state: CoreState, last: EntryId): void {
  // What was cut in the meantime is no longer this log's.
  if (state.installing !== undefined || termAt(state.log, last.index) !== last.term) return
  if (last.index <= state.flushed) return
  state.flushed = last.index
  if (state.lead !== undefined) onOwnFlushed(state, state.lead)
  else {
    advanceApplied(state)
    acknowledgeFlushed(state)
  }
}

function onTrimmed(state: CoreState, last: EntryId): void {
  if (last.index > state.applied) {
    throw new CoreError(`trimmed to entry ${last.index}, but only ${state.applied} are applied`)
  }
  trimRuns(state.log, last)
}

function onWritable(state: CoreState, writable: boolean): void {
  if (writable === state.writable) return
  state.writable = writable
  if (state.lead !== undefined) {
    if (!writable) handOver(state, state.lead)
    return
  }
  if (state.role === 'follower') resetElectionDue(state)
  // The leader had better know at once.
  acknowledgeFlushed(state)
}

/**
 * Entries could not be written. They may be on others, so a leader must not give their places away anew in this term; and
 * votes asked for with a longer log than there is do not count.
 */
function onDropped(state: CoreState, last: EntryId): void {
  if (last.index >= state.log.last) return
  if (last.index < state.flushed || termAt(state.log, last.index) !== last.term) {
    throw new CoreError(
      `entries after ${last.index} were given back, but all up to ${state.flushed} were flushed`,
    )
  }
  if (state.lead !== undefined) stepDown(state, state.lead)
  else if (state.role !== 'follower') becomeFollower(state, state.term, undefined)
  if (state.commit > last.index) state.commit = last.index
  cutLog(state, last.index)
  acknowledgeFlushed(state)
}

/** For status and metrics. */
export function coreStatus(state: CoreState): CoreStatus {
  const members = [...(state.lead?.progress.values() ?? [])].map(progress => ({
    id: progress.id,
    state: progress.state,
    match: progress.match,
    next: progress.next,
    paused: progress.paused,
    silentMs: progress.id === state.self ? 0 : state.nowMs - progress.heardMs,
  }))
  const { term, leader, commit, flushed } = state
  return { term, leader, commit, flushed, last: state.log.last, members }
}
