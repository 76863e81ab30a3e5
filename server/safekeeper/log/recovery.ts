/**
 * What a log's folder holds when it is opened: which files belong to the log, where it ends, and whether what lies behind that
 * end is a torn write, the remains of a cut, or damage. Nothing is changed here but by `setAside`. docs/log-format.md, "The
 * end of the log after a crash", has the rules and why they suffice.
 */
import { join } from 'node:path'
import { isCorrupt, PalimpsestError } from '../../shared/errors.ts'
import type { Log } from '../../shared/log.ts'
import type { Disk } from '../../shared/seams.ts'
import type { LogIndex, Term } from '../core/types.ts'
import {
  decodeEntryHeader,
  ENTRY_HEADER_BYTES,
  ENTRY_MAGIC_BYTES,
  type EntryHeader,
  entryBytes,
  isPayloadRight,
} from './entry.ts'
import type { PackSummary } from './pack-codec.ts'
import { type PackCache, PackFile } from './pack-file.ts'
import { RawSegment } from './raw-segment.ts'
import {
  firstIndexOf,
  readSegmentHeader,
  SEGMENT_DATA_OFFSET,
  type SegmentHeader,
  segmentName,
} from './segment-file.ts'
import { type LogState, saveState } from './state-file.ts'
import { TermList } from './term-list.ts'

export interface Damage {
  /** Everything from here on cannot be read in order. */
  readonly index: LogIndex
  readonly path: string
  readonly offset: number
  readonly message: string
}

export interface FoundLog {
  readonly packs: PackFile[]
  readonly raws: RawSegment[]
  readonly terms: TermList
  /** headerCrc of the last entry, or of the newest segment; 0 if there is none. */
  readonly chainCrc: number
  readonly memberships: { readonly index: LogIndex; readonly payload: Uint8Array }[]
  /** Files that are not part of the log: half-made, trimmed, packed, or cut off before a crash. */
  readonly leftovers: string[]
  readonly damage: Damage | undefined
}

interface Unit {
  readonly kind: 'seg' | 'pack'
  readonly firstIndex: LogIndex
  readonly path: string
}

/** Told what is found, in order; told to begin again when damage was set aside. */
export interface EntryVisitor {
  entry(header: EntryHeader): void
  pack(pack: PackFile, summary: PackSummary): void
  restart(): void
}

class LogScan {
  readonly disk: Disk
  readonly dir: string
  readonly state: LogState
  readonly visit: EntryVisitor
  readonly cache: PackCache
  readonly packs: PackFile[] = []
  readonly raws: RawSegment[] = []
  readonly leftovers: string[] = []
  readonly memberships: { index: LogIndex; payload: Uint8Array }[] = []
  readonly terms: TermList
  chainCrc = 0
  damage: Damage | undefined
  #bytes = Buffer.alloc(0)

  constructor(disk: Disk, dir: string, state: LogState, visit: EntryVisitor, cache: PackCache) {
    this.cache = cache
    this.disk = disk
    this.dir = dir
    this.state = state
    this.visit = visit
    this.terms = new TermList(state.base.index, state.base.term)
  }

  get next(): LogIndex {
    return (this.terms.lastIndex + 1) as LogIndex
  }

  fail(path: string, offset: number, why: string): void {
    this.damage ??= {
      index: this.next,
      path,
      offset,
      message: `log file ${path} is damaged at offset ${offset} (index ${this.next}): ${why}`,
    }
  }

  /** Void by a cut or a reset: see "Cutting the end off". */
  isVoid(generation: number, firstIndex: number): boolean {
    const { state } = this
    return (
      generation < state.baseGeneration || (generation < state.generation && firstIndex > state.cutAfter + 1)
    )
  }

  async run(): Promise<void> {
    const units = await this.units()
    // 1. Which of them are the log's. What cannot be told because its header is damaged stays, and is met in step 2.
    const live: Unit[] = []
    for (const unit of units) {
      if (unit.firstIndex <= this.state.base.index) {
        this.leftovers.push(unit.path)
        continue
      }
      const generation = await this.generationOf(unit)
      if (generation !== undefined && this.isVoid(generation, unit.firstIndex)) this.leftovers.push(unit.path)
      else live.push(unit)
    }
    // 2. In order of their indexes; a pack comes before the segment that it was made from.
    for (let i = 0; i < live.length && this.damage === undefined; i++) {
      const unit = live[i]!
      if (unit.firstIndex < this.next) {
        this.leftovers.push(unit.path)
        continue
      }
      if (unit.firstIndex > this.next) {
        this.missing(unit.firstIndex)
        break
      }
      if (unit.kind === 'pack') await this.pack(unit)
      else {
        const following = live.slice(i + 1).find(other => other.firstIndex > unit.firstIndex)
        await this.segment(unit, following?.firstIndex)
      }
    }
    if (this.damage === undefined && this.state.flushed >= this.next) this.missing(this.state.flushed + 1)
  }

