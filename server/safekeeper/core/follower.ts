/**
 * A follower's side of replication: appends, snapshots, acknowledgements. docs/consensus.md, "Appends" and "Repair of logs".
 */
import { CoreError } from './core-error.ts'
import {
  adoptMembership,
  advanceApplied,
  becomeFollower,
  type CoreState,
  cutLog,
  membershipOf,
  resetElectionDue,
  send,
  tellMembershipApplied,
} from './state.ts'
import { appendRun, entryAt, lastAtMost, resetRuns, termAt } from './term-runs.ts'
import type { EntryId, LogIndex, Message, NodeId } from './types.ts'

type Append = Extract<Message, { type: 'append' }>
type Snapshot = Extract<Message, { type: 'snapshot' }>

/** `from` leads in this term. */
function follow(state: CoreState, from: NodeId): void {
  if (state.role === 'leader' || (state.leader !== undefined && state.leader !== from)) {
    throw new CoreError(`${from} and ${state.leader} both lead in term ${state.term}`)
  }
  if (state.role !== 'follower' || state.leader !== from) becomeFollower(state, state.term, from)
  state.heardLeaderMs = state.nowMs
  resetElectionDue(state)
}

/** Tells the leader how far this log is flushed, and how far it reaches, as long as both equal the leader's. */
function acknowledge(state: CoreState, to: NodeId, round: number): void {
  send(state, to, {
    type: 'appendReply',
    term: state.term,
    ok: true,
    match: Math.min(state.flushed, state.verified) as LogIndex,
    rejected: 0 as LogIndex,
    hint: entryAt(state.log, state.verified),
    round,
    paused: !state.writable,
  })
}

/** What a message brings of an older term: its sender is told of the newer one. */
export function refuseOld(state: CoreState, to: NodeId, round: number): void {
  send(state, to, {
    type: 'appendReply',
    term: state.term,
    ok: false,
    match: 0 as LogIndex,
    rejected: 0 as LogIndex,
    hint: state.log.base,
    round,
    paused: !state.writable,
  })
}

/** The term is this node's. */
export function onAppend(state: CoreState, from: NodeId, append: Append): void {
  follow(state, from)
  const { log } = state
  const { prev } = append
  if (prev.index > log.base.index && termAt(log, prev.index) !== prev.term) {
    if (prev.index <= state.commit) {
      throw new CoreError(`${from} has another entry than the committed one at ${prev.index}`)
    }
    send(state, from, {
      type: 'appendReply',
      term: state.term,
      ok: false,
      match: Math.min(state.flushed, state.verified) as LogIndex,
      rejected: prev.index,
      hint: lastAtMost(log, prev.index, prev.term),
      round: append.round,
      paused: !state.writable,
    })
    return
  }
  const end = takeEntries(state, append)
  if (end > state.verified) state.verified = end
  const commit = Math.min(append.commit, state.verified) as LogIndex
  if (commit > state.commit) state.commit = commit
  if (state.commit > state.applied || state.recovering) advanceApplied(state)
  // Entries are acknowledged when they are flushed. What is there to say at once: that the leader was heard, that entries are of no
  // use, or that all of them were here already.
  const isNews = append.runs.length > 0
  if (isNews ? !state.writable || end <= state.flushed : append.round > 0)
    acknowledge(state, from, append.round)
  else if (append.round > state.roundHeard) state.roundHeard = append.round
}

/** Writes what is new of an append whose `prev` fits. Returns the last index that now equals the leader's log. */
function takeEntries(state: CoreState, append: Append): LogIndex {
  const { log } = state
  let index = append.prev.index as number
  let firstNew = 0
  let count = 0
  for (const run of append.runs) {
    const end = index + run.count
    if (firstNew === 0) {
      // Skip what is here already: all at or below the base is committed, so it is the same.
      let at = Math.max(index, log.base.index)
      while (at < end && at < log.last && termAt(log, (at + 1) as LogIndex) === run.term) {
        at = sameTermUpTo(state, at + 1, end)
      }
      index = Math.min(at, end)
      if (index < end) {
        if (!state.writable) return index as LogIndex
        if (index < log.last) truncate(state, index as LogIndex)
        firstNew = index + 1
      }
    }
    if (firstNew !== 0) {
      appendRun(log, run.term, end - index)
      count += end - index
    }
    index = end
  }
  if (firstNew === 0) return Math.min(index, log.last) as LogIndex
  state.effects.push({ type: 'store', first: firstNew as LogIndex, count })
  for (const at of append.memberships) {
    if (at.index >= firstNew) adoptMembership(state, at)
  }
  return index as LogIndex
}

/** The last index up to `end` that has the same term as the entry at `index`. */
function sameTermUpTo(state: CoreState, index: number, end: number): number {
  const { firsts, last } = state.log
  let limit = Math.min(end, last)
  for (let run = firsts.length - 1; run >= 0 && firsts[run]! > index; run--)
    limit = Math.min(limit, firsts[run]! - 1)
  return limit
}

function truncate(state: CoreState, after: LogIndex): void {
  if (after < state.commit) {
    throw new CoreError(
      `the leader would have entries after ${after} cut, but all up to ${state.commit} is committed`,
    )
  }
  cutLog(state, after)
  state.effects.push({ type: 'truncate', after })
}

/** More of the log is synced. */
export function acknowledgeFlushed(state: CoreState): void {
  if (state.role !== 'follower' || state.leader === undefined || state.verified === 0) return
  acknowledge(state, state.leader, state.roundHeard)
}

/** The term is this node's. The driver holds the snapshot's bytes until this step is over. */
export function onSnapshot(state: CoreState, from: NodeId, snapshot: Snapshot): void {
  follow(state, from)
  const { last } = snapshot
  if (last.index > state.commit) {
    if (termAt(state.log, last.index) === last.term) {
      // All of it is in the log already, and what is in a snapshot is committed.
      state.commit = last.index
      if (state.verified < last.index) state.verified = last.index
      advanceApplied(state)
    } else {
      install(state, snapshot)
      return
    }
  }
  acknowledge(state, from, 0)
}

/** Nothing of the log is worth keeping: it ends below the snapshot, or is another one. What follows is stored after the install. */
function install(state: CoreState, snapshot: Snapshot): void {
  const { last, membership } = snapshot
  resetRuns(state.log, last)
  state.installing = last
  state.flushed = 0 as LogIndex
  state.commit = last.index
  state.verified = last.index
  state.memberships.length = 0
  state.memberships.push({ index: last.index, membership })
  state.effects.push({ type: 'install', last })
  state.effects.push({ type: 'membership', membership: membershipOf(state), committed: false })
}

export function onInstalled(state: CoreState, last: EntryId): void {
  const { installing } = state
  if (installing === undefined || installing.index !== last.index || installing.term !== last.term) return
  state.installing = undefined
  state.flushed = last.index
  state.applied = last.index
  tellMembershipApplied(state)
  advanceApplied(state)
  acknowledgeFlushed(state)
}
