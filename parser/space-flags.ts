/**
 * What the flags of a tablespace say about its pages.
 *
 * FSP_SPACE_FLAGS stands at byte 54 of page 0. There are two encodings: the one of `innodb_checksum_algorithm=full_crc32`
 * (the default since 10.5; bit 4 marks it) and the older one, which ROW_FORMAT=COMPRESSED tables have to this day.
 * Follows fsp0types.h and fil0fil.h (`logical_size`, `zip_size`, `physical_size`, `is_valid_flags`, `is_fcrc32_valid_flags`).
 */

/** Flags that no InnoDB of this project's versions would have written. The message gives them in hexadecimal. */
export class InvalidSpaceFlagsError extends Error {
  override name = 'InvalidSpaceFlagsError'
}

/** The numbers of the page_compressed algorithms (fsp0types.h). */
export const PAGE_UNCOMPRESSED = 0
export const PAGE_ZLIB_ALGORITHM = 1
export const PAGE_LZ4_ALGORITHM = 2
export const PAGE_LZO_ALGORITHM = 3
export const PAGE_LZMA_ALGORITHM = 4
export const PAGE_BZIP2_ALGORITHM = 5
export const PAGE_SNAPPY_ALGORITHM = 6

export const PAGE_ALGORITHM_NAMES = ['none', 'zlib', 'lz4', 'lzo', 'lzma', 'bzip2', 'snappy'] as const

/** 4 KiB to 64 KiB. */
export type LogicalPageSize = 4096 | 8192 | 16384 | 32768 | 65536

/** How the pages of one tablespace are laid out. Immutable; one object may be shared by every page. */
export interface SpaceFormat {
  /** FSP_SPACE_FLAGS as on disk, without InnoDB's memory-only bits. */
  readonly flags: number
  /** innodb_page_size, in bytes. */
  readonly logicalSize: LogicalPageSize
  /** Bytes that a page takes in the file and in redo: smaller than logicalSize for ROW_FORMAT=COMPRESSED only. */
  readonly physicalSize: number
  /** The checksum is a CRC-32C of the whole page at its end; otherwise one of the older ones at its start. */
  readonly fullCrc32: boolean
  /** ROW_FORMAT=COMPRESSED. */
  readonly zip: boolean
  /**
   * The algorithm with which page_compressed pages are written, 0 for none. A full_crc32 tablespace names it in its
   * flags. An older one has a single bit there and names the algorithm in each page: then this is zlib, the default.
   */
  readonly pageCompressed: number
  /** Page 0 holds encryption information. `parseSpaceFlags` cannot know and says false; `readSpaceFormat` looks. */
  readonly encryptedHint: boolean
}

const FCRC32_MARKER = 1 << 4
const PAGE_SIZES: readonly (LogicalPageSize | 0)[] = [0, 0, 0, 4096, 8192, 16384, 32768, 65536]

const POST_ANTELOPE = 1
const ATOMIC_BLOBS = 1 << 5
const PAGE_COMPRESSION = 1 << 16
/** Bits 0 to 16: what the old encoding may use on disk. */
const OLD_FLAGS_MASK = 0x1ffff
/** ROW_FORMAT=COMPRESSED pages take 512 << ssize bytes: 1 KiB at the least. */
const ZIP_SIZE_UNIT = 512

const cache = new Map<number, SpaceFormat>()

function invalid(flags: number, why: string): never {
  throw new InvalidSpaceFlagsError(
    `tablespace flags 0x${(flags >>> 0).toString(16)} are not valid: ${why}; ` +
      'the file is damaged, or written by an InnoDB older than MariaDB 10.1.21',
  )
}

function parseFullCrc32(flags: number): SpaceFormat {
  const logicalSize = flags & 8 ? 0 : PAGE_SIZES[flags & 7]!
  if (!logicalSize) invalid(flags, `page size code ${flags & 15}`)
  const algorithm = flags >>> 5
  if (algorithm > PAGE_SNAPPY_ALGORITHM) invalid(flags, `page_compressed algorithm ${algorithm}`)
  return {
    flags,
    logicalSize: logicalSize as LogicalPageSize,
    physicalSize: logicalSize,
    fullCrc32: true,
    zip: false,
    pageCompressed: algorithm,
    encryptedHint: false,
  }
}

