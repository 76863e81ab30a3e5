import t from 'tap'
import type { EntryRun } from '../../../../server/safekeeper/core/types.ts'
import { at, CoreRig, entry, type RigStart, run, term, voters } from '../../../support/core-rig.ts'

/** 1 1 1 1 3 3 3 3 | commit 0. */
const someLog: RigStart = { term: 3, runs: [run(1, 4), run(3, 4)] }

t.test('what an append does to the log', async t => {
  const table: [
    what: string,
    prev: [number, number],
    runs: EntryRun[],
    expected: {
      cut?: number
      store?: [number, number]
      last: number
      match?: number
      rejected?: number
      hint?: [number, number]
    },
  ][] = [
    ['a heartbeat at the end', [8, 3], [], { last: 8, match: 8 }],
    ['a heartbeat within', [5, 3], [], { last: 8, match: 5 }],
    ['a heartbeat that asks nothing', [0, 0], [], { last: 8, match: 0 }],
    ['entries at the end', [8, 3], [run(4, 2)], { store: [9, 2], last: 10, match: 10 }],
    ['entries of two terms', [8, 3], [run(3, 1), run(4, 2)], { store: [9, 3], last: 11, match: 11 }],
    ['all here already', [2, 1], [run(1, 2), run(3, 1)], { last: 8, match: 5 }],
    ['some here already', [6, 3], [run(3, 5)], { store: [9, 3], last: 11, match: 11 }],
    ['another term at the end', [7, 3], [run(4, 1)], { cut: 7, store: [8, 1], last: 8, match: 8 }],
    ['another term within', [2, 1], [run(1, 1), run(4, 3)], { cut: 3, store: [4, 3], last: 6, match: 6 }],
    ['another log from the beginning', [0, 0], [run(2, 3)], { cut: 0, store: [1, 3], last: 3, match: 3 }],
    ['beyond the end', [11, 4], [run(4, 1)], { last: 8, rejected: 11, hint: [8, 3] }],
    ['another term before it', [8, 4], [run(4, 1)], { last: 8, rejected: 8, hint: [8, 3] }],
    ['an older term before it', [7, 2], [run(4, 1)], { last: 8, rejected: 7, hint: [4, 1] }],
    ['beyond the end, and older', [20, 2], [], { last: 8, rejected: 20, hint: [4, 1] }],
  ]
  for (const [what, [index, ofTerm], runs, expected] of table) {
    const rig = new CoreRig(someLog)
    rig.effects = []
    rig.append('b', 4, entry(index, ofTerm), runs)
    const effects = rig.effects
    const { cut, store, last, match, rejected, hint } = expected
    t.same(
      effects.filter(({ type }) => type === 'truncate'),
      cut === undefined ? [] : [{ type: 'truncate', after: cut }],
      what,
    )
    t.same(
      effects.filter(({ type }) => type === 'store'),
      store === undefined ? [] : [{ type: 'store', first: store[0], count: store[1] }],
      what,
    )
    t.equal(rig.core.log.last, last, what)
    const replies = rig.takeSent('appendReply')
    t.equal(replies.length, 1, what)
    t.match(replies[0]!.message, { ok: rejected === undefined, rejected: rejected ?? 0, term: 4 }, what)
    if (match !== undefined) t.equal(replies[0]!.message.match, match, what)
    if (hint !== undefined) t.same(replies[0]!.message.hint, entry(...hint), what)
  }
})

t.test('entries are acknowledged when they are flushed, and only as far', async t => {
  const rig = new CoreRig(someLog)
  rig.append('b', 4, entry(8, 3), [])
  rig.effects = []
  rig.isPrompt = false
  rig.append('b', 4, entry(8, 3), [run(4, 5)], { commit: 12, round: 7 })
  t.same(rig.takeSent('appendReply'), [])
  t.match(rig.core, { commit: 12, applied: 8 }, 'what is not flushed here is not applied')
  rig.flush(10)
  t.match(rig.takeSent('appendReply'), [{ message: { ok: true, match: 10, hint: entry(13, 4), round: 7 } }])
  t.equal(rig.core.applied, 10)
  rig.do({ type: 'flushed', last: entry(12, 3) })
  t.equal(rig.core.flushed, 10, 'that was another entry')
  rig.flush(13)
  t.match(rig.takeSent('appendReply'), [{ message: { match: 13 } }])
})

