/**
 * Generational fuzzing of what reads layer files.
 *
 *     node test/fuzz/layer-fuzz.ts [--seconds N] [--seed N]
 *
 * It makes a small layer, takes it apart, damages one or two of its parts in ways that keep them plausible, and puts it
 * together again with right CRCs, so that the checks behind these are reached. Then everything is read: index, every
 * page over several LSN ranges, images, events, samples. Whatever happens must be a `corrupt` error that names the file,
 * or entries that keep what a reader relies on: LSNs ascend and lie in the range asked for, bytes lie within their block.
 * Damage without new CRCs must never change what is read. Anything else is a finding: another exception, a case that
 * takes seconds.
 *
 * A run is determined by its seed. Seeds worth keeping are in test/fixtures/fuzz/layer-seeds.json, and
 * test/property/layer-fuzz.test.ts runs them briefly.
 */
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { parseArgs } from 'node:util'
import { crc32c } from '../../protocol/crc32c.ts'
import { type Lsn, toTimelineId } from '../../protocol/ids.ts'
import { DeltaLayerWriter } from '../../server/pageserver/delta-layer.ts'
import { ImageLayerWriter } from '../../server/pageserver/image-layer.ts'
import {
  BlockColumn,
  decodeLayerFooter,
  decodeLayerHeader,
  Encoding,
  encodeLayerFooter,
  encodeLayerHeader,
  ImageColumn,
  LAYER_FOOTER_BYTES,
  LAYER_HEADER_BYTES,
  type LayerFooter,
  LayerKind,
  SectionKind,
} from '../../server/pageserver/layer-format.ts'
import { LayerReader } from '../../server/pageserver/layer-reader.ts'
import { PalimpsestError } from '../../server/shared/errors.ts'
import { zstdCompress, zstdDecompress } from '../../server/shared/zstd.ts'

export interface LayerFuzzCounters {
  cases: number
  /** Refused when the file was opened. */
  refusedOpen: number
  /** Refused when a page or section was read. */
  refusedRead: number
  /** Read to the end. */
  read: number
}

type Random = (below: number) => number

/** Mulberry32: small, seedable, good enough to choose damage by. */
function makeRandom(seed: number): Random {
  let state = seed | 0
  return below => {
    state = (state + 0x6d2b79f5) | 0
    let z = Math.imul(state ^ (state >>> 15), 1 | state)
    z = (z + Math.imul(z ^ (z >>> 7), 61 | z)) ^ z
    return ((z ^ (z >>> 14)) >>> 0) % below
  }
}

const TIMELINE = toTimelineId('00112233445566778899aabbccddeeff')
const LSN_START = 1000
const LSN_END = 9000
const CASE_MS_MAX = 5000
const WORDS = [
  0, 1, 2, 3, 15, 16, 17, 0x7f, 0x80, 0xff, 1024, 4096, 65535, 65536, 0x7fffffff, 0x80000000, 0xffffffff,
]

/** A layer file taken apart. Blocks are uncompressed (of an image layer: pages, of which zero ones are empty). */
interface Parts {
  footer: LayerFooter
  blocks: { raw: Buffer; encoding: number }[]
  sections: Buffer[]
}

function makeDelta(path: string, random: Random): void {
  const writer = new DeltaLayerWriter(path, {
    timeline: TIMELINE,
    generation: 1,
    lsnStart: LSN_START as Lsn,
    lsnEnd: LSN_END as Lsn,
    blockBytes: random(2) === 0 ? 1024 : 4096,
  })
  const pages = random(12)
  for (let p = 0; p < pages; p++) {
    writer.beginPage(1 + (p >>> 2), p)
    let lsn = LSN_START + 1 + random(100)
    for (let e = random(random(4) === 0 ? 200 : 8); e > 0; e--) {
      const bytes = Buffer.alloc(1 + random(random(10) === 0 ? 2000 : 60), `entry ${e}`)
      writer.addEntry(lsn, random(10) === 0 ? 1 + random(2) : 0, bytes, 0, bytes.length)
      lsn = Math.min(LSN_END, lsn + random(50))
    }
  }
  const extras = random(2) === 0
  writer.finish(
    extras
      ? {
          catalogueEvents: [
            { kind: 'size', lsn: 1500 as Lsn, space: 1, pages: 64 },
            { kind: 'create', lsn: 1600 as Lsn, space: 2, name: 'db/t.ibd', external: false },
          ],
          timeSamples: [
            { lsn: 1500 as Lsn, timeUs: 1_700_000_000_000_000 },
            { lsn: 1700 as Lsn, timeUs: 1_700_000_000_100_000 },
          ],
        }
      : {},
  )
}

