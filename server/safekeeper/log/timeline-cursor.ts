/**
 * Reads a timeline's redo in order of its LSNs, never beyond what was applied: from memory near the end, else from raw
 * segments and packs, where CRCs are checked again before bytes leave.
 */
import type { Lsn, TimelineId } from '../../../protocol/ids.ts'
import { invalidError, refreshError } from '../../shared/errors.ts'
import type { LogIndex } from '../core/types.ts'
import type { LogEntry } from './entry.ts'
import type { LogFiles } from './log-files.ts'
import { seekInPacks } from './pack-search.ts'
import { RawSegment } from './raw-segment.ts'
import type { TimelineIndex } from './timeline-index.ts'

/** Read ahead at once. */
const WINDOW_BYTES = 1024 * 1024
/** Of a window that is read ahead at least this part is the timeline's. */
const WINDOW_USE_MIN = 0.25
const FOLLOWING_MAX = 512

/** A range of a timeline's redo as its writer appended it, or a gap. */
export interface TimelineChunk {
  readonly index: LogIndex
  readonly kind: 'redo' | 'gap'
  readonly beginLsn: Lsn
  readonly endLsn: Lsn
  readonly wallTimeUs: number
  /** Empty for a gap. */
  readonly payload: Uint8Array
  readonly payloadCrc: number
}

export interface CursorSource {
  readonly index: TimelineIndex
  readonly files: LogFiles
  read(from: number, last: number, bytesMax: number): Promise<LogEntry[]>
  isRecent(index: number): boolean
}

export class TimelineCursor {
  readonly #source: CursorSource
  readonly #timeline: TimelineId
  #lsn: Lsn
  /** Read ahead, the next one last. */
  #ahead: LogEntry[] = []

  constructor(source: CursorSource, timeline: TimelineId, fromLsn: Lsn) {
    this.#source = source
    this.#timeline = timeline
    this.#lsn = fromLsn
  }

  /** Where the next entry begins. */
  get position(): Lsn {
    return this.#lsn
  }

  /**
   * The next entry, or undefined at the end of what is applied. Throws refresh if it was trimmed, invalid if no entry begins where
   * the cursor was put, corrupt (path, offset, LSN) if the disk gives back something else than was written.
   */
  async next(): Promise<TimelineChunk | undefined> {
    const entry = this.#ahead.pop() ?? (await this.#find())
    if (entry === undefined) return undefined
    if (entry.dropped) this.#trimmed(entry.endLsn)
    this.#lsn = entry.endLsn
    const { index, kind, beginLsn, endLsn, wallTimeUs, payload, payloadCrc } = entry
    return { index, kind: kind as 'redo' | 'gap', beginLsn, endLsn, wallTimeUs, payload, payloadCrc }
  }

  /** Gives up what was read ahead. */
  async close(): Promise<void> {
    this.#ahead = []
  }

  async #find(): Promise<LogEntry | undefined> {
    const { index } = this.#source
    const range = index.range(this.#timeline)
    if (range === undefined || this.#lsn < range.beginLsn) return this.#findPacked(range?.beginLsn)
    if (this.#lsn >= range.endLsn) return undefined
    const hit = index.seek(this.#timeline, this.#lsn)
    if ('before' in hit) this.#noBoundary(hit.before, hit.after)
    if (this.#source.isRecent(hit.index)) return (await this.#source.read(hit.index, hit.index, 0))[0]
    const rows = hit.following(FOLLOWING_MAX)
    const last = this.#windowEnd(rows)
    const entries = await this.#source.read(hit.index, last, WINDOW_BYTES)
    const wanted = new Set(rows)
    this.#ahead = entries.filter(entry => wanted.has(entry.index)).reverse()
    return this.#ahead.pop()
  }

  /** Of the timeline's next entries in the same segment: how far it pays to read on in one piece. */
  #windowEnd(rows: readonly number[]): number {
    const first = rows[0]!
    const segment = this.#source.files.find(first)
    if (!(segment instanceof RawSegment)) return first
    const begin = segment.offsetOf(first)
    let used = 0
    let last = first
    for (const row of rows) {
      if (row > segment.lastIndex) break
      const end = segment.offsetOf(row + 1)
      used += end - segment.offsetOf(row)
      if (end - begin > WINDOW_BYTES || used < (end - begin) * WINDOW_USE_MIN) break
      last = row
    }
    return last
  }

  /** Below what raw segments hold (from `rawBeginLsn` on, if anything). */
  async #findPacked(rawBeginLsn: Lsn | undefined): Promise<LogEntry | undefined> {
    const hit = await seekInPacks(this.#source.files, this.#timeline, this.#lsn)
    // While we looked it may have been packed or trimmed: then look again.
    if (this.#source.index.range(this.#timeline)?.beginLsn !== rawBeginLsn) return this.#find()
    if (hit === undefined) return rawBeginLsn === undefined ? undefined : this.#trimmed(rawBeginLsn)
    const { before, nextLsn, indexes } = hit
    if (nextLsn !== this.#lsn)
      return before === undefined ? this.#trimmed(nextLsn) : this.#noBoundary(before, nextLsn)
    const rows = indexes.slice(0, FOLLOWING_MAX)
    // Entries of other timelines that lie between cost their groups: read on only where there are hardly any.
    let last = 0
    while (last + 1 < rows.length && rows[last + 1]! - rows[0]! <= (last + 1) * 2) last++
    const entries = await this.#source.read(rows[0]!, rows[last]!, WINDOW_BYTES)
    const wanted = new Set(rows)
    this.#ahead = entries.filter(entry => wanted.has(entry.index)).reverse()
    return this.#ahead.pop()
  }

  #noBoundary(before: Lsn, after: Lsn): never {
    throw invalidError(
      `LSN ${this.#lsn} is not where a chunk of the log begins; the nearest are ${before} and ${after}`,
      this.#lsn,
    )
  }

  #trimmed(beginLsn: Lsn | undefined): never {
    const held = beginLsn === undefined ? '' : `; what is held begins at ${beginLsn}`
    throw refreshError(`redo at LSN ${this.#lsn} was trimmed${held}`, beginLsn)
  }
}
