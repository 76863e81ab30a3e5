/**
 * Bytes of one mini-transaction to records, in place and without allocation.
 *
 * A record is
 *
 *     first byte   bit 7 same_page, bits 6..4 type, bits 3..0 length of the rest (1..15), or 0: a varint follows
 *     [varint]     length of the rest beyond 15, this varint included
 *     [varint space id, varint page number]   unless it refers to the same page as the record before it
 *     payload
 *
 * and records with bit 7 set that come before any page record are about files. docs/redo-format.md has it byte by byte.
 * Follows mtr0types.h (the format), mtr0log.h (the writer) and log0recv.cc: `mlog_decode_varint`,
 * `mtr_t::parse_length`, `recv_sys_t::parse_tail`, `log_parse_file`, `log_phys_t::apply`.
 */
import { CorruptRedoError } from './corrupt-redo-error.ts'

export { CorruptRedoError }

/** `RecordCursor.type`. Page records have bits 6..4 of the first byte; file records have bit 7 as well. */
export const RecordType = {
  FREE_PAGE: 0x00,
  INIT_PAGE: 0x10,
  EXTENDED: 0x20,
  WRITE: 0x30,
  MEMSET: 0x40,
  MEMMOVE: 0x50,
  OPTION: 0x70,
  FILE_CREATE: 0x80,
  FILE_DELETE: 0x90,
  FILE_RENAME: 0xa0,
  FILE_MODIFY: 0xb0,
  FILE_CHECKPOINT: 0xf0,
} as const
export type RecordType = (typeof RecordType)[keyof typeof RecordType]

/** The type that is reserved for future use; a log that has it is refused. */
export const RECORD_TYPE_RESERVED = 0x60

/** First payload byte of an EXTENDED record (`mrec_ext_t`). */
export const ExtendedSubtype = {
  INIT_ROW_FORMAT_REDUNDANT: 0,
  INIT_ROW_FORMAT_DYNAMIC: 1,
  UNDO_INIT: 2,
  UNDO_APPEND: 3,
  INSERT_HEAP_REDUNDANT: 4,
  INSERT_REUSE_REDUNDANT: 5,
  INSERT_HEAP_DYNAMIC: 6,
  INSERT_REUSE_DYNAMIC: 7,
  DELETE_ROW_FORMAT_REDUNDANT: 8,
  DELETE_ROW_FORMAT_DYNAMIC: 9,
  TRIM_PAGES: 10,
} as const
export type ExtendedSubtype = (typeof ExtendedSubtype)[keyof typeof ExtendedSubtype]

/** First payload byte of an OPTION record (`mrec_opt`). Other subtypes, and other lengths, are to be ignored. */
export const OptionSubtype = { PAGE_CHECKSUM: 0 } as const
/** Payload of an OPT_PAGE_CHECKSUM record: the subtype and a CRC-32C. */
export const OPT_PAGE_CHECKSUM_BYTES = 5

/** `mlog_decode_varint`'s limit: a record of 1 MiB or more does not exist (`recv_sys_t::MTR_SIZE_MAX`). */
export const MTR_BYTES_MAX = 1 << 20

export const PAGE_BYTES_MAX = 65536
/** Offset of FIL_PAGE_TYPE: where same-page offsets count from after INIT_PAGE and EXTENDED. */
const FIL_PAGE_TYPE = 24
/** No record may touch the first 8 bytes of a page: the checksum is not logged and the page number never changes. */
const FIRST_WRITABLE_OFFSET = 8

const MIN_2BYTE = 1 << 7
const MIN_3BYTE = MIN_2BYTE + (1 << 14)
const MIN_4BYTE = MIN_3BYTE + (1 << 21)
const MIN_5BYTE = MIN_4BYTE + (1 << 28)

/** Number of bytes of the varint that begins with `first`: 1 to 5, or 6 for what is no varint. */
export function varintBytes(first: number): number {
  if (first < 0x80) return 1
  if (first < 0xc0) return 2
  if (first < 0xe0) return 3
  if (first < 0xf0) return 4
  return first === 0xf0 ? 5 : 6
}

/**
 * The varint at `buf[pos]`, or -1 if these bytes encode none: a reserved first byte, a value of 2^32 - 1 (InnoDB's own
 * error value) or more. The caller has checked that `varintBytes(buf[pos])` bytes are there.
 */