function makeImage(path: string, random: Random): void {
  const writer = new ImageLayerWriter(path, { timeline: TIMELINE, generation: 1, lsn: LSN_END as Lsn })
  for (let p = random(8); p > 0; p--) {
    const page = Buffer.alloc([1024, 4096, 16384][random(3)]!)
    const kind = random(3)
    if (kind === 1) page.fill(`page ${p}`)
    if (kind === 2) for (let i = 0; i < page.length; i++) page[i] = random(256)
    writer.addPage(random(3), random(10), page, 0, page.length, random(LSN_END))
  }
  writer.finish()
}

function takeApart(path: string): Parts {
  const file = readFileSync(path)
  decodeLayerHeader(path, file)
  const footer = decodeLayerFooter(path, file.subarray(file.length - LAYER_FOOTER_BYTES), file.length)
  const sections = footer.sections.map(({ encoding, offset, storedBytes, rawBytes }) => {
    const stored = file.subarray(offset, offset + storedBytes)
    return Buffer.from(encoding === Encoding.ZSTD ? zstdDecompress(stored, rawBytes) : stored)
  })
  const delta = footer.kind === LayerKind.DELTA
  const rows = delta ? footer.blocks : footer.pages
  const index = delta ? sections[SectionKind.BLOCKS]! : sections[SectionKind.PAGES]!
  const word = (column: number, row: number) => index.readUInt32LE(4 * (column * rows + row))
  const blocks = Array.from({ length: rows }, (_, row) => {
    const offset = word(delta ? BlockColumn.OFFSET_LOW : ImageColumn.OFFSET_LOW, row)
    const stored = word(delta ? BlockColumn.STORED_BYTES : ImageColumn.STORED_BYTES, row)
    const size = delta ? word(BlockColumn.RAW_BYTES, row) : word(ImageColumn.SIZE_ENCODING, row) & 0xffffff
    const encoding = delta ? word(BlockColumn.ENCODING, row) : word(ImageColumn.SIZE_ENCODING, row) >>> 24
    const bytes = file.subarray(offset, offset + stored)
    return { raw: Buffer.from(encoding === Encoding.ZSTD ? zstdDecompress(bytes, size) : bytes), encoding }
  })
  return { footer, blocks, sections }
}

/** The file again; offsets, sizes and CRCs are made right unless `keep` says to leave the index as it is. */
function putTogether({ footer, blocks, sections }: Parts, keep: boolean, random: Random): Buffer {
  const pieces: Buffer[] = [encodeLayerHeader(footer)]
  let at = LAYER_HEADER_BYTES
  const delta = footer.kind === LayerKind.DELTA
  const index = sections[delta ? SectionKind.BLOCKS : SectionKind.PAGES]!
  const rows = blocks.length
  const set = (column: number, row: number, value: number) => {
    const place = 4 * (column * rows + row)
    if (place + 4 <= index.length) index.writeUInt32LE(value >>> 0, place)
  }
  blocks.forEach(({ raw, encoding }, row) => {
    let stored = encoding === Encoding.ZSTD && raw.length > 0 ? zstdCompress(raw, 1) : raw
    if (encoding === Encoding.ZSTD && random(200) === 0) stored = zstdCompress(Buffer.alloc(8 << 20), 1)
    pieces.push(stored)
    if (!keep && delta) {
      set(BlockColumn.OFFSET_LOW, row, at)
      set(BlockColumn.STORED_BYTES, row, stored.length)
      set(BlockColumn.RAW_BYTES, row, raw.length)
      set(BlockColumn.CRC, row, crc32c(stored, 0, stored.length))
    } else if (!keep && encoding !== Encoding.ZERO) {
      set(ImageColumn.OFFSET_LOW, row, at)
      set(ImageColumn.STORED_BYTES, row, stored.length)
      set(ImageColumn.CRC, row, crc32c(raw, 0, raw.length))
    }
    at += stored.length
  })
  const infos = sections.map(raw => {
    const packed = raw.length > 0 ? zstdCompress(raw, 1) : raw
    const zstd = packed.length < raw.length
    const stored = zstd ? packed : raw
    const info = {
      encoding: raw.length === 0 ? Encoding.ZERO : zstd ? Encoding.ZSTD : Encoding.RAW,
      offset: raw.length === 0 ? 0 : at,
      storedBytes: stored.length,
      rawBytes: raw.length,
      crc: crc32c(stored, 0, stored.length),
    }
    pieces.push(stored)
    at += stored.length
    return info
  })
  pieces.push(encodeLayerFooter({ ...footer, fileBytes: at + LAYER_FOOTER_BYTES, sections: infos }))
  return Buffer.concat(pieces)
}

