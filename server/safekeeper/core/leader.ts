/**
 * A node that leads: how it begins, what it takes, what is committed by the others' answers, and reads. docs/consensus.md, "Appends" and
 * "Reading".
 */
import { settleMembership } from './membership.ts'
import { becomeProbe, becomeReplicate, confirm, type Progress, reject } from './progress.ts'
import { quorumIndex, quorumValue } from './quorum.ts'
import {
  addProgress,
  appendOwn,
  beginRound,
  isQuorumHeard,
  sendEmpty,
  sendSnapshot,
  tellCommit,
} from './replication.ts'
import {
  advanceApplied,
  becomeFollower,
  type CoreState,
  isSoleVoter,
  type Leading,
  membershipOf,
  tellRole,
} from './state.ts'
import { appendRun, lastAtMost, termAt } from './term-runs.ts'
import { continueTransfer, handOver } from './transfer.ts'
import type { LogIndex, Message, NodeId } from './types.ts'

type AppendReply = Extract<Message, { type: 'appendReply' }>

/** Reads that may wait for a round of heartbeats; more are refused. */
export const READS_MAX = 4096

/** The votes are there: a no-op of the new term goes to everyone at once. */
export function becomeLeader(state: CoreState): void {
  const last = state.log.last
  const lead: Leading = {
    progress: new Map(),
    termFirst: (last + 1) as LogIndex,
    round: 1,
    roundOfAll: 1,
    heartbeatDueMs: state.nowMs,
    reads: [],
    transfer: undefined,
  }
  state.role = 'leader'
  state.leader = state.self
  state.votes.clear()
  state.lead = lead
  addProgress(state, lead)
  // Most have all: entries are sent without asking first, and who refuses them is asked then.
  for (const progress of lead.progress.values()) progress.state = 'replicate'
  const own = lead.progress.get(state.self)!
  own.match = state.flushed
  own.round = lead.round
  tellRole(state)
  appendOwn(state, { kind: 'noop' })
}

export function onPropose(state: CoreState, count: number): void {
  const { lead } = state
  let why: string | undefined
  if (lead === undefined) why = 'this node does not lead'
  else if (lead.transfer !== undefined) why = 'leadership is being handed over'
  else if (!state.writable) why = 'the disk of the leader takes no entries'
  if (why !== undefined) {
    state.effects.push({ type: 'refused', what: 'propose', why })
    return
  }
  const first = (state.log.last + 1) as LogIndex
  appendRun(state.log, state.term, count)
  state.effects.push({ type: 'append', first, count, term: state.term })
}

// ---- answers ----

export function onAppendReply(state: CoreState, lead: Leading, from: NodeId, reply: AppendReply): void {
  const progress = lead.progress.get(from)
  if (progress === undefined || from === state.self) return
  progress.heardMs = state.nowMs
  progress.paused = reply.paused
  if (reply.round > progress.round) {
    progress.round = reply.round
    if (lead.reads.length > 0) answerReads(state, lead)
  }
  if (!reply.ok) {
    onRejected(state, lead, progress, reply)
    return
  }
  // Both are the member's word for its log; beyond our own it cannot equal ours.
  const received = Math.min(reply.hint.index, state.log.last) as LogIndex
  const isConfirmed = confirm(progress, Math.min(reply.match, state.log.last) as LogIndex, state.nowMs)
  follow(state, lead, progress, received, reply.round)
  if (isConfirmed) {
    advanceCommit(state, lead)
    if (state.lead === lead) continueTransfer(state, lead)
  }
}

/** Moves on with a member that has our entries up to `received`, as it says in answer to `round`. */
function follow(
  state: CoreState,
  lead: Leading,
  progress: Progress,
  received: LogIndex,
  round: number,
): void {
  if (progress.paused) {
    if (progress.state === 'replicate') becomeProbe(progress, lead.round + 1, state.nowMs)
    return
  }
  if (progress.state === 'replicate') {
    // It had more, and has given it back (a full disk) or begun anew.
    if (received < progress.received && round >= progress.probeRound) {
      becomeProbe(progress, lead.round + 1, state.nowMs)
    } else if (received > progress.received) {
      progress.received = received
      progress.movedMs = state.nowMs
    }
  }
  const isAnswered =
    progress.state === 'snapshot' ? progress.match >= state.log.base.index : round >= progress.probeRound
  if (progress.state !== 'replicate' && isAnswered) {
    progress.received = Math.max(received, progress.match) as LogIndex
    progress.next = (progress.received + 1) as LogIndex
    becomeReplicate(progress, state.nowMs)
  }
}

