/**
 * page_compressed tables: what InnoDB does to a page just before it writes it, and undoes just after it reads it.
 *
 * The redo log and the buffer pool know only the uncompressed page. In the file a page occupies its full length, but
 * only the first bytes count; the rest is a hole. Two formats:
 *
 *   full_crc32   bytes 0..25 of the page, but FIL_PAGE_TYPE is 0x8000 | size/256; at 26 the compressed whole page,
 *                zeros up to `size`, of which the last 4 bytes are the CRC-32C of what precedes. lz4, lzo and snappy
 *                need their exact length: its low byte stands before the CRC.
 *   older        bytes 0..37 of the page, but the checksum is 0xdeadbeef, FIL_PAGE_TYPE is 34354 and the 8 bytes at 26
 *                are the algorithm; at 38 the compressed length in 2 bytes, then the compressed whole page.
 *
 * Follows fil0pagecompress.cc and buf0flu.cc (`buf_page_encrypt`). Node.js brings only zlib of the six algorithms.
 */
import { deflateSync, inflateSync } from 'node:zlib'
import { crc32c } from '../protocol/crc32c.ts'
import { CorruptPageError } from './corrupt-page-error.ts'
import {
  FIL_PAGE_COMPRESS_FCRC32_MARKER,
  FIL_PAGE_DATA,
  FIL_PAGE_FILE_FLUSH_LSN,
  FIL_PAGE_OFFSET,
  FIL_PAGE_PAGE_COMPRESSED,
  FIL_PAGE_PAGE_COMPRESSED_ENCRYPTED,
  FIL_PAGE_SPACE_ID,
  FIL_PAGE_TYPE,
  FIL_PAGE_TYPE_ALLOCATED,
  FIL_PAGE_TYPE_FSP_HDR,
  FIL_PAGE_TYPE_XDES,
  fullCrc32Size,
  NO_CHECKSUM_MAGIC,
  read2,
  read4,
  stampChecksum,
  TRX_SYS_PAGE_NO,
  write2,
  write4,
} from './page-format.ts'
import { PAGE_ALGORITHM_NAMES, PAGE_ZLIB_ALGORITHM, type SpaceFormat } from './space-flags.ts'

/** A table compressed with an algorithm that is not built in. The message names table and algorithm. */
export class UnsupportedCompressionError extends Error {
  override name = 'UnsupportedCompressionError'
  readonly algorithm: string

  constructor(algorithm: number, spaceName: string) {
    const name = PAGE_ALGORITHM_NAMES[algorithm] ?? `number ${algorithm}`
    super(
      `tablespace ${spaceName} is page_compressed with ${name}; only zlib can be read. ` +
        'Set innodb_compression_algorithm=zlib and rebuild the table (ALTER TABLE … FORCE), or take page compression off',
    )
    this.algorithm = name
  }
}

/** Whether the page, as it stands in the file, is in page_compressed form (`buf_page_is_compressed`). */
export function isPageCompressed(page: Uint8Array, format: SpaceFormat): boolean {
  if (!format.pageCompressed) return false
  const type = read2(page, FIL_PAGE_TYPE)
  return format.fullCrc32
    ? (type & FIL_PAGE_COMPRESS_FCRC32_MARKER) !== 0
    : type === FIL_PAGE_PAGE_COMPRESSED || type === FIL_PAGE_PAGE_COMPRESSED_ENCRYPTED
}

const OLD_HEADER = FIL_PAGE_DATA + 2
/** zlib's level when a table names none: page_zip_level, innodb_compression_level's default. */
const DEFAULT_LEVEL = 6

/** In a full_crc32 page the tablespace id is among the compressed bytes; the number is not. */
function corrupt(page: Uint8Array, spaceName: string, reason: string): never {
  const name = `${read4(page, FIL_PAGE_OFFSET)} of ${spaceName}`
  throw new CorruptPageError(name, undefined, `page_compressed: ${reason}`)
}

function inflate(page: Uint8Array, spaceName: string, start: number, end: number, size: number): Uint8Array {
  let out: Uint8Array
  try {
    // Bytes behind the stream's end are padding, and are ignored as zlib's uncompress() ignores them.
    out = inflateSync(page.subarray(start, end), { maxOutputLength: size })
  } catch (error) {
    corrupt(page, spaceName, `the zlib stream is damaged (${(error as Error).message})`)
  }
  if (out.length !== size) corrupt(page, spaceName, `holds ${out.length} bytes instead of ${size}`)
  return out
}

/**
 * The page that a page_compressed page stands for. In a full_crc32 tablespace the result's last four bytes mean
 * nothing (InnoDB compresses before it computes the checksum); `stampChecksum` makes them right.
 * @param page as read from the file, already found good by `verifyPage`
 * @param spaceName for messages
 * @returns a new page of logicalSize bytes, or `page` itself when it is not compressed
 * @throws CorruptPageError, UnsupportedCompressionError
 */
