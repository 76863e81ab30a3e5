/**
 * The one loop of a node: gives events to the consensus core, one after the other, and carries out the effects in their
 * order. Persist, then send; truncate or install, then everything else.
 *
 * Nothing here decides anything about terms, votes or commits (core/), about bytes on disk (log/), or about what a timeline
 * may do (cell-state.ts, cell-timelines.ts). What is proposed waits in proposals.ts, what is committed goes through applier.ts.
 */
import type { PeerAppend, RaftMessage } from '../../protocol/messages.ts'
import { type PalimpsestError, retryError, toPalimpsestError } from '../shared/errors.ts'
import type { Log } from '../shared/log.ts'
import type { Clock } from '../shared/seams.ts'
import { Applier } from './applier.ts'
import { type Applied, CellState } from './cell-state.ts'
import { type CoreState, membershipIndex, step } from './core/consensus.ts'
import type {
  CoreEvent,
  Effect,
  EntryId,
  HardState,
  LogIndex,
  Membership,
  MembershipChange,
  Message,
  NodeId,
  Role,
  Term,
} from './core/types.ts'
import { type Draft, ownEntry } from './draft.ts'
import { EntryCache } from './entry-cache.ts'
import { unpack } from './inbound.ts'
import type { CellLog } from './log/cell-log.ts'
import type { LogEntry } from './log/entry.ts'
import type { NodeFiles } from './node-files.ts'
import { Outbox, type PeerTransport } from './outbox.ts'
import { notLeading, Proposals } from './proposals.ts'
import { VoteQueue } from './vote-queue.ts'

const TICK_MS = 10
/** After a commit, the leader ticks so soon: then the others hear of it, if the next entries have not told them before. */
const COMMIT_TICK_MS = 2
/** Entries that a message may bring while so much waits to be written here: then the sender waits. */
const QUEUED_BYTES_MAX = 32 * 1024 * 1024

/** So much is proposed at once, whatever is under way. */
const HELD_BYTES_MAX = 128 * 1024

/** What a message brought along. */
interface Inbound {
  readonly entries?: readonly LogEntry[]
  readonly snapshot?: Uint8Array
}

export interface DriverEvents {
  /** After each entry, in order. `result` tells whether it was void. */
  onApplied(entry: LogEntry, result: Applied): void
  onRole(role: Role, term: Term, leader: NodeId | undefined): void
  /** The newest in the log, and whether it is committed. */
  onMembership(membership: Membership, committed: boolean): void
  /** The state is another one: a snapshot was installed. */
  onInstalled(): void
}

export interface DriverOptions {
  readonly core: CoreState
  readonly self: NodeId
  readonly log: CellLog
  readonly files: NodeFiles
  readonly transport: PeerTransport
  readonly clock: Clock
  readonly state: CellState
  readonly logger: Log
  readonly events: DriverEvents
  /** Newest snapshot that a member may be sent: no redo that is needed lies at or below its index. */
  readonly snapshotToSend: () => Promise<{ last: EntryId; bytes: Uint8Array }>
  /** As leader, this node could not read what a member needs. */
  readonly onUnreadable?: ((peer: NodeId) => void) | undefined
  /** Before the log is emptied in favour of this snapshot: it is durable when it resolves. */
  readonly keepSnapshot: (last: EntryId, bytes: Uint8Array) => Promise<void>
  /** Nothing this node says can be trusted any more: ends the process. */
  readonly onFatal: (error: Error) => void
  /** Runs a function when all events of this turn of the loop have been handled. setImmediate unless told. */
  readonly soon?: ((run: () => void) => void) | undefined
}

