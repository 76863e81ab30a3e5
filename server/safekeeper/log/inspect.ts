/**
 * Looks at the log of a node that is stopped: files, ranges, timelines, damage. Only reads: works on a read-only mount. What it
 * counts as belonging to the log is what the node itself would take at its next start.
 */
import type { Lsn, TimelineId } from '../../../protocol/ids.ts'
import { isCorrupt } from '../../shared/errors.ts'
import type { Disk } from '../../shared/seams.ts'
import type { EntryId, LogIndex, Term } from '../core/types.ts'
import { type EntryHeader, entryBytes, type LogEntry } from './entry.ts'
import type { PackSummary } from './pack-codec.ts'
import { PackCache, PackFile } from './pack-file.ts'
import { packEntries } from './pack-reader.ts'
import type { RawSegment } from './raw-segment.ts'
import { type FoundLog, scanLog } from './recovery.ts'
import { type LogState, loadState } from './state-file.ts'

const READ_BYTES = 1024 * 1024

export interface UnitReport {
  readonly path: string
  readonly kind: 'segment' | 'pack'
  readonly firstIndex: number
  /** firstIndex - 1 of a segment without entries. */
  readonly lastIndex: number
  readonly firstTerm: number
  readonly lastTerm: number
  readonly timelines: number
  /** Payloads, uncompressed, without what was dropped. */
  readonly payloadBytes: number
  /** Of a segment: what its entries take. */
  readonly storedBytes: number
  /** Where the next entry of a segment would go. */
  readonly endOffset?: number
  /** Of the timeline that was asked for. */
  readonly beginLsn?: Lsn
  readonly endLsn?: Lsn
}

export interface TimelineReport {
  readonly timeline: TimelineId
  readonly entries: number
  readonly beginLsn: Lsn
  readonly endLsn: Lsn
  readonly rawBytes: number
  readonly storedBytes: number
  /** Redo below is no longer held; undefined if all of it is. */
  readonly droppedEndLsn?: Lsn
}

export interface DamageReport {
  readonly path: string
  readonly index?: number
  readonly offset?: number
  readonly message: string
}

export interface LogReport {
  readonly base: EntryId
  readonly lastIndex: number
  readonly lastTerm: number
  readonly generation: number
  readonly cutAfter: number
  /** The log reached at least here at its last clean stop. */
  readonly flushedAtStop: number
  readonly voids: readonly number[]
  readonly units: readonly UnitReport[]
  readonly timelines: readonly TimelineReport[]
  /** Half-made or given up: the next start removes them. */
  readonly leftovers: readonly string[]
  readonly damage: readonly DamageReport[]
  /** Whether every CRC was checked, or only what a start checks. */
  readonly verified: boolean
}

/** One entry as `--entries` shows it. */
export interface EntryReport {
  readonly index: LogIndex
  readonly term: number
  readonly kind: string
  readonly timeline: TimelineId | undefined
  readonly epoch: number
  readonly beginLsn: Lsn
  readonly endLsn: Lsn
  readonly wallTimeUs: number
  readonly payloadBytes: number
  readonly dropped: boolean
  readonly isVoid: boolean
  readonly file: string
}

interface Sums {
  entries: number
  beginLsn: number
  endLsn: number
  rawBytes: number
  storedBytes: number
  droppedEndLsn: number
}

export class LogInspection {
  readonly #disk: Disk
  readonly #dir: string
  readonly #state: LogState
  readonly #found: FoundLog
  readonly #summaries: Map<PackFile, PackSummary>
  readonly #headers: readonly EntryHeader[]

  private constructor(
    disk: Disk,
    dir: string,
    state: LogState,
    found: FoundLog,
    summaries: Map<PackFile, PackSummary>,
    headers: readonly EntryHeader[],
  ) {
    this.#disk = disk
    this.#dir = dir
    this.#state = state
    this.#found = found
    this.#summaries = summaries
    this.#headers = headers
  }

