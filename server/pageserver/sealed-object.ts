/**
 * The envelope of small objects (snapshots of the catalogue, indexes of captured files): magic (8 bytes), u32 format
 * version, u32 length of the contents, u32 CRC-32C of everything but itself, then the contents as zstd.
 */
import { zstdCompressSync } from 'node:zlib'
import { crc32c } from '../../protocol/crc32c.ts'
import { corruptError } from '../shared/errors.ts'
import { zstdDecompress } from '../shared/zstd.ts'

const HEADER_BYTES = 20
const CRC_OFFSET = 16
/** Larger contents are no snapshot of ours. */
const CONTENTS_BYTES_MAX = 1 << 30

/** `magic` is eight ASCII characters. */
export function sealObject(magic: string, version: number, contents: Uint8Array): Buffer {
  const packed = zstdCompressSync(contents)
  const sealed = Buffer.alloc(HEADER_BYTES + packed.length)
  sealed.write(magic, 0, 8, 'latin1')
  sealed.writeUInt32LE(version, 8)
  sealed.writeUInt32LE(contents.length, 12)
  packed.copy(sealed, HEADER_BYTES)
  sealed.writeUInt32LE(checksum(sealed), CRC_OFFSET)
  return sealed
}

/** What `decode` makes of the contents; a `corrupt` error that names `where` for whatever is wrong. */
export function openSealedObject<T>(
  magic: string,
  version: number,
  sealed: Buffer,
  where: string,
  decode: (contents: Buffer) => T,
): T {
  if (sealed.length < HEADER_BYTES || sealed.toString('latin1', 0, 8) !== magic)
    throw corruptError(`${where}: this is no ${magic} object`)
  if (checksum(sealed) !== sealed.readUInt32LE(CRC_OFFSET))
    throw corruptError(`${where}: the contents do not match their CRC-32C`)
  if (sealed.readUInt32LE(8) !== version)
    throw corruptError(
      `${where}: format version ${sealed.readUInt32LE(8)}; this software reads version ${version}`,
    )
  const length = sealed.readUInt32LE(12)
  if (length > CONTENTS_BYTES_MAX) throw corruptError(`${where}: ${length} bytes of contents are too many`)
  try {
    return decode(length === 0 ? Buffer.alloc(0) : zstdDecompress(sealed.subarray(HEADER_BYTES), length))
  } catch (error) {
    throw corruptError(`${where}: ${(error as Error).message}`, undefined, error)
  }
}

function checksum(sealed: Buffer): number {
  return crc32c(sealed, HEADER_BYTES, sealed.length, crc32c(sealed, 0, CRC_OFFSET))
}
