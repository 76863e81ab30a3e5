/**
 * InnoDB's page: where its header and trailer fields stand, what the type numbers mean, and its checksums,
 * both checking them as a server does that reads the page, and writing them as a server does that flushes it.
 *
 * Offsets are bytes from the start of the page; numbers are big-endian. Everything here works on views of shared memory.
 * Follows fil0fil.h, page0page.h, buf0checksum.cc, buf0buf.cc (`buf_page_is_corrupted`), page0zip.cc
 * (`page_zip_calc_checksum`) and buf0flu.cc (`buf_flush_init_for_writing`, `buf_page_encrypt`).
 */
import { crc32c } from '../protocol/crc32c.ts'
import { LSN_MAX, type Lsn } from '../protocol/ids.ts'
import type { SpaceFormat } from './space-flags.ts'

/** Checksum, or in a full_crc32 tablespace the encryption key's version. */
export const FIL_PAGE_SPACE_OR_CHKSUM = 0
export const FIL_PAGE_OFFSET = 4
export const FIL_PAGE_PREV = 8
export const FIL_PAGE_NEXT = 12
/** End LSN of the last mini-transaction that changed the page. */
export const FIL_PAGE_LSN = 16
export const FIL_PAGE_TYPE = 24
/** Flush LSN of the system tablespace's page 0; key version; split sequence number of an R-tree page. */
export const FIL_PAGE_FILE_FLUSH_LSN = 26
export const FIL_PAGE_SPACE_ID = 34
export const FIL_PAGE_DATA = 38
/** Bytes of the trailer. */
export const FIL_PAGE_DATA_END = 8

/** "No page", in a field that holds a page number. */
export const FIL_NULL = 0xffffffff

export const FIL_PAGE_TYPE_ALLOCATED = 0
export const FIL_PAGE_UNDO_LOG = 2
export const FIL_PAGE_INODE = 3
export const FIL_PAGE_IBUF_FREE_LIST = 4
export const FIL_PAGE_IBUF_BITMAP = 5
export const FIL_PAGE_TYPE_SYS = 6
export const FIL_PAGE_TYPE_TRX_SYS = 7
export const FIL_PAGE_TYPE_FSP_HDR = 8
export const FIL_PAGE_TYPE_XDES = 9
export const FIL_PAGE_TYPE_BLOB = 10
export const FIL_PAGE_TYPE_ZBLOB = 11
export const FIL_PAGE_TYPE_ZBLOB2 = 12
export const FIL_PAGE_TYPE_UNKNOWN = 13
/** Root of a clustered index after an instant ALTER TABLE. */
export const FIL_PAGE_TYPE_INSTANT = 18
export const FIL_PAGE_RTREE = 17854
export const FIL_PAGE_INDEX = 17855
/** On disk only: page_compressed in a tablespace that is not full_crc32. */
export const FIL_PAGE_PAGE_COMPRESSED = 34354
export const FIL_PAGE_PAGE_COMPRESSED_ENCRYPTED = 37401
/** On disk only: set in the type of a page_compressed page of a full_crc32 tablespace; the low byte is its size/256. */
export const FIL_PAGE_COMPRESS_FCRC32_MARKER = 0x8000

const TYPE_NAMES = new Map<number, string>([
  [FIL_PAGE_TYPE_ALLOCATED, 'ALLOCATED'],
  [FIL_PAGE_UNDO_LOG, 'UNDO_LOG'],
  [FIL_PAGE_INODE, 'INODE'],
  [FIL_PAGE_IBUF_FREE_LIST, 'IBUF_FREE_LIST'],
  [FIL_PAGE_IBUF_BITMAP, 'IBUF_BITMAP'],
  [FIL_PAGE_TYPE_SYS, 'SYS'],
  [FIL_PAGE_TYPE_TRX_SYS, 'TRX_SYS'],
  [FIL_PAGE_TYPE_FSP_HDR, 'FSP_HDR'],
  [FIL_PAGE_TYPE_XDES, 'XDES'],
  [FIL_PAGE_TYPE_BLOB, 'BLOB'],
  [FIL_PAGE_TYPE_ZBLOB, 'ZBLOB'],
  [FIL_PAGE_TYPE_ZBLOB2, 'ZBLOB2'],
  [FIL_PAGE_TYPE_UNKNOWN, 'UNKNOWN'],
  [FIL_PAGE_TYPE_INSTANT, 'INSTANT'],
  [FIL_PAGE_RTREE, 'RTREE'],
  [FIL_PAGE_INDEX, 'INDEX'],
  [FIL_PAGE_PAGE_COMPRESSED, 'PAGE_COMPRESSED'],
  [FIL_PAGE_PAGE_COMPRESSED_ENCRYPTED, 'PAGE_COMPRESSED_ENCRYPTED'],
])

