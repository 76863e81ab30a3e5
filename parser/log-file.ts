/**
 * The file `ib_logfile0`: its header, its two checkpoint blocks, and how LSNs map to places in the ring.
 *
 * Follows log0log.h (`log_t`: format words, offsets, `get_sequence_bit`, `calc_lsn_offset`), log0log.cc
 * (`header_write`, `write_checkpoint`) and log0recv.cc (`recv_sys_t::find_checkpoint`).
 *
 *     0x0000  u32 format, u32 zero, u64 first LSN, 32 bytes creator, zeros, u32 CRC-32C of the first 508 bytes at 508
 *     0x1000  u64 checkpoint LSN, u64 end LSN, 44 zeros, u32 CRC-32C of the first 60 bytes
 *     0x2000  the other checkpoint block; the one with the larger checkpoint LSN counts
 *     0x3000  the ring of mini-transactions, up to the end of the file
 */
import { crc32c } from '../protocol/crc32c.ts'
import { LSN_MAX, type Lsn } from '../protocol/ids.ts'
import { CorruptRedoError } from './corrupt-redo-error.ts'

/** `log_t::START_OFFSET`: where the ring begins, and the smallest first LSN there is. */
export const LOG_START_OFFSET = 0x3000
export const LOG_CHECKPOINT_OFFSETS = [0x1000, 0x2000] as const
/** Bytes of a mini-transaction that is nothing but a FILE_CHECKPOINT record (`SIZE_OF_FILE_CHECKPOINT`). */
export const FILE_CHECKPOINT_MTR_BYTES = 16
export const LOG_CREATOR_BYTES_MAX = 32

/** `log_t::FORMAT_10_8`, unencrypted: "Phys". The only format that is read. */
export const LOG_FORMAT_10_8 = 0x50687973
const LOG_FORMAT_ENCRYPTED = 0x80000000
const LOG_FORMAT_ENC_11 = 0xf09f979d
const LOG_FORMAT_10_5 = 0x50485953

const CREATOR_OFFSET = 16
const CREATOR_END = 48
const HEADER_CRC_OFFSET = 508
const CHECKPOINT_CRC_OFFSET = 60

/** A redo log that is sound as far as one can tell, but of a format that is not read. The message says what to do. */
export class UnsupportedLogFormatError extends Error {
  override name = 'UnsupportedLogFormatError'
  /** The format word at the start of the file. */
  readonly format: number
  constructor(message: string, format: number) {
    super(message)
    this.format = format
  }
}

/** One valid checkpoint block. */
export interface LogCheckpoint {
  /** 0 or 1: the block at 0x1000 or at 0x2000. */
  readonly block: number
  /** Every change up to here is in the data files. */
  readonly checkpointLsn: Lsn
  /** Where the FILE_MODIFY and FILE_CHECKPOINT records of this checkpoint begin; recovery reads those first. */
  readonly endLsn: Lsn
}

export interface LogFileHead {
  /** The LSN that lies at LOG_START_OFFSET in the first lap of the ring. */
  readonly firstLsn: Lsn
  /** For example "MariaDB 10.11.18"; "Backup ..." in a prepared backup. */
  readonly creator: string
  /** Both blocks as found; undefined where a block is not valid (a torn write, or never written). */
  readonly checkpoints: readonly [LogCheckpoint | undefined, LogCheckpoint | undefined]
  /** The newest valid checkpoint. */
  readonly checkpoint: LogCheckpoint
}

function u32(buf: Uint8Array, at: number): number {
  return ((buf[at]! << 24) | (buf[at + 1]! << 16) | (buf[at + 2]! << 8) | buf[at + 3]!) >>> 0
}

/** A big-endian 64-bit LSN; -1 if it exceeds 2^53 - 1. */
export function readLsn64(buf: Uint8Array, at: number): number {
  const value = u32(buf, at) * 0x100000000 + u32(buf, at + 4)
  return value <= LSN_MAX ? value : -1
}

function writeU32(buf: Uint8Array, at: number, value: number): void {
  buf[at] = value >>> 24
  buf[at + 1] = value >>> 16
  buf[at + 2] = value >>> 8
  buf[at + 3] = value
}

function writeLsn64(buf: Uint8Array, at: number, lsn: number): void {
  writeU32(buf, at, Math.floor(lsn / 0x100000000))
  writeU32(buf, at + 4, lsn >>> 0)
}

/** What wrote a log with this format word, in words; undefined for a word that nobody is known to have used. */
function describeFormat(format: number): string | undefined {
  switch (format) {
    case 0:
      return 'MariaDB before 10.2.2 or MySQL before 5.7.9'
    case 1:
      return 'MariaDB 10.2 or MySQL 5.7'
    case 103:
      return 'MariaDB 10.3'
    case 104:
      return 'MariaDB 10.4'
    case LOG_FORMAT_10_5:
      return 'MariaDB 10.5 to 10.7'
    case 2:
    case 3:
    case 4:
    case 5:
    case 6:
      return 'MySQL 8.0'
    case 7:
    case 8:
      return 'MySQL 8 or later'
    default:
      return undefined
  }
}