export function decodeVarint(buf: Uint8Array, pos: number): number {
  const first = buf[pos]!
  if (first < 0x80) return first
  if (first < 0xc0) return MIN_2BYTE + (((first & 0x3f) << 8) | buf[pos + 1]!)
  if (first < 0xe0) return MIN_3BYTE + (((first & 0x1f) << 16) | (buf[pos + 1]! << 8) | buf[pos + 2]!)
  if (first < 0xf0)
    return MIN_4BYTE + (((first & 0x0f) << 24) | (buf[pos + 1]! << 16) | (buf[pos + 2]! << 8) | buf[pos + 3]!)
  if (first !== 0xf0) return -1
  const rest = ((buf[pos + 1]! << 24) | (buf[pos + 2]! << 16) | (buf[pos + 3]! << 8) | buf[pos + 4]!) >>> 0
  const value = MIN_5BYTE + rest
  return value < 0xffffffff ? value : -1
}

/** Writes `value` (0 .. 2^32 - 2) at `buf[pos]` the way `mlog_encode_varint` does and returns the position after it. */
export function encodeVarint(buf: Uint8Array, pos: number, value: number): number {
  let v = value
  let at = pos
  if (v < MIN_2BYTE) {
    buf[at++] = v
    return at
  }
  if (v < MIN_3BYTE) {
    v -= MIN_2BYTE
    buf[at++] = 0x80 | (v >>> 8)
    buf[at++] = v
    return at
  }
  if (v < MIN_4BYTE) {
    v -= MIN_3BYTE
    buf[at++] = 0xc0 | (v >>> 16)
  } else if (v < MIN_5BYTE) {
    v -= MIN_4BYTE
    buf[at++] = 0xe0 | (v >>> 24)
    buf[at++] = v >>> 16
  } else {
    v -= MIN_5BYTE
    buf[at++] = 0xf0
    buf[at++] = v >>> 24
    buf[at++] = v >>> 16
  }
  buf[at++] = v >>> 8
  buf[at++] = v
  return at
}

/** `#lastOffset` after FREE_PAGE: of same-page records only OPTION may follow. */
const PAGE_FREED = -1
/** `#lastOffset` after TRIM_PAGES: its page id names the end of a file, and nothing is on "the same page". */
const NO_PAGE = -2

/**
 * Walks the records of one mini-transaction, or of a part of one that begins with an explicit page id.
 *
 *     cursor.reset(buf, recordsStart, recordsEnd)
 *     while (cursor.next()) …
 *
 * One cursor serves any number of ranges; its fields are valid until the next call. Everything that InnoDB's
 * `parse_tail` and `log_parse_file` check is checked, and a few things it only asserts; a breach is a
 * `CorruptRedoError`. Whether a record fits the page's *content* is for whoever applies it.
 */
export class RecordCursor {
  /** One of `RecordType`. */
  type: number = 0
  /** Whether the page id was left out because it is that of the record before. */
  samePage = false
  /** Tablespace id, for page and file records alike. */
  space = 0
  /** Page number; 0 for file records. */
  page = 0
  /** Position of the record's first byte. */
  recordStart = 0
  /** Position after the page id: where the payload begins. */
  payloadStart = 0
  /** Position after the record. */
  recordEnd = 0
  // The fields from here on are set by the types that they are named for, and stale for others.

  /** EXTENDED, OPTION: the first payload byte; -1 for an OPTION without any. */
  subtype = -1
  /**
   * WRITE, MEMSET, MEMMOVE: absolute byte offset in the page where the record writes, >= 8; the relative encoding of
   * same-page records is already resolved.
   */
  pageOffset = 0
  /** WRITE, MEMSET, MEMMOVE: number of bytes of the page that the record writes; pageOffset + it <= pageBytes. */
  pageLength = 0
  /** WRITE: the bytes to write; MEMSET: the pattern to repeat; both up to `recordEnd`. */
  dataStart = 0
  /** MEMMOVE: absolute byte offset in the page to copy from, >= 8. */
  sourceOffset = 0

  #buf: Uint8Array = new Uint8Array(0)
  #pos = 0
  #end = 0
  #lastOffset = 0
  #gotPage = false
  readonly #pageBytesMax: number

  /** `pageBytesMax`: innodb_page_size where it is known; offsets beyond it are corruption. */
  constructor(pageBytesMax: number = PAGE_BYTES_MAX) {
    this.#pageBytesMax = pageBytesMax
  }

  /** Begins at `start`; `end` is the position of the terminator byte, or the end of an entry. */
  reset(buf: Uint8Array, start: number, end: number): void {
    if (!(start >= 0 && start <= end && end <= buf.length))
      throw new RangeError(`record range ${start}..${end} is outside a buffer of ${buf.length} bytes`)
    this.#buf = buf
    this.#pos = start
    this.#end = end
    this.#lastOffset = 0
    this.#gotPage = false
  }

