/**
 * What the consensus core takes and gives: `step(state, event) → effects`. The core knows nothing of sockets, disks, clocks,
 * redo or timelines; it knows indexes, terms and members. docs/consensus.md tells the rules.
 *
 * Entries themselves never enter the core. It knows which terms its log has (TermRuns); whoever drives it holds the bytes and
 * sends along what an effect names.
 */

declare const termBrand: unique symbol
declare const indexBrand: unique symbol
/** Grows with each election. 0: before the first. */
export type Term = number & { readonly [termBrand]: true }
/** Place of an entry in the cell's log, from 1. 0: before the first. */
export type LogIndex = number & { readonly [indexBrand]: true }
/** `NAME.INCARNATION`; to the core just a string. */
export type NodeId = string

/** The members of the cell. Joint while `outgoing` is there: then majorities of both are needed. */
export interface Membership {
  readonly voters: readonly NodeId[]
  /** The voters before the change that is under way. */
  readonly outgoing?: readonly NodeId[] | undefined
  /** Receive the log, count nowhere. */
  readonly learners: readonly NodeId[]
}

/** What a membership becomes; the core goes there by way of a joint one. New voters should be learners that caught up. */
export interface MembershipChange {
  readonly voters: readonly NodeId[]
  readonly learners: readonly NodeId[]
}

/** Durable before any message of this term leaves. */
export interface HardState {
  readonly term: Term
  readonly votedFor: NodeId | undefined
}

export interface EntryId {
  readonly index: LogIndex
  readonly term: Term
}

/** Consecutive entries of one term, as the core sees what a message brings. */
export interface EntryRun {
  readonly term: Term
  readonly count: number
}

/** A membership entry among those of an append; memberships count from the moment they are in the log. */
export interface MembershipAt {
  readonly index: LogIndex
  readonly membership: Membership
}

export type Message =
  | {
      readonly type: 'vote'
      readonly term: Term
      readonly last: EntryId
      /** Only asks: nobody's term changes. `term` is the one that the asker would have. */
      readonly pre: boolean
      /** By the leader's own wish (transfer): voters answer although they hear from a leader. */
      readonly transfer: boolean
    }
  | { readonly type: 'voteReply'; readonly term: Term; readonly pre: boolean; readonly granted: boolean }
  | {
      /** Entries, or none: then it is the heartbeat. */
      readonly type: 'append'
      readonly term: Term
      readonly prev: EntryId
      /** From prev.index + 1 on. */
      readonly runs: readonly EntryRun[]
      readonly memberships: readonly MembershipAt[]
      readonly commit: LogIndex
      /** Grows with each round of heartbeats; comes back in the reply. For linearizable reads. 0: needs no reply if all is well. */
      readonly round: number
    }
  | {
      readonly type: 'appendReply'
      readonly term: Term
      readonly ok: boolean
      /** ok: all up to here is flushed and equals the leader's. */
      readonly match: LogIndex
      /** not ok: the refused prev.index; else 0. */
      readonly rejected: LogIndex
      /** not ok: where the leader had best go on looking. ok: how far the node has entries, flushed or not (`match` and beyond). */
      readonly hint: EntryId
      readonly round: number
      /** The disk is full: entries are of no use at present. */
      readonly paused: boolean
    }
  | {
      /** The state after entry `last`; the driver sends it along. */
      readonly type: 'snapshot'
      readonly term: Term
      readonly last: EntryId
      readonly membership: Membership
    }
  | { readonly type: 'timeoutNow'; readonly term: Term }

export type CoreEvent =
  /** Time has passed. Monotonic milliseconds; the driver ticks at least every 10 ms. */
  | { readonly type: 'tick'; readonly nowMs: number }
  | { readonly type: 'message'; readonly from: NodeId; readonly message: Message }
  /** `count` new entries, the leader's; refused unless this node leads. A membership entry is proposed by `change`. */
  | { readonly type: 'propose'; readonly count: number }
  | { readonly type: 'change'; readonly change: MembershipChange }
  | { readonly type: 'transfer'; readonly to: NodeId }
  /** A linearizable read: answered by effect `readReady` (or `readRefused`) of the same id. */
  | { readonly type: 'read'; readonly id: number }
  /** The hard state of an effect `persist` is durable. */
  | { readonly type: 'persisted'; readonly hardState: HardState }
  /**
   * The log is synced up to here. `term` is that of the entry at `index`. Never tells of a write that a `truncate` or `install`
   * effect has cut since, even if the sync of it ended only now: the same place may have been given the same entry again.
   */
  | { readonly type: 'flushed'; readonly last: EntryId }
  /** The snapshot of an effect `install` is durable and applied; the log begins after it. */
  | { readonly type: 'installed'; readonly last: EntryId }
  /** All of the log up to and including `last` has gone (trimmed below a snapshot). */
  | { readonly type: 'trimmed'; readonly last: EntryId }
  /** The connection to a member broke: what was in flight to it is lost. */
  | { readonly type: 'peerLost'; readonly peer: NodeId }
  /** Whether this node's disk takes entries. */
  | { readonly type: 'writable'; readonly writable: boolean }
  /**
   * The entries after `last` could not be written (the disk is full) and are gone; none of them had been reported as flushed. `last` is
   * in the log as it is after all `truncate` effects so far: those are carried out on a full disk too.
   */
  | { readonly type: 'dropped'; readonly last: EntryId }

