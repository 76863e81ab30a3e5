/**
 * A node of the core-level simulation: the core, and a driver that does to a modelled disk and network what the real one does to
 * real ones. What is in `disk` survives a crash; the rest does not.
 */
import { type CoreState, createCore, step } from '../../server/safekeeper/core/consensus.ts'
import type {
  CoreEvent,
  CoreTiming,
  Effect,
  EntryId,
  EntryRun,
  HardState,
  LogIndex,
  Membership,
  MembershipAt,
  Message,
  NodeId,
  Term,
} from '../../server/safekeeper/core/types.ts'
import type { SimRandom, World } from './world.ts'

export interface SimEntry {
  readonly index: LogIndex
  readonly term: Term
  /** Stands for the payload: no two proposals have the same. */
  readonly value: string
  readonly membership: Membership | undefined
}

export interface SimSnapshot {
  readonly last: EntryId
  readonly membership: Membership
}

/** A message and what the driver sends along. */
export interface Parcel {
  readonly message: Message
  readonly entries: readonly SimEntry[]
  readonly snapshot: SimSnapshot | undefined
}

/** What a disk holds. */
export interface SimDisk {
  hardState: HardState
  recovering: boolean
  snapshot: SimSnapshot
  /** The last entry below `log`; at most the snapshot's. */
  base: EntryId
  log: SimEntry[]
}

type LogOperation =
  | { readonly type: 'write'; readonly entries: readonly SimEntry[] }
  | { readonly type: 'truncate'; readonly after: LogIndex }
  | { readonly type: 'install'; readonly snapshot: SimSnapshot }

/** Deliberate mistakes of a driver; the checks must find each. */
export interface NodeCanary {
  readonly flushedBeforeSync?: boolean
  readonly forgetsVote?: boolean
  /** Runs after each step of the core, and may add effects. */
  readonly afterStep?: (core: CoreState, effects: Effect[]) => void
}

export interface NodeUser {
  send(from: NodeId, to: NodeId, parcel: Parcel): void
  /** Before the effects are carried out. */
  stepped(node: SimNode, event: CoreEvent, effects: readonly Effect[]): void
  /** An entry goes into the log, after one of term `before`. */
  wrote(node: SimNode, entry: SimEntry, before: number): void
  /** The process ended by itself. */
  ended(node: SimNode): void
}

export class SimNode {
  readonly id: NodeId
  readonly disk: SimDisk
  core: CoreState | undefined
  /** As the process sees it, from disk.base (or an install under way) on. */
  log: SimEntry[] = []
  base: EntryId
  snapshot: SimSnapshot
  /** The disk takes no entries. */
  full = false
  /** No event reaches the process before this: it is stopped, or the machine is busy. */
  stoppedUntilMs = 0
  /** Chance that the process dies between two effects. */
  crashChance = 0
  timing: Partial<CoreTiming> = {}
  canary: NodeCanary = {}
  /** Grows with each start, so that what an ended process began is void. */
  process = 0

  private readonly world: World
  private readonly random: SimRandom
  private readonly user: NodeUser
  private readonly drift: number
  private persisting = false
  private persistNext: HardState | undefined
  private persistsDone = 0
  private persistsAsked = 0
  private waiting: { readonly after: number; readonly send: () => void }[] = []
  private logQueue: LogOperation[] = []
  private syncing: LogOperation[] | undefined
  private stopped: (() => void)[] = []

  constructor(world: World, id: NodeId, disk: SimDisk, user: NodeUser) {
    this.world = world
    this.id = id
    this.disk = disk
    this.base = disk.base
    this.snapshot = disk.snapshot
    this.user = user
    this.random = world.random.fork(`node ${id}`)
    this.drift = this.random.between(0.9, 1.1)
  }

  get isUp(): boolean {
    return this.core !== undefined
  }

  entryAt(index: LogIndex): SimEntry | undefined {
    return this.log[index - this.base.index - 1]
  }

  // ---- process ----

