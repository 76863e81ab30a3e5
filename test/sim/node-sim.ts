/**
 * Simulation of whole safekeepers: the production node (bootstrap, driver, log with recovery and packs, peers, members, backup, and
 * the services for clients, through the wire's codec) over simulated disks, clocks, network and object store. One seed, one run: a
 * safety phase with faults everywhere, then all is healed and progress is demanded. node-checker.ts tells what must hold.
 *
 * At any moment at most one node has lost or damaged what it had acknowledged, and no membership is changed meanwhile; so each run
 * can be won. Damage must be gone again by the end, without a restart where it was made without one.
 */
import type { Connection } from '../../protocol/connection.ts'
import { type Address, formatAddress } from '../../protocol/dial.ts'
import { PalimpsestError } from '../../protocol/errors.ts'
import type { Lsn, TimelineId } from '../../protocol/ids.ts'
import { type Message, MessageType, type ReplyMessage } from '../../protocol/messages.ts'
import { BackupManifestObject, backupEnd } from '../../server/safekeeper/backup-manifest.ts'
import { backupNote } from '../../server/safekeeper/backup-note.ts'
import { verifyBackup } from '../../server/safekeeper/backup-restore.ts'
import type { Driver } from '../../server/safekeeper/driver.ts'
import type { CellNode } from '../../server/safekeeper/node.ts'
import { decompressInPlace } from '../../server/shared/zstd.ts'
import { MemoryObjectStore } from '../support/memory-object-store.ts'
import { ByteNetwork } from './byte-network.ts'
import { Violation } from './core-checker.ts'
import { type Damage, flipBit } from './damage.ts'
import { ModelTimeline, NodeChecker } from './node-checker.ts'
import { Asker, type ClientWorld, claim, consume, read, readThrough, write } from './node-clients.ts'
import { restoreAndCompare } from './restore.ts'
import { SimConnection, type SimContext, SimServerEnd } from './sim-connection.ts'
import { Life } from './sim-disk.ts'
import { type HostUser, SimHost } from './sim-host.ts'
import { type SimRandom, World } from './world.ts'

export interface NodeSimOptions {
  readonly seed: number
  /** Of the safety phase. */
  readonly safetyMs?: number | undefined
  readonly canary?: NodeCanaryName | undefined
  readonly trace?: ((line: string) => void) | undefined
}

/**
 * Deliberate mistakes that must be found. `lying-disk`: syncs that say they were done and were not; `ack-before-sync`: syncs of the log
 * that say so when they begin; `forget-vote`: a node that starts has its term, and not what it voted in it.
 */
export const NODE_CANARIES = ['lying-disk', 'ack-before-sync', 'forget-vote'] as const
export type NodeCanaryName = (typeof NODE_CANARIES)[number]

export interface NodeSimResult {
  readonly seed: number
  readonly events: number
  readonly simulatedMs: number
  readonly leaders: number
  readonly acks: number
  readonly chunksRead: number
  readonly durabilityChecks: number
  readonly starts: number
  readonly damages: number
  readonly repaired: number
  readonly restores: number
}

const SAFETY_MS = 12_000
/** Until all must be well again. */
const HEAL_MS = 120_000
const TIMELINES_MAX = 6
const EVENTS_WAITING_MAX = 200_000

const settled = () => new Promise<void>(resolve => setImmediate(resolve))

export class NodeSim implements HostUser, ClientWorld {
  readonly world: World
  readonly checker: NodeChecker
  readonly life: Life
  readonly hosts = new Map<string, SimHost>()
  readonly network: ByteNetwork
  readonly store: HostUser['store']
  readonly lies: boolean
  readonly canary: NodeCanaryName | undefined
  readonly trace: HostUser['trace']
  isHealing = false
  isOver = false
  private readonly options: NodeSimOptions
  private readonly random: SimRandom
  private violation: Error | undefined
  /** Has lost or damaged what it had acknowledged, and not got it back yet. */
  private damaged: { readonly host: SimHost; readonly what: Damage | undefined; looking: boolean } | undefined
  private damages = 0
  private restores = 0
  private readonly repaired = new Map<object, number>()
  private changing = false
  /** Spare machines that are in no cell. */
  private readonly outside = new Set<string>()
  private names = 0
  /** Wiped, and shall not come back before the leader knows that the old one is away. */
  private readonly first: ReadonlyMap<string, Address>

