/**
 * A leader that hands its leadership to another: because it was asked to, because its disk is full, or because it leaves.
 * docs/consensus.md, "Handing over".
 */
import type { Progress } from './progress.ts'
import { isVoter } from './quorum.ts'
import { isHeard } from './replication.ts'
import { becomeFollower, type CoreState, type Leading, membershipOf, send } from './state.ts'
import type { NodeId } from './types.ts'

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
export function continueTransfer(state: CoreState, lead: Leading): void {
  const { transfer } = lead
  if (transfer === undefined || transfer.asked) return
  if (lead.progress.get(transfer.to)?.match !== state.log.last) return
  transfer.asked = true
  send(state, transfer.to, { type: 'timeoutNow', term: state.term })
}

/** The voter that could best lead instead of this node. */
function bestOther(state: CoreState, lead: Leading): NodeId | undefined {
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
