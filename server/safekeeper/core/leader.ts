/**
 * A leader's side of replication: what goes to whom, what is committed, reads, handing over. docs/consensus.md, "Appends" and
 * "Reading".
 */
import { settleMembership } from './membership.ts'
import {
  becomeProbe,
  becomeReplicate,
  becomeSnapshot,
  confirm,
  createProgress,
  inflight,
  type Progress,
  reject,
} from './progress.ts'
import { allMembers, isQuorum, isVoter, quorumIndex, quorumValue } from './quorum.ts'
import {
  advanceApplied,
  becomeFollower,
  type CoreState,
  isSoleVoter,
  type Leading,
  membershipOf,
  send,
  tellRole,
} from './state.ts'
import { appendRun, entryAt, lastAtMost, termAt } from './term-runs.ts'
import type { EntryId, LogIndex, Membership, Message, NodeId } from './types.ts'

type AppendReply = Extract<Message, { type: 'appendReply' }>

/** Reads that may wait for a round of heartbeats; more are refused. */
export const READS_MAX = 4096

const NO_ENTRY = { index: 0, term: 0 } as EntryId

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

/** Makes a progress for each member that has none. */
export function addProgress(state: CoreState, lead: Leading): void {
  for (const id of [state.self, ...allMembers(membershipOf(state))]) {
    if (!lead.progress.has(id)) lead.progress.set(id, createProgress(id, state.log.last, state.nowMs))
  }
}