/** Damages one part. True if the index is to stay as it is now. */
function damage(parts: Parts, random: Random): boolean {
  const words = (raw: Buffer) => {
    if (raw.length < 4) return
    const at = random(raw.length >>> 2) * 4
    const old = raw.readUInt32LE(at)
    const to = [
      old + 1,
      old - 1,
      WORDS[random(WORDS.length)]!,
      random(0x7fffffff),
      raw.readUInt32LE(random(raw.length >>> 2) * 4),
    ]
    raw.writeUInt32LE(to[random(to.length)]! >>> 0, at)
  }
  const bytes = (raw: Buffer) => {
    if (raw.length > 0)
      raw[random(raw.length)] = random(3) === 0 ? random(256) : WORDS[random(WORDS.length)]! & 0xff
  }
  switch (random(9)) {
    case 0:
      words(parts.sections[SectionKind.PAGES]!)
      return true
    case 1:
      words(parts.sections[SectionKind.BLOCKS]!)
      return true
    case 2:
    case 3:
    case 4: {
      const block = parts.blocks[random(parts.blocks.length || 1)]
      if (block === undefined) return false
      if (random(3) === 0) words(block.raw)
      else bytes(block.raw)
      return false
    }
    case 5: {
      // A block loses or gains an end.
      const block = parts.blocks[random(parts.blocks.length || 1)]
      if (block === undefined) return false
      block.raw =
        random(2) === 0
          ? block.raw.subarray(0, random(block.raw.length + 1))
          : Buffer.concat([block.raw, block.raw])
      return false
    }
    case 6:
      bytes(parts.sections[SectionKind.CATALOGUE + random(2)]!)
      return false
    case 7: {
      const kind = random(4)
      const raw = parts.sections[kind]!
      parts.sections[kind] =
        random(2) === 0 ? raw.subarray(0, random(raw.length + 1)) : Buffer.concat([raw, raw])
      return true
    }
    default: {
      const { footer } = parts
      const number = WORDS[random(WORDS.length)]!
      const change = [
        { pages: number },
        { blocks: number },
        { entries: number },
        { lsnStart: number as Lsn },
        { lsnEnd: number as Lsn },
        { minTimeUs: number },
        { kind: footer.kind === LayerKind.DELTA ? LayerKind.IMAGE : LayerKind.DELTA },
        { pages: footer.pages + 1 },
      ]
      parts.footer = { ...footer, ...change[random(change.length)]! }
      return true
    }
  }
}

