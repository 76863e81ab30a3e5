/**
 * Brings a page forward through its redo, exactly as InnoDB's crash recovery does.
 *
 *     applier.begin(page, format, spaceId, pageNo)
 *     for (const e of entries) applier.apply(e.buf, e.start, e.end, e.lsn)
 *     applier.end()
 *
 * An *entry* is a consecutive run of records of one mini-transaction for one page, beginning with a record that names
 * the page. One mini-transaction may have several entries for a page, with other pages' records between them; they
 * carry the same LSN. That is why the page's own LSN is read once, by `begin`, and written once, by `end`.
 *
 * Follows log0recv.cc: `recv_recover_page`, `log_phys_t::apply`, `log_phys_t::page_checksum`.
 */
import { crc32c } from '../protocol/crc32c.ts'
import { LSN_ZERO, type Lsn } from '../protocol/ids.ts'
import {
  applyDeleteDynamic,
  applyDeleteRedundant,
  applyInsertDynamic,
  applyInsertRedundant,
  applyPageCreate,
  copyInto,
  type Misfit,
} from './apply-index.ts'
import { applyUndoAppend, applyUndoInit } from './apply-undo.ts'
import { CorruptPageError } from './corrupt-page-error.ts'
import { CorruptRedoError } from './corrupt-redo-error.ts'
import {
  FIL_PAGE_LSN,
  FIL_PAGE_OFFSET,
  FIL_PAGE_PREV,
  FIL_PAGE_SPACE_ID,
  FIL_PAGE_TYPE,
  pageLsn,
  read4,
  write4,
  writePageLsn,
} from './page-format.ts'
import {
  decodeVarint,
  ExtendedSubtype,
  OPT_PAGE_CHECKSUM_BYTES,
  OptionSubtype,
  RecordCursor,
  RecordType,
  varintBytes,
} from './record-decoder.ts'
import type { SpaceFormat } from './space-flags.ts'

/** What became of an entry. */
export const ApplyResult = {
  /** The page already had it: the entry's LSN is not above the page's. */
  SKIPPED: 0,
  APPLIED: 1,
  /** The entry freed the page. Its bytes and its LSN stay. */
  FREED: 2,
} as const
export type ApplyResult = (typeof ApplyResult)[keyof typeof ApplyResult]

const TYPE_NAMES: Readonly<Record<number, string>> = {
  [RecordType.FREE_PAGE]: 'FREE_PAGE',
  [RecordType.INIT_PAGE]: 'INIT_PAGE',
  [RecordType.EXTENDED]: 'EXTENDED',
  [RecordType.WRITE]: 'WRITE',
  [RecordType.MEMSET]: 'MEMSET',
  [RecordType.MEMMOVE]: 'MEMMOVE',
  [RecordType.OPTION]: 'OPTION',
}
const SUBTYPE_NAMES: readonly string[] = Object.keys(ExtendedSubtype)

/** Name of a page record: its type, or the subtype of an EXTENDED one. */
export function recordName(type: number, subtype: number): string {
  if (type === RecordType.EXTENDED) return SUBTYPE_NAMES[subtype] ?? `EXTENDED subtype ${subtype}`
  return TYPE_NAMES[type] ?? `record type 0x${type.toString(16)}`
}

/** The checksum that an OPT_PAGE_CHECKSUM record carries (`mtr_t::page_checksum`); page has the physical size. */
export function optPageChecksum(page: Uint8Array): number {
  const head = crc32c(page, FIL_PAGE_OFFSET, FIL_PAGE_LSN)
  const type = crc32c(page, FIL_PAGE_TYPE, FIL_PAGE_TYPE + 2, head)
  return crc32c(page, FIL_PAGE_SPACE_ID, page.length - 8, type)
}

export interface PageApplierOptions {
  /** Check OPT_PAGE_CHECKSUM records. Default true: only special builds write them, and then one wants to know. */
  readonly verifyChecksums?: boolean
}

/** One per worker; it may serve any number of pages, one after the other. Nothing is allocated per record. */
export class PageApplier {
  /** Whether the page is free after what was applied since `begin`. A page that was free before does not show here. */
  freed = false
  /** Records applied, and OPT_PAGE_CHECKSUM records found right, since construction. */
  recordsApplied = 0
  checksumsVerified = 0