/** InnoDB's name of a page type without the FIL_PAGE_ prefix; a number no type has gives `TYPE_<number>`. */
export function pageTypeName(type: number): string {
  return TYPE_NAMES.get(type) ?? `TYPE_${type}`
}

/** B-tree or R-tree page (`fil_page_type_is_index`). */
export function isIndexType(type: number): boolean {
  return type === FIL_PAGE_INDEX || type === FIL_PAGE_RTREE || type === FIL_PAGE_TYPE_INSTANT
}

/** The index page header follows the page header; these are offsets in the page (page0page.h). */
export const PAGE_HEADER = FIL_PAGE_DATA
export const PAGE_N_DIR_SLOTS = PAGE_HEADER
export const PAGE_HEAP_TOP = PAGE_HEADER + 2
/** Number of heap records; bit 15 tells ROW_FORMAT=COMPACT and newer. */
export const PAGE_N_HEAP = PAGE_HEADER + 4
export const PAGE_FREE = PAGE_HEADER + 6
export const PAGE_GARBAGE = PAGE_HEADER + 8
export const PAGE_LAST_INSERT = PAGE_HEADER + 10
export const PAGE_INSTANT = PAGE_HEADER + 12
export const PAGE_DIRECTION_B = PAGE_HEADER + 13
export const PAGE_N_DIRECTION = PAGE_HEADER + 14
export const PAGE_N_RECS = PAGE_HEADER + 16
export const PAGE_MAX_TRX_ID = PAGE_HEADER + 18
export const PAGE_LEVEL = PAGE_HEADER + 26
export const PAGE_INDEX_ID = PAGE_HEADER + 28
export const PAGE_BTR_SEG_LEAF = PAGE_HEADER + 36
export const PAGE_BTR_SEG_TOP = PAGE_HEADER + 46
export const PAGE_DATA = PAGE_HEADER + 56
export const PAGE_OLD_INFIMUM = PAGE_DATA + 7
export const PAGE_OLD_SUPREMUM = PAGE_DATA + 22
export const PAGE_OLD_SUPREMUM_END = PAGE_OLD_SUPREMUM + 9
export const PAGE_NEW_INFIMUM = PAGE_DATA + 5
export const PAGE_NEW_SUPREMUM = PAGE_DATA + 18
export const PAGE_NEW_SUPREMUM_END = PAGE_NEW_SUPREMUM + 8
/** The directory's first slot ends this many bytes before the end of the page; slots of 2 bytes grow downwards. */
export const PAGE_DIR = FIL_PAGE_DATA_END

/** Tablespace header, on page 0 (fsp0fsp.h). Offsets in the page. */
export const FSP_HEADER_OFFSET = FIL_PAGE_DATA
export const FSP_SPACE_ID = FSP_HEADER_OFFSET
export const FSP_SIZE = FSP_HEADER_OFFSET + 8
export const FSP_FREE_LIMIT = FSP_HEADER_OFFSET + 12
export const FSP_SPACE_FLAGS = FSP_HEADER_OFFSET + 16
export const FSP_FRAG_N_USED = FSP_HEADER_OFFSET + 20
export const FSP_FREE = FSP_HEADER_OFFSET + 24
export const FSP_FREE_FRAG = FSP_HEADER_OFFSET + 40
export const FSP_FULL_FRAG = FSP_HEADER_OFFSET + 56
export const FSP_SEG_ID = FSP_HEADER_OFFSET + 72
export const FSP_SEG_INODES_FULL = FSP_HEADER_OFFSET + 80
export const FSP_SEG_INODES_FREE = FSP_HEADER_OFFSET + 96
/** First extent descriptor, on page 0 and on every later descriptor page. */
export const XDES_ARR_OFFSET = FSP_HEADER_OFFSET + 112

