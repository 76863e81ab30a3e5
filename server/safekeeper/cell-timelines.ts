/**
 * What clients do with timelines, on top of the driver: the leader's look ahead (an append is checked against the state after
 * the last one proposed, so that the next one need not wait for it), duplicates, trims taken together, reads on any node.
 *
 * Everything that changes is an entry of the log; what is refused here before it becomes one is refused with the text that
 * the state would give. A refusal for good (kinds invalid and fenced) leaves only after a read barrier: this node may have been
 * deposed and not know it, or its newest proposals may come to nothing. docs/consensus.md, "Refusals".
 */
import type { Lsn, TimelineId, WriterEpoch } from '../../protocol/ids.ts'
import {
  MessageType,
  type WalListItem,
  type WalParting,
  type WalShowReply,
  type WalStateReply,
} from '../../protocol/messages.ts'
import { invalidError, PalimpsestError, refreshError, retryError } from '../shared/errors.ts'
import type { Log } from '../shared/log.ts'
import type { Clock } from '../shared/seams.ts'
import {
  type Applied,
  appendFault,
  type CellCommand,
  type CellState,
  type TimelineState,
} from './cell-state.ts'
import { commandDraft, type Draft } from './draft.ts'
import type { Driver } from './driver.ts'
import type { CellLog } from './log/cell-log.ts'
import { type LogEntry, NO_PAYLOAD } from './log/entry.ts'
import { isDamage } from './log/unit-check.ts'
import { TimelineReader } from './timeline-reader.ts'

const TRIMS_EVERY_MS = 1000
const TRIMS_PER_ENTRY = 5000
/** A follower of the log is sent elsewhere by a node that has not heard of a leader for so long. */
export const LEADER_SILENCE_MS = 3000

/** Where a timeline will be when all that is proposed has been applied. */
interface Tail {
  endLsn: Lsn
  epoch: WriterEpoch
  proposals: number
}

export class CellTimelines {
  private readonly driver: Driver
  private readonly log: CellLog
  private readonly clock: Clock
  private readonly logger: Log
  private readonly tails = new Map<TimelineId, Tail>()
  private readonly trims = new Map<string, { timeline: TimelineId; consumer: string; lsn: Lsn }>()
  private readonly followers = new Map<TimelineId, Set<() => void>>()
  private readonly graves = new Map<TimelineId, AbortController>()
  private closed: PalimpsestError | undefined

  constructor(driver: Driver, log: CellLog, clock: Clock, logger: Log) {
    this.driver = driver
    this.log = log
    this.clock = clock
    this.logger = logger
  }

  private get state(): CellState {
    return this.driver.state
  }

  has(id: TimelineId): boolean {
    return this.state.timelines.has(id)
  }

  /**
   * The timeline as this node knows it. Throws invalid if it was deleted, which is for ever, and retry if it is not there, which
   * only the leader can tell for sure: `sure` does.
   */
  get(id: TimelineId): TimelineState {
    const timeline = this.state.timelines.get(id)
    if (timeline !== undefined) return timeline
    if (this.state.tombstones.has(id)) throw errorOf(this.state.unknown(id))
    throw retryError(
      `this safekeeper knows no timeline ${id}; there may be news of it that are not here yet: ask again, or the leader`,
    )
  }

  /** On the leader: resolves when the timeline is there; throws invalid if it is certain that it is not. */
  async sure(id: TimelineId): Promise<void> {
    if (this.has(id)) return
    await this.driver.readBarrier()
    if (!this.has(id)) throw errorOf(this.state.unknown(id))
  }

  // Changes, on the leader

  /** Committed when it resolves; so all below. The same again is no error. */
  async create(id: TimelineId, name: string, startLsn: Lsn): Promise<void> {
    await this.command({ do: 'create', timeline: id, name, startLsn })
    this.logger.info({ timeline: id, timelineName: name, lsn: startLsn }, 'timeline made')
  }

  async rename(id: TimelineId, name: string): Promise<void> {
    await this.command({ do: 'rename', timeline: id, name })
  }

  async delete(id: TimelineId): Promise<void> {
    await this.command({ do: 'delete', timeline: id })
  }

