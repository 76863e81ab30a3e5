/** A cell of three in this process: its leader goes, comes back, loses its disk; members come and go; a writer writes on. */
import { readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { Connection } from '../../protocol/connection.ts'
import { formatAddress } from '../../protocol/dial.ts'
import type { Lsn, TimelineId } from '../../protocol/ids.ts'
import { type CellStatusReply, MessageType } from '../../protocol/messages.ts'
import { askLeader } from '../../server/shared/cell-client.ts'
import { SafekeeperWatch } from '../../server/shared/safekeeper-watch.ts'
import { TestCell } from '../support/cell.ts'
import { busyWriter, caughtUp, ID, newWriter, readFrom, START, until } from '../support/cell-writer.ts'
import { lsnBytes } from '../support/lsn-bytes.ts'
import { MemoryDisk } from '../support/memory-disk.ts'

const like = (fields: object) => fields as Error

async function statusOf(cell: TestCell, name: string): Promise<CellStatusReply> {
  return cell.nodes.get(name)!.safekeeper.node.status()
}

t.test('the leader goes and comes back', { timeout: 120_000 }, async t => {
  const cell = await TestCell.start(t, { segmentBytes: 4 << 20 })
  const writer = await newWriter(t, cell)
  const busy = busyWriter(writer)
  for (let round = 0; round < 3; round++) {
    await busy.progress()
    const { name } = await cell.leader()
    await cell.stop(name)
    await busy.progress()
    t.not((await cell.leader()).name, name)
    await cell.startNode(name)
    await busy.progress()
  }
  await busy.stop()
  t.equal(writer.flushedLsn, writer.endLsn)
  await caughtUp(cell, writer)
  t.ok(writer.flushedLsn > START + 100_000, `${writer.flushedLsn - START} bytes`)
})

t.test('a majority is away: appends wait, reads go on, nothing is lost', { timeout: 120_000 }, async t => {
  const cell = await TestCell.start(t)
  const writer = await newWriter(t, cell)
  const busy = busyWriter(writer)
  await busy.progress()
  const { name: leader } = await cell.leader()
  const others = [...cell.nodes.keys()].filter(name => name !== leader)
  for (const name of others) await cell.stop(name)
  await until('it steps down', async () => (await statusOf(cell, leader)).role !== 'leader')
  const acked = writer.flushedLsn
  t.ok((await readFrom(cell, leader)) >= acked, 'committed redo is read from the one that is left')
  await t.rejects(
    askLeader([cell.addresses.get(leader)!], { type: MessageType.WalState, timeline: ID }),
    like({ kind: 'retry' }),
  )
  for (const name of others) await cell.startNode(name)
  await busy.progress()
  await busy.stop()
  await caughtUp(cell, writer)
})

t.test('a member with an empty disk gets its place again by itself', { timeout: 120_000 }, async t => {
  const cell = await TestCell.start(t, { segmentBytes: 4 << 20 })
  const writer = await newWriter(t, cell)
  const busy = busyWriter(writer)
  await busy.progress()
  for (const which of ['follower', 'leader']) {
    const leader = (await cell.leader()).name
    const name = which === 'leader' ? leader : [...cell.nodes.keys()].find(other => other !== leader)!
    const before = (await statusOf(cell, name)).nodeId
    await cell.stop(name)
    cell.wipe(name)
    await cell.startNode(name)
    await until(`${name} is a member again`, async () => {
      const { nodeId, members } = (await cell.leader()).safekeeper.node.status()
      void nodeId
      const own = await statusOf(cell, name)
      return (
        own.nodeId !== before &&
        members.length === 3 &&
        members.some(member => member.nodeId === own.nodeId && member.kind === 'voter')
      )
    })
    await busy.progress()
  }
  await busy.stop()
  await caughtUp(cell, writer)
})

t.test('members are added, replaced and removed while redo is written', { timeout: 200_000 }, async t => {
  const cell = await TestCell.start(t, { segmentBytes: 4 << 20 })
  const writer = await newWriter(t, cell)
  const busy = busyWriter(writer)
  await busy.progress()
  const voters = async () => {
    const { members } = (await cell.leader()).safekeeper.node.status()
    return members
      .filter(member => member.kind === 'voter')
      .map(member => member.nodeId.split('.')[0])
      .sort()
      .join('')
  }
  const join = cell.list
  // Catching up beside a writer at full speed takes its time on a busy machine.
  const patient = { request: { deadlineMs: 150_000 } }
  for (const name of ['d', 'e']) {
    await cell.startNode(name, { join })
    const address = formatAddress(cell.addresses.get(name)!)
    // The new one is asked first, and knows nothing.
    await askLeader(cell.list.reverse(), { type: MessageType.MemberAdd, name, address })
    await askLeader(cell.list, { type: MessageType.MemberAdd, name, address }, patient)
  }
  t.equal(await voters(), 'abcde')
  await cell.startNode('f', { join })
  await askLeader(
    cell.list,
    {
      type: MessageType.MemberReplace,
      old: 'd',
      name: 'f',
      address: formatAddress(cell.addresses.get('f')!),
    },
    patient,
  )
  await cell.stop('d')
  t.equal(await voters(), 'abcef')
  await busy.progress()
  // The leader itself: it hands over first, and the one after it does the rest.
  const leader = (await cell.leader()).name
  const remove = () => askLeader(cell.list, { type: MessageType.MemberRemove, name: leader }, patient)
  await remove().catch(remove).catch(remove)
  await cell.stop(leader)
  t.equal(await voters(), 'abcef'.replace(leader, ''))
  await busy.progress()
  const { name } = [...cell.nodes.values()].find(node => node.safekeeper.node.leading === undefined)!
  await askLeader(cell.list, { type: MessageType.TransferLeadership, name })
  t.equal((await cell.leader()).name, name)
  await t.rejects(
    askLeader(cell.list, { type: MessageType.TransferLeadership, name: 'nobody' }),
    like({ kind: 'invalid' }),
  )
  await busy.stop()
  await caughtUp(cell, writer)
})

t.test(
  'a member that was away finds a leader that came meanwhile, at an address it was never told',
  async t => {
    const cell = await TestCell.start(t)
    const writer = await newWriter(t, cell)
    await cell.startNode('d', { join: cell.list })
    const address = formatAddress(cell.addresses.get('d')!)
    const first = (await cell.leader()).name
    const [old, away] = ['a', 'b', 'c'].filter(name => name !== first)
    await askLeader(cell.list, { type: MessageType.MemberReplace, old: old!, name: 'd', address })
    await cell.stop(old!)
    await askLeader(cell.list, { type: MessageType.TransferLeadership, name: 'd' })
    t.equal((await cell.leader()).name, 'd')
    // It knows from its log that d is a member, but has applied nothing of it: without a leader it cannot tell what is committed.
    await cell.stop(away!)
    const { safekeeper } = await cell.startNode(away!)
    const leader = () => safekeeper.node.status().leader.split('.')[0]
    for (let i = 0; i < 1000 && leader() !== 'd'; i++) await new Promise(resolve => setTimeout(resolve, 10))
    t.equal(leader(), 'd')
    await cell.stop(first)
    const at = writer.endLsn
    await writer.append(at, lsnBytes(at, 1000))
    await writer.durable()
    t.equal(writer.flushedLsn, at + 1000, 'and makes a quorum with it')
  },
)

t.test('any node takes a request: it passes it on, or says where to go', { timeout: 60_000 }, async t => {
  const cell = await TestCell.start(t)
  const leader = await cell.leader()
  const other = [...cell.nodes.keys()].find(name => name !== leader.name)!
  const address = cell.addresses.get(other)!
  const forwards = await Connection.connect(address)
  t.teardown(() => forwards.close())
  await forwards.request({ type: MessageType.WalCreate, timeline: ID, startLsn: START, name: 'main' })
  const { message: opened } = await forwards.request({ type: MessageType.WalOpen, timeline: ID, writer: 'w' })
  let at: number = START
  const appends = Array.from({ length: 100 }, () => {
    const beginLsn = at as Lsn
    at += 1000
    return forwards.request(
      { type: MessageType.WalAppend, timeline: ID, epoch: opened.epoch, beginLsn, wallTimeUs: 1 },
      { bulk: lsnBytes(beginLsn, 1000) },
    )
  })
  await Promise.all(appends)
  const { message: list } = await forwards.request({ type: MessageType.WalList })
  t.match(list.timelines, [{ timeline: ID, committedLsn: at }])
  await t.rejects(
    forwards.request({ type: MessageType.WalOpen, timeline: 'ee'.repeat(16) as TimelineId, writer: 'w' }),
    like({ kind: 'invalid', message: /no timeline/ }),
  )
  await until('the other has it', async () => (await readFrom(cell, other)) === at)
  const redirected = await Connection.connect({ ...address, elsewhere: 'redirect' })
  t.teardown(() => redirected.close())
  await t.rejects(
    redirected.request({ type: MessageType.WalState, timeline: ID }),
    like({ kind: 'refresh', askAt: formatAddress(cell.addresses.get(leader.name)!) }),
  )
})

t.test('a reader leaves a safekeeper that is cut off', { timeout: 60_000 }, async t => {
  const cell = await TestCell.start(t)
  const writer = await newWriter(t, cell)
  const watch = new SafekeeperWatch(cell.list)
  t.teardown(() => watch.close())
  const leader = (await cell.leader()).name
  const [near, far] = [...cell.nodes.keys()].filter(name => name !== leader)
  let left = 0
  const address = formatAddress(cell.addresses.get(near!)!)
  const unfollow = watch.follow(address, () => left++)
  // It runs on, but hears nobody and nobody hears it.
  cell.nodes.get(near!)!.safekeeper.node.peers.close()
  await writer.append(START, lsnBytes(START, 1000))
  await writer.durable()
  await until('it is known to stand still', () => left > 0)
  const order = watch.order().map(formatAddress)
  t.equal(order.at(-1), address)
  t.ok(order.includes(formatAddress(cell.addresses.get(far!)!)))
  unfollow()
  // A stream that follows there ends by itself, with the advice to go elsewhere.
  const connection = await Connection.connect(cell.addresses.get(near!)!)
  t.teardown(() => connection.close())
  await t.rejects(
    (async () => {
      const request = { type: MessageType.WalRead, timeline: ID, fromLsn: START, follow: true } as const
      for await (const _ of connection.stream(request));
    })(),
    like({ kind: 'retry' }),
  )
})

t.test('disks fill: of the leader, then of a quorum', { timeout: 120_000 }, async t => {
  const disks = new Map(['a', 'b', 'c'].map(name => [name, new MemoryDisk()]))
  const cell = await TestCell.start(t, { segmentBytes: 1 << 20, disk: name => disks.get(name)! })
  const writer = await newWriter(t, cell)
  const busy = busyWriter(writer)
  await busy.progress()
  const first = (await cell.leader()).name
  disks.get(first)!.capacity = disks.get(first)!.used
  await until('the leader that cannot write hands over', () => {
    const leader = [...cell.nodes.values()].find(node => node.safekeeper.node.leading !== undefined)
    return leader !== undefined && leader.name !== first
  })
  for (let i = 0; i < 20; i++) await busy.progress()
  t.equal((await statusOf(cell, first)).writable, false)
  const second = (await cell.leader()).name
  disks.get(second)!.capacity = disks.get(second)!.used
  await until('two of three are full', async () => (await statusOf(cell, second)).writable === false)
  for (const disk of disks.values()) disk.capacity = Number.POSITIVE_INFINITY
  for (let i = 0; i < 20; i++) await busy.progress()
  await busy.stop()
  await caughtUp(cell, writer)
  for (const name of disks.keys())
    await until(`${name} takes entries again`, async () => (await statusOf(cell, name)).writable)
})

t.test(
  'damaged redo is fetched from the others before the node votes again',
  { timeout: 120_000 },
  async t => {
    const cell = await TestCell.start(t, { segmentBytes: 1 << 20 })
    const writer = await newWriter(t, cell)
    const busy = busyWriter(writer)
    for (let i = 0; i < 30; i++) await busy.progress()
    const leader = (await cell.leader()).name
    const name = [...cell.nodes.keys()].find(other => other !== leader)!
    await cell.stop(name)
    const dir = join(cell.dir, name, 'log')
    const segment = readdirSync(dir)
      .filter(file => file.endsWith('.seg') && /^[0-9]/.test(file))
      .sort()
      .at(-1)!
    const bytes = readFileSync(join(dir, segment))
    // Within the second entry or so of the newest segment: it was synced, and its acknowledgement counted.
    bytes[4096 + 300]! ^= 0xff
    writeFileSync(join(dir, segment), bytes)
    await cell.startNode(name)
    await until('it has caught up', async () => {
      const { role, commitIndex } = await statusOf(cell, name)
      return role === 'follower' && commitIndex > 0
    })
    await busy.progress()
    await busy.stop()
    await caughtUp(cell, writer)
    // And again after a start: what was fetched is what is there.
    await cell.stop(name)
    await cell.startNode(name)
    await caughtUp(cell, writer)
  },
)
