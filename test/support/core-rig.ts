/**
 * One core, or a few, with a driver that does at once whatever is asked: for tests of single rules. test/sim/ has the driver that
 * takes its time, and crashes.
 */
import { type CoreState, createCore, step } from '../../server/safekeeper/core/consensus.ts'
import { runsBetween } from '../../server/safekeeper/core/term-runs.ts'
import type {
  CoreEvent,
  CoreStart,
  Effect,
  EntryId,
  EntryRun,
  LogIndex,
  Membership,
  MembershipAt,
  Message,
  NodeId,
  Term,
} from '../../server/safekeeper/core/types.ts'

export const term = (value: number) => value as Term
export const at = (value: number) => value as LogIndex
export const entry = (index: number, ofTerm: number): EntryId => ({ index: at(index), term: term(ofTerm) })
export const run = (ofTerm: number, count: number): EntryRun => ({ term: term(ofTerm), count })

export function voters(...ids: NodeId[]): Membership {
  return { voters: ids, learners: [] }
}

export interface RigStart extends Partial<Omit<CoreStart, 'hardState'>> {
  readonly membership?: Membership
  readonly term?: number
  readonly votedFor?: NodeId
}

/** What a core starts from: three voters a, b, c; this is a. Its log has `runs`. */
export function coreStart(start: RigStart = {}): CoreStart {
  const base = start.base ?? entry(0, 0)
  return {
    self: 'a',
    hardState: { term: term(start.term ?? 0), votedFor: start.votedFor },
    base,
    runs: [],
    memberships: [{ index: base.index, membership: start.membership ?? voters('a', 'b', 'c') }],
    recovering: false,
    nowMs: 0,
    seed: 1,
    ...start,
  }
}

type Sent = Extract<Effect, { type: 'send' }>

/** A core of its own; what it sends is looked at, not delivered. */
export class CoreRig {
  readonly core: CoreState
  /** All effects so far, but those that were taken. */
  effects: Effect[] = []
  nowMs = 0
  /** Hard states are durable, and entries flushed, at once. */
  isPrompt = true

  constructor(start: RigStart = {}) {
    this.core = createCore(coreStart(start))
    this.do({ type: 'tick', nowMs: 0 })
  }

  do(event: CoreEvent): Effect[] {
    const effects = step(this.core, event)
    this.effects.push(...effects)
    if (!this.isPrompt) return effects
    let wrote = false
    for (const effect of effects) {
      if (effect.type === 'persist') this.do({ type: 'persisted', hardState: effect.hardState })
      else if (effect.type === 'append' || effect.type === 'appendOwn' || effect.type === 'store')
        wrote = true
    }
    if (wrote) this.flush()
    return effects
  }

  flush(index: number = this.core.log.last): Effect[] {
    const { log } = this.core
    const newest = runsBetween(log, at(index - 1), at(index))[0]!
    return this.do({ type: 'flushed', last: { index: at(index), term: newest.term } })
  }

  receive(from: NodeId, message: Message): Effect[] {
    return this.do({ type: 'message', from, message })
  }

  /** Lets time go by, in ticks of 10 ms. */
  wait(ms: number): void {
    for (const end = this.nowMs + ms; this.nowMs < end; ) {
      this.nowMs += 10
      this.do({ type: 'tick', nowMs: this.nowMs })
    }
  }

  /** Effects of one type since the last call for any type. */
  take<T extends Effect['type']>(type: T): Extract<Effect, { type: T }>[] {
    const found = this.effects.filter(effect => effect.type === type)
    this.effects = []
    return found as Extract<Effect, { type: T }>[]
  }

  /** Messages of one type since the last call. */
  takeSent<T extends Message['type']>(
    type: T,
  ): (Omit<Sent, 'message'> & { message: Extract<Message, { type: T }> })[] {
    return this.take('send').filter(effect => effect.message.type === type) as never
  }

  // ---- short cuts ----

