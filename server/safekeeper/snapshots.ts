/**
 * Snapshots of the cell's state, and how far the log may be trimmed.
 *
 * A snapshot holds no redo. So a member may be sent one only if no redo that is needed lies at or below its index, and
 * the log is trimmed only up to such a one: `kept[0]` is at or above the log's base and below all redo that is needed.
 * The newest one shortens the next start. Those between let the beginning move on later.
 */
import type { Lsn, TimelineId } from '../../protocol/ids.ts'
import { internalError, isCorrupt, retryError } from '../shared/errors.ts'
import type { Log } from '../shared/log.ts'
import { Turns } from '../shared/turns.ts'
import { backupNote } from './backup-note.ts'
import type { CellState } from './cell-state.ts'
import type { EntryId, LogIndex } from './core/types.ts'
import type { CellLog } from './log/cell-log.ts'
import type { NodeFiles } from './node-files.ts'

const KEPT_MAX = 16
/** After so much redo (a segment's worth), or so many times the last snapshot's own length, there is a new one. */
const EVERY_BYTES = 64 * 1024 * 1024
const EVERY_ENTRIES = 65_536
const EVERY_TIMES_ITS_LENGTH = 32

export class Snapshots {
  private readonly files: NodeFiles
  private readonly log: CellLog
  private readonly logger: Log
  private readonly everyBytes: number
  /** Ascending. */
  private kept: EntryId[]
  /** Where the redo lies that a timeline needs from an LSN on; looked up again only when that moves. */
  private readonly firstNeeded = new Map<TimelineId, { readonly lsn: Lsn; readonly index: number }>()
  private bytesSince = 0
  private lastBytes = 0
  private readonly turns = new Turns()
  /**
   * The oldest was lost to damage: until no redo is needed below the one after it, none may be sent. Its file stays until then, so that
   * the next start knows it too.
   */
  lostOldest: LogIndex | undefined
  /** The cell is to have a backup, whether or not it has agreed on one yet: until then nothing is given up. */
  awaitsBackup = false

  constructor(
    files: NodeFiles,
    log: CellLog,
    kept: readonly EntryId[],
    logger: Log,
    everyBytes = EVERY_BYTES,
  ) {
    this.everyBytes = everyBytes
    this.files = files
    this.log = log
    this.kept = [...kept]
    this.logger = logger
  }

  get newest(): EntryId | undefined {
    return this.kept.at(-1)
  }

  /** An entry was applied. */
  applied(payloadBytes: number): void {
    this.bytesSince += payloadBytes
  }

  /** Whether it is time for another one. */
  isDue(state: CellState): boolean {
    const entries = state.last.index - (this.newest?.index ?? 0)
    if (entries === 0) return false
    return (
      this.bytesSince >= Math.max(this.everyBytes, this.lastBytes * EVERY_TIMES_ITS_LENGTH) ||
      entries >= EVERY_ENTRIES
    )
  }

  /** Durable when it resolves. All that the state holds must be flushed here. */
  take(state: CellState): Promise<void> {
    const last = state.last
    const bytes = state.encode()
    this.bytesSince = 0
    this.lastBytes = bytes.length
    return this.turns.run(async () => {
      if (last.index <= (this.newest?.index ?? -1)) return
      await this.log.settleApplied()
      await this.files.saveSnapshot(last.index, bytes)
      this.kept.push(last)
      await this.thin()
    })
  }

  /** Drops what lies between others rather than the ends. */
  private async thin(): Promise<void> {
    while (this.kept.length > KEPT_MAX) {
      // The one whose neighbours are closest to each other.
      let best = 1
      for (let i = 1; i + 1 < this.kept.length; i++) if (this.gap(i) < this.gap(best)) best = i
      const [dropped] = this.kept.splice(best, 1)
      await this.files.removeSnapshot(dropped!.index)
    }
  }

  private gap(i: number): number {
    return this.kept[i + 1]!.index - this.kept[i - 1]!.index
  }

  /** The leader's, in place of everything that was here. Durable when it resolves. */
  replaceAll(last: EntryId, bytes: Uint8Array): Promise<void> {
    return this.turns.run(async () => {
      await this.files.saveSnapshot(last.index, bytes)
      const old = this.kept.filter(snapshot => snapshot.index !== last.index)
      this.kept = [last]
      await this.forgetLost()
      this.firstNeeded.clear()
      this.bytesSince = 0
      for (const { index } of old) await this.files.removeSnapshot(index)
    })
  }