  constructor(options: NodeSimOptions) {
    this.options = options
    this.trace = options.trace
    this.canary = options.canary
    this.world = new World(`node ${options.seed}`)
    this.random = this.world.random.fork('plan')
    this.life = new Life(this.world)
    this.lies = options.canary === 'lying-disk'
    const random = this.random.fork('set-up')
    this.network = new ByteNetwork(this.world, {
      delayMs: random.pick([
        [0.05, 0.5],
        [0.1, 2],
        [1, 15],
      ] as const),
      slow: random.pick([0, 0.01, 0.05]),
      split: random.pick([0, 0.1, 0.5]),
    })
    this.store = random.chance(0.5)
      ? { inner: new MemoryObjectStore(), failing: random.pick([0, 0.02, 0.15]) }
      : undefined
    this.checker = new NodeChecker(this.hosts, error => this.fail(error))
    const members = random.pick(['abc', 'abc', 'abcde'])
    this.first = new Map([...members].map((name, i) => [name, { host: `10.0.0.${i + 1}`, port: 7000 }]))
    for (const [name, address] of this.first)
      this.hosts.set(name, new SimHost(this, name, address, { peers: this.first, join: [] }))
    if (random.chance(0.5)) {
      const address = { host: '10.0.0.9', port: 7000 }
      this.hosts.set(
        'x',
        new SimHost(this, 'x', address, { peers: new Map(), join: [...this.first.values()] }),
      )
      this.outside.add('x')
    }
  }

  get addresses(): readonly Address[] {
    return [...this.hosts.values()].filter(host => !this.outside.has(host.name)).map(host => host.address)
  }

  fail(error: Error): void {
    this.violation ??= error
  }

  // ---- the run ----

  async run(): Promise<NodeSimResult> {
    const onRejection = (reason: unknown) => {
      const error = reason instanceof Error ? reason : new Error(String(reason))
      this.fail(new Violation(`a promise was rejected and nobody looked: ${error.stack}`))
    }
    process.on('unhandledRejection', onRejection)
    try {
      await this.play()
    } finally {
      await settled()
      process.off('unhandledRejection', onRejection)
      // What is left over never runs.
      for (const host of this.hosts.values()) if (host.life !== undefined) host.life.alive = false
      this.life.alive = false
    }
    const { checker, world } = this
    return {
      seed: this.options.seed,
      events: world.events,
      simulatedMs: Math.round(world.nowMs),
      leaders: checker.leaders,
      acks: checker.acks,
      chunksRead: checker.chunksRead,
      durabilityChecks: checker.durabilityChecks,
      starts: [...this.hosts.values()].reduce((sum, host) => sum + host.starts, 0),
      damages: this.damages,
      repaired: [...this.repaired.values()].reduce((sum, count) => sum + count, 0),
      restores: this.restores,
    }
  }

  private async play(): Promise<void> {
    const { random } = this
    for (const host of this.hosts.values()) this.world.after(random.between(0, 300), () => host.start())
    for (let n = random.int(1, 3); n > 0; n--) this.go(`timeline ${n}`, r => this.newTimeline(r))
    this.go('more timelines', r => this.moreTimelines(r))
    for (let n = 1; n <= 2; n++) this.go(`reader ${n}`, r => read(this, `reader ${n}`, r))
    const { fork } = this
    const plan = fork('faults')
    const often = plan.pick([1, 2, 4])
    this.plan('crash', 900 * often, r => this.crash(r))
    this.plan('crash at an operation', 700 * often, r => this.crashAtOperation(r))
    this.plan('stop', 4000 * often, r => void this.somebody(r)?.stop())
    this.plan('failing sync', 3000 * often, r => this.failSync(r))
    this.plan('full disk', 4000 * often, r => this.fill(r))
    this.plan('partition', 1500 * often, r => this.partition(r))
    this.plan('reset', 500 * often, r => this.reset(r))
    this.plan('slow disk', 1500 * often, r => this.slow(r))
    this.plan('clock', 1000, r => this.stepClock(r))
    this.plan('damage', 900 * often, r => this.damage(r))
    this.plan('restore', 5000, () => void this.restore().catch(error => this.fail(error as Error)))
    this.plan('transfer', 2500, r => this.transfer(r))
    this.plan('members', 3000, r => void this.changeMembers(r).catch(error => this.fail(error as Error)))
    await this.until(this.options.safetyMs ?? SAFETY_MS, () => false)
    await this.heal()
  }

