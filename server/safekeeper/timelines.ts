/**
 * The timelines whose redo this node keeps, and the rules of each: one writer by epoch, appends exactly at the end,
 * trimming by what every consumer has made durable.
 *
 * The seam for the quorum is here: `append` and `open` become proposals to the consensus core, `committedLsn` its commit
 * point; log-segments.ts and log-writer.ts below stay as they are.
 */
import { join } from 'node:path'
import type { Lsn, TimelineId, WriterEpoch } from '../../protocol/ids.ts'
import type { WalListItem, WalStateReply } from '../../protocol/messages.ts'
import { MessageType } from '../../protocol/messages.ts'
import {
  corruptError,
  fencedError,
  invalidError,
  type PalimpsestError,
  refreshError,
  toPalimpsestError,
} from '../shared/errors.ts'
import type { Log } from '../shared/log.ts'
import type { Clock, Disk } from '../shared/seams.ts'
import { CONTROL_NAME, type ControlState, loadControl, newControlState, saveControl } from './control-file.ts'
import { LogCursor } from './log-cursor.ts'
import { LogSegments } from './log-segments.ts'
import { LogWriter } from './log-writer.ts'

const CONSUMERS_MAX = 64

export interface TimelineStoreOptions {
  readonly disk: Disk
  readonly clock: Clock
  readonly dataDir: string
  readonly segmentBytes: number
  readonly log: Log
  /** A sync failed: the process must end. */
  onFatal(error: Error): void
}

/** One timeline's log. */
export class TimelineLog {
  private readonly options: TimelineStoreOptions
  readonly dir: string
  private control: ControlState
  private readonly segments: LogSegments
  private readonly writer: LogWriter
  private readonly log: Log
  /** Changes of the control file, one after the other. */
  private turn: Promise<unknown> = Promise.resolve()
  private readonly gone_ = new AbortController()

  private constructor(
    options: TimelineStoreOptions,
    dir: string,
    control: ControlState,
    segments: LogSegments,
    writer: LogWriter,
    log: Log,
  ) {
    this.options = options
    this.dir = dir
    this.control = control
    this.segments = segments
    this.writer = writer
    this.log = log
  }

  static async load(options: TimelineStoreOptions, dir: string, timeline: TimelineId): Promise<TimelineLog> {
    const { disk, segmentBytes } = options
    const control = await loadControl(disk, join(dir, CONTROL_NAME))
    if (control.timeline !== timeline)
      throw corruptError(
        `control file in ${dir} is of timeline ${control.timeline}: a folder was copied or renamed`,
      )
    const log = options.log.child({ timeline: control.name })
    const { segments, tail } = await LogSegments.open(
      disk,
      dir,
      timeline,
      segmentBytes,
      control.durableLsn,
      log,
    )
    const writer = new LogWriter(segments, tail, options.clock, log, options.onFatal)
    log.info({ beginLsn: segments.beginLsn, endLsn: tail.endLsn, segments: segments.count }, 'log opened')
    return new TimelineLog(options, dir, control, segments, writer, log)
  }

  get name(): string {
    return this.control.name
  }

  get startLsn(): Lsn {
    return this.control.startLsn
  }

  get beginLsn(): Lsn {
    return this.segments.beginLsn
  }

  get flushedLsn(): Lsn {
    return this.writer.flushedLsn
  }

  /** With one node, what is durable here is committed. */
  get committedLsn(): Lsn {
    return this.writer.flushedLsn
  }

  /** Aborted when the timeline is deleted or the node stops. */
  get gone(): AbortSignal {
    return this.gone_.signal
  }

