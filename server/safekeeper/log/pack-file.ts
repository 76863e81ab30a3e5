/**
 * A pack on the disk, and the cache that all packs of a log share. What stays in memory of each is its ranges and 4 bytes for each
 * timeline in it; summaries, tables and groups are loaded when they are needed.
 */
import { LRUCache } from 'lru-cache'
import type { Lsn, TimelineId } from '../../../protocol/ids.ts'
import type { Disk, DiskFile } from '../../shared/seams.ts'
import type { LogIndex, Term } from '../core/types.ts'
import type { LogEntry } from './entry.ts'
import {
  entryOfRow,
  type PackEntry,
  type PackHeader,
  type PackSummary,
  type PackTable,
} from './pack-codec.ts'
import {
  type PackHead,
  type PackSource,
  placeOfTimeline,
  readPackChosen,
  readPackGroup,
  readPackHead,
  readPackHeader,
  readPackRows,
  readPackTable,
  TermWalk,
} from './pack-reader.ts'

const TABLES_BYTES_MAX = 64 * 1024 * 1024
const HEADS_BYTES_MAX = 16 * 1024 * 1024
const GROUPS_BYTES_MAX = 16 * 1024 * 1024
const OPEN_FILES_MAX = 64
/** Entries of which `seek` gives the rows: more than most groups have. */
const HIT_ROWS_MAX = 8192
/** `readRows` goes on to the next group below it. */
const ROWS_BYTES_MIN = 512 * 1024
/** Estimates of the memory that objects take. */
const TIMELINE_OBJECT_BYTES = 200
const GROUP_OBJECT_BYTES = 200
/** Of the columns of a PackTable. */
const ROW_BYTES = 57

/** Where a timeline's redo at some LSN lies in a pack. */
export interface PackHit {
  /** Of all valid entries of the timeline in the pack. */
  readonly beginLsn: Lsn
  readonly endLsn: Lsn
  /** Beginning of the last entry that begins below the LSN; undefined if none does. */
  readonly before: Lsn | undefined
  /** Beginning of the first at or above it; endLsn if none does. */
  readonly nextLsn: Lsn
  /** Of that entry; undefined if there is none. */
  readonly index: number | undefined
  readonly pack: PackFile
  /** That entry and the following ones, ascending, not all of them; to be read with `readRows`. */
  readonly rows: Uint32Array
}

interface Loaded {
  readonly head: PackHead
  readonly table: PackTable
}

/** Tables and groups that were used last. */
export class PackCache {
  readonly #tables: LRUCache<PackFile, Loaded>
  readonly #heads: LRUCache<PackFile, PackHead>
  readonly #groups: LRUCache<string, Buffer>
  /** On their way into the cache: whoever wants them too waits for the same. */
  readonly #loading = new Map<string, Promise<Buffer>>()
  readonly #open = new LRUCache<PackFile, true>({
    max: OPEN_FILES_MAX,
    dispose: (_, pack) => pack.closeIfIdle(),
  })

  constructor(tablesBytesMax = TABLES_BYTES_MAX, groupsBytesMax = GROUPS_BYTES_MAX) {
    this.#tables = new LRUCache({ maxSize: tablesBytesMax, sizeCalculation: sizeOf })
    this.#heads = new LRUCache({ maxSize: HEADS_BYTES_MAX, sizeCalculation: sizeOfHead })
    this.#groups = new LRUCache({ maxSize: groupsBytesMax, sizeCalculation: bytes => bytes.length + 1 })
  }

  async loaded(pack: PackFile, load: () => Promise<Loaded>): Promise<Loaded> {
    const held = this.#tables.get(pack)
    if (held !== undefined) return held
    const loaded = await load()
    this.#tables.set(pack, loaded)
    return loaded
  }

  async head(pack: PackFile, load: () => Promise<PackHead>): Promise<PackHead> {
    const held = this.#tables.peek(pack)?.head ?? this.#heads.get(pack)
    if (held !== undefined) return held
    const head = await load()
    this.#heads.set(pack, head)
    return head
  }

  async group(pack: PackFile, number: number, load: () => Promise<Buffer>): Promise<Buffer> {
    const key = `${pack.serial} ${number}`
    const held = this.#groups.get(key) ?? this.#loading.get(key)
    if (held !== undefined) return held
    const loading = load()
    this.#loading.set(key, loading)
    try {
      const group = await loading
      this.#groups.set(key, group)
      return group
    } finally {
      this.#loading.delete(key)
    }
  }

  /** A pack's file was opened: of those that were not used for long, one is closed. */
  opened(pack: PackFile): void {
    this.#open.set(pack, true)
  }

  forget(pack: PackFile): void {
    this.#tables.delete(pack)
    this.#heads.delete(pack)
    this.#open.delete(pack)
  }

  get bytes(): number {
    return this.#tables.calculatedSize + this.#heads.calculatedSize + this.#groups.calculatedSize
  }
}

