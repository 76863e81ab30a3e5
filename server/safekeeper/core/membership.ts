/**
 * Changes of the membership, by way of a joint one. docs/consensus.md, "Membership".
 */
import { allMembers, isVoter } from './quorum.ts'
import { addProgress, appendOwn, isCaughtUp, pump, wouldHaveQuorum } from './replication.ts'
import { adoptMembership, type CoreState, type Leading, membershipIndex, membershipOf } from './state.ts'
import { stepDown } from './transfer.ts'
import type { Membership, MembershipChange, NodeId } from './types.ts'

function isSameSet(a: readonly NodeId[], b: readonly NodeId[]): boolean {
  return a.length === b.length && a.every(id => b.includes(id))
}

/** Why a change cannot begin now; undefined if it can. */
function whyNot(state: CoreState, change: MembershipChange): string | undefined {
  const { lead } = state
  if (lead === undefined) return 'this node does not lead'
  const now = membershipOf(state)
  if (now.outgoing !== undefined || membershipIndex(state) > state.commit) {
    return 'another change of the membership is under way'
  }
  // Else a change of a former leader, of which this one knows nothing, might still come to light.
  if (state.commit < lead.termFirst) return 'the leader has only just begun'
  if (lead.transfer !== undefined) return 'leadership is being handed over'
  if (!state.writable) return 'the disk of the leader takes no entries'
  const all = [...change.voters, ...change.learners]
  if (change.voters.length === 0) return 'a cell needs a member that votes'
  if (new Set(all).size !== all.length) return 'a member is named twice'
  if (isSameSet(change.voters, now.voters) && isSameSet(change.learners, now.learners)) {
    return 'the membership is this already'
  }
  const behind = change.voters.filter(id => !now.voters.includes(id) && !isCaughtUp(state, lead, id))
  if (behind.length > 0) return `not caught up: ${behind.join(', ')}`
  if (!wouldHaveQuorum(state, lead, { voters: change.voters, learners: [] })) {
    return 'no majority of the new members answers and has caught up'
  }
  return undefined
}

export function onChange(state: CoreState, change: MembershipChange): void {
  const why = whyNot(state, change)
  if (why !== undefined) {
    state.effects.push({ type: 'refused', what: 'change', why })
    return
  }
  const now = membershipOf(state)
  const next: Membership = { voters: [...change.voters], learners: [...change.learners] }
  // Learners count nowhere, so no two majorities could disagree.
  const isJoint = !isSameSet(next.voters, now.voters)
  appendMembership(state, state.lead!, isJoint ? { ...next, outgoing: now.voters } : next)
}

/** In force from here on, before it is committed. */
function appendMembership(state: CoreState, lead: Leading, membership: Membership): void {
  const index = appendOwn(state, { kind: 'membership', membership })
  adoptMembership(state, { index, membership })
  addProgress(state, lead)
}

/**
 * More is committed. A joint membership that is committed is left at once; one that is not joint ends the change, and with it the
 * leadership of a leader that is not in it.
 */
export function settleMembership(state: CoreState, lead: Leading): void {
  const index = membershipIndex(state)
  const membership = membershipOf(state)
  if (index > state.commit) return
  if (membership.outgoing !== undefined) {
    appendMembership(state, lead, { voters: membership.voters, learners: membership.learners })
    return
  }
  removeLeaving(state, lead)
  if (!isVoter(membership, state.self) && state.applied >= index) stepDown(state, lead)
}

/** Members that are out of a committed membership get to know that, if they are not far behind, and nothing more. */
function removeLeaving(state: CoreState, lead: Leading): void {
  const membership = membershipOf(state)
  const staying = new Set(allMembers(membership)).add(state.self)
  if (lead.progress.size === staying.size) return
  pump(state, lead)
  for (const id of lead.progress.keys()) {
    if (!staying.has(id)) lead.progress.delete(id)
  }
}
