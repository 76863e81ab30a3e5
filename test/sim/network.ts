/**
 * A simulated network of whole messages. Each pair has a connection in each direction, which keeps their order; a reset gives
 * a new one, and what was under way on the old one is lost, or still comes, even after what the new one brings. Rates beyond that
 * (loss, doubles, disorder on one connection) are more than TCP would do; the rules of consensus must stand them too.
 */
import type { SimRandom, World } from './world.ts'

export interface NetworkRates {
  /** Delay of a message, milliseconds: [min, max), and now and then ten times as much. */
  readonly delayMs: readonly [number, number]
  readonly slow: number
  readonly loss: number
  readonly duplicate: number
  readonly disorder: number
}

export interface NetworkUser<M> {
  deliver(from: string, to: string, message: M): void
  /** `at` notices that its connection to `peer` broke. */
  lost(at: string, peer: string): void
}

export class SimNetwork<M> {
  rates: NetworkRates
  sent = 0
  private readonly world: World
  private readonly random: SimRandom
  private readonly user: NetworkUser<M>
  /** `from>to`: nothing gets through. */
  private readonly blocked = new Set<string>()
  private readonly connections = new Map<string, { generation: number; lastMs: number }>()
  /** Of a process; what was meant for an earlier one never arrives. */
  private readonly processes = new Map<string, number>()

  constructor(world: World, rates: NetworkRates, user: NetworkUser<M>) {
    this.world = world
    this.random = world.random.fork('network')
    this.rates = rates
    this.user = user
  }

  send(from: string, to: string, message: M): void {
    this.sent++
    const { random, rates } = this
    const connection = this.connection(from, to)
    if (this.blocked.has(`${from}>${to}`) || random.chance(rates.loss)) return
    this.carry(from, to, message, connection)
    if (random.chance(rates.duplicate)) this.carry(from, to, message, connection)
  }

  /** Nothing from `from` reaches `to`, but perhaps the other way round. */
  block(from: string, to: string): void {
    this.blocked.add(`${from}>${to}`)
  }

  unblockAll(): void {
    this.blocked.clear()
  }

  /** The connections between two break. Each side notices, later, or not at all (half-open). */
  reset(a: string, b: string): void {
    for (const [at, peer] of [
      [a, b],
      [b, a],
    ] as const) {
      this.connection(peer, at).generation++
      if (this.random.chance(0.8))
        this.world.after(this.random.between(0, 20), () => this.user.lost(at, peer))
    }
  }

  /** The process of a node ends. */
  end(node: string, peers: Iterable<string>): void {
    this.processes.set(node, (this.processes.get(node) ?? 0) + 1)
    for (const peer of peers) {
      if (peer !== node) this.reset(node, peer)
    }
  }

  private connection(from: string, to: string): { generation: number; lastMs: number } {
    const key = `${from}>${to}`
    let connection = this.connections.get(key)
    if (connection === undefined) {
      connection = { generation: 0, lastMs: 0 }
      this.connections.set(key, connection)
    }
    return connection
  }

  private carry(
    from: string,
    to: string,
    message: M,
    connection: { generation: number; lastMs: number },
  ): void {
    const { random, rates, world } = this
    let delay = random.between(...rates.delayMs)
    if (random.chance(rates.slow)) delay *= 10
    let atMs = world.nowMs + delay
    if (!random.chance(rates.disorder)) {
      atMs = Math.max(atMs, connection.lastMs)
      connection.lastMs = atMs
    }
    const { generation } = connection
    const process = this.processes.get(to)
    const survives = random.chance(0.5)
    world.at(atMs, () => {
      if (this.processes.get(to) !== process || this.blocked.has(`${from}>${to}`)) return
      if (connection.generation !== generation && !survives) return
      this.user.deliver(from, to, message)
    })
  }
}