  /** Throws corrupt only if the `state` file cannot be read: all other damage is in the report. */
  static async open(disk: Disk, dir: string): Promise<LogInspection> {
    const state = await loadState(disk, dir)
    const summaries = new Map<PackFile, PackSummary>()
    const headers: EntryHeader[] = []
    const found = await scanLog(
      disk,
      dir,
      state,
      {
        entry: header => headers.push(header),
        pack: (pack, summary) => summaries.set(pack, summary),
        restart: () => {},
      },
      new PackCache(),
    )
    return new LogInspection(disk, dir, state, found, summaries, headers)
  }

  /** `timeline`: LSN ranges of this one in each file. `verify`: reads all groups of all packs. */
  async report(options: { timeline?: TimelineId | undefined; verify?: boolean } = {}): Promise<LogReport> {
    const { base, generation, cutAfter, flushed, voids } = this.#state
    const { terms, leftovers } = this.#found
    const damage: DamageReport[] = []
    if (this.#found.damage !== undefined) damage.push(this.#found.damage)
    if (options.verify === true) damage.push(...(await this.#verify()))
    return {
      base,
      lastIndex: terms.lastIndex,
      lastTerm: terms.lastTerm,
      generation,
      cutAfter,
      flushedAtStop: flushed,
      voids,
      units: [
        ...this.#found.packs.map(pack => this.#packReport(pack, options.timeline)),
        ...this.#found.raws.map(raw => this.#segmentReport(raw, options.timeline)),
      ],
      timelines: this.#timelines().filter(
        ({ timeline }) => options.timeline === undefined || timeline === options.timeline,
      ),
      leftovers,
      damage,
      verified: options.verify === true,
    }
  }

  #packReport(pack: PackFile, wanted: TimelineId | undefined): UnitReport {
    const { timelines, runs } = this.#summaries.get(pack)!
    const timeline = timelines.find(({ id }) => id === wanted)
    return {
      path: pack.path,
      kind: 'pack',
      firstIndex: pack.firstIndex,
      lastIndex: pack.lastIndex,
      firstTerm: runs[0]!.term,
      lastTerm: runs.at(-1)!.term,
      timelines: timelines.length,
      payloadBytes: pack.rawBytes,
      storedBytes: pack.packBytes,
      ...(timeline && { beginLsn: timeline.beginLsn, endLsn: timeline.endLsn }),
    }
  }

  #segmentReport(raw: RawSegment, wanted: TimelineId | undefined): UnitReport {
    const headers = this.#headers.filter(({ index }) => index >= raw.firstIndex && index <= raw.lastIndex)
    const own = headers.filter(({ timeline }) => timeline !== undefined && timeline === wanted)
    return {
      path: raw.path,
      kind: 'segment',
      firstIndex: raw.firstIndex,
      lastIndex: raw.lastIndex,
      firstTerm: headers[0]?.term ?? raw.prevTerm,
      lastTerm: headers.at(-1)?.term ?? raw.prevTerm,
      timelines: new Set(headers.map(({ timeline }) => timeline).filter(id => id !== undefined)).size,
      payloadBytes: headers.reduce((bytes, header) => bytes + header.payloadBytes, 0),
      storedBytes: headers.reduce((bytes, header) => bytes + entryBytes(header.payloadBytes), 0),
      endOffset: raw.endOffset,
      ...(own.length > 0 && { beginLsn: own[0]!.beginLsn, endLsn: own.at(-1)!.endLsn }),
    }
  }

