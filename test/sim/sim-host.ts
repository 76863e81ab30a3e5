/**
 * A simulated machine: a disk that survives, an oscillator, a name on the network, and the process of a safekeeper that runs on
 * it and ends now and then.
 */
import type { Connection } from '../../protocol/connection.ts'
import { crc32c } from '../../protocol/crc32c.ts'
import type { Address } from '../../protocol/dial.ts'
import type { Message, ReplyMessage } from '../../protocol/messages.ts'
import { cellService } from '../../server/safekeeper/cell-service.ts'
import type { HardState, NodeId } from '../../server/safekeeper/core/types.ts'
import { logService } from '../../server/safekeeper/log-service.ts'
import { CellNode } from '../../server/safekeeper/node.ts'
import { retryError } from '../../server/shared/errors.ts'
import { type Log, silentLog } from '../../server/shared/log.ts'
import type { ObjectInfo, ObjectStore } from '../../server/shared/object-store.ts'
import { MemoryDisk } from '../support/memory-disk.ts'
import type { MemoryObjectStore } from '../support/memory-object-store.ts'
import type { SimContext } from './sim-connection.ts'
import { type DiskFaults, Life, SimClock, SimDisk } from './sim-disk.ts'
import type { SimRandom, World } from './world.ts'

export const DATA_DIR = '/data'
export const SEGMENT_BYTES = 64 * 1024
export const BACKUP_INTERVAL_MS = 1500
const BACKUP_MERGE_AT = 2
/** So that damage to what nobody reads is found within a run. */
const SCRUB_BYTES_PER_SECOND = 4 * 1024 * 1024
const SCRUB_EVERY_MS = 1500

export interface HostUser {
  readonly world: World
  /** The services all nodes back up to; undefined: no backup. */
  readonly store: { readonly inner: MemoryObjectStore; failing: number } | undefined
  readonly lies: boolean
  readonly canary: string | undefined
  readonly trace: ((line: string) => void) | undefined
  connect(host: SimHost, life: Life, address: Address, forward: boolean): Promise<Connection>
  /** The process is gone. `own`: it ended itself, of this. */
  ended(host: SimHost, own: Error | undefined): void
  answered(host: SimHost, request: Message, reply: ReplyMessage, context: SimContext): void
  /** Its vote.json was synced. */
  voteSaved?(host: SimHost): void
}

export interface HostPeers {
  /** First members by name; empty for one that is added later. */
  readonly peers: ReadonlyMap<string, Address>
  readonly join: readonly Address[]
}

export class SimHost {
  readonly name: string
  readonly address: Address
  disk = new MemoryDisk()
  readonly faults: DiskFaults = { slowness: 1, crashIn: 0, failSyncIn: 0, acksBeforeSync: false }
  readonly wall = { stepUs: 0 }
  /** Of the process that runs; undefined: none. */
  life: Life | undefined
  /** Once it has started. */
  node: CellNode | undefined
  /** Who it said it is, the last time that it ran. */
  nodeId: NodeId | undefined
  starts = 0
  /** It must have ended by then: a sync failed. */
  mustEndBeforeMs = Number.POSITIVE_INFINITY
  /** An I/O error was made in the life that ended last. */
  hadFault = false
  private readonly user: HostUser
  private readonly random: SimRandom
  private readonly rate: number
  private peers: HostPeers

  constructor(user: HostUser, name: string, address: Address, peers: HostPeers) {
    this.user = user
    this.name = name
    this.address = address
    this.peers = peers
    this.random = user.world.random.fork(`host ${name}`)
    this.rate = this.random.between(0.9, 1.1)
    this.disk.lies = user.lies
  }

  get isUp(): boolean {
    return this.node !== undefined
  }

  get isDown(): boolean {
    return this.life === undefined
  }

