import t from 'tap'
import type { Connection } from '../../../protocol/connection.ts'
import { type Address, formatAddress, parseAddress } from '../../../protocol/dial.ts'
import { MessageType, type PeerHelloReply } from '../../../protocol/messages.ts'
import type { NodeId } from '../../../server/safekeeper/core/types.ts'
import { MemberAddresses } from '../../../server/safekeeper/member-addresses.ts'

const CELL = 'ce'.repeat(16)
const idOf = (name: string) => `${name}.0123456789abcdef` as NodeId
const B = idOf('b')

interface Answer {
  readonly name: string
  readonly cellId?: string
  readonly leader?: string
  readonly leaderAddress?: string
}

/** Node a, beside members b and c. `answers`: who listens where. */
function rig(peers: Record<string, string>, answers: Record<string, Answer>) {
  const state = { nodes: new Map<NodeId, { address: string; zone: string }>() }
  const driver = { leader: undefined as NodeId | undefined, state: state as never }
  const members = { all: new Set(['a', 'b', 'c'].map(idOf)) }
  const connected = new Set<NodeId>()
  const asked: string[] = []
  let targets = new Map<string, string>()
  const addresses = new MemberAddresses({
    cellId: CELL,
    self: () => ({ nodeId: idOf('a'), address: 'a:1', zone: '' }),
    configured: new Map(Object.entries(peers).map(([name, address]) => [name, parseAddress(address)])),
    join: [],
    driver,
    members,
    isConnected: id => connected.has(id),
    dial: async (address: Address) => {
      const at = formatAddress(address)
      asked.push(at)
      const answer = answers[at]
      if (answer === undefined) throw new Error('nobody listens')
      const { name, cellId = CELL, leader, leaderAddress = '' } = answer
      const message: PeerHelloReply = {
        type: MessageType.PeerHelloReply,
        cellId,
        node: { nodeId: idOf(name), address: at, zone: '' },
        leader: leader === undefined ? '' : idOf(leader),
        leaderAddress,
        term: 1,
        seed: [],
      }
      return { request: async () => ({ message }), close: () => {} } as unknown as Connection
    },
    subscribeAt: wanted => {
      targets = new Map([...wanted].map(([name, address]) => [name, formatAddress(address)]))
    },
  })
  return {
    addresses,
    driver,
    members,
    connected,
    asked,
    stateSays: (name: string, address: string) => state.nodes.set(idOf(name), { address, zone: '' }),
    targets: () => Object.fromEntries([...targets].sort()),
  }
}

t.test('the state comes before --peers', async t => {
  const { addresses, stateSays, targets } = rig({ a: 'a:1', b: 'b:1', c: 'c:1' }, {})
  t.equal(addresses.addressOf(B), 'b:1')
  stateSays('b', 'b:2')
  t.equal(addresses.addressOf(B), 'b:2')
  addresses.aim()
  t.same(targets(), { b: 'b:2', c: 'c:1' }, 'nobody subscribes at itself')
  t.equal(addresses.addressOf(idOf('z')), '')
})

t.test('where a node answered counts until the state says something new of it', async t => {
  const answers: Record<string, Answer> = {
    'c:1': { name: 'c', leader: 'b', leaderAddress: 'b:3' },
    'b:3': { name: 'b' },
  }
  const { addresses, stateSays, targets, driver } = rig({ b: 'b:1', c: 'c:1' }, answers)
  stateSays('b', 'b:2')
  await addresses.lookForLeader()
  t.same(targets(), { b: 'b:3', c: 'c:1' }, 'the leader that another told of')
  driver.leader = B
  t.equal(addresses.leaderAddress, 'b:3')
  stateSays('b', 'b:4')
  t.equal(addresses.leaderAddress, 'b:4')
})

t.test('what the state says holds where it is right, whatever else answers', async t => {
  const { addresses, stateSays } = rig({ b: 'b:1', c: 'c:1' }, { 'b:1': { name: 'b' }, 'b:2': { name: 'b' } })
  stateSays('b', 'b:2')
  await addresses.lookForLeader()
  t.equal(addresses.addressOf(B), 'b:2')
})

