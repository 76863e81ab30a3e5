/**
 * Raw segments: names, header, creation that a crash cannot leave half-done.
 *
 * `<first index, 20 digits>.seg`; header of 64 bytes, entries from offset 4096 (so that the header's sector is never
 * written again), of full length from the beginning:
 *
 *      0 8 bytes "PLCELSEG"
 *      8 u32 version 2
 *     12 u32 headerCrc       CRC-32C of bytes [16, 64)
 *     16 u64 firstIndex
 *     24 u64 prevTerm        term of the entry before
 *     32 u64 segmentBytes    length of the file
 *     40 u32 chainCrc        headerCrc of the last entry of the segment before; 0 if there was none
 *     44 u32 generation
 *     48 16 bytes 0
 *
 * A segment under its final name says: all of the log before its first index is durable. It is prepared under the name
 * `spare-<number>.seg`, synced, and renamed. A packed segment becomes a spare. A sync of space that was written before
 * costs half of one that must also record new blocks; so where the log grows slowly and by small syncs a new spare is filled
 * with zeros in the background; else it is left sparse, because there the second writing would cost more.
 */
import { join } from 'node:path'
import { crc32c } from '../../../protocol/crc32c.ts'
import { corruptError } from '../../shared/errors.ts'
import type { Disk, DiskFile } from '../../shared/seams.ts'
import type { LogIndex, Term } from '../core/types.ts'
import { readU64, writeU64 } from './entry.ts'

export const SEGMENT_HEADER_BYTES = 64
export const SEGMENT_DATA_OFFSET = 4096
export const CELL_SEGMENT_BYTES_DEFAULT = 64 * 1024 * 1024
const MAGIC = Buffer.from('PLCELSEG', 'latin1')
const VERSION = 2
const ZERO_SLICE_BYTES = 1024 * 1024
/** Zeros that are synced at once: appends to the segment before are synced in between, and do not wait for all of them. */
const ZERO_SYNC_BYTES = 4 * ZERO_SLICE_BYTES

export interface SegmentHeader {
  readonly firstIndex: LogIndex
  readonly prevTerm: Term
  readonly segmentBytes: number
  readonly chainCrc: number
  readonly generation: number
  readonly headerCrc: number
}

export function segmentName(firstIndex: LogIndex): string {
  return `${String(firstIndex).padStart(20, '0')}.seg`
}

export function packName(firstIndex: LogIndex): string {
  return `${String(firstIndex).padStart(20, '0')}.pack`
}

/** The first index in a segment's or pack's file name; undefined for other files. */
export function firstIndexOf(name: string, extension: 'seg' | 'pack'): LogIndex | undefined {
  return /^[0-9]{20}\.[a-z]+$/.test(name) && name.slice(21) === extension
    ? (Number(name.slice(0, 20)) as LogIndex)
    : undefined
}

function encodeHeader(header: Omit<SegmentHeader, 'headerCrc'>): { bytes: Buffer; headerCrc: number } {
  const bytes = Buffer.alloc(SEGMENT_DATA_OFFSET)
  MAGIC.copy(bytes, 0)
  bytes.writeUInt32LE(VERSION, 8)
  writeU64(bytes, 16, header.firstIndex)
  writeU64(bytes, 24, header.prevTerm)
  writeU64(bytes, 32, header.segmentBytes)
  bytes.writeUInt32LE(header.chainCrc, 40)
  bytes.writeUInt32LE(header.generation, 44)
  const headerCrc = crc32c(bytes, 16, SEGMENT_HEADER_BYTES)
  bytes.writeUInt32LE(headerCrc, 12)
  return { bytes, headerCrc }
}

/** Reads and checks the header. Throws an error of kind corrupt that names the file. */
export async function readSegmentHeader(
  file: DiskFile,
  path: string,
  firstIndex: LogIndex,
): Promise<SegmentHeader> {
  const bytes = Buffer.alloc(SEGMENT_HEADER_BYTES)
  const fail = (why: string): never => {
    throw corruptError(`log segment ${path}: ${why} (offset 0, index ${firstIndex})`)
  }
  if ((await file.read(bytes, 0)) !== SEGMENT_HEADER_BYTES) fail('no header')
  if (!bytes.subarray(0, 8).equals(MAGIC)) fail('no log segment')
  const version = bytes.readUInt32LE(8)
  const headerCrc = bytes.readUInt32LE(12)
  if (crc32c(bytes, 16, SEGMENT_HEADER_BYTES) !== headerCrc) fail('header has a wrong CRC-32C')
  if (version !== VERSION) fail(`format version ${version}, this release knows ${VERSION}`)
  const header: SegmentHeader = {
    firstIndex: readU64(bytes, 16) as LogIndex,
    prevTerm: readU64(bytes, 24) as Term,
    segmentBytes: readU64(bytes, 32),
    chainCrc: bytes.readUInt32LE(40),
    generation: bytes.readUInt32LE(44),
    headerCrc,
  }
  if (header.firstIndex !== firstIndex)
    fail(`it begins at index ${header.firstIndex}, its name says ${firstIndex}`)
  const size = await file.size()
  if (size !== header.segmentBytes) fail(`${size} bytes long instead of ${header.segmentBytes}`)
  return header
}

/** Writes `bytes` zeros as a new file, synced; nothing is left of it if that fails. `fill` false: sparse. */
export async function writeZeros(disk: Disk, path: string, bytes: number, fill: boolean): Promise<void> {
  await disk.remove(path)
  const file = await disk.open(path, 'create')
  try {
    const zeros = Buffer.alloc(fill ? Math.min(ZERO_SLICE_BYTES, bytes) : 1)
    for (let at = fill ? 0 : bytes - 1; at < bytes; at += zeros.length) {
      await file.write([zeros.subarray(0, Math.min(zeros.length, bytes - at))], at)
      if (fill && (at + zeros.length) % ZERO_SYNC_BYTES === 0) await file.datasync()
    }
    await file.datasync()
  } catch (error) {
    // A disk that is full must not stay so because of what did not fit.
    await file.close()
    await disk.remove(path)
    throw error
  }
  await file.close()
}

export function spareName(serial: number): string {
  return `spare-${serial}.seg`
}

/** The serial number in a spare's name; undefined for other files. */
export function spareSerialOf(name: string): number | undefined {
  const match = /^spare-([0-9]{1,15})\.seg$/.exec(name)
  return match === null ? undefined : Number(match[1])
}

/** Makes a spare, sparse or filled with zeros, synced. */
export async function makeSpare(
  disk: Disk,
  dir: string,
  serial: number,
  segmentBytes: number,
  fill: boolean,
): Promise<string> {
  const temporary = join(dir, 'spare.tmp')
  const path = join(dir, spareName(serial))
  await writeZeros(disk, temporary, segmentBytes, fill)
  await disk.rename(temporary, path)
  await disk.syncDir(dir)
  return path
}

/** Makes a segment from a spare. All of the log before it must be durable already. */
export async function createSegment(
  disk: Disk,
  dir: string,
  spare: string,
  header: Omit<SegmentHeader, 'headerCrc'>,
): Promise<{ file: DiskFile; path: string; headerCrc: number }> {
  const path = join(dir, segmentName(header.firstIndex))
  const file = await disk.open(spare, 'write')
  try {
    const { bytes, headerCrc } = encodeHeader(header)
    await file.write([bytes], 0)
    await file.datasync()
    await disk.rename(spare, path)
    await disk.syncDir(dir)
    return { file, path, headerCrc }
  } catch (error) {
    await file.close()
    throw error
  }
}
