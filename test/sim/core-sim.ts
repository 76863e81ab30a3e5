/**
 * Simulation of the consensus core: several nodes on modelled disks and a modelled network, proposers, and everything going wrong.
 * First a safety phase with faults everywhere, then a liveness phase: what is left must converge and go on. See core-checker.ts for what
 * is asserted.
 */

import { isVoter, majorityOf } from '../../server/safekeeper/core/quorum.ts'
import type {
  Effect,
  LogIndex,
  Membership,
  Message,
  NodeId,
  Term,
} from '../../server/safekeeper/core/types.ts'
import { CoreChecker, Violation } from './core-checker.ts'
import { type NodeCanary, type Parcel, type SimDisk, type SimEntry, SimNode } from './core-node.ts'
import { SimNetwork } from './network.ts'
import { type SimRandom, World } from './world.ts'

export interface CoreSimOptions {
  readonly seed: number
  readonly canary?: NodeCanary | undefined
  /** Length of the safety phase. */
  readonly safetyMs?: number
  /** Called with each event and effect of each node, for looking at a failure. */
  readonly trace?: ((line: string) => void) | undefined
}

export interface CoreSimResult {
  readonly seed: number
  readonly events: number
  readonly committed: number
  readonly leaders: number
  readonly reads: number
  readonly messages: number
  readonly simulatedMs: number
}

const LIVENESS_MS = 240_000
/** Messages under way, for the most part. More means that nodes answer each other ever more. */
const EVENTS_WAITING_MAX = 20_000

/** Runs one seed. Throws Violation, or whatever else went wrong. */
export function runCoreSim(options: CoreSimOptions): CoreSimResult {
  return new CoreSim(options).run()
}

class CoreSim {
  private readonly world: World
  private readonly random: SimRandom
  private readonly network: SimNetwork<Parcel>
  private readonly nodes = new Map<NodeId, SimNode>()
  /** Their disks are gone; they never come back. */
  private readonly wiped = new Set<NodeId>()
  private readonly checker: CoreChecker
  private readonly options: CoreSimOptions
  private readonly safetyMs: number
  private readonly faults: ReturnType<typeof drawFaults>
  private proposals = 0
  private readIds = 0
  private incarnations = 0
  private healing = false

  constructor(options: CoreSimOptions) {
    this.options = options
    this.world = new World(options.seed)
    this.random = this.world.random.fork('plan')
    this.safetyMs = options.safetyMs ?? 15_000
    this.faults = drawFaults(this.random.fork('faults'))
    this.checker = new CoreChecker(this.nodes)
    this.network = new SimNetwork<Parcel>(this.world, this.faults.network, {
      deliver: (from, to, parcel) => this.nodes.get(to)?.receive(from, parcel),
      lost: (at, peer) => this.nodes.get(at)?.lost(peer),
    })
    this.world.afterEvent = () => {
      if (this.world.waiting > EVENTS_WAITING_MAX) throw new Violation(`${this.world.waiting} events wait`)
    }
    const count = this.random.pick([1, 2, 3, 3, 3, 3, 4, 5, 5, 7])
    const voters = Array.from({ length: count }, (_, i) => `n${i + 1}`)
    for (const id of voters) this.addNode(id, { voters, learners: [] })
  }

  run(): CoreSimResult {
    const { world } = this
    for (const node of this.nodes.values()) node.start()
    this.plan('propose', 1, this.faults.proposeMs, random => this.propose(random))
    this.plan('read', 1, 60, random => this.read(random))
    this.plan('crash', 1, this.faults.crashMs, random => this.crash(random))
    this.plan('partition', 1, this.faults.partitionMs, random => this.partition(random))
    this.plan('reset', 1, this.faults.resetMs, random => this.resetSome(random))
    this.plan('stop', 1, this.faults.stopMs, random => this.stopSome(random))
    this.plan('full', 1, this.faults.fullMs, random => this.fillSome(random))
    this.plan('trim', 1, this.faults.trimMs, random => this.trimSome(random))
    this.plan('member', 1, this.faults.memberMs, random => this.changeMembers(random))
    this.plan('transfer', 1, this.faults.transferMs, random => this.transfer(random))
    this.plan('break', 1, this.faults.breakMs, random => this.breakSome(random))
    world.runUntil(this.safetyMs)
    this.live()
    return {
      seed: this.options.seed,
      events: world.events,
      committed: this.checker.committedLast,
      leaders: this.checker.leaders,
      reads: this.checker.readsAnswered,
      messages: this.network.sent,
      simulatedMs: Math.round(world.nowMs),
    }
  }