t.test('what is only told is asked and not believed', async t => {
  const { addresses, stateSays, asked } = rig(
    { b: 'b:1', c: 'c:1' },
    {
      'c:1': { name: 'c', leader: 'b', leaderAddress: 'b:3' },
      'b:9': { name: 'b', cellId: 'aa'.repeat(16) },
    },
  )
  stateSays('b', 'b:2')
  addresses.onSubscribed({ nodeId: B, address: 'b:9', zone: '' })
  addresses.onSubscribed({ nodeId: idOf('stranger'), address: 'z:9', zone: '' })
  await addresses.lookForLeader()
  t.same(asked.sort(), ['b:1', 'b:2', 'b:3', 'b:9', 'c:1'])
  t.equal(addresses.addressOf(B), 'b:2', 'nobody at b:3, and another cell at b:9')
})

t.test('a member that moved and subscribes here is found', async t => {
  const { addresses, stateSays, targets } = rig({ b: 'b:1', c: 'c:1' }, { 'b:9': { name: 'b' } })
  stateSays('b', 'b:2')
  addresses.onSubscribed({ nodeId: B, address: 'b:9', zone: '' })
  await addresses.lookForLeader()
  t.same(targets(), { b: 'b:9', c: 'c:1' })
})

t.test('it tells who knows of a leader, the leader first', async t => {
  const answers: Record<string, Answer> = {
    'b:1': { name: 'b', leader: 'c', leaderAddress: 'c:2' },
    'c:2': { name: 'c', leader: 'c', leaderAddress: 'c:2' },
    'd:1': { name: 'd' },
    'e:1': { name: 'e', leader: 'a' },
    'f:1': { name: 'f', leader: 'c', cellId: 'dd'.repeat(16) },
  }
  const { addresses, driver } = rig({ b: 'b:1', c: 'c:1', d: 'd:1', e: 'e:1', f: 'f:1' }, answers)
  t.same(await addresses.lookForLeader(), ['c:2', 'b:1'])
  driver.leader = idOf('c')
  t.same(await addresses.lookForLeader(), [])
})

t.test('nobody is asked while there is a leader; who is no member yet asks all the same', async t => {
  const { addresses, driver, asked, members, targets } = rig({ b: 'b:1' }, { 'b:1': { name: 'b' } })
  driver.leader = B
  await addresses.lookForLeader()
  t.same(asked, [])
  members.all = new Set([idOf('c')])
  await addresses.lookForLeader()
  t.same(asked, ['b:1'])
  t.same(targets(), { b: 'b:1' })
})

t.test('a node that was added while this one was away is listened to while there is no leader', async t => {
  const { addresses, connected, driver, members, targets } = rig({ a: 'a:1', b: 'b:1', c: 'c:1' }, {})
  const subscribe = (nodeId: NodeId, address: string) => {
    connected.add(nodeId)
    addresses.onSubscribed({ nodeId, address, zone: '' })
    addresses.aim()
  }
  subscribe(idOf('x'), 'x:1')
  t.same(targets(), { b: 'b:1', c: 'c:1', x: 'x:1' })
  driver.leader = B
  addresses.aim()
  t.same(targets(), { b: 'b:1', c: 'c:1' }, 'with a leader of its own membership it needs nobody else')
  driver.leader = idOf('x')
  addresses.aim()
  t.same(targets(), { b: 'b:1', c: 'c:1', x: 'x:1' }, 'until the leader has sent it the membership')
  members.all.add(idOf('x'))
  driver.leader = undefined
  members.all.delete(idOf('x'))
  connected.delete(idOf('x'))
  addresses.aim()
  t.same(targets(), { b: 'b:1', c: 'c:1' }, 'one that is gone is forgotten')

  const other = 'c.fedcba9876543210' as NodeId
  connected.add(idOf('c'))
  subscribe(other, 'c:2')
  t.same(targets(), { b: 'b:1', c: 'c:1' }, 'a member that is there keeps its place')
  connected.delete(idOf('c'))
  addresses.aim()
  t.same(targets(), { b: 'b:1', c: 'c:2' }, 'of one that is not, another may have it by now')
})
