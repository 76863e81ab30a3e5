/** Layer files against the dumb model: a list of entries, a map of pages. */
import { existsSync, mkdtempSync, readdirSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import fc from 'fast-check'
import t from 'tap'
import { type Lsn, toTimelineId } from '../../protocol/ids.ts'
import { BlockCache } from '../../server/pageserver/block-cache.ts'
import { type MergeResult, mergeLayers } from '../../server/pageserver/compact-layers.ts'
import { DeltaLayerWriter } from '../../server/pageserver/delta-layer.ts'
import { ImageLayerWriter } from '../../server/pageserver/image-layer.ts'
import type { LayerSummary } from '../../server/pageserver/layer-file-writer.ts'
import { LayerFiles } from '../../server/pageserver/layer-files.ts'
import { LayerReader } from '../../server/pageserver/layer-reader.ts'

const timeline = toTimelineId('00112233445566778899aabbccddeeff')
const dir = mkdtempSync(join(tmpdir(), 'palimpsest-layers-'))
t.teardown(() => rmSync(dir, { recursive: true }))
let files = 0
const newPath = () => join(dir, `layer${files++}`)

interface Entry {
  space: number
  page: number
  lsn: number
  flags: number
  bytes: Buffer
}

const LSN_BASE = 5_000_000_000
const LSN_END = LSN_BASE + 9_000_000_000

/** Few pages and few LSNs, so that runs are long and LSNs collide; now and then steps beyond 32 bits. */
const entry = fc.record({
  space: fc.constantFrom(0, 1, 0xfffffff0),
  page: fc.constantFrom(0, 1, 2, 0xffffffff),
  lsn: fc
    .oneof(fc.integer({ min: 1, max: 60 }), fc.integer({ min: 1, max: 9_000_000_000 }))
    .map(offset => LSN_BASE + offset),
  flags: fc.constantFrom(0, 0, 0, 0, 1, 2),
  bytes: fc
    .tuple(fc.oneof(fc.integer({ min: 1, max: 80 }), fc.integer({ min: 1, max: 5000 })), fc.nat(255))
    .map(([length, seed]) => Buffer.from(Array.from({ length }, (_, i) => (seed + i * i) & 0xff))),
})

/** In the order in which a layer has them: by page and LSN, equal ones in the order given. */
const inOrder = (entries: Entry[]): Entry[] =>
  [...entries].sort((a, b) => a.space - b.space || a.page - b.page || a.lsn - b.lsn)

function write(entries: Entry[], lsnStart: number, lsnEnd: number, blockBytes: number): string {
  const path = newPath()
  const writer = new DeltaLayerWriter(path, {
    timeline,
    generation: 1,
    lsnStart: lsnStart as Lsn,
    lsnEnd: lsnEnd as Lsn,
    blockBytes,
  })
  let last: Entry | undefined
  for (const e of inOrder(entries)) {
    if (last?.space !== e.space || last.page !== e.page) writer.beginPage(e.space, e.page)
    // With bytes around it that must not get in.
    const around = Buffer.concat([Buffer.from('>>>'), e.bytes, Buffer.from('<<<')])
    writer.addEntry(e.lsn, e.flags, around, 3, e.bytes.length)
    last = e
  }
  writer.finish()
  return path
}

function read(
  reader: LayerReader,
  space: number,
  page: number,
  after: number,
  upTo: number,
  fromInit = false,
): string[] {
  const handle = reader.findPage(space, page)
  const found: string[] = []
  if (handle >= 0)
    reader.forEachEntry(
      handle,
      after,
      upTo,
      (buf, start, end, lsn, flags) => found.push(`${lsn} ${flags} ${buf.toString('hex', start, end)}`),
      fromInit,
    )
  return found
}

const show = (e: Entry) => `${e.lsn} ${e.flags} ${e.bytes.toString('hex')}`

function compare(reader: LayerReader, entries: Entry[], ranges: [number, number][]): boolean {
  const sorted = inOrder(entries)
  const pages = new Map(sorted.map(e => [`${e.space}:${e.page}`, e]))
  if (pages.size !== reader.pages) return false
  for (const { space, page } of [...pages.values(), { space: 0, page: 77 }])
    for (const [after, upTo] of ranges) {
      const mine = sorted.filter(e => e.space === space && e.page === page)
      const wanted = mine.filter(e => e.lsn > after && e.lsn <= upTo)
      if (read(reader, space, page, after, upTo).join() !== wanted.map(show).join()) return false
      // From the last init entry, if that is in the range; entries of its own LSN that follow it included.
      const handle = reader.findPage(space, page)
      const init = handle < 0 ? 0 : reader.initLsn(handle)
      const lastInit = mine.findLast(e => e.flags === 1)
      if (handle >= 0 && init !== (lastInit?.lsn ?? 0)) return false
      const fromInit = read(reader, space, page, after, upTo, true)
      const counts = lastInit !== undefined && lastInit.lsn > after && lastInit.lsn <= upTo
      const expected = counts ? wanted.slice(wanted.indexOf(lastInit)) : wanted
      if (fromInit.join() !== expected.map(show).join()) return false
    }
  return true
}

const range = fc
  .tuple(fc.integer({ min: -5, max: 70 }), fc.integer({ min: 0, max: 70 }))
  .map(([after, length]): [number, number] => [LSN_BASE + after, LSN_BASE + after + length])

t.test('a delta layer gives back what a list of entries would, for every page and LSN range', async t => {
  fc.assert(
    fc.property(
      fc.array(entry, { maxLength: 120 }),
      fc.array(range, { maxLength: 8 }),
      fc.constantFrom(1024, 4096, 65536),
      fc.boolean(),
      (entries, ranges, blockBytes, cached) => {
        const path = write(entries, LSN_BASE, LSN_END, blockBytes)
        const reader = LayerReader.open(path, cached ? { blockCache: new BlockCache(8192) } : {})
        try {
          return compare(reader, entries, [...ranges, [0, LSN_END]])
        } finally {
          reader.close()
          rmSync(path)
        }
      },
    ),
    { numRuns: 150 },
  )
  t.pass()
})

t.test('merging layers of consecutive ranges gives the layer of all their entries, cut by pages', async t => {
  fc.assert(
    fc.property(
      fc.array(fc.array(entry, { maxLength: 40 }), { minLength: 2, maxLength: 5 }),
      fc.array(range, { maxLength: 4 }),
      fc.boolean(),
      (layers, ranges, cut) => {
        const all: Entry[] = []
        const paths = layers.map((entries, i) => {
          // Each layer's entries moved into a range of its own.
          const moved = entries.map(e => ({ ...e, lsn: LSN_BASE + i * 20 + 1 + (e.lsn % 20) }))
          all.push(...moved)
          return write(moved, LSN_BASE + i * 20, LSN_BASE + (i + 1) * 20, 1024)
        })
        const inputs = paths.map((path, i) => ({
          kind: 'delta' as const,
          path,
          lsnStart: (LSN_BASE + i * 20) as Lsn,
          lsnEnd: (LSN_BASE + (i + 1) * 20) as Lsn,
        }))
        const merged: { path: string; summary: LayerSummary }[] = []
        const open = new LayerFiles(1 << 20)
        for (let from: MergeResult['next'] = null; ; ) {
          const path = newPath()
          const slice: MergeResult = mergeLayers(open, {
            inputs,
            path,
            timeline,
            generation: 2,
            lsnStart: LSN_BASE as Lsn,
            lsnEnd: (LSN_BASE + 100) as Lsn,
            from,
            layerBytes: cut ? 2000 : 1 << 30,
          })
          merged.push({ path, summary: slice.summary })
          if (slice.next === null) break
          from = slice.next
        }
        const sorted = inOrder(all)
        let entries = 0
        for (const { path, summary } of merged) {
          const reader = LayerReader.open(path)
          const mine = sorted.filter(
            e =>
              summary.first !== undefined &&
              summary.last !== undefined &&
              (e.space > summary.first.space ||
                (e.space === summary.first.space && e.page >= summary.first.page)) &&
              (e.space < summary.last.space ||
                (e.space === summary.last.space && e.page <= summary.last.page)),
          )
          const same = compare(reader, mine, [...ranges, [0, LSN_END]])
          reader.close()
          entries += mine.length
          if (!same || summary.entries !== mine.length) return false
        }
        for (const path of [...paths, ...merged.map(m => m.path)]) rmSync(path)
        return entries === all.length
      },
    ),
    { numRuns: 80 },
  )
  t.equal(readdirSync(dir).length, 0)
})

t.test('an image layer gives back pages of all sizes, the last of those added twice', async t => {
  const page = fc.record({
    space: fc.constantFrom(0, 3, 0xfffffff0),
    page: fc.integer({ min: 0, max: 12 }),
    size: fc.constantFrom(1024, 4096, 16384, 65536),
    fill: fc.constantFrom('zero', 'text', 'noise'),
    seed: fc.nat(1000),
  })
  const make = ({ size, fill, seed }: { size: number; fill: string; seed: number }): Buffer => {
    const bytes = Buffer.alloc(size)
    if (fill === 'text') bytes.fill(`page ${seed} `)
    if (fill === 'noise')
      for (let i = 0, x = seed + 1; i < size; i++) {
        x = (Math.imul(x, 1103515245) + 12345) | 0
        bytes[i] = x >>> 16
      }
    return bytes
  }
  fc.assert(
    fc.property(fc.array(page, { maxLength: 30 }), pages => {
      const path = newPath()
      const writer = new ImageLayerWriter(path, { timeline, generation: 1, lsn: 77 as Lsn })
      const model = new Map<string, { bytes: Buffer; lsn: number; crc: number }>()
      for (const p of pages) {
        const bytes = make(p)
        const around = Buffer.concat([Buffer.from('x'), bytes, Buffer.from('y')])
        const crc = writer.addPage(p.space, p.page, around, 1, 1 + bytes.length, LSN_BASE + p.seed)
        model.set(`${p.space}:${p.page}`, { bytes, lsn: LSN_BASE + p.seed, crc })
      }
      const summary = writer.finish()
      const reader = LayerReader.open(path)
      try {
        if (reader.pages !== model.size || summary.pages !== model.size) return false
        for (let handle = 0; handle < reader.pages; handle++) {
          const wanted = model.get(`${reader.space(handle)}:${reader.page(handle)}`)
          const dst = new Uint8Array(new SharedArrayBuffer(70000))
          const size = reader.readImage(handle, dst, 100)
          if (wanted === undefined || size !== wanted.bytes.length || reader.imageBytes(handle) !== size)
            return false
          if (!wanted.bytes.equals(dst.subarray(100, 100 + size))) return false
          if (reader.imagePageLsn(handle) !== wanted.lsn || reader.imageCrc(handle) !== wanted.crc)
            return false
          if (reader.findPage(reader.space(handle), reader.page(handle)) !== handle) return false
        }
        return true
      } finally {
        reader.close()
        rmSync(path)
      }
    }),
    { numRuns: 60 },
  )
  t.equal(existsSync(join(dir, 'layer0')), false)
})