  private readonly fork = (name: string) => this.random.fork(name)

  private go(name: string, run: (random: SimRandom) => Promise<void>): void {
    run(this.fork(name)).catch(error => this.fail(error as Error))
  }

  private plan(name: string, meanMs: number, run: (random: SimRandom) => void): void {
    const random = this.fork(name)
    const again = () => {
      if (this.isHealing) return
      run(random)
      this.world.after(random.between(0, 2 * meanMs), again)
    }
    this.world.after(500 + random.between(0, 2 * meanMs), again)
  }

  /** Lets the world go on until then. Throws the first violation. */
  private async until(ms: number, isOver: () => boolean): Promise<boolean> {
    const { world } = this
    while (world.nowMs < ms) {
      world.runUntil(ms, () => true)
      await settled()
      this.look()
      if (this.violation !== undefined) throw this.violation
      if (isOver()) return true
    }
    return false
  }

  private look(): void {
    this.checker.look()
    if (this.world.waiting > EVENTS_WAITING_MAX) this.fail(new Violation(`${this.world.waiting} events wait`))
    for (const host of this.hosts.values())
      if (this.world.nowMs > host.mustEndBeforeMs)
        this.fail(new Violation(`${host.name} goes on 2 s after a sync of its log or vote failed`))
    if (this.world.events % 256 === 0) {
      void this.lookAtDamage()
      for (const { node } of this.up()) {
        const stats = node!.logStats
        if (stats !== undefined) this.repaired.set(node!, stats.damagesRepaired + stats.smallFilesRepaired)
      }
    }
    if (this.world.events % 512 === 0 && this.store !== undefined) void this.lookAtBackup(this.store.inner)
  }

  /** No log begins beyond the end of the cell's backup. */
  private async lookAtBackup(store: MemoryObjectStore): Promise<void> {
    const begins = this.up()
      .map(host => ({ host, ...host.node!.status() }))
      .filter(({ beginIndex }) => beginIndex > 1)
    if (begins.length === 0) return
    const manifest = await new BackupManifestObject(store, begins[0]!.cellId).load()
    const end = manifest === undefined ? 0 : backupEnd(manifest).index
    for (const { host, beginIndex } of begins)
      this.checker.demand(beginIndex <= end + 1, () => {
        return `the log of ${host.name} begins at ${beginIndex}, but its backup ends at ${end}`
      })
  }

  // ---- hosts ----

  connect(host: SimHost, life: Life, address: Address, forward: boolean): Promise<Connection> {
    return this.open(host.name, life, address, forward)
  }

  dial(client: string, address: Address, forward: boolean): Promise<Connection> {
    return this.open(client, this.life, address, forward)
  }

  private async open(from: string, life: Life, address: Address, forward: boolean): Promise<Connection> {
    const { network } = this
    const text = formatAddress(address)
    const target = [...this.hosts.values()].find(host => formatAddress(host.address) === text)
    await life.sleep(network.delayMs() * 2)
    if (
      target === undefined ||
      network.isBlocked(from, target.name) ||
      network.isBlocked(target.name, from)
    ) {
      await life.sleep(5000)
      throw new PalimpsestError('retry', `cannot connect to ${text}: no hello within 5000 ms`)
    }
    const server = target.server()
    if (server === undefined)
      throw new PalimpsestError('retry', `cannot connect to ${text}: connect ECONNREFUSED`)
    const link = network.open(from, target.name)
    new SimServerEnd(
      link,
      { ...server, answered: (request, reply, context) => this.answered(target, request, reply, context) },
      forward,
    )
    return new SimConnection(link, life, text, 5000).connection
  }

