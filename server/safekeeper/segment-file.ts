/**
 * Segment files: names, header, creation that a crash cannot leave half-done.
 *
 * `<base LSN, 20 digits>.wal`; header of 64 bytes, entries from offset 4096 (so that the header's sector is never
 * written again), of full length from the beginning:
 *
 *      0 8 bytes "PLWALSEG"
 *      8 u32 version 1
 *     12 u32 headerCrc       CRC-32C of bytes [16, 64)
 *     16 timeline id
 *     32 u64 baseLsn         beginLsn of the first entry
 *     40 u64 segmentBytes    length of the file
 *     48 u32 chainCrc        headerCrc of the last entry of the segment before; 0 for a timeline's first
 *     52 12 bytes 0
 *
 * A segment file under its final name says: all of the log below its base LSN is durable. It is prepared under the name
 * `spare.wal`, synced, and renamed. A trimmed segment becomes the next spare. A sync of space that was written before
 * costs half of one that must also record new blocks; so where the log grows slowly a new spare is filled with zeros in
 * the background, and where it grows fast it is left sparse, because there the second writing would cost more.
 */
import { join } from 'node:path'
import { crc32c } from '../../protocol/crc32c.ts'
import type { Lsn, TimelineId } from '../../protocol/ids.ts'
import { corruptError } from '../shared/errors.ts'
import type { Disk, DiskFile } from '../shared/seams.ts'
import { readU64, writeU64 } from './log-entry.ts'

export const SEGMENT_HEADER_BYTES = 64
export const SEGMENT_DATA_OFFSET = 4096
export const SEGMENT_BYTES_DEFAULT = 64 * 1024 * 1024
export const SPARE_NAME = 'spare.wal'
const MAGIC = Buffer.from('PLWALSEG', 'latin1')
const VERSION = 1
const ZERO_SLICE_BYTES = 1024 * 1024

export interface SegmentHeader {
  readonly timeline: TimelineId
  readonly baseLsn: Lsn
  readonly segmentBytes: number
  readonly chainCrc: number
  readonly headerCrc: number
}

export function segmentName(baseLsn: Lsn): string {
  return `${String(baseLsn).padStart(20, '0')}.wal`
}

/** The base LSN in a segment's file name; undefined for other files. */
export function baseLsnOf(name: string): Lsn | undefined {
  return /^[0-9]{20}\.wal$/.test(name) ? (Number(name.slice(0, 20)) as Lsn) : undefined
}

function encodeHeader(header: Omit<SegmentHeader, 'headerCrc'>): { bytes: Buffer; headerCrc: number } {
  const bytes = Buffer.alloc(SEGMENT_DATA_OFFSET)
  MAGIC.copy(bytes, 0)
  bytes.writeUInt32LE(VERSION, 8)
  bytes.write(header.timeline, 16, 'hex')
  writeU64(bytes, 32, header.baseLsn)
  writeU64(bytes, 40, header.segmentBytes)
  bytes.writeUInt32LE(header.chainCrc, 48)
  const headerCrc = crc32c(bytes, 16, SEGMENT_HEADER_BYTES)
  bytes.writeUInt32LE(headerCrc, 12)
  return { bytes, headerCrc }
}

/** Reads and checks the header. Throws an error of kind corrupt that names the file. */
export async function readSegmentHeader(
  file: DiskFile,
  path: string,
  timeline: TimelineId,
  baseLsn: Lsn,
): Promise<SegmentHeader> {
  const bytes = Buffer.alloc(SEGMENT_HEADER_BYTES)
  const fail = (why: string): never => {
    throw corruptError(
      `log segment ${path}: ${why} at offset 0; restore the file, or this timeline from another copy`,
      baseLsn,
    )
  }
  if ((await file.read(bytes, 0)) !== SEGMENT_HEADER_BYTES) fail('no header')
  if (!bytes.subarray(0, 8).equals(MAGIC)) fail('no log segment')
  const version = bytes.readUInt32LE(8)
  if (version !== VERSION) fail(`format version ${version}, this release knows ${VERSION}`)
  const headerCrc = bytes.readUInt32LE(12)
  if (crc32c(bytes, 16, SEGMENT_HEADER_BYTES) !== headerCrc) fail('header has a wrong CRC-32C')
  const header: SegmentHeader = {
    timeline: bytes.toString('hex', 16, 32) as TimelineId,
    baseLsn: readU64(bytes, 32) as Lsn,
    segmentBytes: readU64(bytes, 40),
    chainCrc: bytes.readUInt32LE(48),
    headerCrc,
  }
  if (header.timeline !== timeline) fail(`it belongs to timeline ${header.timeline}`)
  if (header.baseLsn !== baseLsn) fail(`it begins at LSN ${header.baseLsn}, its name says ${baseLsn}`)
  const size = await file.size()
  if (size !== header.segmentBytes) fail(`${size} bytes long instead of ${header.segmentBytes}`)
  return header
}

/** Makes `spare.wal` of the right length, sparse or filled with zeros, synced. Nothing if there is one. */
export async function prepareSpare(
  disk: Disk,
  dir: string,
  segmentBytes: number,
  fill: boolean,
): Promise<void> {
  const path = join(dir, SPARE_NAME)
  if (await disk.exists(path)) {
    const file = await disk.open(path, 'read')
    const size = await file.size().finally(() => file.close())
    if (size === segmentBytes) return
  }
  const temporary = join(dir, 'spare.tmp')
  await disk.remove(temporary)
  const file = await disk.open(temporary, 'create')
  try {
    const zeros = Buffer.alloc(fill ? Math.min(ZERO_SLICE_BYTES, segmentBytes) : 1)
    for (let at = fill ? 0 : segmentBytes - 1; at < segmentBytes; at += zeros.length)
      await file.write([zeros.subarray(0, Math.min(zeros.length, segmentBytes - at))], at)
    await file.datasync()
  } catch (error) {
    // A disk that is full must not stay so because of what did not fit.
    await file.close()
    await disk.remove(temporary)
    throw error
  }
  await file.close()
  await disk.rename(temporary, path)
  await disk.syncDir(dir)
}

/** Makes the segment that begins at `baseLsn` from the spare. All of the log below must be durable already. */
export async function createSegment(
  disk: Disk,
  dir: string,
  timeline: TimelineId,
  baseLsn: Lsn,
  segmentBytes: number,
  chainCrc: number,
): Promise<{ file: DiskFile; path: string; headerCrc: number }> {
  await prepareSpare(disk, dir, segmentBytes, false)
  const spare = join(dir, SPARE_NAME)
  const path = join(dir, segmentName(baseLsn))
  const file = await disk.open(spare, 'write')
  try {
    const { bytes, headerCrc } = encodeHeader({ timeline, baseLsn, segmentBytes, chainCrc })
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
