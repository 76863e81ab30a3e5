/**
 * Reads the whole log again and again, slowly, so that what has rotted in its cold parts is found while others still have it. Only the
 * segment that is appended to is left out: what it holds is young, and the next start reads it. docs/log-format.md, "Repair".
 */
import { type Log, silentLog } from '../../shared/log.ts'
import type { Clock } from '../../shared/seams.ts'
import type { LogFiles } from './log-files.ts'
import { checkUnit } from './unit-check.ts'

export interface ScrubOptions {
  /** Read from the disk at most; 0: nothing is. */
  readonly bytesPerSecond: number
  /** From the beginning of one pass to that of the next, at least. */
  readonly everyMs: number
  /** In [0, 1): where a pass begins, so that nodes that are restarted often come to look at everything. */
  readonly random: () => number
  /** After each pass: whatever else is to be looked at. */
  readonly afterPass?: (() => Promise<void>) | undefined
}

/** 6 hours at least between passes, 8 MiB/s. */
export const SCRUB_BYTES_PER_SECOND_DEFAULT = 8 * 1024 * 1024
export const SCRUB_EVERY_MS_DEFAULT = 6 * 3600_000
/** A pause is not worth its timer below. */
const PAUSE_MS_MIN = 5
const LOOK_MS = 1000

export class LogScrub {
  readonly #files: LogFiles
  readonly #clock: Clock
  readonly #log: Log
  #options: ScrubOptions | undefined
  #closed = false
  /** To be slept before the next read. */
  #owedMs = 0
  /** Since the start. */
  bytes = 0
  passes = 0

  constructor(files: LogFiles, clock: Clock, log: Log = silentLog) {
    this.#files = files
    this.#clock = clock
    this.#log = log
  }

  /** Works until `close`. */
  start(options: ScrubOptions): void {
    if (options.bytesPerSecond <= 0 || this.#options !== undefined) return
    this.#options = options
    void this.#run(options)
  }

  async #run({ everyMs, random, afterPass }: ScrubOptions): Promise<void> {
    const clock = this.#clock
    // Not at once: a start has enough to read.
    let dueMs = clock.monotonicMs() + everyMs * random() * 0.1
    while (!this.#closed) {
      await clock.sleep(Math.min(LOOK_MS, everyMs))
      if (this.#closed) return
      if (clock.monotonicMs() < dueMs) continue
      dueMs = clock.monotonicMs() + everyMs
      try {
        await this.#pass(random())
        await afterPass?.()
        this.passes++
      } catch (error) {
        if (!this.#closed)
          this.#log.warn({ err: error }, 'the log could not be looked through; it is tried again')
      }
    }
  }

  /** `from`: which part of the files is skipped at first, and looked at in the end. */
  async #pass(from: number): Promise<void> {
    const files = this.#files
    const units = [...files.packs, ...files.raws.slice(0, -1)]
    const first = Math.floor(units.length * from)
    for (const unit of [...units.slice(first), ...units.slice(0, first)]) {
      if (this.#closed) return
      if (unit.retired) continue
      const { damage } = await checkUnit(files.disk, unit, bytes => this.#pace(bytes))
      if (damage === undefined || unit.retired || this.#closed) continue
      files.damaged(unit, damage)
    }
  }

  async #pace(bytes: number): Promise<void> {
    this.bytes += bytes
    this.#owedMs += (bytes * 1000) / this.#options!.bytesPerSecond
    if (this.#owedMs < PAUSE_MS_MIN) return
    const ms = this.#owedMs
    this.#owedMs = 0
    await this.#clock.sleep(ms)
  }

  close(): void {
    this.#closed = true
  }
}