  readonly #cursor = new RecordCursor()
  readonly #verifyChecksums: boolean
  #page: Uint8Array = new Uint8Array(0)
  #format: SpaceFormat | undefined
  #space = 0
  #pageNo = 0
  #baseLsn: Lsn = LSN_ZERO
  #lastLsn: Lsn = LSN_ZERO
  #changed = false
  /** Position in the payload while an EXTENDED record is being decoded. */
  #pos = 0

  constructor(options: PageApplierOptions = {}) {
    this.#verifyChecksums = options.verifyChecksums ?? true
  }

  /**
   * Takes up a page. It is changed in place by `apply`; after an error it must be thrown away.
   * @param page exactly `format.physicalSize` bytes; all zero for a page that does not exist yet
   */
  begin(page: Uint8Array, format: SpaceFormat, spaceId: number, pageNo: number): void {
    if (page.length !== format.physicalSize)
      throw new RangeError(
        `page ${spaceId}:${pageNo} has ${page.length} bytes, must have ${format.physicalSize}`,
      )
    this.#page = page
    this.#format = format
    this.#space = spaceId
    this.#pageNo = pageNo
    this.#baseLsn = pageLsn(page)
    this.#lastLsn = this.#baseLsn
    this.#changed = false
    this.freed = false
  }

