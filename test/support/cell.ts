/** A cell of safekeepers in this process, each with a listener of its own on loopback and a folder of its own. */
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { Test } from 'tap'
import { type Address, formatAddress } from '../../protocol/dial.ts'
import type { ConnectionSecurity } from '../../protocol/security.ts'
import { type Safekeeper, startSafekeeper } from '../../server/safekeeper/safekeeper.ts'
import { Listener } from '../../server/shared/listener.ts'
import { createLog, type Log } from '../../server/shared/log.ts'
import type { ObjectStore } from '../../server/shared/object-store.ts'
import type { Disk } from '../../server/shared/seams.ts'
import type { ServerSecurity } from '../../server/shared/server-security.ts'

export interface TestNode {
  readonly name: string
  readonly listener: Listener
  readonly safekeeper: Safekeeper
}

export interface TestCellOptions {
  /** Of all nodes; each adds its name as `node`. Silent unless told. */
  readonly log?: Log
  readonly nodes?: number
  readonly segmentBytes?: number
  readonly backup?: { readonly store: ObjectStore | null; readonly intervalMs?: number }
  /** Of a node, by its name. */
  readonly zone?: (name: string) => string
  readonly disk?: (name: string) => Disk
  /** What it asks of clients, and what it shows to the others. */
  readonly security?: (
    name: string,
  ) => Promise<{ readonly server: ServerSecurity; readonly client: ConnectionSecurity | undefined }>
}

const NAMES = ['a', 'b', 'c', 'd', 'e', 'f', 'g']

export class TestCell {
  readonly dir: string
  readonly log: Log
  readonly nodes = new Map<string, TestNode>()
  /** Where each listens. */
  readonly addresses = new Map<string, Address>()
  /** Where the first members listened at first: what all of them are told at each start. */
  private first: ReadonlyMap<string, Address> = new Map()
  private readonly options: TestCellOptions

  private constructor(dir: string, options: TestCellOptions) {
    this.dir = dir
    this.options = options
    const level = process.env['PALIMPSEST_TEST_LOG'] ?? 'silent'
    this.log = options.log ?? createLog({ name: 'cell', level })
  }

  static async start(t: Test, options: TestCellOptions = {}): Promise<TestCell> {
    const dir = mkdtempSync(join(process.env['PALIMPSEST_TEST_TMP'] ?? tmpdir(), 'pal-cell-'))
    const cell = new TestCell(dir, options)
    t.teardown(async () => {
      for (const name of [...cell.nodes.keys()]) await cell.stop(name)
      rmSync(dir, { recursive: true, force: true })
    })
    const names = NAMES.slice(0, options.nodes ?? 3)
    // Ports first: every node is told all of them.
    for (const name of names) cell.addresses.set(name, await freePort())
    cell.first = new Map(cell.addresses)
    for (const name of names) await cell.startNode(name)
    await cell.leader()
    return cell
  }

  /** For clients: all that run. */
  get list(): Address[] {
    return [...this.nodes.keys()].map(name => this.addresses.get(name)!)
  }

  /** `join`: instead of as one of the first. */
  async startNode(name: string, options: { join?: readonly Address[] } = {}): Promise<TestNode> {
    let address = this.addresses.get(name)
    if (address === undefined) {
      address = await freePort()
      this.addresses.set(name, address)
    }
    const log = this.log.child({ node: name })
    const security = await this.options.security?.(name)
    const listener = new Listener({ ...address, log, security: security?.server })
    await listener.listen()
    const safekeeper = await startSafekeeper({
      dataDir: join(this.dir, name),
      id: name,
      zone: this.options.zone?.(name),
      disk: this.options.disk?.(name),
      address: formatAddress(address),
      peers: options.join === undefined ? this.first : undefined,
      join: options.join,
      listener,
      log,
      dial: { security: security?.client },
      segmentBytes: this.options.segmentBytes,
      backup: this.options.backup,
    })
    const node = { name, listener, safekeeper }
    this.nodes.set(name, node)
    return node
  }

  async stop(name: string): Promise<void> {
    const node = this.nodes.get(name)
    if (node === undefined) return
    this.nodes.delete(name)
    await node.safekeeper.retire()
    await node.listener.close()
    await node.safekeeper.close()
  }

  /** Gives a node that is stopped another address, of which nobody is told. */
  async move(name: string): Promise<void> {
    this.addresses.set(name, await freePort())
  }

  /** Removes the folder of a node that is stopped. */
  wipe(name: string): void {
    rmSync(join(this.dir, name), { recursive: true, force: true })
  }

  /** Waits until one leads. */
  async leader(): Promise<TestNode> {
    for (let i = 0; i < 1000; i++) {
      for (const node of this.nodes.values()) if (node.safekeeper.node.leading !== undefined) return node
      await new Promise(resolve => setTimeout(resolve, 10))
    }
    throw new Error('no leader within 10 s')
  }
}

async function freePort(): Promise<Address> {
  const listener = new Listener({
    host: '127.0.0.1',
    port: 0,
    log: createLog({ name: 'port', level: 'silent' }),
  })
  await listener.listen()
  const { port } = listener
  await listener.close()
  return { host: '127.0.0.1', port }
}