export class Driver {
  readonly self: NodeId
  private readonly options: DriverOptions
  private readonly core: CoreState
  private readonly log: CellLog
  private readonly outbox: Outbox
  private readonly cache = new EntryCache()
  private readonly proposals = new Proposals()
  private readonly applier: Applier
  private readonly votes: VoteQueue
  /** An effect that must end before anything else is under way. */
  private blocked = false
  private stepping = false
  private readonly waiting: { readonly event: CoreEvent; readonly inbound: Inbound | undefined }[] = []
  private flushedMeanwhile = false
  private tickMeanwhile = false
  private unblockedWaiters: (() => void)[] = []
  private draftsScheduled = false
  private ticksSoon = false
  private role_: Role = 'follower'
  private term_ = 0 as Term
  private leader_: NodeId | undefined
  private leaderHeardMs: number | undefined
  private nextReadId = 1
  private readonly reads = new Map<
    number,
    { readonly resolve: () => void; readonly reject: (error: Error) => void }
  >()
  private operation:
    | { readonly what: 'change' | 'transfer'; readonly refuse: (why: string) => void }
    | undefined
  private readonly heardMs = new Map<NodeId, number>()
  private readonly matched = new Map<NodeId, LogIndex>()
  private writable_ = true
  private failure: Error | undefined
  private stopped = false
  private stopReason: PalimpsestError | undefined

  constructor(options: DriverOptions) {
    this.options = options
    this.self = options.self
    this.core = options.core
    this.log = options.log
    this.cache.reset(options.log.lastIndex)
    this.applier = new Applier({
      log: options.log,
      cache: this.cache,
      logger: options.logger,
      state: options.state,
      clock: options.clock,
      onApplied: (entry, result) => {
        options.events.onApplied(entry, result)
        this.proposals.applied(entry, result)
      },
      onFatal: error => this.fail(error),
    })
    this.votes = new VoteQueue({
      save: hardState => options.files.saveVote(hardState),
      onPersisted: hardState => this.dispatch({ type: 'persisted', hardState }),
      send: (to, message) => this.send(to, message),
      onFatal: error => this.fail(error),
    })
    this.outbox = new Outbox({
      transport: options.transport,
      log: options.log,
      cache: this.cache,
      logger: options.logger,
      isLeading: term => this.role_ === 'leader' && this.term_ === term,
      snapshotToSend: options.snapshotToSend,
      onLost: peer => this.dispatch({ type: 'peerLost', peer }),
      onUnreadable: peer => options.onUnreadable?.(peer),
    })
    this.log.onFlushed = () => {
      if (this.blocked || this.stepping) this.flushedMeanwhile = true
      else this.tellFlushed()
    }
    this.log.onWritable = writable => this.onWritable(writable)
  }

  get state(): CellState {
    return this.applier.state
  }

  get role(): Role {
    return this.role_
  }

  get term(): Term {
    return this.term_
  }

  /** As the consensus has it now; not all of it may be durable yet. */
  get hardState(): HardState {
    const { term, votedFor } = this.core
    return { term, votedFor }
  }

  get leader(): NodeId | undefined {
    return this.leader_
  }

  get commitIndex(): LogIndex {
    return this.applier.commit
  }

  /** Of the last entry; it may not be flushed, nor committed. */
  get lastIndex(): LogIndex {
    return this.log.lastIndex
  }

  /** Of the newest membership in the log, committed or not; 0: the one that the cell began with. */
  get membershipIndex(): LogIndex {
    return membershipIndex(this.core)
  }

  get writable(): boolean {
    return this.writable_
  }

  /** Leads, and has applied an entry of its own term: its state is the newest. */
  get isServing(): boolean {
    return this.role_ === 'leader' && this.state.last.term === this.term_
  }

  /** Why nothing is taken any more. */
  private get ended(): Error | undefined {
    return this.failure ?? this.stopReason
  }

  /** Why this node has ended. */
  get failed(): Error | undefined {
    return this.failure
  }

  /** Milliseconds since the last word from a leader; 0 on the leader itself; undefined: never heard. */
  get leaderSilentMs(): number | undefined {
    if (this.role_ === 'leader') return 0
    return this.leaderHeardMs === undefined
      ? undefined
      : this.options.clock.monotonicMs() - this.leaderHeardMs
  }

  silentMs(peer: NodeId): number | undefined {
    const at = this.heardMs.get(peer)
    return at === undefined ? undefined : this.options.clock.monotonicMs() - at
  }

  /** How far a member is known to have this leader's log. */
  matchOf(peer: NodeId): LogIndex {
    return peer === this.self ? this.log.flushed.index : (this.matched.get(peer) ?? (0 as LogIndex))
  }

  /** Ticks until `stop`. */
  async run(): Promise<void> {
    const { clock } = this.options
    while (!this.stopped) {
      this.tick()
      await clock.sleep(TICK_MS)
    }
  }

