/**
 * Reads a timeline's log in order, entry by entry, never beyond what is durable: from memory near the tail, else from
 * the segments, where every entry's CRCs are checked again before its bytes leave.
 */
import { crc32c } from '../../protocol/crc32c.ts'
import type { Lsn } from '../../protocol/ids.ts'
import { corruptError, invalidError, refreshError } from '../shared/errors.ts'
import type { DiskFile } from '../shared/seams.ts'
import {
  decodeEntryHeader,
  ENTRY_HEADER_BYTES,
  type EntryHeader,
  entryBytes,
  type LogEntry,
} from './log-entry.ts'
import type { LogSegments, Segment } from './log-segments.ts'
import type { LogWriter } from './log-writer.ts'
import { SEGMENT_DATA_OFFSET } from './segment-file.ts'

/** Read at once. Entries that lie wholly in it share it, so a new one is taken for each read. */
const WINDOW_BYTES = 1024 * 1024

interface Place {
  readonly file: DiskFile
  readonly segment: Segment
  /** Of the entry that begins at `lsn`. */
  offset: number
  lsn: Lsn
  window: Buffer
  windowOffset: number
  /** Entries that begin at or above were not yet durable when the window was read: what it has there is void. */
  windowEndLsn: Lsn
}

export class LogCursor {
  private readonly segments: LogSegments
  private readonly writer: LogWriter
  private lsn: Lsn
  private place: Place | undefined

  constructor(segments: LogSegments, writer: LogWriter, fromLsn: Lsn) {
    this.segments = segments
    this.writer = writer
    this.lsn = fromLsn
  }

  /** Where the next entry begins. */
  get position(): Lsn {
    return this.lsn
  }

  /**
   * The next entry, or undefined at the durable end. Throws refresh if it was trimmed, invalid if no entry begins where
   * the cursor was put, corrupt (with file and offset) if the disk gives back something else than was written.
   */
  async next(): Promise<LogEntry | undefined> {
    if (this.lsn >= this.writer.flushedLsn) return undefined
    const entry = this.writer.recentEntry(this.lsn) ?? (await this.read())
    this.lsn = entry.endLsn
    return entry
  }

  async close(): Promise<void> {
    const { place } = this
    this.place = undefined
    await place?.file.close()
  }

  private async read(): Promise<LogEntry> {
    const place = await this.find()
    const header = await this.header(place)
    const payloadAt = place.offset + ENTRY_HEADER_BYTES
    await this.load(place, payloadAt, header.payloadBytes)
    const at = payloadAt - place.windowOffset
    const end = at + header.payloadBytes
    if (place.window.length < end || crc32c(place.window, at, end) !== header.payloadCrc)
      this.damaged(place, 'the entry there has a wrong payload CRC-32C')
    const { kind, beginLsn, endLsn, wallTimeUs, epoch, payloadCrc } = header
    const entry = {
      kind,
      beginLsn,
      endLsn,
      wallTimeUs,
      epoch,
      payloadCrc,
      payload: place.window.subarray(at, end),
    }
    place.offset += entryBytes(header.payloadBytes)
    place.lsn = header.endLsn
    return entry
  }

  /** Opens the segment that holds `lsn`, and walks to the entry that begins there. */
  private async find(): Promise<Place> {
    const found = this.segments.find(this.lsn)
    if (found === undefined) this.trimmed()
    const { segment } = found
    let { place } = this
    if (place?.segment !== segment || place.lsn > this.lsn) {
      await this.close()
      let file: DiskFile
      try {
        file = await this.segments.disk.open(segment.path, 'read')
      } catch (error) {
        if (!this.segments.holds(segment)) this.trimmed()
        throw error
      }
      place = {
        file,
        segment,
        offset: SEGMENT_DATA_OFFSET,
        lsn: segment.baseLsn,
        window: Buffer.alloc(0),
        windowOffset: 0,
        windowEndLsn: 0 as Lsn,
      }
      this.place = place
    }
    while (place.lsn < this.lsn) {
      const header = await this.header(place)
      if (header.endLsn > this.lsn)
        throw invalidError(
          `LSN ${this.lsn} is not where a chunk of the log begins; the nearest are ${header.beginLsn} and ${header.endLsn}`,
          this.lsn,
        )
      place.offset += entryBytes(header.payloadBytes)
      place.lsn = header.endLsn
    }
    return place
  }

  private async header(place: Place): Promise<EntryHeader> {
    if (place.lsn >= place.windowEndLsn) place.window = Buffer.alloc(0)
    await this.load(place, place.offset, ENTRY_HEADER_BYTES)
    const header = decodeEntryHeader(place.window, place.offset - place.windowOffset)
    if (header === undefined) this.damaged(place, 'there is no valid entry header')
    if (header.beginLsn !== place.lsn) this.damaged(place, `the entry there begins at LSN ${header.beginLsn}`)
    return header
  }

  /** Makes the window hold `[offset, offset + bytes)` of the file. */
  private async load(place: Place, offset: number, bytes: number): Promise<void> {
    const { window, windowOffset } = place
    if (offset >= windowOffset && offset + bytes <= windowOffset + window.length) return
    const begin = bytes === ENTRY_HEADER_BYTES ? offset : place.offset
    place.windowEndLsn = this.writer.flushedLsn
    const fresh = Buffer.allocUnsafeSlow(Math.max(WINDOW_BYTES, offset + bytes - begin))
    const got = await place.file.read(fresh, begin)
    place.window = fresh.subarray(0, got)
    place.windowOffset = begin
  }

  private damaged(place: Place, why: string): never {
    if (!this.segments.holds(place.segment)) this.trimmed()
    throw corruptError(
      `log segment ${place.segment.path} is damaged at offset ${place.offset} (LSN ${place.lsn}): ${why}; restore the ` +
        'file from a copy, or import the database again',
      place.lsn,
    )
  }

  private trimmed(): never {
    throw refreshError(
      `redo at LSN ${this.lsn} was trimmed; the log begins at ${this.segments.beginLsn}`,
      this.segments.beginLsn,
    )
  }
}
