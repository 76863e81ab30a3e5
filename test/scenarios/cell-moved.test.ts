/** Members whose address changes while everybody's --peers stays as it was: the others find them. */
import t from 'tap'
import { MessageType } from '../../protocol/messages.ts'
import { askLeader } from '../../server/shared/cell-client.ts'
import { TestCell } from '../support/cell.ts'
import { caughtUp, newWriter, until, write } from '../support/cell-writer.ts'

const nameOf = (nodeId: string) => nodeId.split('.')[0]!

/** As the leader tells it. */
async function addressOf(cell: TestCell, name: string): Promise<string | undefined> {
  const { members } = (await cell.leader()).safekeeper.node.status()
  return members.find(({ nodeId }) => nameOf(nodeId) === name)?.address
}

t.test('a follower that moved makes a quorum with the leader again', { timeout: 120_000 }, async t => {
  const cell = await TestCell.start(t)
  const writer = await newWriter(t, cell)
  await write(writer, 10_000)
  const leader = (await cell.leader()).name
  const [moved, other] = [...cell.nodes.keys()].filter(name => name !== leader)
  await cell.stop(moved!)
  await cell.move(moved!)
  await cell.startNode(moved!)
  await until('the cell knows where it is', async () => {
    return (await addressOf(cell, moved!)) === `127.0.0.1:${cell.addresses.get(moved!)!.port}`
  })
  await cell.stop(other!)
  await write(writer, 10_000)
  await caughtUp(cell, writer)
})

t.test('one that was away finds the leader, which moved meanwhile', { timeout: 120_000 }, async t => {
  const cell = await TestCell.start(t)
  const writer = await newWriter(t, cell)
  await write(writer, 10_000)
  const [away, moved, other] = [...cell.nodes.keys()]
  await cell.stop(away!)
  await cell.stop(moved!)
  await cell.move(moved!)
  await cell.startNode(moved!)
  await write(writer, 10_000)
  await until('it leads', async () => {
    const leader = (await cell.leader()).name
    if (leader === moved) return true
    await askLeader(cell.list, { type: MessageType.TransferLeadership, name: moved! })
    return false
  })
  // Both its own state and its --peers say where the leader was.
  await cell.startNode(away!)
  await until('it follows', () => {
    const { leader, appliedIndex } = cell.nodes.get(away!)!.safekeeper.node.status()
    return leader !== '' && nameOf(leader) === moved && appliedIndex > 0
  })
  await cell.stop(other!)
  await write(writer, 10_000)
  await caughtUp(cell, writer)
})
