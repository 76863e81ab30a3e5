/**
 * Gets back what the disk of a running node has lost of its log. A file that does not read back is looked through, what it lacks is
 * fetched from other members or the backup, and a pack of the same entries takes its place. docs/log-format.md, "Repair", tells why
 * what is fetched is what was lost.
 *
 * One file at a time, the oldest first. Reads that meet the damage meanwhile are told to try again; `fetch` serves those that cannot.
 */
import { join } from 'node:path'
import { crc32c } from '../../../protocol/crc32c.ts'
import { corruptError, PalimpsestError, retryError } from '../../shared/errors.ts'
import type { Clock } from '../../shared/seams.ts'
import type { LogIndex, Term } from '../core/types.ts'
import { isConsistent, type LogEntry } from './entry.ts'
import { differenceOf, type EntryFacts, factsOf } from './entry-facts.ts'
import type { LogFiles } from './log-files.ts'
import { PackBuilder } from './pack-builder.ts'
import type { PackEntry, PackSummary } from './pack-codec.ts'
import { type PackCache, PackFile } from './pack-file.ts'
import { readWithVoids } from './read-around.ts'
import { checkUnit, type IndexRange, isDamage, type LogUnit } from './unit-check.ts'

const READ_BYTES = 1024 * 1024
const FETCH_BYTES = 1024 * 1024
const NO_VOIDS: ReadonlySet<number> = new Set()
const LOOK_MS = 250
const AGAIN_MS_MIN = 500
const AGAIN_MS_MAX = 60_000
const ALONE = 'this node has neither other members nor a backup to get what is lost from'
/** Written and synced in such pieces, so that the log's own syncs do not wait behind one long one. */
const SYNC_BYTES = 4 * 1024 * 1024

/** What somebody else has of the log. */
export interface Fetched {
  /** From the index that was asked for on, without a hole; none: it is not there. */
  readonly entries: readonly LogEntry[]
  /** Whether an entry is void; undefined: that is not known there. */
  readonly isVoid: (index: number) => boolean | undefined
}

export interface EntrySource {
  /** For people. */
  readonly name: string
  /** Entries [first, last] as far as they fit into `bytesMax`, but one at least. Throws what keeps it from answering. */
  fetch(first: LogIndex, last: LogIndex, bytesMax: number): Promise<Fetched>
  /** It is not asked any more for now: gives up what it keeps for the next question. */
  rest?(): void
}

/** Everybody was asked, and nobody has it. All else that keeps a repair from its end is tried again before anybody gives up. */
class OutOfReach extends PalimpsestError {
  constructor(message: string) {
    super('corrupt', message)
  }
}

export interface RepairOptions {
  readonly files: LogFiles
  readonly cache: PackCache
  readonly clock: Clock
  readonly termAt: (index: number) => Term | undefined
  readonly appliedIndex: () => number
  /** Void entries of raw segments. */
  readonly voids: () => readonly number[]
  /** Ends the segment that is appended to, so that it can be repaired. */
  readonly sealTail: () => void
  /** Packs what lies before the first damage; resolves when there is nothing left to pack. */
  readonly packBefore: () => Promise<void>
  /** It reads well after all. */
  readonly cleared: (unit: LogUnit) => void
  /** In the place of `unit` there is `pack` now; `old`: what the unit was, if it was a pack that can still be told. */
  readonly adopted: (
    unit: LogUnit,
    old: PackSummary | undefined,
    pack: PackFile,
    summary: PackSummary,
  ) => Promise<void>
}

interface Suspect {
  readonly error: Error
  /** It was looked through, and counted. */
  isFound: boolean
  dueMs: number
  againMs: number
  /** Everybody was asked, and nobody has it: why. */
  hopeless: string
  /** Why the last attempt came to nothing. */
  said: string
}

