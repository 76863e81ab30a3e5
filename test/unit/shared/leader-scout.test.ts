/** When a client leaves a leader that says nothing, and when it does not. Time is the test's. */
import t from 'tap'
import type { Lsn, TimelineId } from '../../../protocol/ids.ts'
import { MessageType } from '../../../protocol/messages.ts'
import { askLeader } from '../../../server/shared/cell-client.ts'
import { silentLog } from '../../../server/shared/log.ts'
import { WalWriter } from '../../../server/shared/log-client.ts'
import { FakeCell } from '../../support/fake-cell.ts'

const ID = '77'.repeat(16) as TimelineId
const START = 1000

async function openWriter(cell: FakeCell, addresses = cell.addresses) {
  const { clock, connect } = cell
  const opening = WalWriter.open({
    ...{ safekeepers: addresses, timeline: ID, name: 'test', log: silentLog },
    ...{ clock, connect, random: () => 0 },
  })
  await clock.pass(10)
  const writer = await opening
  return {
    writer,
    append: () => void writer.append(writer.endLsn, Buffer.alloc(100)).catch(() => {}),
  }
}

t.test('a leader that stands still is left when another one leads in a higher term', async t => {
  const cell = new FakeCell(START)
  const { writer, append } = await openWriter(cell)
  append()
  await cell.clock.pass(100)
  t.equal(writer.flushedLsn, START + 100)
  cell.hang('a')
  for (let i = 0; i < 3; i++) append()
  await cell.clock.pass(500)
  cell.elect('b', 2)
  t.equal(writer.flushedLsn, START + 100)
  await cell.clock.pass(700)
  t.equal(
    writer.flushedLsn,
    START + 400,
    'within a second and a bit, where it took silenceMs and a dial before',
  )
  t.equal(writer.failed, undefined)
  // The old one goes on, and takes nothing: what it has is answered to nobody.
  cell.wakeUp('a')
  append()
  await cell.clock.pass(200)
  t.equal(writer.flushedLsn, START + 500)
  t.same(
    cell.log,
    [0, 1, 2, 3, 4].map(i => [START + i * 100, START + (i + 1) * 100]),
    'each byte once, in order',
  )
  writer.close()
})

t.test('silence alone moves nobody', async t => {
  const cell = new FakeCell(START)
  const { writer, append } = await openWriter(cell)
  append()
  await cell.clock.pass(100)
  const dials = () => cell.dials.filter(address => address === '127.0.0.1:7000').length
  cell.hang('a')
  append()
  // The others know it as the leader still.
  await cell.clock.pass(5000)
  t.equal(writer.flushedLsn, START + 100)
  t.ok(dials() > 1, 'it was asked, too')
  t.ok(cell.dials.length < 20, `asked around ${cell.dials.length} times: less and less often`)
  cell.wakeUp('a')
  await cell.clock.pass(50)
  t.equal(writer.flushedLsn, START + 200, 'answered on the connection that it had')
  const before = cell.dials.length
  append()
  await cell.clock.pass(5000)
  t.equal(cell.dials.length, before, 'nobody is asked while nothing is waited for')
  writer.close()
})

t.test('no leader, an older one, or the same again is no reason', async t => {
  for (const what of ['none', 'older', 'again'] as const) {
    const cell = new FakeCell(START)
    cell.elect('a', 5)
    const { writer, append } = await openWriter(cell)
    cell.hang('a')
    append()
    for (const name of ['b', 'c']) {
      const node = cell.node(name)
      if (what === 'none') node.leader = ''
      if (what === 'older') Object.assign(node, { term: 4, leader: cell.node('b').nodeId })
      if (what === 'again') node.term = 6
    }
    await cell.clock.pass(3000)
    t.same(cell.log, [], what)
    if (what === 'older') for (const name of ['b', 'c']) Object.assign(cell.node(name), { term: 5 })
    cell.elect('a', 6)
    cell.wakeUp('a')
    cell.elect('a', 6)
    await cell.clock.pass(100)
    t.same(cell.log, [[START, START + 100]], what)
    writer.close()
  }
})

t.test('a node that was never given is found', async t => {
  const cell = new FakeCell(START)
  const { writer, append } = await openWriter(cell, [cell.node('a').address, cell.node('c').address])
  cell.hang('a')
  append()
  cell.elect('b', 2)
  await cell.clock.pass(1500)
  t.equal(writer.flushedLsn, START + 100)
  writer.close()
})

t.test('a hung node does not hold up who looks for the leader', async t => {
  const cell = new FakeCell(START)
  cell.hang('a')
  cell.elect('c', 2)
  const { clock, connect } = cell
  const asking = askLeader(
    cell.addresses,
    { type: MessageType.WalState, timeline: ID },
    { clock, connect, random: () => 0 },
  )
  // The round waits for a node of which nothing is known yet: it may be the leader.
  await clock.pass(2050)
  t.equal((await asking).message.flushedLsn, START as Lsn)
  t.equal(cell.dials.at(-1), '127.0.0.1:7002')
})