function onRejected(state: CoreState, lead: Leading, progress: Progress, reply: AppendReply): void {
  if (progress.state === 'snapshot' || reply.round < progress.probeRound) return
  // Where the member's terms and ours may still agree, in as few questions as there are terms.
  const { index } = lastAtMost(state.log, reply.hint.index, reply.hint.term)
  const isBelow = reply.hint.index < state.log.base.index
  const agreed = isBelow ? reply.hint.index : index
  if (!reject(progress, reply.rejected, agreed, lead.round + 1, state.nowMs)) return
  if (progress.next - 1 < state.log.base.index) sendSnapshot(state, progress)
  else sendEmpty(state, progress, (progress.next - 1) as LogIndex, ++lead.round)
}

/** Counts what a quorum has flushed. Only an entry of the own term is counted: an older one could still be replaced (Raft, 5.4.2). */
export function advanceCommit(state: CoreState, lead: Leading): void {
  const quorum = quorumIndex(membershipOf(state), id => lead.progress.get(id)?.match ?? (0 as LogIndex))
  if (quorum > state.commit && termAt(state.log, quorum) === state.term) {
    state.commit = quorum
    advanceApplied(state)
    settleMembership(state, lead)
  }
}

/** More of the own log is synced. */
export function onOwnFlushed(state: CoreState, lead: Leading): void {
  const own = lead.progress.get(state.self)!
  confirm(own, state.flushed, state.nowMs)
  own.next = (state.log.last + 1) as LogIndex
  advanceCommit(state, lead)
  advanceApplied(state)
  if (state.lead === lead) settleMembership(state, lead)
}

// ---- time ----

export function tickLeader(state: CoreState, lead: Leading): void {
  if (lead.transfer !== undefined && state.nowMs >= lead.transfer.deadlineMs) {
    lead.transfer = undefined
    state.effects.push({ type: 'refused', what: 'transfer', why: 'the other did not take over in time' })
  }
  if (state.nowMs < lead.heartbeatDueMs) {
    tellCommit(state, lead)
    return
  }
  if (!isQuorumHeard(state, lead)) {
    becomeFollower(state, state.term, undefined)
    return
  }
  beginRound(state, lead)
  if (!state.writable && lead.transfer === undefined) handOver(state, lead)
}

// ---- linearizable reads ----

export function onRead(state: CoreState, id: number): void {
  const { lead } = state
  if (lead === undefined || lead.reads.length >= READS_MAX) {
    state.effects.push({ type: 'readRefused', id })
    return
  }
  // All that was committed before this term lies below its first entry.
  const index = Math.max(state.commit, lead.termFirst) as LogIndex
  if (isSoleVoter(state)) {
    state.effects.push({ type: 'readReady', id, index })
    return
  }
  const isFirst = lead.reads.length === 0
  lead.reads.push({ id, index, round: lead.round + 1 })
  // Further reads wait for the round after this one, all together.
  if (isFirst) beginRound(state, lead)
}

function answerReads(state: CoreState, lead: Leading): void {
  const confirmed = quorumValue(membershipOf(state), id =>
    id === state.self ? lead.round : (lead.progress.get(id)?.round ?? 0),
  )
  let ready = 0
  for (; ready < lead.reads.length; ready++) {
    const { id, index, round } = lead.reads[ready]!
    if (round > confirmed) break
    state.effects.push({ type: 'readReady', id, index })
  }
  if (ready === 0) return
  lead.reads.splice(0, ready)
  if (lead.reads.length > 0 && lead.reads[0]!.round > lead.roundOfAll) beginRound(state, lead)
}