/** Page 5 of the system tablespace: the transaction system header. */
export const TRX_SYS_PAGE_NO = 5

export function read2(page: Uint8Array, at: number): number {
  return (page[at]! << 8) | page[at + 1]!
}

export function read4(page: Uint8Array, at: number): number {
  return ((page[at]! << 24) | (page[at + 1]! << 16) | (page[at + 2]! << 8) | page[at + 3]!) >>> 0
}

export function write2(page: Uint8Array, at: number, value: number): void {
  page[at] = value >>> 8
  page[at + 1] = value
}

export function write4(page: Uint8Array, at: number, value: number): void {
  page[at] = value >>> 24
  page[at + 1] = value >>> 16
  page[at + 2] = value >>> 8
  page[at + 3] = value
}

/** Eight bytes as a hexadecimal-safe big integer; for identifiers, not for LSNs. */
export function read8(page: Uint8Array, at: number): bigint {
  return (BigInt(read4(page, at)) << 32n) | BigInt(read4(page, at + 4))
}

/**
 * FIL_PAGE_LSN. A value beyond 2^53-1 is no LSN that this project can hold; it comes back as LSN_MAX, so that a damaged
 * page looks like one from the future rather than like an old one.
 */
export function pageLsn(page: Uint8Array): Lsn {
  const high = read4(page, FIL_PAGE_LSN)
  return high > 0x1fffff ? LSN_MAX : ((high * 0x100000000 + read4(page, FIL_PAGE_LSN + 4)) as Lsn)
}

export function writePageLsn(page: Uint8Array, lsn: Lsn): void {
  write4(page, FIL_PAGE_LSN, Math.floor(lsn / 0x100000000))
  write4(page, FIL_PAGE_LSN + 4, lsn % 0x100000000)
}

/** Whether the first `size` bytes are zero. */
export function isZeroPage(page: Uint8Array, size: number = page.length): boolean {
  for (let i = 0; i < size; i++) if (page[i] !== 0) return false
  return true
}

/** The checksum that a page must show under innodb_checksum_algorithm=crc32 (`buf_calc_page_crc32`). */
export function pageCrc32(page: Uint8Array, size: number): number {
  return (
    (crc32c(page, FIL_PAGE_OFFSET, FIL_PAGE_FILE_FLUSH_LSN) ^
      crc32c(page, FIL_PAGE_DATA, size - FIL_PAGE_DATA_END)) >>>
    0
  )
}

/** InnoDB's historic string hash (`ut_fold_binary`); only its low 32 bits reach the disk, so 32-bit arithmetic is exact. */
function foldBinary(page: Uint8Array, start: number, end: number): number {
  let fold = 0
  for (let i = start; i < end; i++) {
    const byte = page[i]!
    fold = (((((fold ^ byte ^ 1653893711) << 8) + fold) ^ 1463735687) + byte) | 0
  }
  return fold >>> 0
}

/** Field 1 under innodb_checksum_algorithm=innodb (`buf_calc_page_new_checksum`). */
export function pageInnodbChecksum(page: Uint8Array, size: number): number {
  return (
    (foldBinary(page, FIL_PAGE_OFFSET, FIL_PAGE_FILE_FLUSH_LSN) +
      foldBinary(page, FIL_PAGE_DATA, size - FIL_PAGE_DATA_END)) >>>
    0
  )
}

/** Field 2 under innodb_checksum_algorithm=innodb; covers field 1, so that one is written first. */
export function pageInnodbOldChecksum(page: Uint8Array): number {
  return foldBinary(page, 0, FIL_PAGE_FILE_FLUSH_LSN)
}

