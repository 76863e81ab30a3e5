/**
 * What makes a node that is in a cell a member of it: its log as it is on disk, the consensus over it, and everything around the two.
 * Here they are made and joined together; nothing runs before the node starts it.
 */
import { join } from 'node:path'
import type { PeerNode } from '../../protocol/messages.ts'
import { Backup } from './backup.ts'
import { BACKUP_NOTE } from './backup-note.ts'
import { CellState, decodeMembership } from './cell-state.ts'
import { CellTimelines } from './cell-timelines.ts'
import { createCore } from './core/consensus.ts'
import type { LogIndex, Membership, NodeId, Role } from './core/types.ts'
import { Driver } from './driver.ts'
import { DuplicateNodes } from './duplicate-nodes.ts'
import type { CellLog } from './log/cell-log.ts'
import { SCRUB_BYTES_PER_SECOND_DEFAULT, SCRUB_EVERY_MS_DEFAULT } from './log/scrub.ts'
import { MemberAddresses } from './member-addresses.ts'
import { Members } from './members.ts'
import type { NodeFile, NodeFiles } from './node-files.ts'
import { openNodeLog } from './node-log.ts'
import type { CellNodeOptions } from './node-options.ts'
import { NodeRepair } from './node-repair.ts'
import type { DialPeer } from './peer-hello.ts'
import { Peers } from './peers.ts'
import { RemovalWatch } from './removal.ts'
import { Snapshots } from './snapshots.ts'

/** What there is once the node is in a cell. */
export interface Member {
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
  readonly removal: RemovalWatch
  readonly duplicates: DuplicateNodes
}

export interface MemberParts {
  readonly options: CellNodeOptions
  readonly files: NodeFiles
  /** Of a node that is in a cell. */
  readonly node: NodeFile
  readonly self: () => PeerNode
  readonly dial: DialPeer
  /** Makes it durable that this node must not vote. */
  readonly recover: () => Promise<void>
  readonly onRole: (role: Role, leader: NodeId | undefined) => void
}

/** Reads the log. Throws kind corrupt for damage that nobody else could repair: of a node that is alone. */
export async function makeMember(parts: MemberParts): Promise<Member> {
  const { options, files, node, dial } = parts
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
      await parts.recover()
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
    self: parts.self(),
    clock,
    random: options.random,
    log: logger,
    dial,
    onMessage: (from, message) => driver.receive(from, message),
    onEntries: (from, message, bulk) => driver.receiveEntries(from, message, bulk),
    onSnapshot: (from, term, last, bytes) => driver.receiveSnapshot(from, term, last, bytes),
    onLost: peer => driver.peerLost(peer),
    onSeen: seen => members.onSeen(seen),
    onSubscribed: seen => {
      members.onSeen(seen)
      addresses.onSubscribed(seen)
      duplicates.onSubscribed(seen)
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
      onRole: (role, _, leader) => parts.onRole(role, leader),
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
      self: parts.self(),
      clock,
      log: logger,
      dial,
      isConnected: id => peers.isConnected(id),
    },
    newest,
    memberships.map(({ membership }) => membership),
  )
  const addresses = new MemberAddresses({
    cellId,
    self: parts.self,
    configured: options.peers,
    join: options.join,
    driver,
    members,
    isConnected: id => peers.isConnected(id),
    dial,
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
    dial,
    isConnected: id => peers.isConnected(id),
    scrub: options.scrub ?? {
      bytesPerSecond: SCRUB_BYTES_PER_SECOND_DEFAULT,
      everyMs: SCRUB_EVERY_MS_DEFAULT,
    },
    random: options.random,
  })
  const removal = new RemovalWatch({ cellId, self: parts.self, driver, members, dial, clock, log: logger })
  const duplicates = new DuplicateNodes({ isMember: id => members.all.has(id), clock, log: logger })
  return {
    cellId,
    log,
    driver,
    peers,
    timelines,
    members,
    addresses,
    snapshots,
    backup,
    repair,
    removal,
    duplicates,
  }
}
