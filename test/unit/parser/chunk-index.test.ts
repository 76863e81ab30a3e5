import t from 'tap'
import { ChunkIndexer, ChunkIndexView } from '../../../parser/chunk-index.ts'
import { LOG_START_OFFSET, parseLogFileHead } from '../../../parser/log-file.ts'
import { MtrScanner, ScanResult } from '../../../parser/mtr-scanner.ts'
import { ExtendedSubtype, RecordType } from '../../../parser/record-decoder.ts'
import type { Lsn } from '../../../protocol/ids.ts'
import { firstDifference } from '../../support/compare-index.ts'
import { mtr, record, varint } from '../../support/redo-builder.ts'
import { loadGoldenLog, loadVariety, PAGE_SIZE_NAMES } from '../../support/redo-fixtures.ts'
import { referenceIndex } from '../../support/reference-index.ts'

const lsn = (value: number) => value as Lsn
const words = (count: number) => new Uint32Array(new SharedArrayBuffer(4 * count))
const at = (space: number, page: number) => ({ space, page })
const write = (id: { space: number; page: number } | null, offset = 50) =>
  record(RecordType.WRITE, id, varint(offset), Uint8Array.of(1, 2, 3))

/** Ends of mini-transactions at least `bytes` apart. */
function chunkEnds(log: Uint8Array, start: number, bytes: number): number[] {
  const scanner = new MtrScanner()
  const ends = []
  let last = start
  let pos = start
  while (scanner.scan(log, pos, log.length, lsn(0), null) === ScanResult.COMPLETE) {
    pos = scanner.mtrEnd
    if (pos - last >= bytes) {
      ends.push(pos)
      last = pos
    }
  }
  if (pos > last) ends.push(pos)
  return ends
}

t.test('recorded logs: the same index as the reference, whatever the size of the chunks', async t => {
  const indexer = new ChunkIndexer()
  const region = words(1 << 22)
  for (const size of ['16k', '64k'] as const)
    for (const chunkBytes of [3000, 65_536, 1 << 20]) {
      const log = loadGoldenLog(size)
      const { firstLsn } = parseLogFileHead(log)
      let start = LOG_START_OFFSET
      let wrong: string | undefined
      let chunks = 0
      for (const end of chunkEnds(log, start, chunkBytes)) {
        const begin = lsn(firstLsn + start - LOG_START_OFFSET)
        const result = indexer.index(log, start, end, begin, region)
        wrong ??=
          result.status === 'ok'
            ? firstDifference(region, referenceIndex(log, start, end, begin), begin, 0)
            : 'small'
        start = end
        chunks++
      }
      t.equal(wrong, undefined, `${size} in ${chunks} chunks`)
    }
})

t.test('every shape of mini-transaction, whole and one at a time', async t => {
  const indexer = new ChunkIndexer({ hashSeed: 12345 })
  const region = words(1 << 20)
  for (const size of PAGE_SIZE_NAMES) {
    const bytes = loadVariety(size)
    t.equal(indexer.index(bytes, 0, bytes.length, lsn(999), region).status, 'ok')
    t.equal(firstDifference(region, referenceIndex(bytes, 0, bytes.length, 999), 999, 0), undefined, size)
    let start = 0
    let wrong: string | undefined
    for (const end of chunkEnds(bytes, 0, 1)) {
      indexer.index(bytes, start, end, lsn(5), region, start)
      wrong ??= firstDifference(region, referenceIndex(bytes, start, end, 5), 5, start)
      start = end
    }
    t.equal(wrong, undefined, `${size}, one at a time`)
  }
})

