/** A raw segment as it is known in memory: where each entry lies, and how ranges of them are read and checked. */
import type { Lsn, TimelineId } from '../../../protocol/ids.ts'
import { corruptError } from '../../shared/errors.ts'
import type { Disk, DiskFile } from '../../shared/seams.ts'
import type { LogIndex, Term } from '../core/types.ts'
import {
  decodeEntryHeader,
  ENTRY_HEADER_BYTES,
  type EntryHeader,
  type EntryKind,
  entryBytes,
  entryOf,
  isPayloadRight,
  KIND_NUMBERS,
  kindOfNumber,
  type LogEntry,
} from './entry.ts'
import type { ReadWindow, ReadWindows } from './read-windows.ts'
import { SEGMENT_DATA_OFFSET, type SegmentHeader } from './segment-file.ts'
import type { ReadChunk } from './timeline-chunk.ts'

const ROWS_FIRST = 256
/** Of other entries between two that are wanted: to read up to so much along costs less than another read. */
const GAP_BYTES_MAX = 64 * 1024
/** Reads for one window. */
const RUNS_MAX = 64

export class RawSegment {
  readonly path: string
  readonly firstIndex: LogIndex
  readonly prevTerm: Term
  readonly segmentBytes: number
  readonly generation: number
  readonly headerCrc: number
  readonly #disk: Disk
  /** Per entry. Four bytes suffice: a segment is smaller than 4 GiB. */
  #offsets = new Uint32Array(ROWS_FIRST)
  #kinds = new Uint8Array(ROWS_FIRST)
  #count = 0
  #endOffset = SEGMENT_DATA_OFFSET
  #reading: Promise<DiskFile> | undefined
  #readers = 0
  #retired = false

  constructor(disk: Disk, path: string, header: SegmentHeader) {
    this.#disk = disk
    this.path = path
    this.firstIndex = header.firstIndex
    this.prevTerm = header.prevTerm
    this.segmentBytes = header.segmentBytes
    this.generation = header.generation
    this.headerCrc = header.headerCrc
  }

  get count(): number {
    return this.#count
  }

