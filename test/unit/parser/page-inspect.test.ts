import { join } from 'node:path'
import t from 'tap'
import { doublewriteAreas, ExtentMap } from '../../../parser/extent-map.ts'
import { PAGE_N_RECS, read4, stampChecksum, write2, write4 } from '../../../parser/page-format.ts'
import { inspectPage, inspectPageObject } from '../../../parser/page-inspect.ts'
import type { IndexInspection } from '../../../parser/page-inspect-index.ts'
import { parseSpaceFlags, readSpaceFormat } from '../../../parser/space-flags.ts'
import { readTarZst } from '../../support/fixture-tar.ts'

const FILES = readTarZst(join(import.meta.dirname, '../../fixtures/golden/zoo-4k.final.tar.zst'))
const FORMAT = parseSpaceFlags(0x13)
const pageOf = (file: string, n: number): Uint8Array =>
  Uint8Array.from(FILES.get(file)!.subarray(n * 4096, (n + 1) * 4096))

t.test('every page in use of a real datadir is without problems', async t => {
  const kinds = new Map<string, number>()
  for (const [name, content] of FILES) {
    const format = readSpaceFormat(content)
    const read = (n: number): Uint8Array => content.subarray(n * 4096, (n + 1) * 4096)
    const extents = new ExtentMap(format, read)
    const doublewrite = name === 'ibdata1' ? doublewriteAreas(read(5), format) : []
    for (let n = 0; n < content.length / 4096; n++) {
      if (extents.isFree(n) || doublewrite.some(area => n >= area.start && n < area.end)) continue
      const found = inspectPageObject(read(n), format)
      const kind = found.detail?.kind ?? found.typeName
      kinds.set(kind, (kinds.get(kind) ?? 0) + 1)
      if (found.problems.length) t.fail(`${name}:${n}: ${found.problems.join('; ')}`)
      // The doublewrite segment's fragment pages are allocated and never written.
      if (found.page !== n && found.typeName !== 'never initialised')
        t.fail(`${name}:${n} says it is page ${found.page}`)
    }
  }
  for (const kind of [
    'index',
    'undo',
    'extents',
    'inodes',
    'blob',
    'trx_sys',
    'rollback segment',
    'dictionary header',
  ])
    t.ok(kinds.get(kind), kind)
})

t.test('page 0 as an object', async t => {
  const found = inspectPageObject(pageOf('ibdata1', 0), FORMAT)
  t.match(found, {
    space: 0,
    page: 0,
    typeName: 'FSP_HDR',
    checksumOk: true,
    checksum: 'ok (full_crc32)',
    detail: { kind: 'extents', header: { spaceId: 0, size: 3072, flagsText: '4 KiB pages, full_crc32' } },
  })
  t.same(JSON.parse(JSON.stringify(found)), found, 'survives JSON')
})

t.test('an index page as text', async t => {
  const text = inspectPage(pageOf('mysql/innodb_table_stats.ibd', 3), FORMAT)
  t.match(text, /^page 3:3, 4096 bytes, INDEX\n/)
  t.match(text, /PAGE_LEVEL +0 \(leaf\)/)
  t.match(text, /infimum/)
  t.match(text, /supremum/)
  t.notMatch(text, /problems/)
})

t.test('damage is listed, not thrown', async t => {
  const good = inspectPageObject(pageOf('mysql/innodb_table_stats.ibd', 3), FORMAT).detail as IndexInspection
  const damaged = (change: (page: Uint8Array, index: IndexInspection) => void): readonly string[] => {
    const page = pageOf('mysql/innodb_table_stats.ibd', 3)
    change(page, good)
    stampChecksum(page, FORMAT)
    return inspectPageObject(page, FORMAT).problems
  }
  const second = good.chain[2]!
  const cases: [string, (page: Uint8Array) => void, RegExp][] = [
    [
      'a loop',
      page => write2(page, second.offset - 2, 0x10000 + good.chain[1]!.offset - second.offset),
      /comes back/,
    ],
    ['an early end', page => write2(page, second.offset - 2, 0), /without reaching supremum/],
    ['a wild pointer', page => write2(page, second.offset - 2, 3900), /outside the heap/],
    ['a wrong count', page => write2(page, PAGE_N_RECS, 999), /999 records, the chain has/],
    [
      'a wrong owner',
      page => {
        page[good.chain.at(-1)!.offset - 5] = 7
      },
      /owns 7 records/,
    ],
    ['a wild slot', page => write2(page, 4096 - 10, 1), /not in the record chain/],
    ['too many slots', page => write2(page, 38, 5000), /do not fit the page|not in the record chain/],
    ['a free list into nowhere', page => write2(page, 44, 4000), /free list: leads to 4000/],
  ]
  for (const [name, change, message] of cases)
    t.ok(
      damaged(change).some(p => message.test(p)),
      name,
    )

  const torn = pageOf('mysql/innodb_table_stats.ibd', 3)
  torn[2000]! ^= 1
  t.match(inspectPageObject(torn, FORMAT), { checksumOk: false, problems: [/full_crc32 checksum is/] })
  t.match(inspectPageObject(torn.subarray(0, 1000), FORMAT).problems[0], /1000 bytes given/)
  t.match(inspectPage(new Uint8Array(4096), FORMAT), /never initialised/)
})

t.test('page_compressed pages are looked into', async t => {
  const file = FILES.get('zoo/pcomp.ibd')!
  const format = readSpaceFormat(file)
  for (let n = 3; n < file.length / 4096; n++) {
    const found = inspectPageObject(pageOf('zoo/pcomp.ibd', n), format)
    if (!found.pageCompressed) continue
    t.match(found, { typeName: 'INDEX', detail: { kind: 'index' }, problems: [] })
    t.match(inspectPage(pageOf('zoo/pcomp.ibd', n), format), /page_compressed +yes/)
    return
  }
  t.fail('no compressed page found')
})

t.test('extents', async t => {
  const file = FILES.get('zoo/dynamic_.ibd')!
  const read = (n: number): Uint8Array => file.subarray(n * 4096, (n + 1) * 4096)
  const extents = new ExtentMap(FORMAT, read)
  t.equal(extents.size, file.length / 4096)
  t.equal(extents.isFree(0), false)
  t.equal(extents.isFree(3), false)
  t.equal(extents.isFree(extents.freeLimit), true)
  t.equal(new ExtentMap(FORMAT, () => undefined).isFree(0), true, 'nothing there')
  const page0 = Uint8Array.from(read(0))
  write4(page0, 150 + 20, 0)
  t.equal(new ExtentMap(FORMAT, () => page0).isFree(3), true, 'an extent that was never taken up')
  t.equal(read4(page0, 150 + 20), 0)
  t.same(doublewriteAreas(new Uint8Array(4096), FORMAT), [], 'no doublewrite area without its magic number')
})