  /** Makes `writerName` the only writer. Resolves when the epoch is durable and all of the older writers' redo is. */
  open(writerName: string): Promise<{ epoch: WriterEpoch; beginLsn: Lsn; endLsn: Lsn }> {
    return this.exclusive(async () => {
      const before = this.control
      const epoch = (before.epoch + 1) as WriterEpoch
      // 1. From here on appends of older epochs are refused. 2. The epoch is durable before anyone hears of it, or a
      // restart could give it out twice. 3. What older writers have in the queue becomes durable, so that the end we
      // tell is the end that the new writer's first append must meet.
      this.control = { ...before, epoch, writer: writerName, durableLsn: this.writer.flushedLsn }
      try {
        await this.save()
      } catch (error) {
        this.control = before
        throw error
      }
      const endLsn = this.writer.endLsn
      await this.writer.whenFlushed(endLsn)
      this.log.info({ epoch, writer: writerName, endLsn }, 'writer opened the log')
      return { epoch, beginLsn: this.beginLsn, endLsn }
    })
  }

  /**
   * Appends a chunk; resolves with the durable LSN at or beyond its end. A chunk that is wholly in the log already (a
   * writer that came back and did not know) is answered the same and not written again.
   */
  async append(
    epoch: WriterEpoch,
    beginLsn: Lsn,
    wallTimeUs: number,
    payload: Uint8Array,
    payloadCrc: number,
  ): Promise<Lsn> {
    this.checkEpoch(epoch)
    const { writer } = this
    if (payload.length === 0) throw invalidError('an append without redo', beginLsn)
    if (payload.length > writer.payloadBytesMax)
      throw invalidError(
        `an append of ${payload.length} bytes; at most ${writer.payloadBytesMax} fit in a segment`,
        beginLsn,
      )
    const endLsn = (beginLsn + payload.length) as Lsn
    if (!Number.isSafeInteger(endLsn))
      throw invalidError(`append at LSN ${beginLsn} goes beyond 2^53-1`, beginLsn)
    if (beginLsn === writer.endLsn)
      await writer.append({ kind: 'data', beginLsn, endLsn, wallTimeUs, epoch, payload, payloadCrc })
    else await this.duplicate(beginLsn, endLsn, payloadCrc)
    return writer.flushedLsn
  }

  private async duplicate(beginLsn: Lsn, endLsn: Lsn, payloadCrc: number): Promise<void> {
    const { writer } = this
    if (beginLsn > writer.endLsn)
      throw refreshError(
        `append at LSN ${beginLsn}, but the log of "${this.name}" ends at ${writer.endLsn}: open it again and go on there`,
        writer.endLsn,
      )
    if (endLsn > writer.endLsn)
      throw invalidError(
        `append of ${beginLsn} to ${endLsn} overlaps the end of the log of "${this.name}" at ${writer.endLsn}`,
        writer.endLsn,
      )
    const known = writer.recentEntry(beginLsn)
    if (known !== undefined && known.endLsn === endLsn && known.payloadCrc !== payloadCrc)
      throw invalidError(
        `append of ${beginLsn} to ${endLsn} differs from what the log of "${this.name}" has there: the server's redo was ` +
          'written anew (a crash of its machine?); attach it as a new timeline',
        beginLsn,
      )
    await writer.whenFlushed(endLsn)
  }

  /** The log continues at `toLsn`: what lies between is lost to the writer. */
  async skip(epoch: WriterEpoch, fromLsn: Lsn, toLsn: Lsn, wallTimeUs: number): Promise<Lsn> {
    this.checkEpoch(epoch)
    const { writer } = this
    if (fromLsn === writer.endLsn)
      await writer.append({
        kind: 'gap',
        beginLsn: fromLsn,
        endLsn: toLsn,
        wallTimeUs,
        epoch,
        payload: Buffer.alloc(0),
        payloadCrc: 0,
      })
    else await this.duplicate(fromLsn, toLsn, 0)
    return writer.flushedLsn
  }

  private checkEpoch(epoch: WriterEpoch): void {
    const { epoch: current, writer } = this.control
    if (epoch < current)
      throw fencedError(
        `"${this.name}" has a newer writer, ${writer} (epoch ${current}, yours is ${epoch}): stop`,
      )
    if (epoch > current)
      throw invalidError(`epoch ${epoch} of "${this.name}" was never given out (it is ${current})`)
  }

