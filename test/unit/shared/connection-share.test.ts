import t from 'tap'
import type { Connection } from '../../../protocol/connection.ts'
import { dial } from '../../../protocol/dial.ts'
import type { Lsn, TimelineId } from '../../../protocol/ids.ts'
import { MessageType, Role } from '../../../protocol/messages.ts'
import { ConnectionShare } from '../../../server/shared/connection-share.ts'
import { Listener, type Service } from '../../../server/shared/listener.ts'
import { silentLog } from '../../../server/shared/log.ts'
import { WalWriter } from '../../../server/shared/log-client.ts'
import { FakeCell, HandClock } from '../../support/fake-cell.ts'

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
  const address = { host: '127.0.0.1', port: listener.port }
  const clock = new HandClock()
  const share = new ConnectionShare([address], {
    open: async (address, how) => {
      const connection = await dial([address], Role.SAFEKEEPER, how)
      opened.push(connection)
      return connection
    },
    clock,
  })
  const connect = (signal?: AbortSignal, deadlineMs?: number) =>
    share.connect(address, { signal, deadlineMs })
  return { held, opened, connect, share, clock }
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
  const address = { host: '127.0.0.1', port: 1 }
  const share = new ConnectionShare([address])
  for (let i = 0; i < 2; i++)
    await t.rejects(share.connect(address, { deadlineMs: 1000 }), like({ kind: 'retry' }))
  t.equal(share.connections, 0)
})

t.test(
  'one that finds a better node does not wait for one that hangs; the last one ends the dialling',
  async t => {
    const dials: AbortSignal[] = []
    const address = { host: '127.0.0.1', port: 1 }
    const share = new ConnectionShare([address], {
      open: (_, { signal }) => {
        dials.push(signal!)
        return new Promise((_, reject) => {
          signal!.addEventListener('abort', () => reject(signal!.reason))
        })
      },
    })
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

t.test('whose deadline passes is out alone; who comes then is put on another connection', async t => {
  const { held, opened, connect, share, clock } = await start(t)
  const [slow, patient] = await Promise.all([connect(), connect()])
  const ofPatient = patient.request(TRIM)
  const ofSlow = slow.request(TRIM, { deadlineMs: 20 })
  void clock.pass(30)
  await t.rejects(ofSlow, like({ kind: 'retry', message: /lost: WalTrim was not answered within 20 ms/ }))
  t.equal(slow.closed.aborted, true, 'as a connection would be')
  t.equal(patient.closed.aborted, false)
  t.equal(opened[0]!.closed.aborted, false)
  const late = await connect()
  t.equal(opened.length, 2, 'the first says nothing')
  await late.request(LIST)
  for (const answer of held) answer()
  t.match(await ofPatient, { message: { beginLsn: 1 } }, 'the first was only slow')
  patient.close()
  t.equal(opened[0]!.closed.aborted, true)
  t.equal(share.connections, 1)
  late.close()
  t.equal(share.connections, 0)
})

t.test('a connection on which others are answered is not silent', async t => {
  const { opened, connect, clock } = await start(t)
  const [slow, other] = await Promise.all([connect(undefined, 20), connect()])
  const ofSlow = slow.request(TRIM)
  await other.request(LIST)
  void clock.pass(30)
  await t.rejects(ofSlow, like({ message: /within 20 ms/ }), 'its own default')
  const late = await connect()
  await late.request(LIST)
  t.equal(opened.length, 1)
  for (const lease of [other, late]) lease.close()
  t.equal(opened[0]!.closed.aborted, true)
})

t.test('an error is an answer, too, and a deadline of one is not that of the next', async t => {
  const { held, opened, connect } = await start(t)
  const lease = await connect()
  const all = [lease.request(TRIM, { deadlineMs: 5000 }), lease.request(TRIM, { deadlineMs: 0 })]
  await t.rejects(
    lease.request({ type: MessageType.WalState, timeline: TIMELINE }),
    like({ kind: 'invalid' }),
  )
  for (const answer of held) answer()
  await Promise.all(all)
  lease.close()
  t.equal(opened.length, 1)
})

t.test('who dials with a short deadline leaves the others their own', async t => {
  const address = { host: '127.0.0.1', port: 1 }
  const { promise, resolve } = Promise.withResolvers<Connection>()
  const clock = new HandClock()
  const share = new ConnectionShare([address], { open: () => promise, clock })
  const [hasty, patient] = [share.connect(address, { deadlineMs: 10 }), share.connect(address, {})]
  void clock.pass(20)
  await t.rejects(hasty, like({ kind: 'retry', message: /no hello within 10 ms/ }))
  resolve({ address: '127.0.0.1:1', closed: new AbortController().signal, close() {} } as Connection)
  const lease = await patient
  lease.close()
  t.equal(share.connections, 0)
})

/** Writers of as many timelines over one share, to a cell in the test's own time. */
async function openWriters(cell: FakeCell, count: number) {
  const { clock, addresses } = cell
  const share = new ConnectionShare(addresses, { open: cell.connect, clock, random: () => 0 })
  const heldUp: string[] = []
  const opening = Array.from({ length: count }, (_, i) =>
    WalWriter.open({
      ...{ safekeepers: addresses, name: 'test', log: silentLog, random: () => i / count },
      timeline: i.toString(16).padStart(32, '0') as TimelineId,
      onHeldUp: reason => heldUp.push(reason),
      ...share.dialer,
    }),
  )
  await clock.pass(50)
  const writers = await Promise.all(opening)
  const append = () => {
    for (const writer of writers) void writer.append(writer.endLsn, Buffer.alloc(100)).catch(() => {})
  }
  const ends = () => new Set(writers.map(({ flushedLsn }) => flushedLsn as number))
  return { writers, append, ends, heldUp }
}

t.test('a leader that is silent for a while loses no writer, and is asked about once for all', async t => {
  const cell = new FakeCell(1000)
  const { writers, append, ends, heldUp } = await openWriters(cell, 20)
  append()
  await cell.clock.pass(100)
  t.same(ends(), new Set([1100]))
  const before = cell.dials.length
  cell.hang('a')
  append()
  await cell.clock.pass(6000)
  cell.wakeUp('a')
  await cell.clock.pass(50)
  t.same(ends(), new Set([1200]))
  t.same(heldUp, [], 'answered on the connection that they had')
  const dials = cell.dials.length - before
  t.ok(dials < 40, `${dials} dials, where each writer by itself would make nine`)
  for (const writer of writers) writer.close()
})

t.test('all writers of a leader that stands still go to the next one, together', async t => {
  const cell = new FakeCell(1000)
  const { writers, append, ends, heldUp } = await openWriters(cell, 20)
  append()
  await cell.clock.pass(100)
  const before = cell.dials.length
  cell.hang('a')
  append()
  cell.elect('b', 2)
  await cell.clock.pass(2000)
  t.same(ends(), new Set([1200]))
  t.equal(heldUp.length, 20)
  const dials = cell.dials.slice(before)
  t.ok(dials.length < 20, `${dials.length} dials`)
  t.equal(cell.log.length, 40, 'each append once')
  for (const writer of writers) writer.close()
})
