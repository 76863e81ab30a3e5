/**
 * Which safekeeper of a cell to read from: any will do, as long as it keeps up. One watch for a process asks each of them
 * twice a second how far it is; whoever follows a log dials through it, and is told when its own has fallen behind or says
 * nothing any more (a stopped process, a network that swallows: the connection itself would not tell).
 *
 * A node that is silent, or stands still behind others, may be slow and is given three seconds. One second is enough where
 * another node follows a leader in a higher term than this one has told of: it was left out of an election.
 */
import { Connection } from '../../protocol/connection.ts'
import { type Address, dial, formatAddress } from '../../protocol/dial.ts'
import { MessageType, Role } from '../../protocol/messages.ts'
import type { ConnectionSecurity } from '../../protocol/security.ts'
import { DialGate } from './dial-gate.ts'
import { toPalimpsestError } from './errors.ts'
import type { Connect } from './leader-scout.ts'
import { nodeClock } from './node-seams.ts'
import type { Clock } from './seams.ts'

const ASK_EVERY_MS = 500
const ASK_MS = 2500
/** Without a word, or behind without moving, for so long: others are better. */
const SICK_MS = 3000
/** The same, where others have a leader in a higher term. */
const DEPOSED_MS = 1000
/** Connections that are being opened at one time; the rest of a page server's timelines wait for their turn. */
const DIALS_MAX = 32
const DIAL_MS = 5000

interface Node {
  readonly address: Address
  connection: Connection | undefined
  asking: boolean
  heardMs: number
  commitIndex: number
  term: number
  hasLeader: boolean
  /** When the question that is not answered yet was asked. */
  askedMs: number | undefined
  /** Since when it has been behind the best of the others, and stood still. */
  stuckSinceMs: number | undefined
  /** It does not know the question: nothing is held against it. */
  mute: boolean
  readonly followers: Set<() => void>
}

export interface SafekeeperWatchOptions {
  readonly security?: ConnectionSecurity | undefined
  readonly clock?: Clock | undefined
  /** Opens a connection over which a node is asked how far it is; over TCP unless told. */
  readonly connect?: Connect | undefined
  readonly dialsMax?: number | undefined
}

export class SafekeeperWatch {
  private readonly nodes: readonly Node[]
  private readonly security: ConnectionSecurity | undefined
  private readonly clock: Clock
  private readonly connect: Connect
  private readonly gate: DialGate
  private running: AbortController | undefined
  private followers = 0
  private turn = 0
  private best = 0

  constructor(addresses: readonly Address[], options: SafekeeperWatchOptions = {}) {
    this.security = options.security
    this.clock = options.clock ?? nodeClock
    this.connect = options.connect ?? ((address, how) => Connection.connect({ ...address, ...how }))
    this.gate = new DialGate(options.dialsMax ?? DIALS_MAX)
    this.nodes = addresses.map(address => ({
      address,
      connection: undefined,
      asking: false,
      heardMs: this.clock.monotonicMs(),
      commitIndex: 0,
      term: 0,
      hasLeader: false,
      askedMs: undefined,
      stuckSinceMs: undefined,
      mute: false,
      followers: new Set(),
    }))
  }

  /**
   * A connection to the best of them, `avoid` last; not more than `dialsMax` are opened at one time. Throws kind retry if none
   * can be reached now.
   */
  dial(signal: AbortSignal, avoid?: string): Promise<Connection> {
    return this.gate.pass(
      // Ordered when it is its turn: much may have become known since.
      () =>
        dial(this.order(avoid), Role.SAFEKEEPER, { security: this.security, signal, deadlineMs: DIAL_MS }),
      signal,
    )
  }