  start(): void {
    const { disk } = this
    this.process++
    this.base = disk.base
    this.snapshot = disk.snapshot
    this.log = [...disk.log]
    const runs: EntryRun[] = []
    for (const { term } of this.log) runs.push({ term, count: 1 })
    const { last, membership } = disk.snapshot
    const memberships: MembershipAt[] = [{ index: last.index, membership }]
    for (const entry of this.log) {
      if (entry.membership !== undefined && entry.index > last.index) {
        memberships.push({ index: entry.index, membership: entry.membership })
      }
    }
    if (this.canary.forgetsVote) disk.hardState = { ...disk.hardState, votedFor: undefined }
    this.core = createCore({
      self: this.id,
      hardState: disk.hardState,
      base: disk.base,
      applied: last.index,
      runs,
      memberships,
      recovering: disk.recovering,
      nowMs: this.clock(),
      seed: this.random.int(0, 1 << 30),
      timing: this.timing,
    })
    this.stoppedUntilMs = 0
    this.full = false
    this.plan(0, () => this.tick())
  }

  /** The process dies here and now. Of what it wrote and did not sync some may be there. */
  crash(): void {
    for (const operation of this.syncing ?? []) {
      const isWhole = this.random.chance(0.5)
      if (isWhole || operation.type === 'write') this.applyToDisk(operation, isWhole ? 1 : this.random.next())
      if (!isWhole) break
    }
    if (this.persisting && this.persistNext !== undefined && this.random.chance(0.5)) {
      this.disk.hardState = this.persistNext
    }
    this.core = undefined
    this.process++
    this.persisting = false
    this.persistNext = undefined
    this.persistsDone = this.persistsAsked = 0
    this.waiting = []
    this.logQueue = []
    this.syncing = undefined
    this.stopped = []
  }

  private clock(): number {
    return Math.floor(this.world.nowMs * this.drift)
  }

  private tick(): void {
    this.handle({ type: 'tick', nowMs: this.clock() })
    this.plan(10, () => this.tick())
  }

  /** Something that this process, and no later one, will see. */
  private plan(ms: number, run: () => void): void {
    const { process } = this
    this.world.after(ms, () => {
      if (this.process === process) this.whenAwake(run)
    })
  }

  private whenAwake(run: () => void): void {
    if (this.world.nowMs >= this.stoppedUntilMs) run()
    else this.stopped.push(run)
  }

  /** Does nothing for a while; what comes meanwhile it finds afterwards. */
  stop(ms: number): void {
    this.stoppedUntilMs = this.world.nowMs + ms
    const { process } = this
    this.world.after(ms, () => {
      if (this.process !== process) return
      const found = this.stopped
      this.stopped = []
      for (const run of found) if (this.process === process) run()
    })
  }

  // ---- events and effects ----

  receive(from: NodeId, parcel: Parcel): void {
    if (this.core === undefined) return
    this.whenAwake(() => this.handle({ type: 'message', from, message: parcel.message }, parcel))
  }

  lost(peer: NodeId): void {
    if (this.core !== undefined) this.whenAwake(() => this.handle({ type: 'peerLost', peer }))
  }

  setFull(full: boolean): void {
    if (this.full === full || this.core === undefined) return
    this.full = full
    this.whenAwake(() => this.handle({ type: 'writable', writable: !full }))
  }

  handle(event: CoreEvent, parcel?: Parcel, values: readonly string[] = []): void {
    if (this.core === undefined) return
    const effects = step(this.core, event)
    this.canary.afterStep?.(this.core, effects)
    this.user.stepped(this, event, effects)
    const { process } = this
    for (const effect of effects) {
      if (this.crashChance > 0 && this.random.chance(this.crashChance)) {
        this.user.ended(this)
        return
      }
      this.carryOut(effect, parcel, values)
      if (this.process !== process) return
    }
  }