const ENCRYPTED_ADVICE =
  'encrypted redo logs cannot be read; set innodb_encrypt_log=OFF and restart the server cleanly, which writes a new log'
const UPGRADE_ADVICE =
  'only the format of MariaDB 10.8 and later can be read; shut the server down cleanly and start MariaDB 10.11 on the datadir'

function refuseFormat(head: Uint8Array, format: number, creator: string): void {
  if (format === LOG_FORMAT_10_8) {
    // A 10.8 log that is encrypted has the same word; what gives it away is the key information after the creator.
    if (u32(head, CREATOR_END) !== 0)
      throw new UnsupportedLogFormatError(
        `the redo log is in the encrypted format of MariaDB 10.8 (created by "${creator}"); ${ENCRYPTED_ADVICE}`,
        format,
      )
    return
  }
  const word = `0x${format.toString(16).padStart(8, '0')}`
  if (format === LOG_FORMAT_ENC_11)
    throw new UnsupportedLogFormatError(
      `the redo log is in the encrypted format of MariaDB 10.11 and later (${word}, created by "${creator}"); ${ENCRYPTED_ADVICE}`,
      format,
    )
  if (format === (LOG_FORMAT_10_8 | LOG_FORMAT_ENCRYPTED) >>> 0)
    throw new UnsupportedLogFormatError(
      `the redo log is in the encrypted format of MariaDB 10.8 (${word}, created by "${creator}"); ${ENCRYPTED_ADVICE}`,
      format,
    )
  const encrypted = format >= LOG_FORMAT_ENCRYPTED
  const known = describeFormat(encrypted ? format - LOG_FORMAT_ENCRYPTED : format)
  if (known !== undefined)
    throw new UnsupportedLogFormatError(
      `the redo log is in the ${encrypted ? 'encrypted ' : ''}format of ${known} (${word}${format ? `, created by "${creator}"` : ''}); ${UPGRADE_ADVICE}`,
      format,
    )
  throw new UnsupportedLogFormatError(
    `the redo log has the unknown format ${word} (created by "${creator}"); is this an ib_logfile0 of MariaDB 10.8 or later?`,
    format,
  )
}

function parseCheckpoint(head: Uint8Array, block: number, firstLsn: number): LogCheckpoint | undefined {
  const at = LOG_CHECKPOINT_OFFSETS[block]!
  const checkpointLsn = readLsn64(head, at)
  const endLsn = readLsn64(head, at + 8)
  if (checkpointLsn < firstLsn || endLsn < checkpointLsn) return undefined
  for (let i = at + 16; i < at + CHECKPOINT_CRC_OFFSET; i++) if (head[i] !== 0) return undefined
  if (crc32c(head, at, at + CHECKPOINT_CRC_OFFSET) !== u32(head, at + CHECKPOINT_CRC_OFFSET)) return undefined
  return { block, checkpointLsn: checkpointLsn as Lsn, endLsn: endLsn as Lsn }
}

/**
 * Reads the first LOG_START_OFFSET bytes of an ib_logfile0.
 *
 * Throws `UnsupportedLogFormatError` for a format that is not read and `CorruptRedoError` (offsets are file offsets)
 * for a damaged header or where neither checkpoint block is valid. A live server rewrites one block at a time, so a
 * reader of a running server's file always finds the other one.
 */
export function parseLogFileHead(head: Uint8Array): LogFileHead {
  if (head.length < LOG_START_OFFSET)
    throw new CorruptRedoError(`the file is too short for a redo log: ${head.length} bytes`, head.length)
  const format = u32(head, 0)
  const creator = creatorText(head)
  // The oldest format has no checksum here; every other one has, so damage is told from strangeness.
  const crcRight = crc32c(head, 0, HEADER_CRC_OFFSET) === u32(head, HEADER_CRC_OFFSET)
  if (crcRight || format === 0 || (format !== LOG_FORMAT_10_8 && isKnownFormat(format)))
    refuseFormat(head, format, creator)
  if (!crcRight) throw new CorruptRedoError('the checksum of the log file header is wrong', HEADER_CRC_OFFSET)
  const firstLsn = readLsn64(head, 8)
  if (u32(head, 4) !== 0 || (firstLsn >= 0 && firstLsn < LOG_START_OFFSET))
    throw new CorruptRedoError(`the log file header is invalid (created by "${creator}")`, 4)
  if (firstLsn < 0) throw new CorruptRedoError('the first LSN exceeds 2^53-1', 8)

  const checkpoints = [parseCheckpoint(head, 0, firstLsn), parseCheckpoint(head, 1, firstLsn)] as const
  const [a, b] = checkpoints
  const checkpoint = a === undefined || (b !== undefined && b.checkpointLsn >= a.checkpointLsn) ? b : a
  if (checkpoint === undefined)
    throw new CorruptRedoError(
      `no valid checkpoint was found (created by "${creator}")`,
      LOG_CHECKPOINT_OFFSETS[0],
    )
  return { firstLsn: firstLsn as Lsn, creator, checkpoints, checkpoint }
}