t.test('what was flushed before the leader vouched for it is not acknowledged', async t => {
  const rig = new CoreRig(someLog)
  rig.append('b', 4, entry(0, 0), [run(1, 2)])
  t.match(rig.takeSent('appendReply'), [{ message: { match: 2, hint: entry(2, 1) } }])
  rig.append('c', 5, entry(0, 0), [])
  t.match(rig.takeSent('appendReply'), [{ message: { term: 5, match: 0 } }], 'nor by an older leader’s word')
})

t.test('commit goes as far as the leader has vouched for', async t => {
  const rig = new CoreRig(someLog)
  rig.append('b', 4, entry(5, 3), [], { commit: 8 })
  t.same(rig.take('commit'), [{ type: 'commit', index: 5 }])
  rig.append('b', 4, entry(8, 3), [], { commit: 6, round: 0 })
  t.same(rig.take('commit'), [{ type: 'commit', index: 6 }])
  rig.append('b', 4, entry(8, 3), [], { commit: 3, round: 0 })
  t.equal(rig.core.commit, 6)
  t.same(rig.takeSent('appendReply'), [], 'round 0 needs no answer')
})

t.test('an older leader is told of the newer term', async t => {
  const rig = new CoreRig(someLog)
  rig.append('b', 2, entry(8, 3), [run(3, 1)])
  t.match(rig.takeSent('appendReply'), [{ message: { ok: false, term: 3 } }])
  t.equal(rig.core.log.last, 8)
})

t.test('what would undo what is committed, or two leaders, ends the process', async t => {
  const rig = new CoreRig(someLog)
  rig.append('b', 4, entry(8, 3), [], { commit: 6 })
  t.throws(() => rig.append('b', 4, entry(4, 1), [run(4, 1)]), /all up to 6 is committed/)
  t.throws(() => rig.append('b', 4, entry(6, 4), []), /committed one at 6/)
  t.throws(() => rig.append('c', 4, entry(8, 3), []), /both lead in term 4/)
})

t.test('a snapshot', async t => {
  const snapshot = (index: number, ofTerm: number) =>
    ({
      type: 'snapshot',
      term: term(4),
      last: entry(index, ofTerm),
      membership: voters('a', 'b', 'd'),
    }) as const

  const held = new CoreRig(someLog)
  held.receive('b', snapshot(7, 3))
  t.match(held.take('send'), [{ message: { match: 7 } }], 'all of it is here: nothing to install')
  t.match(held.core, { commit: 7, applied: 7 })
  held.receive('b', snapshot(5, 3))
  t.match(held.take('send'), [{ message: { match: 7 } }], 'an old one')

  const rig = new CoreRig(someLog)
  rig.receive('b', snapshot(20, 3))
  t.match(rig.take('install'), [{ last: entry(20, 3) }])
  t.match(rig.core.memberships, [{ index: 20, membership: voters('a', 'b', 'd') }])
  rig.isPrompt = false
  rig.append('b', 4, entry(20, 3), [run(4, 2)], { commit: 21 })
  t.match(rig.take('store'), [{ first: 21, count: 2 }], 'what follows is stored after it')
  rig.do({ type: 'flushed', last: entry(22, 4) })
  t.equal(rig.core.flushed, 0, 'nothing counts before the snapshot is durable')
  rig.wait(2000)
  t.same(rig.takeSent('vote'), [], 'and it does not stand')
  rig.append('b', 4, entry(0, 0), [])
  rig.effects = []
  rig.do({ type: 'installed', last: entry(20, 3) })
  t.match(rig.takeSent('appendReply'), [{ message: { match: 20 } }])
  rig.flush(22)
  t.match(rig.core, { applied: 21, flushed: 22 })
})