/** Checksum of a ROW_FORMAT=COMPRESSED frame (`page_zip_calc_checksum`, CRC-32C variant). */
export function zipCrc32(page: Uint8Array, size: number): number {
  return (
    (crc32c(page, FIL_PAGE_OFFSET, FIL_PAGE_LSN) ^
      crc32c(page, FIL_PAGE_TYPE, FIL_PAGE_TYPE + 2) ^
      crc32c(page, FIL_PAGE_SPACE_ID, size)) >>>
    0
  )
}

const ADLER_MODULUS = 65521
/** So many bytes can be summed before the sums must be reduced to stay below 2^32 (zlib's NMAX). */
const ADLER_RUN = 5552

function adler32(seed: number, page: Uint8Array, start: number, end: number): number {
  let a = seed & 0xffff
  let b = seed >>> 16
  for (let i = start; i < end; ) {
    const stop = Math.min(end, i + ADLER_RUN)
    for (; i < stop; i++) {
      a += page[i]!
      b += a
    }
    a %= ADLER_MODULUS
    b %= ADLER_MODULUS
  }
  return ((b << 16) | a) >>> 0
}

/** The Adler-32 that innodb_checksum_algorithm=innodb puts on a ROW_FORMAT=COMPRESSED frame; InnoDB seeds it with 0. */
export function zipAdler32(page: Uint8Array, size: number): number {
  let sum = adler32(0, page, FIL_PAGE_OFFSET, FIL_PAGE_LSN)
  sum = adler32(sum, page, FIL_PAGE_TYPE, FIL_PAGE_TYPE + 2)
  return adler32(sum, page, FIL_PAGE_SPACE_ID, size)
}

/** What innodb_checksum_algorithm=none writes in place of a checksum. */
export const NO_CHECKSUM_MAGIC = 0xdeadbeef

/** Which algorithm a page's checksum was found to follow. `page_compressed` pages of old tablespaces carry none. */
export type ChecksumKind = 'zero page' | 'full_crc32' | 'crc32' | 'innodb' | 'none' | 'page_compressed'

export type PageCheck =
  | { readonly ok: true; readonly kind: ChecksumKind }
  | { readonly ok: false; readonly reason: string }

const bad = (reason: string): PageCheck => ({ ok: false, reason })
const GOOD: Record<ChecksumKind, PageCheck> = {
  'zero page': { ok: true, kind: 'zero page' },
  full_crc32: { ok: true, kind: 'full_crc32' },
  crc32: { ok: true, kind: 'crc32' },
  innodb: { ok: true, kind: 'innodb' },
  none: { ok: true, kind: 'none' },
  page_compressed: { ok: true, kind: 'page_compressed' },
}
const hex = (n: number): string => `0x${n.toString(16).padStart(8, '0')}`

/**
 * Bytes of a full_crc32 page that count: less than the page size where page_compressed shortened it, and 0 where the
 * type field claims more than a page (`buf_page_full_crc32_size`, buf0buf.h).
 */
export function fullCrc32Size(page: Uint8Array, pageSize: number): number {
  const type = read2(page, FIL_PAGE_TYPE)
  if (!(type & FIL_PAGE_COMPRESS_FCRC32_MARKER)) return pageSize
  const size = (type & 0x7fff) << 8
  return size < pageSize && size > FIL_PAGE_DATA ? size : 0
}

function verifyFullCrc32(page: Uint8Array, pageSize: number): PageCheck {
  const size = fullCrc32Size(page, pageSize)
  if (size === 0)
    return bad(`compressed size ${(read2(page, FIL_PAGE_TYPE) & 0x7fff) << 8} is not within the page`)
  const stored = read4(page, size - 4)
  if (stored === 0 && size === pageSize && isZeroPage(page, pageSize)) return GOOD['zero page']
  const calculated = crc32c(page, 0, size - 4)
  if (stored !== calculated) return bad(`full_crc32 checksum is ${hex(stored)}, should be ${hex(calculated)}`)
  const encrypted = read4(page, 0) !== 0
  if (size === pageSize && !encrypted && read4(page, FIL_PAGE_LSN + 4) !== read4(page, size - 8))
    return bad('LSN of header and trailer differ')
  return GOOD.full_crc32
}