  private carryOut(effect: Effect, parcel: Parcel | undefined, values: readonly string[]): void {
    switch (effect.type) {
      case 'persist':
        this.persistsAsked++
        this.persistNext = effect.hardState
        this.persist()
        return
      case 'send':
        this.sendWhen(effect.when, effect.to, { message: effect.message, entries: [], snapshot: undefined })
        return
      case 'replicate':
        this.replicate(effect)
        return
      case 'sendSnapshot': {
        const { last, membership } = this.snapshot
        const message: Message = { type: 'snapshot', term: effect.term, last, membership }
        this.user.send(this.id, effect.to, { message, entries: [], snapshot: this.snapshot })
        return
      }
      case 'append':
        this.write(
          values.map((value, i) => ({
            index: (effect.first + i) as LogIndex,
            term: effect.term,
            value,
            membership: undefined,
          })),
        )
        return
      case 'appendOwn': {
        const { id, entry } = effect
        const membership = entry.kind === 'membership' ? entry.membership : undefined
        this.write([{ ...id, value: `${entry.kind} ${id.term}.${id.index}`, membership }])
        return
      }
      case 'store':
        this.write(parcel!.entries.filter(entry => entry.index >= effect.first).slice(0, effect.count))
        return
      case 'truncate':
        this.log.length = effect.after - this.base.index
        this.queueLog({ type: 'truncate', after: effect.after })
        return
      case 'install':
        this.log = []
        this.base = effect.last
        this.snapshot = parcel!.snapshot!
        this.queueLog({ type: 'install', snapshot: parcel!.snapshot! })
        return
      case 'role':
        if (effect.role !== 'recovering') this.disk.recovering = false
        return
    }
  }

  private sendWhen(when: 'now' | 'afterPersist', to: NodeId, parcel: Parcel): void {
    const send = () => this.user.send(this.id, to, parcel)
    if (when === 'now' || this.persistsDone === this.persistsAsked) send()
    else this.waiting.push({ after: this.persistsAsked, send })
  }

  private replicate(effect: Extract<Effect, { type: 'replicate' }>): void {
    let { prev } = effect
    while (prev.index < effect.last) {
      const count = Math.min(effect.last - prev.index, this.random.int(1, 8))
      const entries = this.log.slice(prev.index - this.base.index, prev.index - this.base.index + count)
      const runs: EntryRun[] = []
      const memberships: MembershipAt[] = []
      for (const { index, term, membership } of entries) {
        const newest = runs[runs.length - 1]
        if (newest?.term === term) runs[runs.length - 1] = { term, count: newest.count + 1 }
        else runs.push({ term, count: 1 })
        if (membership !== undefined) memberships.push({ index, membership })
      }
      const { term, commit, round } = effect
      const message: Message = { type: 'append', term, prev, runs, memberships, commit, round }
      this.user.send(this.id, effect.to, { message, entries, snapshot: undefined })
      prev = entries[count - 1]!
    }
  }

  // ---- disk ----

  private persist(): void {
    if (this.persisting || this.persistNext === undefined) return
    this.persisting = true
    const hardState = this.persistNext
    const upTo = this.persistsAsked
    this.plan(this.syncDelay(), () => {
      this.persisting = false
      this.disk.hardState = hardState
      this.persistsDone = upTo
      if (this.persistsAsked === upTo) this.persistNext = undefined
      this.persist()
      const ready = this.waiting.filter(item => item.after <= upTo)
      this.waiting = this.waiting.filter(item => item.after > upTo)
      for (const { send } of ready) send()
      this.handle({ type: 'persisted', hardState })
    })
  }

  private syncDelay(): number {
    return this.random.chance(0.02) ? this.random.between(20, 400) : this.random.between(0.2, 3)
  }

  private write(entries: readonly SimEntry[]): void {
    for (const entry of entries) {
      const expected = this.base.index + this.log.length + 1
      if (entry.index !== expected)
        throw new Error(`${this.id}: entry ${entry.index} written where ${expected} belongs`)
      this.user.wrote(this, entry, this.log[this.log.length - 1]?.term ?? this.base.term)
      this.log.push(entry)
    }
    this.queueLog({ type: 'write', entries })
    if (this.canary.flushedBeforeSync) this.plan(0, () => this.tellFlushed(this.log))
  }

  private queueLog(operation: LogOperation): void {
    this.logQueue.push(operation)
    this.sync()
  }

