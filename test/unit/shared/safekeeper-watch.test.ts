/** When a reader leaves a safekeeper. Time is the test's. */
import t from 'tap'
import { formatAddress } from '../../../protocol/dial.ts'
import { SafekeeperWatch } from '../../../server/shared/safekeeper-watch.ts'
import { FakeCell } from '../../support/fake-cell.ts'

function watching(cell: FakeCell, name: string) {
  const watch = new SafekeeperWatch(cell.addresses, { clock: cell.clock, connect: cell.connect })
  let left = 0
  const unfollow = watch.follow(formatAddress(cell.node(name).address), () => left++)
  return { watch, unfollow, left: () => left }
}

t.test('one that says nothing is left within two seconds if others have another leader', async t => {
  const cell = new FakeCell(0)
  const { watch, unfollow, left } = watching(cell, 'a')
  await cell.clock.pass(3000)
  t.equal(left(), 0)
  cell.hang('a')
  cell.elect('b', 2)
  await cell.clock.pass(900)
  t.equal(left(), 0, 'it may be slow')
  await cell.clock.pass(1100)
  t.equal(left(), 1)
  t.equal(formatAddress(watch.order().at(-1)!), formatAddress(cell.node('a').address))
  unfollow()
})

t.test('silence alone takes three seconds, and is nothing if all are silent', async t => {
  const cell = new FakeCell(0)
  const { unfollow, left } = watching(cell, 'b')
  await cell.clock.pass(1000)
  cell.hang('b')
  await cell.clock.pass(2500)
  t.equal(left(), 0)
  for (const name of ['a', 'c']) cell.hang(name)
  await cell.clock.pass(10_000)
  t.equal(left(), 0, 'nobody is better')
  cell.wakeUp('a')
  await cell.clock.pass(1000)
  t.equal(left() > 0, true)
  unfollow()
})

t.test('one that answers is not left, whoever leads', async t => {
  const cell = new FakeCell(0)
  const { unfollow, left } = watching(cell, 'a')
  await cell.clock.pass(1000)
  cell.elect('b', 2)
  await cell.clock.pass(5000)
  t.equal(left(), 0)
  unfollow()
})

t.test('one that answers but falls behind in an old term is left after a second', async t => {
  const cell = new FakeCell(0)
  for (const node of cell.nodes) node.commitIndex = 10
  const { unfollow, left } = watching(cell, 'a')
  await cell.clock.pass(1000)
  // Cut off from the others, and not from us.
  for (const name of ['b', 'c'])
    Object.assign(cell.node(name), { term: 2, leader: cell.node('b').nodeId, commitIndex: 12 })
  await cell.clock.pass(1000)
  t.equal(left(), 0)
  await cell.clock.pass(1500)
  t.ok(left() > 0)
  unfollow()
})