  /** firstIndex - 1 while it is empty. */
  get lastIndex(): LogIndex {
    return (this.firstIndex + this.#count - 1) as LogIndex
  }

  /** Where the next entry goes. */
  get endOffset(): number {
    return this.#endOffset
  }

  /** Memory of the offsets, bytes. */
  get tableBytes(): number {
    return this.#offsets.byteLength + this.#kinds.byteLength
  }

  push(kind: EntryKind, payloadBytes: number): void {
    if (this.#count === this.#offsets.length) {
      const offsets = new Uint32Array(this.#count * 2)
      offsets.set(this.#offsets)
      this.#offsets = offsets
      const kinds = new Uint8Array(this.#count * 2)
      kinds.set(this.#kinds)
      this.#kinds = kinds
    }
    this.#offsets[this.#count] = this.#endOffset
    this.#kinds[this.#count++] = KIND_NUMBERS[kind]
    this.#endOffset += entryBytes(payloadBytes)
  }

  /** No entry will be added: gives back what the tables have to spare. */
  seal(): void {
    this.#offsets = this.#offsets.slice(0, Math.max(1, this.#count))
    this.#kinds = this.#kinds.slice(0, Math.max(1, this.#count))
  }

  cutAfter(index: number): void {
    const count = Math.max(0, index - this.firstIndex + 1)
    if (count >= this.#count) return
    this.#endOffset = this.#offsets[count]!
    this.#count = count
  }

  offsetOf(index: number): number {
    const row = index - this.firstIndex
    return row === this.#count ? this.#endOffset : this.#offsets[row]!
  }

  kindOf(index: number): EntryKind {
    return kindOfNumber(this.#kinds[index - this.firstIndex]!)!
  }

  /**
   * The entries [from, last] as far as they fit into `bytesMax`, at least one, in one read; their payloads share a buffer.
   * All CRCs are checked. Throws kind corrupt with path, offset and index.
   */
  async read(from: number, last: number, bytesMax: number): Promise<LogEntry[]> {
    const begin = this.offsetOf(from)
    let to = Math.min(last, this.lastIndex)
    // Entries ascend by offset: the last one that ends within the bound.
    if (this.offsetOf(to + 1) - begin > bytesMax) {
      let low = from
      while (low < to) {
        const middle = Math.ceil((low + to) / 2)
        if (this.offsetOf(middle + 1) - begin <= bytesMax) low = middle
        else to = middle - 1
      }
      to = low
    }
    const bytes = Buffer.allocUnsafeSlow(this.offsetOf(to + 1) - begin)
    const got = await this.#use(file => file.read(bytes, begin))
    const entries: LogEntry[] = []
    for (let index = from; index <= to; index++) {
      const offset = this.offsetOf(index)
      const at = offset - begin
      const header = got >= at + ENTRY_HEADER_BYTES ? decodeEntryHeader(bytes, at) : undefined
      if (header === undefined) this.#damaged(offset, index, 'there is no valid entry header')
      if (header.index !== index) this.#damaged(offset, index, `the entry there has index ${header.index}`)
      const payloadAt = at + ENTRY_HEADER_BYTES
      const payloadEnd = payloadAt + header.payloadBytes
      if (payloadEnd > got || !isPayloadRight(header, bytes, payloadAt, payloadEnd))
        this.#damaged(offset, index, 'the entry there has a wrong payload CRC-32C', header)
      entries.push(entryOf(header, bytes.subarray(payloadAt, payloadEnd)))
    }
    return entries
  }

  /**
   * Of a timeline's entries `rows`, ascending, the first of which begins at `beginLsn`: as many as fit into a window, at least one,
   * the next one last. Others that lie between are not read, unless they are few bytes. All CRCs are checked. The caller releases
   * each chunk. Throws kind corrupt with path, offset and index.
   */
  async readChunks(
    rows: readonly number[],
    timeline: TimelineId,
    beginLsn: Lsn,
    windows: ReadWindows,
  ): Promise<ReadChunk[]> {
    const bytesMax = windows.bytesWanted
    const runs: { begin: number; end: number }[] = []
    let run: { begin: number; end: number } | undefined
    let bytes = 0
    let count = 0
    for (const row of rows) {
      if (row > this.lastIndex) break
      const begin = this.offsetOf(row)
      const end = this.offsetOf(row + 1)
      const isNear = run !== undefined && begin - run.end <= GAP_BYTES_MAX
      const more = isNear ? end - run!.end : end - begin
      if (count > 0 && (bytes + more > bytesMax || (!isNear && runs.length === RUNS_MAX))) break
      if (isNear) {
        run!.end = end
      } else {
        run = { begin, end }
        runs.push(run)
      }
      bytes += more
      count++
    }
    const window = windows.take(bytes)
    try {
      let at = 0
      for (const { begin, end } of runs) {
        const target = window.buffer.subarray(at, at + end - begin)
        const got = await this.#use(file => file.read(target, begin))
        // What a reader before left there is no entry of ours.
        if (got < target.length) target.fill(0, got)
        at += target.length
      }
      return this.#chunksIn(window, runs, rows.slice(0, count), timeline, beginLsn)
    } catch (error) {
      window.release()
      throw error
    }
  }

  #chunksIn(
    window: ReadWindow,
    runs: readonly { readonly begin: number; readonly end: number }[],
    rows: readonly number[],
    timeline: TimelineId,
    beginLsn: Lsn,
  ): ReadChunk[] {
    const { buffer, release } = window
    const chunks: ReadChunk[] = new Array(rows.length)
    let run = 0
    /** Where in the window the file's offset 0 would be. */
    let shift = -runs[0]!.begin
    let lsn = beginLsn
    for (let i = 0; i < rows.length; i++) {
      const index = rows[i]!
      const offset = this.offsetOf(index)
      while (offset >= runs[run]!.end) {
        shift += runs[run]!.end - runs[run + 1]!.begin
        run++
      }
      const at = offset + shift
      const header = decodeEntryHeader(buffer, at)
      if (header === undefined) this.#damaged(offset, index, 'there is no valid entry header')
      if (header.index !== index || header.timeline !== timeline || header.beginLsn !== lsn)
        this.#damaged(offset, index, `another entry is there, of index ${header.index}`, header)
      const begin = at + ENTRY_HEADER_BYTES
      const end = begin + header.payloadBytes
      if (end - shift > this.offsetOf(index + 1) || !isPayloadRight(header, buffer, begin, end))
        this.#damaged(offset, index, 'the entry there has a wrong payload CRC-32C', header)
      const { kind, endLsn, wallTimeUs, payloadCrc, dropped } = header
      chunks[rows.length - 1 - i] = {
        index: header.index,
        kind: kind as 'redo' | 'gap',
        beginLsn: lsn,
        endLsn,
        wallTimeUs,
        payload: buffer.subarray(begin, end),
        payloadCrc,
        release,
        dropped,
      }
      lsn = endLsn
    }
    window.users = rows.length
    return chunks
  }

  /** The CRC that an entry after `index` must carry on: of that entry, or of the segment. */
  async chainAfter(index: number): Promise<number> {
    return index < this.firstIndex ? this.headerCrc : (await this.headerAt(index)).headerCrc
  }

  /** The header of an entry, whether or not its payload can be read. Throws kind corrupt. */
  async headerAt(index: number): Promise<EntryHeader> {
    const bytes = Buffer.alloc(ENTRY_HEADER_BYTES)
    const offset = this.offsetOf(index)
    await this.#use(file => file.read(bytes, offset))
    const header = decodeEntryHeader(bytes, 0)
    if (header?.index !== index) this.#damaged(offset, index, 'there is no valid entry header')
    return header
  }

  /** The file is about to become another one, or none. Reads that are under way may end as they like. */
  retire(): void {
    this.#retired = true
    if (this.#readers === 0) this.#closeReading()
  }

  get retired(): boolean {
    return this.#retired
  }

  async #use<T>(read: (file: DiskFile) => Promise<T>): Promise<T> {
    this.#readers++
    try {
      this.#reading ??= this.#disk.open(this.path, 'read')
      const opening = this.#reading
      const file = await opening.catch((error: unknown) => {
        // Tried again next time.
        if (this.#reading === opening) this.#reading = undefined
        throw error
      })
      return await read(file)
    } finally {
      this.#readers--
      if (this.#readers === 0 && this.#retired) this.#closeReading()
    }
  }

  #closeReading(): void {
    const reading = this.#reading
    this.#reading = undefined
    reading?.then(file => file.close()).catch(() => {})
  }

  /** Closes the file for reading; it is opened again when needed. */
  async close(): Promise<void> {
    const reading = this.#reading
    this.#reading = undefined
    const file = await reading?.catch(() => undefined)
    await file?.close()
  }

  #damaged(offset: number, index: number, why: string, header?: EntryHeader): never {
    const redo = header?.timeline === undefined ? '' : `, timeline ${header.timeline}, LSN ${header.beginLsn}`
    throw corruptError(
      `log segment ${this.path} is damaged at offset ${offset} (index ${index}${redo}): ${why}`,
      header?.beginLsn,
    )
  }
}
