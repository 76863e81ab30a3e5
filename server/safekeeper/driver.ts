/**
 * The one loop of a node: gives events to the consensus core, one after the other, and carries out the effects in their
 * order. Persist, then send; truncate or install, then everything else. Applies what is committed to the cell's state, and
 * tells those that wait.
 *
 * Nothing here decides anything about terms, votes or commits (core/), about bytes on disk (log/), or about what a timeline
 * may do (cell-state.ts, timelines.ts).
 */
import { crc32c } from '../../protocol/crc32c.ts'
import type { Lsn, TimelineId, WriterEpoch } from '../../protocol/ids.ts'
import type { PeerAppend, RaftMessage } from '../../protocol/messages.ts'
import { internalError, type PalimpsestError, retryError, toPalimpsestError } from '../shared/errors.ts'
import type { Log } from '../shared/log.ts'
import type { Clock } from '../shared/seams.ts'
import {
  type Applied,
  type CellCommand,
  CellState,
  decodeMembership,
  encodeCommand,
  encodeMembership,
} from './cell-state.ts'
import { type CoreState, step } from './core/consensus.ts'
import type {
  CoreEvent,
  Effect,
  EntryId,
  EntryRun,
  HardState,
  LogIndex,
  Membership,
  MembershipAt,
  MembershipChange,
  Message,
  NodeId,
  Role,
  Term,
} from './core/types.ts'
import { EntryCache } from './entry-cache.ts'
import type { CellLog } from './log/cell-log.ts'
import type { LogEntry } from './log/entry.ts'
import type { NodeFiles } from './node-files.ts'
import { Outbox, type PeerTransport } from './outbox.ts'

const TICK_MS = 10
/** Entries that a message may bring while so much waits to be written here: then the sender waits. */
const QUEUED_BYTES_MAX = 32 * 1024 * 1024
const APPLY_READ_BYTES = 4 * 1024 * 1024
const NOTHING = Buffer.alloc(0)

/** What an entry says, before it has an index. */
export interface Draft {
  readonly kind: 'command' | 'redo' | 'gap'
  readonly timeline: TimelineId | undefined
  readonly epoch: WriterEpoch
  readonly beginLsn: Lsn
  readonly endLsn: Lsn
  readonly wallTimeUs: number
  readonly payload: Uint8Array
  readonly payloadCrc: number
}

export function commandDraft(command: CellCommand): Draft {
  const payload = encodeCommand(command)
  return {
    kind: 'command',
    timeline: undefined,
    epoch: 0 as WriterEpoch,
    beginLsn: 0 as Lsn,
    endLsn: 0 as Lsn,
    wallTimeUs: 0,
    payload,
    payloadCrc: crc32c(payload, 0, payload.length),
  }
}

interface Proposal {
  readonly draft: Draft
  readonly resolve: (result: Applied) => void
  readonly reject: (error: PalimpsestError) => void
}

interface Waiter extends Proposal {
  readonly term: Term
}

/** What a message brought along. */
interface Inbound {
  readonly entries?: readonly LogEntry[]
  readonly snapshot?: Uint8Array
}

export interface DriverEvents {
  /** After each entry, in order. `result` tells whether it was void. */
  onApplied(entry: LogEntry, result: Applied): void
  onRole(role: Role, term: Term, leader: NodeId | undefined): void
  /** The newest in the log (`committed` false), or committed. */
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
  private state_: CellState
  /** An effect that must end before anything else is under way. */
  private blocked = false
  private stepping = false
  private readonly waiting: { readonly event: CoreEvent; readonly inbound: Inbound | undefined }[] = []
  private flushedMeanwhile = false
  private tickMeanwhile = false
  private unblockedWaiters: (() => void)[] = []
  /** Persists, and what must not leave before them, in order. */
  private readonly afterPersist: (
    | { readonly persist: HardState }
    | { readonly to: NodeId; readonly message: Message }
  )[] = []
  private persisting = false
  private drafts: Proposal[] = []
  private draftsScheduled = false
  private batch: Proposal[] = []
  /** By index. */
  private readonly waiters = new Map<number, Waiter>()
  private commit = 0 as LogIndex
  private applying = false
  private role_: Role = 'follower'
  private term_ = 0 as Term
  private leader_: NodeId | undefined
  private leaderHeardMs: number | undefined
  private nextReadId = 1
  private readonly reads = new Map<
    number,
    { readonly resolve: () => void; readonly reject: (error: Error) => void }
  >()
  private appliedWaiters: { readonly index: number; readonly run: () => void }[] = []
  private operation:
    | { readonly what: 'change' | 'transfer'; readonly refuse: (why: string) => void }
    | undefined
  private readonly heardMs = new Map<NodeId, number>()
  private readonly matched = new Map<NodeId, LogIndex>()
  private writable_ = true
  private failure: Error | undefined
  private stopped = false

