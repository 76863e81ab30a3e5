/**
 * One safekeeper: what is in its folder, its way into a cell, what others ask of it, and its end. The parts that make it a member
 * (log, consensus, peers, state) are node-member.ts's. docs/consensus.md is the design.
 */
import { join } from 'node:path'
import type { Connection } from '../../protocol/connection.ts'
import { type Address, type DialOptions, dial } from '../../protocol/dial.ts'
import {
  type CellStatusReply,
  type Message,
  MessageType,
  type PeerFetch,
  type PeerFetched,
  type PeerHelloReply,
  type PeerNode,
  type ReplyMessage,
  type Request,
  Role as ServerRole,
} from '../../protocol/messages.ts'
import { invalidError, PalimpsestError, retryError } from '../shared/errors.ts'
import type { IncomingRequest, RequestContext } from '../shared/listener.ts'
import { backupNote } from './backup-note.ts'
import { findCell, type Seed } from './bootstrap.ts'
import type { CellTimelines } from './cell-timelines.ts'
import type { LogIndex, NodeId, Role, Term } from './core/types.ts'
import type { Driver } from './driver.ts'
import { type ForwardedReply, Forwarder } from './forward.ts'
import { CellLog, type CellLogStats } from './log/cell-log.ts'
import type { Members } from './members.ts'
import { type NodeFile, NodeFiles, nameOf } from './node-files.ts'
import { type Member, makeMember } from './node-member.ts'
import { NodeMetrics } from './node-metrics.ts'
import type { CellNodeOptions } from './node-options.ts'
import { nodeStatus } from './node-status.ts'
import type { Peers } from './peers.ts'
import { answerFetch } from './repair-sources.ts'

/** Frames among peers: an entry of the largest frame that a client may send, and its header. */
const PEER_FRAME_BYTES_MAX = 32 * 1024 * 1024
const PEER_DEADLINE_MS = 5000
/** A request that finds no leader waits for one so long. */
const LEADER_WAIT_MS = 3000
const HOUSEKEEPING_MS = 500
const RETIRE_MS = 1000
/** Rounds of housekeeping. */
const TRIM_EVERY = 4

export class CellNode {
  private readonly options: CellNodeOptions
  private readonly files: NodeFiles
  private node: NodeFile
  readonly metrics: NodeMetrics
  private member: Member | undefined
  private readonly waiting = new AbortController()
  private readonly forwarder: Forwarder
  private closed: PalimpsestError | undefined
  private leaderWaiters: (() => void)[] = []

  private constructor(options: CellNodeOptions, files: NodeFiles, node: NodeFile) {
    this.options = options
    this.files = files
    this.node = node
    this.metrics = new NodeMetrics(this, options.metrics)
    this.forwarder = new Forwarder(address => this.dial(address, 'redirect'), options.clock)
  }

  /** Reads the folder (or makes it what it must be), and goes on from there. Resolves before the node is in a cell. */
  static async start(options: CellNodeOptions): Promise<CellNode> {
    const { disk, dir } = options
    await disk.makeDir(dir)
    if (await disk.exists(join(dir, 'timelines')))
      throw invalidError(
        `${dir} holds logs of an earlier release, which knew no cells and is not read any more; give another folder and ` +
          'attach the databases again',
      )
    const files = new NodeFiles(disk, dir)
    let node = await files.loadNode()
    if (node === undefined) {
      const nodeId = `${options.name}.${options.randomHex(8)}`
      node = { version: 1, nodeId, cellId: '', seed: [], recovering: false }
      await files.createVote()
      await files.saveNode(node)
    }
    if (nameOf(node.nodeId) !== options.name)
      throw invalidError(
        `${dir} belongs to node ${nameOf(node.nodeId)}, not ${options.name}: use --id ${nameOf(node.nodeId)}, or another folder`,
      )
    const self = new CellNode(options, files, node)
    if (node.cellId !== '') await self.begin()
    else if (options.peers.size <= 1 && options.join.length === 0) await self.bootstrap()
    else void self.bootstrap().catch(error => options.onFatal(error as Error))
    return self
  }

