/**
 * zstd, synchronous for whoever runs in a worker, beside the event loop for others: node:zlib's with its sizes stated, so that it allocates exactly what
 * is needed and never more than the caller allows.
 */
import { promisify } from 'node:util'
import { constants, zstdDecompress as decompress, zstdCompressSync, zstdDecompressSync } from 'node:zlib'

const decompressAsync = promisify(decompress)

/**
 * Levels that node:zlib can be told: -1 is its word for "unset" and would mean 3. Negative ones trade ratio for speed.
 */
export function checkZstdLevel(level: number): number {
  if (!Number.isInteger(level) || level < -100 || level > 19 || level === -1 || level === 0)
    throw new RangeError(`zstd level ${level} is not one of -100..-2, 1..19`)
  return level
}

/** One whole zstd frame. The result is the caller's. */
export function zstdCompress(bytes: Uint8Array, level: number): Buffer {
  return zstdCompressSync(bytes, {
    // Bound of what zstd may need (ZSTD_compressBound), so that the output is one piece and never concatenated.
    chunkSize: Math.max(64, bytes.length + (bytes.length >>> 8) + 128),
    pledgedSrcSize: bytes.length,
    params: { [constants.ZSTD_c_compressionLevel]: level },
  })
}

/**
 * The `rawBytes` bytes that `stored` is a frame of. Throws a plain Error if it is no frame or holds any other number of
 * bytes; allocates no more than `rawBytes` for the result.
 */
export function zstdDecompress(stored: Uint8Array, rawBytes: number): Buffer {
  const raw = zstdDecompressSync(stored, {
    chunkSize: Math.max(64, rawBytes),
    maxOutputLength: Math.max(1, rawBytes),
  })
  if (raw.length !== rawBytes)
    throw new Error(`a zstd frame of ${raw.length} bytes where ${rawBytes} were expected`)
  return raw
}

let isInPlace = false

/** For simulations, in this whole process: nothing happens beside the event loop any more, where only chance says when it ends. */
export function decompressInPlace(): void {
  isInPlace = true
}

/** The same beside the event loop; `stored` must not change meanwhile. */
export async function zstdDecompressBeside(stored: Uint8Array, rawBytes: number): Promise<Buffer> {
  if (isInPlace) return zstdDecompress(stored, rawBytes)
  const raw = await decompressAsync(stored, {
    // A byte more than is filled: a full piece of output would make it take another one.
    chunkSize: Math.max(64, rawBytes + 1),
    maxOutputLength: Math.max(1, rawBytes),
  })
  if (raw.length !== rawBytes)
    throw new Error(`a zstd frame of ${raw.length} bytes where ${rawBytes} were expected`)
  return raw
}