  /** Does something again and again until the safety phase is over, each with its own stream of chance. */
  private plan(name: string, fromMs: number, meanMs: number, run: (random: SimRandom) => void): void {
    if (!Number.isFinite(meanMs)) return
    const random = this.random.fork(name)
    const again = () => {
      if (this.healing) return
      run(random)
      this.world.after(random.between(fromMs, 2 * meanMs), again)
    }
    this.world.after(random.between(fromMs, 2 * meanMs), again)
  }

  // ---- nodes ----

  private addNode(id: NodeId, membership: Membership): SimNode {
    const base = { index: 0 as LogIndex, term: 0 as Term }
    const disk: SimDisk = {
      hardState: { term: 0 as Term, votedFor: undefined },
      recovering: false,
      snapshot: { last: base, membership },
      base,
      log: [],
    }
    const node = new SimNode(this.world, id, disk, {
      send: (from, to, parcel) => {
        this.checker.onSend(from, to, parcel.message)
        this.network.send(from, to, parcel)
      },
      wrote: (at, entry, before) => this.checker.onWrite(at, entry, before),
      stepped: (at, event, effects) => {
        this.options.trace?.(
          `${this.world.nowMs.toFixed(1)} ${at.id} ${JSON.stringify(event)} -> ${JSON.stringify(effects)}`,
        )
        this.checker.beforeEffects(at, event, effects)
        this.crashAfterVote(at, effects)
      },
      ended: at => this.end(at),
    })
    node.crashChance = this.faults.crashChance
    node.timing = { inflightEntriesMax: 16, snapshotRetryMs: 2000, electionMsMax: this.faults.electionMsMax }
    node.canary = this.options.canary ?? {}
    this.nodes.set(id, node)
    return node
  }

  /** The moment at which a node is most likely to break a promise: it has just voted. */
  private crashAfterVote(node: SimNode, effects: readonly Effect[]): void {
    if (this.healing || !this.random.chance(this.faults.crashAfterVote)) return
    if (!effects.some(effect => effect.type === 'send' && isVote(effect.message))) return
    const { process } = node
    this.world.after(this.random.between(0, 8), () => {
      if (node.process === process) this.end(node)
    })
  }

  private end(node: SimNode): void {
    this.options.trace?.(`${this.world.nowMs.toFixed(1)} ${node.id} ends`)
    node.crash()
    this.network.end(node.id, this.nodes.keys())
    const awayMs = this.random.chance(0.5) ? this.random.between(0.1, 20) : this.random.between(1, 2000)
    this.world.after(awayMs, () => this.restart(node))
  }

  private restart(node: SimNode): void {
    if (!node.isUp && !this.wiped.has(node.id)) node.start()
  }

  private up(): SimNode[] {
    return [...this.nodes.values()].filter(node => node.isUp)
  }

  private leaders(): SimNode[] {
    return this.up().filter(node => node.core!.role === 'leader')
  }

  /** Every membership that may be in force somewhere, now or after a crash. */
  private memberships(): Membership[] {
    const found: Membership[] = []
    for (const node of this.nodes.values()) {
      if (this.wiped.has(node.id)) continue
      found.push(node.disk.snapshot.membership)
      for (const entry of node.disk.log) if (entry.membership !== undefined) found.push(entry.membership)
      for (const at of node.core?.memberships ?? []) found.push(at.membership)
    }
    return found
  }