  ended(host: SimHost, own: Error | undefined): void {
    this.network.hostEnds(host.name)
    const isFull = host.disk.capacity !== Number.POSITIVE_INFINITY
    if (own !== undefined && !host.hadFault && !(isFull && /ENOSPC/.test(String(own.message + own.cause))))
      this.fail(new Violation(`${host.name} ends by itself, and no fault was made: ${own.stack}`))
    const { random } = this
    const awayMs = random.chance(0.5) ? random.between(1, 100) : random.between(50, 2500)
    this.world.after(awayMs, () => host.start())
  }

  voteSaved(host: SimHost): void {
    const { vote, nodeId } = host
    if (vote !== undefined && nodeId !== undefined) this.checker.voted(nodeId, vote)
  }

  answered(host: SimHost, request: Message, reply: ReplyMessage, context: SimContext): void {
    const { node } = host
    if (node === undefined || node.leading === undefined) return
    const { term } = node.driver
    const { checker } = this
    const timeline = 'timeline' in request ? checker.timelines.get(request.timeline as TimelineId) : undefined
    if (timeline === undefined) return
    if (request.type === MessageType.WalAppend && reply.type === MessageType.WalAppended) {
      const { begin, end, crc } = context.appended!
      checker.acknowledged(host, timeline, { begin, end, crc }, this.random.chance(this.lies ? 0.2 : 0.03))
    } else if (request.type === MessageType.WalOpen && reply.type === MessageType.WalOpened)
      checker.opened(host, timeline, reply.epoch, reply.endLsn)
    else if (request.type === MessageType.WalCreate) this.made(timeline, node.driver)
    else if (request.type === MessageType.WalBranch && reply.type === MessageType.WalBranched) {
      if (timeline.madeIn > 0)
        checker.demand(
          timeline.startLsn === reply.lsn,
          () => `${timeline.name} is told to begin at ${reply.lsn}`,
        )
      else timeline.startLsn = timeline.ackedEnd = reply.lsn
      this.made(timeline, node.driver)
    } else if (request.type === MessageType.WalDelete) {
      timeline.deletedIn ||= term
      timeline.deletedAt ||= node.driver.state.last.index
    }
  }

  private made(timeline: ModelTimeline, { term, state }: Driver): void {
    timeline.madeIn ||= term
    timeline.madeAt ||= state.last.index
  }

  // ---- timelines ----

  private newId(random: SimRandom): TimelineId {
    return Array.from({ length: 16 }, () => random.int(0, 255).toString(16).padStart(2, '0')).join(
      '',
    ) as TimelineId
  }

  private async newTimeline(random: SimRandom): Promise<void> {
    const name = `t${++this.names}`
    const timeline = new ModelTimeline(this.newId(random), name, random.int(1, 100_000))
    this.checker.timelines.set(timeline.id, timeline)
    const asker = new Asker(this, `maker of ${name}`, random)
    await asker.insist(connection =>
      connection.request({
        type: MessageType.WalCreate,
        timeline: timeline.id,
        startLsn: timeline.startLsn as Lsn,
        name,
      }),
    )
    await this.use(timeline, asker, random)
  }

  /** Consumers and writers of a timeline that is there. */
  private async use(timeline: ModelTimeline, asker: Asker, random: SimRandom): Promise<void> {
    const consumers = Array.from({ length: random.int(1, 2) }, (_, n) => `c${n + 1}`)
    // All of them before the first goes on: nothing is kept for one that the cell does not know yet.
    for (const consumer of consumers) {
      timeline.consumers.set(consumer, timeline.startLsn)
      await asker.insist(connection => claim(connection, timeline, consumer, timeline.startLsn))
    }
    for (const consumer of consumers)
      if (random.chance(0.8))
        this.go(`${consumer} of ${timeline.name}`, r => consume(this, timeline, consumer, r))
    timeline.isInUse = true
    const writers = random.pick([1, 1, 2])
    for (let n = 1; n <= writers; n++)
      this.go(`w${n} of ${timeline.name}`, r => write(this, timeline, `w${n}-${timeline.id.slice(0, 4)}`, r))
  }

