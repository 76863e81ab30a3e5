/**
 * Decides what is packed, packed anew and removed; when, pack-policy.ts says. One job at a time: sealed segments that are applied, oldest
 * first; then packs of which enough is not needed; then small packs that follow each other become one.
 */
import type { Lsn, TimelineId } from '../../../protocol/ids.ts'
import { isCorrupt } from '../../shared/errors.ts'
import type { LogFiles } from './log-files.ts'
import type { PackSummary } from './pack-codec.ts'
import { type PackCache, PackFile } from './pack-file.ts'
import type { PackLedger } from './pack-ledger.ts'
import { type PackPolicy, Quiet } from './pack-policy.ts'
import { jobHeader, type PackJob, type PackRunner, packTarget } from './packer.ts'
import type { RawSegment } from './raw-segment.ts'
import type { TimelineIndex } from './timeline-index.ts'

/** A pack is made anew when so much of its bytes is not needed. */
const DROP_RATIO_MIN = 0.25
/** Packs below this part of a segment's length are joined, */
const SMALL_PART = 1 / 64
/** if at least so many follow each other, */
const JOIN_MIN = 4
/** into one of at most so many entries. */
const JOINED_ENTRIES_MAX = 1 << 20
/** zstd's level while more is appended than can be packed in quiet times. */
const FORCED_LEVEL = 1
/** A full disk is tried again every second or two: the same trouble is told once in this time. */
const WARN_AGAIN_MS = 60_000
/** Packs that one trim looks into beyond the first that must stay: bounds what it reads. */
const EXAMINED_MAX = 32

/** Redo of a timeline that ends at or below is needed by nobody; undefined: the timeline is gone, and so all of its redo. */
export type NeededFrom = (timeline: TimelineId) => Lsn | undefined

export interface PackingOptions {
  readonly files: LogFiles
  readonly index: TimelineIndex
  readonly ledger: PackLedger
  readonly cache: PackCache
  readonly runner: PackRunner
  readonly level: number
  readonly policy: PackPolicy
  readonly nowMs: () => number
  /** Bytes of redo that were written and read until now. */
  readonly trafficBytes: () => number
  appliedIndex(): number
  /** Void entries; ascending. */
  voids(): readonly number[]
}

export class Packing {
  readonly #options: PackingOptions
  readonly #quiet: Quiet
  /** Somebody waits for it: whatever the policy says. */
  #hurried = 0
  #running: Promise<void> | undefined
  #closed = false
  /** The last run ended with an error. */
  #failed = false
  #warnedMs = Number.NEGATIVE_INFINITY
  #neededFrom: NeededFrom | undefined
  /** Packs that go further are kept as they are, whoever needs them. */
  #dropThrough = Number.POSITIVE_INFINITY
  /** Packs that the last trims found worth making anew. */
  #stale = new Set<PackFile>()
  /** Where the next trim goes on looking. */
  #examined = 0
  /** What could not be packed: damaged. Not tried again before it is repaired, or found to be well. */
  readonly #refused = new WeakSet<RawSegment | PackFile>()
  /** Why the last job failed; empty if it did not. */
  lastError = ''
  /** Since the start. */
  packedRawBytes = 0
  packedBytes = 0
  jobs = 0

  constructor(options: PackingOptions) {
    this.#options = options
    this.#quiet = new Quiet(options.policy, options.nowMs, options.trafficBytes)
  }

  /** Something may have become ready. */
  kick(): void {
    if (this.#closed || this.#running !== undefined) return
    if (!this.#isTime() || (this.#nextSegment() === undefined && this.#stale.size === 0)) return
    this.#running = this.#run().finally(() => {
      this.#running = undefined
    })
  }

  /** Does all there is, now; resolves when that is done, or cannot be (a full disk). */
  async idle(): Promise<void> {
    this.#hurried++
    try {
      for (this.kick(); this.#running !== undefined; this.kick()) {
        await this.#running
        if (this.#failed) return
      }
    } finally {
      this.#hurried--
    }
  }

  #isTime(): boolean {
    const { files, index, policy } = this.#options
    // Asked each time, so that the traffic is looked at regularly.
    const { isQuiet } = this.#quiet
    return (
      isQuiet ||
      this.#hurried > 0 ||
      (files.raws.length - 1) * files.segmentBytes > policy.rawBytesMax ||
      index.rows > policy.rowsMax
    )
  }

