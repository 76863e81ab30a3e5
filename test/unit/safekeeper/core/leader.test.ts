import t from 'tap'
import { coreStatus } from '../../../../server/safekeeper/core/consensus.ts'
import { READS_MAX } from '../../../../server/safekeeper/core/leader.ts'
import { at, CoreCell, CoreRig, entry, type RigStart, run, term, voters } from '../../../support/core-rig.ts'

/** 1 1 1 1 3 3 3 3, and a no-op at 9 in term 4 once it leads. */
const someLog: RigStart = { term: 3, runs: [run(1, 4), run(3, 4)] }
const leading = (start: RigStart = {}) => new CoreRig({ ...someLog, ...start }).lead('b')

t.test('a leader begins with a no-op, and sends it without asking first', async t => {
  const rig = leading()
  t.match(rig.effects.filter(({ type }) => type === 'role').at(-1), { role: 'leader', term: 4, leader: 'a' })
  t.match(
    rig.effects.filter(({ type }) => type === 'appendOwn'),
    [{ id: entry(9, 4), entry: { kind: 'noop' } }],
  )
  t.match(rig.take('replicate'), [
    { to: 'b', term: 4, prev: entry(8, 3), last: 9, commit: 0 },
    { to: 'c', term: 4, prev: entry(8, 3), last: 9 },
  ])
})

t.test('proposals go out at once, all in flight up to the limit', async t => {
  const rig = leading({ timing: { inflightEntriesMax: 100 } })
  rig.effects = []
  t.match(rig.do({ type: 'propose', count: 60 }), [
    { type: 'append', first: 10, count: 60, term: 4 },
    { type: 'replicate', to: 'b', prev: entry(9, 4), last: 69 },
    { type: 'replicate', to: 'c', prev: entry(9, 4), last: 69 },
  ])
  rig.effects = []
  rig.do({ type: 'propose', count: 60 })
  t.match(rig.take('replicate'), [{ last: 108 }, { last: 108 }], '9 to 108 are in flight')
  rig.do({ type: 'propose', count: 5 })
  t.same(rig.take('replicate'), [])
  rig.acknowledge('b', 30)
  t.match(rig.take('replicate'), [{ to: 'b', prev: entry(108, 4), last: 130 }])
})

t.test('only an entry of the own term is counted', async t => {
  const rig = new CoreRig({ ...someLog }).lead('b')
  rig.take('commit')
  rig.acknowledge('b', 8)
  t.same(rig.take('commit'), [], 'a majority has entry 8, but it is of term 3')
  rig.acknowledge('b', 9)
  t.same(rig.take('commit'), [{ type: 'commit', index: 9 }])
})

t.test('what others have is committed, but applied only when it is flushed here', async t => {
  const rig = leading()
  rig.acknowledge('b', 9)
  rig.isPrompt = false
  rig.do({ type: 'propose', count: 4 })
  rig.effects = []
  rig.acknowledge('b', 13)
  t.equal(rig.core.commit, 9)
  rig.acknowledge('c', 13)
  t.match(rig.core, { commit: 13, applied: 9 })
  t.same(rig.take('commit'), [])
  rig.flush(11)
  t.same(rig.take('commit'), [{ type: 'commit', index: 11 }])
})

t.test('who has all is told of the commit with the next tick, unless entries tell it before', async t => {
  const rig = leading()
  rig.acknowledge('c', 9)
  rig.wait(10)
  rig.effects = []
  rig.do({ type: 'propose', count: 1 })
  rig.acknowledge('b', 10)
  t.same(rig.takeSent('append'), [], 'mostly more entries are on their way')
  rig.wait(10)
  t.match(rig.takeSent('append'), [
    { to: 'b', message: { commit: 10, round: 0, prev: entry(10, 4), runs: [] } },
  ])
  rig.acknowledge('c', 10)
  rig.effects = []
  rig.do({ type: 'propose', count: 1 })
  t.match(rig.take('replicate'), [
    { to: 'b', commit: 10 },
    { to: 'c', commit: 10 },
  ])
  rig.wait(10)
  t.same(rig.takeSent('append'), [], 'it is known, or will be answered')
})

t.test('a log that differs is repaired by terms', async t => {
  const rig = leading({ term: 8, runs: [run(1, 10), run(4, 10), run(7, 10)] })
  rig.effects = []
  const reject = (rejected: number, index: number, ofTerm: number) =>
    rig.acknowledge('c', 0, { ok: false, rejected: at(rejected), hint: entry(index, ofTerm) })
  reject(30, 25, 5)
  t.match(rig.takeSent('append'), [{ to: 'c', message: { prev: entry(20, 4), runs: [] } }], 'skips term 7')
  reject(30, 25, 5)
  t.same(rig.take('send'), [], 'an old refusal')
  reject(20, 12, 3)
  t.match(rig.takeSent('append'), [{ message: { prev: entry(10, 1) } }])
  rig.acknowledge('c', 10)
  t.match(rig.take('replicate'), [{ to: 'c', prev: entry(10, 1), last: 31 }])
})