function isKnownFormat(format: number): boolean {
  if (format === LOG_FORMAT_ENC_11) return true
  const plain = format >= LOG_FORMAT_ENCRYPTED ? format - LOG_FORMAT_ENCRYPTED : format
  return plain === LOG_FORMAT_10_8 || describeFormat(plain) !== undefined
}

/** The creator up to its NUL, with anything unprintable shown as "?": it goes into messages. */
function creatorText(head: Uint8Array): string {
  let text = ''
  for (let i = CREATOR_OFFSET; i < CREATOR_END && head[i] !== 0; i++) {
    const c = head[i]!
    text += c >= 0x20 && c < 0x7f ? String.fromCharCode(c) : '?'
  }
  return text
}

/**
 * Where LSNs lie in a log file of a given size. Immutable. When the server restarts with another
 * innodb_log_file_size or resizes the log, the first LSN and the size change together: make a new one.
 */
export class LogGeometry {
  readonly firstLsn: Lsn
  readonly fileBytes: number
  /** Bytes of the ring: the file without its head. */
  readonly capacity: number

  constructor(firstLsn: Lsn, fileBytes: number) {
    if (!Number.isSafeInteger(fileBytes) || fileBytes < LOG_START_OFFSET + FILE_CHECKPOINT_MTR_BYTES)
      throw new CorruptRedoError(`the file is too short for a redo log: ${fileBytes} bytes`, fileBytes)
    this.firstLsn = firstLsn
    this.fileBytes = fileBytes
    this.capacity = fileBytes - LOG_START_OFFSET
  }

  /** Byte offset in the file of the byte at `lsn` (>= firstLsn). */
  fileOffset(lsn: Lsn): number {
    return LOG_START_OFFSET + ((lsn - this.firstLsn) % this.capacity)
  }

  /** Bytes from `lsn` to the end of the file, where the ring continues at LOG_START_OFFSET. At least 1. */
  bytesToWrap(lsn: Lsn): number {
    return this.capacity - ((lsn - this.firstLsn) % this.capacity)
  }

  /** The terminator of a mini-transaction, if that byte lies at `lsn`: 1 in the first lap, 0 in the second, and so on. */
  sequenceBit(lsn: number): number {
    const distance = lsn - this.firstLsn
    return ((distance - (distance % this.capacity)) / this.capacity) % 2 === 0 ? 1 : 0
  }
}

/** A mini-transaction of FILE_CHECKPOINT_MTR_BYTES bytes: `fa 00 00`, the LSN, the sequence bit, CRC-32C. */
export function makeFileCheckpointMtr(checkpointLsn: Lsn, sequenceBit: number): Uint8Array {
  const mtr = new Uint8Array(FILE_CHECKPOINT_MTR_BYTES)
  mtr[0] = 0xfa
  writeLsn64(mtr, 3, checkpointLsn)
  mtr[11] = sequenceBit
  writeU32(mtr, 12, crc32c(mtr, 0, 11))
  return mtr
}

/**
 * The first LOG_START_OFFSET + FILE_CHECKPOINT_MTR_BYTES bytes of a log file for a datadir whose pages are all at
 * `lsn`: header with that first LSN, both checkpoints there, and the FILE_CHECKPOINT that recovery insists on. The log
 * then ends at `lsn` + 16. The rest of the file is to be zero. `lsn` needs no alignment but must be at least
 * LOG_START_OFFSET. A `creator` beginning "Backup " tells the server that this is a restored backup.
 */
export function makeLogFileHead(lsn: Lsn, creator: string): Uint8Array {
  if (lsn < LOG_START_OFFSET)
    throw new RangeError(`a redo log cannot begin at LSN ${lsn}: the least is ${LOG_START_OFFSET}`)
  if (!/^[\x20-\x7e]*$/.test(creator) || creator.length > LOG_CREATOR_BYTES_MAX)
    throw new RangeError(
      `the log's creator must be at most ${LOG_CREATOR_BYTES_MAX} printable ASCII characters`,
    )
  const head = new Uint8Array(LOG_START_OFFSET + FILE_CHECKPOINT_MTR_BYTES)
  writeU32(head, 0, LOG_FORMAT_10_8)
  writeLsn64(head, 8, lsn)
  for (let i = 0; i < creator.length; i++) head[CREATOR_OFFSET + i] = creator.charCodeAt(i)
  writeU32(head, HEADER_CRC_OFFSET, crc32c(head, 0, HEADER_CRC_OFFSET))
  for (const at of LOG_CHECKPOINT_OFFSETS) {
    writeLsn64(head, at, lsn)
    writeLsn64(head, at + 8, lsn)
    writeU32(head, at + CHECKPOINT_CRC_OFFSET, crc32c(head, at, at + CHECKPOINT_CRC_OFFSET))
  }
  head.set(makeFileCheckpointMtr(lsn, 1), LOG_START_OFFSET)
  return head
}