function parseOld(flags: number): SpaceFormat {
  if (flags & ~OLD_FLAGS_MASK) invalid(flags, 'unknown bits are set')
  if ((flags & (POST_ANTELOPE | ATOMIC_BLOBS)) === ATOMIC_BLOBS)
    invalid(flags, 'ATOMIC_BLOBS without POST_ANTELOPE')
  // Bits 10 to 15 are reserved; bit 10 was MySQL's DATA DIRECTORY and is ignored.
  if ((flags >>> 10) & 0x3e) invalid(flags, 'reserved bits are set')
  const ssize = (flags >>> 6) & 15
  // 16 KiB is 0 here, never 5.
  const logicalSize = ssize === 0 ? 16384 : ssize === 5 || ssize & 8 ? 0 : PAGE_SIZES[ssize]!
  if (!logicalSize) invalid(flags, `page size code ${ssize}`)
  const zipSsize = (flags >>> 1) & 15
  if (zipSsize > (ssize || 5)) invalid(flags, `compressed page size code ${zipSsize}`)
  if (zipSsize && ~flags & (POST_ANTELOPE | ATOMIC_BLOBS))
    invalid(flags, 'ROW_FORMAT=COMPRESSED without ATOMIC_BLOBS')
  return {
    flags,
    logicalSize: logicalSize as LogicalPageSize,
    physicalSize: zipSsize ? ZIP_SIZE_UNIT << zipSsize : logicalSize,
    fullCrc32: false,
    zip: zipSsize !== 0,
    pageCompressed: flags & PAGE_COMPRESSION ? PAGE_ZLIB_ALGORITHM : PAGE_UNCOMPRESSED,
    encryptedHint: false,
  }
}

/**
 * Decodes FSP_SPACE_FLAGS. The objects are cached: equal flags give the identical object.
 * @throws InvalidSpaceFlagsError when no InnoDB writes such flags
 */
export function parseSpaceFlags(flags: number): SpaceFormat {
  const known = cache.get(flags)
  if (known) return known
  if (!Number.isInteger(flags) || flags < 0 || flags > 0xffffffff)
    invalid(flags, 'not an unsigned 32-bit number')
  const format = Object.freeze(flags & FCRC32_MARKER ? parseFullCrc32(flags) : parseOld(flags))
  cache.set(flags, format)
  return format
}

const FSP_SPACE_FLAGS_OFFSET = 38 + 16
/** The six bytes before the encryption information of page 0 (fil0crypt.h). */
const CRYPT_MAGIC = [0x73, 0x0e, 0x0c, 0x52, 0x45, 0x74]
const XDES_ARR_OFFSET = 150
const EXTENT_DESCRIPTOR_HEAD = 24

/** Pages of an extent (FSP_EXTENT_SIZE, fsp0types.h): 1 MiB worth below 32 KiB pages, 64 pages from there on. */
export function extentPages(logicalSize: number): number {
  return logicalSize < 16384 ? (1 << 20) / logicalSize : 64
}

/** Bytes of one extent descriptor (XDES_SIZE, fsp0fsp.h). */
export function extentDescriptorSize(logicalSize: number): number {
  return EXTENT_DESCRIPTOR_HEAD + extentPages(logicalSize) / 4
}

/** Byte offset, in page 0, of the encryption information (`fsp_header_get_encryption_offset`, fsp0fsp.h). */
export function encryptionInfoOffset(format: SpaceFormat): number {
  // The descriptor array of a page describes as many pages as the page has bytes.
  const descriptors = format.physicalSize / extentPages(format.logicalSize)
  return 38 + XDES_ARR_OFFSET + Math.floor(extentDescriptorSize(format.logicalSize) * descriptors)
}

/**
 * Reads the format of a tablespace from its page 0, encryption information included.
 * @param page0 at least the first 1024 bytes; the whole page if encryption is to be noticed
 * @throws InvalidSpaceFlagsError
 */
export function readSpaceFormat(page0: Uint8Array): SpaceFormat {
  if (page0.length < FSP_SPACE_FLAGS_OFFSET + 4)
    throw new InvalidSpaceFlagsError(`page 0 has only ${page0.length} bytes; the file is cut short`)
  const o = FSP_SPACE_FLAGS_OFFSET
  const format = parseSpaceFlags(
    ((page0[o]! << 24) | (page0[o + 1]! << 16) | (page0[o + 2]! << 8) | page0[o + 3]!) >>> 0,
  )
  const at = encryptionInfoOffset(format)
  const encrypted = CRYPT_MAGIC.every((byte, i) => page0[at + i] === byte)
  return encrypted ? { ...format, encryptedHint: true } : format
}