  /** Reads from `fromLsn`, which must be the beginning of a chunk or the end of the log. */
  read(fromLsn: Lsn): LogCursor {
    if (fromLsn < this.beginLsn)
      throw refreshError(
        `the log of "${this.name}" begins at LSN ${this.beginLsn}; what was below is trimmed`,
        this.beginLsn,
      )
    if (fromLsn > this.writer.endLsn)
      throw refreshError(
        `the log of "${this.name}" ends at LSN ${this.writer.flushedLsn}, below ${fromLsn}`,
        this.writer.flushedLsn,
      )
    return new LogCursor(this.segments, this.writer, fromLsn)
  }

  /** Calls back whenever more is committed. Returns what ends it. */
  follow(callback: () => void): () => void {
    return this.writer.follow(callback)
  }

  /** The consumer needs nothing below `durableLsn`. Returns the oldest LSN that is still held. */
  trim(consumer: string, durableLsn: Lsn): Promise<Lsn> {
    return this.exclusive(async () => {
      if (durableLsn > this.writer.flushedLsn)
        throw invalidError(
          `${consumer} claims ${durableLsn} durable, the log ends at ${this.writer.flushedLsn}`,
          durableLsn,
        )
      const before = this.control
      const isNew = before.consumers[consumer] === undefined
      if (isNew && Object.keys(before.consumers).length >= CONSUMERS_MAX)
        throw invalidError(`"${this.name}" has ${CONSUMERS_MAX} consumers already`)
      this.control = {
        ...before,
        consumers: { ...before.consumers, [consumer]: durableLsn },
        durableLsn: this.writer.flushedLsn,
      }
      if (isNew) {
        // Before anything is trimmed on account of the others.
        try {
          await this.save()
        } catch (error) {
          this.control = before
          throw error
        }
      }
      const lowest = Math.min(...Object.values(this.control.consumers)) as Lsn
      const trimmed = await this.segments.trim(lowest)
      if (trimmed > 0) {
        this.log.info({ segments: trimmed, beginLsn: this.beginLsn }, 'log trimmed')
        // A full disk must not keep the log from getting smaller; an older number on disk only keeps more.
        await this.save().catch(error => this.log.warn({ err: error }, 'consumers not recorded'))
      }
      return this.beginLsn
    })
  }

  state(): WalStateReply {
    return {
      type: MessageType.WalStateReply,
      epoch: this.control.epoch,
      beginLsn: this.beginLsn,
      flushedLsn: this.writer.flushedLsn,
      committedLsn: this.committedLsn,
      bytesHeld: this.segments.bytesHeld,
      lastWallTimeUs: this.writer.lastWallTimeUs,
      name: this.name,
      writer: this.control.writer,
      lastError: this.writer.lastError,
      consumers: Object.entries(this.control.consumers).map(([consumer, durableLsn]) => ({
        consumer,
        durableLsn,
      })),
    }
  }

  summary(): WalListItem {
    return {
      timeline: this.control.timeline,
      epoch: this.control.epoch,
      beginLsn: this.beginLsn,
      committedLsn: this.committedLsn,
      name: this.name,
    }
  }

  /** Makes all durable and ends readers. */
  close(reason: PalimpsestError): Promise<void> {
    this.gone_.abort(reason)
    return this.exclusive(async () => {
      const endLsn = await this.writer.close()
      this.control = { ...this.control, durableLsn: endLsn }
      await this.save().catch(error => this.log.warn({ err: error }, 'end of the log not recorded'))
    })
  }

  private save(): Promise<void> {
    return saveControl(this.options.disk, join(this.dir, CONTROL_NAME), this.control)
  }

  private exclusive<T>(run: () => Promise<T>): Promise<T> {
    const result = this.turn.then(run)
    this.turn = result.catch(() => {})
    return result
  }
}