  get nodeId(): NodeId {
    return this.node.nodeId
  }

  get self(): PeerNode {
    const { address, zone } = this.options
    return { nodeId: this.node.nodeId, address: address(), zone }
  }

  /** The timelines, of a node in a cell. Throws retry before. */
  get timelines(): CellTimelines {
    return this.inCell.timelines
  }

  private get inCell(): Member {
    if (this.closed !== undefined) throw this.closed
    if (this.member === undefined)
      throw retryError('this safekeeper is in no cell yet: it waits for its peers, or to be added')
    return this.member
  }

  /** The timelines if this node leads and its state is the newest. */
  get leading(): CellTimelines | undefined {
    return this.member?.driver.isServing === true ? this.member.timelines : undefined
  }

  get members(): Members {
    return this.inCell.members
  }

  get driver(): Driver {
    return this.inCell.driver
  }

  get peers(): Peers {
    return this.inCell.peers
  }

  private async bootstrap(): Promise<void> {
    const { options } = this
    const seed = await findCell({
      self: this.self,
      peers: options.peers,
      join: options.join,
      clock: options.clock,
      log: options.log,
      dial: address => this.dial(address),
      newCellId: () => options.randomHex(16),
      stop: this.waiting.signal,
    })
    if (seed !== undefined) await this.seeded(seed)
  }

  private seeding: Promise<void> | undefined

  /** This node is of that cell from now on; durable and begun when it resolves. */
  async seeded(seed: Seed): Promise<void> {
    while (this.seeding !== undefined) await this.seeding
    if (this.node.cellId !== '') {
      if (this.node.cellId !== seed.cellId)
        throw invalidError(
          `this safekeeper, ${this.nodeId}, is in cell ${this.node.cellId}, not in ${seed.cellId}: give it an empty data folder`,
        )
      return
    }
    this.seeding = (async () => {
      const { cellId, members } = seed
      const { disk, dir } = this.options
      const logDir = join(dir, 'log')
      // Before the node is of the cell: from then on a log that is missing was lost.
      if (!(await CellLog.exists(disk, logDir))) {
        await disk.makeDir(logDir)
        await CellLog.create({ disk, dir: logDir }, { index: 0 as LogIndex, term: 0 as Term })
      }
      const node: NodeFile = { ...this.node, cellId, seed: members.map(member => ({ ...member })) }
      await this.files.saveNode(node)
      this.node = node
      this.waiting.abort(retryError('a cell was found'))
      await this.begin()
    })()
    try {
      await this.seeding
    } finally {
      this.seeding = undefined
    }
  }

  /** In a cell: reads the log and takes part. */
  private async begin(): Promise<void> {
    const { options, files, node } = this
    const { log: logger } = options
    const member = await makeMember({
      options,
      files,
      node,
      self: () => this.self,
      dial: address => this.dial(address),
      recover: async () => {
        this.node = { ...node, recovering: true }
        await files.saveNode(this.node)
      },
      onRole: (role, leader) => this.onRole(role, leader),
    })
    this.member = member
    const { cellId, log, driver, timelines, addresses, backup } = member
    const note = backupNote(driver.state)
    logger.info(
      { nodeId: node.nodeId, cellId, lastIndex: log.lastIndex, term: driver.hardState.term },
      'in a cell',
    )
    addresses.aim()
    void driver.run()
    void timelines.run()
    if (backup !== undefined) void backup.run()
    else if (note !== undefined)
      logger.warn(
        { note },
        'this cell has a backup, which this node does not go on with; nothing behind its end is trimmed (--backup, or --backup none)',
      )
    void this.housekeeping(member)
  }

