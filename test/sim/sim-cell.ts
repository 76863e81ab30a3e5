/**
 * A simulated cell: machines with safekeepers, the network between them and their clients, the object store; who is up, who leads,
 * and what is known to be lost at present. Each answer goes by the checker on its way to the client.
 */
import type { Connection } from '../../protocol/connection.ts'
import { type Address, formatAddress } from '../../protocol/dial.ts'
import { PalimpsestError } from '../../protocol/errors.ts'
import type { TimelineId } from '../../protocol/ids.ts'
import { type Message, MessageType, type ReplyMessage } from '../../protocol/messages.ts'
import type { Driver } from '../../server/safekeeper/driver.ts'
import { MemoryObjectStore } from '../support/memory-object-store.ts'
import { ByteNetwork } from './byte-network.ts'
import { Violation } from './core-checker.ts'
import type { Damage } from './damage.ts'
import { type ModelTimeline, NodeChecker } from './node-checker.ts'
import type { ClientWorld } from './node-clients.ts'
import { SimConnection, type SimContext, SimServerEnd } from './sim-connection.ts'
import { Life } from './sim-disk.ts'
import { type HostUser, SimHost } from './sim-host.ts'
import { type SimRandom, World } from './world.ts'

export interface SimCellOptions {
  readonly seed: number
  readonly canary?: NodeCanaryName | undefined
  readonly trace?: ((line: string) => void) | undefined
}

/**
 * Deliberate mistakes that must be found. `lying-disk`: syncs that say they were done and were not; `ack-before-sync`: syncs of the log
 * that say so when they begin; `forget-vote`: a node that starts has its term, and not what it voted in it.
 */
export const NODE_CANARIES = ['lying-disk', 'ack-before-sync', 'forget-vote'] as const
export type NodeCanaryName = (typeof NODE_CANARIES)[number]

export class SimCell implements HostUser, ClientWorld {
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
  /** The first one found. */
  violation: Error | undefined
  /** Has lost or damaged what it had acknowledged, and not got it back yet. */
  damaged: { readonly host: SimHost; readonly what: Damage | undefined; looking: boolean } | undefined
  /** Members are being changed. */
  changing = false
  /** Spare machines that are in no cell. */
  readonly outside = new Set<string>()
  /** The first members. */
  readonly first: ReadonlyMap<string, Address>
  /** Of what is planned, and of what befalls all. */
  readonly random: SimRandom

  constructor(options: SimCellOptions) {
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

  /** A stream of chance of its own. */
  fork(name: string): SimRandom {
    return this.random.fork(name)
  }

  /** Somebody who is at work until the end of the world. */
  go(name: string, run: (random: SimRandom) => Promise<void>): void {
    run(this.fork(name)).catch(error => this.fail(error as Error))
  }

  // ---- who is there ----

  up(): SimHost[] {
    return [...this.hosts.values()].filter(host => host.isUp)
  }

  somebody(random: SimRandom): SimHost | undefined {
    const up = this.up()
    const leading = up.filter(host => host.node?.leading !== undefined)
    if (leading.length > 0 && random.chance(0.4)) return random.pick(leading)
    return up.length === 0 ? undefined : random.pick(up)
  }

  leader(): SimHost | undefined {
    return this.up()
      .filter(host => host.node!.leading !== undefined)
      .sort((a, b) => b.node!.driver.term - a.node!.driver.term)[0]
  }

  /** Voters, as the leader has it, that are up. There must be a leader. */
  members(): SimHost[] {
    const { voters } = this.leader()!.node!.members.membership
    return this.up().filter(host => voters.includes(host.nodeId!))
  }

  // ---- connections ----

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
}