/** All timelines of a node: `timelines/<id>/` below the data folder. */
export class TimelineStore {
  private readonly options: TimelineStoreOptions
  private readonly root: string
  private readonly timelines = new Map<TimelineId, TimelineLog>()
  /** Those that could not be opened, and why: the others are served. */
  private readonly broken = new Map<TimelineId, PalimpsestError>()
  private turn: Promise<unknown> = Promise.resolve()

  private constructor(options: TimelineStoreOptions) {
    this.options = options
    this.root = join(options.dataDir, 'timelines')
  }

  static async open(options: TimelineStoreOptions): Promise<TimelineStore> {
    const store = new TimelineStore(options)
    const { disk, log } = options
    await disk.makeDir(store.root)
    await disk.syncDir(options.dataDir)
    for (const name of await disk.list(store.root)) {
      const dir = join(store.root, name)
      if (/^(new|deleted)-[0-9a-f]{32}$/.test(name)) await disk.remove(dir)
      else if (/^[0-9a-f]{32}$/.test(name)) {
        const id = name as TimelineId
        try {
          store.timelines.set(id, await TimelineLog.load(options, dir, id))
        } catch (error) {
          store.broken.set(id, toPalimpsestError(error, dir))
          log.error({ err: error, timeline: id }, 'timeline cannot be opened; the others are served')
        }
      }
    }
    return store
  }

  get(id: TimelineId): TimelineLog {
    const timeline = this.timelines.get(id)
    if (timeline !== undefined) return timeline
    const error = this.broken.get(id)
    if (error !== undefined) throw error
    throw invalidError(`this safekeeper has no timeline ${id}`)
  }

  list(): TimelineLog[] {
    return [...this.timelines.values()]
  }

  /** Durable when it resolves. The same again is no error. */
  create(id: TimelineId, name: string, startLsn: Lsn): Promise<void> {
    return this.exclusive(async () => {
      const { disk, segmentBytes } = this.options
      if (this.broken.has(id)) throw this.broken.get(id)!
      const known = this.timelines.get(id)
      if (known !== undefined) {
        if (known.name === name && known.startLsn === startLsn) return
        throw invalidError(`timeline ${id} exists as "${known.name}" from LSN ${known.startLsn}`)
      }
      for (const other of this.timelines.values())
        if (other.name === name)
          throw invalidError(`there is a timeline named "${name}"; choose another name or delete it`)
      const temporary = join(this.root, `new-${id}`)
      const dir = join(this.root, id)
      await disk.remove(temporary)
      try {
        await disk.makeDir(temporary)
        await LogSegments.create(disk, temporary, id, startLsn, segmentBytes)
        await saveControl(disk, join(temporary, CONTROL_NAME), newControlState(id, name, startLsn))
      } catch (error) {
        await disk.remove(temporary)
        throw error
      }
      await disk.rename(temporary, dir)
      await disk.syncDir(this.root)
      this.timelines.set(id, await TimelineLog.load(this.options, dir, id))
    })
  }

  delete(id: TimelineId): Promise<void> {
    return this.exclusive(async () => {
      const { disk } = this.options
      const timeline = this.timelines.get(id)
      if (timeline === undefined && !this.broken.has(id))
        throw invalidError(`this safekeeper has no timeline ${id}`)
      this.timelines.delete(id)
      this.broken.delete(id)
      await timeline?.close(invalidError(`timeline ${id} was deleted`))
      const grave = join(this.root, `deleted-${id}`)
      await disk.remove(grave)
      await disk.rename(join(this.root, id), grave)
      await disk.syncDir(this.root)
      await disk.remove(grave)
    })
  }

  close(reason: PalimpsestError): Promise<void> {
    return this.exclusive(async () => {
      await Promise.all(this.list().map(timeline => timeline.close(reason)))
      this.timelines.clear()
    })
  }

  private exclusive<T>(run: () => Promise<T>): Promise<T> {
    const result = this.turn.then(run)
    this.turn = result.catch(() => {})
    return result
  }
}