t.test('memberships count from the log, and go with what is cut', async t => {
  const rig = new CoreRig(someLog)
  const joint = { voters: ['a', 'b'], outgoing: ['a', 'b', 'c'], learners: [] }
  rig.effects = []
  rig.append('b', 4, entry(8, 3), [run(4, 2)], { memberships: [{ index: at(10), membership: joint }] })
  t.match(rig.take('membership'), [{ membership: joint, committed: false }])
  rig.append('b', 4, entry(8, 3), [run(4, 2)], { memberships: [{ index: at(10), membership: joint }] })
  t.same(rig.take('membership'), [], 'the same again is no news')
  rig.append('c', 5, entry(9, 4), [run(5, 1)])
  t.match(rig.take('membership'), [{ membership: voters('a', 'b', 'c'), committed: true }])
  rig.append('c', 5, entry(10, 5), [run(5, 1)], {
    commit: 11,
    memberships: [{ index: at(11), membership: joint }],
  })
  t.match(rig.take('membership'), [
    { membership: joint, committed: false },
    { membership: joint, committed: true },
  ])
})

t.test(
  'a node that catches up goes by the newest membership, not by those that are committed on the way',
  async t => {
    const memberships = [
      { index: at(5), membership: voters('a', 'b', 'c') },
      { index: at(7), membership: voters('a', 'c', 'd') },
      { index: at(9), membership: voters('a', 'd', 'e') },
    ]
    const rig = new CoreRig({ base: entry(5, 1), applied: at(5), runs: [run(2, 5)], term: 2, memberships })
    t.match(rig.take('membership'), [{ membership: voters('a', 'd', 'e'), committed: false }])
    rig.append('e', 3, entry(10, 2), [], { commit: 7 })
    t.equal(rig.core.applied, 7)
    t.same(rig.take('membership'), [], 'e leads, and is in no older one')
    rig.append('e', 3, entry(10, 2), [], { commit: 9 })
    t.match(rig.take('membership'), [{ membership: voters('a', 'd', 'e'), committed: true }])
  },
)

t.test('a full disk', async t => {
  const rig = new CoreRig(someLog)
  rig.append('b', 4, entry(8, 3), [])
  rig.isPrompt = false
  rig.append('b', 4, entry(8, 3), [run(4, 4)], { commit: 8 })
  rig.flush(10)
  rig.effects = []
  rig.do({ type: 'writable', writable: false })
  t.match(rig.takeSent('appendReply'), [{ message: { paused: true, match: 10 } }])
  rig.do({ type: 'dropped', last: entry(10, 4) })
  t.match(rig.takeSent('appendReply'), [{ message: { match: 10, hint: entry(10, 4) } }])
  rig.append('b', 4, entry(10, 4), [run(4, 1)])
  t.match(
    rig.takeSent('appendReply'),
    [{ message: { ok: true, paused: true, match: 10 } }],
    'entries are not taken',
  )
  t.equal(rig.core.log.last, 10)
  rig.receive('c', { type: 'vote', term: term(5), last: entry(10, 4), pre: false, transfer: true })
  t.match(rig.takeSent('voteReply'), [{ message: { granted: true } }], 'votes go on')
  t.throws(() => rig.do({ type: 'dropped', last: entry(9, 4) }), /all up to 10 were flushed/)
})

t.test('recovery ends at a commit point of the leader’s own term, in a newer term than before', async t => {
  const rig = new CoreRig({ ...someLog, recovering: true })
  t.match(rig.take('persist'), [{ hardState: { term: 4, votedFor: undefined } }])
  rig.append('b', 3, entry(8, 3), [], { commit: 8 })
  t.match(
    rig.takeSent('appendReply'),
    [{ message: { ok: false, term: 4 } }],
    'the leader of before must stand anew',
  )
  rig.append('b', 5, entry(8, 3), [], { commit: 8 })
  t.equal(rig.core.recovering, true, 'committed, but in an older term')
  rig.isPrompt = false
  rig.append('b', 5, entry(8, 3), [run(5, 1)], { commit: 9 })
  t.equal(rig.core.recovering, true, 'not flushed here')
  t.same(
    rig.take('role').map(({ role }) => role),
    ['recovering'],
  )
  rig.flush(9)
  t.same(
    rig.take('role').map(({ role }) => role),
    ['follower'],
  )
})
