/**
 * Applies what is committed to the cell's state, each entry once and in order: from memory where it can, else from disk. Tells those
 * that wait for an index to be applied.
 */
import { PalimpsestError, toPalimpsestError } from '../shared/errors.ts'
import type { Log } from '../shared/log.ts'
import type { Clock } from '../shared/seams.ts'
import type { Applied, CellState } from './cell-state.ts'
import type { LogIndex } from './core/types.ts'
import type { EntryCache } from './entry-cache.ts'
import type { CellLog } from './log/cell-log.ts'
import type { LogEntry } from './log/entry.ts'

const READ_BYTES = 4 * 1024 * 1024
const AGAIN_MS = 200

export interface ApplierOptions {
  readonly log: CellLog
  readonly cache: EntryCache
  readonly logger: Log
  readonly state: CellState
  readonly clock: Clock
  /** After each entry, in order. */
  readonly onApplied: (entry: LogEntry, result: Applied) => void
  readonly onFatal: (error: Error) => void
}

export class Applier {
  private readonly options: ApplierOptions
  private state_: CellState
  private commit_: LogIndex
  /** Entries are being read from disk. */
  private reading = false
  private stopped = false
  /** The log is being emptied in favour of a snapshot. */
  private installing = false
  private waiters: { readonly index: number; readonly run: () => void }[] = []

  constructor(options: ApplierOptions) {
    this.options = options
    this.state_ = options.state
    this.commit_ = options.state.last.index
  }

  get state(): CellState {
    return this.state_
  }

  get commit(): LogIndex {
    return this.commit_
  }

  /** All up to here is committed. */
  committed(index: LogIndex): void {
    this.commit_ = index
    this.applyCommitted()
  }

  /** A snapshot is about to take the place of the log: what it held is not applied any more. */
  beginInstall(): void {
    this.installing = true
  }

  /** A snapshot takes the place of all that was applied. */
  install(state: CellState): void {
    this.installing = false
    this.state_ = state
    this.commit_ = state.last.index
  }

  /** Calls back when all up to `index` is applied: at once if it is. */
  whenApplied(index: number, run: () => void): void {
    if (this.state_.last.index >= index) run()
    else this.waiters.push({ index, run })
  }

  wake(): void {
    if (this.waiters.length === 0) return
    const { index } = this.state_.last
    const ready = this.waiters.filter(waiter => waiter.index <= index)
    this.waiters = this.waiters.filter(waiter => waiter.index > index)
    for (const { run } of ready) run()
  }

  stop(): void {
    this.stopped = true
  }

  private applyCommitted(): void {
    if (this.reading || this.stopped || this.installing) return
    while (this.state_.last.index < this.commit_) {
      const entry = this.options.cache.get(this.state_.last.index + 1)
      if (entry === undefined) {
        void this.applyFromDisk()
        return
      }
      this.apply(entry)
    }
    this.wake()
  }

  private async applyFromDisk(): Promise<void> {
    this.reading = true
    const state = this.state_
    // What is read of a log that was closed or emptied meanwhile means nothing, nor what fails.
    const isOver = () => this.stopped || this.installing || this.state_ !== state
    try {
      while (this.state_.last.index < this.commit_ && !isOver()) {
        const from = (this.state_.last.index + 1) as LogIndex
        const entries = await this.read(from)
        if (isOver()) break
        for (const entry of entries) if (entry.index === this.state_.last.index + 1) this.apply(entry)
        this.wake()
      }
    } catch (error) {
      if (!isOver()) {
        this.options.onFatal(toPalimpsestError(error, 'applying what is committed'))
        return
      }
    } finally {
      this.reading = false
    }
    this.applyCommitted()
  }

  /** None: what is damaged on this disk could not be had elsewhere either; it is worth asking again. */
  private async read(from: LogIndex): Promise<LogEntry[]> {
    const { log, clock, logger } = this.options
    try {
      return await log.read(from, this.commit_, READ_BYTES)
    } catch (error) {
      if (!(error instanceof PalimpsestError) || error.kind !== 'retry') throw error
      logger.debug({ err: error }, 'what is committed cannot be applied yet')
      await clock.sleep(AGAIN_MS)
      return []
    }
  }

  private apply(entry: LogEntry): void {
    const { log, logger, onApplied } = this.options
    const result = this.state_.apply(entry)
    log.applied(entry, result.void)
    if (result.void) logger.debug({ index: entry.index, reason: result.why }, 'an entry of the log is void')
    onApplied(entry, result)
  }
}
