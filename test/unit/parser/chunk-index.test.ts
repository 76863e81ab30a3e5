import t from 'tap'
import { ChunkIndexer } from '../../../parser/chunk-index.ts'
import { LOG_START_OFFSET, parseLogFileHead } from '../../../parser/log-file.ts'
import { MtrScanner, ScanResult } from '../../../parser/mtr-scanner.ts'
import { ExtendedSubtype, RecordType } from '../../../parser/record-decoder.ts'
import type { Lsn } from '../../../protocol/ids.ts'
import { ChunkIndexView } from '../../support/chunk-index-view.ts'
import { firstDifference } from '../../support/compare-index.ts'
import { mtr, record, varint } from '../../support/redo-builder.ts'
import { loadGoldenLog, loadVariety, PAGE_SIZE_NAMES } from '../../support/redo-fixtures.ts'
import { referenceIndex } from '../../support/reference-index.ts'

const lsn = (value: number) => value as Lsn
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
  for (const size of ['16k', '64k'] as const)
    for (const chunkBytes of [3000, 65_536, 1 << 20]) {
      const log = loadGoldenLog(size)
      const { firstLsn } = parseLogFileHead(log)
      let start = LOG_START_OFFSET
      let wrong: string | undefined
      let chunks = 0
      for (const end of chunkEnds(log, start, chunkBytes)) {
        const begin = lsn(firstLsn + start - LOG_START_OFFSET)
        const result = indexer.index(log, start, end, begin)
        wrong ??= firstDifference(indexer, result, referenceIndex(log, start, end, begin), begin, start)
        start = end
        chunks++
      }
      t.equal(wrong, undefined, `${size} in ${chunks} chunks`)
    }
})

t.test('every shape of mini-transaction, whole and one at a time', async t => {
  const indexer = new ChunkIndexer({ hashSeed: 12345 })
  for (const size of PAGE_SIZE_NAMES) {
    const bytes = loadVariety(size)
    const result = indexer.index(bytes, 0, bytes.length, lsn(999))
    const reference = referenceIndex(bytes, 0, bytes.length, 999)
    t.equal(firstDifference(indexer, result, reference, 999, 0), undefined, size)
    let start = 0
    let wrong: string | undefined
    for (const end of chunkEnds(bytes, 0, 1)) {
      const one = indexer.index(bytes, start, end, lsn(5))
      wrong ??= firstDifference(indexer, one, referenceIndex(bytes, start, end, 5), 5, start)
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
  const indexer = new ChunkIndexer()
  const result = indexer.index(bytes, 0, bytes.length, lsn(1000))
  t.match(result, { mtrs: 3, records: 13, entries: 7, pages: 4 })
  t.same(
    result.events.map(e => [e.kind, e.lsn > 1000]),
    [
      ['modify', true],
      ['trim', true],
      ['size', true],
    ],
  )
  t.equal(result.events.at(-1)!.lsn, 1000 + bytes.length)
  const view = new ChunkIndexView(indexer)
  t.same([...view.pageSpace], [2, 6, 7, 7])
  t.same([...view.pageNumber], [0, 9, 3, 4])
})

t.test('an empty chunk', async t => {
  const indexer = new ChunkIndexer()
  const bytes = loadVariety('16k')
  indexer.index(bytes, 0, bytes.length, lsn(1))
  t.match(indexer.index(bytes, 5, 5, lsn(1)), { mtrs: 0, records: 0, entries: 0, pages: 0, events: [] })
  t.equal(new ChunkIndexView(indexer).pageCount, 0)
})

t.test('many pages and many entries: the working memory grows', async t => {
  const parts = []
  for (let i = 0; i < 9000; i++)
    parts.push(mtr([record(RecordType.INIT_PAGE, at(i % 3, i * 7)), write(at(0xfffffff0, 0xfffffff0 - i))]))
  const bytes = Buffer.concat(parts)
  const indexer = new ChunkIndexer()
  const result = indexer.index(bytes, 0, bytes.length, lsn(1))
  t.match(result, { entries: 18_000, pages: 18_000 })
  t.equal(firstDifference(indexer, result, referenceIndex(bytes, 0, bytes.length, 1), 1, 0), undefined)
})

t.test('corruption: nothing but an error with LSN and offset', async t => {
  const good = mtr([write(at(7, 3))])
  const indexer = new ChunkIndexer()
  const fails = (bytes: Uint8Array, message: RegExp, name: string) =>
    t.throws(
      () => indexer.index(bytes, 0, bytes.length, lsn(5000)),
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
  t.throws(() => indexer.index(good, 0, good.length + 1, lsn(1)), RangeError)
  t.throws(() => indexer.index(good, 5, 4, lsn(1)), RangeError)
  t.match(indexer.index(good, 0, good.length, lsn(1)), { entries: 1 }, 'and it goes on working')
})
