/** Reads a timeline's redo in order: below its branch point its ancestor's, and so on down. */
import type { Lsn, TimelineId } from '../../protocol/ids.ts'
import type { CellState } from './cell-state.ts'
import type { CellLog } from './log/cell-log.ts'
import type { TimelineChunk, TimelineCursor } from './log/timeline-cursor.ts'

/** A stretch of one timeline's own log. */
interface Stretch {
  readonly timeline: TimelineId
  /** Where the next stretch begins; undefined: the last one. */
  readonly untilLsn: Lsn | undefined
}

export class TimelineReader {
  private readonly log: CellLog
  private readonly stretches: Stretch[] = []
  private cursor: TimelineCursor | undefined
  private lsn: Lsn

  /** `fromLsn` must not lie below the beginning of the oldest ancestor. */
  constructor(state: CellState, log: CellLog, id: TimelineId, fromLsn: Lsn) {
    this.log = log
    this.lsn = fromLsn
    let untilLsn: Lsn | undefined
    for (let at = state.timelines.get(id); at !== undefined; ) {
      this.stretches.unshift({ timeline: at.id, untilLsn })
      if (at.startLsn <= fromLsn || at.ancestor === undefined) break
      untilLsn = at.startLsn
      at = state.timelines.get(at.ancestor.timeline)
    }
  }

  /** Where the next chunk begins. */
  get position(): Lsn {
    return this.lsn
  }

  /**
   * The next chunk or gap, which the caller releases, or undefined at the end of what is applied here. Throws refresh if it was trimmed, invalid if none
   * begins where the reader was put, corrupt if the disk gives back something else than was written.
   */
  async next(): Promise<TimelineChunk | undefined> {
    for (;;) {
      const stretch = this.stretches[0]!
      if (stretch.untilLsn !== undefined && this.lsn >= stretch.untilLsn) {
        this.close()
        this.stretches.shift()
        continue
      }
      this.cursor ??= this.log.timelineCursor(stretch.timeline, this.lsn)
      const chunk = await this.cursor.next()
      if (chunk !== undefined) this.lsn = chunk.endLsn
      return chunk
    }
  }

  /** Gives up what was read ahead. */
  close(): void {
    this.cursor?.close()
    this.cursor = undefined
  }
}