/** Writes an entry of the core's own. Returns its index. */
export function appendOwn(
  state: CoreState,
  entry: { readonly kind: 'noop' } | { readonly kind: 'membership'; readonly membership: Membership },
): LogIndex {
  appendRun(state.log, state.term, 1)
  const index = state.log.last
  state.effects.push({ type: 'appendOwn', id: { index, term: state.term }, entry })
  return index
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

// ---- sending ----

/** At the end of each step of a leader: entries to all that can take them. */
export function pump(state: CoreState, lead: Leading): void {
  for (const progress of lead.progress.values()) {
    if (progress.id !== state.self && progress.state === 'replicate') sendEntries(state, lead, progress)
  }
}

/**
 * The commit index to those that wait for nothing: a tick after the commit, for by then the next entries have mostly brought it, and
 * nobody but readers at that member waits for it.
 */
function tellCommit(state: CoreState, lead: Leading): void {
  for (const progress of lead.progress.values()) {
    if (progress.id === state.self || progress.state !== 'replicate' || inflight(progress) > 0) continue
    if (progress.commitSent < state.commit) sendEmpty(state, progress, progress.match, 0)
  }
}

function sendEntries(state: CoreState, lead: Leading, progress: Progress): void {
  const { log } = state
  if (progress.paused || progress.next > log.last) return
  if (progress.next - 1 < log.base.index) {
    sendSnapshot(state, progress)
    return
  }
  const room = state.timing.inflightEntriesMax - inflight(progress)
  if (room <= 0) return
  if (inflight(progress) === 0) progress.movedMs = state.nowMs
  const prev = entryAt(log, (progress.next - 1) as LogIndex)
  const last = Math.min(log.last, prev.index + room) as LogIndex
  state.effects.push({
    type: 'replicate',
    to: progress.id,
    term: state.term,
    prev,
    last,
    commit: state.commit,
    round: lead.round,
  })
  progress.next = (last + 1) as LogIndex
  progress.commitSent = state.commit
}

/** An append without entries: heartbeat, question where the logs part, or news of the commit index (round 0). */
function sendEmpty(state: CoreState, progress: Progress, prevIndex: LogIndex, round: number): void {
  // Below the log's beginning there is no term to name, and nothing to ask: what is trimmed was committed.
  const term = progress.state === 'snapshot' ? undefined : termAt(state.log, prevIndex)
  send(state, progress.id, {
    type: 'append',
    term: state.term,
    prev: term === undefined ? NO_ENTRY : { index: prevIndex, term },
    runs: [],
    memberships: [],
    commit: state.commit,
    round,
  })
  progress.commitSent = state.commit
}

function sendSnapshot(state: CoreState, progress: Progress): void {
  becomeSnapshot(progress, state.nowMs)
  state.effects.push({ type: 'sendSnapshot', to: progress.id, term: state.term })
}

/** Heartbeats to all, which also ask again whatever was not answered. */
function beginRound(state: CoreState, lead: Leading): void {
  lead.round++
  lead.roundOfAll = lead.round
  lead.heartbeatDueMs = state.nowMs + state.timing.heartbeatMs
  for (const progress of lead.progress.values()) {
    if (progress.id === state.self) {
      progress.round = lead.round
      continue
    }
    if (isStuck(state, progress)) becomeProbe(progress, lead.round, state.nowMs)
    const isProbe = progress.state === 'probe'
    sendEmpty(state, progress, isProbe ? ((progress.next - 1) as LogIndex) : progress.match, lead.round)
    if (progress.state === 'snapshot' && state.nowMs - progress.snapshotMs >= state.timing.snapshotRetryMs) {
      sendSnapshot(state, progress)
    }
  }
}

/** Entries were sent, and for an election time-out the member has not said that it has any of them: they are lost. */
function isStuck(state: CoreState, progress: Progress): boolean {
  return (
    progress.state === 'replicate' &&
    progress.received < progress.next - 1 &&
    inflight(progress) > 0 &&
    state.nowMs - progress.movedMs > state.timing.electionMsMax
  )
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

function isHeard(state: CoreState, progress: Progress | undefined): boolean {
  if (progress === undefined) return false
  return progress.id === state.self || state.nowMs - progress.heardMs <= state.timing.electionMsMax
}

function isQuorumHeard(state: CoreState, lead: Leading): boolean {
  return isQuorum(membershipOf(state), id => isHeard(state, lead.progress.get(id)))
}

/**
 * Whether a membership that is not yet in force would have a quorum that answers, and has an entry of this term: such a member
 * may not only take entries but vote, for if it was recovering that is over.
 */
export function wouldHaveQuorum(state: CoreState, lead: Leading, membership: Membership): boolean {
  return isQuorum(membership, id => {
    const progress = lead.progress.get(id)
    return progress !== undefined && isHeard(state, progress) && progress.match >= lead.termFirst
  })
}

/** Whether a member could be made a voter without holding up commits: it answers, and is within reach of the end. */
export function isCaughtUp(state: CoreState, lead: Leading, id: NodeId): boolean {
  const progress = lead.progress.get(id)
  if (progress === undefined || !isHeard(state, progress)) return false
  return progress.state === 'replicate' && state.log.last - progress.match <= state.timing.inflightEntriesMax
}

export function onPeerLost(state: CoreState, lead: Leading, peer: NodeId): void {
  const progress = lead.progress.get(peer)
  if (progress !== undefined && peer !== state.self) becomeProbe(progress, lead.round + 1, state.nowMs)
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

// ---- handing over ----

export function onTransfer(state: CoreState, to: NodeId): void {
  const { lead } = state
  let why: string | undefined
  const progress = lead?.progress.get(to)
  if (lead === undefined) why = 'this node does not lead'
  else if (lead.transfer !== undefined) why = 'leadership is being handed over already'
  else if (to === state.self) why = 'it leads already'
  else if (progress === undefined || !isVoter(membershipOf(state), to)) why = 'it has no vote'
  else if (progress.paused) why = 'its disk takes no entries'
  else if (!isHeard(state, progress)) why = 'it does not answer'
  if (why !== undefined) state.effects.push({ type: 'refused', what: 'transfer', why })
  else beginTransfer(state, lead!, to)
}

function beginTransfer(state: CoreState, lead: Leading, to: NodeId): void {
  lead.transfer = { to, deadlineMs: state.nowMs + state.timing.electionMsMax, asked: false }
  continueTransfer(state, lead)
}

/** The other stands as soon as it has all; nothing is proposed meanwhile, so that moment comes. */
function continueTransfer(state: CoreState, lead: Leading): void {
  const { transfer } = lead
  if (transfer === undefined || transfer.asked) return
  if (lead.progress.get(transfer.to)?.match !== state.log.last) return
  transfer.asked = true
  send(state, transfer.to, { type: 'timeoutNow', term: state.term })
}

/** The voter that could best lead instead of this node. */
export function bestOther(state: CoreState, lead: Leading): NodeId | undefined {
  let best: Progress | undefined
  for (const progress of lead.progress.values()) {
    const isAble =
      progress.id !== state.self &&
      !progress.paused &&
      isVoter(membershipOf(state), progress.id) &&
      isHeard(state, progress)
    if (isAble && (best === undefined || progress.match > best.match)) best = progress
  }
  return best?.id
}

/** This node's disk is full: another leads, if there is one that can. */
export function handOver(state: CoreState, lead: Leading): void {
  const to = lead.transfer === undefined ? bestOther(state, lead) : undefined
  if (to !== undefined) beginTransfer(state, lead, to)
}

/** Leads no longer, of its own accord, and asks the best of the others to stand. */
export function stepDown(state: CoreState, lead: Leading): void {
  const to = bestOther(state, lead)
  if (to !== undefined) send(state, to, { type: 'timeoutNow', term: state.term })
  becomeFollower(state, state.term, undefined)
}