  private missing(before: number): void {
    const path = this.raws.at(-1)?.path ?? join(this.dir, segmentName(this.next))
    this.fail(path, this.raws.at(-1)?.endOffset ?? 0, `entries ${this.next} to ${before - 1} are missing`)
  }

  private async units(): Promise<Unit[]> {
    const units: Unit[] = []
    for (const name of await this.disk.list(this.dir)) {
      const path = join(this.dir, name)
      if (name.endsWith('.tmp')) this.leftovers.push(path)
      for (const kind of ['pack', 'seg'] as const) {
        const firstIndex = firstIndexOf(name, kind)
        if (firstIndex !== undefined) units.push({ kind, firstIndex, path })
      }
    }
    return units.sort((a, b) => a.firstIndex - b.firstIndex || (a.kind < b.kind ? -1 : 1))
  }

  private async generationOf(unit: Unit): Promise<number | undefined> {
    try {
      if (unit.kind === 'pack') return (await PackFile.readHeader(this.disk, unit.path)).generation
      const file = await this.disk.open(unit.path, 'read')
      const header = await readSegmentHeader(file, unit.path, unit.firstIndex).finally(() => file.close())
      return header.generation
    } catch (error) {
      if (isCorrupt(error)) return undefined
      throw error
    }
  }

  private async pack(unit: Unit): Promise<void> {
    try {
      const { pack, summary } = await PackFile.open(this.disk, unit.path, this.cache)
      if (pack.prevTerm !== this.terms.lastTerm)
        return this.fail(
          unit.path,
          0,
          `it follows an entry of term ${pack.prevTerm}, not ${this.terms.lastTerm}`,
        )
      for (const { term, count } of summary.runs) this.terms.push(term, count)
      for (const index of summary.memberships) {
        const [entry] = await pack.read(index, index, 0)
        this.memberships.push({ index, payload: entry!.payload })
      }
      this.packs.push(pack)
      this.visit.pack(pack, summary)
      this.chainCrc = 0
    } catch (error) {
      if (!isCorrupt(error)) throw error
      this.damage ??= { index: unit.firstIndex, path: unit.path, offset: 0, message: error.message }
    }
  }

