import { openSync, writeSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { toLsn } from '../../../protocol/ids.ts'
import { type PageImage, type ReadPagesOptions, SpaceReader } from '../../../server/datadir/page-reader.ts'
import { scanDatadir } from '../../../server/datadir/scan.ts'
import { fakeDatadir, fakeSpace } from '../../support/fake-datadir.ts'

const SIZE = 16384

async function readAll(dir: string, space: number, options: ReadPagesOptions = {}): Promise<PageImage[]> {
  const found = (await scanDatadir(dir, { live: options.live ?? false })).spaces.find(s => s.space === space)!
  const reader = (await SpaceReader.open(found))!
  try {
    const images: PageImage[] = []
    for await (const batch of reader.pages(options)) images.push(...batch.images)
    return images
  } finally {
    await reader.close()
  }
}

t.test('gives every page that holds something, with its LSN', async t => {
  const file = fakeSpace({ space: 5, pages: 150, lsn: 1000 })
  file.fill(0, 70 * SIZE, 80 * SIZE)
  const dir = fakeDatadir(t.testdir(), { 'db/t.ibd': file })
  const images = await readAll(dir, 5)
  t.strictSame(
    images.map(i => i.page),
    Array.from({ length: 150 }, (_, i) => i).filter(i => i < 70 || i >= 80),
  )
  t.ok(images.every(i => i.lsn === 1000 + i.page))
  t.ok(Buffer.from(images[20]!.bytes).equals(file.subarray(20 * SIZE, 21 * SIZE)))
  const changed = await readAll(dir, 5, { afterLsn: toLsn(1100) })
  t.strictSame([changed[0]!.page, changed.length], [101, 49])
  const unchanged: number[] = []
  await readAll(dir, 5, { afterLsn: toLsn(1002), onUnchanged: page => unchanged.push(page) })
  t.strictSame(unchanged, [0, 1, 2])
  const moved = fakeDatadir(t.testdir(), { 'db/m.ibd': fakeSpace({ space: 6, pages: 3, lsn: 0 }) })
  const imported = await readAll(moved, 6, { afterLsn: toLsn(1) })
  t.strictSame(
    imported.map(i => i.page),
    [0, 2],
    'an LSN of 0 is what IMPORT TABLESPACE writes',
  )
})

t.test('damage counts only where the page counts', async t => {
  const file = fakeSpace({ space: 5, pages: 100, free: [50], fspSize: 90 })
  for (const page of [50, 95]) file.fill(0xff, page * SIZE + 400, page * SIZE + 500)
  const dir = fakeDatadir(t.testdir(), { 'db/t.ibd': file })
  const skipped: number[] = []
  const images = await readAll(dir, 5, { onSkip: page => skipped.push(page) })
  t.strictSame(skipped, [50, 95], 'a free page, and one beyond the end of the tablespace')
  t.equal(images.length, 98)

  file.fill(0xff, 60 * SIZE + 400, 60 * SIZE + 500)
  const damaged = fakeDatadir(t.testdir(), { 'db/t.ibd': file })
  await t.rejects(readAll(damaged, 5), {
    kind: 'corrupt',
    message: /db\/t\.ibd: page 60 of tablespace 5 is damaged: full_crc32 checksum/,
  })
})

t.test('a page of another number is damage', async t => {
  const file = fakeSpace({ space: 5, pages: 10 })
  file.copy(file, 4 * SIZE, 3 * SIZE, 4 * SIZE)
  const dir = fakeDatadir(t.testdir(), { 'db/t.ibd': file })
  await t.rejects(readAll(dir, 5), { message: /page 4 .* its header says that it is page 3/ })
})

t.test('a page that is being written is read again until it is whole', async t => {
  const file = fakeSpace({ space: 5, pages: 100 })
  const whole = Buffer.from(file.subarray(30 * SIZE, 31 * SIZE))
  file.fill(0x77, 30 * SIZE + 8192, 31 * SIZE)
  const dir = fakeDatadir(t.testdir(), { 'db/t.ibd': file })
  const fd = openSync(join(dir, 'db/t.ibd'), 'r+')
  const timer = setTimeout(() => writeSync(fd, whole, 0, SIZE, 30 * SIZE), 60)
  t.teardown(() => clearTimeout(timer))
  const images = await readAll(dir, 5, { live: true })
  t.equal(images.length, 100)
  t.ok(Buffer.from(images[30]!.bytes).equals(whole))
})

t.test('a file that has vanished is no error', async t => {
  const dir = fakeDatadir(t.testdir(), { 'db/t.ibd': fakeSpace({ space: 5, pages: 4 }) })
  const space = (await scanDatadir(dir)).spaces.find(s => s.space === 5)!
  const { rmSync } = await import('node:fs')
  rmSync(join(dir, 'db/t.ibd'))
  t.equal(await SpaceReader.open(space), undefined)
})