function sizeOf({ head, table }: Loaded): number {
  return table.rows * ROW_BYTES + sizeOfHead(head)
}

function sizeOfHead({ summary }: PackHead): number {
  return 500 + summary.timelines.length * TIMELINE_OBJECT_BYTES + summary.groups.length * GROUP_OBJECT_BYTES
}

let serials = 0

export class PackFile {
  /** Of this pack in the cache; another pack at the same path has another. */
  readonly serial = ++serials
  readonly firstIndex: LogIndex
  readonly lastIndex: LogIndex
  readonly prevTerm: Term
  readonly generation: number
  readonly packBytes: number
  /** Redo in it, uncompressed. */
  readonly rawBytes: number
  /** First 4 bytes of the id of each timeline in it, ascending. */
  readonly #timelines: Uint32Array
  readonly #disk: Disk
  readonly #cache: PackCache
  #path: string
  #reading: Promise<DiskFile> | undefined
  #readers = 0
  #retired = false

  private constructor(disk: Disk, path: string, cache: PackCache, head: PackHead) {
    const { header, footer, summary } = head
    this.#disk = disk
    this.#path = path
    this.#cache = cache
    this.firstIndex = header.firstIndex
    this.lastIndex = header.lastIndex
    this.prevTerm = header.prevTerm
    this.generation = header.generation
    this.packBytes = footer.packBytes
    this.rawBytes = summary.groups.reduce((bytes, group) => bytes + group.rawBytes, 0)
    this.#timelines = Uint32Array.from(summary.timelines, ({ id }) => fingerprint(id))
  }

  static async readHeader(disk: Disk, path: string): Promise<PackHeader> {
    const file = await disk.open(path, 'read')
    try {
      return await readPackHeader(sourceOf(path, file))
    } finally {
      await file.close()
    }
  }

  /** Throws kind corrupt if header, footer or summary are not what was written. */
  static async open(
    disk: Disk,
    path: string,
    cache: PackCache,
  ): Promise<{ pack: PackFile; summary: PackSummary }> {
    const file = await disk.open(path, 'read')
    try {
      const head = await readPackHead(sourceOf(path, file))
      return { pack: new PackFile(disk, path, cache, head), summary: head.summary }
    } finally {
      await file.close()
    }
  }

  get path(): string {
    return this.#path
  }

  /** It has another name now. */
  renamed(path: string): void {
    this.#path = path
  }

  get retired(): boolean {
    return this.#retired
  }

  get timelines(): number {
    return this.#timelines.length
  }

  /** False: certainly not. */
  mayHold(timeline: TimelineId): boolean {
    const wanted = fingerprint(timeline)
    const ids = this.#timelines
    let low = 0
    let high = ids.length
    while (low < high) {
      const middle = (low + high) >>> 1
      if (ids[middle]! < wanted) low = middle + 1
      else high = middle
    }
    return ids[low] === wanted
  }

  /** Entries [from, last] as far as they fit into `bytesMax`, at least one. */
  async read(from: number, last: number, bytesMax: number): Promise<LogEntry[]> {
    return (await this.readAll(from, last, bytesMax)).map(({ isVoid: _, ...entry }) => entry)
  }