t.test('what an entry is', async t => {
  const bytes = Buffer.concat([
    mtr([
      record(RecordType.FILE_MODIFY, null, varint(7), varint(0), new TextEncoder().encode('./a/b.ibd')),
      write(at(7, 3)),
      write(null),
      write(at(7, 4)),
      write(at(7, 4), 20),
      record(RecordType.INIT_PAGE, at(7, 4)),
      write(null),
      write(at(7, 3)),
    ]),
    mtr([record(RecordType.FREE_PAGE, at(7, 3)), write(at(6, 9))]),
    mtr([
      record(RecordType.EXTENDED, at(2, 640), Uint8Array.of(ExtendedSubtype.TRIM_PAGES)),
      record(RecordType.INIT_PAGE, at(2, 0)),
      record(RecordType.WRITE, null, varint(46 - 24), Uint8Array.of(0, 0, 2, 0x80)),
    ]),
  ])
  const region = words(200)
  const result = new ChunkIndexer().index(bytes, 0, bytes.length, lsn(1000), region)
  if (result.status !== 'ok') throw new Error(result.status)
  t.match(result, { mtrs: 3, records: 13, entries: 7, pages: 4, words: 4 + 4 * 8 + 7 * 4 })
  t.same(
    result.events.map(e => [e.kind, e.lsn > 1000]),
    [
      ['modify', true],
      ['trim', true],
      ['size', true],
    ],
  )
  t.equal(result.events.at(-1)!.lsn, 1000 + bytes.length)
  const view = new ChunkIndexView(region)
  t.same([...view.pageSpace], [2, 6, 7, 7])
  t.same([...view.pageNumber], [0, 9, 3, 4])
  t.equal(view.findPage(7, 5), -1)
  t.equal(view.findPage(0, 0), -1)
  t.equal(view.lowerBound(3, 0), 1)
  t.equal(view.lowerBound(8, 0), 4)
})

t.test('a region that is too small says what it takes, and then works', async t => {
  const bytes = loadVariety('16k')
  const indexer = new ChunkIndexer()
  const small = indexer.index(bytes, 0, bytes.length, lsn(1), words(100))
  t.equal(small.status, 'region-too-small')
  t.equal(indexer.index(bytes, 0, bytes.length, lsn(1), words(small.words - 1)).status, 'region-too-small')
  t.equal(indexer.index(bytes, 0, bytes.length, lsn(1), words(small.words)).status, 'ok')
  t.match(
    indexer.index(bytes, 5, 5, lsn(1), words(4)),
    { status: 'ok', mtrs: 0, entries: 0, pages: 0 },
    'an empty chunk',
  )
})

t.test('many pages and many entries: the working memory grows', async t => {
  const parts = []
  for (let i = 0; i < 9000; i++)
    parts.push(mtr([record(RecordType.INIT_PAGE, at(i % 3, i * 7)), write(at(0xfffffff0, 0xfffffff0 - i))]))
  const bytes = Buffer.concat(parts)
  const region = words(1 << 18)
  const indexer = new ChunkIndexer()
  t.match(indexer.index(bytes, 0, bytes.length, lsn(1), region), {
    status: 'ok',
    entries: 18_000,
    pages: 18_000,
  })
  t.equal(firstDifference(region, referenceIndex(bytes, 0, bytes.length, 1), 1, 0), undefined)
})

t.test('corruption: nothing but an error with LSN and offset', async t => {
  const good = mtr([write(at(7, 3))])
  const region = words(1000)
  const indexer = new ChunkIndexer()
  const fails = (bytes: Uint8Array, message: RegExp, name: string) =>
    t.throws(
      () => indexer.index(bytes, 0, bytes.length, lsn(5000), region),
      { name: 'CorruptRedoError', lsn: 5000 + good.length, message },
      name,
    )
  fails(Buffer.concat([good, good.subarray(0, -1)]), /LSN \d+: a mini-transaction that is cut off/, 'cut off')
  const flipped = Uint8Array.from(good)
  flipped[5]! ^= 4
  fails(Buffer.concat([good, flipped]), /checksum is wrong/, 'bit flip')
  fails(Buffer.concat([good, new Uint8Array(9)]), /empty mini-transaction/, 'zeros')
  fails(
    Buffer.concat([good, mtr([write(at(7, 3), 5)])]),
    /outside the page/,
    'a bad record under a right checksum',
  )
  fails(
    Buffer.concat([
      good,
      mtr([record(RecordType.FILE_CREATE, null, varint(7), varint(0), Buffer.from('../x/y.ibd'))]),
    ]),
    /file name/,
    'a bad name under a right checksum',
  )
  t.throws(() => indexer.index(good, 0, good.length + 1, lsn(1), region), RangeError)
  t.throws(() => indexer.index(good, 5, 4, lsn(1), region), RangeError)
  t.match(
    indexer.index(good, 0, good.length, lsn(1), region),
    { status: 'ok', entries: 1 },
    'and it goes on working',
  )
  region[0] = 1000
  t.throws(() => new ChunkIndexView(region), RangeError, 'a header that claims too much')
})