  private async moreTimelines(random: SimRandom): Promise<void> {
    while (!this.isHealing) {
      await this.life.sleep(random.between(200, 2500))
      if (this.isHealing) return
      // Its maker must have heard of it: who asks again for what has another name by now is refused.
      const alive = [...this.checker.timelines.values()].filter(
        timeline => timeline.isAlive && timeline.isInUse,
      )
      const what = random.next()
      if (what < 0.2 && alive.length < TIMELINES_MAX) await this.newTimeline(random)
      else if (alive.length === 0) continue
      else if (what < 0.5 && alive.length < TIMELINES_MAX) await this.branch(random.pick(alive), random)
      else if (what < 0.7) await this.rename(random.pick(alive), random)
      else {
        const leaves = alive.filter(timeline => timeline.branches === 0)
        if (leaves.length > 0 && alive.length > 1) await this.delete(random.pick(leaves), random)
      }
    }
  }

  private async branch(from: ModelTimeline, random: SimRandom): Promise<void> {
    const ends = [...from.chunks.values()].map(chunk => chunk.end).filter(end => end > from.neededFrom)
    if (ends.length === 0) return
    const name = `t${++this.names}`
    const timeline = new ModelTimeline(this.newId(random), name, 0, from)
    from.branches++
    this.checker.timelines.set(timeline.id, timeline)
    const lsn = random.pick(ends) as Lsn
    const asker = new Asker(this, `maker of ${name}`, random)
    const request = {
      type: MessageType.WalBranch,
      timeline: timeline.id,
      ancestor: from.id,
      lsn,
      name,
    } as const
    await asker.insist(connection => connection.request(request))
    await this.use(timeline, asker, random)
  }

  private async rename(timeline: ModelTimeline, random: SimRandom): Promise<void> {
    const name = `t${++this.names}`
    const asker = new Asker(this, `renamer of ${timeline.name}`, random)
    await asker.insist(connection =>
      connection.request({ type: MessageType.WalRename, timeline: timeline.id, name }),
    )
    timeline.name = name
  }

  private async delete(timeline: ModelTimeline, random: SimRandom): Promise<void> {
    timeline.deleting = true
    const asker = new Asker(this, `remover of ${timeline.name}`, random)
    await asker.insist(connection =>
      connection.request({ type: MessageType.WalDelete, timeline: timeline.id }),
    )
    if (timeline.ancestor !== undefined) timeline.ancestor.branches--
  }

  // ---- faults ----

  private up(): SimHost[] {
    return [...this.hosts.values()].filter(host => host.isUp)
  }

  private somebody(random: SimRandom): SimHost | undefined {
    const up = this.up()
    const leading = up.filter(host => host.node?.leading !== undefined)
    if (leading.length > 0 && random.chance(0.4)) return random.pick(leading)
    return up.length === 0 ? undefined : random.pick(up)
  }

  private crash(random: SimRandom): void {
    if (random.chance(0.08)) for (const host of this.up()) host.crash()
    else this.somebody(random)?.crash()
  }

  private crashAtOperation(random: SimRandom): void {
    const host = this.somebody(random)
    if (host !== undefined) host.faults.crashIn = random.int(1, 40)
  }

  private failSync(random: SimRandom): void {
    const host = this.somebody(random)
    if (host !== undefined) host.faults.failSyncIn = random.int(1, 10)
  }

  private fill(random: SimRandom): void {
    const host = this.somebody(random)
    if (host === undefined) return
    host.disk.capacity = host.disk.used + random.int(0, 200_000)
    this.world.after(random.between(200, 3000), () => {
      host.disk.capacity = Number.POSITIVE_INFINITY
    })
  }