  async dropConsumer(id: TimelineId, consumer: string): Promise<void> {
    await this.command({ do: 'dropConsumer', timeline: id, consumer })
  }

  /** Returns where the branch begins: the end of a chunk at or below `lsn`. */
  async branch(id: TimelineId, ancestor: TimelineId, lsn: Lsn, name: string): Promise<Lsn> {
    await this.driver.readBarrier()
    const made = this.state.timelines.get(id)
    if (made?.ancestor?.timeline === ancestor && made.name === name) return made.startLsn
    await this.sure(ancestor)
    const from = this.get(ancestor)
    let at = lsn
    if (lsn < from.endLsn && lsn > from.startLsn)
      at = (await this.log.boundaryAtOrBelow(ancestor, lsn)) ?? lsn
    await this.command({ do: 'branch', timeline: id, ancestor, lsn: at, name })
    return at
  }

  /** Makes `writer` the only one. Its first append must begin at `endLsn`, which is the end of all older ones' redo. */
  async open(id: TimelineId, writer: string): Promise<{ epoch: WriterEpoch; beginLsn: Lsn; endLsn: Lsn }> {
    // The epoch counts from this moment, so without an await where nothing is wrong.
    if (!this.has(id)) await this.sure(id)
    const tail = this.tail(id)
    tail.epoch = (tail.epoch + 1) as WriterEpoch
    const { epoch } = tail
    await this.propose(id, tail, commandDraft({ do: 'open', timeline: id, writer }))
    const timeline = this.get(id)
    this.logger.info({ timeline: id, epoch, writer, lsn: timeline.endLsn }, 'writer opened the log')
    return { epoch, beginLsn: this.state.beginLsn(timeline), endLsn: timeline.endLsn }
  }

  /**
   * Appends a chunk; resolves with the committed LSN at or beyond its end. A chunk that is wholly in the log already (a writer
   * that came back and did not know) is answered the same and not written again. Calls are worked on in their order.
   */
  append(
    id: TimelineId,
    epoch: WriterEpoch,
    beginLsn: Lsn,
    wallTimeUs: number,
    payload: Uint8Array,
    payloadCrc: number,
  ): Promise<Lsn> {
    if (payload.length === 0) throw invalidError('an append without redo', beginLsn)
    if (payload.length > this.log.payloadBytesMax)
      throw invalidError(
        `an append of ${payload.length} bytes; at most ${this.log.payloadBytesMax} fit in a segment`,
        beginLsn,
      )
    const endLsn = (beginLsn + payload.length) as Lsn
    if (!Number.isSafeInteger(endLsn))
      throw invalidError(`append at LSN ${beginLsn} goes beyond 2^53-1`, beginLsn)
    const draft: Draft = {
      kind: 'redo',
      timeline: id,
      epoch,
      beginLsn,
      endLsn,
      wallTimeUs,
      payload,
      payloadCrc,
    }
    return this.extend(id, draft)
  }

  /** The log goes on at `toLsn`: what lies between is lost to the writer. */
  skip(id: TimelineId, epoch: WriterEpoch, fromLsn: Lsn, toLsn: Lsn, wallTimeUs: number): Promise<Lsn> {
    const draft: Draft = {
      kind: 'gap',
      timeline: id,
      epoch,
      beginLsn: fromLsn,
      endLsn: toLsn,
      wallTimeUs,
      payload: NO_PAYLOAD,
      payloadCrc: 0,
    }
    return this.extend(id, draft)
  }

