/**
 * Pages of whose life an import sees only the end. InnoDB does not write out a page that is free again, and takes its checkpoint
 * past it; so the file has blanks (or an older version) there, and the redo changes that no page is there for, then FREE_PAGE.
 */
import t from 'tap'
import { RecordType } from '../../parser/record-decoder.ts'
import { goldenLog, goldenReplay, Rig, TIMELINE } from '../support/page-server-rig.ts'
import { mtr, record, varint } from '../support/redo-builder.ts'

const LOST = { space: 0, page: 9 }
const OTHER = { space: 0, page: 8 }

t.test('changes of a page that was never written, and that is freed', async t => {
  const log = goldenLog('16k')
  const rig = new Rig({ flushBytes: 1 << 20 })
  t.teardown(() => rig.destroy())
  await rig.start()
  await rig.create(log.begin, log.pageSize)
  const replay = goldenReplay('16k')
  t.ok(replay.spaces.get(LOST.space)!.pages.delete(LOST.page))
  await rig.import(replay, log.begin)

  const append = async (type: number, id: typeof LOST, ...payload: Uint8Array[]): Promise<number> => {
    rig.wal.append(TIMELINE, mtr([record(type, id, ...payload)]))
    const lsn = rig.wal.end(TIMELINE)
    await rig.waitFor(lsn)
    return lsn
  }
  const page = async (lsn: number, { space, page }: typeof LOST) => (await rig.pages(lsn, [[space, page]]))[0]
  const write = Uint8Array.from([...varint(100), 1, 2, 3, 4])

  const changed = await append(RecordType.WRITE, LOST, write)
  await append(RecordType.WRITE, OTHER, write)
  const freed = await append(RecordType.FREE_PAGE, LOST)
  const freedOther = await append(RecordType.FREE_PAGE, OTHER)
  const check = async (when: string) => {
    t.equal(await page(changed, LOST), undefined, `before it was freed it is missed, ${when}`)
    const blank = await page(freed, LOST)
    t.ok(
      blank?.every(byte => byte === 0),
      `freed, it is blank, and no damage, ${when}`,
    )
    const other = await page(freedOther, OTHER)
    t.same(other?.subarray(100, 104), [1, 2, 3, 4], `one that was there keeps its bytes, ${when}`)
  }
  await check('from memory')
  await rig.checkpoint()
  await check('from a layer')

  const again = await append(RecordType.INIT_PAGE, LOST)
  await append(RecordType.WRITE, LOST, write)
  const end = rig.wal.end(TIMELINE)
  t.same((await page(end, LOST))?.subarray(100, 104), [1, 2, 3, 4], 'in use again')
  t.ok(again > freed)
  await check('with redo behind it')
})
