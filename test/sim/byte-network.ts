/**
 * A simulated network of byte streams: connections that arrive in arbitrary chunks, late, in order; that break in the middle of a
 * message, noticed by both ends, by one, or by none before its keep-alive; and directions in which nothing passes for a while.
 * Both ends speak through the production codec (frames, CRCs, messages). What is left out is what stands around it in a real
 * connection: sockets, TLS, the hello, admission. sim-connection.ts has the ends.
 */
import type { SimRandom, World } from './world.ts'

export interface ByteRates {
  /** Of a chunk, milliseconds. */
  readonly delayMs: readonly [number, number]
  /** Chance that a chunk takes ten times as long. */
  readonly slow: number
  /** Chance that what is sent arrives in two pieces. */
  readonly split: number
}

const KEEP_ALIVE_MS = 15_000
/** What did not pass is sent again after that. */
const RETRANSMIT_MS = 100

export interface StreamEnd {
  /** Returns false when it wants no more for now; `Pipe.resume` then. */
  received(bytes: Uint8Array): boolean
  /** The connection is over, and this end knows. */
  broken(why: string): void
}

interface Piece {
  readonly bytes: Uint8Array
  readonly arrived: (() => void) | undefined
}

/** One direction. */
export class Pipe {
  waitingBytes = 0
  private readonly link: Link
  private readonly from: string
  private readonly to: string
  private readonly queue: Piece[] = []
  private readonly receiver: () => StreamEnd | undefined
  private pumping = false
  private stopped = false
  private drained: { readonly bytes: number; readonly resolve: () => void }[] = []

  constructor(link: Link, from: string, to: string, receiver: () => StreamEnd | undefined) {
    this.link = link
    this.from = from
    this.to = to
    this.receiver = receiver
  }

  /** `arrived` is called once, when the memory is free again. */
  send(bytes: Uint8Array, arrived?: () => void): void {
    if (this.link.isOver) {
      arrived?.()
      return
    }
    const { random, rates } = this.link.network
    this.waitingBytes += bytes.length
    if (bytes.length > 1 && random.chance(rates.split)) {
      const at = random.int(1, bytes.length - 1)
      this.queue.push({ bytes: bytes.subarray(0, at), arrived: undefined })
      this.queue.push({ bytes: bytes.subarray(at), arrived })
    } else this.queue.push({ bytes, arrived })
    this.pump()
  }

  resume(): void {
    this.stopped = false
    this.pump()
  }

  /** Resolves when no more than so many bytes wait. */
  whenBelow(bytes: number): Promise<void> {
    if (this.waitingBytes <= bytes || this.link.isOver) return Promise.resolve()
    return new Promise(resolve => {
      this.drained.push({ bytes, resolve })
    })
  }

  /** What is under way is lost. */
  drop(): void {
    for (const { arrived } of this.queue.splice(0)) arrived?.()
    this.waitingBytes = 0
    this.wake()
  }

  private wake(): void {
    const isIn = ({ bytes }: { bytes: number }) => this.waitingBytes > bytes && !this.link.isOver
    const ready = this.drained.filter(waiter => !isIn(waiter))
    this.drained = this.drained.filter(isIn)
    for (const { resolve } of ready) resolve()
  }

  private pump(): void {
    if (this.pumping || this.stopped || this.queue.length === 0) return
    this.pumping = true
    const { network } = this.link
    let delayMs = network.random.between(...network.rates.delayMs)
    if (network.random.chance(network.rates.slow)) delayMs *= 10
    network.world.after(delayMs, () => this.deliver())
  }

  private deliver(): void {
    const { network } = this.link
    if (this.link.isOver) {
      this.pumping = false
      return
    }
    if (network.isBlocked(this.from, this.to)) {
      network.world.after(RETRANSMIT_MS, () => this.deliver())
      return
    }
    this.pumping = false
    // All that has been sent by now travels together.
    const pieces = this.queue.splice(0, network.random.chance(0.2) ? 1 : this.queue.length)
    for (const { bytes, arrived } of pieces) {
      this.waitingBytes -= bytes.length
      const isOpen = this.receiver()?.received(bytes) ?? true
      arrived?.()
      if (!isOpen) this.stopped = true
      if (this.link.isOver) return
    }
    this.wake()
    this.pump()
  }
}

export class Link {
  readonly network: ByteNetwork
  readonly client: string
  readonly server: string
  readonly up: Pipe
  readonly down: Pipe
  clientEnd: StreamEnd | undefined
  serverEnd: StreamEnd | undefined
  isOver = false

  constructor(network: ByteNetwork, client: string, server: string) {
    this.network = network
    this.client = client
    this.server = server
    this.up = new Pipe(this, client, server, () => this.serverEnd)
    this.down = new Pipe(this, server, client, () => this.clientEnd)
  }

  /** One end closes, or its process ends; the other one is told by the network, or finds out by itself. */
  end(by: 'client' | 'server' | 'network', why: string): void {
    if (this.isOver) return
    this.isOver = true
    this.network.links.delete(this)
    this.up.drop()
    this.down.drop()
    if (by !== 'client') this.tell(() => this.clientEnd, this.server, this.client, why)
    if (by !== 'server') this.tell(() => this.serverEnd, this.client, this.server, why)
  }

  private tell(end: () => StreamEnd | undefined, from: string, to: string, why: string): void {
    const { random, world } = this.network
    const isTold = random.chance(0.85) && !this.network.isBlocked(from, to)
    world.after(isTold ? random.between(0, 20) : random.between(0.5, 1) * KEEP_ALIVE_MS, () =>
      end()?.broken(why),
    )
  }
}

export class ByteNetwork {
  readonly world: World
  readonly random: SimRandom
  rates: ByteRates
  readonly links = new Set<Link>()
  /** `from>to`. */
  private readonly blocked = new Set<string>()

  constructor(world: World, rates: ByteRates) {
    this.world = world
    this.random = world.random.fork('network')
    this.rates = rates
  }

  isBlocked(from: string, to: string): boolean {
    return this.blocked.size > 0 && this.blocked.has(`${from}>${to}`)
  }

  block(from: string, to: string): void {
    this.blocked.add(`${from}>${to}`)
  }

  unblockAll(): void {
    this.blocked.clear()
  }

  get blockedCount(): number {
    return this.blocked.size
  }

  /** Breaks connections for which `which` holds. */
  reset(which: (link: Link) => boolean): void {
    for (const link of [...this.links]) if (which(link)) link.end('network', 'ECONNRESET')
  }

  /** The process there is gone, with all of its connections. */
  hostEnds(host: string): void {
    for (const link of [...this.links]) {
      if (link.client === host) link.end('client', 'its process ended')
      else if (link.server === host) link.end('server', 'its process ended')
    }
  }

  open(client: string, server: string): Link {
    const link = new Link(this, client, server)
    this.links.add(link)
    return link
  }

  /** Of one way, for what is not a stream yet. */
  delayMs(): number {
    return this.random.between(...this.rates.delayMs)
  }
}