  append(
    from: NodeId,
    ofTerm: number,
    prev: EntryId,
    runs: EntryRun[],
    more: { commit?: number; round?: number; memberships?: MembershipAt[] } = {},
  ): Effect[] {
    return this.receive(from, {
      type: 'append',
      term: term(ofTerm),
      prev,
      runs,
      memberships: more.memberships ?? [],
      commit: at(more.commit ?? 0),
      round: more.round ?? 1,
    })
  }

  acknowledge(
    from: NodeId,
    match: number,
    more: Partial<Extract<Message, { type: 'appendReply' }>> = {},
  ): Effect[] {
    return this.receive(from, {
      type: 'appendReply',
      term: this.core.term,
      ok: true,
      match: at(match),
      rejected: at(0),
      hint: { index: at(match), term: term(0) },
      round: this.core.lead?.round ?? 1,
      paused: false,
      ...more,
    })
  }

  /** Stands, and wins the votes of `others`. */
  lead(...others: NodeId[]): this {
    this.wait(700)
    for (const pre of [true, false]) {
      for (const other of others) {
        const ofTerm = term(this.core.term + (pre ? 1 : 0))
        if (this.core.role === 'leader') break
        this.receive(other, { type: 'voteReply', term: ofTerm, pre, granted: true })
      }
    }
    if (this.core.role !== 'leader') throw new Error(`role ${this.core.role}`)
    return this
  }
}

/** Several cores; messages go at once and in order, but where `isCut` says otherwise. */
export class CoreCell {
  readonly rigs = new Map<NodeId, CoreRig>()
  isCut: (from: NodeId, to: NodeId) => boolean = () => false
  private readonly memberships = new Map<number, MembershipAt>()

  constructor(ids: readonly NodeId[], membership: Membership = voters(...ids)) {
    ids.forEach((self, i) => {
      this.rigs.set(self, new CoreRig({ self, membership, seed: i + 1 }))
    })
  }

  rig(id: NodeId): CoreRig {
    return this.rigs.get(id)!
  }

  /** Adds an empty node that knows of no membership. */
  add(id: NodeId): void {
    this.rigs.set(id, new CoreRig({ self: id, membership: { voters: [], learners: [] }, seed: 99 }))
  }

  get leader(): NodeId | undefined {
    let found: CoreRig | undefined
    for (const rig of this.rigs.values()) {
      if (rig.core.role === 'leader' && rig.core.term > (found?.core.term ?? 0)) found = rig
    }
    return found?.core.self
  }

  /** Delivers until nobody has anything to say. Keeps the effects that are not messages for the tests. */
  settle(): void {
    for (let isBusy = true; isBusy; ) {
      isBusy = false
      for (const [id, rig] of this.rigs) {
        const effects = rig.effects
        rig.effects = effects.filter(effect => effect.type !== 'send' && effect.type !== 'replicate')
        for (const effect of effects) {
          if (effect.type === 'appendOwn' && effect.entry.kind === 'membership') {
            this.memberships.set(effect.id.index, {
              index: effect.id.index,
              membership: effect.entry.membership,
            })
          }
          const message = this.messageOf(rig, effect)
          if (message === undefined || !('to' in effect)) continue
          isBusy = true
          if (!this.isCut(id, effect.to)) this.rigs.get(effect.to)?.receive(id, message)
        }
      }
    }
  }

  private messageOf(rig: CoreRig, effect: Effect): Message | undefined {
    if (effect.type === 'send') return effect.message
    if (effect.type !== 'replicate') return undefined
    const { term, prev, last, commit, round } = effect
    if (rig.core.role !== 'leader' || rig.core.term !== term) return undefined
    const memberships = [...this.memberships.values()].filter(at => at.index > prev.index && at.index <= last)
    const runs = runsBetween(rig.core.log, prev.index, last)
    return { type: 'append', term, prev, runs, memberships, commit, round }
  }

  wait(ms: number): void {
    for (let passed = 0; passed < ms; passed += 10) {
      for (const rig of this.rigs.values()) rig.wait(10)
      this.settle()
    }
  }
}
