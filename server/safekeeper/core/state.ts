/**
 * What the core remembers between two events, and the few moves that all of its parts share. election.ts, follower.ts, leader.ts
 * and membership.ts hold the rules; consensus.ts puts them together.
 *
 * The state is changed in place, for speed: it belongs to whoever calls `step`.
 */
import { CoreError } from './core-error.ts'
import type { Progress } from './progress.ts'
import { isVoter } from './quorum.ts'
import { type TermRuns, termAt, truncateRuns } from './term-runs.ts'
import type {
  CoreTiming,
  Effect,
  EntryId,
  HardState,
  LogIndex,
  Membership,
  MembershipAt,
  Message,
  NodeId,
  Role,
  Term,
} from './types.ts'

/** A linearizable read that waits for a quorum to confirm that this node still leads. */
export interface PendingRead {
  readonly id: number
  readonly index: LogIndex
  /** The round of heartbeats, begun after the read came, that must be answered. */
  readonly round: number
}

/** What only a leader has. */
export interface Leading {
  /** Of all that receive the log, this node included, and of those that are just leaving. */
  readonly progress: Map<NodeId, Progress>
  /** The no-op of this term: only from here on are entries counted. */
  readonly termFirst: LogIndex
  /** Of the newest heartbeat or question. */
  round: number
  /** Of the newest heartbeats to all. */
  roundOfAll: number
  heartbeatDueMs: number
  /** Ascending by round. */
  readonly reads: PendingRead[]
  transfer: { readonly to: NodeId; readonly deadlineMs: number; asked: boolean } | undefined
}

export interface CoreState {
  readonly self: NodeId
  readonly timing: CoreTiming

  term: Term
  votedFor: NodeId | undefined
  /** What is durable of the two; behind them while a `persist` is under way. */
  durable: HardState

  readonly log: TermRuns
  /** flushed ≤ log.last. While a snapshot is being installed 0, else ≥ log.base. */
  flushed: LogIndex
  /** On a quorum, as far as this node knows. log.base ≤ commit ≤ log.last. */
  commit: LogIndex
  /** What the driver was told: applied ≤ min(commit, flushed). Never falls. */
  applied: LogIndex
  /** All up to here equals the log of this term's leader. commit ≤ verified ≤ log.last. */
  verified: LogIndex
  /** Newest round of the leader's heartbeats that came with entries, and is answered when these are flushed. */
  roundHeard: number
  /** Ascending; the first is at or below `applied` (all before it are forgotten), the last counts. Never empty. */
  readonly memberships: MembershipAt[]
  /** Index of the newest membership that was told to be committed. */
  membershipApplied: LogIndex

  role: 'follower' | 'preCandidate' | 'candidate' | 'leader'
  recovering: boolean
  leader: NodeId | undefined
  /** If and only if role is leader. */
  lead: Leading | undefined
  readonly votes: Map<NodeId, boolean>

  /** The core's time: goes with the ticks, but never by more than a little at once. */
  nowMs: number
  /** Of the last tick. */
  clockMs: number
  electionDueMs: number
  heardLeaderMs: number
  randomState: number

  writable: boolean
  installing: EntryId | undefined

  /** Effects of the step under way. */
  effects: Effect[]
  told: { role: Role; term: Term; leader: NodeId | undefined } | undefined
}

/** A number in [0, 1). Mulberry32: enough to keep elections apart. */
export function random(state: CoreState): number {
  state.randomState = (state.randomState + 0x6d2b79f5) | 0
  let t = state.randomState
  t = Math.imul(t ^ (t >>> 15), t | 1)
  t ^= t + Math.imul(t ^ (t >>> 7), t | 61)
  return ((t ^ (t >>> 14)) >>> 0) / 4294967296
}

/** The membership that counts: the newest in the log, committed or not. */
export function membershipOf(state: CoreState): Membership {
  return state.memberships[state.memberships.length - 1]!.membership
}

export function membershipIndex(state: CoreState): LogIndex {
  return state.memberships[state.memberships.length - 1]!.index
}

export function isSoleVoter(state: CoreState): boolean {
  const membership = membershipOf(state)
  return (
    membership.outgoing === undefined && membership.voters.length === 1 && membership.voters[0] === state.self
  )
}

export function isHardStateDurable(state: CoreState): boolean {
  return state.durable.term === state.term && state.durable.votedFor === state.votedFor
}

export function send(state: CoreState, to: NodeId, message: Message): void {
  state.effects.push({ type: 'send', to, message, when: isHardStateDurable(state) ? 'now' : 'afterPersist' })
}