function verifyZip(page: Uint8Array, size: number): PageCheck {
  if (isZeroPage(page, size)) return GOOD['zero page']
  const stored = read4(page, FIL_PAGE_SPACE_OR_CHKSUM)
  const calculated = zipCrc32(page, size)
  if (stored === calculated) return GOOD.crc32
  if (stored === NO_CHECKSUM_MAGIC) return GOOD.none
  if (stored === zipAdler32(page, size)) return GOOD.innodb
  return bad(`checksum of the compressed page is ${hex(stored)}, should be ${hex(calculated)}`)
}

/** Zero throughout but for the flush LSN, which old servers wrote into page 0 whatever else stood there. */
function isZeroButFlushLsn(page: Uint8Array, size: number): boolean {
  for (let i = 0; i < size; i++) {
    if (i === FIL_PAGE_FILE_FLUSH_LSN) i += 8
    if (page[i] !== 0) return false
  }
  return true
}

function verifyOld(page: Uint8Array, size: number): PageCheck {
  if (read4(page, FIL_PAGE_LSN + 4) !== read4(page, size - 4)) return bad('LSN of header and trailer differ')
  const field1 = read4(page, FIL_PAGE_SPACE_OR_CHKSUM)
  const field2 = read4(page, size - 8)
  if (field1 === 0 && field2 === 0 && isZeroButFlushLsn(page, size)) return GOOD['zero page']
  const crc32 = pageCrc32(page, size)
  if (field1 === crc32 && field2 === crc32) return GOOD.crc32
  if (field1 === NO_CHECKSUM_MAGIC && field2 === NO_CHECKSUM_MAGIC) return GOOD.none
  // Field 2 may also hold the upper half of the LSN (InnoDB before 4.0.14), or the historic checksum of the header.
  if (
    field2 !== read4(page, FIL_PAGE_LSN) &&
    field2 !== NO_CHECKSUM_MAGIC &&
    field2 !== pageInnodbOldChecksum(page)
  )
    return bad(`checksum in the trailer is ${hex(field2)}; crc32 would be ${hex(crc32)}`)
  if (field1 === 0 || field1 === NO_CHECKSUM_MAGIC) return GOOD.none
  if (field1 === pageInnodbChecksum(page, size)) return GOOD.innodb
  return bad(`checksum is ${hex(field1)}; crc32 would be ${hex(crc32)}`)
}

/**
 * Judges a page as it stands in a data file, exactly as a server with a non-strict innodb_checksum_algorithm would on
 * reading it, except that the page's LSN is not compared with the end of the log.
 * @param page physicalSize bytes; page_compressed pages still compressed
 */
export function verifyPage(page: Uint8Array, format: SpaceFormat): PageCheck {
  if (page.length < format.physicalSize)
    return bad(`page has only ${page.length} bytes of ${format.physicalSize}`)
  if (format.fullCrc32) return verifyFullCrc32(page, format.physicalSize)
  const type = read2(page, FIL_PAGE_TYPE)
  if (
    format.pageCompressed &&
    (type === FIL_PAGE_PAGE_COMPRESSED || type === FIL_PAGE_PAGE_COMPRESSED_ENCRYPTED)
  )
    return GOOD.page_compressed
  if (format.zip) return verifyZip(page, format.physicalSize)
  return verifyOld(page, format.physicalSize)
}

/** Checksums that old-format tablespaces can be written with. 10.11 writes crc32 whatever the setting. */
export type OldChecksumAlgorithm = 'crc32' | 'innodb' | 'none'

/** Page types that `buf_flush_init_for_writing` lets pass at a place that prescribes none. */
const PLAIN_TYPES = new Set([
  FIL_PAGE_INDEX,
  FIL_PAGE_TYPE_INSTANT,
  FIL_PAGE_RTREE,
  FIL_PAGE_UNDO_LOG,
  FIL_PAGE_INODE,
  FIL_PAGE_IBUF_FREE_LIST,
  FIL_PAGE_TYPE_ALLOCATED,
  FIL_PAGE_TYPE_SYS,
  FIL_PAGE_TYPE_TRX_SYS,
  FIL_PAGE_TYPE_BLOB,
  FIL_PAGE_TYPE_ZBLOB,
  FIL_PAGE_TYPE_ZBLOB2,
])