  /** Whether the run can still be won without this node's disk: a majority of each membership keeps theirs. */
  private canBreak(id: NodeId): boolean {
    return this.memberships().every(
      ({ voters, outgoing }) =>
        this.survives(voters, id) && (outgoing === undefined || this.survives(outgoing, id)),
    )
  }

  /** Whether a majority of the voters keep their disks, if `id` loses its own. */
  private survives(voters: readonly NodeId[], id?: NodeId): boolean {
    const sound = voters.filter(
      voter => voter !== id && !this.wiped.has(voter) && this.nodes.get(voter)?.disk.recovering !== true,
    )
    return sound.length >= majorityOf(voters.length)
  }

  // ---- what happens ----

  private propose(random: SimRandom): void {
    for (const leader of this.leaders()) {
      if (leader.stoppedUntilMs > this.world.nowMs) continue
      const values = Array.from({ length: random.int(1, 5) }, () => `v${++this.proposals}`)
      leader.handle({ type: 'propose', count: values.length }, undefined, values)
    }
  }

  private read(random: SimRandom): void {
    const up = this.up().filter(node => node.stoppedUntilMs <= this.world.nowMs)
    const leading = up.filter(node => node.core!.role === 'leader')
    if (up.length > 0)
      random.pick(leading.length > 0 ? leading : up).handle({ type: 'read', id: ++this.readIds })
  }

  private crash(random: SimRandom): void {
    const up = this.up()
    if (up.length === 0) return
    if (random.chance(0.05)) for (const node of up) this.end(node)
    else this.end(random.pick(random.chance(0.4) && this.leaders().length > 0 ? this.leaders() : up))
  }

  private partition(random: SimRandom): void {
    this.network.unblockAll()
    if (random.chance(0.4)) return
    const ids = [...this.nodes.keys()]
    if (random.chance(0.5)) {
      const side = new Set(ids.filter(() => random.chance(0.5)))
      const oneWay = random.chance(0.4)
      for (const a of side) {
        for (const b of ids) {
          if (side.has(b)) continue
          this.network.block(a, b)
          if (!oneWay) this.network.block(b, a)
        }
      }
      return
    }
    for (let i = random.int(1, 4); i > 0; i--) this.network.block(random.pick(ids), random.pick(ids))
  }

  private resetSome(random: SimRandom): void {
    const ids = [...this.nodes.keys()]
    const a = random.pick(ids)
    const b = random.pick(ids)
    if (a !== b) this.network.reset(a, b)
  }

  private stopSome(random: SimRandom): void {
    const up = this.up()
    if (up.length > 0) random.pick(up).stop(random.between(10, 3000))
  }

  private fillSome(random: SimRandom): void {
    const up = this.up()
    if (up.length > 0) random.pick(up).setFull(random.chance(0.5))
  }

  private trimSome(random: SimRandom): void {
    const up = this.up().filter(node => node.stoppedUntilMs <= this.world.nowMs)
    if (up.length === 0) return
    const node = random.pick(up)
    const { applied, memberships } = node.core!
    // The first is the newest that is applied, once as much is applied again as the snapshot held.
    const membership = memberships[0]!
    if (membership.index <= applied) node.trim(membership.membership, random.pick([0, 0, 5, 50]))
  }

  private transfer(random: SimRandom): void {
    for (const leader of this.leaders()) {
      if (leader.stoppedUntilMs <= this.world.nowMs) {
        leader.handle({ type: 'transfer', to: random.pick([...this.nodes.keys()]) })
      }
    }
  }

  private changeMembers(random: SimRandom): void {
    for (const leader of this.leaders()) {
      if (leader.stoppedUntilMs > this.world.nowMs) continue
      const { memberships } = leader.core!
      const { voters, learners, outgoing } = memberships[memberships.length - 1]!.membership
      if (outgoing !== undefined) continue
      this.changeAt(leader, voters, learners, random)
    }
  }