export function decompressPage(page: Uint8Array, format: SpaceFormat, spaceName: string): Uint8Array {
  if (!isPageCompressed(page, format)) return page
  const size = format.logicalSize
  if (format.fullCrc32) {
    if (format.pageCompressed !== PAGE_ZLIB_ALGORITHM)
      throw new UnsupportedCompressionError(format.pageCompressed, spaceName)
    const length = fullCrc32Size(page, size)
    if (length === 0) corrupt(page, spaceName, 'its size is not within the page')
    return inflate(page, spaceName, FIL_PAGE_FILE_FLUSH_LSN, length, size)
  }
  if (read2(page, FIL_PAGE_TYPE) === FIL_PAGE_PAGE_COMPRESSED_ENCRYPTED)
    corrupt(page, spaceName, 'is encrypted as well')
  if (read4(page, FIL_PAGE_FILE_FLUSH_LSN) !== 0 || read2(page, FIL_PAGE_FILE_FLUSH_LSN + 4) !== 0)
    corrupt(page, spaceName, 'the algorithm is not a number of 16 bits')
  const algorithm = read2(page, FIL_PAGE_FILE_FLUSH_LSN + 6)
  if (read4(page, 0) !== NO_CHECKSUM_MAGIC) corrupt(page, spaceName, 'the checksum field is not 0xdeadbeef')
  if (algorithm !== PAGE_ZLIB_ALGORITHM) throw new UnsupportedCompressionError(algorithm, spaceName)
  const length = read2(page, FIL_PAGE_DATA)
  if (length === 0 || length > size - OLD_HEADER)
    corrupt(page, spaceName, `claims ${length} compressed bytes`)
  return inflate(page, spaceName, OLD_HEADER, OLD_HEADER + length, size)
}

/** A page ready for the file. */
export interface WrittenPage {
  /** physicalSize bytes; zero from `length` on. */
  readonly bytes: Uint8Array
  /** Bytes to write, a multiple of the block size; behind them, up to the page's size, belongs a hole. */
  readonly length: number
}

export interface CompressOptions {
  /** innodb_compression_level, 1 to 9. InnoDB keeps it outside the tablespace file. Default 6, as InnoDB's. */
  readonly level?: number
  /** Block size of the target file system: holes have this granularity. Default 4096. */
  readonly blockSize?: number
}

/** Pages that are never compressed (`fil_page_compress`, `buf_page_encrypt`). */
function staysPlain(page: Uint8Array): boolean {
  const pageNo = read4(page, FIL_PAGE_OFFSET)
  const type = read2(page, FIL_PAGE_TYPE)
  return (
    pageNo === 0 ||
    (pageNo === TRX_SYS_PAGE_NO && read4(page, FIL_PAGE_SPACE_ID) === 0) ||
    type === FIL_PAGE_TYPE_ALLOCATED ||
    type === FIL_PAGE_TYPE_FSP_HDR ||
    type === FIL_PAGE_TYPE_XDES
  )
}

const roundUp = (n: number, unit: number): number => Math.ceil(n / unit) * unit

/**
 * Turns a page in memory into what InnoDB would write to a page_compressed tablespace: checksum stamped, compressed
 * where that saves something. The stream may differ from the server's in its bytes (another build of zlib), never in
 * what it stands for. `page` gets its checksum stamped in place, otherwise stays as it is.
 * @param page logicalSize bytes, uncompressed
 * @throws UnsupportedCompressionError
 */
export function compressPage(
  page: Uint8Array,
  format: SpaceFormat,
  spaceName: string,
  options: CompressOptions = {},
): WrittenPage {
  const size = format.logicalSize
  stampChecksum(page, format)
  if (!format.pageCompressed || staysPlain(page)) return { bytes: page, length: size }
  const algorithm = format.pageCompressed
  if (algorithm !== PAGE_ZLIB_ALGORITHM) throw new UnsupportedCompressionError(algorithm, spaceName)
  const blockSize = options.blockSize ?? 4096
  // InnoDB compresses a full_crc32 page before it computes the checksum: what it compresses ends in four zeros.
  const checksum = read4(page, size - 4)
  if (format.fullCrc32) write4(page, size - 4, 0)
  const stream = deflateSync(page, { level: options.level ?? DEFAULT_LEVEL })
  if (format.fullCrc32) write4(page, size - 4, checksum)
  const headerLength = format.fullCrc32 ? FIL_PAGE_FILE_FLUSH_LSN : OLD_HEADER
  if (stream.length > size - headerLength) return { bytes: page, length: size }
  const bytes = new Uint8Array(size)
  if (format.fullCrc32) {
    const length = roundUp(headerLength + stream.length + 4, 256)
    if (length >= size) return { bytes: page, length: size }
    bytes.set(page.subarray(0, headerLength))
    write2(bytes, FIL_PAGE_TYPE, FIL_PAGE_COMPRESS_FCRC32_MARKER | (length >>> 8))
    bytes.set(stream, headerLength)
    write4(bytes, length - 4, crc32c(bytes, 0, length - 4))
    return { bytes, length: Math.min(size, roundUp(length, blockSize)) }
  }
  bytes.set(page.subarray(0, FIL_PAGE_DATA))
  write4(bytes, 0, NO_CHECKSUM_MAGIC)
  bytes.fill(0, FIL_PAGE_FILE_FLUSH_LSN, FIL_PAGE_SPACE_ID)
  write2(bytes, FIL_PAGE_FILE_FLUSH_LSN + 6, algorithm)
  write2(bytes, FIL_PAGE_TYPE, FIL_PAGE_PAGE_COMPRESSED)
  write2(bytes, FIL_PAGE_DATA, stream.length)
  bytes.set(stream, OLD_HEADER)
  return { bytes, length: Math.min(size, roundUp(headerLength + stream.length, blockSize)) }
}
