import t from 'tap'
import { RecordType } from '../../../parser/record-decoder.ts'
import { toLsn } from '../../../protocol/ids.ts'
import { SpaceTracker } from '../../../server/attach/space-tracker.ts'

/** A mini-transaction of file records; checksums are not looked at here. */
function mtr(...records: [type: number, space: number, name: string][]): Uint8Array {
  const bytes = records.flatMap(([type, space, name]) => {
    const payload = [space, 0, ...Buffer.from(name)]
    return payload.length < 16 ? [type | payload.length, ...payload] : [type, payload.length - 14, ...payload]
  })
  return Uint8Array.from([...bytes, 1, 0, 0, 0, 0])
}

function chunk(...mtrs: Uint8Array[]): { bytes: Uint8Array; fileMtrs: number[] } {
  const fileMtrs: number[] = []
  let at = 0
  for (const one of mtrs) {
    if (one[0]! >= 0x80) fileMtrs.push(at, at + one.length)
    at += one.length
  }
  return { bytes: Buffer.concat(mtrs), fileMtrs }
}

const LSN = toLsn(1000)
const { FILE_CREATE, FILE_MODIFY, FILE_DELETE } = RecordType
const OTHER = Uint8Array.from([0x35, 1, 4, 9, 9, 9, 1, 0, 0, 0, 0])

t.test('a tablespace that is known or being created is no news', async t => {
  const tracker = new SpaceTracker()
  tracker.know([5])
  const { bytes, fileMtrs } = chunk(
    mtr([FILE_MODIFY, 5, './d/known.ibd']),
    // InnoDB names a new tablespace just before the mini-transaction that creates it.
    mtr([FILE_MODIFY, 6, './d/new.ibd']),
    mtr([FILE_CREATE, 6, './d/new.ibd']),
    OTHER,
    mtr([FILE_MODIFY, 6, './d/new.ibd']),
  )
  t.strictSame(tracker.inspect(bytes, LSN, fileMtrs), [])
  t.strictSame(tracker.all(), [5, 6])
})

t.test('a tablespace that was discarded and is there again is', async t => {
  const tracker = new SpaceTracker()
  tracker.know([7])
  const gone = mtr([FILE_DELETE, 7, './d/t.ibd'])
  const back = mtr([FILE_MODIFY, 7, './d/t.ibd'])
  const { bytes, fileMtrs } = chunk(gone, OTHER, back, OTHER)
  t.match(tracker.inspect(bytes, LSN, fileMtrs), [
    {
      spaces: [{ space: 7, name: 'd/t.ibd', external: false }],
      at: gone.length + OTHER.length + back.length,
    },
  ])
  t.strictSame(tracker.inspect(bytes, LSN, [fileMtrs[2]!, fileMtrs[3]!]), [], 'once only')
})

t.test('the next chunk decides about the last mini-transaction of one', async t => {
  const modify = chunk(mtr([FILE_MODIFY, 8, './d/t.ibd']))
  const next = toLsn(LSN + modify.bytes.length)
  const created = new SpaceTracker()
  t.strictSame(created.inspect(modify.bytes, LSN, modify.fileMtrs), [])
  const create = chunk(mtr([FILE_CREATE, 8, './d/t.ibd']))
  t.strictSame(created.inspect(create.bytes, next, create.fileMtrs), [])

  const imported = new SpaceTracker()
  t.strictSame(imported.inspect(modify.bytes, LSN, modify.fileMtrs), [])
  const other = chunk(OTHER)
  t.match(imported.inspect(other.bytes, next, other.fileMtrs), [{ at: 0, spaces: [{ space: 8 }] }])
})

t.test('a scan that is older than a deletion does not bring the tablespace back', async t => {
  const tracker = new SpaceTracker()
  const say = (type: number): void => {
    const { bytes, fileMtrs } = chunk(mtr([type, 5, './d/t.ibd']), OTHER)
    tracker.inspect(bytes, LSN, fileMtrs)
  }
  tracker.know([5])
  tracker.beginScans()
  say(FILE_DELETE)
  tracker.know([5])
  t.notOk(tracker.knows(5))
  // DISCARD and IMPORT TABLESPACE: the same id once more.
  say(FILE_MODIFY)
  t.ok(tracker.knows(5))
  say(FILE_DELETE)
  tracker.endScans()
  tracker.know([5])
  t.ok(tracker.knows(5))
})
