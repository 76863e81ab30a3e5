import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { stampChecksum, TRX_SYS_PAGE_NO, write4, writePageLsn } from '../../../parser/page-format.ts'
import { toLsn } from '../../../protocol/ids.ts'
import { DoublewriteCopies } from '../../../server/datadir/doublewrite.ts'
import { SpaceReader } from '../../../server/datadir/page-reader.ts'
import { scanDatadir } from '../../../server/datadir/scan.ts'
import { fakeDatadir, fakeSpace } from '../../support/fake-datadir.ts'

const SIZE = 16384

t.test('a torn page is taken from the doublewrite buffer, the newest sound copy', async t => {
  const table = fakeSpace({ space: 5, pages: 8 })
  const dir = fakeDatadir(t.testdir(), { 'db/t.ibd': table })
  const { format } = (await scanDatadir(dir)).spaces[0]!
  const system = readFileSync(join(dir, 'ibdata1'))
  const trxSys = system.subarray(TRX_SYS_PAGE_NO * SIZE, (TRX_SYS_PAGE_NO + 1) * SIZE)
  for (const [i, value] of [536853855, 64, 128].entries()) write4(trxSys, SIZE - 190 + 4 * i, value)
  stampChecksum(trxSys, format)
  system.fill(0, 64 * SIZE, 192 * SIZE)
  const slot = (at: number, page: number, lsn: number, text: string): void => {
    const bytes = Buffer.from(table.subarray(page * SIZE, (page + 1) * SIZE))
    bytes.write(text, 1000)
    writePageLsn(bytes, toLsn(lsn))
    stampChecksum(bytes, format)
    bytes.copy(system, at * SIZE)
  }
  slot(64, 3, 50_000, 'older')
  slot(130, 3, 60_000, 'newer')
  slot(131, 3, 70_000, 'damaged')
  system[131 * SIZE + 5000]! ^= 1
  writeFileSync(join(dir, 'ibdata1'), system)
  // The second half of page 3 never reached the disk; of page 4 there is no copy.
  table.fill(0, 3 * SIZE + 8192, 4 * SIZE)
  writeFileSync(join(dir, 'db/t.ibd'), table)

  const scan = await scanDatadir(dir)
  const copies = await DoublewriteCopies.read(scan.spaces[0]!)
  t.equal(copies.find(5, 4, format), undefined)
  const space = scan.spaces.find(s => s.space === 5)!
  const reader = (await SpaceReader.open(space))!
  t.teardown(() => reader.close())
  const rescued: number[] = []
  for await (const { images } of reader.pages({
    rescue: page => {
      rescued.push(page)
      return copies.find(5, page, space.format)
    },
  })) {
    t.strictSame(
      images.map(i => i.page),
      [0, 1, 2, 3, 4, 5, 6, 7],
    )
    t.equal(images[3]!.lsn, 60_000)
    t.equal(Buffer.from(images[3]!.bytes).toString('latin1', 1000, 1005), 'newer')
  }
  t.strictSame(rescued, [3])
})
