import t from 'tap'
import type { MembershipChange, NodeId } from '../../../../server/safekeeper/core/types.ts'
import { CoreCell, CoreRig, voters } from '../../../support/core-rig.ts'

/** A leads b and c, with a learner d; all have everything. */
function leading(): CoreRig {
  const rig = new CoreRig({ membership: { voters: ['a', 'b', 'c'], learners: ['d'] } }).lead('b')
  for (const id of ['b', 'c', 'd']) rig.acknowledge(id, 1)
  rig.effects = []
  return rig
}

const change = (ids: NodeId[], learners: NodeId[] = []): MembershipChange => ({ voters: ids, learners })

t.test('what is refused', async t => {
  const table: [what: string, change: MembershipChange, why: RegExp, before?: (rig: CoreRig) => void][] = [
    ['nobody votes', change([]), /needs a member that votes/],
    ['one twice', change(['a', 'b', 'b']), /named twice/],
    ['voter and learner', change(['a', 'b', 'c'], ['c']), /named twice/],
    ['nothing', change(['c', 'b', 'a'], ['d']), /is this already/],
    ['a stranger', change(['a', 'b', 'c', 'x']), /not caught up: x/],
    [
      'a learner without connection',
      change(['a', 'b', 'c', 'd']),
      /not caught up: d/,
      rig => rig.do({ type: 'peerLost', peer: 'd' }),
    ],
    [
      'a silent majority',
      change(['b', 'c']),
      /no majority of the new/,
      rig => {
        for (let i = 0; i < 14; i++) {
          rig.wait(50)
          rig.acknowledge('b', 1)
        }
      },
    ],
    [
      'two at a time',
      change(['a', 'b']),
      /another change/,
      rig => rig.do({ type: 'change', change: change(['a', 'b', 'c']) }),
    ],
    [
      'while handing over',
      change(['a', 'b']),
      /handed over/,
      rig => {
        rig.do({ type: 'propose', count: 1 })
        rig.do({ type: 'transfer', to: 'b' })
      },
    ],
  ]
  for (const [what, wanted, why, before] of table) {
    const rig = leading()
    before?.(rig)
    rig.effects = []
    rig.do({ type: 'change', change: wanted })
    t.match(rig.take('refused'), [{ what: 'change', why }], what)
  }
  const early = new CoreRig({}).lead('b')
  early.effects = []
  early.do({ type: 'change', change: change(['a', 'b']) })
  t.match(early.take('refused'), [{ what: 'change', why: /only just begun/ }], 'before its first commit')
})

t.test('a change goes by way of a joint membership, which is left when it is committed', async t => {
  const rig = leading()
  rig.do({ type: 'change', change: change(['a', 'b', 'd'], ['c']) })
  const joint = { voters: ['a', 'b', 'd'], outgoing: ['a', 'b', 'c'], learners: ['c'] }
  t.match(
    rig.effects.filter(({ type }) => type === 'membership'),
    [{ membership: joint, committed: false }],
  )
  t.match(rig.take('appendOwn'), [{ id: { index: 2 }, entry: { kind: 'membership', membership: joint } }])
  rig.acknowledge('c', 2)
  t.equal(rig.core.commit, 1, 'a majority of the old is not enough')
  rig.acknowledge('d', 2)
  t.equal(rig.core.commit, 2)
  const next = { voters: ['a', 'b', 'd'], learners: ['c'] }
  t.match(
    rig.effects.filter(({ type }) => type === 'membership'),
    [
      { membership: joint, committed: true },
      { membership: next, committed: false },
    ],
  )
  t.match(rig.take('appendOwn'), [{ id: { index: 3 }, entry: { membership: next } }])
  rig.acknowledge('c', 3)
  t.equal(rig.core.commit, 2, 'now it is a learner')
  rig.acknowledge('b', 3)
  t.equal(rig.core.commit, 3)
  t.match(rig.take('membership'), [{ membership: next, committed: true }])
})

t.test('learners come and go without a joint membership', async t => {
  const rig = leading()
  rig.do({ type: 'change', change: change(['a', 'b', 'c'], ['d', 'e']) })
  t.match(
    rig.effects.filter(({ type }) => type === 'appendOwn'),
    [{ entry: { membership: { voters: ['a', 'b', 'c'], learners: ['d', 'e'], outgoing: undefined } } }],
  )
  t.ok(rig.core.lead!.progress.has('e'))
  rig.acknowledge('b', 2)
  rig.do({ type: 'change', change: change(['a', 'b', 'c']) })
  rig.acknowledge('b', 3)
  t.same([...rig.core.lead!.progress.keys()], ['a', 'b', 'c'])
})

t.test('a new leader finishes what another began', async t => {
  const cell = new CoreCell(['a', 'b', 'c'])
  cell.wait(1500)
  const first = cell.leader!
  const [second, third] = ['a', 'b', 'c'].filter(id => id !== first) as [string, string]
  cell.isCut = from => from === third
  cell.rig(first).do({ type: 'change', change: change([first, second]) })
  cell.settle()
  cell.isCut = (from, to) => from === first || to === first
  cell.wait(3000)
  t.equal(cell.leader, undefined, 'half of the new membership is away')
  cell.isCut = () => false
  cell.wait(3000)
  for (const id of [first, second]) {
    t.match(cell.rig(id).core.memberships, [{ membership: voters(first, second) }])
    t.equal(cell.rig(id).core.memberships[0]!.membership.outgoing, undefined)
  }
})

t.test('a leader that is removed leaves when that is committed, and another takes over at once', async t => {
  const cell = new CoreCell(['a', 'b', 'c'])
  cell.wait(1500)
  const first = cell.leader!
  const others = ['a', 'b', 'c'].filter(id => id !== first)
  cell.rig(first).do({ type: 'change', change: change(others) })
  cell.settle()
  t.not(cell.rig(first).core.role, 'leader')
  t.ok(others.includes(cell.leader!), 'without a time-out')
  cell.wait(3000)
  t.ok(others.includes(cell.leader!))
  t.same(cell.rig(first).takeSent('vote'), [], 'the removed does not stand')
})

t.test('an empty node becomes a learner, catches up, and replaces another in one step', async t => {
  const cell = new CoreCell(['a', 'b', 'c'])
  cell.wait(1500)
  const first = cell.leader!
  const gone = ['a', 'b', 'c'].find(id => id !== first)!
  const stays = ['a', 'b', 'c'].find(id => id !== first && id !== gone)!
  cell.rig(first).do({ type: 'propose', count: 5000 })
  cell.settle()
  cell.isCut = (from, to) => from === gone || to === gone
  cell.add('n')
  cell.rig(first).do({ type: 'change', change: change(['a', 'b', 'c'], ['n']) })
  cell.wait(500)
  t.equal(cell.rig('n').core.applied, cell.rig(first).core.applied)
  cell.rig(first).do({ type: 'change', change: change([first, stays, 'n']) })
  cell.wait(500)
  t.match(cell.rig('n').core.memberships, [{ membership: voters(first, stays, 'n') }])
  t.equal(cell.leader, first)
})
