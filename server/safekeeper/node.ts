/**
 * One safekeeper: what is in its folder, its way into a cell, and then the parts that make it a member: log, consensus, peers,
 * state. docs/consensus.md is the design.
 */
import { join } from 'node:path'
import type { Connection } from '../../protocol/connection.ts'
import { type Address, type DialOptions, dial } from '../../protocol/dial.ts'
import {
  type CellMember,
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
import type { Log } from '../shared/log.ts'
import type { MetricsPart } from '../shared/metrics.ts'
import type { ObjectStore } from '../shared/object-store.ts'
import type { Clock, Disk } from '../shared/seams.ts'
import { Backup } from './backup.ts'
import { BACKUP_NOTE, backupNote } from './backup-note.ts'
import { findCell, type Seed } from './bootstrap.ts'
import { CellState, decodeMembership } from './cell-state.ts'
import { CellTimelines } from './cell-timelines.ts'
import { createCore } from './core/consensus.ts'
import type { CoreTiming, LogIndex, Membership, NodeId, Role, Term } from './core/types.ts'
import { Driver } from './driver.ts'
import { type ForwardedReply, Forwarder } from './forward.ts'
import { CellLog, type CellLogStats } from './log/cell-log.ts'
import type { PackRunner } from './log/packer.ts'
import { SCRUB_BYTES_PER_SECOND_DEFAULT, SCRUB_EVERY_MS_DEFAULT } from './log/scrub.ts'
import { MemberAddresses } from './member-addresses.ts'
import { Members } from './members.ts'
import { type NodeFile, NodeFiles, nameOf } from './node-files.ts'
import { openNodeLog } from './node-log.ts'
import { NodeMetrics } from './node-metrics.ts'
import { NodeRepair } from './node-repair.ts'
import { Peers } from './peers.ts'
import { answerFetch } from './repair-sources.ts'
import { Snapshots } from './snapshots.ts'

/** Frames among peers: an entry of the largest frame that a client may send, and its header. */
const PEER_FRAME_BYTES_MAX = 32 * 1024 * 1024
const PEER_DEADLINE_MS = 5000
/** A request that finds no leader waits for one so long. */
const LEADER_WAIT_MS = 3000
const HOUSEKEEPING_MS = 500
const RETIRE_MS = 1000
/** Rounds of housekeeping. */
const TRIM_EVERY = 4

export interface CellNodeOptions {
  readonly dir: string
  /** 1 to 32 of letters, digits, `_` and `-`. */
  readonly name: string
  /** Where others reach this node; asked for again each time, since a port may be known only later. */
  readonly address: () => string
  readonly zone: string
  /** First members of the cell by name, this node among them; none: a cell of its own, or see `join`. */
  readonly peers: ReadonlyMap<string, Address>
  /** Nodes of a cell that this one shall be added to. */
  readonly join: readonly Address[]
  readonly disk: Disk
  readonly clock: Clock
  /** So many random bytes as hexadecimal digits. */
  readonly randomHex: (bytes: number) => string
  readonly random: () => number
  readonly log: Log
  readonly segmentBytes: number | undefined
  /** What packs sealed segments; this thread unless told. */
  readonly packs?: PackRunner | undefined
  /** How this node dials others: its TLS, its token. */
  readonly dial: DialOptions
  /** Opens a connection to another safekeeper; over TCP unless told. */
  readonly connect?: ((address: Address, options: DialOptions) => Promise<Connection>) | undefined
  /** Runs a function after the events of this turn; setImmediate unless told. */
  readonly soon?: ((run: () => void) => void) | undefined
  readonly timing: Partial<CoreTiming> | undefined
  readonly metrics: MetricsPart | undefined
  /** Where the cell's log is kept as well; store null: nowhere any more; undefined: as it was, by others. */
  readonly backup?: { readonly store: ObjectStore | null; readonly intervalMs: number } | undefined
  /** How the log is looked through for damage; 8 MiB/s, every 6 hours at most, unless told. */
  readonly scrub?: { readonly bytesPerSecond: number; readonly everyMs: number } | undefined
  readonly onFatal: (error: Error) => void
}

/** What there is once the node is in a cell. */
interface Member {
  readonly cellId: string
  readonly log: CellLog
  readonly driver: Driver
  readonly peers: Peers
  readonly timelines: CellTimelines
  readonly members: Members
  readonly addresses: MemberAddresses
  readonly snapshots: Snapshots
  readonly backup: Backup | undefined
  readonly repair: NodeRepair
}

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
    const { disk, clock, dir, log: logger, segmentBytes } = options
    const { cellId, seed } = node
    const seedMembership: Membership = { voters: seed.map(({ nodeId }) => nodeId), learners: [] }
    let { recovering } = node
    const { log, start, state, kept, lostOldest } = await openNodeLog({
      files,
      isRecovering: node.recovering,
      logger,
      self: node.nodeId,
      open: {
        disk,
        clock,
        dir: join(dir, 'log'),
        log: logger,
        ...(segmentBytes !== undefined && { segmentBytes }),
        ...(options.packs !== undefined && { packs: options.packs }),
        onFatal: error => driver.fail(error),
      },
      first: () => {
        const state = new CellState(seedMembership)
        for (const { nodeId, address, zone } of seed) state.nodes.set(nodeId, { address, zone })
        return state
      },
      recover: async () => {
        recovering = true
        this.node = { ...node, recovering }
        await files.saveNode(this.node)
      },
    })
    const base = log.base
    const hardState = await files.loadVote()
    const baseMembership =
      kept.length > 0 ? (await files.loadSnapshot(kept[0]!.index)).membership : seedMembership
    const memberships = [
      { index: Math.max(base.index, 0) as LogIndex, membership: baseMembership },
      ...start.memberships
        .filter(at => at.index > base.index && at.index <= log.lastIndex)
        .map(at => ({ index: at.index, membership: decodeMembership(at.payload) })),
    ]
    const core = createCore({
      self: node.nodeId,
      hardState,
      base,
      applied: state.last.index,
      runs: log.lastIndex === base.index ? [] : start.runs,
      memberships,
      recovering,
      nowMs: clock.monotonicMs(),
      seed: Math.floor(options.random() * 0x7fffffff),
      timing: options.timing,
    })
    const snapshots = new Snapshots(files, log, kept, logger, segmentBytes)
    snapshots.lostOldest = lostOldest
    snapshots.awaitsBackup = (options.backup?.store ?? null) !== null
    const peers = new Peers({
      cellId,
      self: this.self,
      clock,
      random: options.random,
      log: logger,
      dial: address => this.dial(address),
      onMessage: (from, message) => driver.receive(from, message),
      onEntries: (from, message, bulk) => driver.receiveEntries(from, message, bulk),
      onSnapshot: (from, term, last, bytes) => driver.receiveSnapshot(from, term, last, bytes),
      onLost: peer => driver.peerLost(peer),
      onSeen: seen => members.onSeen(seen),
      onSubscribed: seen => {
        members.onSeen(seen)
        addresses.onSubscribed(seen)
      },
    })
    const driver: Driver = new Driver({
      core,
      self: node.nodeId,
      log,
      files,
      transport: peers,
      clock,
      state,
      logger,
      events: {
        onApplied: (entry, result) => {
          snapshots.applied(entry.payload.length)
          const command = driver.state.lastCommand
          backup?.applied(
            entry.index,
            entry.payload.length,
            command?.do === 'note' && command.key === BACKUP_NOTE,
          )
          timelines.applied(entry, result)
          if (command?.do === 'node') addresses.aim()
        },
        onRole: (role, _, leader) => this.onRole(role, leader),
        onMembership: (membership, committed) => {
          members.onMembership(membership, committed)
          addresses.aim()
        },
        onInstalled: () => {
          timelines.installed()
          addresses.aim()
        },
      },
      snapshotToSend: () => snapshots.toSend(),
      onUnreadable: peer => repair.unreadable(peer),
      keepSnapshot: (last, bytes) => snapshots.replaceAll(last, bytes),
      onFatal: error => options.onFatal(error),
      soon: options.soon,
    })
    const timelines = new CellTimelines(driver, log, clock, logger)
    const newest = memberships.at(-1)!.membership
    const members = new Members(
      {
        driver,
        cellId,
        seed,
        self: this.self,
        clock,
        log: logger,
        dial: address => this.dial(address),
        isConnected: id => peers.isConnected(id),
      },
      newest,
      memberships.map(({ membership }) => membership),
    )
    const addresses = new MemberAddresses({
      cellId,
      self: () => this.self,
      configured: options.peers,
      join: options.join,
      driver,
      members,
      dial: address => this.dial(address),
      subscribeAt: targets => peers.setTargets(targets),
    })
    const backup: Backup | undefined =
      options.backup &&
      new Backup({
        ...options.backup,
        cellId,
        driver,
        log,
        snapshots,
        clock,
        logger,
        randomHex: options.randomHex,
        soon: options.soon,
      })
    const repair = new NodeRepair({
      self: node.nodeId,
      cellId,
      driver,
      log,
      members,
      snapshots,
      files,
      store: options.backup?.store ?? undefined,
      addressOf: id => addresses.addressOf(id),
      clock,
      logger,
      dial: address => this.dial(address),
      isConnected: id => peers.isConnected(id),
      scrub: options.scrub ?? {
        bytesPerSecond: SCRUB_BYTES_PER_SECOND_DEFAULT,
        everyMs: SCRUB_EVERY_MS_DEFAULT,
      },
      random: options.random,
    })
    this.member = { cellId, log, driver, peers, timelines, members, addresses, snapshots, backup, repair }
    logger.info({ nodeId: node.nodeId, cellId, lastIndex: log.lastIndex, term: hardState.term }, 'in a cell')
    addresses.aim()
    void driver.run()
    void timelines.run()
    if (backup !== undefined) void backup.run()
    else if (backupNote(state) !== undefined)
      logger.warn(
        { note: backupNote(state) },
        'this cell has a backup, which this node does not go on with; nothing behind its end is trimmed (--backup, or --backup none)',
      )
    void this.housekeeping(this.member)
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
    const { driver, log, snapshots, members, addresses } = member
    let trimmedBase = log.base.index
    for (let round = 1; this.closed === undefined; round++) {
      await clock.sleep(HOUSEKEEPING_MS)
      if (this.closed !== undefined) return
      try {
        members.onSeen(this.self)
        members.resume()
        await addresses.lookForLeader()
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
          : 'the cell has no leader at present: are a quorum of its safekeepers up and connected?',
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
    const driver = this.member?.driver
    if (driver === undefined) return 'it is in no cell yet'
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
    const { member, options } = this
    const base = {
      type: MessageType.CellStatusReply,
      nodeId: this.nodeId,
      cellId: this.node.cellId,
      zone: options.zone,
    } as const
    if (member === undefined)
      return {
        ...base,
        role: 'waiting',
        term: 0,
        leader: '',
        leaderAddress: '',
        leaderSilentMs: undefined,
        beginIndex: 0,
        lastIndex: 0,
        flushedIndex: 0,
        commitIndex: 0,
        appliedIndex: 0,
        diskBytes: 0,
        rawBytes: 0,
        storedBytes: 0,
        timelines: 0,
        writable: true,
        lastError: '',
        members: [],
      }
    const { driver, log } = member
    const stats = log.stats()
    return {
      ...base,
      role: driver.role,
      term: driver.term,
      leader: driver.leader ?? '',
      leaderAddress: this.leaderAddress,
      leaderSilentMs: driver.leaderSilentMs,
      beginIndex: log.beginIndex,
      lastIndex: log.lastIndex,
      flushedIndex: log.flushed.index,
      commitIndex: driver.commitIndex,
      appliedIndex: driver.state.last.index,
      diskBytes: stats.diskBytes,
      rawBytes: stats.packedRawBytes,
      storedBytes: stats.packedBytes,
      timelines: driver.state.timelines.size,
      writable: driver.writable,
      lastError: log.lastError || stats.damageProblem,
      members: describeMembers(member, this.nodeId),
    }
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

function describeMembers({ driver, members, addresses }: Member, self: NodeId): CellMember[] {
  const { voters, outgoing = [], learners } = members.membership
  const kinds = new Map<NodeId, CellMember['kind']>()
  for (const id of outgoing) kinds.set(id, 'outgoing')
  for (const id of learners) kinds.set(id, 'learner')
  for (const id of voters) kinds.set(id, 'voter')
  return [...kinds].map(([nodeId, kind]) => ({
    nodeId,
    address: addresses.addressOf(nodeId),
    zone: driver.state.nodes.get(nodeId)?.zone ?? '',
    kind,
    matchIndex: driver.role === 'leader' ? driver.matchOf(nodeId) : 0,
    silentMs: nodeId === self ? 0 : driver.silentMs(nodeId),
  }))
}