  private tick(): void {
    if (this.blocked) this.tickMeanwhile = true
    else this.dispatch({ type: 'tick', nowMs: this.options.clock.monotonicMs() })
  }

  private async tickAfterCommit(): Promise<void> {
    if (this.ticksSoon || this.role_ !== 'leader') return
    this.ticksSoon = true
    await this.options.clock.sleep(COMMIT_TICK_MS)
    this.ticksSoon = false
    if (!this.stopped) this.tick()
  }

  /** No further events. What is under way is not waited for. */
  stop(reason: PalimpsestError): void {
    this.stopped = true
    this.stopReason = reason
    this.applier.stop()
    this.failAll(reason)
  }

  // Proposals

  /**
   * Has an entry written and committed; resolves with what applying it gave. Rejects with kind retry when this node leads
   * no longer: then it is not known what became of it. All proposals of one turn are one.
   */
  propose(draft: Draft): Promise<Applied> {
    if (this.ended !== undefined) return Promise.reject(this.ended)
    const applied = this.proposals.add(draft)
    this.scheduleDrafts()
    return applied
  }

  private scheduleDrafts(): void {
    if (this.draftsScheduled) return
    this.draftsScheduled = true
    ;(this.options.soon ?? setImmediate)(() => {
      this.draftsScheduled = false
      this.proposeDrafts()
    })
  }

  /**
   * Small proposals wait while the round before them is under way: until it is synced here, or committed without. Each round costs
   * every node some messages and a sync, however little it brings; and what came meanwhile could not be synced earlier anyway,
   * since a log syncs one batch after the other. One that is alone never waits, and nobody waits for a timer.
   */
  private get isHeld(): boolean {
    const { index } = this.log.last
    return (
      this.proposals.draftBytes < HELD_BYTES_MAX &&
      index > this.log.flushed.index &&
      index > this.applier.commit
    )
  }

  private proposeDrafts(): void {
    if (!this.proposals.hasDrafts || this.blocked || this.stopped || this.isHeld) return
    this.proposals.offer(count => this.dispatch({ type: 'propose', count }))
  }

  /** Resolves when the state holds all that was committed anywhere when it was called. Rejects (retry) if that cannot be known. */
  async readBarrier(): Promise<void> {
    if (this.ended !== undefined) throw this.ended
    const id = this.nextReadId++
    const ready = new Promise<void>((resolve, reject) => this.reads.set(id, { resolve, reject }))
    this.dispatch({ type: 'read', id })
    await ready
  }

  /** Rejects with kind invalid or retry if the core refuses at once; what it becomes is seen in the membership. */
  change(change: MembershipChange): void {
    this.operate('change', { type: 'change', change })
  }

  transfer(to: NodeId): void {
    this.operate('transfer', { type: 'transfer', to })
  }

  private operate(what: 'change' | 'transfer', event: CoreEvent): void {
    if (this.blocked) throw retryError('this node is busy with repairing its log')
    let refused: string | undefined
    this.operation = {
      what,
      refuse: why => {
        refused = why
      },
    }
    this.dispatch(event)
    this.operation = undefined
    if (refused !== undefined) throw retryError(refused)
  }

  // Messages of peers

  receive(from: NodeId, message: RaftMessage): void {
    this.heardMs.set(from, this.options.clock.monotonicMs())
    const full = message.type === 'append' ? { ...message, runs: [], memberships: [] } : message
    this.dispatch({ type: 'message', from, message: full as unknown as Message })
  }

  /** Entries. Resolves when more may come. */
  async receiveEntries(from: NodeId, message: PeerAppend, bulk: Uint8Array): Promise<void> {
    this.heardMs.set(from, this.options.clock.monotonicMs())
    await this.unblocked()
    const { message: core, entries } = unpack(message, bulk)
    this.dispatch({ type: 'message', from, message: core }, { entries })
    while (this.log.queuedBytes > QUEUED_BYTES_MAX && !this.stopped && this.failure === undefined)
      await new Promise<void>(resolve => this.unblockedWaiters.push(resolve))
  }

