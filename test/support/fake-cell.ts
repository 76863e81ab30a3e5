/** A cell of safekeepers as a client sees it, without sockets and in time that only the test moves. */
import type { Connection } from '../../protocol/connection.ts'
import { type Address, formatAddress } from '../../protocol/dial.ts'
import { PalimpsestError } from '../../protocol/errors.ts'
import type { Lsn, WriterEpoch } from '../../protocol/ids.ts'
import { type Message, MessageType } from '../../protocol/messages.ts'
import type { Connect } from '../../server/shared/leader-scout.ts'
import type { Clock } from '../../server/shared/seams.ts'

/** Time stands still but for `pass`. */
export class HandClock implements Clock {
  private nowMs = 0
  private sleepers: { readonly untilMs: number; readonly wake: () => void }[] = []

  wallTimeUs(): number {
    return this.nowMs * 1000
  }

  monotonicMs(): number {
    return this.nowMs
  }

  sleep(ms: number, signal?: AbortSignal): Promise<void> {
    return new Promise(resolve => {
      this.sleepers.push({ untilMs: this.nowMs + ms, wake: resolve })
      signal?.addEventListener('abort', () => resolve())
    })
  }

  /** Lets `ms` pass in steps of 10, and everything happen that follows from it. */
  async pass(ms: number): Promise<void> {
    const untilMs = this.nowMs + ms
    for (;;) {
      await settled()
      if (this.nowMs >= untilMs) return
      this.nowMs += 10
      const due = this.sleepers.filter(sleeper => sleeper.untilMs <= this.nowMs)
      this.sleepers = this.sleepers.filter(sleeper => sleeper.untilMs > this.nowMs)
      for (const { wake } of due) wake()
    }
  }
}

/** All that follows without time passing. */
async function settled(): Promise<void> {
  for (let i = 0; i < 5; i++) await new Promise(resolve => setImmediate(resolve))
}

export interface FakeNode {
  readonly name: string
  readonly nodeId: string
  readonly address: Address
  /** Takes connections and requests and answers nothing. */
  hung: boolean
  /** Cannot be reached at all. */
  down: boolean
  /** As this node knows it. */
  term: number
  leader: string
  commitIndex: number
}

export class FakeCell {
  readonly clock = new HandClock()
  readonly nodes: FakeNode[]
  /** What was appended, in order: [begin, end) as taken by a leader. */
  readonly log: [number, number][] = []
  /** Of each timeline. */
  private readonly timelines = new Map<string, { epoch: number; endLsn: number }>()
  private readonly startLsn: number
  dials: string[] = []
  private readonly open = new Set<FakeConnection>()

  constructor(startLsn: number, names: readonly string[] = ['a', 'b', 'c']) {
    this.startLsn = startLsn
    this.nodes = names.map((name, i) => ({
      name,
      nodeId: `${name}.${String(i).repeat(16)}`,
      address: { host: '127.0.0.1', port: 7000 + i },
      hung: false,
      down: false,
      term: 1,
      leader: '',
      commitIndex: 0,
    }))
    this.elect(names[0]!, 1)
  }

  node(name: string): FakeNode {
    return this.nodes.find(node => node.name === name)!
  }

  get addresses(): Address[] {
    return this.nodes.map(({ address }) => address)
  }

  /** All that are not hung know of it. */
  elect(name: string, term: number): void {
    const { nodeId } = this.node(name)
    for (const node of this.nodes)
      if (!node.hung) {
        node.term = term
        node.leader = nodeId
      }
  }

  hang(name: string): void {
    this.node(name).hung = true
  }

  /** Goes on; what came meanwhile is answered now. */
  wakeUp(name: string): void {
    const node = this.node(name)
    node.hung = false
    for (const connection of this.open) if (connection.node === node) connection.answerAll()
  }