  private partition(random: SimRandom): void {
    const { network } = this
    network.unblockAll()
    if (random.chance(0.4)) return
    const names = [...this.hosts.keys()]
    if (random.chance(0.6)) {
      const side = new Set(names.filter(() => random.chance(0.4)))
      const how = random.pick(['both', 'out', 'in'])
      for (const a of side)
        for (const b of names) {
          if (side.has(b)) continue
          if (how !== 'in') network.block(a, b)
          if (how !== 'out') network.block(b, a)
        }
    } else for (let n = random.int(1, 3); n > 0; n--) network.block(random.pick(names), random.pick(names))
    this.world.after(random.between(100, 4000), () => network.unblockAll())
  }

  private reset(random: SimRandom): void {
    const name = random.pick([...this.hosts.keys()])
    const chance = random.pick([0.2, 1])
    this.network.reset(link => (link.client === name || link.server === name) && random.chance(chance))
  }

  private slow(random: SimRandom): void {
    const host = this.somebody(random)
    if (host === undefined) return
    host.faults.slowness = random.pick([3, 20, 200])
    this.world.after(random.between(100, 2000), () => {
      host.faults.slowness = 1
    })
  }

  private stepClock(random: SimRandom): void {
    const host = random.pick([...this.hosts.values()])
    host.wall.stepUs = Math.round(random.between(-1e12, 1e12))
  }

  /** A disk is lost, or a bit of it turns over, at rest or under a node that runs; only where the others make up for it. */
  private damage(random: SimRandom): void {
    if (this.damaged !== undefined || this.changing || this.lies) return
    const leader = this.leader()
    const membership = leader?.node?.members.membership
    if (membership === undefined || membership.outgoing !== undefined || membership.voters.length < 3) return
    const members = [...this.hosts.values()].filter(
      host => host.nodeId !== undefined && membership.voters.includes(host.nodeId),
    )
    // Another incarnation may have got in without our knowing which.
    if (members.length < membership.voters.length) return
    const host = random.pick(members)
    const isRunning = random.chance(0.5)
    if (!isRunning) host.crash()
    if (!isRunning && random.chance(0.4)) {
      this.trace?.(`${this.world.nowMs.toFixed(1)} ${host.name} loses its disk`)
      this.damaged = { host, what: undefined, looking: false }
      this.checker.forgotten.add(host.nodeId!)
      host.wipe()
      return
    }
    const what = flipBit(host.disk, random)
    this.trace?.(`${this.world.nowMs.toFixed(1)} ${host.name}: ${what?.what ?? 'nothing to damage'}`)
    if (what === undefined) return
    this.damages++
    this.damaged = { host, what, looking: false }
    this.checker.forgotten.add(host.nodeId!)
  }

  private leader(): SimHost | undefined {
    return this.up()
      .filter(host => host.node!.leading !== undefined)
      .sort((a, b) => b.node!.driver.term - a.node!.driver.term)[0]
  }

  /** Whether what was damaged has everything again. */
  private async lookAtDamage(): Promise<void> {
    const { damaged } = this
    if (damaged === undefined || damaged.looking) return
    const { host, what } = damaged
    const leader = this.leader()
    if (leader === undefined || host.node === undefined) return
    const { membership } = leader.node!.members
    if (membership.outgoing !== undefined || !membership.voters.includes(host.nodeId!)) return
    const status = host.node.status()
    if (status.role === 'waiting' || status.role === 'recovering') return
    if (status.flushedIndex < leader.node!.driver.commitIndex || status.term !== leader.node!.driver.term)
      return
    if (what !== undefined) {
      damaged.looking = true
      const isMended = await what.isMended(host.disk)
      damaged.looking = false
      if (!isMended || this.damaged !== damaged) return
    }
    this.trace?.(`${this.world.nowMs.toFixed(1)} ${host.name} is whole again`)
    this.checker.forgotten.delete(host.nodeId!)
    this.damaged = undefined
  }