  /**
   * Applies buf[start, end), one entry of the mini-transaction that ends at `lsn`. Entries come in LSN order.
   * @throws CorruptRedoError where the records are malformed, name another page, or reach outside the page
   * @throws CorruptPageError where they are well-formed but do not fit the page, or a page checksum is wrong
   */
  apply(buf: Uint8Array, start: number, end: number, lsn: Lsn): ApplyResult {
    // Equivalent to recovery's "start_lsn < page_lsn": mini-transactions do not overlap.
    if (lsn <= this.#baseLsn) return ApplyResult.SKIPPED
    if (lsn < this.#lastLsn)
      throw new RangeError(
        `entry of LSN ${lsn} after one of LSN ${this.#lastLsn} for page ${this.#space}:${this.#pageNo}`,
      )
    const cursor = this.#cursor
    try {
      cursor.reset(buf, start, end)
      let changed = false
      let freed = false
      while (cursor.next()) {
        if (cursor.space !== this.#space || cursor.page !== this.#pageNo)
          this.#corruptRedo(`names page ${cursor.space}:${cursor.page}`, lsn)
        if (cursor.type & 0x80 && !cursor.samePage) this.#corruptRedo('is no page record', lsn)
        const result = this.#applyRecord(buf, lsn)
        if (result === ApplyResult.SKIPPED) continue
        freed = result === ApplyResult.FREED
        this.freed = freed
        changed ||= !freed
      }
      if (changed) {
        this.#changed = true
        this.#lastLsn = lsn
      }
      return freed ? ApplyResult.FREED : changed ? ApplyResult.APPLIED : ApplyResult.SKIPPED
    } catch (error) {
      if (error instanceof CorruptRedoError && error.lsn === undefined)
        throw new CorruptRedoError(`page ${this.#space}:${this.#pageNo}: ${error.reason}`, error.offset, lsn)
      throw error
    }
  }

  /**
   * Finishes the page: gives it the LSN of the last entry that was applied.
   * @returns whether the page was changed since `begin`
   */
  end(): boolean {
    if (!this.#changed) return false
    const page = this.#page
    writePageLsn(page, this.#lastLsn)
    const format = this.#format!
    if (!format.fullCrc32 && !format.zip) page.copyWithin(page.length - 8, FIL_PAGE_LSN, FIL_PAGE_LSN + 8)
    this.#changed = false
    this.#baseLsn = this.#lastLsn
    return true
  }

  #applyRecord(buf: Uint8Array, lsn: Lsn): ApplyResult {
    const cursor = this.#cursor
    const page = this.#page
    switch (cursor.type & 0x70) {
      case RecordType.FREE_PAGE:
        this.recordsApplied++
        return ApplyResult.FREED
      case RecordType.INIT_PAGE:
        page.fill(0)
        write4(page, FIL_PAGE_OFFSET, this.#pageNo)
        page.fill(0xff, FIL_PAGE_PREV, FIL_PAGE_LSN)
        write4(page, FIL_PAGE_SPACE_ID, this.#space)
        break
      case RecordType.OPTION:
        return this.#applyOption(buf, lsn)
      case RecordType.EXTENDED: {
        this.#checkIdentity(lsn)
        if (this.#pageNo < 3 || this.#format!.zip) this.#corruptRedo('is not allowed on this page', lsn)
        const misfit = this.#applyExtended(buf, lsn)
        if (misfit !== undefined) this.#corruptPage(misfit, lsn)
        break
      }
      default:
        this.#checkIdentity(lsn)
        this.#applyWrite(buf, lsn)
    }
    this.recordsApplied++
    return ApplyResult.APPLIED
  }

  /** A page that does not carry its own number was never initialised: what came before this record is missing. */
  #checkIdentity(lsn: Lsn): void {
    if (
      read4(this.#page, FIL_PAGE_OFFSET) !== this.#pageNo ||
      read4(this.#page, FIL_PAGE_SPACE_ID) !== this.#space
    )
      this.#corruptPage(
        `the page is ${read4(this.#page, FIL_PAGE_SPACE_ID)}:${read4(this.#page, FIL_PAGE_OFFSET)}, or was never written`,
        lsn,
      )
  }

  #applyOption(buf: Uint8Array, lsn: Lsn): ApplyResult {
    const cursor = this.#cursor
    const at = cursor.payloadStart
    const isChecksum =
      cursor.subtype === OptionSubtype.PAGE_CHECKSUM && cursor.recordEnd - at === OPT_PAGE_CHECKSUM_BYTES
    // Other options are for readers who know them.
    if (!isChecksum) return ApplyResult.SKIPPED
    if (this.#verifyChecksums) {
      const expected = read4(buf, at + 1)
      const found = optPageChecksum(this.#page)
      if (found !== expected)
        this.#corruptPage(`checksum is 0x${found.toString(16)}, the log says 0x${expected.toString(16)}`, lsn)
      this.checksumsVerified++
    }
    return ApplyResult.APPLIED
  }

  #applyWrite(buf: Uint8Array, lsn: Lsn): void {
    const cursor = this.#cursor
    const page = this.#page
    const at = cursor.pageOffset
    const length = cursor.pageLength
    if (at + length > page.length)
      this.#corruptRedo(`writes ${length} bytes at offset ${at}, beyond the page`, lsn)
    const data = cursor.dataStart
    switch (cursor.type & 0x70) {
      case RecordType.WRITE:
        copyInto(page, at, buf, data, data + length)
        return
      case RecordType.MEMSET: {
        const pattern = cursor.recordEnd - data
        if (pattern === 1) page.fill(buf[data]!, at, at + length)
        else for (let i = 0; i < length; i++) page[at + i] = buf[data + (i % pattern)]!
        return
      }
      case RecordType.MEMMOVE:
        if (cursor.sourceOffset + length > page.length)
          this.#corruptRedo(`copies from offset ${cursor.sourceOffset}, beyond the page`, lsn)
        page.copyWithin(at, cursor.sourceOffset, cursor.sourceOffset + length)
        return
      default:
        this.#corruptRedo('is of an unknown type', lsn)
    }
  }

  /** The next varint of the payload; it may have `maxBytes` bytes and must leave `rest` bytes behind it. */
  #varint(buf: Uint8Array, maxBytes: number, rest: number, lsn: Lsn): number {
    const end = this.#cursor.recordEnd
    const pos = this.#pos
    const bytes = pos < end ? varintBytes(buf[pos]!) : 6
    if (bytes > maxBytes || pos + bytes + rest > end) this.#corruptRedo('is malformed', lsn)
    this.#pos = pos + bytes
    return decodeVarint(buf, pos)
  }

  #applyExtended(buf: Uint8Array, lsn: Lsn): Misfit {
    const cursor = this.#cursor
    const page = this.#page
    const end = cursor.recordEnd
    const length = end - cursor.payloadStart
    this.#pos = cursor.payloadStart + 1
    const subtype = cursor.subtype
    switch (subtype) {
      case ExtendedSubtype.INIT_ROW_FORMAT_REDUNDANT:
      case ExtendedSubtype.INIT_ROW_FORMAT_DYNAMIC:
        if (length !== 1) this.#corruptRedo('is malformed', lsn)
        applyPageCreate(page, subtype === ExtendedSubtype.INIT_ROW_FORMAT_DYNAMIC)
        return undefined
      case ExtendedSubtype.UNDO_INIT:
        if (length !== 1) this.#corruptRedo('is malformed', lsn)
        applyUndoInit(page)
        return undefined
      case ExtendedSubtype.UNDO_APPEND:
        if (length <= 3) this.#corruptRedo('is malformed', lsn)
        return applyUndoAppend(page, buf, this.#pos, end)
      case ExtendedSubtype.INSERT_HEAP_REDUNDANT:
      case ExtendedSubtype.INSERT_REUSE_REDUNDANT: {
        const reuse = subtype === ExtendedSubtype.INSERT_REUSE_REDUNDANT
        const prev = this.#varint(buf, 3, 1, lsn)
        const header = this.#varint(buf, 2, 1, lsn)
        const headerShared = this.#varint(buf, 2, 1, lsn)
        const dataShared = this.#varint(buf, 2, 0, lsn)
        const from = this.#pos
        return applyInsertRedundant(
          page,
          this.#pageNo,
          reuse,
          prev,
          header,
          headerShared,
          dataShared,
          buf,
          from,
          end,
        )
      }
      case ExtendedSubtype.INSERT_HEAP_DYNAMIC:
      case ExtendedSubtype.INSERT_REUSE_DYNAMIC: {
        const reuse = subtype === ExtendedSubtype.INSERT_REUSE_DYNAMIC
        const prev = this.#varint(buf, 3, 1, lsn)
        const shift = reuse ? this.#varint(buf, 3, 1, lsn) : 0
        const header = this.#varint(buf, 3, 1, lsn)
        const headerShared = this.#varint(buf, 2, 1, lsn)
        const dataShared = this.#varint(buf, 3, 0, lsn)
        const from = this.#pos
        return applyInsertDynamic(
          page,
          this.#pageNo,
          reuse,
          prev,
          shift,
          header,
          headerShared,
          dataShared,
          buf,
          from,
          end,
        )
      }
      case ExtendedSubtype.DELETE_ROW_FORMAT_REDUNDANT: {
        const prev = this.#varint(buf, 3, 0, lsn)
        if (this.#pos !== end) this.#corruptRedo('is malformed', lsn)
        return applyDeleteRedundant(page, this.#pageNo, prev)
      }
      case ExtendedSubtype.DELETE_ROW_FORMAT_DYNAMIC: {
        const prev = this.#varint(buf, 3, 1, lsn)
        const headerSize = this.#varint(buf, 2, 1, lsn)
        const dataSize = this.#varint(buf, 3, 0, lsn)
        if (this.#pos !== end) this.#corruptRedo('is malformed', lsn)
        return applyDeleteDynamic(page, this.#pageNo, prev, headerSize, dataSize)
      }
      default:
        // TRIM_PAGES is about a tablespace; whoever indexes the log does not hand it to a page.
        this.#corruptRedo('is not for a page', lsn)
    }
  }

  #recordName(): string {
    return recordName(this.#cursor.type & 0x70, this.#cursor.subtype)
  }

  #corruptRedo(reason: string, lsn: Lsn): never {
    throw new CorruptRedoError(
      `page ${this.#space}:${this.#pageNo}: ${this.#recordName()} record ${reason}`,
      this.#cursor.recordStart,
      lsn,
    )
  }

  #corruptPage(reason: string, lsn: Lsn): never {
    const page = { space: this.#space, page: this.#pageNo }
    throw new CorruptPageError(page, lsn, `${this.#recordName()} record: ${reason}`)
  }
}