  #timelines(): TimelineReport[] {
    const sums = new Map<TimelineId, Sums>()
    const add = (id: TimelineId, more: Sums) => {
      const sum = sums.get(id)
      if (sum === undefined) {
        sums.set(id, { ...more })
        return
      }
      sum.entries += more.entries
      sum.endLsn = Math.max(sum.endLsn, more.endLsn)
      sum.rawBytes += more.rawBytes
      sum.storedBytes += more.storedBytes
      sum.droppedEndLsn = Math.max(sum.droppedEndLsn, more.droppedEndLsn)
    }
    for (const summary of this.#summaries.values())
      for (const { id, ...rest } of summary.timelines) add(id, rest)
    const voids = new Set(this.#state.voids)
    for (const { index, timeline, beginLsn, endLsn, payloadBytes, dropped } of this.#headers) {
      if (timeline === undefined || voids.has(index)) continue
      add(timeline, {
        entries: 1,
        beginLsn,
        endLsn,
        rawBytes: payloadBytes,
        storedBytes: entryBytes(payloadBytes),
        droppedEndLsn: dropped ? endLsn : 0,
      })
    }
    return [...sums]
      .map(([timeline, sum]) => ({
        timeline,
        entries: sum.entries,
        beginLsn: sum.beginLsn as Lsn,
        endLsn: sum.endLsn as Lsn,
        rawBytes: sum.rawBytes,
        storedBytes: sum.storedBytes,
        ...(sum.droppedEndLsn > 0 && { droppedEndLsn: sum.droppedEndLsn as Lsn }),
      }))
      .sort((a, b) => (a.timeline < b.timeline ? -1 : 1))
  }

  /** Reads every pack to its end. Segments were read whole when the inspection was opened. */
  async #verify(): Promise<DamageReport[]> {
    const damage: DamageReport[] = []
    for (const pack of this.#found.packs) {
      const file = await this.#disk.open(pack.path, 'read')
      try {
        const source = {
          name: pack.path,
          size: () => file.size(),
          read: (target: Uint8Array, position: number) => file.read(target, position),
        }
        for await (const entry of packEntries(source)) void entry
      } catch (error) {
        if (!isCorrupt(error)) throw error
        damage.push({ path: pack.path, message: error.message })
      } finally {
        await file.close()
      }
    }
    return damage
  }

  get base(): EntryId {
    return this.#state.base
  }

  /** Where the log ends, or where what can be read of it ends: see `damage`. */
  get last(): EntryId {
    const { lastIndex, lastTerm } = this.#found.terms
    return { index: lastIndex, term: lastTerm }
  }

  /** What a start would refuse to go on with. */
  get damage(): DamageReport | undefined {
    return this.#found.damage
  }

  /** Up to here entries are known to be committed: packs are made of nothing else, and void is only what was applied. */
  get knownCommitted(): number {
    return Math.max(this.#state.base.index, this.#found.packs.at(-1)?.lastIndex ?? 0, ...this.#state.voids)
  }

  /** Of an entry that is held, or of the base. */
  termAt(index: number): Term | undefined {
    return this.#found.terms.termAt(index)
  }

  /** Entries from `from` on, in order, checked. Throws kind corrupt where one cannot be read. */
  async *read(from: number): AsyncGenerator<LogEntry> {
    for (const unit of [...this.#found.packs, ...this.#found.raws])
      for (let at = Math.max(from, unit.firstIndex); at <= unit.lastIndex; ) {
        const entries = await unit.read(at, unit.lastIndex, READ_BYTES)
        yield* entries
        at += entries.length
      }
  }

  /** All entries in order, checked. Throws kind corrupt where one cannot be read. */
  async *entries(timeline?: TimelineId): AsyncGenerator<EntryReport> {
    const voids = new Set(this.#state.voids)
    for (const unit of [...this.#found.packs, ...this.#found.raws]) {
      if (unit instanceof PackFile && timeline !== undefined && !unit.mayHold(timeline)) continue
      for (let at: number = unit.firstIndex; at <= unit.lastIndex; ) {
        const entries = await unit.read(at, unit.lastIndex, READ_BYTES)
        for (const entry of entries)
          if (timeline === undefined || entry.timeline === timeline)
            yield describe(entry, voids.has(entry.index), unit.path.slice(this.#dir.length + 1))
        at += entries.length
      }
    }
  }

  async close(): Promise<void> {
    for (const unit of [...this.#found.packs, ...this.#found.raws]) await unit.close()
  }
}

function describe(entry: LogEntry, isVoid: boolean, file: string): EntryReport {
  const { index, term, kind, timeline, epoch, beginLsn, endLsn, wallTimeUs, payload, dropped } = entry
  return {
    index,
    term,
    kind,
    timeline,
    epoch,
    beginLsn,
    endLsn,
    wallTimeUs,
    payloadBytes: payload.length,
    dropped,
    isVoid,
    file,
  }
}
