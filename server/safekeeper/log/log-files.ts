/**
 * The files of the cell's log: packs, then raw segments, and the state beside them. Every change of which files there are
 * happens here, one after the other. Appending is log-writer.ts, finding and checking at the start recovery.ts.
 */
import { join } from 'node:path'
import { corruptError } from '../../shared/errors.ts'
import type { Log } from '../../shared/log.ts'
import type { Disk, DiskFile } from '../../shared/seams.ts'
import { Turns } from '../../shared/turns.ts'
import type { EntryId, LogIndex, Term } from '../core/types.ts'
import type { PackSummary } from './pack-codec.ts'
import type { PackCache, PackFile } from './pack-file.ts'
import { RawSegment } from './raw-segment.ts'
import { type Damage, type EntryVisitor, type FoundLog, scanLog, setAside } from './recovery.ts'
import { Reserve } from './reserve.ts'
import { createSegment, makeSpare, packName, spareName, spareSerialOf } from './segment-file.ts'
import { type LogState, loadState, saveState } from './state-file.ts'

/** Packed segments that are kept for being written again: as many as are sealed while one is packed, mostly. */
const SPARES_MAX = 3

export interface Tail {
  readonly file: DiskFile
  readonly segment: RawSegment
  /** headerCrc of the last entry, or of the segment. */
  readonly chainCrc: number
}

export interface OpenFilesOptions {
  readonly disk: Disk
  readonly dir: string
  readonly segmentBytes: number
  readonly reserveBytes: number
  readonly log: Log
  readonly acceptDamage: boolean
}

export class LogFiles {
  readonly disk: Disk
  readonly dir: string
  readonly segmentBytes: number
  readonly reserve: Reserve
  readonly log: Log
  state: LogState
  /** Told of a file that does not read back, and of what was thrown then; gives what is to be thrown instead. repair.ts */
  damaged: (unit: PackFile | RawSegment, error: unknown) => unknown = (_, error) => error
  /** Ascending, without a hole, and all before the raw segments. */
  packs: PackFile[]
  /** Ascending; the last is appended to. */
  raws: RawSegment[]
  /** Paths; the newest is used first. */
  readonly #spares: string[] = []
  #spareSerial = 0
  readonly #turns = new Turns()

  private constructor(options: OpenFilesOptions, state: LogState, found: FoundLog) {
    this.disk = options.disk
    this.dir = options.dir
    this.segmentBytes = options.segmentBytes
    this.log = options.log
    this.reserve = new Reserve(options.disk, options.dir, options.reserveBytes)
    this.state = state
    this.packs = found.packs
    this.raws = found.raws
  }

  static async exists(disk: Disk, dir: string): Promise<boolean> {
    return disk.exists(join(dir, 'state'))
  }

  static loadState(disk: Disk, dir: string): Promise<LogState> {
    return loadState(disk, dir)
  }

  /** Makes the state of a log without entries. */
  static async create(disk: Disk, dir: string, base: EntryId, segmentBytes: number): Promise<void> {
    await disk.makeDir(dir)
    await disk.syncDir(join(dir, '..'))
    // The first segment with its blocks, so that a young log is as fast as an old one.
    if ((await disk.list(dir)).length === 0) await makeSpare(disk, dir, 0, segmentBytes, true)
    await saveState(disk, dir, {
      base,
      generation: 1,
      cutAfter: base.index,
      baseGeneration: 1,
      flushed: base.index,
      voids: [],
    })
  }

  /** Throws kind corrupt if there is damage, unless that is accepted: then the log ends before it. */
  static async open(
    options: OpenFilesOptions,
    visit: EntryVisitor,
    cache: PackCache,
  ): Promise<{ files: LogFiles; tail: Tail; found: FoundLog; damage: Damage | undefined }> {
    const { disk, dir, log } = options
    let state = await loadState(disk, dir)
    let found = await scanLog(disk, dir, state, visit, cache)
    let damage: Damage | undefined
    while (found.damage !== undefined) {
      if (!options.acceptDamage)
        throw corruptError(
          `${found.damage.message}. Nothing was changed. In a cell with other members this node recovers from them ` +
            'by itself; alone, restore the file from a copy',
        )
      damage ??= found.damage
      state = await setAside(disk, dir, state, found.damage, log)
      visit.restart()
      found = await scanLog(disk, dir, state, visit, cache)
    }
    if (found.leftovers.length > 0) {
      for (const path of found.leftovers) await disk.remove(path)
      await disk.syncDir(dir)
    }
    const files = new LogFiles(options, state, found)
    await files.#findSpares()
    const tail = await files.#openTail(found.terms.lastTerm, found.terms.lastIndex, found.chainCrc)
    // What a killed process had written may still be in the kernel's cache only; from here on it counts as durable.
    await tail.file.datasync()
    return { files, tail, found, damage }
  }