/** Old 16 KiB files can hold garbage in the type field; InnoDB mends it whenever it writes such a page. */
function mendedType(spaceId: number, pageNo: number, type: number): number {
  const place = pageNo % 16384
  if (place === 0) return pageNo === 0 ? FIL_PAGE_TYPE_FSP_HDR : FIL_PAGE_TYPE_XDES
  if (place === 1) return FIL_PAGE_IBUF_BITMAP
  if (spaceId === 0 && pageNo === TRX_SYS_PAGE_NO) return FIL_PAGE_TYPE_TRX_SYS
  return PLAIN_TYPES.has(type) ? type : FIL_PAGE_TYPE_UNKNOWN
}

/** Page 0 of a tablespace and the transaction system page are never encrypted, compressed, nor tidied for it. */
function isPlainPage(page: Uint8Array): boolean {
  const pageNo = read4(page, FIL_PAGE_OFFSET)
  return pageNo === 0 || (pageNo === TRX_SYS_PAGE_NO && read4(page, FIL_PAGE_SPACE_ID) === 0)
}

/**
 * Makes a page in memory what InnoDB would write to the file: trailer LSN, cleared key version, checksum. All-zero
 * pages (never initialised) stay as they are. The page must be uncompressed (page_compressed comes afterwards) and of
 * an unencrypted tablespace. Changes `page` in place; idempotent.
 * @param page physicalSize bytes
 * @param algorithm for tablespaces that are not full_crc32
 */
export function stampChecksum(
  page: Uint8Array,
  format: SpaceFormat,
  algorithm: OldChecksumAlgorithm = 'crc32',
): void {
  const size = format.physicalSize
  if (format.fullCrc32) {
    if (read4(page, FIL_PAGE_LSN + 4) === 0 && isZeroPage(page, size)) return
    if (!format.pageCompressed && !isPlainPage(page)) write4(page, 0, 0)
    page.copyWithin(size - 8, FIL_PAGE_LSN + 4, FIL_PAGE_LSN + 8)
    write4(page, size - 4, crc32c(page, 0, size - 4))
    return
  }
  if (read4(page, FIL_PAGE_LSN + 4) === 0 && isZeroButFlushLsn(page, size)) return
  if (format.zip) {
    if (!isPlainPage(page)) page.fill(0, FIL_PAGE_FILE_FLUSH_LSN, FIL_PAGE_SPACE_ID)
    const sum =
      algorithm === 'crc32'
        ? zipCrc32(page, size)
        : algorithm === 'innodb'
          ? zipAdler32(page, size)
          : NO_CHECKSUM_MAGIC
    write4(page, FIL_PAGE_SPACE_OR_CHKSUM, sum)
    return
  }
  page.copyWithin(size - 8, FIL_PAGE_LSN, FIL_PAGE_LSN + 8)
  if (size === 16384) {
    const type = read2(page, FIL_PAGE_TYPE)
    write2(
      page,
      FIL_PAGE_TYPE,
      mendedType(read4(page, FIL_PAGE_SPACE_ID), read4(page, FIL_PAGE_OFFSET), type),
    )
  }
  if (!format.pageCompressed && !isPlainPage(page)) page.fill(0, FIL_PAGE_FILE_FLUSH_LSN, FIL_PAGE_SPACE_ID)
  const sum =
    algorithm === 'crc32'
      ? pageCrc32(page, size)
      : algorithm === 'innodb'
        ? pageInnodbChecksum(page, size)
        : NO_CHECKSUM_MAGIC
  write4(page, FIL_PAGE_SPACE_OR_CHKSUM, sum)
  write4(page, size - 8, algorithm === 'innodb' ? pageInnodbOldChecksum(page) : sum)
}
