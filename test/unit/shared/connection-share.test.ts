import t from 'tap'
import type { Connection } from '../../../protocol/connection.ts'
import { dial } from '../../../protocol/dial.ts'
import type { Lsn, TimelineId } from '../../../protocol/ids.ts'
import { MessageType, Role } from '../../../protocol/messages.ts'
import { ConnectionShare } from '../../../server/shared/connection-share.ts'
import { Listener, type Service } from '../../../server/shared/listener.ts'
import { silentLog } from '../../../server/shared/log.ts'

const TIMELINE = 'ab'.repeat(16) as TimelineId
const TRIM = { type: MessageType.WalTrim, timeline: TIMELINE, consumer: 'c', durableLsn: 1 as Lsn } as const
const LIST = { type: MessageType.WalList } as const
const like = (fields: object) => fields as Error

/** A server that answers lists at once, and trims when it is told to; all connections that were opened to it. */
async function start(t: Tap) {
  const held: (() => void)[] = []
  const service: Service = {
    role: Role.SAFEKEEPER,
    handlers: {
      [MessageType.WalList]: (_, ctx) => ctx.reply({ type: MessageType.WalListReply, timelines: [] }),
      [MessageType.WalTrim]: (_, ctx) => {
        held.push(() => ctx.reply({ type: MessageType.WalTrimmed, beginLsn: 1 as Lsn }))
      },
    },
  }
  const listener = new Listener({ host: '127.0.0.1', port: 0, log: silentLog, services: [service] })
  await listener.listen()
  t.teardown(() => listener.close())
  const opened: Connection[] = []
  const share = new ConnectionShare(async (address, how) => {
    const connection = await dial([address], Role.SAFEKEEPER, how)
    opened.push(connection)
    return connection
  })
  const address = { host: '127.0.0.1', port: listener.port }
  return { held, opened, connect: (signal?: AbortSignal) => share.connect(address, { signal }) }
}

type Tap = Pick<typeof t, 'teardown'>

t.test('holders share a connection, which ends with the last of them', async t => {
  const { held, opened, connect } = await start(t)
  const [a, b] = await Promise.all([connect(), connect()])
  t.equal(opened.length, 1)
  t.equal(a.address, opened[0]!.address)
  const ofA = a.request(TRIM)
  const ofB = b.request(TRIM)
  await a.request(LIST)
  a.close()
  await t.rejects(ofA, like({ kind: 'retry' }), 'its own requests end')
  await t.rejects(a.request(LIST), like({ kind: 'retry' }))
  t.equal(a.closed.aborted, true)
  t.equal(b.closed.aborted, false)
  for (const answer of held) answer()
  t.match(await ofB, { message: { beginLsn: 1 } }, 'nobody else’s')
  b.close()
  t.equal(opened[0]!.closed.aborted, true)
  const c = await connect()
  t.equal(opened.length, 2)
  await c.request(LIST)
  c.close()
})

t.test('a connection that breaks is lost to all, and they meet on a new one', async t => {
  const { opened, connect } = await start(t)
  const a = await connect()
  const b = await connect()
  const waiting = b.request(TRIM)
  opened[0]!.close()
  await t.rejects(waiting, like({ kind: 'retry' }))
  t.equal(a.closed.aborted, true)
  const again = await Promise.all([connect(), connect()])
  t.equal(opened.length, 2)
  for (const lease of again) lease.close()
  t.equal(opened[1]!.closed.aborted, true)
})

t.test('one that is given up while it connects takes nobody along', async t => {
  const { opened, connect } = await start(t)
  const stop = new AbortController()
  const given = connect(stop.signal)
  const kept = connect()
  stop.abort(new Error('enough'))
  await t.rejects(given, like({ message: /enough/ }))
  await (await kept).request(LIST)
  t.equal(opened.length, 1)
  ;(await kept).close()
  await t.rejects(connect(AbortSignal.abort(new Error('before'))), like({ message: /before/ }))
})

t.test('nobody there', async t => {
  const share = new ConnectionShare()
  await t.rejects(
    share.connect({ host: '127.0.0.1', port: 1 }, { deadlineMs: 1000 }),
    like({ kind: 'retry' }),
  )
  await t.rejects(
    share.connect({ host: '127.0.0.1', port: 1 }, { deadlineMs: 1000 }),
    like({ kind: 'retry' }),
  )
})

t.test(
  'one that finds a better node does not wait for one that hangs; the last one ends the dialling',
  async t => {
    const dials: AbortSignal[] = []
    const share = new ConnectionShare((_, { signal }) => {
      dials.push(signal!)
      return new Promise((_, reject) => {
        signal!.addEventListener('abort', () => reject(signal!.reason))
      })
    })
    const address = { host: '127.0.0.1', port: 1 }
    const [a, b] = [new AbortController(), new AbortController()]
    const ofA = share.connect(address, { signal: a.signal })
    const ofB = share.connect(address, { signal: b.signal })
    a.abort(new Error('another one leads'))
    await t.rejects(ofA, like({ message: /another one leads/ }))
    t.same(
      dials.map(({ aborted }) => aborted),
      [false],
      'the other still waits for it',
    )
    b.abort(new Error('another one leads'))
    await t.rejects(ofB, like({ message: /another one leads/ }))
    t.equal(dials[0]!.aborted, true)
    const c = new AbortController()
    const ofC = share.connect(address, { signal: c.signal })
    t.equal(dials.length, 2, 'dialled anew')
    c.abort(new Error('enough'))
    await t.rejects(ofC)
  },
)