  /** Puts right what is broken first; else whatever comes to mind. */
  private changeAt(
    leader: SimNode,
    voters: readonly NodeId[],
    learners: readonly NodeId[],
    random: SimRandom,
  ): void {
    const goneLearner = learners.find(id => this.wiped.has(id))
    const goneVoter = voters.find(id => this.wiped.has(id))
    const change = (to: readonly NodeId[], also: readonly NodeId[]) => {
      // A disk that has just broken, of which the leader cannot know, must not become one too many.
      if (this.survives(to)) leader.handle({ type: 'change', change: { voters: to, learners: also } })
    }
    if (goneLearner !== undefined) {
      change(
        voters,
        learners.filter(id => id !== goneLearner),
      )
    } else if (goneVoter !== undefined && learners.length > 0) {
      const learner = random.pick(learners)
      change(
        voters.map(id => (id === goneVoter ? learner : id)),
        learners.filter(id => id !== learner),
      )
    } else if (goneVoter !== undefined || (learners.length === 0 && !this.healing && random.chance(0.5))) {
      const id = this.spareNode()
      if (id !== undefined) change(voters, [...learners, id])
    } else if (this.healing) {
      return
    } else if (learners.length > 0 && voters.length < 7 && random.chance(0.6)) {
      const learner = random.pick(learners)
      const replaced = random.chance(0.5) ? random.pick(voters) : undefined
      change(
        [...voters.filter(id => id !== replaced), learner],
        learners.filter(id => id !== learner),
      )
    } else if (voters.length > 1) {
      const removed = random.pick(voters)
      change(
        voters.filter(id => id !== removed),
        random.chance(0.3) ? [...learners, removed] : learners,
      )
    }
  }

  /** A node with an empty disk that no membership knows; a new one, if there is none, as long as there are not too many. */
  private spareNode(): NodeId | undefined {
    const known = new Set(
      this.memberships().flatMap(at => [...at.voters, ...at.learners, ...(at.outgoing ?? [])]),
    )
    for (const node of this.nodes.values()) {
      if (!known.has(node.id) && !this.wiped.has(node.id) && node.disk.hardState.term === 0) return node.id
    }
    if (this.nodes.size > 20) return undefined
    const id = `m${++this.incarnations}`
    this.addNode(id, { voters: [], learners: [] }).start()
    return id
  }

  /** A disk is lost, or part of it: always with a majority left that has everything. */
  private breakSome(random: SimRandom): void {
    const node = random.pick([...this.nodes.values()])
    if (this.wiped.has(node.id) || !this.canBreak(node.id)) return
    if (node.isUp) this.end(node)
    if (random.chance(0.4)) {
      this.wiped.add(node.id)
      this.options.trace?.(`${this.world.nowMs.toFixed(1)} ${node.id} loses its disk`)
      return
    }
    const { base, log } = node.disk
    node.damage((base.index + 1 + random.int(0, log.length)) as LogIndex)
    this.options.trace?.(`${this.world.nowMs.toFixed(1)} ${node.id} damaged, has ${node.disk.log.length}`)
  }

  // ---- the liveness phase ----

  private live(): void {
    const { world, network, random } = this
    this.healing = true
    network.unblockAll()
    network.rates = { delayMs: [0.1, 2], slow: 0, loss: 0, duplicate: 0, disorder: 0 }
    // A minority may stay away for good.
    const away = [...this.nodes.values()].find(node => random.chance(0.3) && this.canBreak(node.id))
    if (away !== undefined) {
      if (away.isUp) this.end(away)
      this.wiped.add(away.id)
    }
    for (const node of this.nodes.values()) {
      node.crashChance = 0
      if (!node.isUp) this.restart(node)
      node.setFull(false)
    }
    const tend = this.random.fork('tend')
    const end = world.nowMs + LIVENESS_MS
    let proposedAt = 0
    let last: string | undefined
    const tendAgain = () => {
      this.changeMembers(tend)
      if (world.nowMs - proposedAt > 1500) {
        proposedAt = world.nowMs
        const leader = this.leaders()[0]
        if (leader !== undefined && leader.stoppedUntilMs <= world.nowMs) {
          last = `v${++this.proposals}`
          leader.handle({ type: 'propose', count: 1 }, undefined, [last])
        }
      }
      world.after(100, tendAgain)
    }
    world.after(100, tendAgain)
    let checkAt = 0
    world.runUntil(end, () => {
      if (last === undefined || world.nowMs < checkAt) return false
      checkAt = world.nowMs + 50
      return this.hasConverged(last)
    })
    if (last === undefined || !this.hasConverged(last)) {
      throw new Violation(`no convergence in ${LIVENESS_MS} ms of a healed network: ${this.describe()}`)
    }
  }

