import { existsSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { type Lsn, toTimelineId } from '../../../protocol/ids.ts'
import { DeltaLayerWriter } from '../../../server/pageserver/delta-layer.ts'
import { LayerReader } from '../../../server/pageserver/layer-reader.ts'
import { PalimpsestError } from '../../../server/shared/errors.ts'

const timeline = toTimelineId('00112233445566778899aabbccddeeff')
const identity = { timeline, generation: 3, lsnStart: 1000 as Lsn, lsnEnd: 2_000_000 as Lsn }

interface Found {
  lsn: number
  flags: number
  text: string
}

function entriesOf(
  reader: LayerReader,
  handle: number,
  after: number,
  upTo: number,
  fromInit = false,
): Found[] {
  const found: Found[] = []
  reader.forEachEntry(
    handle,
    after,
    upTo,
    (buf, start, end, lsn, flags) => found.push({ lsn, flags, text: buf.toString('latin1', start, end) }),
    fromInit,
  )
  return found
}

function add(writer: DeltaLayerWriter, lsn: number, text: string, flags = 0): void {
  const bytes = Buffer.from(`<<${text}>>`, 'latin1')
  writer.addEntry(lsn, flags, bytes, 2, text.length)
}

t.test('what was written is read again, page by page and LSN by LSN', async t => {
  const path = join(t.testdir(), 'layer')
  const writer = new DeltaLayerWriter(path, identity)
  writer.beginPage(1, 7)
  add(writer, 1001, 'first')
  add(writer, 1001, 'second of the same mini-transaction')
  add(writer, 1500, 'init', 1)
  add(writer, 1500, 'after it')
  add(writer, 1_900_000, 'late')
  writer.beginPage(1, 8)
  writer.beginPage(0xfffffff0, 0xffffffff)
  add(writer, 2_000_000, 'x'.repeat(1_200_000), 2)
  const summary = writer.finish({
    catalogueEvents: [{ kind: 'size', lsn: 1500 as Lsn, space: 1, pages: 64 }],
    timeSamples: [
      { lsn: 1500 as Lsn, timeUs: 1_700_000_000_000_000 },
      { lsn: 1600 as Lsn, timeUs: 1_600_000_000_000_000 },
    ],
  })
  t.match(summary, {
    kind: 1,
    lsnStart: 1000,
    lsnEnd: 2_000_000,
    pages: 2,
    entries: 6,
    first: { space: 1, page: 7 },
    last: { space: 0xfffffff0, page: 0xffffffff },
    minTimeUs: 1_600_000_000_000_000,
    maxTimeUs: 1_700_000_000_000_000,
  })
  t.equal(summary.bytes, readFileSync(path).length)

  const reader = LayerReader.open(path)
  t.teardown(() => reader.close())
  t.equal(reader.findPage(1, 8), -1, 'a page without entries leaves no trace')
  const page = reader.findPage(1, 7)
  t.same([reader.firstLsn(page), reader.lastLsn(page), reader.initLsn(page)], [1001, 1_900_000, 1500])
  t.same(
    entriesOf(reader, page, 1000, 2_000_000).map(e => e.text),
    ['first', 'second of the same mini-transaction', 'init', 'after it', 'late'],
  )
  t.same(
    entriesOf(reader, page, 1000, 1_899_999, true),
    [
      { lsn: 1500, flags: 1, text: 'init' },
      { lsn: 1500, flags: 0, text: 'after it' },
    ],
    'with fromInit, reading begins at the last init entry',
  )
  t.same(
    entriesOf(reader, page, 1000, 1499, true).map(e => e.text),
    ['first', 'second of the same mini-transaction'],
    'an init entry beyond the range does not count',
  )
  t.same(
    entriesOf(reader, page, 1500, 3_000_000).map(e => e.text),
    ['late'],
  )
  t.same(entriesOf(reader, page, 1_900_000, 3_000_000), [])
  const big = reader.findPage(0xfffffff0, 0xffffffff)
  t.equal(entriesOf(reader, big, 0, 2_000_000)[0]?.text.length, 1_200_000)
  t.same(reader.catalogueEvents(), [{ kind: 'size', lsn: 1500, space: 1, pages: 64 }])
  t.same(
    reader.timeSamples().map(s => s.lsn),
    [1500, 1600],
  )
})

t.test('a page with more entries than a block holds is entered near the LSN asked for', async t => {
  const path = join(t.testdir(), 'layer')
  const writer = new DeltaLayerWriter(path, { ...identity, blockBytes: 1024 })
  writer.beginPage(4, 1)
  add(writer, 1001, 'before')
  writer.beginPage(5, 5)
  for (let i = 0; i < 2000; i++) add(writer, 1100 + i * 10, `entry ${i}`, i === 1500 ? 1 : 0)
  writer.beginPage(6, 1)
  add(writer, 1001, 'behind')
  writer.finish()
  const reader = LayerReader.open(path)
  t.teardown(() => reader.close())
  t.ok(reader.blockCount > 20)
  const handle = reader.findPage(5, 5)
  for (const i of [0, 1, 77, 500, 1499, 1500, 1501, 1999]) {
    const lsn = 1100 + i * 10
    t.same(entriesOf(reader, handle, lsn - 1, lsn + 9), [
      { lsn, flags: i === 1500 ? 1 : 0, text: `entry ${i}` },
    ])
  }
  t.equal(entriesOf(reader, handle, 0, 2_000_000).length, 2000)
  t.equal(entriesOf(reader, handle, 0, 2_000_000, true).length, 500)
  t.same(
    entriesOf(reader, reader.findPage(6, 1), 0, 2_000_000).map(e => e.text),
    ['behind'],
  )
})

t.test('an empty layer is a layer', async t => {
  const path = join(t.testdir(), 'layer')
  const summary = new DeltaLayerWriter(path, identity).finish()
  t.equal(summary.first, undefined)
  const reader = LayerReader.open(path)
  t.equal(reader.pages, 0)
  t.equal(reader.findPage(0, 0), -1)
  reader.close()
})

t.test('the writer refuses what is out of order, and abort leaves nothing behind', async t => {
  const path = join(t.testdir(), 'layer')
  const writer = new DeltaLayerWriter(path, identity)
  t.throws(() => add(writer, 1001, 'no page yet'))
  writer.beginPage(1, 7)
  add(writer, 1100, 'a')
  t.throws(() => add(writer, 1099, 'b'), /LSN 1099 .* after LSN 1100/)
  t.throws(() => add(writer, 2_000_001, 'b'))
  t.throws(() => writer.beginPage(1, 7))
  t.throws(() => writer.beginPage(0, 9))
  t.throws(() => new DeltaLayerWriter(path, identity), 'a file that exists is not overwritten')
  writer.abort()
  t.notOk(existsSync(path))
})

t.test('every damaged byte is noticed, and the error names file and byte', async t => {
  const dir = t.testdir()
  const path = join(dir, 'layer')
  const writer = new DeltaLayerWriter(path, { ...identity, blockBytes: 1024 })
  for (let page = 0; page < 20; page++) {
    writer.beginPage(9, page)
    for (let i = 0; i < 10; i++) add(writer, 1100 + i, `page ${page} entry ${i}`)
  }
  writer.finish({ timeSamples: [{ lsn: 1100 as Lsn, timeUs: 5 }] })
  const good = readFileSync(path)
  const readAll = (): string => {
    const reader = LayerReader.open(path)
    try {
      let all = ''
      for (let h = 0; h < reader.pages; h++) all += JSON.stringify(entriesOf(reader, h, 0, 2_000_000))
      return all + JSON.stringify([reader.timeSamples(), reader.catalogueEvents()])
    } finally {
      reader.close()
    }
  }
  const expected = readAll()
  let noticed = 0
  for (let at = 0; at < good.length; at++) {
    const bad = Buffer.from(good)
    bad[at] = bad[at]! ^ (1 << (at % 8))
    writeFileSync(path, bad)
    try {
      if (readAll() === expected) t.fail(`a flipped bit in byte ${at} went unnoticed`)
    } catch (error) {
      if (!(error instanceof PalimpsestError) || error.kind !== 'corrupt' || !error.message.includes(path))
        throw error
      noticed++
    }
  }
  t.equal(noticed, good.length)
  let short = 0
  for (let length = 0; length < good.length; length += 7) {
    writeFileSync(path, good.subarray(0, length))
    try {
      readAll()
    } catch (error) {
      if (error instanceof PalimpsestError && error.kind === 'corrupt') short++
    }
  }
  t.equal(short, Math.ceil(good.length / 7), 'a file cut short is noticed')
})
