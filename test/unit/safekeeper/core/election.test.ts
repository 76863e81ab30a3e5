import t from 'tap'
import type { Message } from '../../../../server/safekeeper/core/types.ts'
import { at, CoreCell, CoreRig, entry, type RigStart, run, term, voters } from '../../../support/core-rig.ts'

type Vote = Extract<Message, { type: 'vote' }>

const vote = (more: Partial<Vote> = {}): Vote => ({
  type: 'vote',
  term: term(6),
  last: entry(10, 5),
  pre: false,
  transfer: false,
  ...more,
})

/** A log that ends with entry 10 of term 5, in term 5. */
const someLog: RigStart = { term: 5, runs: [run(3, 4), run(5, 6)] }

t.test('who gets a vote', async t => {
  const table: [what: string, start: RigStart, asked: Partial<Vote>, granted: boolean, term: number][] = [
    ['the same log', {}, {}, true, 6],
    ['a longer log', {}, { last: entry(12, 5) }, true, 6],
    ['a newer last term', {}, { last: entry(2, 6) }, true, 6],
    ['a shorter log', {}, { last: entry(9, 5) }, false, 6],
    ['an older last term', {}, { last: entry(99, 4) }, false, 6],
    ['an older term', {}, { term: term(4) }, false, 5],
    ['this term, no vote given', {}, { term: term(5) }, true, 5],
    ['this term, vote given to it', { votedFor: 'b' }, { term: term(5) }, true, 5],
    ['this term, vote given to another', { votedFor: 'c' }, { term: term(5) }, false, 5],
    ['a newer term, vote given in this one', { votedFor: 'c' }, {}, true, 6],
    ['from one that is no member', { membership: voters('a', 'c') }, {}, true, 6],
    ['from a learner', { membership: { voters: ['c'], learners: ['a'] } }, {}, true, 6],
    ['while it recovers', { recovering: true }, { term: term(9) }, false, 9],
    ['pre: the same log', {}, { pre: true }, true, 6],
    ['pre: a shorter log', {}, { pre: true, last: entry(9, 5) }, false, 5],
    ['pre: this term', {}, { pre: true, term: term(5) }, false, 5],
    ['pre: while it recovers', { recovering: true }, { pre: true, term: term(9) }, false, 6],
  ]
  for (const [what, start, asked, granted, replied] of table) {
    const rig = new CoreRig({ ...someLog, ...start })
    rig.effects = []
    rig.receive('b', vote(asked))
    const [reply] = rig.takeSent('voteReply')
    t.match(reply, { to: 'b', message: { granted, term: replied, pre: asked.pre ?? false } }, what)
  }
})

t.test('a vote is durable before it is given', async t => {
  const rig = new CoreRig(someLog)
  rig.isPrompt = false
  const effects = rig.receive('b', vote())
  t.match(effects, [
    { type: 'persist', hardState: { term: 6, votedFor: 'b' } },
    { type: 'send', when: 'afterPersist', message: { granted: true } },
    { type: 'role' },
  ])
  t.equal(effects.filter(effect => effect.type === 'persist').length, 1, 'term and vote in one write')
  rig.do({ type: 'persisted', hardState: { term: term(6), votedFor: 'b' } })
  t.match(rig.receive('b', vote()), [{ type: 'send', when: 'now', message: { granted: true } }])
})

t.test('a candidate counts its own vote when it is durable', async t => {
  const rig = new CoreRig({ membership: voters('a') })
  const prompt = new CoreRig({ membership: voters('a', 'b') })
  t.equal(rig.core.role, 'leader', 'alone it leads at once, with no time-out')
  prompt.wait(700)
  prompt.isPrompt = false
  prompt.receive('b', { type: 'voteReply', term: term(1), pre: true, granted: true })
  t.equal(prompt.core.role, 'candidate')
  prompt.receive('b', { type: 'voteReply', term: term(1), pre: false, granted: true })
  t.equal(prompt.core.role, 'candidate', 'its own vote could still be forgotten')
  prompt.do({ type: 'persisted', hardState: { term: term(1), votedFor: 'a' } })
  t.equal(prompt.core.role, 'leader')
})

t.test('no vote while a leader is heard, unless it is by the leader’s wish', async t => {
  for (const pre of [true, false]) {
    const rig = new CoreRig(someLog)
    rig.append('c', 5, entry(10, 5), [])
    rig.receive('b', vote({ pre }))
    t.match(rig.takeSent('voteReply'), [{ message: { granted: false, term: 5 } }], `pre ${pre}`)
    t.equal(rig.core.term, 5)
    rig.receive('b', vote({ pre, transfer: true }))
    t.match(rig.takeSent('voteReply'), [{ message: { granted: true } }], `pre ${pre}, transfer`)
  }
  const rig = new CoreRig(someLog)
  rig.append('c', 5, entry(10, 5), [])
  rig.wait(290)
  rig.takeSent('voteReply')
  rig.receive('b', vote())
  t.match(rig.takeSent('voteReply'), [{ message: { granted: false } }], 'silent for less than the time-out')
  rig.do({ type: 'peerLost', peer: 'c' })
  rig.receive('b', vote())
  t.match(rig.takeSent('voteReply'), [{ message: { granted: true } }], 'the leader’s connection broke')
})