  private async extend(id: TimelineId, draft: Draft): Promise<Lsn> {
    if (this.driver.failed !== undefined) throw this.driver.failed
    // Without an await where nothing is wrong: appends keep their order.
    if (!this.has(id)) await this.sure(id)
    const { epoch, beginLsn, endLsn } = draft
    let timeline = this.get(id)
    let fault = this.faultOf(timeline, draft)
    if (fault !== undefined && isForGood(fault)) {
      await this.driver.readBarrier()
      timeline = this.get(id)
      const certain = appendFault(timeline, timeline.epoch, timeline.endLsn, epoch, beginLsn)
      if (certain !== undefined && isForGood(certain)) throw errorOf(certain)
      fault = this.faultOf(timeline, draft)
      if (fault !== undefined && isForGood(fault))
        throw retryError(`a writer of "${timeline.name}" is about to be let in; ask again`)
    }
    if (fault !== undefined) {
      const end = this.tails.get(id)?.endLsn ?? timeline.endLsn
      if (fault.kind === 'refresh' && beginLsn < end) return this.duplicate(timeline, draft, end)
      throw errorOf(fault)
    }
    if (!this.driver.writable)
      throw retryError(
        `${this.log.lastError}; appends are refused until space is freed or the page server has trimmed the log`,
      )
    const ours = this.tail(id)
    ours.endLsn = endLsn
    const applied = await this.propose(id, ours, draft)
    if (applied.void) {
      // The same chunk came twice and the first one made it.
      if (applied.kind === 'refresh' && beginLsn < this.get(id).endLsn)
        return this.duplicate(this.get(id), draft, this.get(id).endLsn)
      throw errorOf(applied)
    }
    return this.get(id).endLsn
  }

  /** As of all that was proposed before. */
  private faultOf(timeline: TimelineState, { epoch, beginLsn }: Draft): Fault | undefined {
    const tail = this.tails.get(timeline.id)
    return appendFault(
      timeline,
      tail?.epoch ?? timeline.epoch,
      tail?.endLsn ?? timeline.endLsn,
      epoch,
      beginLsn,
    )
  }

  /** Begins below the end: the answer is that of the first time, once it is committed. */
  private async duplicate(timeline: TimelineState, draft: Draft, end: Lsn): Promise<Lsn> {
    const { beginLsn, endLsn, payloadCrc } = draft
    const { id, name } = timeline
    if (endLsn > end) {
      await this.driver.readBarrier()
      const { endLsn: certain } = this.get(id)
      if (beginLsn < certain && endLsn > certain)
        throw invalidError(
          `append of ${beginLsn} to ${endLsn} overlaps the end of the log of "${name}" at ${certain}`,
          certain,
        )
      throw refreshError(`the end of the log of "${name}" is on the move: open it again and go on there`)
    }
    await this.committed(id, endLsn)
    const known = await this.chunkAt(id, beginLsn)
    if (known !== undefined && known.endLsn === endLsn && known.payloadCrc !== payloadCrc)
      throw invalidError(
        `append of ${beginLsn} to ${endLsn} differs from what the log of "${name}" has there: the server's redo was ` +
          'written anew (a crash of its machine?); attach it as a new timeline',
        beginLsn,
      )
    return this.get(id).endLsn
  }

  private async chunkAt(id: TimelineId, lsn: Lsn): Promise<{ endLsn: Lsn; payloadCrc: number } | undefined> {
    try {
      // By index: what this disk has lost comes from the others at once.
      const index = await this.log.firstIndexFrom(id, lsn)
      const [entry] = index === undefined ? [] : await this.log.read(index, index, 0)
      return entry?.beginLsn === lsn ? entry : undefined
    } catch (error) {
      // Trimmed: nothing to compare with.
      if (error instanceof PalimpsestError && error.kind === 'refresh') return undefined
      // Kind corrupt would be for good, and the writer has done nothing wrong. The status tells of the damage.
      if (isDamage(error))
        throw retryError(`what the log has there cannot be compared with: ${error.message}`)
      throw error
    }
  }

  /** Resolves when the timeline is committed up to `lsn`, which was proposed. Rejects when this node does not lead any more. */
  private async committed(id: TimelineId, lsn: Lsn): Promise<void> {
    while (this.get(id).endLsn < lsn) {
      if (!this.tails.has(id) || this.closed !== undefined)
        throw retryError('what was proposed before is not known to be committed: ask again')
      await new Promise<void>(resolve => {
        const unfollow = this.follow(id, () => {
          unfollow()
          resolve()
        })
      })
    }
  }