  private onRole(role: Role, leader: NodeId | undefined): void {
    if (role !== 'recovering' && this.node.recovering) {
      this.node = { ...this.node, recovering: false }
      this.files.saveNode(this.node).catch(error => this.options.onFatal(error as Error))
    }
    if (leader !== undefined) {
      for (const run of this.leaderWaiters.splice(0)) run()
      if (role === 'leader') (this.options.soon ?? setImmediate)(() => this.noteSelf())
    }
  }

  private noteSelf(): void {
    this.member?.members.onSeen(this.self)
  }

  private async housekeeping(member: Member): Promise<void> {
    const { clock, log: logger } = this.options
    const { driver, log, snapshots, members, addresses, removal } = member
    let trimmedBase = log.base.index
    for (let round = 1; this.closed === undefined; round++) {
      await clock.sleep(HOUSEKEEPING_MS)
      if (this.closed !== undefined) return
      try {
        members.onSeen(this.self)
        members.resume()
        removal.look(await addresses.lookForLeader())
        if (snapshots.isDue(driver.state) && log.flushed.index >= driver.state.last.index) {
          await snapshots.take(driver.state)
        }
        // A full disk wants room at once; else it is not worth looking through all timelines so often.
        if (!driver.writable || round % TRIM_EVERY === 0)
          await snapshots.trim(driver.state, driver.commitIndex)
        if (log.base.index > trimmedBase) {
          trimmedBase = log.base.index
          driver.trimmed(log.base)
        }
      } catch (error) {
        if (this.closed === undefined)
          logger.warn({ err: error }, 'housekeeping of the log failed; it is tried again')
      }
    }
  }

  /** The one place where a safekeeper dials another. */
  private dial(address: Address, elsewhere: 'forward' | 'redirect' = 'redirect'): Promise<Connection> {
    const { connect = overTcp } = this.options
    return connect(address, {
      ...this.options.dial,
      elsewhere,
      deadlineMs: PEER_DEADLINE_MS,
      frameBytesMax: PEER_FRAME_BYTES_MAX,
      software: `palimpsest safekeeper ${this.options.name}`,
    })
  }

  // What others ask

  /** HOST:PORT; empty if there is no leader, or it is not known where. */
  get leaderAddress(): string {
    return this.member?.addresses.leaderAddress ?? ''
  }

  hello(from: PeerNode, cellId: string): PeerHelloReply {
    const { member } = this
    // Or a leader died when it had told it of the cell and nobody else of it.
    const isOutside = cellId === member?.cellId && !member.members.all.has(from.nodeId)
    if (member !== undefined && (cellId === '' || isOutside)) member.members.onWaiting(from)
    const { seed } = this.node
    const isFirst = seed.some(({ nodeId }) => nodeId === from.nodeId)
    return {
      type: MessageType.PeerHelloReply,
      cellId: this.node.cellId,
      node: this.self,
      leader: member?.driver.leader ?? '',
      leaderAddress: this.leaderAddress,
      term: member?.driver.term ?? 0,
      seed: isFirst ? seed : [],
    }
  }

  /**
   * A request that this node cannot answer because it does not lead: waits a little if there is no leader at present, then
   * answers it itself (`here`) if it has become the leader, passes it on, or says where to go. A `slow` one has no deadline when
   * it is passed on.
   */
  async elsewhere(
    request: IncomingRequest<{ readonly type: number }>,
    ctx: RequestContext,
    here: () => Promise<void> | void,
    pace: 'quick' | 'slow' = 'quick',
  ): Promise<void> {
    await this.leaderKnown()
    const { member } = this
    if (this.leading !== undefined) return here()
    const address = this.leaderAddress
    if (member === undefined || address === '' || member.driver.role === 'leader')
      throw retryError(
        member === undefined
          ? 'this safekeeper is in no cell yet: it waits for its peers, or to be added'
          : member.removal.problem ||
              'the cell has no leader at present: are a quorum of its safekeepers up and connected?',
      )
    if (ctx.wantsForward) {
      const asked = request as IncomingRequest<Message & Request>
      const reply = ({ message, more, bulk }: ForwardedReply) =>
        ctx.reply(message as ReplyMessage, { more, bulk })
      return pace === 'slow'
        ? this.forwarder.forwardSlow(address, asked, reply, ctx.closed)
        : this.forwarder.forward(address, asked, reply)
    }
    throw new PalimpsestError(
      'refresh',
      `${member.driver.leader} at ${address} leads the cell, not ${this.nodeId}`,
      {
        askAt: address,
      },
    )
  }