  async #run(): Promise<void> {
    this.#failed = false
    try {
      while (!this.#closed && this.#isTime()) {
        const did = (await this.#packSegment()) || (await this.#repack())
        if (!did) break
      }
    } catch (error) {
      if (this.#closed) return
      // A full disk, mostly. The next segment or trim tries again.
      this.#failed = true
      const { message } = error as Error
      const nowMs = this.#options.nowMs()
      if (message !== this.lastError || nowMs - this.#warnedMs >= WARN_AGAIN_MS) {
        this.#warnedMs = nowMs
        this.#options.files.log.warn({ err: error }, 'packing the log failed; it is tried again')
      }
      this.lastError = message
    }
  }

  #nextSegment(): RawSegment | undefined {
    const { files, appliedIndex } = this.#options
    const segment = files.raws[0]
    const isReady =
      segment !== undefined &&
      files.raws.length > 1 &&
      segment.count > 0 &&
      segment.lastIndex <= appliedIndex() &&
      !this.#refused.has(segment)
    return isReady ? segment : undefined
  }

  async #packSegment(): Promise<boolean> {
    const { files, index } = this.#options
    const segment = this.#nextSegment()
    if (segment === undefined) return false
    // Not quiet, and it is time all the same: so much waits that speed counts more than size.
    const isForced = !this.#quiet.isQuiet && this.#hurried === 0
    const level = isForced ? Math.min(FORCED_LEVEL, this.#options.level) : this.#options.level
    const { firstIndex, lastIndex } = segment
    const done = await this.#job([segment], {
      type: 'segment',
      path: segment.path,
      target: packTarget(files.dir),
      header: jobHeader([segment], files.state.generation),
      endOffset: segment.endOffset,
      voids: this.#options.voids().filter(other => other >= firstIndex && other <= lastIndex),
      level,
    })
    if (done) index.dropThrough(lastIndex)
    return true
  }

  /** Runs a job and puts its pack in the place of `sources`. False: they are held no more, or are damaged. */
  async #job(sources: readonly (RawSegment | PackFile)[], job: PackJob): Promise<boolean> {
    const { files, ledger, cache, runner } = this.#options
    let made: { pack: PackFile; summary: PackSummary }
    try {
      const { rawBytes, packBytes } = await runner.run(job)
      made = await PackFile.open(files.disk, job.target, cache)
      this.jobs++
      this.packedRawBytes += rawBytes
      this.packedBytes += packBytes
    } catch (error) {
      if (!isCorrupt(error)) {
        if (sources.some(unit => unit.retired)) return false
        throw error
      }
      if (sources.some(unit => unit.retired)) return false
      for (const unit of sources) {
        this.#refused.add(unit)
        // Which of several it is, the repair finds out.
        files.damaged(unit, error)
      }
      this.lastError = error.message
      files.log.error({ err: error }, 'a part of the log is damaged and was not packed')
      return false
    }
    const olds: PackSummary[] = []
    for (const unit of sources) if (unit instanceof PackFile) olds.push(await unit.summary())
    const adopted = await files.adopt(made.pack, sources)
    if (!adopted) return false
    this.lastError = ''
    for (const old of olds) ledger.remove(old)
    ledger.add(made.summary)
    return true
  }

  /**
   * How far the log's beginning may go: the last entry of the files at the beginning of which nothing is needed. Notes packs that
   * are worth making anew.
   */
  async examine(
    keepFrom: number,
    neededFrom: NeededFrom,
    dropThrough: number,
  ): Promise<PackFile | RawSegment | undefined> {
    const { files, index } = this.#options
    this.#neededFrom = neededFrom
    this.#dropThrough = dropThrough
    let free: PackFile | RawSegment | undefined
    let looked = 0
    const packs = [...files.packs]
    for (const pack of packs) {
      if (pack.lastIndex >= keepFrom || this.#refused.has(pack)) break
      const { needed, dropped } = await this.#wanted(pack, neededFrom)
      looked++
      if (needed > 0) {
        if (dropped && pack.lastIndex <= dropThrough) this.#stale.add(pack)
        break
      }
      free = pack
    }
    const left = packs.slice(looked)
    for (let i = 0; i < Math.min(left.length, EXAMINED_MAX); i++) {
      this.#examined = (this.#examined + 1) % left.length
      const pack = left[this.#examined]!
      if (this.#refused.has(pack) || pack.retired || pack.lastIndex > dropThrough) continue
      if ((await this.#wanted(pack, neededFrom)).dropped) this.#stale.add(pack)
    }
    if (looked < packs.length || (packs.length > 0 && free !== packs.at(-1))) return free
    // No packs, or none is needed: sealed segments may go as they are, which helps when the disk is too full for packs.
    for (const raw of files.raws.slice(0, -1)) {
      if (raw.lastIndex >= keepFrom || raw.lastIndex > this.#options.appliedIndex()) break
      if (index.isNeeded(raw.lastIndex, neededFrom)) break
      free = raw
    }
    return free
  }

  /** Bytes of redo in a pack that are needed, and whether so many are not that it pays to make it anew. */
  async #wanted(pack: PackFile, neededFrom: NeededFrom): Promise<{ needed: number; dropped: boolean }> {
    let needed = 0
    let free = 0
    const { damaged } = this.#options.files
    const summary = await pack.summary().catch((error: unknown) => {
      throw pack.retired ? error : damaged(pack, error)
    })
    for (const timeline of summary.timelines) {
      const from = neededFrom(timeline.id) ?? Number.MAX_SAFE_INTEGER
      const { beginLsn, endLsn, droppedEndLsn, rawBytes, storedBytes } = timeline
      if (rawBytes === 0) continue
      if (endLsn <= from) {
        free += storedBytes
        continue
      }
      needed += Math.max(1, storedBytes)
      // What lies between is spread about evenly.
      const begin = Math.max(beginLsn, droppedEndLsn)
      if (from > begin) free += (storedBytes * (from - begin)) / (endLsn - begin)
    }
    return { needed, dropped: free > pack.packBytes * DROP_RATIO_MIN }
  }

  async #repack(): Promise<boolean> {
    const { files, level } = this.#options
    const sources = this.#nextStale() ?? this.#nextSmall()
    const neededFrom = this.#neededFrom
    if (sources === undefined || neededFrom === undefined) return false
    const dropTo = new Map<TimelineId, Lsn>()
    for (const pack of sources.some(({ lastIndex }) => lastIndex > this.#dropThrough) ? [] : sources)
      for (const { id } of (await pack.summary()).timelines)
        dropTo.set(id, neededFrom(id) ?? (Number.MAX_SAFE_INTEGER as Lsn))
    await this.#job(sources, {
      type: 'repack',
      paths: sources.map(pack => pack.path),
      target: packTarget(files.dir),
      header: jobHeader(sources, files.state.generation),
      dropTo: [...dropTo],
      level,
    })
    return true
  }

  #nextStale(): PackFile[] | undefined {
    for (const pack of this.#stale) {
      this.#stale.delete(pack)
      if (this.#options.files.packs.includes(pack) && !this.#refused.has(pack)) return [pack]
    }
    return undefined
  }

  #nextSmall(): PackFile[] | undefined {
    const { files } = this.#options
    let run: PackFile[] = []
    let entries = 0
    for (const pack of files.packs) {
      const count = pack.lastIndex - pack.firstIndex + 1
      const isSmall = pack.packBytes < files.segmentBytes * SMALL_PART && !this.#refused.has(pack)
      if (!isSmall || entries + count > JOINED_ENTRIES_MAX) {
        if (run.length >= JOIN_MIN) return run
        run = []
        entries = 0
        if (!isSmall) continue
      }
      run.push(pack)
      entries += count
    }
    return run.length >= JOIN_MIN ? run : undefined
  }

  /** A file that was thought to be damaged is well. */
  allow(unit: RawSegment | PackFile): void {
    this.#refused.delete(unit)
    this.kick()
  }

  /** The log is another one. */
  forget(): void {
    this.#stale.clear()
  }

  /** The job that is under way is given up, if it runs in a thread; the next start removes what it has written. */
  async close(): Promise<void> {
    this.#closed = true
    await this.#options.runner.close()
    await this.#running
  }
}