  /** All members that are there have the same log, to the end, and it ends with, or after, `value`. */
  private hasConverged(value: string): boolean {
    const leader = this.leaders()[0]
    if (leader === undefined || this.leaders().length > 1) return false
    const core = leader.core!
    const { membership } = core.memberships[core.memberships.length - 1]!
    if (membership.outgoing !== undefined || core.memberships.length > 1) return false
    const members = [...membership.voters, ...membership.learners]
    if (members.some(id => this.wiped.has(id))) return false
    const index = leader.log.findLast(entry => entry.value === value)?.index
    if (index === undefined) return false
    return members.every(id => {
      const node = this.nodes.get(id)!
      if (node.core === undefined || node.disk.recovering || node.core.recovering) return false
      return (
        node.core.applied >= index && node.core.term === core.term && node.core.log.last === core.log.last
      )
    })
  }

  private describe(): string {
    return [...this.nodes.values()]
      .map(node => {
        if (node.core === undefined) return `${node.id} ${this.wiped.has(node.id) ? 'wiped' : 'down'}`
        const { role, term, log, applied, commit, flushed, memberships, recovering } = node.core
        const members = memberships.map(at => `${at.index}:${JSON.stringify(at.membership)}`).join(' ')
        return `${node.id} ${role}${recovering ? ' recovering' : ''} term ${term} base ${log.base.index} applied ${applied} commit ${commit} flushed ${flushed} last ${log.last} ${isVoter(memberships[memberships.length - 1]!.membership, node.id) ? 'voter' : ''} ${members}`
      })
      .join('\n  ')
  }
}

function isVote(message: Message): boolean {
  if (message.type === 'vote') return !message.pre
  return message.type === 'voteReply' && !message.pre && message.granted
}

/** Which faults a run has, and how often. Many runs with few kinds find more than runs that have everything. */
function drawFaults(random: SimRandom) {
  const often = (chance: number, fromMs: number, toMs: number) =>
    random.chance(chance) ? random.between(fromMs, toMs) : Number.POSITIVE_INFINITY
  const wild = random.chance(0.5)
  return {
    proposeMs: random.pick([2, 10, 40]),
    crashMs: often(0.7, 300, 3000),
    crashChance: random.chance(0.3) ? 0.0005 : 0,
    crashAfterVote: random.chance(0.4) ? 0.5 : 0,
    // Close together: several stand at once.
    electionMsMax: random.chance(0.4) ? 310 : 600,
    partitionMs: often(0.6, 200, 2500),
    resetMs: often(0.6, 50, 1000),
    stopMs: often(0.3, 500, 3000),
    fullMs: often(0.3, 300, 2000),
    trimMs: often(0.6, 100, 1000),
    memberMs: often(0.5, 100, 1000),
    transferMs: often(0.4, 300, 3000),
    breakMs: often(0.4, 1000, 5000),
    network: {
      delayMs: random.pick([
        [0.1, 1],
        [0.1, 5],
        [1, 40],
      ] as const),
      slow: random.pick([0, 0.01, 0.05]),
      loss: wild ? random.between(0, 0.05) : 0,
      duplicate: wild ? random.between(0, 0.05) : 0,
      disorder: wild ? random.between(0, 0.1) : 0,
    },
  }
}

export type { SimEntry }