export type Effect =
  /** Make the hard state durable, then say `persisted`. Messages named `afterPersist` wait for that. */
  | { readonly type: 'persist'; readonly hardState: HardState }
  | {
      readonly type: 'send'
      readonly to: NodeId
      readonly message: Message
      /** now: depends on nothing that is not durable. afterPersist: all `persist` effects before this one come first. */
      readonly when: 'now' | 'afterPersist'
    }
  /**
   * Leader: send the entries (prev, last] to a member, in as many append messages as the driver finds right. Follows on the one
   * before to the same member; if its `prev` is not where that one ended, it takes the place of all that still waits to be sent.
   * Void as soon as this node no longer leads in `term`. If the entries can no longer be read, say `peerLost`.
   */
  | {
      readonly type: 'replicate'
      readonly to: NodeId
      readonly term: Term
      readonly prev: EntryId
      /** Last entry to send; runs of (prev.index, last]. */
      readonly last: LogIndex
      readonly commit: LogIndex
      readonly round: number
    }
  /** Leader: a member needs what is trimmed: send the newest snapshot. */
  | { readonly type: 'sendSnapshot'; readonly to: NodeId; readonly term: Term }
  /** Leader: give the proposed entries these indexes in this term and write them. */
  | { readonly type: 'append'; readonly first: LogIndex; readonly count: number; readonly term: Term }
  /** Leader: write an entry of the core's own: the no-op of its term, or a membership. */
  | {
      readonly type: 'appendOwn'
      readonly id: EntryId
      readonly entry:
        | { readonly kind: 'noop' }
        | { readonly kind: 'membership'; readonly membership: Membership }
    }
  /** Follower: cut the log after `after`, durably, before anything that follows. Never below commit. */
  | { readonly type: 'truncate'; readonly after: LogIndex }
  /** Follower: of the entries that the message at hand brought, write those from `first` on. */
  | { readonly type: 'store'; readonly first: LogIndex; readonly count: number }
  /** Follower: make the snapshot that the message at hand brought the beginning of everything, then say `installed`. */
  | { readonly type: 'install'; readonly last: EntryId }
  /** Entries up to here are committed, and flushed on this node: what is applied is never dropped when a disk fills. */
  | { readonly type: 'commit'; readonly index: LogIndex }
  | { readonly type: 'role'; readonly role: Role; readonly term: Term; readonly leader: NodeId | undefined }
  | { readonly type: 'membership'; readonly membership: Membership; readonly committed: boolean }
  /** A proposal, change or transfer was refused. */
  | { readonly type: 'refused'; readonly what: 'propose' | 'change' | 'transfer'; readonly why: string }
  /** The state may be read once `index` is applied. */
  | { readonly type: 'readReady'; readonly id: number; readonly index: LogIndex }
  | { readonly type: 'readRefused'; readonly id: number }

export type Role = 'follower' | 'preCandidate' | 'candidate' | 'leader' | 'recovering' | 'learner'

/** What a node had on its disk when it started. */
export interface CoreStart {
  readonly self: NodeId
  readonly hardState: HardState
  /** The last entry below the log's beginning: the snapshot's, or one before it. */
  readonly base: EntryId
  /**
   * How far the state that was read from the snapshot goes; no `commit` effect tells of it again. Within the log or its base (default
   * base.index): a log that ends below the snapshot is to be begun anew after it.
   */
  readonly applied?: LogIndex | undefined
  /** Terms of the entries (base.index, …]: ascending. */
  readonly runs: readonly EntryRun[]
  /** Memberships: that of the snapshot, and those in the log. Ascending; the last counts. */
  readonly memberships: readonly MembershipAt[]
  /**
   * Acknowledged entries were lost (damage): no vote until caught up. See "Repair of logs". Stays so over restarts until an effect
   * `role` has told another role.
   */
  readonly recovering: boolean
  readonly nowMs: number
  /** Seeds the election time-outs. */
  readonly seed: number
  readonly timing?: Partial<CoreTiming> | undefined
}

export interface CoreTiming {
  readonly electionMsMin: number
  readonly electionMsMax: number
  readonly heartbeatMs: number
  /** Entries in flight to one member. */
  readonly inflightEntriesMax: number
  /** A snapshot that was not answered in this time is sent again. */
  readonly snapshotRetryMs: number
}

export const CORE_TIMING: CoreTiming = {
  electionMsMin: 300,
  electionMsMax: 600,
  heartbeatMs: 50,
  inflightEntriesMax: 8192,
  snapshotRetryMs: 10_000,
}