  /** The consumer needs nothing below `lsn`. Returns the oldest LSN that is kept for sure. */
  async trim(id: TimelineId, consumer: string, lsn: Lsn): Promise<Lsn> {
    let fault = this.state.trimFault(id, consumer, lsn)
    if (fault.void) {
      await this.driver.readBarrier()
      fault = this.state.trimFault(id, consumer, lsn)
      if (fault.void) throw errorOf(fault)
    }
    const timeline = this.get(id)
    const known = timeline.consumers.get(consumer)
    if (known === undefined)
      // Before anything is trimmed on account of the others.
      await this.command({ do: 'trim', trims: [{ timeline: id, consumer, lsn }] })
    else if (known !== lsn) this.trims.set(`${id} ${consumer}`, { timeline: id, consumer, lsn })
    return this.state.beginLsn(this.get(id))
  }

  /** Takes what consumers said since the last time together into entries. */
  async flushTrims(): Promise<void> {
    if (this.trims.size === 0) return
    const all = [...this.trims.values()]
    this.trims.clear()
    if (!this.driver.isServing) return
    for (let at = 0; at < all.length; at += TRIMS_PER_ENTRY) {
      const trims = all.slice(at, at + TRIMS_PER_ENTRY)
      await this.driver.propose(commandDraft({ do: 'trim', trims }))
    }
  }

  private async command(command: CellCommand): Promise<void> {
    if (this.state.check(command).void) {
      await this.driver.readBarrier()
      const early = this.state.check(command)
      if (early.void) throw errorOf(early)
    }
    const applied = await this.driver.propose(commandDraft(command))
    if (applied.void) throw errorOf(applied)
  }

  private tail(id: TimelineId): Tail {
    let tail = this.tails.get(id)
    if (tail === undefined) {
      const { endLsn, epoch } = this.get(id)
      tail = { endLsn, epoch, proposals: 0 }
      this.tails.set(id, tail)
    }
    return tail
  }

  private async propose(id: TimelineId, tail: Tail, draft: Draft): Promise<Applied> {
    tail.proposals++
    let good = false
    try {
      const applied = await this.driver.propose(draft)
      good = !applied.void
      return applied
    } finally {
      tail.proposals--
      // What follows on something that did not come to pass must be looked at anew.
      if ((tail.proposals === 0 || !good) && this.tails.get(id) === tail) {
        this.tails.delete(id)
        if (!good) this.wake(id)
      }
    }
  }

  // Reading

  /** Linearizable; on the leader. */
  async walState(id: TimelineId): Promise<WalStateReply> {
    await this.driver.readBarrier()
    await this.sure(id)
    const timeline = this.get(id)
    return {
      type: MessageType.WalStateReply,
      epoch: timeline.epoch,
      beginLsn: this.state.beginLsn(timeline),
      flushedLsn: timeline.endLsn,
      committedLsn: timeline.endLsn,
      bytesHeld: this.log.timelineStats(id).storedBytes,
      lastWallTimeUs: timeline.lastWallTimeUs,
      name: timeline.name,
      writer: timeline.writer,
      lastError: this.driver.writable ? '' : this.log.lastError,
      consumers: [...timeline.consumers].map(([consumer, durableLsn]) => ({ consumer, durableLsn })),
    }
  }

  /** Linearizable; on the leader. */
  async list(): Promise<WalListItem[]> {
    await this.driver.readBarrier()
    return [...this.state.timelines.values()].map(timeline => ({
      timeline: timeline.id,
      epoch: timeline.epoch,
      beginLsn: this.state.beginLsn(timeline),
      committedLsn: timeline.endLsn,
      name: timeline.name,
    }))
  }

  /** What this node has, on any node. */
  show(id: TimelineId): WalShowReply {
    const timeline = this.get(id)
    const { rawBytes, storedBytes } = this.log.timelineStats(id)
    return {
      type: MessageType.WalShowReply,
      startLsn: timeline.startLsn,
      beginLsn: this.state.beginLsn(timeline),
      committedLsn: timeline.endLsn,
      epoch: timeline.epoch,
      rawBytes,
      storedBytes,
      ancestor: timeline.ancestor?.timeline,
      branches: timeline.branches.size,
      name: timeline.name,
      writer: timeline.writer,
    }
  }

  /** Where the log ended whenever the cell was made again, as far as this node has heard; see `TimelineState`. */
  partings(id: TimelineId): readonly WalParting[] {
    return this.get(id).partings
  }