  /** Another cell is made from the backup as it is now, and compared with what is known. */
  private async restore(): Promise<void> {
    const inner = this.store?.inner
    const [host] = this.up()
    if (inner === undefined || host === undefined) return
    const { cellId } = host.node!.status()
    const noted = Math.max(
      ...this.up().map(({ node }) => (node!.unready === 'it is in no cell yet' ? 0 : this.notedBy(node!))),
    )
    if (noted === 0 || cellId === '') return
    const chunks = await restoreAndCompare(this, inner, cellId, noted)
    this.restores++
    this.trace?.(`${this.world.nowMs.toFixed(1)} restored up to ${noted}, ${chunks} chunks`)
  }

  private notedBy(node: CellNode): number {
    return backupNote(node.driver.state)?.done ?? 0
  }

  private transfer(random: SimRandom): void {
    const leader = this.leader()
    if (leader === undefined) return
    const name = random.pick([...this.hosts.keys()])
    leader.node!.members.transfer(name).catch(() => {})
  }

  private async changeMembers(random: SimRandom): Promise<void> {
    if (this.changing || this.damaged !== undefined) return
    const leader = this.leader()
    const membership = leader?.node?.members.membership
    if (membership === undefined || membership.outgoing !== undefined) return
    const names = membership.voters.map(id => id.slice(0, id.lastIndexOf('.')))
    const [spare] = this.outside
    const asker = new Asker(this, 'operator', random)
    let request: Parameters<Connection['request']>[0]
    let out: string | undefined
    if (spare !== undefined && random.chance(0.7)) {
      const address = formatAddress(this.hosts.get(spare)!.address)
      out = random.chance(0.5) ? random.pick(names) : undefined
      request =
        out === undefined
          ? { type: MessageType.MemberAdd, name: spare, address }
          : { type: MessageType.MemberReplace, old: out, name: spare, address }
    } else {
      if (names.length <= 3) return
      out = random.pick(names)
      request = { type: MessageType.MemberRemove, name: out }
    }
    this.changing = true
    this.trace?.(`${this.world.nowMs.toFixed(1)} operator: ${JSON.stringify(request)}`)
    if (spare !== undefined && request.type !== MessageType.MemberRemove) this.outside.delete(spare)
    const done = await asker
      .insist(connection => connection.request(request, { deadlineMs: 20_000 }))
      .catch((error: PalimpsestError) => {
        // Removed, the answer lost, and whoever leads now does not remember that it was a member.
        if (request.type === MessageType.MemberRemove && error.message.includes('has no member')) return true
        throw error
      })
    this.trace?.(`${this.world.nowMs.toFixed(1)} operator: ${done === undefined ? 'gave up' : 'done'}`)
    this.changing = false
    if (out === undefined || done === undefined) return
    // It is taken away, and comes back as a spare with a new disk.
    this.outside.add(out)
    const host = this.hosts.get(out)!
    if (!host.isDown) host.crash()
    host.wipe({ peers: new Map(), join: [...this.first.values()] })
  }

  // ---- the end ----

  private async heal(): Promise<void> {
    const { world, network, checker } = this
    this.isHealing = true
    this.trace?.(`${world.nowMs.toFixed(1)} healing`)
    network.unblockAll()
    if (this.store !== undefined) this.store.failing = 0
    for (const host of this.hosts.values()) {
      host.disk.capacity = Number.POSITIVE_INFINITY
      Object.assign(host.faults, { slowness: 1, crashIn: 0, failSyncIn: 0 })
      host.start()
    }
    const timelines = () => [...checker.timelines.values()].filter(timeline => timeline.isAlive)
    const untilMs = world.nowMs + HEAL_MS
    let why = ''
    const before = new Map(timelines().map(timeline => [timeline, timeline.acks]))
    const isWell = () => {
      why = this.whyNotWell()
      if (why !== '') return false
      const stuck = timelines().find(timeline => timeline.acks <= (before.get(timeline) ?? 0))
      if (stuck !== undefined) why = `nothing more is acknowledged of ${stuck.name}`
      return why === ''
    }
    if (!(await this.until(untilMs, isWell)))
      throw new Violation(`not well ${HEAL_MS / 1000} s after all faults ended: ${why}`)
    this.isOver = true
    // Writers end what they are at.
    const quiet = () => this.whyNotWell() === '' && this.isEven()
    const restMs = world.nowMs + 12_000
    await this.until(restMs, () => false)
    if (!(await this.until(world.nowMs + HEAL_MS, quiet)))
      throw new Violation('the nodes did not come to have the same')
    let done = false
    this.go('last reading', async () => {
      await this.readAll(timelines())
      done = true
    })
    if (!(await this.until(world.nowMs + HEAL_MS, () => done)))
      throw new Violation('the last reading did not end')
    if (this.store !== undefined) await this.checkBackup(this.store.inner)
    if (this.violation !== undefined) throw this.violation
  }

