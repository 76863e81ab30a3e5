/** Who may do what in a cell, whichever of its safekeepers is asked: scopes of those who ask, names of those who pass on. */
import t from 'tap'
import { Connection } from '../../protocol/connection.ts'
import type { Lsn, TimelineId, WriterEpoch } from '../../protocol/ids.ts'
import { type Message, MessageType, type Request } from '../../protocol/messages.ts'
import { openClientSecurity } from '../../server/shared/client-security.ts'
import { silentLog } from '../../server/shared/log.ts'
import { ServerSecurity } from '../../server/shared/server-security.ts'
import { TestCell } from '../support/cell.ts'
import { Pki } from '../support/pki.ts'

const MINE = 'aa'.repeat(16) as TimelineId
const OTHER = 'bb'.repeat(16) as TimelineId
const START = 4096 as Lsn
const like = (fields: object) => fields as Error

async function start(t: Parameters<typeof TestCell.start>[0], options: { mutual?: boolean } = {}) {
  const pki = await Pki.make(t)
  const serverFiles = {
    tokenKeys: pki.path('token-keys.json'),
    ...(options.mutual === true && { ...pki.serverTls, tlsClientCa: pki.caFile }),
  }
  const securities: ServerSecurity[] = []
  t.teardown(() => {
    for (const security of securities) security.close()
  })
  const cell = await TestCell.start(t, {
    security: async name => {
      const server = await ServerSecurity.open(serverFiles, silentLog)
      securities.push(server)
      const tokenFile = await pki.tokenFile([`peer:${name}`], { name: `token-of-${name}` })
      if (options.mutual !== true) return { server, client: openClientSecurity({ tokenFile }) }
      await pki.writeNode(name, undefined, undefined, [])
      const certificate = { tlsCert: pki.path(`${name}.pem`), tlsKey: pki.path(`${name}.key`) }
      return { server, client: openClientSecurity({ tokenFile, tlsCa: pki.caFile, ...certificate }) }
    },
  })
  const leader = (await cell.leader()).name
  const follower = [...cell.nodes.keys()].find(name => name !== leader)!
  const connect = async (name: string, scopes: string[], files = {}) => {
    const tokenFile = await pki.tokenFile(scopes, { name: 'asker' })
    const security = openClientSecurity({ tokenFile, ...files })
    const connection = await Connection.connect({ ...cell.addresses.get(name)!, security })
    t.teardown(() => connection.close())
    return connection
  }
  return { pki, cell, leader, follower, connect }
}

const of = (timeline: TimelineId): Request[] => [
  { type: MessageType.WalCreate, timeline, startLsn: START, name: 'x' },
  { type: MessageType.WalOpen, timeline, writer: 'w' },
  {
    type: MessageType.WalSkip,
    timeline,
    epoch: 1 as WriterEpoch,
    fromLsn: START,
    toLsn: (START + 9) as Lsn,
    wallTimeUs: 1,
  },
  { type: MessageType.WalTrim, timeline, durableLsn: START, consumer: 'c' },
  { type: MessageType.WalState, timeline },
  { type: MessageType.WalDelete, timeline },
  { type: MessageType.WalShow, timeline },
  { type: MessageType.WalRename, timeline, name: 'y' },
  { type: MessageType.WalBranch, timeline, ancestor: timeline, lsn: START, name: 'z' },
  { type: MessageType.WalConsumerDrop, timeline, consumer: 'c' },
]
const CHANGES: Request[] = [
  { type: MessageType.MemberAdd, name: 'x', address: '127.0.0.1:1' },
  { type: MessageType.MemberRemove, name: 'a' },
  { type: MessageType.MemberReplace, old: 'a', name: 'x', address: '127.0.0.1:1' },
  { type: MessageType.TransferLeadership, name: 'b' },
]