t.test('who needs what is trimmed gets the snapshot, then the log', async t => {
  const rig = new CoreRig({ term: 8, base: entry(20, 4), runs: [run(7, 10)] }).lead('b')
  rig.effects = []
  rig.acknowledge('c', 0, { ok: false, rejected: at(30), hint: entry(5, 1) })
  t.same(rig.take('sendSnapshot'), [{ type: 'sendSnapshot', to: 'c', term: 9 }])
  rig.do({ type: 'propose', count: 3 })
  t.match(rig.take('replicate'), [{ to: 'b' }], 'no entries meanwhile')
  rig.wait(50)
  t.match(
    rig.takeSent('append').find(({ to }) => to === 'c'),
    { message: { prev: entry(0, 0) } },
    'but heartbeats',
  )
  rig.acknowledge('c', 0)
  t.same(rig.take('replicate'), [])
  rig.acknowledge('c', 25)
  t.match(rig.take('replicate'), [{ to: 'c', prev: entry(25, 7), last: 34 }])
})

t.test('a snapshot without an answer is sent again', async t => {
  const rig = new CoreRig({
    membership: voters('a', 'b', 'c'),
    term: 8,
    base: entry(20, 4),
    runs: [run(7, 10)],
    timing: { snapshotRetryMs: 200 },
  }).lead('b')
  rig.acknowledge('c', 0, { ok: false, rejected: at(30), hint: entry(5, 1) })
  rig.effects = []
  rig.wait(300)
  t.match(rig.take('sendSnapshot'), [{ to: 'c' }])
})

t.test('what was in flight on a lost connection is sent again once the member answers', async t => {
  const rig = leading()
  rig.acknowledge('b', 9)
  rig.do({ type: 'propose', count: 20 })
  rig.do({ type: 'peerLost', peer: 'b' })
  rig.effects = []
  rig.do({ type: 'propose', count: 1 })
  t.match(rig.take('replicate'), [{ to: 'c' }])
  rig.acknowledge('b', 12)
  t.same(rig.take('replicate'), [], 'a late answer says nothing of what was lost')
  rig.wait(50)
  t.match(
    rig.takeSent('append').find(({ to }) => to === 'b'),
    { message: { prev: entry(12, 4) } },
  )
  rig.acknowledge('b', 12)
  t.match(rig.take('replicate'), [{ to: 'b', prev: entry(12, 4), last: 30 }])
})

t.test('entries of which nothing is heard are asked for after an election time-out', async t => {
  const rig = leading({ timing: { electionMsMax: 600 } })
  rig.acknowledge('b', 9)
  rig.do({ type: 'propose', count: 5 })
  rig.effects = []
  for (let i = 0; i < 14; i++) {
    rig.wait(50)
    rig.acknowledge('b', 9)
  }
  t.match(rig.take('replicate'), [{ to: 'b', prev: entry(9, 4), last: 14 }])
})

t.test('a member with a full disk is left alone until it has room', async t => {
  const rig = leading()
  rig.acknowledge('b', 9)
  rig.acknowledge('b', 9, { paused: true })
  rig.effects = []
  rig.do({ type: 'propose', count: 5 })
  t.match(rig.take('replicate'), [{ to: 'c' }])
  rig.wait(50)
  rig.acknowledge('b', 9)
  t.match(rig.take('replicate'), [{ to: 'b', prev: entry(9, 4), last: 14 }])
})

t.test('a leader that hears from no majority steps down', async t => {
  const rig = leading()
  rig.wait(500)
  t.equal(rig.core.role, 'leader')
  rig.acknowledge('c', 0)
  rig.wait(500)
  t.equal(rig.core.role, 'leader')
  rig.effects = []
  rig.do({ type: 'read', id: 5 })
  rig.wait(200)
  t.not(rig.core.role, 'leader')
  t.same(rig.take('readRefused'), [{ type: 'readRefused', id: 5 }])
})

t.test('reads', async t => {
  const rig = leading()
  rig.effects = []
  rig.do({ type: 'read', id: 1 })
  const round = rig.core.lead!.round
  t.match(rig.takeSent('append'), [
    { to: 'b', message: { round } },
    { to: 'c', message: { round } },
  ])
  rig.do({ type: 'read', id: 2 })
  rig.do({ type: 'read', id: 3 })
  t.same(rig.takeSent('append'), [], 'later ones wait for the next round, all together')
  rig.acknowledge('b', 9, { round: round - 1 })
  t.same(rig.take('readReady'), [], 'that answer may be from before a newer leader')
  rig.acknowledge('b', 9, { round })
  t.same(
    rig.effects.filter(({ type }) => type === 'readReady'),
    [{ type: 'readReady', id: 1, index: 9 }],
    'the no-op: nothing of this term was committed when it was asked',
  )
  t.match(
    rig.takeSent('append').filter(({ message }) => message.round > 0),
    [
      { to: 'b', message: { round: round + 1 } },
      { to: 'c', message: { round: round + 1 } },
    ],
  )
  rig.acknowledge('c', 0, { ok: false, rejected: at(8), hint: entry(4, 1), round: round + 1 })
  t.match(
    rig.take('readReady'),
    [
      { id: 2, index: 9 },
      { id: 3, index: 9 },
    ],
    'a refusal of entries is an answer too',
  )

  const alone = new CoreRig({ membership: voters('a') })
  alone.do({ type: 'propose', count: 3 })
  alone.do({ type: 'read', id: 9 })
  t.same(alone.take('readReady'), [{ type: 'readReady', id: 9, index: 4 }], 'alone: at once')
  const follower = new CoreRig(someLog)
  follower.do({ type: 'read', id: 9 })
  t.same(follower.take('readRefused'), [{ type: 'readRefused', id: 9 }])
  const busy = leading()
  for (let id = 0; id <= READS_MAX; id++) busy.do({ type: 'read', id })
  t.same(busy.take('readRefused'), [{ type: 'readRefused', id: READS_MAX }], 'a bounded queue')
})

