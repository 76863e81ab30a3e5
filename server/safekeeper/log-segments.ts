/**
 * The segments of one timeline's log on disk: which there are, recovery after a crash, trimming. Writing is log-writer.ts,
 * reading log-cursor.ts.
 */
import { join } from 'node:path'
import { crc32c } from '../../protocol/crc32c.ts'
import type { Lsn, TimelineId } from '../../protocol/ids.ts'
import { corruptError } from '../shared/errors.ts'
import type { Log } from '../shared/log.ts'
import type { Disk, DiskFile } from '../shared/seams.ts'
import { decodeEntryHeader, ENTRY_HEADER_BYTES, ENTRY_MAGIC, entryBytes } from './log-entry.ts'
import {
  baseLsnOf,
  createSegment,
  prepareSpare,
  readSegmentHeader,
  SEGMENT_DATA_OFFSET,
  type SegmentHeader,
  SPARE_NAME,
} from './segment-file.ts'

export interface Segment {
  readonly baseLsn: Lsn
  readonly path: string
  readonly headerCrc: number
}

/** Where the next entry goes. */
export interface LogTail {
  readonly file: DiskFile
  readonly segment: Segment
  readonly offset: number
  readonly endLsn: Lsn
  /** headerCrc of the last entry, or of the segment. */
  readonly chainCrc: number
  /** Of the last entry of the newest segment; 0 if that has none. */
  readonly lastWallTimeUs: number
}

export class LogSegments {
  readonly timeline: TimelineId
  readonly dir: string
  readonly segmentBytes: number
  readonly disk: Disk
  private readonly log: Log
  /** Ascending; never empty. A segment holds the log from its base LSN to the next one's. */
  private list: Segment[]
  /** Creation and trimming both handle the spare: one after the other. */
  private turn: Promise<unknown> = Promise.resolve()

  private constructor(
    disk: Disk,
    dir: string,
    timeline: TimelineId,
    segmentBytes: number,
    log: Log,
    list: Segment[],
  ) {
    this.disk = disk
    this.dir = dir
    this.timeline = timeline
    this.segmentBytes = segmentBytes
    this.log = log
    this.list = list
  }

  /** Makes the first segment of a new log in an empty folder. */
  static async create(
    disk: Disk,
    dir: string,
    timeline: TimelineId,
    startLsn: Lsn,
    segmentBytes: number,
  ): Promise<void> {
    const { file } = await createSegment(disk, dir, timeline, startLsn, segmentBytes, 0)
    await file.close()
  }

  /**
   * Finds the end of the log. What was torn by a crash before it was acknowledged is given up; damage to what was
   * acknowledged is an error of kind corrupt that names file and offset. `knownDurableLsn`: a lower bound of the end.
   */
  static async open(
    disk: Disk,
    dir: string,
    timeline: TimelineId,
    segmentBytes: number,
    knownDurableLsn: Lsn,
    log: Log,
  ): Promise<{ segments: LogSegments; tail: LogTail }> {
    const list: Segment[] = []
    const bases = (await disk.list(dir)).map(baseLsnOf).filter(base => base !== undefined)
    bases.sort((a, b) => a - b)
    if (bases.length === 0)
      throw corruptError(`log folder ${dir} has no segment; restore it, or delete the timeline's folder`)
    let header: SegmentHeader | undefined
    for (const baseLsn of bases) {
      const path = join(dir, `${String(baseLsn).padStart(20, '0')}.wal`)
      const file = await disk.open(path, 'read')
      header = await readSegmentHeader(file, path, timeline, baseLsn).finally(() => file.close())
      list.push({ baseLsn, path, headerCrc: header.headerCrc })
    }
    const segments = new LogSegments(disk, dir, timeline, segmentBytes, log, list)
    const newest = list.at(-1)!
    const file = await disk.open(newest.path, 'write')
    const tail = await segments.recoverTail(file, newest, header!.segmentBytes, knownDurableLsn)
    // What a killed process had written may still be in the kernel's cache only; from here on it counts as durable.
    await file.datasync()
    return { segments, tail }
  }