  start(): void {
    if (this.life !== undefined) return
    const { user, random } = this
    const { world } = user
    const life = new Life(world)
    this.life = life
    this.starts++
    this.hadFault = false
    this.mustEndBeforeMs = Number.POSITIVE_INFINITY
    if (user.canary === 'forget-vote') forgetVote(this.disk)
    this.faults.acksBeforeSync = user.canary === 'ack-before-sync'
    const disk = new SimDisk(this.disk, life, random.fork(`disk ${this.starts}`), this.faults, {
      crash: () => this.crash(),
      syncFailed: path => {
        this.hadFault = true
        // What else is not synced is tried again; the log and the vote must not be.
        if (path.endsWith('.seg') || path.endsWith('vote.json')) this.mustEndBeforeMs = world.nowMs + 2000
      },
      synced: path => {
        if (path.endsWith('vote.json')) user.voteSaved?.(this)
      },
    })
    const host = `${this.address.host}:${this.address.port}`
    CellNode.start({
      dir: DATA_DIR,
      name: this.name,
      address: () => host,
      zone: '',
      ...this.peers,
      disk,
      clock: new SimClock(world, life, this.rate, this.wall),
      randomHex: bytes =>
        Array.from({ length: bytes }, () => random.int(0, 255).toString(16).padStart(2, '0')).join(''),
      random: () => random.next(),
      log: this.log(),
      segmentBytes: SEGMENT_BYTES,
      scrub: { bytesPerSecond: SCRUB_BYTES_PER_SECOND, everyMs: SCRUB_EVERY_MS },
      dial: {},
      connect: (address, { elsewhere }) => user.connect(this, life, address, elsewhere === 'forward'),
      soon: run => life.after(0, run),
      timing: undefined,
      metrics: undefined,
      backup: user.store && {
        store: new SimStore(user.store, life, random.fork(`store ${this.starts}`)),
        intervalMs: BACKUP_INTERVAL_MS,
        mergeAt: BACKUP_MERGE_AT,
      },
      onFatal: error => {
        if (life.alive) this.end(error)
      },
    }).then(
      node => {
        if (!life.alive) return
        this.node = node
        this.nodeId = node.nodeId
        user.trace?.(`${world.nowMs.toFixed(1)} ${node.nodeId} has started`)
      },
      error => {
        if (life.alive) this.end(error as Error)
      },
    )
  }

  /** What requests are given to; undefined while it does not listen. */
  server(): { readonly services: ReturnType<typeof logService>[]; readonly life: Life } | undefined {
    const { node, life } = this
    if (node === undefined || life === undefined) return undefined
    return { services: [logService(node), cellService(node)], life }
  }

  /** Power is lost, or the process is killed. */
  crash(): void {
    this.end(undefined)
  }

  /** Ended in good order. */
  async stop(): Promise<void> {
    const { node, life } = this
    if (node === undefined || life === undefined) return
    this.node = undefined
    let failure: Error | undefined
    await node.close(retryError('the safekeeper is shutting down')).catch(error => {
      failure = error as Error
    })
    if (life.alive) this.end(failure)
  }

  private end(own: Error | undefined): void {
    const { life, user, random } = this
    if (life === undefined) return
    life.alive = false
    this.life = undefined
    this.node = undefined
    this.faults.crashIn = 0
    this.faults.failSyncIn = 0
    this.mustEndBeforeMs = Number.POSITIVE_INFINITY
    const { capacity } = this.disk
    const how = random.next()
    // A killed process leaves what it wrote; a machine without power, part of it.
    this.disk = this.disk.crash(() => (how < 0.3 ? 1 : random.chance(0.3) ? random.next() : random.int(0, 1)))
    this.disk.lies = user.lies
    this.disk.capacity = capacity
    user.trace?.(`${user.world.nowMs.toFixed(1)} ${this.name} ends${own ? `: ${own.message}` : ''}`)
    user.ended(this, own)
  }

  /** A new disk, and so another node. Only while no process runs. */
  wipe(peers?: HostPeers): void {
    this.disk = new MemoryDisk()
    this.disk.lies = this.user.lies
    this.nodeId = undefined
    if (peers !== undefined) this.peers = peers
  }

