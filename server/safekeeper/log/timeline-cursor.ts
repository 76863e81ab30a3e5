/**
 * Reads a timeline's redo in order of its LSNs, never beyond what was applied: from memory near the end, else from raw
 * segments and packs, where CRCs are checked again before bytes leave.
 */
import type { Lsn, TimelineId } from '../../../protocol/ids.ts'
import { internalError, invalidError, refreshError } from '../../shared/errors.ts'
import type { LogEntry } from './entry.ts'
import type { LogFiles } from './log-files.ts'
import { seekInPacks } from './pack-search.ts'
import { RawSegment } from './raw-segment.ts'
import type { ReadWindows } from './read-windows.ts'
import { chunkOf, type ReadChunk, type TimelineChunk } from './timeline-chunk.ts'
import type { TimelineIndex } from './timeline-index.ts'

export type { TimelineChunk } from './timeline-chunk.ts'

/** Entries that are looked for at once in raw segments. */
const ROWS_MAX = 512
/** Taken ahead at once of what is in memory: what a slow reader keeps from being forgotten. */
const RECENT_BYTES_MAX = 1024 * 1024
const RECENT_ROWS_MAX = 64
/** How often a read begins again because the file that it read was replaced in the meantime. */
const ATTEMPTS_MAX = 8

export interface CursorSource {
  readonly index: TimelineIndex
  readonly files: LogFiles
  readonly windows: ReadWindows
  /** An entry, if it is still in memory. */
  recent(index: number): LogEntry | undefined
  /** So much redo was read, from wherever. */
  onRead(bytes: number): void
}

export class TimelineCursor {
  readonly #source: CursorSource
  readonly #timeline: TimelineId
  #lsn: Lsn
  /** Read ahead, the next one last. */
  #ahead: ReadChunk[] = []

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
   * The next entry, or undefined at the end of what is applied; whoever gets it releases it. Throws refresh if it was trimmed,
   * invalid if no entry begins where the cursor was put; if the disk gives back something else than was written, retry while that
   * is fetched from elsewhere, else corrupt (path, offset, LSN).
   */
  async next(): Promise<TimelineChunk | undefined> {
    let chunk = this.#ahead.pop()
    if (chunk === undefined) {
      this.#ahead = (await this.#find()) ?? []
      chunk = this.#ahead.pop()
      if (chunk === undefined) return undefined
      this.#source.onRead(bytesOf(this.#ahead) + chunk.payload.length)
    }
    if (chunk.dropped) {
      chunk.release()
      this.#trimmed(chunk.endLsn)
    }
    this.#lsn = chunk.endLsn
    return chunk
  }

  /** Gives up what was read ahead. */
  close(): void {
    for (const { release } of this.#ahead) release()
    this.#ahead = []
  }

  /** The next entries, the first of them last. */
  async #find(): Promise<ReadChunk[] | undefined> {
    const { index, files, windows } = this.#source
    for (let attempt = 1; ; attempt++) {
      const range = index.range(this.#timeline)
      if (range === undefined || this.#lsn < range.beginLsn) {
        const found = await this.#findPacked(range?.beginLsn)
        if (found !== 'again') return found
      } else {
        if (this.#lsn >= range.endLsn) return undefined
        const hit = index.seek(this.#timeline, this.#lsn)
        if ('before' in hit) this.#noBoundary(hit.before, hit.after)
        const recent = this.#recent(hit.index, hit.following)
        if (recent !== undefined) return recent
        const segment = files.find(hit.index)
        if (segment instanceof RawSegment) {
          try {
            const chunks = await segment.readChunks(
              hit.following(ROWS_MAX),
              this.#timeline,
              this.#lsn,
              windows,
            )
            if (!segment.retired) return chunks
            for (const { release } of chunks) release()
          } catch (error) {
            // A file that was packed or trimmed while we read may hold anything by now.
            if (!segment.retired) throw files.damaged(segment, error)
          }
        } else {
          // It has just been packed, and the index does not say so yet.
          const found = await this.#findPacked(range.beginLsn)
          if (found !== 'again') return found
        }
      }
      if (attempt >= ATTEMPTS_MAX)
        throw internalError(`redo at LSN ${this.#lsn} cannot be read: the log changes too fast`)
    }
  }

  #recent(first: number, following: (count: number) => number[]): ReadChunk[] | undefined {
    if (this.#source.recent(first) === undefined) return undefined
    const chunks: ReadChunk[] = []
    let bytes = 0
    for (const row of following(RECENT_ROWS_MAX)) {
      const entry = this.#source.recent(row)!
      bytes += entry.payload.length
      if (chunks.length > 0 && bytes > RECENT_BYTES_MAX) break
      chunks.push(chunkOf(entry))
    }
    return chunks.reverse()
  }

  /** Below what raw segments hold (from `rawBeginLsn` on, if anything). 'again': the log has changed meanwhile. */
  async #findPacked(rawBeginLsn: Lsn | undefined): Promise<ReadChunk[] | 'again' | undefined> {
    const { files, index } = this.#source
    const hit = await seekInPacks(files, this.#timeline, this.#lsn)
    if (index.range(this.#timeline)?.beginLsn !== rawBeginLsn) return 'again'
    if (hit === undefined) return rawBeginLsn === undefined ? undefined : this.#trimmed(rawBeginLsn)
    const { pack, before, nextLsn, rows } = hit
    if (nextLsn !== this.#lsn)
      return before === undefined ? this.#trimmed(nextLsn) : this.#noBoundary(before, nextLsn)
    try {
      const entries = await pack.readRows(rows)
      return entries.map(chunkOf).reverse()
    } catch (error) {
      if (!pack.retired) throw files.damaged(pack, error)
      return 'again'
    }
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

function bytesOf(chunks: readonly TimelineChunk[]): number {
  let bytes = 0
  for (const { payload } of chunks) bytes += payload.length
  return bytes
}