  async #openTail(lastTerm: Term, lastIndex: LogIndex, chainCrc: number): Promise<Tail> {
    const segment = this.raws.at(-1)
    if (segment === undefined) return this.#addSegment((lastIndex + 1) as LogIndex, lastTerm, chainCrc)
    return { file: await this.disk.open(segment.path, 'write'), segment, chainCrc }
  }

  async #addSegment(firstIndex: LogIndex, prevTerm: Term, chainCrc: number): Promise<Tail> {
    const { disk, dir, segmentBytes, state } = this
    const { generation } = state
    const header = { firstIndex, prevTerm, segmentBytes, chainCrc, generation }
    if (this.#spares.length === 0) await this.#makeSpare(false)
    const { file, path, headerCrc } = await createSegment(disk, dir, this.#spares.at(-1)!, header)
    this.#spares.pop()
    const segment = new RawSegment(disk, path, { ...header, headerCrc })
    this.raws.push(segment)
    return { file, segment, chainCrc: headerCrc }
  }

  /** Changes of files, and of `state`, one after the other. */
  exclusive<T>(run: () => Promise<T>): Promise<T> {
    return this.#turns.run(run)
  }

  /** Resolves when none is under way. */
  settled(): Promise<void> {
    return this.#turns.done()
  }

  /** Within `exclusive`. */
  async changeState(change: Partial<LogState>): Promise<void> {
    const next = { ...this.state, ...change }
    await saveState(this.disk, this.dir, next)
    this.state = next
  }

  /** Writes the state anew if its file does not read back as it is. Returns whether that was so. */
  checkState(): Promise<boolean> {
    return this.exclusive(async () => {
      const isRight = await loadState(this.disk, this.dir).then(
        state => JSON.stringify(state) === JSON.stringify(this.state),
        () => false,
      )
      if (isRight) return false
      await saveState(this.disk, this.dir, this.state)
      return true
    })
  }

  /** Adds the segment that begins at `firstIndex`, before which all must be flushed. */
  roll(firstIndex: LogIndex, prevTerm: Term, chainCrc: number): Promise<Tail> {
    return this.exclusive(async () => {
      this.raws.at(-1)?.seal()
      return this.#addSegment(firstIndex, prevTerm, chainCrc)
    })
  }

  /** Makes the file that the next `roll` will use, ahead of need, unless there is one; filled with zeros or sparse. */
  prepare(fill: boolean): Promise<void> {
    return this.exclusive(async () => {
      if (this.#spares.length === 0) await this.#makeSpare(fill)
    })
  }

  async #makeSpare(fill: boolean): Promise<void> {
    this.#spares.push(await makeSpare(this.disk, this.dir, ++this.#spareSerial, this.segmentBytes, fill))
  }

  async #findSpares(): Promise<void> {
    for (const name of await this.disk.list(this.dir)) {
      const serial = spareSerialOf(name)
      if (serial === undefined) continue
      this.#spareSerial = Math.max(this.#spareSerial, serial)
      const path = join(this.dir, name)
      const file = await this.disk.open(path, 'read')
      const size = await file.size().finally(() => file.close())
      if (size === this.segmentBytes && this.#spares.length < SPARES_MAX) this.#spares.push(path)
      else await this.disk.remove(path)
    }
  }

  get spares(): number {
    return this.#spares.length
  }

  /** Cuts the log after `index`, which is on disk as what is behind it, all synced. Returns the new tail. */
  cut(index: LogIndex, term: Term): Promise<Tail> {
    return this.exclusive(async () => {
      await this.changeState({
        generation: this.state.generation + 1,
        cutAfter: index,
        flushed: Math.min(this.state.flushed, index),
        voids: this.state.voids.filter(other => other <= index),
      })
      let removed = 0
      while (this.raws.length > 0 && this.raws.at(-1)!.firstIndex > index + 1) {
        const segment = this.raws.pop()!
        segment.retire()
        // Not a spare: its entries have indexes that will be given out again.
        await this.disk.remove(segment.path)
        removed++
      }
      if (removed > 0) await this.disk.syncDir(this.dir)
      const segment = this.raws.at(-1)
      if (segment === undefined) return this.#addSegment((index + 1) as LogIndex, term, 0)
      segment.cutAfter(index)
      return {
        file: await this.disk.open(segment.path, 'write'),
        segment,
        chainCrc: await segment.chainAfter(index),
      }
    })
  }

  /** Forgets the whole log; it begins after `base`. */
  reset(base: EntryId): Promise<Tail> {
    return this.exclusive(async () => {
      const generation = this.state.generation + 1
      await this.changeState({
        base,
        generation,
        baseGeneration: generation,
        cutAfter: base.index,
        flushed: base.index,
        voids: [],
      })
      for (const unit of [...this.packs, ...this.raws]) {
        unit.retire()
        await this.disk.remove(unit.path)
      }
      await this.disk.syncDir(this.dir)
      this.packs = []
      this.raws = []
      return this.#addSegment((base.index + 1) as LogIndex, base.term, 0)
    })
  }

  /**
   * Removes the packs and sealed segments that end at or below `base`; it is the last entry of one of them. Returns what the packs were;
   * undefined for one that cannot be read any more.
   */
  trimTo(base: EntryId): Promise<(PackSummary | undefined)[]> {
    return this.exclusive(async () => {
      const summaries: (PackSummary | undefined)[] = []
      if (base.index <= this.state.base.index) return summaries
      for (const pack of this.packs)
        if (pack.lastIndex <= base.index) summaries.push(await pack.summary().catch(() => undefined))
      // The state first: then a crash may lose or reorder the removals.
      await this.changeState({ base, voids: this.state.voids.filter(index => index > base.index) })
      const gone: (PackFile | RawSegment)[] = []
      while (this.packs.length > 0 && this.packs[0]!.lastIndex <= base.index) gone.push(this.packs.shift()!)
      while (this.raws.length > 1 && this.raws[0]!.lastIndex <= base.index) gone.push(this.raws.shift()!)
      for (const unit of gone) {
        unit.retire()
        if (unit instanceof RawSegment) await this.#recycle(unit)
        else await this.disk.remove(unit.path)
      }
      await this.disk.syncDir(this.dir)
      return summaries
    })
  }

  /** Makes a segment of which nothing is needed a spare, or removes it. The caller syncs the folder. */
  async #recycle(segment: RawSegment): Promise<void> {
    if (segment.segmentBytes !== this.segmentBytes || this.#spares.length >= SPARES_MAX) {
      await this.disk.remove(segment.path)
      return
    }
    const spare = join(this.dir, spareName(++this.#spareSerial))
    await this.disk.rename(segment.path, spare)
    this.#spares.push(spare)
  }

  /**
   * Puts a pack that was written under another name, and synced, in the place of what it was made from. False: that is held no
   * more, and the pack was removed. `recycle` false: the sources' space is not used again, since it did not keep what was written.
   */
  adopt(pack: PackFile, sources: readonly (PackFile | RawSegment)[], recycle = true): Promise<boolean> {
    const temporary = pack.path
    return this.exclusive(async () => {
      // Trimmed or reset meanwhile: nobody wants it.
      const isHeld = sources.every(unit =>
        unit instanceof RawSegment ? this.raws.includes(unit) : this.packs.includes(unit),
      )
      if (!isHeld) {
        await this.disk.remove(temporary)
        return false
      }
      const path = join(this.dir, packName(pack.firstIndex))
      await this.disk.rename(temporary, path)
      await this.disk.syncDir(this.dir)
      pack.renamed(path)
      const at = this.packs.findIndex(other => sources.includes(other))
      this.packs = this.packs.filter(other => !sources.includes(other))
      this.packs.splice(at === -1 ? this.packs.length : at, 0, pack)
      this.raws = this.raws.filter(other => !sources.includes(other))
      for (const unit of sources) {
        unit.retire()
        if (recycle && unit instanceof RawSegment) await this.#recycle(unit)
        else if (unit.path !== pack.path) await this.disk.remove(unit.path)
      }
      await this.disk.syncDir(this.dir)
      return true
    })
  }

  /** The pack or raw segment that holds an entry; undefined if neither does. */
  find(index: number): PackFile | RawSegment | undefined {
    const raw = this.raws[0]
    const units: readonly (PackFile | RawSegment)[] =
      raw !== undefined && index >= raw.firstIndex ? this.raws : this.packs
    let low = 0
    let high = units.length
    while (low < high) {
      const middle = (low + high) >>> 1
      if (units[middle]!.firstIndex <= index) low = middle + 1
      else high = middle
    }
    const unit = units[low - 1]
    return unit !== undefined && index <= unit.lastIndex ? unit : undefined
  }

  async close(): Promise<void> {
    await this.settled()
    for (const unit of [...this.packs, ...this.raws]) await unit.close()
  }
}