  async receiveSnapshot(from: NodeId, term: number, last: EntryId, bytes: Uint8Array): Promise<void> {
    this.heardMs.set(from, this.options.clock.monotonicMs())
    await this.unblocked()
    const { membership } = CellState.decode(bytes)
    this.dispatch(
      { type: 'message', from, message: { type: 'snapshot', term: term as Term, last, membership } },
      { snapshot: bytes },
    )
    await this.unblocked()
  }

  peerLost(peer: NodeId): void {
    this.dispatch({ type: 'peerLost', peer })
  }

  /** The log's beginning is now after `last`. */
  trimmed(last: EntryId): void {
    this.dispatch({ type: 'trimmed', last })
  }

  // The loop

  private dispatch(event: CoreEvent, inbound?: Inbound): void {
    if (this.stopped || this.failure !== undefined) return
    if (this.blocked || this.stepping) {
      this.waiting.push({ event, inbound })
      return
    }
    this.take(event, inbound)
    this.drain()
  }

  private drain(): void {
    while (!this.blocked && this.failure === undefined) {
      const next = this.waiting.shift()
      if (next !== undefined) this.take(next.event, next.inbound)
      else if (this.flushedMeanwhile) this.tellFlushed()
      else break
    }
  }

  private take(event: CoreEvent, inbound: Inbound | undefined): void {
    this.stepping = true
    try {
      if (event.type === 'message') this.note(event.from, event.message)
      const effects = step(this.core, event)
      this.carryOut(effects, 0, inbound)
    } catch (error) {
      this.fail(error as Error)
    } finally {
      this.stepping = false
    }
  }

  /** For the status only. */
  private note(from: NodeId, message: Message): void {
    if (message.type === 'appendReply') {
      if (message.ok && message.match > (this.matched.get(from) ?? 0)) this.matched.set(from, message.match)
    } else if ((message.type === 'append' || message.type === 'snapshot') && message.term >= this.term_)
      this.leaderHeardMs = this.options.clock.monotonicMs()
  }

  private tellFlushed(): void {
    this.flushedMeanwhile = false
    this.dispatch({ type: 'flushed', last: this.log.flushed })
    if (this.log.queuedBytes <= QUEUED_BYTES_MAX) this.wakeUnblocked()
    if (this.proposals.hasDrafts) this.scheduleDrafts()
  }

  private carryOut(effects: readonly Effect[], from: number, inbound: Inbound | undefined): void {
    for (let i = from; i < effects.length; i++) {
      const effect = effects[i]!
      const slow = this.effect(effect, inbound)
      if (slow === undefined) continue
      // Until it has ended nothing else happens; then the rest, then what came meanwhile.
      this.blocked = true
      slow.then(
        () => {
          this.blocked = false
          if (this.stopped) return
          this.stepping = true
          try {
            this.carryOut(effects, i + 1, inbound)
          } catch (error) {
            this.fail(error as Error)
          } finally {
            this.stepping = false
          }
          if (this.blocked) return
          if (effect.type === 'install') this.take({ type: 'installed', last: effect.last }, undefined)
          this.drain()
          if (this.tickMeanwhile) {
            this.tickMeanwhile = false
            this.dispatch({ type: 'tick', nowMs: this.options.clock.monotonicMs() })
          }
          if (this.proposals.hasDrafts) this.scheduleDrafts()
          this.wakeUnblocked()
        },
        error => this.fail(error),
      )
      return
    }
  }