export class LogRepair {
  readonly #options: RepairOptions
  readonly #suspects = new Map<LogUnit, Suspect>()
  #running: Promise<void> | undefined
  #closed = false
  /** Sources that were asked since all rested, and questions by others than the repair that are under way. */
  readonly #asked = new Set<EntrySource>()
  #fetching = 0
  /** Who may have what is lost, whom to ask first first; none: nobody else has this log. */
  sources: () => readonly EntrySource[] = () => []
  /** Whether anybody needs this redo: then a source that has dropped it is of no use. */
  isNeeded: (entry: LogEntry) => boolean = () => true
  /** Files found damaged and repaired, since the start. */
  found = 0
  repaired = 0

  constructor(options: RepairOptions) {
    this.#options = options
  }

  /** Files that are known not to read back. */
  get damagedFiles(): number {
    return this.#suspects.size
  }

  /** Why repair does not get on; empty if there is nothing to repair, or it does. */
  get problem(): string {
    let problem = ''
    for (const [unit, { hopeless, said }] of this.#suspects) {
      if (hopeless !== '') return `${unit.path} is damaged: ${hopeless}`
      if (said !== '') problem = `${unit.path} is damaged: ${said}`
    }
    return problem
  }

  /** Nobody else has this log: it is one node's, without a backup. */
  get #isAlone(): boolean {
    return this.sources().length === 0
  }

  /** Whether it was looked through, and is damaged: not a read that failed once. */
  isFound(unit: LogUnit): boolean {
    return this.#suspects.get(unit)?.isFound === true
  }

  /** A file did not read back. Returns what its reader is to be told. */
  damaged(unit: LogUnit, error: unknown): unknown {
    if (!isDamage(error)) return error
    if (unit.retired || this.#closed) return retryError(`${error.message}; that file has just been replaced`)
    const isAlone = this.#isAlone
    let suspect = this.#suspects.get(unit)
    if (suspect === undefined) {
      suspect = { error, isFound: false, dueMs: 0, againMs: AGAIN_MS_MIN, hopeless: '', said: '' }
      this.#suspects.set(unit, suspect)
      this.#options.files.log.error(
        { err: error },
        `part of the log does not read back${isAlone ? ', and nobody else has it' : ': it is repaired'}`,
      )
      this.#start()
    }
    if (isAlone) return error
    if (suspect.hopeless !== '') return corruptError(`${error.message}; ${suspect.hopeless}`)
    return retryError(`${error.message}; it is being repaired: ask again, or another safekeeper`)
  }

  #start(): void {
    this.#running ??= this.#run().finally(() => {
      this.#running = undefined
      this.#rest()
      // What was found while it was ending.
      if (!this.#closed && this.#suspects.size > 0) this.#start()
    })
  }

  /** Connections and memory of those who were asked, when nobody asks any more. */
  #rest(): void {
    if (this.#running !== undefined || this.#fetching > 0) return
    for (const source of this.#asked) source.rest?.()
    this.#asked.clear()
  }

  /**
   * Entries of `unit` from `first` on, up to `last`, from elsewhere: what fits into `bytesMax`, but one at least, checked. Throws retry if
   * somebody who may have them did not answer, corrupt if nobody has them.
   */
  async fetch(unit: LogUnit, first: number, last: number, bytesMax: number): Promise<LogEntry[]> {
    this.#fetching++
    try {
      return (await this.#fetch(unit, first, last, bytesMax, 'unasked')).entries
    } finally {
      this.#fetching--
      this.#rest()
    }
  }

  async #fetch(
    unit: LogUnit,
    first: number,
    last: number,
    bytesMax: number,
    /** Void entries, as far as this disk knows them; 'asked': it does not, and they must be known. */
    voids: ReadonlySet<number> | 'asked' | 'unasked',
  ): Promise<{ entries: LogEntry[]; isVoid: (index: number) => boolean }> {
    const said: string[] = []
    let mayComeBack = false
    for (const source of this.sources()) {
      this.#asked.add(source)
      try {
        const { entries, isVoid } = await source.fetch(first as LogIndex, last as LogIndex, bytesMax)
        const facts = await factsOf(unit, first, Math.min(last, first + entries.length - 1))
        const good: LogEntry[] = []
        let why = 'it does not have them'
        // What goes beyond what was asked for, nobody waits for.
        for (const entry of entries.slice(0, last - first + 1)) {
          const fault =
            this.#faultOf(
              entry,
              first + good.length,
              facts,
              typeof voids === 'object' && voids.has(entry.index),
            ) ??
            (voids === 'asked' && isVoid(entry.index) === undefined
              ? 'it does not know which are void'
              : undefined)
          if (fault !== undefined) {
            why = fault
            break
          }
          good.push(entry)
        }
        if (good.length > 0) return { entries: good, isVoid: index => isVoid(index) === true }
        said.push(`${source.name}: ${why}`)
      } catch (error) {
        mayComeBack ||= !isDamage(error)
        said.push(`${source.name}: ${(error as Error).message}`)
      }
    }
    const message = `entries ${first} to ${last} could not be fetched (${said.join('; ')})`
    throw mayComeBack ? retryError(message) : new OutOfReach(message)
  }

  /** Why this is not the entry that was lost, or not of use; undefined: it is. */
  #faultOf(
    entry: LogEntry,
    index: number,
    facts: ReadonlyMap<number, EntryFacts>,
    isVoid: boolean,
  ): string | undefined {
    const { payload } = entry
    const term = this.#options.termAt(index)
    if (entry.index !== index || entry.term !== term)
      return `it has entry ${entry.index} of term ${entry.term} where ${index} of term ${term} was lost`
    if (!isConsistent({ ...entry, payloadBytes: payload.length })) return `its entry ${index} makes no sense`
    const known = facts.get(index)
    const difference = known && differenceOf(entry, known)
    if (difference !== undefined)
      return `its entry ${index} is not the one that was lost: ${difference} is ${entry[difference]} instead of ${known![difference]}`
    if (entry.dropped)
      return !isVoid && this.isNeeded(entry) ? `it has dropped entry ${index}, which is needed` : undefined
    return crc32c(payload, 0, payload.length) === entry.payloadCrc
      ? undefined
      : `its entry ${index} has a wrong payload CRC-32C`
  }

  async #run(): Promise<void> {
    const { clock } = this.#options
    while (!this.#closed && this.#suspects.size > 0) {
      const nowMs = clock.monotonicMs()
      const due = [...this.#suspects]
        .filter(([unit, { dueMs }]) => unit.retired || dueMs <= nowMs)
        .sort(([a], [b]) => a.firstIndex - b.firstIndex)[0]
      if (due === undefined) await clock.sleep(LOOK_MS)
      else await this.#attempt(...due)
    }
  }

  async #attempt(unit: LogUnit, suspect: Suspect): Promise<void> {
    const { files, clock } = this.#options
    try {
      const outcome = await this.#repair(unit, suspect)
      if (outcome === 'later') {
        suspect.dueMs = clock.monotonicMs() + AGAIN_MS_MIN
        return
      }
      if (this.#suspects.delete(unit) && outcome === 'repaired') this.repaired++
    } catch (error) {
      if (this.#closed) return
      const { message } = error as Error
      suspect.hopeless = error instanceof OutOfReach ? message : ''
      suspect.dueMs = clock.monotonicMs() + suspect.againMs
      suspect.againMs = Math.min(suspect.againMs * 2, AGAIN_MS_MAX)
      if (message === suspect.said) return
      suspect.said = message
      files.log.warn(
        { file: unit.path, reason: message },
        'a damaged part of the log could not be repaired yet',
      )
    }
  }

  async #repair(unit: LogUnit, suspect: Suspect): Promise<'well' | 'repaired' | 'later'> {
    const { files, appliedIndex, sealTail, packBefore, cleared } = this.#options
    if (unit.retired) return 'well'
    if (unit === files.raws.at(-1)) {
      sealTail()
      return 'later'
    }
    // Reading it whole once more would tell nothing new.
    if (suspect.isFound && this.#isAlone) throw new OutOfReach(ALONE)
    const check = await checkUnit(files.disk, unit, async () => {})
    if (unit.retired || this.#closed) return 'well'
    if (check.damage === undefined) {
      files.log.warn({ file: unit.path, err: suspect.error }, 'a part of the log reads back after all')
      cleared(unit)
      return 'well'
    }
    if (!suspect.isFound) this.found++
    suspect.isFound = true
    if (this.#isAlone) throw new OutOfReach(ALONE)
    if (!(unit instanceof PackFile)) {
      // Packs come first, so all before it must be packs; and a pack tells what is void, which only applying tells.
      if (unit.lastIndex > appliedIndex()) return 'later'
      if (unit !== files.raws[0]) await packBefore()
      if (unit !== files.raws[0]) return 'later'
    }
    const made = await this.#rebuild(unit, check.bad)
    const old = unit instanceof PackFile ? await unit.summary().catch(() => undefined) : undefined
    if (this.#closed) return 'later'
    const { firstIndex, lastIndex } = unit
    if (!(await files.adopt(made.pack, [unit], false))) return 'well'
    await this.#options.adopted(unit, old, made.pack, made.summary)
    const entries = check.bad.reduce((sum, { first, last }) => sum + last - first + 1, 0)
    files.log.warn(
      { file: unit.path, firstIndex, lastIndex, entries },
      'a damaged part of the log is whole again',
    )
    return 'repaired'
  }

  /** A pack of all entries of the unit, under another name: those that read back from the unit, the others from elsewhere. */
  async #rebuild(
    unit: LogUnit,
    bad: readonly IndexRange[],
  ): Promise<{ pack: PackFile; summary: PackSummary }> {
    const { files, cache } = this.#options
    const { disk } = files
    const target = join(files.dir, 'repair.tmp')
    await disk.remove(target)
    try {
      await this.#write(unit, bad, target)
      const made = await PackFile.open(disk, target, cache)
      const { damage } = await checkUnit(disk, made.pack, async () => {})
      if (damage !== undefined)
        throw retryError(
          `what was written to take its place does not read back either; is this disk failing? (${damage.message})`,
        )
      return made
    } catch (error) {
      await disk.remove(target)
      throw error
    }
  }

  async #write(unit: LogUnit, bad: readonly IndexRange[], target: string): Promise<void> {
    const { files } = this.#options
    const file = await files.disk.open(target, 'create')
    // Closed once: its number may be another file's by then.
    try {
      const { firstIndex, lastIndex, prevTerm } = unit
      const builder = new PackBuilder({
        firstIndex,
        lastIndex,
        prevTerm,
        generation: files.state.generation,
      })
      let written = 0
      let synced = 0
      const flush = async () => {
        const chunks = builder.take()
        if (chunks.length === 0) return
        await file.write(chunks, written)
        for (const chunk of chunks) written += chunk.length
        if (written - synced < SYNC_BYTES) return
        await file.datasync()
        synced = written
      }
      for await (const entries of this.#entriesOf(unit, bad))
        for (const entry of entries) {
          builder.add(entry)
          await flush()
        }
      builder.finish()
      await flush()
      await file.datasync()
    } finally {
      await file.close()
    }
  }

  async *#entriesOf(unit: LogUnit, bad: readonly IndexRange[]): AsyncGenerator<PackEntry[]> {
    // Of a segment it is known here which are void; of a pack its table tells.
    const voids =
      unit instanceof PackFile ? await unit.voids().catch(() => undefined) : new Set(this.#options.voids())
    let next: number = unit.firstIndex
    for (const range of [...bad, { first: unit.lastIndex + 1, last: unit.lastIndex }]) {
      while (next < range.first) {
        const entries = await readWithVoids(unit, next, range.first - 1, READ_BYTES, voids ?? NO_VOIDS)
        yield entries
        next += entries.length
      }
      while (next <= range.last) {
        this.#goOn()
        const { entries, isVoid } = await this.#fetch(unit, next, range.last, FETCH_BYTES, voids ?? 'asked')
        yield entries.map(entry => ({ ...entry, isVoid: voids?.has(entry.index) ?? isVoid(entry.index) }))
        next += entries.length
      }
    }
  }

  #goOn(): void {
    if (this.#closed) throw retryError('the log is being closed')
  }

  /** What is under way changes nothing any more. */
  close(): void {
    this.#closed = true
  }

  /** Resolves when nothing is left to repair that can be repaired at present. */
  async idle(): Promise<void> {
    while (this.#running !== undefined) await this.#running
  }
}
