import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import {
  FIL_PAGE_FILE_FLUSH_LSN,
  FIL_PAGE_LSN,
  FIL_PAGE_OFFSET,
  FIL_PAGE_SPACE_ID,
  FIL_PAGE_TYPE,
  NO_CHECKSUM_MAGIC,
  type OldChecksumAlgorithm,
  pageLsn,
  pageTypeName,
  read2,
  read4,
  stampChecksum,
  verifyPage,
  write2,
  write4,
  writePageLsn,
} from '../../../parser/page-format.ts'
import { InvalidSpaceFlagsError, parseSpaceFlags, readSpaceFormat } from '../../../parser/space-flags.ts'
import { LSN_MAX, toLsn } from '../../../protocol/ids.ts'
import { readTarZst } from '../../support/fixture-tar.ts'

const FULL_16K = parseSpaceFlags(0x15)
const OLD_16K = parseSpaceFlags(0x21)
const OLD_8K = parseSpaceFlags(0x21 | (4 << 6))
const ZIP_4K = parseSpaceFlags(0x21 | (3 << 1))

function sample(size: number): Uint8Array {
  const page = new Uint8Array(new SharedArrayBuffer(size))
  for (let i = 0; i < size; i++) page[i] = (i * 31 + (i >> 8)) & 0xff
  write4(page, FIL_PAGE_OFFSET, 77)
  write4(page, FIL_PAGE_SPACE_ID, 5)
  write2(page, FIL_PAGE_TYPE, 17855)
  writePageLsn(page, toLsn(0x123456789a))
  return page
}

t.test('tablespace flags', async t => {
  t.match(FULL_16K, {
    logicalSize: 16384,
    physicalSize: 16384,
    fullCrc32: true,
    zip: false,
    pageCompressed: 0,
  })
  t.equal(parseSpaceFlags(0x15), FULL_16K, 'equal flags give the identical object')
  t.match(parseSpaceFlags(0x13), { logicalSize: 4096, fullCrc32: true })
  t.match(parseSpaceFlags(0x17 | (1 << 5)), { logicalSize: 65536, pageCompressed: 1 })
  t.match(parseSpaceFlags(0x15 | (2 << 5)), { pageCompressed: 2 })
  t.match(parseSpaceFlags(0), { logicalSize: 16384, physicalSize: 16384, fullCrc32: false })
  t.match(OLD_8K, { logicalSize: 8192, fullCrc32: false })
  t.match(ZIP_4K, { logicalSize: 16384, physicalSize: 4096, zip: true })
  t.match(parseSpaceFlags(0x21 | (1 << 1) | (3 << 6)), { logicalSize: 4096, physicalSize: 1024, zip: true })
  t.match(parseSpaceFlags(0x21 | (1 << 16)), { pageCompressed: 1, fullCrc32: false })
  for (const flags of [
    0x11,
    0x1d,
    0x15 | (7 << 5),
    0x20,
    0x21 | (5 << 6),
    0x21 | (6 << 1),
    1 << 1,
    1 << 11,
    1 << 17,
    -1,
    1.5,
    2 ** 32,
  ])
    t.throws(() => parseSpaceFlags(flags), InvalidSpaceFlagsError, `flags ${flags}`)
  t.throws(() => readSpaceFormat(new Uint8Array(40)), { message: /cut short/ })
})

t.test('encryption information in page 0 is noticed', async t => {
  const page0 = new Uint8Array(16384)
  write4(page0, 54, 0x15)
  t.equal(readSpaceFormat(page0).encryptedHint, false)
  // 256 descriptors of 40 bytes follow the header.
  page0.set([0x73, 0x0e, 0x0c, 0x52, 0x45, 0x74], 38 + 150 + 256 * 40)
  t.equal(readSpaceFormat(page0).encryptedHint, true)
})

t.test('LSN field', async t => {
  const page = new Uint8Array(4096)
  writePageLsn(page, toLsn(2 ** 53 - 1))
  t.equal(pageLsn(page), LSN_MAX)
  writePageLsn(page, toLsn(0x1_0000_0001))
  t.equal(pageLsn(page), 0x1_0000_0001)
  page.fill(0xff, FIL_PAGE_LSN, FIL_PAGE_LSN + 8)
  t.equal(pageLsn(page), LSN_MAX, 'what is no LSN looks like one from the future')
  t.equal(pageTypeName(17855), 'INDEX')
  t.equal(pageTypeName(999), 'TYPE_999')
})