  /** All of them, the best first; those that keep up take turns. `avoid` (HOST:PORT) just failed. */
  order(avoid?: string): Address[] {
    const turn = this.turn++
    const rank = (node: Node) =>
      (formatAddress(node.address) === avoid ? 2 : 0) + (this.isSick(node, this.clock.monotonicMs()) ? 1 : 0)
    return this.nodes
      .map((_, i) => this.nodes[(i + turn) % this.nodes.length]!)
      .sort((a, b) => rank(a) - rank(b) || (rank(a) > 0 ? b.commitIndex - a.commitIndex : 0))
      .map(node => node.address)
  }

  /** Calls back when the safekeeper at HOST:PORT had better be left. Returns what ends it. */
  follow(address: string, onSick: () => void): () => void {
    const node = this.nodes.find(node => formatAddress(node.address) === address)
    // With one alone there is no choice.
    if (node === undefined || this.nodes.length === 1) return () => {}
    const once = () => onSick()
    node.followers.add(once)
    if (this.followers++ === 0) this.start()
    return () => {
      if (!node.followers.delete(once)) return
      if (--this.followers === 0) this.close()
    }
  }

  private start(): void {
    const now = this.clock.monotonicMs()
    for (const node of this.nodes) {
      node.heardMs = now
      node.askedMs = undefined
      node.stuckSinceMs = undefined
    }
    const running = new AbortController()
    this.running = running
    void this.run(running.signal)
  }

  close(): void {
    this.running?.abort()
    this.running = undefined
    for (const node of this.nodes) {
      node.connection?.close()
      node.connection = undefined
    }
  }

  private async run(signal: AbortSignal): Promise<void> {
    while (!signal.aborted) {
      // First: where it was this process that stood still, nobody's answer has been read yet, and all look alike.
      this.judge()
      for (const node of this.nodes) if (!node.asking) void this.ask(node)
      await this.clock.sleep(ASK_EVERY_MS, signal)
    }
  }

  /** Tells the followers of those that are sick, if there are better ones. */
  private judge(): void {
    const now = this.clock.monotonicMs()
    for (const node of this.nodes) {
      if (node.followers.size === 0 || !this.isSick(node, now)) continue
      const isBetter = (other: Node) => !other.mute && other.askedMs === undefined && !this.isSick(other, now)
      if (this.nodes.some(isBetter)) for (const follower of [...node.followers]) follower()
    }
  }

  private isSick(node: Node, now: number): boolean {
    if (node.mute || this.running === undefined) return false
    const { askedMs, heardMs, stuckSinceMs } = node
    const silentMs = askedMs === undefined ? 0 : now - askedMs
    const stuckMs = stuckSinceMs === undefined ? 0 : now - stuckSinceMs
    if (now - heardMs > SICK_MS || stuckMs > SICK_MS) return true
    if (silentMs <= DEPOSED_MS && stuckMs <= DEPOSED_MS) return false
    return this.nodes.some(other => other.hasLeader && other.term > node.term && other.askedMs === undefined)
  }

  private async ask(node: Node): Promise<void> {
    node.asking = true
    const { running } = this
    node.askedMs ??= this.clock.monotonicMs()
    try {
      if (node.connection === undefined || node.connection.closed.aborted)
        node.connection = await this.connect(node.address, { security: this.security, deadlineMs: ASK_MS })
      const { message } = await node.connection.request(
        { type: MessageType.CellStatus },
        { deadlineMs: ASK_MS },
      )
      node.mute = false
      node.heardMs = this.clock.monotonicMs()
      node.askedMs = undefined
      node.term = message.term
      node.hasLeader = message.leader !== ''
      const moved = message.commitIndex > node.commitIndex
      // `best` is of an earlier moment than this answer: who keeps up is never below it.
      if (moved || message.commitIndex >= this.best) node.stuckSinceMs = undefined
      else node.stuckSinceMs ??= node.heardMs
      node.commitIndex = message.commitIndex
      this.best = Math.max(this.best, message.commitIndex)
    } catch (error) {
      if (toPalimpsestError(error).kind === 'invalid') node.mute = true
    } finally {
      node.asking = false
      if (this.running !== running || running === undefined) node.connection?.close()
    }
  }
}
