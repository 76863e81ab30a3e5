// Which prepared transactions an export takes back: the server's own, not those of XA PREPARE.
import t from 'tap'
import {
  isInternallyPrepared,
  readUndoSegments,
  UndoState,
  unprepare,
} from '../../../server/datadir/dictionary/undo-segments.ts'

const STATE_AT = 56
const LOG_AT = 200
const RSEG_PAGE = 6
const UNDO_PAGE = 9

/** Three pages of a system tablespace: the list of rollback segments, one of these, and an undo segment. */
function pages(xid: Buffer, bqualBytes = 0): Map<number, Buffer> {
  const trxSys = Buffer.alloc(16384, 0xff)
  trxSys.writeUInt32BE(0, 56)
  trxSys.writeUInt32BE(RSEG_PAGE, 60)
  const rseg = Buffer.alloc(16384, 0xff)
  rseg.writeUInt32BE(UNDO_PAGE, 72 + 5 * 4)
  const undo = Buffer.alloc(16384)
  undo.writeUInt16BE(UndoState.PREPARED, STATE_AT)
  undo.writeUInt16BE(LOG_AT, STATE_AT + 2)
  undo[LOG_AT + 20] = 1
  undo.writeUInt32BE(xid.length - bqualBytes, LOG_AT + 50)
  undo.writeUInt32BE(bqualBytes, LOG_AT + 54)
  xid.copy(undo, LOG_AT + 58)
  return new Map([
    [5, trxSys],
    [RSEG_PAGE, rseg],
    [UNDO_PAGE, undo],
  ])
}

const internal = Buffer.concat([Buffer.from('MySQLXid'), Buffer.alloc(8, 1), Buffer.alloc(8, 7)])

async function only(xid: Buffer, bqualBytes = 0) {
  const all = pages(xid, bqualBytes)
  const { rsegSpaces, segments } = await readUndoSegments(async (space, numbers) => {
    t.equal(space, 0)
    return numbers.map(number => all.get(number)!)
  })
  t.strictSame([rsegSpaces.length, rsegSpaces[0], rsegSpaces[1]], [128, 0, -1])
  t.equal(segments.length, 1)
  return segments[0]!
}

t.test("the server's own are taken back", async t => {
  const segment = await only(internal)
  t.match(segment, { space: 0, page: UNDO_PAGE, state: UndoState.PREPARED, log: LOG_AT })
  t.equal(isInternallyPrepared(segment), true)
  unprepare(segment.bytes)
  t.equal(Buffer.from(segment.bytes).readUInt16BE(STATE_AT), UndoState.ACTIVE)
  t.equal(isInternallyPrepared({ ...segment, state: UndoState.ACTIVE }), false)
  t.equal(isInternallyPrepared({ ...segment, log: 0 }), false)
})

t.test('those of XA PREPARE are not', async t => {
  t.equal(isInternallyPrepared(await only(Buffer.from('mine'))), false)
  t.equal(isInternallyPrepared(await only(internal, 4)), false)
  t.equal(isInternallyPrepared(await only(Buffer.alloc(24, 7))), false)
  const zero = Buffer.from(internal)
  zero.fill(0, 16)
  t.equal(isInternallyPrepared(await only(zero)), false, 'the number 0 is none')
})