  readonly connect: Connect = async (address, options) => {
    const text = formatAddress(address)
    this.dials.push(text)
    const node = this.nodes.find(each => formatAddress(each.address) === text)
    if (node === undefined || node.down)
      throw new PalimpsestError('retry', `cannot connect to ${text}: refused`)
    while (node.hung)
      await new Promise<void>((resolve, reject) => {
        const { signal } = options
        const abort = () => reject(signal?.reason)
        if (signal?.aborted) abort()
        signal?.addEventListener('abort', abort)
        // No hello in time.
        void this.clock.sleep(options.deadlineMs ?? 30_000).then(() => {
          if (node.hung) reject(new PalimpsestError('retry', `cannot connect to ${text}: no hello`))
          else resolve()
        })
      })
    const connection = new FakeConnection(this, node)
    this.open.add(connection)
    return connection as unknown as Connection
  }

  /** What a node that runs answers. */
  answer(node: FakeNode, message: Message, bytes: number): object {
    const leader = this.nodes.find(each => each.nodeId === node.leader)
    if (message.type === MessageType.CellStatus)
      return {
        type: MessageType.CellStatusReply,
        nodeId: node.nodeId,
        role: node.leader === node.nodeId ? 'leader' : 'follower',
        term: node.term,
        commitIndex: node.commitIndex,
        leader: node.leader,
        leaderAddress: leader === undefined ? '' : formatAddress(leader.address),
        members: this.nodes.map(({ nodeId, address }) => ({ nodeId, address: formatAddress(address) })),
      }
    if (leader === undefined) throw new PalimpsestError('retry', 'the cell has no leader at present')
    if (leader !== node)
      throw new PalimpsestError('refresh', `${leader.nodeId} leads the cell`, {
        askAt: formatAddress(leader.address),
      })
    // A node that was deposed and does not know it yet has no quorum.
    if (this.nodes.some(each => each.term > node.term)) throw new PalimpsestError('retry', 'leads no longer')
    const of = this.timelineOf(message)
    switch (message.type) {
      case MessageType.WalOpen:
        return { epoch: ++of.epoch, beginLsn: of.endLsn, endLsn: of.endLsn }
      case MessageType.WalState:
        return { epoch: of.epoch as WriterEpoch, flushedLsn: of.endLsn, name: 'main', writer: '?' }
      case MessageType.WalAppend: {
        if (message.epoch !== of.epoch) throw new PalimpsestError('fenced', 'another writer')
        const endLsn = message.beginLsn + bytes
        if (message.beginLsn > of.endLsn) throw new PalimpsestError('refresh', 'not the end')
        if (message.beginLsn === of.endLsn) {
          this.log.push([message.beginLsn, endLsn])
          of.endLsn = endLsn
        }
        return { flushedLsn: of.endLsn as Lsn }
      }
      default:
        throw new PalimpsestError('invalid', `message ${message.type}`)
    }
  }

  private timelineOf(message: Message): { epoch: number; endLsn: number } {
    const id = 'timeline' in message ? String(message.timeline) : ''
    let of = this.timelines.get(id)
    if (of === undefined) {
      of = { epoch: 0, endLsn: this.startLsn }
      this.timelines.set(id, of)
    }
    return of
  }

  forget(connection: FakeConnection): void {
    this.open.delete(connection)
  }
}

export class FakeConnection {
  readonly address: string
  readonly node: FakeNode
  private readonly cell: FakeCell
  private readonly over = new AbortController()
  private waiting: (() => void)[] = []

  constructor(cell: FakeCell, node: FakeNode) {
    this.cell = cell
    this.node = node
    this.address = formatAddress(node.address)
  }

  get closed(): AbortSignal {
    return this.over.signal
  }

  async request(message: Message, options: { bulk?: Uint8Array } = {}): Promise<object> {
    while (this.node.hung && !this.over.signal.aborted)
      await new Promise<void>(resolve => this.waiting.push(resolve))
    this.over.signal.throwIfAborted()
    return { message: this.cell.answer(this.node, message, options.bulk?.length ?? 0) }
  }

  answerAll(): void {
    for (const go of this.waiting.splice(0)) go()
  }

  close(): void {
    if (this.over.signal.aborted) return
    this.over.abort(new PalimpsestError('retry', `connection to ${this.address} lost: closed by this side`))
    this.cell.forget(this)
    this.answerAll()
  }
}
