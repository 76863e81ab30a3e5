import t from 'tap'
import { createCore, step } from '../../../../server/safekeeper/core/consensus.ts'
import { at, CoreRig, coreStart, entry, run, voters } from '../../../support/core-rig.ts'

t.test('what a node had on disk', async t => {
  const joint = { voters: ['a', 'b'], outgoing: ['a', 'b', 'c'], learners: [] }
  const memberships = [
    { index: at(7), membership: voters('a', 'b', 'c') },
    { index: at(9), membership: joint },
    { index: at(99), membership: voters('x') },
  ]
  const rig = new CoreRig({ base: entry(5, 1), applied: at(7), runs: [run(2, 5)], term: 2, memberships })
  t.match(rig.core, { commit: 7, applied: 7, flushed: 10, term: 2 })
  t.match(rig.effects, [
    { type: 'membership', membership: joint, committed: false },
    { type: 'role', role: 'follower', term: 2, leader: undefined },
  ])
  t.equal(rig.core.memberships.length, 2, 'one beyond the end of the log is not there')

  t.throws(
    () => createCore(coreStart({ applied: at(3), base: entry(5, 1) })),
    /applied up to 3, but the log is \(5, 5\]/,
  )
  t.throws(() => createCore(coreStart({ memberships: [] })), /no membership/)
  t.throws(() => createCore(coreStart({ runs: [run(3, 1), run(2, 1)] })), /term 2 follows one of term 3/)
})

t.test('entries of a term that was not yet durable raise it, without a vote', async t => {
  const rig = new CoreRig({ term: 2, votedFor: 'b', runs: [run(2, 5), run(4, 1)] })
  t.match(rig.effects[1], { type: 'persist', hardState: { term: 4, votedFor: undefined } })
  t.match(rig.core, { term: 4, votedFor: undefined })
})

t.test('the role that is told', async t => {
  const learner = new CoreRig({ membership: { voters: ['b'], learners: ['a'] } })
  t.match(learner.take('role'), [{ role: 'learner' }])
  const recovering = new CoreRig({ recovering: true })
  t.match(recovering.take('role'), [{ role: 'recovering', term: 1 }])
  const rig = new CoreRig({})
  rig.effects = []
  rig.append('b', 1, entry(0, 0), [])
  t.match(rig.take('role'), [{ role: 'follower', term: 1, leader: 'b' }])
  rig.append('b', 1, entry(0, 0), [])
  t.same(rig.take('role'), [], 'only what is new')
})

t.test('the same events give the same effects', async t => {
  const one = new CoreRig({ seed: 5 })
  const other = new CoreRig({ seed: 5 })
  for (const rig of [one, other]) {
    rig.lead('b').acknowledge('b', 1)
    rig.do({ type: 'propose', count: 3 })
    rig.wait(2000)
  }
  t.same(one.effects, other.effects)
  const another = new CoreRig({ seed: 6 })
  t.not(another.core.electionDueMs, one.core.electionDueMs)
})

t.test('what comes for an earlier role or term is void', async t => {
  const rig = new CoreRig({ term: 5, runs: [run(5, 3)] })
  rig.effects = []
  const before = JSON.stringify(rig.core)
  for (const message of [
    {
      type: 'appendReply',
      term: 5,
      ok: true,
      match: 3,
      rejected: 0,
      hint: entry(3, 5),
      round: 1,
      paused: false,
    },
    { type: 'voteReply', term: 5, pre: false, granted: true },
    { type: 'voteReply', term: 6, pre: true, granted: true },
    { type: 'timeoutNow', term: 5 },
    { type: 'timeoutNow', term: 4 },
  ] as never[]) {
    t.same(rig.receive('b', message), [])
  }
  t.same(rig.do({ type: 'installed', last: entry(9, 9) }), [])
  t.same(rig.do({ type: 'flushed', last: entry(3, 4) }), [])
  t.same(rig.do({ type: 'dropped', last: entry(3, 5) }), [])
  t.same(rig.do({ type: 'writable', writable: true }), [])
  t.same(rig.do({ type: 'peerLost', peer: 'z' }), [])
  t.equal(JSON.stringify(rig.core), before)
  t.match(rig.do({ type: 'propose', count: 1 }), [{ type: 'refused', why: /does not lead/ }])
  t.match(rig.do({ type: 'transfer', to: 'b' }), [{ type: 'refused', why: /does not lead/ }])
  t.match(rig.do({ type: 'change', change: { voters: ['a'], learners: [] } }), [
    { type: 'refused', why: /does not lead/ },
  ])
})

t.test('a proposal costs the same for one entry and for many', async t => {
  const state = createCore(coreStart({ membership: voters('a') }))
  step(state, { type: 'tick', nowMs: 1 })
  step(state, { type: 'persisted', hardState: { term: state.term, votedFor: 'a' } })
  t.equal(step(state, { type: 'propose', count: 1_000_000 }).length, 1)
  t.equal(state.log.firsts.length, 1)
})