  /** The same, and which of them are void. */
  readAll(from: number, last: number, bytesMax: number): Promise<PackEntry[]> {
    const to = Math.min(last, this.lastIndex)
    return this.#use(async source => {
      const { head, table } = await this.#load(source)
      const first = this.firstIndex
      return readPackRows(source, head, table, from - first, to - first, bytesMax, number =>
        this.#group(source, head, number),
      )
    })
  }

  /** Of all entries, those that are void. */
  voids(): Promise<Set<number>> {
    return this.#use(async source => {
      const { head, table } = await this.#load(source)
      const { header, summary } = head
      const voids = new Set<number>()
      for (let row = 0; row < table.rows; row++)
        if (entryOfRow(table, row, header, summary, 0 as Term).isVoid) voids.add(this.firstIndex + row)
      return voids
    })
  }

  /** Entries [from, last] as the table tells them, without their payloads. */
  heads(from: number, last: number): Promise<PackEntry[]> {
    return this.#use(async source => {
      const { head, table } = await this.#load(source)
      const { header, summary } = head
      const terms = new TermWalk(summary)
      const heads: PackEntry[] = []
      for (let row = from - this.firstIndex; row <= last - this.firstIndex; row++)
        heads.push(entryOfRow(table, row, header, summary, terms.termOf(row)))
      return heads
    })
  }

  /**
   * Of entries of one timeline, as `seek` gives them: those of the next groups, whole groups, so that one who reads on needs each
   * group once.
   */
  readRows(rows: Uint32Array): Promise<LogEntry[]> {
    return this.#use(async source => {
      const { head, table } = await this.#load(source)
      return readPackChosen(source, head, table, rows, ROWS_BYTES_MIN, number =>
        this.#group(source, head, number),
      )
    })
  }

  /**
   * Of a timeline: the LSNs of its valid entries here, and where the first of those is that begin at or above `lsn`. undefined:
   * it has none.
   */
  seek(timeline: TimelineId, lsn: Lsn): Promise<PackHit | undefined> {
    return this.#use(async source => {
      const { head, table } = await this.#load(source)
      const place = placeOfTimeline(head.summary, timeline)
      if (place < 0) return undefined
      const { beginLsn, endLsn } = head.summary.timelines[place]!
      const begin = table.starts[place + 1]!
      const end = table.starts[place + 2]!
      if (begin === end) return undefined
      let low = begin
      let high = end
      while (low < high) {
        const middle = (low + high) >>> 1
        if (table.begins[table.order[middle]!]! < lsn) low = middle + 1
        else high = middle
      }
      return {
        beginLsn,
        endLsn,
        before: low > begin ? (table.begins[table.order[low - 1]!]! as Lsn) : undefined,
        index: low < end ? this.firstIndex + table.order[low]! : undefined,
        pack: this,
        rows: table.order.subarray(low, Math.min(end, low + HIT_ROWS_MAX)),
        nextLsn: (low < end ? table.begins[table.order[low]!]! : endLsn) as Lsn,
      }
    })
  }

  /** Loaded from the cache or the disk. */
  summary(): Promise<PackSummary> {
    return this.#use(async source => (await this.#cache.head(this, () => readPackHead(source))).summary)
  }

  #load(source: PackSource): Promise<Loaded> {
    return this.#cache.loaded(this, async () => {
      const head = await readPackHead(source)
      return { head, table: await readPackTable(source, head) }
    })
  }

  #group(source: PackSource, head: PackHead, number: number): Promise<Buffer> {
    return this.#cache.group(this, number, () => readPackGroup(source, head.summary.groups[number]!))
  }

  /** It belongs to the log no more. */
  retire(): void {
    this.#retired = true
    this.#cache.forget(this)
    if (this.#readers === 0) void this.close()
  }

  async #use<T>(read: (source: PackSource) => Promise<T>): Promise<T> {
    this.#readers++
    try {
      this.#reading ??= this.#disk.open(this.#path, 'read')
      const opening = this.#reading
      this.#cache.opened(this)
      const file = await opening.catch((error: unknown) => {
        // Tried again next time.
        if (this.#reading === opening) this.#reading = undefined
        throw error
      })
      return await read(sourceOf(this.#path, file))
    } finally {
      this.#readers--
      if (this.#readers === 0 && this.#retired) void this.close()
    }
  }

  closeIfIdle(): void {
    if (this.#readers === 0) void this.close()
  }

  /** Closes the file; it is opened again when needed. */
  async close(): Promise<void> {
    const reading = this.#reading
    this.#reading = undefined
    const file = await reading?.catch(() => undefined)
    await file?.close()
  }
}

function fingerprint(timeline: TimelineId): number {
  return Number.parseInt(timeline.slice(0, 8), 16)
}

function sourceOf(name: string, file: DiskFile): PackSource {
  return { name, size: () => file.size(), read: (target, position) => file.read(target, position) }
}
