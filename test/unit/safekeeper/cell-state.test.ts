/** The rules of the cell's state, one by one. */
import t from 'tap'
import type { Lsn, TimelineId, WriterEpoch } from '../../../protocol/ids.ts'
import {
  type Applied,
  type CellCommand,
  CellState,
  decodeCommand,
  encodeCommand,
  encodeMembership,
} from '../../../server/safekeeper/cell-state.ts'
import type { LogIndex, Term } from '../../../server/safekeeper/core/types.ts'

const A = 'aa'.repeat(16) as TimelineId
const B = 'bb'.repeat(16) as TimelineId
const C = 'cc'.repeat(16) as TimelineId
const lsn = (n: number) => n as Lsn
const NOTHING = Buffer.alloc(0)

function apply(
  state: CellState,
  entry: Partial<Parameters<CellState['apply']>[0]> & {
    kind: 'redo' | 'command' | 'membership' | 'noop' | 'gap'
  },
): Applied {
  return state.apply({
    index: (state.last.index + 1) as LogIndex,
    term: 1 as Term,
    timeline: undefined,
    epoch: 0 as WriterEpoch,
    beginLsn: lsn(0),
    endLsn: lsn(0),
    wallTimeUs: 7,
    payload: NOTHING,
    ...entry,
  })
}
const run = (state: CellState, command: CellCommand) =>
  apply(state, { kind: 'command', payload: encodeCommand(command) })
const redo = (state: CellState, timeline: TimelineId, epoch: number, begin: number, end: number) =>
  apply(state, {
    kind: 'redo',
    timeline,
    epoch: epoch as WriterEpoch,
    beginLsn: lsn(begin),
    endLsn: lsn(end),
  })
const why = (applied: Applied) => (applied.void ? `${applied.kind}: ${applied.why}` : 'ok')

t.test('writers and redo', async t => {
  const state = new CellState()
  t.match(why(redo(state, A, 0, 100, 110)), /invalid: this safekeeper has no timeline/)
  t.equal(why(run(state, { do: 'create', timeline: A, name: 'a', startLsn: lsn(100) })), 'ok')
  t.equal(why(run(state, { do: 'create', timeline: A, name: 'a', startLsn: lsn(100) })), 'ok', 'again')
  t.match(why(run(state, { do: 'create', timeline: A, name: 'b', startLsn: lsn(100) })), /exists as "a"/)
  t.match(why(run(state, { do: 'create', timeline: B, name: 'a', startLsn: lsn(1) })), /named "a"/)
  const none = '0'.repeat(32) as TimelineId
  t.match(why(run(state, { do: 'create', timeline: none, name: 'z', startLsn: lsn(1) })), /all zeros/)
  t.equal(why(run(state, { do: 'open', timeline: A, writer: 'w1' })), 'ok')
  t.equal(why(redo(state, A, 1, 100, 110)), 'ok')
  t.match(why(redo(state, A, 1, 111, 120)), /refresh: append at LSN 111.* ends at 110/)
  t.match(why(redo(state, A, 1, 100, 110)), /refresh/, 'twice is void')
  t.match(why(redo(state, A, 2, 110, 120)), /invalid: epoch 2 .* never given out/)
  t.equal(why(run(state, { do: 'open', timeline: A, writer: 'w2' })), 'ok')
  t.match(why(redo(state, A, 1, 110, 120)), /fenced: "a" has a newer writer, w2/)
  t.equal(state.timelines.get(A)?.endLsn, 110)
})

t.test('what is needed: consumers, pins, branches', async t => {
  const state = new CellState()
  run(state, { do: 'create', timeline: A, name: 'a', startLsn: lsn(100) })
  redo(state, A, 0, 100, 200)
  const needed = (id: TimelineId) => state.neededFrom(state.timelines.get(id)!)
  const trim = (timeline: TimelineId, consumer: string, at: number) =>
    run(state, { do: 'trim', trims: [{ timeline, consumer, lsn: lsn(at) }] })
  t.equal(needed(A), 100, 'no consumer: all')
  t.equal(why(trim(A, 'p1', 150)), 'ok')
  t.match(why(trim(A, 'p1', 201)), /p1 claims 201 durable, the log ends at 200/)
  t.equal(needed(A), 150)
  run(state, { do: 'pin', timeline: A, name: 'lease', lsn: lsn(120) })
  t.equal(needed(A), 120)
  run(state, { do: 'pin', timeline: A, name: 'lease', lsn: null })
  t.match(why(run(state, { do: 'branch', timeline: B, name: 'b', ancestor: A, lsn: lsn(300) })), /refresh/)
  t.equal(why(run(state, { do: 'branch', timeline: B, name: 'b', ancestor: A, lsn: lsn(180) })), 'ok')
  t.equal(state.timelines.get(B)?.endLsn, 180)
  trim(A, 'p1', 200)
  t.equal(needed(A), 150, 'the branch has no consumer yet: what was held when it was made')
  trim(B, 'p1', 170)
  t.equal(needed(A), 170)
  t.equal(state.beginLsn(state.timelines.get(B)!), 180)
  trim(B, 'p1', 180)
  t.equal(needed(A), 200)
  t.match(why(run(state, { do: 'delete', timeline: A })), /has 1 branches \("b"\)/)
  run(state, { do: 'branch', timeline: C, name: 'c', ancestor: B, lsn: lsn(180) })
  trim(C, 'p1', 160)
  t.equal(needed(A), 160, 'a branch of a branch')
  t.equal(needed(CellState.decode(state.encode()).timelines.get(A)!.id), 160)
})

t.test('names and graves', async t => {
  const state = new CellState()
  run(state, { do: 'create', timeline: A, name: 'a', startLsn: lsn(1) })
  run(state, { do: 'create', timeline: B, name: 'b', startLsn: lsn(1) })
  t.match(why(run(state, { do: 'rename', timeline: A, name: 'b' })), /named "b"/)
  t.equal(why(run(state, { do: 'rename', timeline: A, name: 'x' })), 'ok')
  t.equal(state.named('x')?.id, A)
  t.equal(state.named('a'), undefined)
  t.equal(why(run(state, { do: 'delete', timeline: A })), 'ok')
  t.equal(why(run(state, { do: 'delete', timeline: A })), 'ok', 'again')
  t.match(why(run(state, { do: 'create', timeline: A, name: 'a', startLsn: lsn(1) })), /was deleted/)
  t.match(why(redo(state, A, 0, 1, 2)), /was deleted/)
  t.equal(
    why(run(state, { do: 'create', timeline: C, name: 'x', startLsn: lsn(1) })),
    'ok',
    'the name is free',
  )
})

t.test('membership, order of entries, damaged bytes', async t => {
  const state = new CellState()
  const membership = { voters: ['a.0000000000000001'], learners: [] }
  apply(state, { kind: 'membership', payload: encodeMembership(membership) })
  t.same(state.membership, membership)
  t.throws(() => apply(state, { kind: 'noop', index: 9 as LogIndex }), /does not follow/)
  t.throws(() => decodeCommand(Buffer.from('{"do":"dance"}')), { message: /a command of the cell's log/ })
  t.throws(() => decodeCommand(Buffer.from('{')), { message: /no JSON/ })
  t.throws(() => CellState.decode(Buffer.from('{"version":2}')), {
    message: /a snapshot of the cell's state/,
  })
})