  private async recoverTail(
    file: DiskFile,
    segment: Segment,
    fileBytes: number,
    knownDurableLsn: Lsn,
  ): Promise<LogTail> {
    // Once per start, at most a segment: reading all of it keeps the walk simple.
    const bytes = Buffer.allocUnsafeSlow(fileBytes)
    await file.read(bytes, 0)
    let offset = SEGMENT_DATA_OFFSET
    let endLsn = segment.baseLsn
    let chainCrc = segment.headerCrc
    let lastWallTimeUs = 0
    let why = 'no entry'
    for (;;) {
      const header = decodeEntryHeader(bytes, offset)
      if (header === undefined || header.beginLsn !== endLsn || header.chainCrc !== chainCrc) break
      const payloadAt = offset + ENTRY_HEADER_BYTES
      const next = offset + entryBytes(header.payloadBytes)
      if (
        next > fileBytes ||
        crc32c(bytes, payloadAt, payloadAt + header.payloadBytes) !== header.payloadCrc
      ) {
        why = 'an entry whose payload has a wrong CRC-32C'
        break
      }
      offset = next
      endLsn = header.endLsn
      chainCrc = header.headerCrc
      lastWallTimeUs = header.wallTimeUs
    }
    const provenLsn = Math.max(knownDurableLsn, this.newestAcked(bytes, offset, endLsn))
    if (provenLsn > endLsn)
      throw corruptError(
        `log segment ${segment.path} is damaged at offset ${offset} (LSN ${endLsn}): ${why} there, but redo up to LSN ` +
          `${provenLsn} was acknowledged. Nothing was changed. Restore the file from a copy, or import the database again`,
        endLsn,
      )
    if (offset < fileBytes && bytes.readUInt32LE(offset) === ENTRY_MAGIC)
      this.log.info(
        { file: segment.path, offset, lsn: endLsn },
        'unacknowledged redo after the end of the log was given up',
      )
    return { file, segment, offset, endLsn, chainCrc, lastWallTimeUs }
  }

  /**
   * The highest acknowledged LSN that any valid entry beyond `from` knows of. What older uses of the space left
   * there knows only of LSNs below this segment's base, and what was written after the first torn entry only of LSNs
   * below that one: neither can raise a false alarm.
   */
  private newestAcked(bytes: Buffer, from: number, endLsn: Lsn): number {
    const magic = Buffer.from([0x50, 0x4c, 0x45, 0x4e])
    let acked = 0
    for (let at = bytes.indexOf(magic, from); at !== -1; at = bytes.indexOf(magic, at + 8)) {
      if (at % 8 !== 0) continue
      const header = decodeEntryHeader(bytes, at)
      if (header !== undefined && header.beginLsn >= endLsn && header.ackedLsn > acked)
        acked = header.ackedLsn
    }
    return acked
  }

  /** The oldest LSN held. */
  get beginLsn(): Lsn {
    return this.list[0]!.baseLsn
  }

  get bytesHeld(): number {
    return this.list.length * this.segmentBytes
  }

  get count(): number {
    return this.list.length
  }

  /** The segment that holds `lsn`, and the base LSN of the one after it. Undefined if it was trimmed. */
  find(lsn: Lsn): { segment: Segment; nextBaseLsn: Lsn | undefined } | undefined {
    let low = 0
    let high = this.list.length
    while (low < high) {
      const middle = (low + high) >>> 1
      if (this.list[middle]!.baseLsn <= lsn) low = middle + 1
      else high = middle
    }
    const segment = this.list[low - 1]
    return segment && { segment, nextBaseLsn: this.list[low]?.baseLsn }
  }

  /** True while the segment's file is part of the log. */
  holds(segment: Segment): boolean {
    return this.list.includes(segment)
  }

  /** Adds the segment that begins at `baseLsn`, below which all must be durable. */
  roll(baseLsn: Lsn, chainCrc: number): Promise<{ file: DiskFile; segment: Segment }> {
    return this.exclusive(async () => {
      const { file, path, headerCrc } = await createSegment(
        this.disk,
        this.dir,
        this.timeline,
        baseLsn,
        this.segmentBytes,
        chainCrc,
      )
      const segment = { baseLsn, path, headerCrc }
      this.list.push(segment)
      return { file, segment }
    })
  }

  /** Makes the file that the next `roll` will use, ahead of need; `fill`: see prepareSpare. */
  prepare(fill: boolean): Promise<void> {
    return this.exclusive(() => prepareSpare(this.disk, this.dir, this.segmentBytes, fill))
  }

  /** Resolves when no creation or trimming is under way. */
  async settled(): Promise<void> {
    await this.turn
  }

  /** Gives up whole segments that end at or below `lsn`; the newest stays. Returns how many. */
  trim(lsn: Lsn): Promise<number> {
    return this.exclusive(async () => {
      let trimmed = 0
      while (this.list.length > 1 && this.list[1]!.baseLsn <= lsn) {
        // Out of the list first: a reader that trips over the file's new content sees that it was trimmed.
        const segment = this.list.shift()!
        const spare = join(this.dir, SPARE_NAME)
        if (await this.disk.exists(spare)) await this.disk.remove(segment.path)
        else await this.disk.rename(segment.path, spare)
        trimmed++
      }
      if (trimmed > 0) await this.disk.syncDir(this.dir)
      return trimmed
    })
  }

  private exclusive<T>(run: () => Promise<T>): Promise<T> {
    const result = this.turn.then(run)
    this.turn = result.catch(() => {})
    return result
  }
}