  /** Looks whether all snapshots read back; gives up those that do not. Returns their names. */
  async check(state: CellState): Promise<string[]> {
    const lost = await this.turns.run(async () => {
      const lost: LogIndex[] = []
      for (const { index } of [...this.kept])
        try {
          await this.files.loadSnapshot(index)
        } catch (error) {
          if (!isCorrupt(error)) throw error
          lost.push(index)
        }
      if (lost.length === 0) return lost
      if (lost.includes(this.kept[0]!.index)) this.lostOldest ??= this.kept[0]!.index
      this.kept = this.kept.filter(({ index }) => !lost.includes(index))
      for (const index of lost) if (index !== this.lostOldest) await this.files.removeSnapshot(index)
      return lost
    })
    // The next start is to begin where it would have.
    if (lost.length > 0 && this.log.flushed.index >= state.last.index) await this.take(state)
    return lost.map(index => `snapshot-${index}.json`)
  }

  private async forgetLost(): Promise<void> {
    const { lostOldest } = this
    if (lostOldest === undefined) return
    this.lostOldest = undefined
    if (!this.kept.some(({ index }) => index === lostOldest)) await this.files.removeSnapshot(lostOldest)
  }

  /** What a member gets that needs what is trimmed: the oldest. */
  toSend(): Promise<{ last: EntryId; bytes: Uint8Array }> {
    return this.turns.run(async () => {
      const last = this.kept[0]
      if (this.lostOldest !== undefined)
        throw retryError(
          'the snapshot of the cell that a member may be sent was damaged on this disk; there is another one when consumers have gone on',
        )
      if (last === undefined) throw internalError('there is no snapshot to send, though the log was trimmed')
      return { last, bytes: await this.files.readSnapshot(last.index) }
    })
  }

  /** Gives up redo that nobody needs, and the log below it, and snapshots of older states. Returns the log's new base. */
  trim(state: CellState, committed: LogIndex): Promise<EntryId> {
    return this.turns.run(async () => {
      // After a start the consensus must have found its commit point again first.
      if (committed < state.last.index) return this.log.base
      const lowest = await this.lowestNeeded(state)
      let keep = 0
      while (keep + 1 < this.kept.length && this.kept[keep + 1]!.index < lowest) keep++
      const first = this.kept[keep]
      if (first !== undefined && first.index < lowest) await this.forgetLost()
      const keepFrom =
        first !== undefined && first.index < lowest ? ((first.index + 1) as LogIndex) : this.log.beginIndex
      await this.log.trim({
        keepFrom,
        // What this state does not know yet (a node that starts applies its log again, and may hold packs that go further) is not judged by
        // it: a timeline that it does not have may only be made later.
        dropThrough: Math.min(this.backedUpTo(state), state.last.index),
        neededFrom: id => {
          const timeline = state.timelines.get(id)
          return timeline === undefined ? undefined : state.neededFrom(timeline)
        },
      })
      for (const { index } of this.kept.splice(0, keep)) await this.files.removeSnapshot(index)
      if (keep > 0)
        this.logger.debug({ index: this.log.beginIndex, snapshot: this.kept[0]?.index }, 'log trimmed')
      return this.log.base
    })
  }

  /** The last entry that the backup holds for sure; Infinity where there is none, and nothing to wait for. */
  private backedUpTo(state: CellState): number {
    return backupNote(state)?.done ?? (this.awaitsBackup ? 0 : Number.POSITIVE_INFINITY)
  }

  /** Index of the first entry whose redo somebody needs, the backup among them; beyond the end if nobody needs any. */
  private async lowestNeeded(state: CellState): Promise<number> {
    let lowest: number = Math.min(state.last.index, this.backedUpTo(state)) + 1
    for (const timeline of [...state.timelines.values()]) {
      const from = state.neededFrom(timeline)
      if (from >= timeline.endLsn) {
        this.firstNeeded.delete(timeline.id)
        continue
      }
      let known = this.firstNeeded.get(timeline.id)
      if (known?.lsn !== from) {
        const index = await this.log.firstIndexFrom(timeline.id, from)
        // Not held here: nothing to be kept for it.
        known = { lsn: from, index: index ?? Number.POSITIVE_INFINITY }
        if (index !== undefined) this.firstNeeded.set(timeline.id, known)
      }
      if (known.index < lowest) lowest = known.index
    }
    for (const id of this.firstNeeded.keys()) if (!state.timelines.has(id)) this.firstNeeded.delete(id)
    return lowest
  }

  /** Resolves when nothing is being written. */
  async settled(): Promise<void> {
    await this.turns.done()
  }
}
