/**
 * What a leader sends to whom, and what it knows of who hears it: entries, heartbeats, snapshots. docs/consensus.md, "Appends".
 */
import { becomeProbe, becomeSnapshot, createProgress, inflight, type Progress } from './progress.ts'
import { allMembers, isQuorum } from './quorum.ts'
import { type CoreState, type Leading, membershipOf, send } from './state.ts'
import { appendRun, entryAt, termAt } from './term-runs.ts'
import type { EntryId, LogIndex, Membership, NodeId } from './types.ts'

const NO_ENTRY = { index: 0, term: 0 } as EntryId

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
export function tellCommit(state: CoreState, lead: Leading): void {
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
export function sendEmpty(state: CoreState, progress: Progress, prevIndex: LogIndex, round: number): void {
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

export function sendSnapshot(state: CoreState, progress: Progress): void {
  becomeSnapshot(progress, state.nowMs)
  state.effects.push({ type: 'sendSnapshot', to: progress.id, term: state.term })
}

/** Heartbeats to all, which also ask again whatever was not answered. */
export function beginRound(state: CoreState, lead: Leading): void {
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

export function isHeard(state: CoreState, progress: Progress | undefined): boolean {
  if (progress === undefined) return false
  return progress.id === state.self || state.nowMs - progress.heardMs <= state.timing.electionMsMax
}

export function isQuorumHeard(state: CoreState, lead: Leading): boolean {
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