  private effect(effect: Effect, inbound: Inbound | undefined): Promise<void> | undefined {
    switch (effect.type) {
      case 'persist':
        this.votes.persist(effect.hardState)
        return undefined
      case 'send':
        if (effect.when === 'afterPersist') this.votes.send(effect.to, effect.message)
        else this.send(effect.to, effect.message)
        return undefined
      case 'replicate':
        this.outbox.replicate(effect)
        return undefined
      case 'sendSnapshot':
        this.outbox.snapshot(effect.to, effect.term)
        return undefined
      case 'append':
        this.store(this.proposals.written(effect.first, effect.count, effect.term))
        return undefined
      case 'appendOwn':
        this.store([ownEntry(effect)])
        return undefined
      case 'truncate':
        this.cache.truncateAfter(effect.after)
        return this.log.truncateAfter(effect.after)
      case 'store': {
        const all = inbound!.entries!
        const at = effect.first - all[0]!.index
        this.store(all.slice(at, at + effect.count))
        return undefined
      }
      case 'install':
        return this.install(effect.last, inbound!.snapshot!)
      case 'commit':
        this.applier.committed(effect.index)
        void this.tickAfterCommit()
        if (this.proposals.hasDrafts) this.scheduleDrafts()
        return undefined
      case 'role':
        this.onRole(effect.role, effect.term, effect.leader)
        return undefined
      case 'membership':
        this.options.events.onMembership(effect.membership, effect.committed)
        return undefined
      case 'refused':
        if (effect.what !== 'propose') {
          if (this.operation?.what === effect.what) this.operation.refuse(effect.why)
          else this.options.logger.info({ what: effect.what, why: effect.why }, 'the cell refused')
        }
        return undefined
      case 'readReady': {
        // It stays in the list until then: what ends this leader ends it too.
        const { id } = effect
        this.applier.whenApplied(effect.index, () => {
          this.reads.get(id)?.resolve()
          this.reads.delete(id)
        })
        return undefined
      }
      case 'readRefused':
        this.reads.get(effect.id)?.reject(notLeading())
        this.reads.delete(effect.id)
        return undefined
    }
  }

  private send(to: NodeId, message: Message): void {
    if (this.stopped || this.failure !== undefined) return
    this.options.transport.send(to, message as unknown as RaftMessage)
  }

  private store(entries: readonly LogEntry[]): void {
    for (const entry of entries) this.cache.push(entry)
    try {
      this.log.append(entries)
    } catch (error) {
      // The disk has filled since the core was told otherwise: these entries are given back.
      if (toPalimpsestError(error).kind !== 'retry') throw error
      this.giveBack()
    }
  }

  private async install(last: EntryId, bytes: Uint8Array): Promise<void> {
    await this.options.keepSnapshot(last, bytes)
    this.applier.beginInstall()
    await this.log.reset(last)
    this.cache.reset(last.index)
    this.applier.install(CellState.decode(bytes))
    this.options.logger.info(
      { index: last.index },
      "the cell's state was installed from the leader's snapshot",
    )
    this.options.events.onInstalled()
    this.applier.wake()
  }

  private onRole(role: Role, term: Term, leader: NodeId | undefined): void {
    const wasLeader = this.role_ === 'leader'
    const before = this.role_
    this.role_ = role
    this.term_ = term
    this.leader_ = leader
    if (role === 'leader' && !wasLeader) this.matched.clear()
    if (wasLeader && role !== 'leader') {
      this.failAll(notLeading())
      this.outbox.clear()
    }
    if (role !== before || leader !== undefined)
      this.options.logger.info({ role, term, leader }, 'role in the cell')
    this.options.events.onRole(role, term, leader)
  }

  private onWritable(writable: boolean): void {
    if (this.failure !== undefined || this.stopped) return
    this.writable_ = writable
    if (!writable) this.giveBack()
    this.dispatch({ type: 'writable', writable })
  }

  /** What the log has not taken is no entry of this node. */
  private giveBack(): void {
    const { last } = this.log
    this.cache.truncateAfter(last.index)
    const error = retryError(
      `${this.log.lastError}; appends are refused until space is freed or the page server has trimmed the log`,
    )
    this.proposals.dropAfter(last.index, error)
    this.dispatch({ type: 'dropped', last })
    this.wakeUnblocked()
  }

  // Ends

  private async unblocked(): Promise<void> {
    while (this.blocked && !this.stopped && this.failure === undefined)
      await new Promise<void>(resolve => this.unblockedWaiters.push(resolve))
  }

  private wakeUnblocked(): void {
    for (const resolve of this.unblockedWaiters.splice(0)) resolve()
  }

  private failAll(error: PalimpsestError): void {
    this.proposals.failAll(error)
    for (const { reject } of this.reads.values()) reject(error)
    this.reads.clear()
    this.wakeUnblocked()
  }

  /** Ends this node for good. */
  fail(error: Error): void {
    if (this.failure !== undefined) return
    this.failure = error
    this.failAll(toPalimpsestError(error))
    this.options.onFatal(error)
  }
}
