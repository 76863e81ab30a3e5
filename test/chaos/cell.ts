/** Safekeepers from the command line, one process each, with folders and addresses of their own, over TLS. */
import { mkdirSync, readdirSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { Connection } from '../../protocol/connection.ts'
import { type Address, formatAddress } from '../../protocol/dial.ts'
import { type CellStatusReply, MessageType } from '../../protocol/messages.ts'
import { SmallDisk } from './disks.ts'
import type { Keys } from './keys.ts'
import type { Network, Slot } from './network.ts'
import { palimpsestOk, ServerProcess } from './process.ts'

const FIRST_NODES = 3

export interface ChaosNode {
  readonly name: string
  readonly slot: Slot
  readonly process: ServerProcess
  readonly dataDir: string
  readonly disk: SmallDisk | undefined
}

export interface ChaosCellOptions {
  readonly dir: string
  readonly network: Network
  readonly keys: Keys
  /** Each node's folder on a small file system of its own. */
  readonly diskBytes: number | undefined
  readonly onDied: (why: string) => void
}

export class ChaosCell {
  readonly nodes = new Map<string, ChaosNode>()
  private readonly options: ChaosCellOptions
  private nodesMade = 0

  private constructor(options: ChaosCellOptions) {
    this.options = options
  }

  static async start(options: ChaosCellOptions): Promise<ChaosCell> {
    const cell = new ChaosCell(options)
    const slots = options.network.slots.slice(0, FIRST_NODES)
    const peers = slots.map((slot, i) => `sk${i + 1}=${formatAddress(slot.address)}`).join(',')
    await Promise.all(slots.map(slot => cell.startNode(slot, ['--peers', peers])))
    await cell.whole(60_000)
    return cell
  }

  /** Where safekeepers are, were, or may come to be: what clients are given once and for all. */
  get addresses(): Address[] {
    return this.options.network.slots.map(slot => slot.address)
  }

  get connectArgs(): string[] {
    return ['--connect', this.addresses.map(formatAddress).join(',')]
  }

  /** By name, of those that run. */
  get running(): Map<string, Address> {
    return new Map([...this.nodes.values()].map(({ name, slot }) => [name, slot.address]))
  }

  peersOf(node: ChaosNode): ChaosNode[] {
    return [...this.nodes.values()].filter(other => other !== node)
  }

  private async startNode(slot: Slot, membership: readonly string[]): Promise<ChaosNode> {
    const { dir, keys, diskBytes, onDied } = this.options
    const name = `sk${++this.nodesMade}`
    const home = join(dir, name)
    mkdirSync(home)
    const disk = diskBytes === undefined ? undefined : await SmallDisk.mount(home, diskBytes)
    const dataDir = join(home, 'data')
    const process = new ServerProcess({
      name,
      dir,
      prefix: slot.prefix,
      onDied,
      args: [
        ...['safekeeper', '--id', name, '--data', dataDir, '--listen', formatAddress(slot.address)],
        ...membership,
        ...(await keys.server(name, `peer:${name}`)),
      ],
    })
    const node = { name, slot, process, dataDir, disk }
    this.nodes.set(name, node)
    await process.start()
    return node
  }

  /** A node with an empty folder, where no other is, that waits to be added. */
  async startSpare(): Promise<ChaosNode> {
    const taken = [...this.nodes.values()].map(node => node.slot)
    const slot = this.options.network.slots.find(slot => !taken.includes(slot))
    if (slot === undefined) throw new Error('no address is free for another node')
    return await this.startNode(slot, ['--join', [...this.running.values()].map(formatAddress).join(',')])
  }

  /** For good. */
  async discard(node: ChaosNode): Promise<void> {
    await node.process.kill9()
    this.nodes.delete(node.name)
    await node.disk?.unmount()
    rmSync(join(this.options.dir, node.name), { recursive: true, force: true })
  }

  emptyFolder(node: ChaosNode): void {
    for (const name of readdirSync(node.dataDir)) rmSync(join(node.dataDir, name), { recursive: true })
  }

  async status(node: ChaosNode): Promise<CellStatusReply> {
    const connection = await Connection.connect({
      ...node.slot.address,
      security: this.options.keys.admin,
      deadlineMs: 3000,
    })
    try {
      const request = { type: MessageType.CellStatus } as const
      return (await connection.request(request, { deadlineMs: 3000 })).message
    } finally {
      connection.close()
    }
  }

  /** The node that leads in the highest term; waits until there is one. */
  async leader(timeoutMs = 30_000): Promise<ChaosNode> {
    const until = performance.now() + timeoutMs
    for (;;) {
      const found = (await this.statuses())
        .filter(({ status }) => status?.role === 'leader')
        .sort((a, b) => b.status!.term - a.status!.term)[0]
      if (found !== undefined) return found.node
      if (performance.now() > until) throw new Error(`no node led for ${timeoutMs} ms`)
      await sleep(50)
    }
  }

  private async statuses(): Promise<{ node: ChaosNode; status: CellStatusReply | undefined }[]> {
    return await Promise.all(
      [...this.nodes.values()].map(async node => ({
        node,
        status: await this.status(node).catch(() => undefined),
      })),
    )
  }

  /** Waits until all nodes are voters of one leader, write, and have applied what was committed when it asked. */
  async whole(timeoutMs: number): Promise<{ committed: number }> {
    const until = performance.now() + timeoutMs
    let committed: number | undefined
    for (;;) {
      const statuses = await this.statuses()
      const lead = statuses.find(({ status }) => status?.role === 'leader')?.status
      const ids = new Set(statuses.map(({ status }) => status?.nodeId))
      const agree =
        lead !== undefined &&
        lead.members.length === ids.size &&
        lead.members.every(({ nodeId, kind }) => kind === 'voter' && ids.has(nodeId)) &&
        statuses.every(({ status }) => status?.term === lead.term && status.writable)
      if (agree) {
        committed ??= lead.commitIndex
        const goal = committed
        if (statuses.every(({ status }) => status!.appliedIndex >= goal)) return { committed }
      }
      if (performance.now() > until) {
        const found = statuses.map(({ node, status }) =>
          status === undefined
            ? `${node.name} does not answer`
            : `${node.name} is ${status.role} in term ${status.term}, applied ${status.appliedIndex} of ${status.lastIndex}` +
              `${status.writable ? '' : ', disk full'}${status.lastError && `, "${status.lastError}"`}`,
        )
        const members = lead?.members.map(member => `${member.nodeId} ${member.kind}`).join(', ')
        throw new Error(`not whole after ${timeoutMs} ms: ${found.join('; ')}; members: ${members}`)
      }
      await sleep(50)
    }
  }

  /** `palimpsest member …`. */
  async member(...args: string[]): Promise<string> {
    return await palimpsestOk(
      ['member', ...args, ...this.connectArgs, ...this.options.keys.clientArgs('admin')],
      120_000,
    )
  }

  /** All at once, as they would at the end of a day. */
  async stop(): Promise<void> {
    await Promise.all([...this.nodes.values()].map(node => node.process.stop()))
  }

  async kill9(): Promise<void> {
    await Promise.all([...this.nodes.values()].map(node => node.process.kill9()))
  }
}
