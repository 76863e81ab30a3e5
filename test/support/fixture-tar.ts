/**
 * Small files of a datadir in one archive: plain POSIX ustar, compressed with zstd, without a tar program at either end.
 * Only what the fixtures need: regular files, names below 100 bytes.
 */
import { readFileSync, writeFileSync } from 'node:fs'
import { constants, zstdCompressSync, zstdDecompressSync } from 'node:zlib'

const BLOCK = 512

/** Reads an archive made by `writeTarZst`, or by tar --format=ustar | zstd. */
export function readTarZst(path: string): Map<string, Uint8Array> {
  const tar = zstdDecompressSync(readFileSync(path))
  const files = new Map<string, Uint8Array>()
  for (let at = 0; at + BLOCK <= tar.length && tar[at] !== 0; ) {
    const text = (from: number, length: number): string =>
      tar
        .toString('latin1', at + from, at + from + length)
        .split('\0', 1)[0]!
        .trim()
    const size = Number.parseInt(text(124, 12), 8)
    const name = text(0, 100)
    const type = text(156, 1)
    at += BLOCK
    if (type === '0' || type === '') files.set(name, Uint8Array.from(tar.subarray(at, at + size)))
    at += Math.ceil(size / BLOCK) * BLOCK
  }
  return files
}

export function writeTarZst(path: string, files: ReadonlyMap<string, Uint8Array>): void {
  const parts: Uint8Array[] = []
  for (const [name, content] of [...files].sort(([a], [b]) => (a < b ? -1 : 1))) {
    if (Buffer.byteLength(name) > 99) throw new Error(`name too long for this archive: ${name}`)
    const header = Buffer.alloc(BLOCK)
    header.write(name, 0, 'latin1')
    header.write('0000644\0'.concat('0000000\0', '0000000\0'), 100)
    header.write(`${content.length.toString(8).padStart(11, '0')}\0`, 124)
    header.write('00000000000\0', 136)
    header.write('        0', 148)
    header.write('ustar\x0000', 257)
    const sum = header.reduce((a, b) => a + b, 0)
    header.write(`${sum.toString(8).padStart(6, '0')}\0 `, 148)
    parts.push(header, content, new Uint8Array((BLOCK - (content.length % BLOCK)) % BLOCK))
  }
  parts.push(new Uint8Array(2 * BLOCK))
  writeFileSync(path, compress(Buffer.concat(parts)))
}

/** zstd at its hardest, with a window that spans the whole file: fixtures are written once and fetched often. */
export function compress(content: Uint8Array): Uint8Array {
  return zstdCompressSync(content, {
    params: {
      [constants.ZSTD_c_compressionLevel]: 22,
      [constants.ZSTD_c_windowLog]: 27,
      [constants.ZSTD_c_enableLongDistanceMatching]: 1,
    },
  })
}