t.test('a stamped page verifies, a changed one does not', async t => {
  const cases: [string, typeof FULL_16K, OldChecksumAlgorithm, string][] = [
    ['full_crc32', FULL_16K, 'crc32', 'full_crc32'],
    ['crc32', OLD_16K, 'crc32', 'crc32'],
    ['8k crc32', OLD_8K, 'crc32', 'crc32'],
    ['innodb', OLD_16K, 'innodb', 'innodb'],
    ['none', OLD_16K, 'none', 'none'],
    ['compressed crc32', ZIP_4K, 'crc32', 'crc32'],
    ['compressed innodb', ZIP_4K, 'innodb', 'innodb'],
    ['compressed none', ZIP_4K, 'none', 'none'],
  ]
  for (const [name, format, algorithm, kind] of cases) {
    const page = sample(format.physicalSize)
    stampChecksum(page, format, algorithm)
    t.same(verifyPage(page, format), { ok: true, kind }, name)
    const again = Uint8Array.from(page)
    stampChecksum(again, format, algorithm)
    t.same(again, Uint8Array.from(page), `${name}: stamping is idempotent`)
    if (algorithm === 'none') continue
    for (const at of [4, 24, 38, 1000, format.physicalSize - 9]) {
      page[at]! ^= 0x40
      t.equal(verifyPage(page, format).ok, false, `${name}: byte ${at} changed`)
      page[at]! ^= 0x40
    }
    const zero = new Uint8Array(format.physicalSize)
    stampChecksum(zero, format, algorithm)
    t.same(verifyPage(zero, format), { ok: true, kind: 'zero page' }, `${name}: a zero page stays one`)
  }
})

t.test('mixed old checksums that InnoDB accepts', async t => {
  const page = sample(16384)
  stampChecksum(page, OLD_16K, 'innodb')
  const [field1, field2] = [read4(page, 0), read4(page, 16384 - 8)]
  write4(page, 16384 - 8, read4(page, FIL_PAGE_LSN))
  t.same(verifyPage(page, OLD_16K), { ok: true, kind: 'innodb' }, 'upper half of the LSN in the trailer')
  write4(page, 16384 - 8, NO_CHECKSUM_MAGIC)
  t.same(verifyPage(page, OLD_16K), { ok: true, kind: 'innodb' })
  write4(page, 16384 - 8, field2)
  write4(page, 0, field1 ^ 1)
  t.equal(verifyPage(page, OLD_16K).ok, false)
  write4(page, 16384 - 4, 1)
  t.match(verifyPage(page, OLD_16K), { ok: false, reason: /header and trailer differ/ })
  t.match(verifyPage(page.subarray(0, 100), OLD_16K), { ok: false, reason: /only 100 bytes/ })
})

t.test('what a flush does besides the checksum', async t => {
  const page = sample(16384)
  write2(page, FIL_PAGE_TYPE, 4711)
  stampChecksum(page, OLD_16K)
  t.equal(pageTypeName(read2(page, FIL_PAGE_TYPE)), 'UNKNOWN', 'garbage types of old files are mended')
  t.equal(
    page.subarray(FIL_PAGE_FILE_FLUSH_LSN, FIL_PAGE_SPACE_ID).join(),
    '0,0,0,0,0,0,0,0',
    'key version cleared',
  )
  const full = sample(16384)
  stampChecksum(full, FULL_16K)
  t.equal(read4(full, 0), 0)
  t.equal(read4(full, 16384 - 8), 0x3456789a, 'low half of the LSN')
})

t.test('a compressed size that is not within the page', async t => {
  const page = sample(16384)
  write2(page, FIL_PAGE_TYPE, 0x8000 | 64)
  t.match(verifyPage(page, parseSpaceFlags(0x35)), { ok: false, reason: /not within the page/ })
  write2(page, FIL_PAGE_TYPE, 0x8000)
  t.match(verifyPage(page, parseSpaceFlags(0x35)), { ok: false, reason: /not within the page/ })
})

t.test('pages that a server wrote: verified, and stamped anew to the same bytes', async t => {
  const golden = join(import.meta.dirname, '../../fixtures/golden')
  t.ok(readFileSync(join(golden, 'README.md')).length)
  let pages = 0
  for (const [name, content] of readTarZst(join(golden, 'zoo-4k.final.tar.zst'))) {
    const format = readSpaceFormat(content)
    for (let at = 0; at < content.length; at += format.physicalSize) {
      const page = content.subarray(at, at + format.physicalSize)
      const check = verifyPage(page, format)
      if (!check.ok) t.fail(`${name} page ${at / format.physicalSize}: ${check.reason}`)
      if (read2(page, FIL_PAGE_TYPE) & 0x8000) continue
      pages++
      const copy = Uint8Array.from(page)
      stampChecksum(copy, format)
      if (Buffer.compare(copy, page) !== 0)
        t.fail(`${name} page ${at / format.physicalSize} stamped differently`)
    }
  }
  t.ok(pages > 30000, `${pages} pages`)
})