  /** Resolves when there is a leader that can serve, or when waiting longer is of no use. */
  async leaderKnown(waitMs = LEADER_WAIT_MS): Promise<boolean> {
    const { clock } = this.options
    const until = clock.monotonicMs() + waitMs
    for (;;) {
      if (this.closed !== undefined) throw this.closed
      const driver = this.member?.driver
      if (
        driver !== undefined &&
        (driver.isServing || (driver.role !== 'leader' && driver.leader !== undefined))
      )
        return true
      if (clock.monotonicMs() >= until) return false
      await clock.sleep(10)
    }
  }

  /** Entries for a member that has lost them. */
  fetched(message: PeerFetch): Promise<{ reply: PeerFetched; payloads: Uint8Array[] }> {
    const { cellId, log } = this.inCell
    return answerFetch(message, cellId, log)
  }

  /** What the log and its repair count; undefined before the node is in a cell. */
  get logStats(): (CellLogStats & { readonly smallFilesRepaired: number }) | undefined {
    const { member } = this
    return member && { ...member.log.stats(), smallFilesRepaired: member.repair.smallFilesRepaired }
  }

  /** Why this node is of no use to clients at present; undefined if it is. */
  get unready(): string | undefined {
    if (this.member === undefined) return 'it is in no cell yet'
    const { driver, removal } = this.member
    if (removal.problem !== '') return removal.problem
    if (driver.leader === undefined) return 'the cell has no leader'
    return driver.isServing || driver.role !== 'leader' ? undefined : 'it has just become the leader'
  }

  /** Redo that is committed and not in the backup, as far as this leader knows; undefined where it makes none. */
  get backupLagBytes(): number | undefined {
    return this.member?.driver.isServing ? this.member.backup?.bytesBehind : undefined
  }

  /** Why the last attempt to back up failed; empty if it did not. */
  get backupProblem(): string {
    return this.member?.backup?.problem ?? ''
  }

  status(): CellStatusReply {
    const { nodeId, member, options, leaderAddress } = this
    return nodeStatus({ nodeId, cellId: this.node.cellId, zone: options.zone, leaderAddress }, member)
  }

  async close(reason: PalimpsestError): Promise<void> {
    this.closed = reason
    this.waiting.abort(reason)
    await this.seeding?.catch(() => {})
    const { member } = this
    if (member !== undefined) {
      member.backup?.close()
      member.timelines.close(reason)
      member.driver.stop(reason)
      member.peers.close()
      await member.snapshots.settled()
      await member.log.close()
    }
    this.forwarder.close()
    await this.files.close()
  }

  /** Hands the lead over, so that the others need no election time-out. */
  async retire(): Promise<void> {
    if (this.member === undefined) return
    const { driver, members, peers } = this.member
    const { clock } = this.options
    const others = members.membership.voters.filter(id => id !== this.nodeId && peers.isConnected(id))
    if (driver.role !== 'leader' || others.length === 0) return
    others.sort((a, b) => driver.matchOf(b) - driver.matchOf(a))
    try {
      driver.transfer(others[0]!)
    } catch {
      return
    }
    const until = clock.monotonicMs() + RETIRE_MS
    while (driver.role === 'leader' && clock.monotonicMs() < until) await clock.sleep(5)
  }
}

function overTcp(address: Address, options: DialOptions): Promise<Connection> {
  return dial([address], ServerRole.SAFEKEEPER, options)
}
