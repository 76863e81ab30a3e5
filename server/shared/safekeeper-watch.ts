/**
 * Which safekeeper of a cell to read from: any will do, as long as it keeps up. One watch for a process asks each of them
 * every second how far it is; whoever follows a log asks which to dial, and is told when its own has fallen behind or says
 * nothing any more (a stopped process, a network that swallows: the connection itself would not tell).
 */
import { Connection } from '../../protocol/connection.ts'
import { type Address, formatAddress } from '../../protocol/dial.ts'
import { MessageType } from '../../protocol/messages.ts'
import type { ConnectionSecurity } from '../../protocol/security.ts'
import { toPalimpsestError } from './errors.ts'

const ASK_EVERY_MS = 1000
const ASK_MS = 2500
/** Without a word, or behind without moving, for so long: others are better. */
const SICK_MS = 3000

interface Node {
  readonly address: Address
  connection: Connection | undefined
  asking: boolean
  heardMs: number
  commitIndex: number
  /** Since when it has been behind the best of the others, and stood still. */
  stuckSinceMs: number | undefined
  /** It does not know the question: nothing is held against it. */
  mute: boolean
  readonly followers: Set<() => void>
}

export class SafekeeperWatch {
  private readonly nodes: readonly Node[]
  private readonly security: ConnectionSecurity | undefined
  private timer: NodeJS.Timeout | undefined
  private followers = 0
  private turn = 0
  private best = 0

  constructor(addresses: readonly Address[], security?: ConnectionSecurity) {
    this.security = security
    this.nodes = addresses.map(address => ({
      address,
      connection: undefined,
      asking: false,
      heardMs: performance.now(),
      commitIndex: 0,
      stuckSinceMs: undefined,
      mute: false,
      followers: new Set(),
    }))
  }

  /** All of them, the best first; those that keep up take turns. `avoid` (HOST:PORT) just failed. */
  order(avoid?: string): Address[] {
    const turn = this.turn++
    const rank = (node: Node) =>
      (formatAddress(node.address) === avoid ? 2 : 0) + (this.isSick(node, performance.now()) ? 1 : 0)
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
    const now = performance.now()
    for (const node of this.nodes) {
      node.heardMs = now
      node.stuckSinceMs = undefined
    }
    this.timer = setInterval(() => this.tick(), ASK_EVERY_MS).unref()
    this.tick()
  }

  close(): void {
    clearInterval(this.timer)
    this.timer = undefined
    for (const node of this.nodes) {
      node.connection?.close()
      node.connection = undefined
    }
  }

  private tick(): void {
    const now = performance.now()
    for (const node of this.nodes) {
      if (!node.asking) void this.ask(node)
      if (!this.isSick(node, now)) continue
      // Only if there is a better one.
      if (this.nodes.some(other => other !== node && !other.mute && !this.isSick(other, now)))
        for (const follower of [...node.followers]) follower()
    }
  }

  private isSick(node: Node, now: number): boolean {
    if (node.mute || this.timer === undefined) return false
    return (
      now - node.heardMs > SICK_MS || (node.stuckSinceMs !== undefined && now - node.stuckSinceMs > SICK_MS)
    )
  }

  private async ask(node: Node): Promise<void> {
    node.asking = true
    try {
      if (node.connection === undefined || node.connection.closed.aborted)
        node.connection = await Connection.connect({
          ...node.address,
          security: this.security,
          deadlineMs: ASK_MS,
        })
      const { message } = await node.connection.request(
        { type: MessageType.CellStatus },
        { deadlineMs: ASK_MS },
      )
      node.mute = false
      node.heardMs = performance.now()
      const moved = message.commitIndex > node.commitIndex
      // `best` is of an earlier moment than this answer: who keeps up is never below it.
      if (moved || message.commitIndex >= this.best) node.stuckSinceMs = undefined
      else node.stuckSinceMs ??= node.heardMs
      node.commitIndex = message.commitIndex
      this.best = Math.max(this.best, message.commitIndex)
    } catch (error) {
      if (toPalimpsestError(error).kind === 'invalid') node.mute = true
      if (this.timer === undefined) node.connection?.close()
    } finally {
      node.asking = false
    }
  }
}