  /** Moves to the next record. False at the end of the range. Throws `CorruptRedoError`. */
  next(): boolean {
    const start = this.#pos
    const limit = this.#end
    if (start >= limit) return false
    const buf = this.#buf
    const first = buf[start]!
    if (first <= 1) this.#corrupt('an end-of-mini-transaction byte inside the records', start)

    let pos = start + 1
    let end: number
    const short = first & 0x0f
    if (short !== 0) {
      end = pos + short
    } else {
      const bytes = pos < limit ? varintBytes(buf[pos]!) : 6
      if (bytes > 5 || pos + bytes > limit)
        this.#corrupt('a record length that is no varint or is cut off', start)
      const added = decodeVarint(buf, pos)
      if (added < 0 || added >= MTR_BYTES_MAX) this.#corrupt('a record length of more than 1 MiB', start)
      end = pos + added + 15
      pos += bytes
    }
    if (end > limit) this.#corrupt('a record that reaches beyond its mini-transaction', start)
    this.recordStart = start
    this.recordEnd = end
    this.#pos = end

    const bits = first & 0x70
    if (bits === RECORD_TYPE_RESERVED) this.#corrupt('a record of the reserved type 6', start)

    if (first & 0x80 && this.#gotPage) {
      this.samePage = true
      this.type = bits
      if (
        bits === RecordType.EXTENDED &&
        pos < end &&
        this.#lastOffset >= 0 &&
        end - start <= this.#pageBytesMax
      ) {
        // Two thirds of all records: an insert into the page at hand.
        const subtype = buf[pos]!
        if (subtype < ExtendedSubtype.TRIM_PAGES) {
          this.payloadStart = pos
          this.subtype = subtype
          this.#lastOffset = FIL_PAGE_TYPE
          return true
        }
      }
      if (bits <= RecordType.INIT_PAGE)
        this.#corrupt('a FREE_PAGE or INIT_PAGE record without a page id', start)
    } else {
      this.samePage = false
      this.#lastOffset = 0
      const file = (first & 0x80) !== 0
      this.type = first & 0xf0
      const spaceBytes = pos < end ? varintBytes(buf[pos]!) : 6
      if (spaceBytes > 5 || pos + spaceBytes >= end) {
        if (first === RecordType.FILE_CHECKPOINT + 1 && buf[pos] === 0) {
          // The shortest padding: the type and a single NUL.
          if (end !== limit) this.#corrupt('a FILE_CHECKPOINT record that is not the last', start)
          this.space = 0
          this.page = 0
          this.payloadStart = end
          return true
        }
        this.#corrupt('a page id that is no varint or is cut off', start)
      }
      this.space = decodeVarint(buf, pos)
      if (this.space < 0) this.#corrupt('a tablespace id of more than 32 bits', start)
      pos += spaceBytes
      const pageBytes = varintBytes(buf[pos]!)
      if (pageBytes > 5 || pos + pageBytes > end)
        this.#corrupt('a page number that is no varint or is cut off', start)
      this.page = decodeVarint(buf, pos)
      if (this.page < 0) this.#corrupt('a page number of more than 32 bits', start)
      pos += pageBytes
      this.payloadStart = pos
      if (file) {
        this.#checkFileRecord(pos, end)
        return true
      }
      this.#gotPage = true
    }

    this.payloadStart = pos
    this.#checkPageRecord(bits, pos, end)
    return true
  }

