/**
 * What must hold of whole nodes. Told of each answer that a node gives, at the moment that it leaves, and asked after each event:
 *
 * - votes: a node knows what it has voted in its term, once that is durable, whatever has happened to it since;
 * - durability: what a leader acknowledges is, at that moment, on a quorum's durable images: recovery there finds it;
 * - leader completeness: a leader that begins to serve has all that was acknowledged in older terms (timelines, ends, epochs,
 *   deletions), and one term has one leader;
 * - one history: what is acknowledged or read of a timeline at an LSN is the same bytes, whoever says so, at all times, and bytes
 *   that a writer has sent;
 * - states: two nodes that have applied the same index have the same state;
 * - commit and applied index of a process never fall;
 * - fencing: an epoch is given out once; no append succeeds that was sent after a newer epoch was known;
 * - trimming: no node gives up what a consumer has not made durable, or what the backup does not hold (node-backup.ts);
 * - backup: a cell that is made again from it has all that was acknowledged and noted as backed up, and nothing else (restore.ts);
 * - a deleted timeline stays deleted.
 */
import type { TimelineId } from '../../protocol/ids.ts'
import { isQuorum } from '../../server/safekeeper/core/quorum.ts'
import type { HardState, LogIndex, Membership, NodeId } from '../../server/safekeeper/core/types.ts'
import { CellLog, type LogEntry } from '../../server/safekeeper/log/cell-log.ts'
import { silentLog } from '../../server/shared/log.ts'
import type { MemoryDisk } from '../support/memory-disk.ts'
import { Violation } from './core-checker.ts'
import { DATA_DIR, type SimHost } from './sim-host.ts'

export interface Chunk {
  readonly begin: number
  readonly end: number
  readonly crc: number
}

/** What the world knows of a timeline. */
export class ModelTimeline {
  readonly id: TimelineId
  name: string
  startLsn: number
  ancestor: ModelTimeline | undefined
  /** Deletion asked for, and acknowledged in this term. */
  deleting = false
  deletedIn = 0
  deletedAt = 0
  /** Made, in this term; and what the leader had applied when it said so. */
  madeIn = 0
  madeAt = 0
  /** End of what was acknowledged, by the leader's term. */
  readonly ackedEnds = new Map<number, number>()
  ackedEnd = 0
  /** By what the leader had applied when it said so. */
  readonly ackedAt: { readonly applied: number; readonly end: number }[] = []
  acks = 0
  /** By beginning: what is known to be committed. */
  readonly chunks = new Map<number, Chunk>()
  readonly sent = new Set<string>()
  /** CRCs of what was sent where something else was already. */
  readonly contradictions = new Set<number>()
  /** By epoch: term in which it was given out. */
  readonly epochs = new Map<number, number>()
  epoch = 0
  /** Its maker knows that it is there, and its consumers are known. */
  isInUse = false
  /** What each consumer has claimed at most. */
  readonly consumers = new Map<string, number>()
  branches = 0

  constructor(id: TimelineId, name: string, startLsn: number, ancestor?: ModelTimeline) {
    this.id = id
    this.name = name
    this.startLsn = startLsn
    this.ackedEnd = startLsn
    this.ancestor = ancestor
  }

  get isAlive(): boolean {
    return this.madeIn > 0 && !this.deleting
  }

  /** End of what was acknowledged and lies at or below an index for sure. */
  ackedUpTo(index: number): number {
    let end = 0
    for (const acked of this.ackedAt) if (acked.applied <= index && acked.end > end) end = acked.end
    return end
  }

  /** Below it nothing may be asked for. */
  get neededFrom(): number {
    return this.consumers.size === 0 ? this.startLsn : Math.min(...this.consumers.values())
  }
}

export class NodeChecker {
  readonly timelines = new Map<TimelineId, ModelTimeline>()
  /** Nodes whose disks were lost or damaged: what they had counts as kept. */
  readonly forgotten = new Set<NodeId>()
  acks = 0
  durabilityChecks = 0
  chunksRead = 0
  leaders = 0
  private readonly hosts: ReadonlyMap<string, SimHost>
  private readonly fail: (error: Error) => void
  private readonly leaderOf = new Map<number, NodeId>()
  private readonly served = new Set<string>()
  /** What a node has made durable: its vote, by `node term`. */
  private readonly votes = new Map<string, NodeId>()
  private readonly progress = new Map<object, { commit: number; applied: number }>()
  private readonly states = new Map<number, { text: string; by: NodeId }>()
  private readonly membershipsOf = new Map<NodeId, Membership[]>()
  private events = 0

  constructor(hosts: ReadonlyMap<string, SimHost>, fail: (error: Error) => void) {
    this.hosts = hosts
    this.fail = fail
  }

  demand(holds: boolean, what: () => string): void {
    if (!holds) this.fail(new Violation(what()))
  }

  // ---- what is said ----

  sending(timeline: ModelTimeline, chunk: Chunk): void {
    timeline.sent.add(`${chunk.begin} ${chunk.end} ${chunk.crc}`)
  }