  /** Empty if the cell is as it should be. */
  private whyNotWell(): string {
    const leader = this.leader()
    if (leader === undefined) return 'no leader'
    const { membership } = leader.node!.members
    if (membership.outgoing !== undefined) return 'a change of members is under way'
    if (this.changing) return 'the operator waits'
    if (this.damaged !== undefined) return `${this.damaged.host.name} has not got back what it lost`
    for (const id of membership.voters) {
      const host = this.up().find(up => up.nodeId === id)
      if (host === undefined) return `member ${id} is not there`
      const { role } = host.node!.driver
      if (role !== 'follower' && role !== 'leader') return `member ${id} is ${role}`
      if (host.node!.status().leader !== leader.nodeId) return `member ${id} does not follow ${leader.nodeId}`
    }
    return ''
  }

  private isEven(): boolean {
    const { commitIndex, state } = this.leader()!.node!.driver
    return (
      state.last.index === commitIndex &&
      this.members().every(host => host.node!.driver.state.last.index >= commitIndex)
    )
  }

  private members(): SimHost[] {
    const { voters } = this.leader()!.node!.members.membership
    return this.up().filter(host => voters.includes(host.nodeId!))
  }

  /** Everything that was acknowledged and is needed, from every member. */
  private async readAll(timelines: readonly ModelTimeline[]): Promise<void> {
    const { checker } = this
    for (const host of this.members())
      for (const timeline of timelines) {
        const from = Math.max(timeline.neededFrom, timeline.startLsn)
        const by = `the last reader at ${host.name}`
        const connection = await this.dial('last', host.address, false)
        try {
          const end = await readThrough(this, connection, timeline, from, by)
          checker.demand(end >= timeline.ackedEnd, () => {
            return `${by}: ${timeline.name} ends at ${end}, but ${timeline.ackedEnd} was acknowledged`
          })
        } catch (error) {
          throw new Violation(`${by} cannot read ${timeline.name} from ${from}: ${(error as Error).message}`)
        } finally {
          connection.close()
        }
      }
  }

  private async checkBackup(store: MemoryObjectStore): Promise<void> {
    const { node } = this.leader()!
    const { cellId } = node!.status()
    const applied = () =>
      this.leader()?.node?.driver.state.notes.get('backup') as { done?: number } | undefined
    const goal = node!.driver.commitIndex
    if (!(await this.until(this.world.nowMs + HEAL_MS, () => (applied()?.done ?? 0) >= goal - 4)))
      throw new Violation(`the backup stays at ${JSON.stringify(applied())}, the log at ${goal}`)
    const { manifest } = await verifyBackup(store, cellId)
    const end = manifest.packs.at(-1)?.last ?? manifest.base.index
    let done = false
    this.go('last restore', async () => {
      await this.restore()
      done = true
    })
    if (!(await this.until(this.world.nowMs + HEAL_MS, () => done)))
      throw new Violation('the last restore did not end')
    if (end < (applied()?.done ?? 0))
      throw new Violation(`the backup ends at ${end}, the cell notes ${applied()?.done}`)
  }
}

export function runNodeSim(options: NodeSimOptions): Promise<NodeSimResult> {
  decompressInPlace()
  return new NodeSim(options).run()
}
