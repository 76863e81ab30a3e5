/**
 * A page, taken apart for people who debug InnoDB: as an object that survives JSON, and as text.
 *
 * Made for damaged pages as much as for good ones: nothing here throws because of what stands in the page; what does not
 * add up is listed under `problems`. Follows the headers named in page-format.ts, trx0undo.h, trx0rec.h, trx0rseg.h,
 * trx0sys.h, dict0boot.h, fsp0fsp.h and btr0cur.cc (BLOB pages).
 */
import { doublewriteAreas } from './extent-map.ts'
import { decompressPage, isPageCompressed } from './page-compression.ts'
import {
  FIL_NULL,
  FIL_PAGE_DATA,
  FIL_PAGE_FILE_FLUSH_LSN,
  FIL_PAGE_IBUF_BITMAP,
  FIL_PAGE_INODE,
  FIL_PAGE_NEXT,
  FIL_PAGE_OFFSET,
  FIL_PAGE_PREV,
  FIL_PAGE_RTREE,
  FIL_PAGE_SPACE_ID,
  FIL_PAGE_TYPE,
  FIL_PAGE_TYPE_BLOB,
  FIL_PAGE_TYPE_FSP_HDR,
  FIL_PAGE_TYPE_SYS,
  FIL_PAGE_TYPE_TRX_SYS,
  FIL_PAGE_TYPE_XDES,
  FIL_PAGE_UNDO_LOG,
  isIndexType,
  isZeroPage,
  pageLsn,
  pageTypeName,
  read2,
  read4,
  read8,
  verifyPage,
} from './page-format.ts'
import { type IndexInspection, inspectIndex } from './page-inspect-index.ts'
import {
  type ExtentsInspection,
  type InodeInspection,
  inspectExtents,
  inspectInodes,
} from './page-inspect-space.ts'
import { inspectionText } from './page-inspect-text.ts'
import {
  inspectRollbackSegment,
  inspectUndo,
  type RollbackSegmentInspection,
  type UndoInspection,
} from './page-inspect-undo.ts'
import type { SpaceFormat } from './space-flags.ts'

export interface TrxSysInspection {
  readonly kind: 'trx_sys'
  readonly trxIdStore: string
  readonly rollbackSegments: readonly {
    readonly slot: number
    readonly space: number
    readonly page: number
  }[]
  /** First page and first page behind each doublewrite block. */
  readonly doublewrite: readonly { readonly start: number; readonly end: number }[]
}

export interface DictionaryInspection {
  readonly kind: 'dictionary header'
  readonly rowId: string
  readonly tableId: string
  readonly indexId: string
  readonly maxSpaceId: number
  readonly roots: Readonly<Record<string, number>>
}

export interface BlobInspection {
  readonly kind: 'blob'
  readonly partLength: number
  readonly nextPage: number | null
}

export interface BitmapInspection {
  readonly kind: 'change buffer bitmap'
  /** Bytes of the bitmap that are not zero. */
  readonly nonZeroBytes: number
}

export type PageDetail =
  | IndexInspection
  | UndoInspection
  | RollbackSegmentInspection
  | ExtentsInspection
  | InodeInspection
  | TrxSysInspection
  | DictionaryInspection
  | BlobInspection
  | BitmapInspection

export interface PageInspection {
  /** The id that the page itself carries. */
  readonly space: number
  readonly page: number
  readonly lsn: number
  readonly type: number
  readonly typeName: string
  /** Siblings on an index level; null for none. */
  readonly prev: number | null
  readonly next: number | null
  /** Bytes 26 to 33: split sequence number of R-tree pages; flush LSN of the system tablespace's page 0. */
  readonly field26: string
  readonly sizeBytes: number
  /** "ok (full_crc32)", or what is wrong. A page in memory has no checksum yet. */
  readonly checksum: string
  readonly checksumOk: boolean
  readonly pageCompressed: boolean
  readonly detail: PageDetail | null
  readonly problems: readonly string[]
}

/** A page number, or null for FIL_NULL. */
export function pageOrNull(page: Uint8Array, at: number): number | null {
  const n = read4(page, at)
  return n === FIL_NULL ? null : n
}

const TRX_SYS_RSEGS = FIL_PAGE_DATA + 18
const TRX_SYS_RSEG_SLOTS = 128
const DICT_HDR_PAGE_NO = 7
const IBUF_HEADER_PAGE_NO = 3

function inspectTrxSys(page: Uint8Array, format: SpaceFormat): TrxSysInspection {
  const rollbackSegments = []
  for (let slot = 0; slot < TRX_SYS_RSEG_SLOTS; slot++) {
    const at = TRX_SYS_RSEGS + slot * 8
    if (read4(page, at + 4) === FIL_NULL || at + 8 > page.length) continue
    rollbackSegments.push({ slot, space: read4(page, at), page: read4(page, at + 4) })
  }
  return {
    kind: 'trx_sys',
    trxIdStore: read8(page, FIL_PAGE_DATA).toString(),
    rollbackSegments,
    doublewrite: doublewriteAreas(page, format),
  }
}