  /** What its vote.json says, if it can be read. */
  get vote(): HardState | undefined {
    const path = `${DATA_DIR}/vote.json`
    const bytes = this.disk.paths().includes(path) ? this.disk.content(path) : Buffer.alloc(0)
    for (const place of [0, 4096]) {
      const end = bytes.indexOf('\n', place)
      if (
        end < place ||
        crc32c(bytes, place, end) !== Number.parseInt(bytes.toString('latin1', end + 1, end + 9), 16)
      )
        continue
      const { term, votedFor } = JSON.parse(bytes.toString('utf8', place, end))
      return { term, votedFor: votedFor ?? undefined }
    }
    return undefined
  }

  private log(): Log {
    const { trace, world } = this.user
    if (trace === undefined) return silentLog
    const say = (level: string) => (fields: unknown, text?: unknown) => {
      const { err, ...rest } = (typeof fields === 'object' ? fields : {}) as Record<string, unknown>
      const why = err instanceof Error ? ` ${err.stack ?? err.message}` : ''
      trace(`${world.nowMs.toFixed(1)} ${this.name} ${level} ${text ?? fields} ${JSON.stringify(rest)}${why}`)
    }
    const log = {
      debug: say('debug'),
      info: say('info'),
      warn: say('warn'),
      error: say('error'),
      fatal: say('fatal'),
      child: () => log,
    }
    return log as unknown as Log
  }
}

/** The mistake of a canary: a node that starts keeps its term, and not what it voted in it. */
function forgetVote(disk: MemoryDisk): void {
  const path = `${DATA_DIR}/vote.json`
  if (!disk.paths().includes(path)) return
  const bytes = disk.content(path)
  for (const place of [0, 4096]) {
    const end = bytes.indexOf('\n', place)
    if (end < place || end > place + 4096) continue
    const line = JSON.parse(bytes.toString('utf8', place, end))
    const json = Buffer.from(JSON.stringify({ ...line, votedFor: null }))
    const crc = crc32c(json, 0, json.length).toString(16).padStart(8, '0')
    const changed = Buffer.alloc(4096, ' ')
    Buffer.concat([json, Buffer.from(`\n${crc}\n`)]).copy(changed)
    for (let at = 0; at < changed.length; at++)
      if (bytes[place + at] !== changed[at]) disk.flip(path, place + at, bytes[place + at]! ^ changed[at]!)
  }
}

/** The object store as one process sees it: slow, unreachable now and then, with answers that get lost. */
class SimStore implements ObjectStore {
  readonly description = 'simulated'
  private readonly store: NonNullable<HostUser['store']>
  private readonly life: Life
  private readonly random: SimRandom

  constructor(store: NonNullable<HostUser['store']>, life: Life, random: SimRandom) {
    this.store = store
    this.life = life
    this.random = random
  }

  private async ask<T>(run: () => Promise<T>): Promise<T> {
    const { life, random, store } = this
    await life.sleep(random.between(1, 40))
    if (random.chance(store.failing)) throw retryError('simulated: 503')
    const result = await run()
    await life.sleep(random.between(1, 10))
    if (random.chance(store.failing)) throw retryError('simulated: the answer was lost')
    return result
  }

  putIfAbsent(key: string, bytes: Uint8Array): Promise<boolean> {
    return this.ask(() => this.store.inner.putIfAbsent(key, bytes))
  }
  putFile(key: string, path: string): Promise<boolean> {
    return this.ask(() => this.store.inner.putFile(key, path))
  }
  getFile(key: string, path: string): Promise<number | undefined> {
    return this.ask(() => this.store.inner.getFile(key, path))
  }
  get(key: string): Promise<Buffer | undefined> {
    return this.ask(() => this.store.inner.get(key))
  }
  getRange(key: string, offset: number, length: number): Promise<Buffer | undefined> {
    return this.ask(() => this.store.inner.getRange(key, offset, length))
  }
  head(key: string): Promise<number | undefined> {
    return this.ask(() => this.store.inner.head(key))
  }
  list(prefix: string): Promise<ObjectInfo[]> {
    return this.ask(() => this.store.inner.list(prefix))
  }
  delete(key: string): Promise<void> {
    return this.ask(() => this.store.inner.delete(key))
  }
  localPath(): undefined {
    return undefined
  }
  close(): void {}
}