  #checkPageRecord(bits: number, pos: number, end: number): void {
    const buf = this.#buf
    const start = this.recordStart
    if (pos < end && end - start > this.#pageBytesMax)
      this.#corrupt('a page record longer than a page', start)
    switch (bits) {
      case RecordType.FREE_PAGE:
        if (pos !== end) this.#corrupt('a FREE_PAGE record with a payload', start)
        this.#lastOffset = PAGE_FREED
        return
      case RecordType.INIT_PAGE:
        if (pos !== end) this.#corrupt('an INIT_PAGE record with a payload', start)
        this.#lastOffset = FIL_PAGE_TYPE
        return
      case RecordType.EXTENDED:
        if (pos === end) this.#corrupt('an EXTENDED record without a subtype', start)
        this.subtype = buf[pos]!
        if (this.subtype > ExtendedSubtype.TRIM_PAGES)
          this.#corrupt(`an EXTENDED record of the unknown subtype ${this.subtype}`, start)
        if (this.subtype === ExtendedSubtype.TRIM_PAGES) {
          if (end - pos !== 1 || this.samePage) this.#corrupt('a malformed TRIM_PAGES record', start)
          this.#lastOffset = NO_PAGE
        } else {
          if (this.#lastOffset < 0) this.#corrupt('a change to a page that was freed', start)
          this.#lastOffset = FIL_PAGE_TYPE
        }
        return
      case RecordType.OPTION:
        if (this.#lastOffset === NO_PAGE) this.#corrupt('a record on the same page as a TRIM_PAGES', start)
        this.subtype = pos < end ? buf[pos]! : -1
        return
      default:
        this.#checkWrite(bits, pos, end)
    }
  }

  /** WRITE, MEMSET and MEMMOVE: an offset relative to where the record before ended, then what to put there. */
  #checkWrite(bits: number, payload: number, end: number): void {
    const buf = this.#buf
    const start = this.recordStart
    const max = this.#pageBytesMax
    let pos = payload
    if (pos === end) this.#corrupt('a write record without an offset', start)
    if (this.#lastOffset < 0) this.#corrupt('a write to a page that was freed', start)
    const offsetBytes = varintBytes(buf[pos]!)
    if (offsetBytes > 3 || pos + offsetBytes >= end)
      this.#corrupt('a malformed offset in a write record', start)
    const offset = this.#lastOffset + decodeVarint(buf, pos)
    if (offset < FIRST_WRITABLE_OFFSET || offset >= max)
      this.#corrupt(`a write at offset ${offset}, outside the page`, start)
    pos += offsetBytes
    this.pageOffset = offset

    let length: number
    if (bits === RecordType.WRITE) {
      length = end - pos
      this.dataStart = pos
    } else {
      const lengthBytes = varintBytes(buf[pos]!)
      if (lengthBytes > 3 || pos + lengthBytes > end)
        this.#corrupt('a malformed length in a write record', start)
      length = decodeVarint(buf, pos)
      pos += lengthBytes
      if (bits === RecordType.MEMSET) {
        if (pos === end) this.#corrupt('a MEMSET record without a pattern', start)
        if (end - pos > length)
          this.#corrupt('a MEMSET record whose pattern is longer than its target', start)
        this.dataStart = pos
      } else {
        const sourceBytes = pos < end ? varintBytes(buf[pos]!) : 6
        if (sourceBytes > 3 || pos + sourceBytes !== end)
          this.#corrupt('a malformed source in a MEMMOVE record', start)
        const code = decodeVarint(buf, pos)
        const source = code & 1 ? offset - (code >>> 1) - 1 : offset + (code >>> 1) + 1
        if (source < FIRST_WRITABLE_OFFSET || source + length > max)
          this.#corrupt(`a MEMMOVE from offset ${source}, outside the page`, start)
        this.sourceOffset = source
      }
    }
    if (offset + length > max)
      this.#corrupt(`a write of ${length} bytes at offset ${offset}, beyond the page`, start)
    this.pageLength = length
    this.#lastOffset = offset + length
  }

  #checkFileRecord(pos: number, end: number): void {
    const buf = this.#buf
    const start = this.recordStart
    if (this.page !== 0) this.#corrupt('a file record with a page number', start)
    switch (this.type) {
      case RecordType.FILE_CHECKPOINT: {
        if (this.space !== 0) this.#corrupt('a FILE_CHECKPOINT record with a tablespace id', start)
        if (end !== this.#end) this.#corrupt('a FILE_CHECKPOINT record that is not the last', start)
        // 8 bytes are the checkpoint's LSN; anything else is padding and must be NUL.
        const bytes = end - pos
        if (bytes === 8) return
        if (bytes > PAGE_BYTES_MAX) this.#corrupt('padding of more than 64 KiB', start)
        for (let i = pos; i < end; i++) if (buf[i] !== 0) this.#corrupt('padding that is not NUL', start)
        return
      }
      case RecordType.FILE_CREATE:
      case RecordType.FILE_DELETE:
      case RecordType.FILE_RENAME:
      case RecordType.FILE_MODIFY: {
        if (this.space === 0) this.#corrupt('a file record for the system tablespace', start)
        if (pos === end) this.#corrupt('a file record without a name', start)
        let nul = pos
        while (nul < end && buf[nul] !== 0) nul++
        if (nul < end !== (this.type === RecordType.FILE_RENAME))
          this.#corrupt('a file record with the wrong number of names', start)
        this.#checkName(pos, nul)
        if (nul < end) {
          for (let i = nul + 1; i < end; i++)
            if (buf[i] === 0) this.#corrupt('a NUL byte in a file name', start)
          this.#checkName(nul + 1, end)
        }
        return
      }
      default:
        this.#corrupt(`a file record of the unknown type 0x${this.type.toString(16)}`, start)
    }
  }

  #checkName(start: number, end: number): void {
    const buf = this.#buf
    if (
      end - start < 4 ||
      buf[end - 4] !== 0x2e ||
      buf[end - 3] !== 0x69 ||
      buf[end - 2] !== 0x62 ||
      buf[end - 1] !== 0x64
    )
      this.#corrupt('a file name that does not end in .ibd', this.recordStart)
  }

  #corrupt(reason: string, offset: number): never {
    throw new CorruptRedoError(reason, offset)
  }
}