  /** One sync for all that waits. */
  private sync(): void {
    if (this.syncing !== undefined || this.logQueue.length === 0) return
    this.syncing = this.logQueue
    this.logQueue = []
    this.plan(this.syncDelay(), () => this.synced())
  }

  private synced(): void {
    const operations = this.syncing ?? []
    this.syncing = undefined
    let installed: SimSnapshot | undefined
    for (let i = 0; i < operations.length; i++) {
      const operation = operations[i]!
      if (this.full && operation.type === 'write') {
        this.giveBack([...operations.slice(i), ...this.logQueue])
        break
      }
      this.applyToDisk(operation, 1)
      if (operation.type === 'install') installed = operation.snapshot
    }
    this.sync()
    const { process } = this
    if (installed !== undefined && !this.logQueue.some(operation => operation.type === 'install')) {
      this.handle({ type: 'installed', last: installed.last })
    }
    if (this.process === process) this.tellFlushed(this.disk.log)
  }

  /** What could not be written is no more; all but a snapshot that comes after it. */
  private giveBack(operations: readonly LogOperation[]): void {
    const install = operations.findLastIndex(operation => operation.type === 'install')
    if (install >= 0) {
      this.logQueue = operations.slice(install)
      return
    }
    // A cut takes no room: it is carried out all the same.
    let after: number = this.disk.log[this.disk.log.length - 1]?.index ?? this.disk.base.index
    for (const operation of operations) {
      if (operation.type === 'truncate') after = Math.min(after, operation.after)
    }
    this.logQueue = [{ type: 'truncate', after: after as LogIndex }]
    this.log = this.disk.log.slice(0, after - this.disk.base.index)
    const last = this.log[this.log.length - 1] ?? this.disk.base
    this.handle({ type: 'dropped', last: { index: last.index, term: last.term } })
  }

  /** Tells how far the disk is, but nothing that was cut since. */
  private tellFlushed(log: readonly SimEntry[]): void {
    let index: number = log[log.length - 1]?.index ?? 0
    for (const operation of [...(this.syncing ?? []), ...this.logQueue]) {
      if (operation.type === 'install') return
      if (operation.type === 'truncate') index = Math.min(index, operation.after)
    }
    const last = this.entryAt(index as LogIndex)
    if (last !== undefined) this.handle({ type: 'flushed', last: { index: last.index, term: last.term } })
  }

  /** `part`: how much of a write gets there, 0 to 1. */
  private applyToDisk(operation: LogOperation, part: number): void {
    const { disk } = this
    switch (operation.type) {
      case 'write':
        disk.log.push(...operation.entries.slice(0, Math.ceil(operation.entries.length * part)))
        return
      case 'truncate':
        disk.log.length = operation.after - disk.base.index
        return
      case 'install':
        disk.snapshot = operation.snapshot
        disk.base = operation.snapshot.last
        disk.log = []
        return
    }
  }

  /** Writes a snapshot of what is applied, and trims the log up to `keep` entries before it. */
  trim(membership: Membership, keep: number): void {
    const { core } = this
    if (core === undefined || core.installing !== undefined) return
    if ((this.syncing?.length ?? 0) + this.logQueue.length > 0) return
    const index = core.applied
    const entry = this.entryAt(index)
    if (entry === undefined) return
    this.snapshot = this.disk.snapshot = { last: { index, term: entry.term }, membership }
    const base = this.entryAt((index - keep) as LogIndex)
    if (base === undefined) return
    this.disk.log.splice(0, base.index - this.disk.base.index)
    this.log.splice(0, base.index - this.base.index)
    this.base = this.disk.base = { index: base.index, term: base.term }
    this.handle({ type: 'trimmed', last: this.base })
  }

  /** While the process is down: all from `index` on is unreadable. */
  damage(index: LogIndex): void {
    const { disk } = this
    disk.recovering = true
    disk.log.length = Math.max(0, Math.min(disk.log.length, index - disk.base.index - 1))
    if (disk.base.index + disk.log.length < disk.snapshot.last.index) {
      disk.base = disk.snapshot.last
      disk.log = []
    }
  }
}