/** Reads everything there is, checking what a reader may rely on; returns a digest of it. */
function readAll(path: string, stage: { opened: boolean }): string {
  const reader = LayerReader.open(path)
  stage.opened = true
  try {
    let digest = ''
    const page = Buffer.alloc(65536)
    for (let handle = 0; handle < reader.pages; handle++) {
      if (reader.findPage(reader.space(handle), reader.page(handle)) !== handle)
        throw new Error('a page is not found')
      if (reader.isImage) {
        const size = reader.readImage(handle, page)
        digest += `${handle} ${size} ${crc32c(page, 0, size)} ${reader.imagePageLsn(handle)};`
        continue
      }
      for (const [after, upTo, fromInit] of [
        [0, Number.MAX_SAFE_INTEGER, false],
        [LSN_START + 50, LSN_START + 90, false],
        [LSN_START + 20, LSN_END, true],
      ] as const) {
        const cursor = reader.cursor(handle, after, upTo, fromInit)
        let last = after
        let crc = 0
        while (cursor.next()) {
          if (cursor.lsn < last || cursor.lsn <= after || cursor.lsn > upTo)
            throw new Error('LSNs out of order')
          if (!(cursor.start < cursor.end && cursor.end <= cursor.buf.length))
            throw new Error('an entry outside its block')
          last = cursor.lsn
          crc = crc32c(cursor.buf, cursor.start, cursor.end, crc)
        }
        digest += `${handle} ${after} ${last} ${crc};`
      }
    }
    return digest + JSON.stringify([reader.catalogueEvents(), reader.timeSamples()])
  } finally {
    reader.close()
  }
}

/** Runs cases until told to stop. Throws, with the seed and the case, at the first finding. */
export function fuzzLayers(seed: number, until: (counters: LayerFuzzCounters) => boolean): LayerFuzzCounters {
  const random = makeRandom(seed)
  const dir = mkdtempSync(join(tmpdir(), 'palimpsest-layer-fuzz-'))
  const counters: LayerFuzzCounters = { cases: 0, refusedOpen: 0, refusedRead: 0, read: 0 }
  const path = join(dir, 'layer')
  const attempt = (file: Buffer, expected: string | undefined): void => {
    writeFileSync(path, file)
    const begun = performance.now()
    const stage = { opened: false }
    counters.cases++
    try {
      const got = readAll(path, stage)
      if (expected !== undefined && got !== expected)
        throw new Error('damage changed what is read, and nobody noticed')
      counters.read++
    } catch (error) {
      if (!(error instanceof PalimpsestError) || error.kind !== 'corrupt' || !error.message.includes(path))
        throw new Error(`seed ${seed}, case ${counters.cases}: ${(error as Error).message}`, { cause: error })
      if (stage.opened) counters.refusedRead++
      else counters.refusedOpen++
    }
    if (performance.now() - begun > CASE_MS_MAX)
      throw new Error(`seed ${seed}, case ${counters.cases} takes seconds`)
  }
  try {
    while (!until(counters)) {
      rmSync(path, { force: true })
      if (random(3) > 0) makeDelta(path, random)
      else makeImage(path, random)
      const good = readFileSync(path)
      const expected = readAll(path, { opened: false })
      attempt(
        putTogether(takeApart(path), false, () => 1),
        expected,
      )
      for (let n = 0; n < 20 && !until(counters); n++) {
        writeFileSync(path, good)
        const parts = takeApart(path)
        let keep = damage(parts, random)
        if (random(4) === 0) keep = damage(parts, random) || keep
        attempt(putTogether(parts, keep, random), undefined)
        const flipped = Buffer.from(good)
        for (let flips = 1 + random(3); flips > 0; flips--) {
          const at = random(flipped.length)
          flipped[at] = flipped[at]! ^ (1 << random(8))
        }
        attempt(random(4) === 0 ? flipped.subarray(0, random(flipped.length)) : flipped, expected)
      }
    }
    return counters
  } finally {
    rmSync(dir, { recursive: true })
  }
}

if (import.meta.main) {
  const { values } = parseArgs({ options: { seconds: { type: 'string' }, seed: { type: 'string' } } })
  const until = performance.now() + 1000 * Number(values.seconds ?? 60)
  let seed = Number(values.seed ?? Date.now() % 0x7fffffff)
  process.stdout.write(`fuzzing for ${values.seconds ?? 60} s from seed ${seed}\n`)
  const total: LayerFuzzCounters = { cases: 0, refusedOpen: 0, refusedRead: 0, read: 0 }
  while (performance.now() < until) {
    const c = fuzzLayers(seed++, ({ cases }) => cases >= 5000 || performance.now() >= until)
    for (const key of Object.keys(total) as (keyof LayerFuzzCounters)[]) total[key] += c[key]
    process.stdout.write(`seed ${seed - 1} done; in all ${JSON.stringify(total)}\n`)
  }
}