  /** `followedBy`: first index of the segment after it; undefined for the newest. */
  private async segment(unit: Unit, followedBy: LogIndex | undefined): Promise<void> {
    const { path } = unit
    const file = await this.disk.open(path, 'read')
    try {
      let header: SegmentHeader
      try {
        header = await readSegmentHeader(file, path, unit.firstIndex)
      } catch (error) {
        if (!(error instanceof PalimpsestError)) throw error
        return this.fail(path, 0, error.message)
      }
      if (header.prevTerm !== this.terms.lastTerm)
        return this.fail(
          path,
          0,
          `it follows an entry of term ${header.prevTerm}, not ${this.terms.lastTerm}`,
        )
      if (this.raws.length > 0 && header.chainCrc !== this.chainCrc)
        return this.fail(path, 0, 'it does not follow the entry before it')
      // Once per start: reading all of it keeps the walk simple.
      if (this.#bytes.length !== header.segmentBytes)
        this.#bytes = Buffer.allocUnsafeSlow(header.segmentBytes)
      const bytes = this.#bytes.subarray(0, await file.read(this.#bytes, 0))
      const segment = new RawSegment(this.disk, path, header)
      this.raws.push(segment)
      this.chainCrc = header.headerCrc
      const why = this.walk(segment, bytes, followedBy)
      if (followedBy !== undefined) {
        if (this.next < followedBy) this.fail(path, segment.endOffset, why)
        segment.seal()
      } else if (Math.max(this.state.flushed, this.newestFlushed(bytes, segment.endOffset)) >= this.next)
        this.fail(path, segment.endOffset, `${why} there, but it was flushed before`)
    } finally {
      await file.close()
    }
  }

  /** Takes entry after entry, up to `followedBy` if that is known. Returns what ended it. */
  private walk(segment: RawSegment, bytes: Buffer, followedBy: LogIndex | undefined): string {
    const { state } = this
    for (;;) {
      if (followedBy !== undefined && this.next === followedBy) return ''
      const offset = segment.endOffset
      const header = decodeEntryHeader(bytes, offset)
      if (
        header === undefined ||
        header.index !== this.next ||
        header.chainCrc !== this.chainCrc ||
        (header.index > state.cutAfter && header.generation !== state.generation && followedBy === undefined)
      )
        return 'no entry'
      const payloadAt = offset + ENTRY_HEADER_BYTES
      const payloadEnd = payloadAt + header.payloadBytes
      if (
        offset + entryBytes(header.payloadBytes) > bytes.length ||
        !isPayloadRight(header, bytes, payloadAt, payloadEnd)
      )
        return 'an entry with a wrong payload CRC-32C'
      if (header.term < this.terms.lastTerm)
        return `an entry of term ${header.term} after ${this.terms.lastTerm}`
      segment.push(header.kind, header.payloadBytes)
      this.terms.push(header.term as Term)
      this.chainCrc = header.headerCrc
      if (header.kind === 'membership')
        this.memberships.push({
          index: header.index,
          payload: Buffer.from(bytes.subarray(payloadAt, payloadEnd)),
        })
      this.visit.entry(header)
    }
  }

  /** The highest index that a live entry beyond `from` knows to have been flushed. */
  private newestFlushed(bytes: Buffer, from: number): number {
    const { generation, cutAfter } = this.state
    let flushed = 0
    for (
      let at = bytes.indexOf(ENTRY_MAGIC_BYTES, Math.max(from, SEGMENT_DATA_OFFSET));
      at !== -1;
      at = bytes.indexOf(ENTRY_MAGIC_BYTES, at + 4)
    ) {
      if (at % 8 !== 0) continue
      const header = decodeEntryHeader(bytes, at)
      if (header === undefined || header.index < this.next) continue
      if (header.index > cutAfter && header.generation !== generation) continue
      flushed = Math.max(flushed, header.flushed)
    }
    return flushed
  }
}

export async function scanLog(
  disk: Disk,
  dir: string,
  state: LogState,
  visit: EntryVisitor,
  cache: PackCache,
): Promise<FoundLog> {
  const scan = new LogScan(disk, dir, state, visit, cache)
  await scan.run()
  const { packs, raws, terms, chainCrc, memberships, leftovers, damage } = scan
  return { packs, raws, terms, chainCrc, memberships, leftovers, damage }
}

/**
 * Gives up the log from the damaged entry on: keeps a copy of the damaged file, cuts the log before the entry, and moves away
 * the files behind. Returns the state that is now on disk.
 */
export async function setAside(
  disk: Disk,
  dir: string,
  state: LogState,
  damage: Damage,
  log: Log,
): Promise<LogState> {
  const generation = state.generation + 1
  const keptName = (path: string) => join(dir, `damaged-${generation}-${path.slice(dir.length + 1)}`)
  const behind: string[] = []
  for (const name of await disk.list(dir))
    for (const kind of ['pack', 'seg'] as const) {
      const firstIndex = firstIndexOf(name, kind)
      if (firstIndex !== undefined && firstIndex >= damage.index) behind.push(join(dir, name))
    }
  // The file that holds good entries before the damaged one stays in use: a copy of it, if there is room.
  if (!behind.includes(damage.path) && (await disk.exists(damage.path)))
    await copy(disk, damage.path, keptName(damage.path)).catch((error: Error) => {
      log.warn({ file: damage.path, err: error }, 'no copy of the damaged log file could be kept')
    })
  const cutAfter = damage.index - 1
  const next: LogState = {
    ...state,
    generation,
    cutAfter,
    flushed: Math.min(state.flushed, cutAfter),
    voids: state.voids.filter(index => index <= cutAfter),
  }
  await saveState(disk, dir, next)
  for (const path of behind) await disk.rename(path, keptName(path))
  await disk.syncDir(dir)
  log.warn(
    { file: damage.path, offset: damage.offset, index: damage.index, setAside: behind.length },
    `${damage.message}; the log was cut there, what was behind is kept as damaged-${generation}-*`,
  )
  return next
}

async function copy(disk: Disk, from: string, to: string): Promise<void> {
  await disk.remove(to)
  const source = await disk.open(from, 'read')
  try {
    const target = await disk.open(to, 'create')
    try {
      const bytes = Buffer.alloc(1024 * 1024)
      for (let at = 0; ; ) {
        const got = await source.read(bytes, at)
        if (got === 0) break
        await target.write([bytes.subarray(0, got)], at)
        at += got
      }
      await target.datasync()
    } catch (error) {
      await disk.remove(to)
      throw error
    } finally {
      await target.close()
    }
  } finally {
    await source.close()
  }
}
