/**
 * What a node does about a disk that does not keep what was written: whom it asks for lost redo, how it looks for damage, and when it
 * leaves the lead to others. docs/log-format.md, "Repair".
 */
import type { Connection } from '../../protocol/connection.ts'
import { type Address, formatAddress, parseAddress } from '../../protocol/dial.ts'
import type { Log } from '../shared/log.ts'
import type { ObjectStore } from '../shared/object-store.ts'
import type { Clock } from '../shared/seams.ts'
import { backupNote } from './backup-note.ts'
import type { NodeId } from './core/types.ts'
import type { Driver } from './driver.ts'
import type { CellLog } from './log/cell-log.ts'
import type { LogEntry } from './log/entry.ts'
import type { EntrySource } from './log/repair.ts'
import type { Members } from './members.ts'
import type { NodeFiles } from './node-files.ts'
import { BackupSource, PeerSource } from './repair-sources.ts'
import type { Snapshots } from './snapshots.ts'

/** How long a member may wait for what this leader cannot read, before another leads. */
const UNREADABLE_MS = 3000
/** Failures so far apart are not of one kind. */
const FORGOTTEN_MS = 10_000

export interface NodeRepairOptions {
  readonly self: NodeId
  readonly cellId: string
  readonly driver: Driver
  readonly log: CellLog
  readonly members: Members
  readonly snapshots: Snapshots
  readonly files: NodeFiles
  readonly store: ObjectStore | undefined
  readonly addressOf: (node: NodeId) => string
  readonly clock: Clock
  readonly logger: Log
  readonly dial: (address: Address) => Promise<Connection>
  readonly isConnected: (node: NodeId) => boolean
  readonly scrub: { readonly bytesPerSecond: number; readonly everyMs: number }
  readonly random: () => number
}

export class NodeRepair {
  private readonly options: NodeRepairOptions
  private readonly backup: BackupSource | undefined
  /** By node and address. */
  private readonly peers = new Map<string, PeerSource>()
  private readonly failing = new Map<NodeId, { readonly firstMs: number; lastMs: number }>()
  /** Small files that were found damaged and written anew, since the start. */
  smallFilesRepaired = 0

  constructor(options: NodeRepairOptions) {
    this.options = options
    const { log, cellId, store, scrub, random } = options
    this.backup = store && new BackupSource(store, cellId)
    log.repairFrom(
      () => this.sources(),
      entry => this.isNeeded(entry),
    )
    log.scrub({ ...scrub, random, afterPass: () => this.checkSmallFiles() })
  }

  /** Members that are connected first, the backup last. */
  private sources(): EntrySource[] {
    const { self, cellId, members, addressOf, dial, isConnected } = this.options
    const sources: EntrySource[] = []
    const others = [...members.all].filter(id => id !== self)
    others.sort((a, b) => Number(isConnected(b)) - Number(isConnected(a)))
    for (const id of others) {
      const address = addressOf(id)
      if (address !== '') sources.push(this.peer(id, cellId, parseAddress(address), dial))
    }
    for (const [key, peer] of this.peers)
      if (!sources.includes(peer)) {
        this.peers.delete(key)
        peer.rest()
      }
    if (this.backup !== undefined) sources.push(this.backup)
    return sources
  }

  /** The same each time, since it keeps its connection from one question to the next. */
  private peer(...[id, cellId, address, dial]: ConstructorParameters<typeof PeerSource>): PeerSource {
    const key = `${id} ${formatAddress(address)}`
    let peer = this.peers.get(key)
    if (peer === undefined) {
      peer = new PeerSource(id, cellId, address, dial)
      this.peers.set(key, peer)
    }
    return peer
  }

  private isNeeded({ timeline: id, endLsn, index }: LogEntry): boolean {
    const { state } = this.options.driver
    if (index > (backupNote(state)?.done ?? Number.POSITIVE_INFINITY)) return true
    const timeline = id && state.timelines.get(id)
    return timeline !== undefined && endLsn > state.neededFrom(timeline)
  }

  /** What is not the log's: looked at after each pass over the log. */
  private async checkSmallFiles(): Promise<void> {
    const { log, files, snapshots, driver, logger } = this.options
    const isVoteBad = await files.checkVote().catch(error => {
      // Its sync failed: what is on disk is unknown.
      driver.fail(error as Error)
      throw error
    })
    const repaired = [
      ...(isVoteBad ? ['vote.json'] : []),
      ...((await log.checkState()) ? ['log/state'] : []),
      ...(await files.checkNode()),
      ...(await snapshots.check(driver.state)),
    ]
    this.smallFilesRepaired += repaired.length
    if (repaired.length > 0) logger.warn({ files: repaired }, 'damaged files were written anew')
  }

  /** This leader cannot read what a member needs, and could not fetch it: if that goes on, another had better lead. */
  unreadable(peer: NodeId): void {
    const { clock, driver, members, self, isConnected, logger } = this.options
    const nowMs = clock.monotonicMs()
    const before = this.failing.get(peer)
    if (before === undefined || nowMs - before.lastMs > FORGOTTEN_MS) {
      this.failing.set(peer, { firstMs: nowMs, lastMs: nowMs })
      return
    }
    before.lastMs = nowMs
    if (nowMs - before.firstMs < UNREADABLE_MS || driver.role !== 'leader') return
    this.failing.clear()
    const [best] = members.membership.voters
      .filter(id => id !== self && id !== peer && isConnected(id))
      .sort((a, b) => driver.matchOf(b) - driver.matchOf(a))
    if (best === undefined) return
    logger.warn({ peer, to: best }, 'a member needs what cannot be read here: another is asked to lead')
    try {
      driver.transfer(best)
    } catch (error) {
      logger.debug({ err: error }, 'the lead was not handed over')
    }
  }
}
