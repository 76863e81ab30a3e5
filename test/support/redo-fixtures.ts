/** The recorded redo in test/fixtures. */
import { readFileSync } from 'node:fs'
import { zstdDecompressSync } from 'node:zlib'

const fixtures = new URL('../fixtures/', import.meta.url)

/** Into shared memory, as the workers see redo. */
function load(path: string): Uint8Array {
  const bytes = zstdDecompressSync(readFileSync(new URL(path, fixtures)))
  const shared = new Uint8Array(new SharedArrayBuffer(bytes.length))
  shared.set(bytes)
  return shared
}

export const PAGE_SIZE_NAMES = ['4k', '16k', '64k'] as const
export type PageSizeName = (typeof PAGE_SIZE_NAMES)[number]

/** An ib_logfile0 with a made head, in its first lap, cut at its end: test/fixtures/golden/. */
export const loadGoldenLog = (size: PageSizeName): Uint8Array => load(`golden/zoo-${size}.redo.zst`)

/** Mini-transactions of all shapes one after the other: test/fixtures/redo/. */
export const loadVariety = (size: PageSizeName): Uint8Array => load(`redo/zoo-${size}-variety.zst`)

/** The first 0x3000 bytes of an ib_logfile0 as a server wrote them: test/fixtures/redo/. */
export const loadServerHead = (size: PageSizeName): Uint8Array => load(`redo/zoo-${size}-head.zst`)