function inspectDictionary(page: Uint8Array): DictionaryInspection {
  const at = FIL_PAGE_DATA
  return {
    kind: 'dictionary header',
    rowId: read8(page, at).toString(),
    tableId: read8(page, at + 8).toString(),
    indexId: read8(page, at + 16).toString(),
    maxSpaceId: read4(page, at + 24),
    roots: {
      SYS_TABLES: read4(page, at + 32),
      SYS_TABLE_IDS: read4(page, at + 36),
      SYS_COLUMNS: read4(page, at + 40),
      SYS_INDEXES: read4(page, at + 44),
      SYS_FIELDS: read4(page, at + 48),
    },
  }
}

function inspectDetail(page: Uint8Array, format: SpaceFormat, problems: string[]): PageDetail | null {
  const type = read2(page, FIL_PAGE_TYPE)
  const space = read4(page, FIL_PAGE_SPACE_ID)
  const pageNo = read4(page, FIL_PAGE_OFFSET)
  if (isIndexType(type)) return inspectIndex(page, format, problems)
  switch (type) {
    case FIL_PAGE_UNDO_LOG:
      return inspectUndo(page, problems)
    case FIL_PAGE_TYPE_FSP_HDR:
    case FIL_PAGE_TYPE_XDES:
      return inspectExtents(page, format, problems)
    case FIL_PAGE_INODE:
      return inspectInodes(page, format, problems)
    case FIL_PAGE_TYPE_TRX_SYS:
      return inspectTrxSys(page, format)
    case FIL_PAGE_TYPE_SYS:
      if (space === 0 && pageNo === DICT_HDR_PAGE_NO) return inspectDictionary(page)
      return space === 0 && pageNo === IBUF_HEADER_PAGE_NO ? null : inspectRollbackSegment(page, format)
    case FIL_PAGE_TYPE_BLOB: {
      const partLength = read4(page, FIL_PAGE_DATA)
      if (partLength > page.length - FIL_PAGE_DATA - 16)
        problems.push(`BLOB part of ${partLength} bytes does not fit`)
      return { kind: 'blob', partLength, nextPage: pageOrNull(page, FIL_PAGE_DATA + 4) }
    }
    case FIL_PAGE_IBUF_BITMAP: {
      let nonZeroBytes = 0
      for (let i = FIL_PAGE_DATA; i < page.length - 8; i++) if (page[i] !== 0) nonZeroBytes++
      return { kind: 'change buffer bitmap', nonZeroBytes }
    }
    default:
      return null
  }
}

/**
 * Takes a page apart.
 * @param page physicalSize bytes, from a file (page_compressed ones as they are) or from memory
 */
export function inspectPageObject(page: Uint8Array, format: SpaceFormat): PageInspection {
  const problems: string[] = []
  if (page.length !== format.physicalSize) {
    problems.push(`${page.length} bytes given, a page of this tablespace has ${format.physicalSize}`)
    const padded = new Uint8Array(format.physicalSize)
    padded.set(page.subarray(0, format.physicalSize))
    page = padded
  }
  const check = verifyPage(page, format)
  const pageCompressed = isPageCompressed(page, format)
  let plain = page
  if (pageCompressed) {
    try {
      plain = decompressPage(page, format, `space ${read4(page, FIL_PAGE_SPACE_ID)}`)
    } catch (error) {
      problems.push((error as Error).message)
    }
  }
  const type = read2(plain, FIL_PAGE_TYPE)
  const zero = isZeroPage(plain)
  if (!check.ok) problems.push(check.reason)
  if (type === FIL_PAGE_RTREE && format.zip)
    problems.push('R-tree pages of ROW_FORMAT=COMPRESSED tables are not decoded')
  let detail: PageDetail | null = null
  if (!zero) {
    try {
      detail = inspectDetail(plain, format, problems)
    } catch (error) {
      problems.push(`could not be taken apart: ${(error as Error).message}`)
    }
  }
  return {
    space: read4(plain, FIL_PAGE_SPACE_ID),
    page: read4(plain, FIL_PAGE_OFFSET),
    lsn: pageLsn(plain),
    type,
    typeName: zero ? 'never initialised' : pageTypeName(type),
    prev: zero ? null : pageOrNull(plain, FIL_PAGE_PREV),
    next: zero ? null : pageOrNull(plain, FIL_PAGE_NEXT),
    field26: read8(plain, FIL_PAGE_FILE_FLUSH_LSN).toString(),
    sizeBytes: plain.length,
    checksum: check.ok ? `ok (${check.kind})` : check.reason,
    checksumOk: check.ok,
    pageCompressed,
    detail,
    problems,
  }
}

/** The same as text, some lines long for a system page and some hundred for a full index page. */
export function inspectPage(page: Uint8Array, format: SpaceFormat): string {
  return inspectionText(inspectPageObject(page, format))
}