  /** A node has made this vote durable. */
  voted(node: NodeId, { term, votedFor }: HardState): void {
    const before = this.votes.get(`${node} ${term}`)
    this.demand(before === undefined || before === votedFor, () => {
      return `${node} has voted for ${before} in term ${term}, and now votes for ${votedFor ?? 'nobody'}`
    })
    if (votedFor !== undefined) this.votes.set(`${node} ${term}`, votedFor)
  }

  /** Somebody was told that this is in the log. */
  seen(timeline: ModelTimeline, chunk: Chunk, by: string): void {
    const { begin, end, crc } = chunk
    const text = () => `${timeline.name} at ${begin} to ${end}, CRC ${crc}, by ${by}`
    this.demand(timeline.sent.has(`${begin} ${end} ${crc}`), () => `no writer has sent ${text()}`)
    const known = timeline.chunks.get(begin)
    if (known === undefined) timeline.chunks.set(begin, chunk)
    else
      this.demand(known.end === end && known.crc === crc, () => {
        return `${text()}: but it was ${begin} to ${known.end}, CRC ${known.crc}`
      })
  }

  /** A leader says so to a writer, in this very moment. */
  acknowledged(host: SimHost, timeline: ModelTimeline, chunk: Chunk, sampled: boolean): void {
    // There was nothing left to compare it with.
    if (timeline.contradictions.has(chunk.crc)) return
    const { driver, members } = host.node!
    const { term } = driver
    this.seen(timeline, chunk, `${host.name} as leader in term ${term}`)
    this.acks++
    timeline.acks++
    timeline.ackedAt.push({ applied: driver.state.last.index, end: chunk.end })
    timeline.ackedEnd = Math.max(timeline.ackedEnd, chunk.end)
    timeline.ackedEnds.set(term, Math.max(timeline.ackedEnds.get(term) ?? 0, chunk.end))
    if (sampled) {
      const known = this.membershipsOf.get(host.nodeId!) ?? [members.membership]
      void this.checkDurable(host.name, timeline, chunk, driver.commitIndex, [...known])
    }
  }

  private async checkDurable(
    leader: string,
    timeline: ModelTimeline,
    chunk: Chunk,
    commit: LogIndex,
    memberships: Membership[],
  ): Promise<void> {
    const images = [...this.hosts.values()].map(host => ({
      nodeId: host.nodeId,
      image: host.disk.crash(
        () => 0,
        path => path.startsWith(`${DATA_DIR}/log/`) && !path.endsWith('/reserve'),
      ),
    }))
    const holders = new Set<NodeId>(this.forgotten)
    for (const { nodeId, image } of images) {
      // What is damaged counts as kept, and cannot be read.
      if (nodeId === undefined || holders.has(nodeId)) continue
      if (await this.holds(image, timeline.id, chunk, commit)) holders.add(nodeId)
    }
    this.durabilityChecks++
    this.demand(
      memberships.some(membership => isQuorum(membership, id => holders.has(id))),
      () =>
        `${leader} acknowledges ${timeline.name} ${chunk.begin} to ${chunk.end}, which only ${[...holders].join(', ') || 'nobody'} has on disk, of ${JSON.stringify(memberships.at(-1))}`,
    )
  }

  private async holds(image: MemoryDisk, id: TimelineId, chunk: Chunk, commit: number): Promise<boolean> {
    const dir = `${DATA_DIR}/log`
    try {
      if (!(await CellLog.exists(image, dir))) return false
      const { log } = await CellLog.open({
        disk: image,
        clock: { wallTimeUs: () => 0, monotonicMs: () => 0, sleep: () => new Promise(() => {}) },
        dir,
        log: silentLog,
        segmentBytes: 64 * 1024,
        reserveBytes: 0,
        appliedTo: 0 as LogIndex,
        acceptDamage: true,
        packs: 'off',
        onFatal: () => {},
      })
      // Given up since: then it was there.
      if (log.base.index >= commit) return true
      // A duplicate's answer is of an older entry; the leader has appended since.
      for (let from = commit; from > log.base.index; from -= 200) {
        const first = Math.max(log.base.index, from - 200) + 1
        let next = first
        while (next <= Math.min(from, log.lastIndex)) {
          const entries: LogEntry[] = await log.read(
            next as LogIndex,
            Math.min(from, log.lastIndex) as LogIndex,
            1024 * 1024,
          )
          for (const entry of entries)
            if (entry.timeline === id && entry.beginLsn === chunk.begin && entry.endLsn === chunk.end)
              if (entry.payloadCrc === chunk.crc) return true
          next += entries.length
        }
      }
      return log.base.index > 0
    } catch (error) {
      this.fail(new Violation(`a durable image cannot be read: ${(error as Error).stack}`))
      return false
    }
  }

  opened(host: SimHost, timeline: ModelTimeline, epoch: number, endLsn: number): void {
    const { term } = host.node!.driver
    this.demand(!timeline.epochs.has(epoch), () => `epoch ${epoch} of ${timeline.name} is given out twice`)
    timeline.epochs.set(epoch, term)
    timeline.epoch = Math.max(timeline.epoch, epoch)
    const acked = endUpTo(timeline, term)
    this.demand(endLsn >= acked, () => {
      return `${host.name} opens ${timeline.name} at ${endLsn}, but ${acked} was acknowledged`
    })
  }