t.test('it asks before it raises its term', async t => {
  const rig = new CoreRig(someLog)
  rig.wait(700)
  t.match(rig.takeSent('vote').slice(0, 2), [
    { to: 'b', message: { pre: true, term: 6, last: entry(10, 5) } },
    { to: 'c', message: { pre: true, term: 6 } },
  ])
  t.match(rig.core, { term: 5, role: 'preCandidate' })
  rig.receive('b', { type: 'voteReply', term: term(5), pre: true, granted: false })
  t.equal(rig.core.role, 'preCandidate')
  rig.receive('c', { type: 'voteReply', term: term(6), pre: true, granted: true })
  t.match(rig.core, { term: 6, votedFor: 'a', role: 'candidate' })
  t.match(rig.takeSent('vote'), [{ to: 'b', message: { pre: false, term: 6 } }, { to: 'c' }])
})

t.test('a refusal that names a newer term ends it', async t => {
  const rig = new CoreRig(someLog)
  rig.wait(700)
  rig.receive('b', { type: 'voteReply', term: term(8), pre: true, granted: false })
  t.match(rig.core, { term: 8, votedFor: undefined, role: 'follower' })
})

t.test('who does not stand', async t => {
  const table: [string, RigStart][] = [
    ['a learner', { membership: { voters: ['b', 'c'], learners: ['a'] } }],
    ['one that is no member', { membership: voters('b', 'c') }],
    ['one that recovers', { recovering: true }],
  ]
  for (const [what, start] of table) {
    const rig = new CoreRig({ ...someLog, ...start })
    rig.wait(5000)
    t.same(rig.takeSent('vote'), [], what)
  }
})

t.test('a voter whose removal is in its log, but not committed, stands', async t => {
  const memberships = [
    { index: at(0), membership: voters('a', 'b', 'c') },
    { index: at(9), membership: { voters: ['b', 'c'], outgoing: ['a', 'b', 'c'], learners: [] } },
    { index: at(10), membership: voters('b', 'c') },
  ]
  const rig = new CoreRig({ ...someLog, memberships })
  rig.lead('b', 'c')
  rig.acknowledge('b', 11)
  t.equal(rig.core.commit, 0, 'its own log counts nothing')
  rig.acknowledge('c', 11)
  t.equal(rig.core.commit, 11)
  t.match(rig.core, { role: 'follower', leader: undefined }, 'and it leaves when that is committed')
})

t.test('a joint membership needs both majorities', async t => {
  const membership = { voters: ['a', 'd', 'e'], outgoing: ['a', 'b', 'c'], learners: [] }
  const rig = new CoreRig({ membership })
  rig.wait(700)
  const grant = (from: string, pre: boolean) =>
    rig.receive(from, { type: 'voteReply', term: term(1), pre, granted: true })
  grant('d', true)
  grant('e', true)
  t.equal(rig.core.role, 'preCandidate')
  grant('b', true)
  t.equal(rig.core.role, 'candidate')
  grant('b', false)
  grant('c', false)
  t.equal(rig.core.role, 'candidate')
  grant('d', false)
  t.equal(rig.core.role, 'leader')
})

t.test('time in which it did not run is not time in which the others were silent', async t => {
  const rig = new CoreRig(someLog)
  rig.append('c', 5, entry(10, 5), [])
  rig.do({ type: 'tick', nowMs: 60_000 })
  t.equal(rig.core.role, 'follower')
  t.equal(rig.core.leader, 'c')
})

t.test('a cell elects one leader, and another when it goes', async t => {
  const cell = new CoreCell(['a', 'b', 'c'])
  cell.wait(1500)
  const first = cell.leader!
  t.ok(first)
  cell.isCut = (from, to) => from === first || to === first
  cell.wait(2000)
  const second = cell.leader!
  t.not(second, first)
  t.equal(cell.rig(first).core.role, 'preCandidate', 'cut off, it has stepped down')
  const reached = cell.rig(second).core.term
  t.equal(cell.rig(first).core.term, reached - 1, 'and its term has not grown')
  cell.isCut = () => false
  cell.wait(1000)
  t.match(
    cell.rig(first).core,
    { role: 'follower', leader: second, term: reached },
    'nor does it disturb the others',
  )
})