/** Sets term and vote and has them made durable. */
export function setHardState(state: CoreState, term: Term, votedFor: NodeId | undefined): void {
  if (term < state.term) throw new CoreError(`term ${state.term} would fall to ${term}`)
  state.term = term
  state.votedFor = votedFor
  const effect: Effect = { type: 'persist', hardState: { term, votedFor } }
  // A vote that follows its term at once is one write.
  const before = state.effects.length - 1
  if (state.effects[before]?.type === 'persist') state.effects[before] = effect
  else state.effects.push(effect)
}

export function resetElectionDue(state: CoreState): void {
  const { electionMsMin, electionMsMax } = state.timing
  state.electionDueMs = state.nowMs + electionMsMin + random(state) * (electionMsMax - electionMsMin)
  // A leader that cannot write is of little use: those that can come first.
  if (!state.writable) state.electionDueMs += 3 * electionMsMax
}

/** What was learnt from a leader holds for that one only; what is committed is in every later leader's log. */
export function forgetLeader(state: CoreState): void {
  state.verified = state.commit
  state.roundHeard = 0
}

/** Follows `leader`, or nobody as yet, in `term`, which is this node's or a newer one. Ends whatever it was before. */
export function becomeFollower(state: CoreState, term: Term, leader: NodeId | undefined): void {
  const lead = state.lead
  if (lead !== undefined) {
    for (const read of lead.reads) state.effects.push({ type: 'readRefused', id: read.id })
    if (lead.transfer !== undefined && !lead.transfer.asked) {
      state.effects.push({ type: 'refused', what: 'transfer', why: 'this node leads no longer' })
    }
    state.lead = undefined
  }
  if (term > state.term || state.role !== 'follower' || leader !== state.leader) forgetLeader(state)
  if (term > state.term) setHardState(state, term, undefined)
  if (state.role !== 'follower') resetElectionDue(state)
  state.role = 'follower'
  state.leader = leader
  state.votes.clear()
}

/** The role as others see it. */
export function shownRole(state: CoreState): Role {
  if (state.recovering) return 'recovering'
  if (state.role === 'follower' && !isVoter(membershipOf(state), state.self)) return 'learner'
  return state.role
}

/** Tells the driver of a new role, term or leader, if there is one. */
export function tellRole(state: CoreState): void {
  const role = shownRole(state)
  const told = state.told
  if (told?.role === role && told.term === state.term && told.leader === state.leader) return
  state.told = { role, term: state.term, leader: state.leader }
  state.effects.push({ type: 'role', role, term: state.term, leader: state.leader })
}

/** Takes a membership that is now in the log. It counts from here on. */
export function adoptMembership(state: CoreState, at: MembershipAt): void {
  if (at.index <= membershipIndex(state)) {
    throw new CoreError(`membership at ${at.index} follows one at ${membershipIndex(state)}`)
  }
  state.memberships.push(at)
  state.effects.push({ type: 'membership', membership: at.membership, committed: false })
}

/** The log ends at `after`: forgets what came behind it, memberships too. */
export function cutLog(state: CoreState, after: LogIndex): void {
  truncateRuns(state.log, after)
  if (state.flushed > after) state.flushed = after
  if (state.verified > after) state.verified = after
  let reverted = false
  while (state.memberships.length > 1 && membershipIndex(state) > after) {
    state.memberships.pop()
    reverted = true
  }
  if (!reverted) return
  const committed = membershipIndex(state) <= state.membershipApplied
  state.effects.push({ type: 'membership', membership: membershipOf(state), committed })
}

/** Commit or flush went on: tells the driver what may be applied, and ends a recovery. */
export function advanceApplied(state: CoreState): void {
  const upTo = Math.min(state.commit, state.flushed) as LogIndex
  if (upTo > state.applied) {
    state.applied = upTo
    state.effects.push({ type: 'commit', index: upTo })
    tellMembershipApplied(state)
  }
  if (state.recovering && state.flushed >= state.commit) endRecovery(state)
}

export function tellMembershipApplied(state: CoreState): void {
  let newest = 0
  while (newest + 1 < state.memberships.length && state.memberships[newest + 1]!.index <= state.applied)
    newest++
  state.memberships.splice(0, newest)
  const first = state.memberships[0]!
  if (first.index > state.applied || first.index <= state.membershipApplied) return
  state.membershipApplied = first.index
  // The newest in the log counts, committed or not. A node that catches up commits older ones on its way; if it went by those, it
  // would turn from the very leader that sends it the rest.
  if (state.memberships.length > 1) return
  state.effects.push({ type: 'membership', membership: first.membership, committed: true })
}

/**
 * At a commit point of the leader's own term this log holds all that was ever committed, what this node had acknowledged before the
 * damage among it: the leader's term is newer than any in which it did (see createCore), so none of those acknowledgements
 * can still be counted.
 */
function endRecovery(state: CoreState): void {
  if (state.leader === undefined) return
  if (termAt(state.log, state.commit) === state.term) state.recovering = false
}