  // ---- after each event ----

  look(): void {
    this.events++
    for (const host of this.hosts.values()) {
      const { node } = host
      if (node === undefined || node.unready === 'it is in no cell yet') continue
      const { driver, members } = node
      this.checkProgress(host, driver)
      const { term, hardState } = driver
      const voted = this.votes.get(`${node.nodeId} ${hardState.term}`)
      this.demand(voted === undefined || voted === hardState.votedFor, () => {
        return `${node.nodeId} has voted for ${voted} in term ${hardState.term}, and does not know it any more`
      })
      if (driver.role === 'leader') {
        const before = this.leaderOf.get(term)
        this.demand(before === undefined || before === node.nodeId, () => {
          return `${node.nodeId} leads in term ${term}, but so does ${before}`
        })
        this.leaderOf.set(term, node.nodeId)
      }
      const known = this.membershipsOf.get(node.nodeId) ?? []
      if (known.at(-1) !== members.membership) {
        known.push(members.membership)
        if (known.length > 3) known.shift()
        this.membershipsOf.set(node.nodeId, known)
      }
      if (driver.isServing && !this.served.has(`${term} ${node.nodeId} ${host.starts}`)) {
        this.served.add(`${term} ${node.nodeId} ${host.starts}`)
        this.leaders++
        this.checkLeader(host)
      }
      if (this.events % 16 === 0) this.checkTrimming(host)
    }
  }

  private checkProgress(host: SimHost, driver: NonNullable<SimHost['node']>['driver']): void {
    const commit = driver.commitIndex
    const { state } = driver
    const applied = state.last.index
    const before = this.progress.get(driver)
    if (before?.commit === commit && before.applied === applied) return
    this.demand(before === undefined || commit >= before.commit, () => {
      return `${host.name}: commit falls from ${before!.commit} to ${commit}`
    })
    this.demand(before === undefined || applied >= before.applied, () => {
      return `${host.name}: applied falls from ${before!.applied} to ${applied}`
    })
    this.progress.set(driver, { commit, applied })
    if (applied === before?.applied || applied % 4 !== 0 || applied === 0) return
    const text = Buffer.from(state.encode()).toString()
    const known = this.states.get(applied)
    if (known === undefined) this.states.set(applied, { text, by: host.nodeId! })
    else
      this.demand(known.text === text, () => {
        return `${host.nodeId} and ${known.by} have applied ${applied} entries and differ: ${difference(text, known.text)}`
      })
  }

  private checkLeader(host: SimHost): void {
    const { state, term } = host.node!.driver
    for (const timeline of this.timelines.values()) {
      const { name } = timeline
      const has = state.timelines.get(timeline.id)
      if (timeline.deletedIn > 0 && timeline.deletedIn <= term)
        this.demand(
          has === undefined,
          () => `${host.name} leads in term ${term} with ${name}, which was deleted`,
        )
      if (timeline.madeIn === 0 || timeline.madeIn > term || timeline.deleting) continue
      this.demand(has !== undefined, () => `${host.name} leads in term ${term} without ${name}`)
      if (has === undefined) continue
      const end = endUpTo(timeline, term)
      this.demand(has.endLsn >= end, () => {
        return `${host.name} leads in term ${term} with ${name} up to ${has.endLsn}, but ${end} was acknowledged`
      })
      for (const [epoch, given] of timeline.epochs)
        if (given <= term)
          this.demand(has.epoch >= epoch, () => {
            return `${host.name} leads in term ${term} with epoch ${has.epoch} of ${name}, but ${epoch} was given out`
          })
    }
  }

  private checkTrimming(host: SimHost): void {
    const { state } = host.node!.driver
    for (const timeline of this.timelines.values()) {
      const has = state.timelines.get(timeline.id)
      if (has === undefined) continue
      this.demand(
        !state.tombstones.has(timeline.id),
        () => `${host.name} has ${timeline.name} and its tombstone`,
      )
      if (timeline.consumers.size === 0 || has.consumers.size === 0) continue
      const begin = state.beginLsn(has)
      for (const [consumer, lsn] of has.consumers) {
        const claimed = timeline.consumers.get(consumer) ?? 0
        this.demand(lsn <= claimed, () => {
          return `${host.name} holds ${consumer} of ${timeline.name} to be at ${lsn}, it is at ${claimed}`
        })
      }
      const lowest = Math.max(timeline.startLsn, Math.max(...timeline.consumers.values()))
      this.demand(begin <= lowest, () => `${host.name} begins ${timeline.name} at ${begin}, beyond ${lowest}`)
    }
  }
}

/** End of what was acknowledged in terms up to this one. */
function endUpTo(timeline: ModelTimeline, term: number): number {
  let end = 0
  for (const [at, lsn] of timeline.ackedEnds) if (at <= term && lsn > end) end = lsn
  return end
}

function difference(a: string, b: string): string {
  let at = 0
  while (a[at] === b[at]) at++
  const from = Math.max(0, at - 100)
  return `${a.slice(from, at + 100)} and ${b.slice(from, at + 100)}`
}
