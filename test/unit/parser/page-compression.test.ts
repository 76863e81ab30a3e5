import { join } from 'node:path'
import t from 'tap'
import {
  compressPage,
  decompressPage,
  isPageCompressed,
  UnsupportedCompressionError,
} from '../../../parser/page-compression.ts'
import {
  FIL_PAGE_OFFSET,
  FIL_PAGE_TYPE,
  stampChecksum,
  verifyPage,
  write2,
  write4,
  writePageLsn,
} from '../../../parser/page-format.ts'
import { parseSpaceFlags, readSpaceFormat } from '../../../parser/space-flags.ts'
import { toLsn } from '../../../protocol/ids.ts'
import { readTarZst } from '../../support/fixture-tar.ts'

const FULL = parseSpaceFlags(0x15 | (1 << 5))
const OLD = parseSpaceFlags(0x21 | (1 << 16))

function sample(size: number, noise = false): Uint8Array {
  const page = new Uint8Array(size)
  let x = 1
  for (let i = 0; i < size; i++) {
    x = (Math.imul(x, 1103515245) + 12345) & 0x7fffffff
    page[i] = noise ? x >> 16 : (i / 50) & 0xff
  }
  write4(page, FIL_PAGE_OFFSET, 9)
  write2(page, FIL_PAGE_TYPE, 17855)
  write4(page, 34, 3)
  page.fill(0, 0, 4)
  page.fill(0, 26, 34)
  writePageLsn(page, toLsn(123456))
  return page
}

for (const [name, format] of [
  ['full_crc32', FULL],
  ['older', OLD],
] as const) {
  t.test(`${name}: there and back`, async t => {
    const page = sample(16384)
    const written = compressPage(page, format, 't', { blockSize: 4096 })
    t.ok(isPageCompressed(written.bytes, format))
    t.equal(written.length, 4096, 'rounded up to the block size')
    t.ok(written.bytes.subarray(written.length).every(byte => byte === 0))
    t.ok(verifyPage(written.bytes, format).ok)
    const shared = new Uint8Array(new SharedArrayBuffer(16384))
    shared.set(written.bytes)
    const back = Uint8Array.from(decompressPage(shared, format, 't'))
    stampChecksum(back, format)
    t.same(back, page)
  })

  t.test(`${name}: what does not get smaller stays as it is`, async t => {
    const page = sample(16384, true)
    const written = compressPage(page, format, 't')
    t.equal(written.bytes, page)
    t.equal(written.length, 16384)
    t.notOk(isPageCompressed(written.bytes, format))
    t.equal(decompressPage(page, format, 't'), page)
    t.ok(verifyPage(page, format).ok)
  })

  t.test(`${name}: some pages are never compressed`, async t => {
    // Elsewhere than on their own places the older format mends types 8 and 9 before it compresses.
    for (const type of format.fullCrc32 ? [0, 8, 9] : [0]) {
      const page = sample(16384)
      write2(page, FIL_PAGE_TYPE, type)
      t.equal(compressPage(page, format, 't').bytes, page, `type ${type}`)
    }
    const page0 = sample(16384)
    write4(page0, FIL_PAGE_OFFSET, 0)
    t.equal(compressPage(page0, format, 't').bytes, page0)
  })

  t.test(`${name}: damage is told`, async t => {
    const good = compressPage(sample(16384), format, 't').bytes
    for (const at of [50, 60, 80]) {
      const bad = Uint8Array.from(good)
      bad[at]! ^= 0xff
      t.throws(() => decompressPage(bad, format, 't'), {
        name: 'CorruptPageError',
        message: /corrupt page 9 of t: page_compressed/,
      })
    }
  })
}

t.test('the algorithms that are not built in are named', async t => {
  const lz4 = parseSpaceFlags(0x15 | (2 << 5))
  const page = compressPage(sample(16384), FULL, 't').bytes
  t.throws(() => decompressPage(page, lz4, 'shop/orders.ibd'), {
    name: 'UnsupportedCompressionError',
    message: /shop\/orders\.ibd is page_compressed with lz4/,
  })
  t.throws(() => compressPage(sample(16384), lz4, 'shop/orders.ibd'), UnsupportedCompressionError)
  const old = compressPage(sample(16384), OLD, 't').bytes
  old[33] = 6
  t.throws(() => decompressPage(old, OLD, 'x'), { message: /snappy/ })
  old[27] = 1
  t.throws(() => decompressPage(old, OLD, 'x'), { message: /not a number of 16 bits/ })
})

t.test('a stream that would inflate to more than a page is refused', async t => {
  const bigger = parseSpaceFlags(0x17 | (1 << 5))
  const page = compressPage(sample(65536), bigger, 't').bytes
  t.throws(() => decompressPage(page, FULL, 't'), { name: 'CorruptPageError' })
})

t.test('pages that a server compressed', async t => {
  const files = readTarZst(join(import.meta.dirname, '../../fixtures/golden/zoo-4k.final.tar.zst'))
  const content = files.get('zoo/pcomp.ibd')!
  const format = readSpaceFormat(content)
  let pages = 0
  for (let at = 0; at < content.length; at += 4096) {
    const page = content.subarray(at, at + 4096)
    if (!isPageCompressed(page, format)) continue
    pages++
    const plain = decompressPage(page, format, 'pcomp')
    const ours = decompressPage(compressPage(Uint8Array.from(plain), format, 'pcomp').bytes, format, 'pcomp')
    if (Buffer.compare(plain, ours) !== 0) t.fail(`page ${at / 4096}`)
  }
  t.ok(pages > 300, `${pages} pages`)
})