t.test(
  'a follower refuses by the scopes of the asker, before it passes anything on',
  { timeout: 60_000 },
  async t => {
    const { cell, leader, follower, connect } = await start(t)
    const admin = await connect(follower, ['admin'])
    for (const [timeline, name] of [
      [MINE, 'mine'],
      [OTHER, 'other'],
    ] as const)
      await admin.request({ type: MessageType.WalCreate, timeline, startLsn: START, name })

    const writer = await connect(follower, [`write:${MINE}`])
    const before = (await admin.request({ type: MessageType.CellStatus })).message.members
    for (const request of [...of(OTHER), ...CHANGES])
      await t.rejects(
        writer.request(request),
        like({ kind: 'invalid', message: /^the token of "asker" \(write:a+\) does not allow/ }),
        `message ${request.type}`,
      )
    const append = {
      type: MessageType.WalAppend,
      timeline: OTHER,
      epoch: 1 as WriterEpoch,
      beginLsn: START,
      wallTimeUs: 1,
    } as const
    await t.rejects(
      writer.request(append, { bulk: Buffer.alloc(9) }),
      like({ kind: 'invalid', message: /"asker"/ }),
    )
    for (const scopes of [['pageserver'], ['read:*'], ['write:*']])
      for (const request of CHANGES) {
        const connection = await connect(follower, scopes)
        await t.rejects(connection.request(request), like({ kind: 'invalid', message: /it takes admin$/ }))
      }
    // It may do what it may, through the same node.
    const { message: opened } = await writer.request({
      type: MessageType.WalOpen,
      timeline: MINE,
      writer: 'w',
    })
    await writer.request({ ...append, timeline: MINE, epoch: opened.epoch }, { bulk: Buffer.alloc(9) })
    const { message: list } = await writer.request({ type: MessageType.WalList })
    t.same(
      list.timelines.map(({ timeline }) => timeline),
      [MINE],
      'a list from the leader is cut down where it was asked for',
    )
    const { message: state } = await admin.request({ type: MessageType.WalState, timeline: OTHER })
    t.equal(state.epoch, 0, 'nothing of it came to pass')
    t.same((await admin.request({ type: MessageType.CellStatus })).message.members.length, before.length)

    // An administrator changes the cell through any node.
    await admin.request({ type: MessageType.TransferLeadership, name: follower })
    t.equal((await cell.leader()).name, follower)
    const there = await connect(leader, ['admin'])
    await there.request({ type: MessageType.TransferLeadership, name: leader })
    t.equal((await cell.leader()).name, leader)
    await t.rejects(
      admin.request({ type: MessageType.TransferLeadership, name: 'nobody' }),
      like({ kind: 'invalid', message: /no voting member nobody/ }),
      "the leader's own refusal comes back as it is",
    )
  },
)

t.test(
  'a safekeeper takes from another what that passes on, and no other name',
  { timeout: 60_000 },
  async t => {
    const { leader, connect } = await start(t)
    const peer = await connect(leader, ['peer:x'])
    await peer.request({ type: MessageType.WalCreate, timeline: MINE, startLsn: START, name: 'mine' })
    for (const request of [
      { type: MessageType.WalRead, timeline: MINE, fromLsn: START, follow: false },
      { type: MessageType.TimelineDelete, timeline: MINE },
      { type: MessageType.SpaceList, timeline: MINE, lsn: START },
    ])
      await t.rejects(
        peer.requestAll(request as unknown as Request),
        like({ kind: 'invalid', message: /\(peer:x\) does not allow/ }),
      )
    const node = { nodeId: `b.${'0'.repeat(16)}`, address: '127.0.0.1:1', zone: '' }
    for (const request of [
      { type: MessageType.PeerHello, cellId: '', node },
      { type: MessageType.PeerSubscribe, cellId: '', node, lane: 'control' },
    ] as (Message & Request)[])
      await t.rejects(
        peer.requestAll(request),
        like({ kind: 'invalid', message: /does not allow to speak as safekeeper b: it takes peer:b/ }),
      )
  },
)

t.test('over mutual TLS the certificate has to name the node, too', { timeout: 60_000 }, async t => {
  const { pki, cell, leader, follower, connect } = await start(t, { mutual: true })
  const files = (name: string) => ({
    ...{ tlsCa: pki.caFile, tlsCert: pki.path(`${name}.pem`), tlsKey: pki.path(`${name}.key`) },
  })
  const admin = await connect(follower, ['admin'], files(follower))
  await admin.request({ type: MessageType.WalCreate, timeline: MINE, startLsn: START, name: 'mine' })
  t.equal((await cell.leader()).name, leader)
  const node = { nodeId: `${follower}.${'0'.repeat(16)}`, address: '127.0.0.1:1', zone: '' }
  const hello: Request = { type: MessageType.PeerHello, cellId: 'f'.repeat(32), node }
  const right = await connect(leader, [`peer:${follower}`], files(follower))
  await right.request(hello)
  const wrong = await connect(leader, [`peer:${follower}`], files(leader))
  await t.rejects(
    wrong.request(hello),
    like({ kind: 'invalid', message: /the client certificate is not one of safekeeper/ }),
    'a token that was stolen is of no use without the certificate',
  )
})