  /** Reads from `fromLsn`, the beginning of a chunk or the end of the log, on any node; below a branch point its ancestor's. */
  read(id: TimelineId, fromLsn: Lsn): TimelineReader {
    const timeline = this.get(id)
    const state = this.state
    if (fromLsn > timeline.endLsn)
      throw refreshError(
        `the log of "${timeline.name}" ends at LSN ${timeline.endLsn} here, below ${fromLsn}`,
        timeline.endLsn,
      )
    let lowest = timeline
    while (lowest.startLsn > fromLsn && lowest.ancestor !== undefined)
      lowest = state.timelines.get(lowest.ancestor.timeline) ?? lowest
    if (fromLsn < lowest.startLsn)
      throw refreshError(`the log of "${timeline.name}" begins at LSN ${lowest.startLsn}`, lowest.startLsn)
    return new TimelineReader(state, this.log, id, fromLsn)
  }

  endLsn(id: TimelineId): Lsn {
    return this.state.timelines.get(id)?.endLsn ?? (0 as Lsn)
  }

  /** Calls back whenever more of the timeline is committed, and when that may not be learnt here. Returns what ends it. */
  follow(id: TimelineId, callback: () => void): () => void {
    let set = this.followers.get(id)
    if (set === undefined) {
      set = new Set()
      this.followers.set(id, set)
    }
    set.add(callback)
    return () => {
      set.delete(callback)
      if (set.size === 0 && this.followers.get(id) === set) this.followers.delete(id)
    }
  }

  /** Aborted when the timeline is deleted or the node stops. */
  gone(id: TimelineId): AbortSignal {
    let grave = this.graves.get(id)
    if (grave === undefined) {
      grave = new AbortController()
      this.graves.set(id, grave)
      if (this.closed !== undefined) grave.abort(this.closed)
    }
    return grave.signal
  }

  /** Why a follower had better go elsewhere; undefined: it need not. */
  staleness(): PalimpsestError | undefined {
    const silent = this.driver.leaderSilentMs
    if (silent !== undefined && silent < LEADER_SILENCE_MS) return undefined
    return retryError(
      'this safekeeper has not heard of a leader of its cell for a while: what it has may be old',
    )
  }

  private wake(id: TimelineId): void {
    for (const callback of [...(this.followers.get(id) ?? [])]) callback()
  }

  // For the driver

  applied(entry: LogEntry, result: Applied): void {
    if (result.void) return
    if (entry.timeline !== undefined) this.wake(entry.timeline)
    else {
      const command = this.state.lastCommand
      if (command?.do === 'delete')
        this.bury(command.timeline, invalidError(`timeline ${command.timeline} was deleted`))
    }
  }

  private bury(id: TimelineId, reason: PalimpsestError): void {
    this.graves.get(id)?.abort(reason)
    this.graves.delete(id)
    this.log.forget(id)
    this.wake(id)
  }

  /** The whole state is another one. */
  installed(): void {
    for (const id of [...this.graves.keys()])
      if (!this.state.timelines.has(id)) this.bury(id, invalidError(`timeline ${id} was deleted`))
    for (const id of [...this.followers.keys()]) this.wake(id)
  }

  /** Runs until `close`: trims, and followers that must be told that nothing can be learnt here. */
  async run(): Promise<void> {
    while (this.closed === undefined) {
      await this.clock.sleep(TRIMS_EVERY_MS)
      if (this.driver.isServing)
        await this.flushTrims().catch(error => this.logger.debug({ err: error }, 'trims not recorded'))
      else this.trims.clear()
      if (this.staleness() !== undefined) for (const id of [...this.followers.keys()]) this.wake(id)
    }
  }

  close(reason: PalimpsestError): void {
    this.closed = reason
    for (const grave of this.graves.values()) grave.abort(reason)
    for (const id of [...this.followers.keys()]) this.wake(id)
  }
}

type Fault = Extract<Applied, { void: true }>

/** Whether the one who asked will not ask again. */
function isForGood({ kind }: Fault): boolean {
  return kind === 'invalid' || kind === 'fenced'
}

export function errorOf(applied: Fault): PalimpsestError {
  return new PalimpsestError(applied.kind, applied.why, { lsn: applied.lsn })
}
