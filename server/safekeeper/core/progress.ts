/**
 * What a leader knows of each member's log, itself included. Two ends of a pipe: `match` is what the member has confirmed,
 * `next` is what it will be sent.
 */
import type { LogIndex, NodeId, Term } from './types.ts'

/**
 * probe: where its log and ours part is not known; one question at a time.
 * replicate: all is sent as it comes, without waiting for answers.
 * snapshot: what it needs is trimmed; a snapshot is on its way and nothing else is sent.
 */
export type ProgressState = 'probe' | 'replicate' | 'snapshot'

export interface Progress {
  readonly id: NodeId
  state: ProgressState
  /** All up to here is flushed there and equals ours. Never falls within a term: what a node has confirmed it does not lose. */
  match: LogIndex
  /** The entry to be sent next. match < next ≤ last + 1. In `probe`, next - 1 is what is asked for. */
  next: LogIndex
  /** Where sending began. Entries up to here it has, or is taken to have; none of them is in flight. from < next. */
  from: LogIndex
  /** How far it has said to have entries, flushed or not. Falls if its disk gives entries back, or a connection lost them. */
  received: LogIndex
  /** The commit index that it was last sent. */
  commitSent: LogIndex
  /** Newest round of heartbeats that it has answered. */
  round: number
  /**
   * In `probe`, and after it: answers to what was sent before this round say nothing of where sending is to go on. Without it each
   * late answer would have entries sent again, and each of those brings another answer.
   */
  probeRound: number
  /** When it last answered anything, in the core's time. */
  heardMs: number
  /** When `match` or `received` last grew, or something was sent after all had been confirmed. */
  movedMs: number
  /** Its disk is full. */
  paused: boolean
  /** In `snapshot`: when it was sent. */
  snapshotMs: number
}

export function createProgress(id: NodeId, last: LogIndex, nowMs: number): Progress {
  return {
    id,
    state: 'probe',
    match: 0 as LogIndex,
    next: (last + 1) as LogIndex,
    from: last,
    received: 0 as LogIndex,
    commitSent: 0 as LogIndex,
    round: 0,
    probeRound: 0,
    heardMs: nowMs,
    movedMs: nowMs,
    paused: false,
    snapshotMs: 0,
  }
}

/** Entries sent and not confirmed. */
export function inflight(progress: Progress): number {
  return progress.next - 1 - Math.max(progress.match, progress.from)
}

/** The member confirmed all up to `match`. True if that is news. */
export function confirm(progress: Progress, match: LogIndex, nowMs: number): boolean {
  if (match <= progress.match) return false
  progress.match = match
  if (progress.next <= match) progress.next = (match + 1) as LogIndex
  progress.movedMs = nowMs
  return true
}

/** What is in flight is lost or of no use: go on from what was confirmed. `round`: of the question that is asked next. */
export function becomeProbe(progress: Progress, round: number, nowMs: number): void {
  progress.state = 'probe'
  progress.probeRound = round
  progress.next = (progress.match + 1) as LogIndex
  progress.received = progress.match
  progress.movedMs = nowMs
}

export function becomeReplicate(progress: Progress, nowMs: number): void {
  progress.state = 'replicate'
  progress.from = (progress.next - 1) as LogIndex
  progress.movedMs = nowMs
}

export function becomeSnapshot(progress: Progress, nowMs: number): void {
  progress.state = 'snapshot'
  progress.snapshotMs = nowMs
}

/**
 * The member refused entries after `rejected`; the logs may be one up to `hint`. False if the refusal is an old one and says
 * nothing new. `round`: of the question that is asked next.
 */
export function reject(
  progress: Progress,
  rejected: LogIndex,
  hint: LogIndex,
  round: number,
  nowMs: number,
): boolean {
  if (rejected <= progress.match) return false
  if (progress.state === 'probe' && rejected !== progress.next - 1) return false
  progress.state = 'probe'
  progress.probeRound = round
  progress.next = (Math.max(Math.min(hint, rejected - 1), progress.match) + 1) as LogIndex
  progress.received = progress.match
  progress.movedMs = nowMs
  return true
}

/** For status: what a leader tells of a member. */
export interface MemberStatus {
  readonly id: NodeId
  readonly state: ProgressState
  readonly match: LogIndex
  readonly next: LogIndex
  readonly paused: boolean
  /** Since it last answered. */
  readonly silentMs: number
}

export interface CoreStatus {
  readonly term: Term
  readonly leader: NodeId | undefined
  readonly commit: LogIndex
  readonly flushed: LogIndex
  readonly last: LogIndex
  /** Empty unless this node leads. */
  readonly members: readonly MemberStatus[]
}