  constructor(options: DriverOptions) {
    this.options = options
    this.self = options.self
    this.core = options.core
    this.log = options.log
    this.state_ = options.state
    this.commit = options.state.last.index
    this.cache.reset(options.log.lastIndex)
    this.outbox = new Outbox({
      transport: options.transport,
      log: options.log,
      cache: this.cache,
      logger: options.logger,
      isLeading: term => this.role_ === 'leader' && this.term_ === term,
      snapshotToSend: options.snapshotToSend,
      onLost: peer => this.dispatch({ type: 'peerLost', peer }),
    })
    this.log.onFlushed = () => {
      if (this.blocked || this.stepping) this.flushedMeanwhile = true
      else this.tellFlushed()
    }
    this.log.onWritable = writable => this.onWritable(writable)
  }

  get state(): CellState {
    return this.state_
  }

  get role(): Role {
    return this.role_
  }

  get term(): Term {
    return this.term_
  }

  get leader(): NodeId | undefined {
    return this.leader_
  }

  get commitIndex(): LogIndex {
    return this.commit
  }

  get writable(): boolean {
    return this.writable_
  }

  /** Leads, and has applied an entry of its own term: its state is the newest. */
  get isServing(): boolean {
    return this.role_ === 'leader' && this.state_.last.term === this.term_
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
      if (this.blocked) this.tickMeanwhile = true
      else this.dispatch({ type: 'tick', nowMs: clock.monotonicMs() })
      await clock.sleep(TICK_MS)
    }
  }

  /** No further events. What is under way is not waited for. */
  stop(reason: PalimpsestError): void {
    this.stopped = true
    this.failAll(reason)
  }

  // Proposals

  /**
   * Has an entry written and committed; resolves with what applying it gave. Rejects with kind retry when this node leads
   * no longer: then it is not known what became of it. All proposals of one turn are one.
   */
  propose(draft: Draft): Promise<Applied> {
    if (this.failure !== undefined) return Promise.reject(this.failure)
    return new Promise((resolve, reject) => {
      this.drafts.push({ draft, resolve, reject })
      this.scheduleDrafts()
    })
  }

  private scheduleDrafts(): void {
    if (this.draftsScheduled) return
    this.draftsScheduled = true
    ;(this.options.soon ?? setImmediate)(() => {
      this.draftsScheduled = false
      this.proposeDrafts()
    })
  }

  private proposeDrafts(): void {
    if (this.drafts.length === 0 || this.blocked || this.stopped) return
    this.batch = this.drafts
    this.drafts = []
    this.dispatch({ type: 'propose', count: this.batch.length })
    const left = this.batch
    this.batch = []
    for (const { reject } of left) reject(notLeading())
  }

  /** Resolves when the state holds all that was committed anywhere when it was called. Rejects (retry) if that cannot be known. */
  async readBarrier(): Promise<void> {
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
    const entries: LogEntry[] = []
    const runs: EntryRun[] = []
    const memberships: MembershipAt[] = []
    let offset = 0
    let index = message.prev.index
    let run: { term: Term; count: number } | undefined
    for (const sent of message.entries) {
      const term = sent.term as Term
      const payload = sent.payloadBytes === 0 ? NOTHING : bulk.subarray(offset, offset + sent.payloadBytes)
      offset += sent.payloadBytes
      index++
      const { kind, timeline, epoch, beginLsn, endLsn, wallTimeUs, payloadCrc, dropped } = sent
      entries.push({
        index: index as LogIndex,
        term,
        kind,
        timeline,
        epoch,
        beginLsn,
        endLsn,
        wallTimeUs,
        payload,
        payloadCrc,
        dropped,
      })
      if (kind === 'membership')
        memberships.push({ index: index as LogIndex, membership: decodeMembership(payload) })
      if (run?.term === term) run.count++
      else {
        run = { term, count: 1 }
        runs.push(run)
      }
    }
    const { term, prev, commit, round } = message
    const core = { type: 'append', term, prev, runs, memberships, commit, round } as unknown as Message
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
          if (this.drafts.length > 0) this.scheduleDrafts()
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
        this.afterPersist.push({ persist: effect.hardState })
        void this.persistLoop()
        return undefined
      case 'send':
        if (effect.when === 'afterPersist' && this.afterPersist.length > 0)
          this.afterPersist.push({ to: effect.to, message: effect.message })
        else this.send(effect.to, effect.message)
        return undefined
      case 'replicate':
        this.outbox.replicate(effect)
        return undefined
      case 'sendSnapshot':
        this.outbox.snapshot(effect.to, effect.term)
        return undefined
      case 'append':
        this.append(effect.first, effect.count, effect.term)
        return undefined
      case 'appendOwn':
        this.appendOwn(effect)
        return undefined
      case 'truncate':
        this.cache.truncateAfter(effect.after)
        return this.log.truncateAfter(effect.after)
      case 'store': {
        const all = inbound!.entries!
        const at = effect.first - all[0]!.index
        const entries = all.slice(at, at + effect.count)
        for (const entry of entries) this.cache.push(entry)
        this.write(entries)
        return undefined
      }
      case 'install':
        return this.install(effect.last, inbound!.snapshot!)
      case 'commit':
        this.commit = effect.index
        this.applyCommitted()
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
        const read = this.reads.get(effect.id)
        this.reads.delete(effect.id)
        if (read !== undefined) this.whenApplied(effect.index, read.resolve)
        return undefined
      }
      case 'readRefused':
        this.reads.get(effect.id)?.reject(notLeading())
        this.reads.delete(effect.id)
        return undefined
    }
  }

  private async persistLoop(): Promise<void> {
    if (this.persisting) return
    this.persisting = true
    try {
      for (;;) {
        const next = this.afterPersist[0]
        if (next === undefined) break
        if ('persist' in next) {
          await this.options.files.saveVote(next.persist)
          this.afterPersist.shift()
          this.dispatch({ type: 'persisted', hardState: next.persist })
        } else {
          this.afterPersist.shift()
          this.send(next.to, next.message)
        }
      }
    } catch (error) {
      this.fail(
        internalError(
          `the vote of this node could not be made durable: ${(error as Error).message}; this node stops`,
          error,
        ),
      )
    } finally {
      this.persisting = false
    }
  }

  private send(to: NodeId, message: Message): void {
    if (this.stopped || this.failure !== undefined) return
    this.options.transport.send(to, message as unknown as RaftMessage)
  }

  private append(first: LogIndex, count: number, term: Term): void {
    const batch = this.batch
    if (batch.length !== count) throw internalError(`${count} entries for ${batch.length} proposals`)
    this.batch = []
    const entries: LogEntry[] = []
    for (let i = 0; i < count; i++) {
      const proposal = batch[i]!
      const index = (first + i) as LogIndex
      const entry: LogEntry = { ...proposal.draft, index, term, dropped: false }
      this.waiters.set(index, { ...proposal, term })
      this.cache.push(entry)
      entries.push(entry)
    }
    this.write(entries)
  }

  private appendOwn({ id, entry }: Extract<Effect, { type: 'appendOwn' }>): void {
    const payload = entry.kind === 'membership' ? encodeMembership(entry.membership) : NOTHING
    const own: LogEntry = {
      index: id.index,
      term: id.term,
      kind: entry.kind,
      timeline: undefined,
      epoch: 0 as WriterEpoch,
      beginLsn: 0 as Lsn,
      endLsn: 0 as Lsn,
      wallTimeUs: 0,
      payload,
      payloadCrc: payload.length === 0 ? 0 : crc32c(payload, 0, payload.length),
      dropped: false,
    }
    this.cache.push(own)
    this.write([own])
  }

  private write(entries: readonly LogEntry[]): void {
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
    await this.log.reset(last)
    this.cache.reset(last.index)
    this.state_ = CellState.decode(bytes)
    this.commit = last.index
    this.options.logger.info(
      { index: last.index },
      "the cell's state was installed from the leader's snapshot",
    )
    this.options.events.onInstalled()
    this.wakeApplied()
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
    for (const [index, waiter] of this.waiters)
      if (index > last.index) {
        this.waiters.delete(index)
        waiter.reject(error)
      }
    this.dispatch({ type: 'dropped', last })
    this.wakeUnblocked()
  }

  // Applying

  private applyCommitted(): void {
    if (this.applying) return
    while (this.state_.last.index < this.commit) {
      const entry = this.cache.get(this.state_.last.index + 1)
      if (entry === undefined) {
        void this.applyFromDisk()
        return
      }
      this.apply(entry)
    }
    this.wakeApplied()
  }

  private async applyFromDisk(): Promise<void> {
    this.applying = true
    try {
      while (this.state_.last.index < this.commit && !this.stopped) {
        const from = (this.state_.last.index + 1) as LogIndex
        const entries = await this.log.read(from, this.commit, APPLY_READ_BYTES)
        // A snapshot may have been installed meanwhile.
        for (const entry of entries) if (entry.index === this.state_.last.index + 1) this.apply(entry)
        this.wakeApplied()
      }
    } catch (error) {
      this.fail(toPalimpsestError(error, 'applying what is committed'))
      return
    } finally {
      this.applying = false
    }
    this.applyCommitted()
  }

  private apply(entry: LogEntry): void {
    const result = this.state_.apply(entry)
    this.log.applied(entry, result.void)
    if (result.void)
      this.options.logger.debug({ index: entry.index, reason: result.why }, 'an entry of the log is void')
    this.options.events.onApplied(entry, result)
    const waiter = this.waiters.get(entry.index)
    if (waiter === undefined) return
    this.waiters.delete(entry.index)
    if (waiter.term === entry.term) waiter.resolve(result)
    else waiter.reject(notLeading())
  }

  private whenApplied(index: number, run: () => void): void {
    if (this.state_.last.index >= index) run()
    else this.appliedWaiters.push({ index, run })
  }

  private wakeApplied(): void {
    if (this.appliedWaiters.length === 0) return
    const { index } = this.state_.last
    const ready = this.appliedWaiters.filter(waiter => waiter.index <= index)
    this.appliedWaiters = this.appliedWaiters.filter(waiter => waiter.index > index)
    for (const { run } of ready) run()
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
    for (const { reject } of this.drafts.splice(0)) reject(error)
    for (const { reject } of this.waiters.values()) reject(error)
    this.waiters.clear()
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

function notLeading(): PalimpsestError {
  return retryError('this node leads the cell no longer; what became of the request is not known: ask again')
}