t.test('handing over', async t => {
  const rig = leading()
  rig.do({ type: 'propose', count: 5 })
  rig.effects = []
  rig.do({ type: 'transfer', to: 'c' })
  t.same(rig.takeSent('timeoutNow'), [])
  rig.do({ type: 'propose', count: 1 })
  t.match(rig.take('refused'), [{ what: 'propose', why: /handed over/ }])
  rig.acknowledge('c', 13)
  t.same(rig.takeSent('timeoutNow'), [])
  rig.acknowledge('c', 14)
  t.match(rig.takeSent('timeoutNow'), [{ to: 'c', message: { term: 4 } }])
  rig.wait(300)
  rig.acknowledge('c', 14)
  rig.wait(350)
  t.match(rig.take('refused'), [{ what: 'transfer', why: /not take over in time/ }])
  t.match(rig.do({ type: 'propose', count: 1 })[0], { type: 'append' }, 'and it goes on')

  const table: [string, string, RegExp][] = [
    ['itself', 'a', /leads already/],
    ['a stranger', 'z', /no vote/],
    ['a learner', 'l', /no vote/],
  ]
  for (const [what, to, why] of table) {
    const other = leading({ membership: { voters: ['a', 'b', 'c'], learners: ['l'] } })
    other.effects = []
    other.do({ type: 'transfer', to })
    t.match(other.take('refused'), [{ what: 'transfer', why }], what)
  }

  const cell = new CoreCell(['a', 'b', 'c'])
  cell.wait(1500)
  const first = cell.leader!
  const to = ['a', 'b', 'c'].find(id => id !== first)!
  cell.rig(first).do({ type: 'transfer', to })
  cell.settle()
  t.equal(cell.leader, to, 'without a time-out')
})

t.test('a full disk of the leader', async t => {
  const rig = leading()
  rig.acknowledge('b', 9)
  rig.acknowledge('c', 9, { paused: true })
  rig.effects = []
  rig.do({ type: 'writable', writable: false })
  t.match(rig.takeSent('timeoutNow'), [{ to: 'b' }], 'who can write, leads')
  rig.do({ type: 'propose', count: 1 })
  t.match(rig.take('refused'), [{ what: 'propose' }])

  const dropped = leading()
  dropped.acknowledge('b', 9)
  dropped.isPrompt = false
  dropped.do({ type: 'propose', count: 10 })
  dropped.acknowledge('b', 15)
  dropped.acknowledge('c', 12)
  t.match(dropped.core, { commit: 12, applied: 9 })
  dropped.effects = []
  dropped.do({ type: 'dropped', last: entry(11, 4) })
  t.match(
    dropped.core,
    { role: 'follower', commit: 11, applied: 9, term: 4 },
    'its places in this term are given away',
  )
  t.match(dropped.takeSent('timeoutNow'), [{ to: 'b' }])

  const cell = new CoreCell(['a', 'b', 'c'])
  cell.wait(1500)
  const first = cell.leader!
  cell.rig(first).do({ type: 'writable', writable: false })
  cell.wait(50)
  t.not(cell.leader, first)
  t.ok(cell.leader)
})

t.test('status', async t => {
  const rig = leading()
  rig.acknowledge('b', 9)
  t.match(coreStatus(rig.core), {
    term: 4,
    leader: 'a',
    commit: 9,
    last: 9,
    members: [
      { id: 'a', match: 9, silentMs: 0 },
      { id: 'b', match: 9, next: 10, state: 'replicate', paused: false },
      { id: 'c', match: 0 },
    ],
  })
  t.match(coreStatus(new CoreRig(someLog).core), { term: 3, leader: undefined, members: [] })
})

t.test('the past is trimmed only as far as it is applied', async t => {
  const rig = leading()
  rig.acknowledge('b', 9)
  t.throws(() => rig.do({ type: 'trimmed', last: entry(10, 4) }), /only 9 are applied/)
  rig.do({ type: 'trimmed', last: entry(6, 3) })
  t.same(rig.core.log.base, entry(6, 3))
  rig.effects = []
  rig.acknowledge('c', 0, { ok: false, rejected: at(8), hint: entry(4, 1) })
  t.match(rig.take('sendSnapshot'), [{ to: 'c' }])
  t.equal(rig.core.term, term(4))
})
