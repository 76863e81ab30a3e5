import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import t from 'tap'
import { Connection } from '../../../protocol/connection.ts'
import type { Lsn, TimelineId } from '../../../protocol/ids.ts'
import { MessageType, Role } from '../../../protocol/messages.ts'
import { commandDraft } from '../../../server/safekeeper/draft.ts'
import { startSafekeeper } from '../../../server/safekeeper/safekeeper.ts'
import { PalimpsestError } from '../../../server/shared/errors.ts'
import { Listener } from '../../../server/shared/listener.ts'
import { silentLog } from '../../../server/shared/log.ts'
import { WalWriter } from '../../../server/shared/log-client.ts'

const ID = '7e'.repeat(16) as TimelineId
const START = 8192 as Lsn
const lsn = (n: number) => n as Lsn
const like = (fields: object) => fields as Error

interface Tap {
  teardown(run: () => unknown): void
}

/** A safekeeper on a real disk that can be stopped and started again at the same port. */
async function node(t: Tap) {
  const dir = mkdtempSync(join(tmpdir(), 'palimpsest-wal-service-'))
  let port = 0
  const boot = async () => {
    const listener = new Listener({ host: '127.0.0.1', port, log: silentLog })
    const safekeeper = await startSafekeeper({
      dataDir: dir,
      listener,
      log: silentLog,
      segmentBytes: 256 * 1024,
    })
    await listener.listen()
    port = listener.port
    return { listener, safekeeper }
  }
  let running = await boot()
  const stop = async () => {
    await running.listener.close()
    await running.safekeeper.close()
  }
  t.teardown(async () => {
    await stop()
    rmSync(dir, { recursive: true, force: true })
  })
  return {
    dir,
    address: { host: '127.0.0.1', port },
    node: () => running.safekeeper.node,
    stop,
    start: async () => {
      running = await boot()
    },
    open: async () => {
      const connection = await Connection.connect({ host: '127.0.0.1', port })
      t.teardown(() => connection.close())
      return connection
    },
  }
}

const create = { type: MessageType.WalCreate, timeline: ID, startLsn: START, name: 'main' } as const

t.test('the whole life of a log, over the wire', async t => {
  const { open } = await node(t)
  const connection = await open()
  t.equal(connection.roles, Role.SAFEKEEPER)
  await t.rejects(connection.request({ type: MessageType.WalState, timeline: ID }), like({ kind: 'invalid' }))
  await connection.request(create)
  await connection.request(create)
  const { message: opened } = await connection.request({
    type: MessageType.WalOpen,
    timeline: ID,
    writer: 'w',
  })
  t.match(opened, { epoch: 1, beginLsn: START, endLsn: START })

  // A follower at the tail gets each chunk as soon as it is durable.
  const reader = await open()
  const seen: (number | string)[] = []
  const abort = new AbortController()
  const following = (async () => {
    for await (const { message, bulk } of reader.stream(
      { type: MessageType.WalRead, timeline: ID, fromLsn: START, follow: true },
      { signal: abort.signal },
    )) {
      if (message.type === MessageType.WalGap) seen.push(`gap to ${message.toLsn}`)
      else if (message.type === MessageType.WalData) seen.push(message.beginLsn)
      t.ok(bulk.every(byte => byte === 9))
    }
  })()
  const append = (at: number, bytes: number) =>
    connection.request(
      { type: MessageType.WalAppend, timeline: ID, epoch: opened.epoch, beginLsn: lsn(at), wallTimeUs: 5 },
      { bulk: Buffer.alloc(bytes, 9) },
    )
  const replies = await Promise.all([
    append(START, 1000),
    append(START + 1000, 60_000),
    append(START + 61_000, 1),
  ])
  t.equal(replies[2]!.message.flushedLsn, START + 61_001)
  await connection.request({
    type: MessageType.WalSkip,
    timeline: ID,
    epoch: opened.epoch,
    fromLsn: lsn(START + 61_001),
    toLsn: lsn(START + 100_000),
    wallTimeUs: 6,
  })
  await append(START + 100_000, 500)
  while (seen.length < 5) await new Promise(resolve => setTimeout(resolve, 1))
  t.same(seen, [START, START + 1000, START + 61_000, `gap to ${START + 100_000}`, START + 100_000])
  abort.abort(new PalimpsestError('retry', 'enough'))
  await t.rejects(following, like({ message: 'enough' }))
  await reader.request({ type: MessageType.Ping })

  const { message: state } = await connection.request({ type: MessageType.WalState, timeline: ID })
  t.match(state, {
    flushedLsn: START + 100_500,
    committedLsn: START + 100_500,
    lastWallTimeUs: 5,
    writer: 'w',
  })
  const { message: list } = await connection.request({ type: MessageType.WalList })
  t.match(list.timelines, [{ timeline: ID, name: 'main' }])
  const { message: trimmed } = await connection.request({
    type: MessageType.WalTrim,
    timeline: ID,
    durableLsn: lsn(START + 1000),
    consumer: 'page-server',
  })
  t.equal(trimmed.beginLsn, START + 1000)
  await connection.request({ type: MessageType.WalDelete, timeline: ID })
  await t.rejects(append(START + 100_500, 1), like({ kind: 'invalid' }))
})

t.test('a damaged append is refused before it is written', async t => {
  const { open } = await node(t)
  const connection = await open()
  await connection.request(create)
  const { message: opened } = await connection.request({
    type: MessageType.WalOpen,
    timeline: ID,
    writer: 'w',
  })
  const append = {
    type: MessageType.WalAppend,
    timeline: ID,
    epoch: opened.epoch,
    beginLsn: START,
    wallTimeUs: 5,
  } as const
  await t.rejects(
    connection.request(append, { bulk: Buffer.alloc(100, 9), bulkCrc: 12345 }),
    like({ kind: 'corrupt', message: /damaged on the way/ }),
  )
  const { message } = await connection.request(append, { bulk: Buffer.alloc(100, 9) })
  t.equal(message.flushedLsn, START + 100)
})

t.test('a writer outlives its safekeeper and loses its place to a newer one', async t => {
  const { open, stop, start, address } = await node(t)
  const connection = await open()
  await connection.request(create)
  const flushed: number[] = []
  const options = { safekeepers: [address], timeline: ID, log: silentLog, windowBytesMax: 100_000 }
  const writer = await WalWriter.open({ ...options, name: 'first', onFlushed: at => flushed.push(at) })
  t.teardown(() => writer.close())
  await writer.append(START, Buffer.alloc(5000, 1))
  await writer.durable()
  t.same(flushed, [START + 5000])

  await stop()
  const held = Array.from({ length: 15 }, () => writer.append(writer.endLsn, Buffer.alloc(9000, 2)))
  held.push(writer.skip(lsn(writer.endLsn + 50_000)))
  await start()
  await Promise.all(held)
  await writer.durable()
  t.equal(writer.flushedLsn, START + 5000 + 15 * 9000 + 50_000)
  await t.rejects(writer.append(lsn(1), Buffer.alloc(1)), like({ kind: 'internal' }))

  const second = await WalWriter.open({ ...options, name: 'second' })
  t.teardown(() => second.close())
  t.equal(second.endLsn, writer.endLsn)
  t.equal(second.epoch, writer.epoch + 1)
  await writer.append(writer.endLsn, Buffer.alloc(1)).catch(() => {})
  await t.rejects(writer.durable(), like({ kind: 'fenced', message: /second/ }))
  t.match(writer.failed, { kind: 'fenced' })
  await second.append(second.endLsn, Buffer.alloc(100))
  await second.durable()

  // Also one that finds out only when it comes back.
  await stop()
  await start()
  const third = await WalWriter.open({ ...options, name: 'third' })
  t.teardown(() => third.close())
  await t.rejects(
    (async () => {
      await second.append(second.endLsn, Buffer.alloc(100))
      await second.durable()
    })(),
    like({ kind: 'fenced', message: /third/ }),
  )
})

t.test('a data folder belongs to one process', async t => {
  const { dir } = await node(t)
  const child = new Listener({ host: '127.0.0.1', port: 0, log: silentLog })
  const { writeFileSync } = await import('node:fs')
  // Process 1 is always there, and is not us.
  writeFileSync(join(dir, 'LOCK'), '1 \n')
  await t.rejects(
    startSafekeeper({ dataDir: dir, listener: child, log: silentLog }),
    like({ message: /in use by process 1/ }),
  )
})

t.test(
  'the log was made again: a reader that was told of its partings is told of a new one first',
  async t => {
    const { open, node: running } = await node(t)
    const connection = await open()
    await connection.request(create)
    const { message: opened } = await connection.request({
      type: MessageType.WalOpen,
      timeline: ID,
      writer: 'w',
    })
    const append = (epoch: number, at: number) =>
      connection.request(
        {
          type: MessageType.WalAppend,
          timeline: ID,
          epoch: epoch as typeof opened.epoch,
          beginLsn: lsn(at),
          wallTimeUs: 1,
        },
        { bulk: Buffer.alloc(100, 9) },
      )
    await append(opened.epoch, START)
    const partings = async (of: Connection) =>
      (await of.request({ type: MessageType.WalPartings, timeline: ID })).message.partings
    const follow = async (of: Connection, enough: number): Promise<unknown> => {
      let seen = 0
      try {
        const request = { type: MessageType.WalRead, timeline: ID, fromLsn: START, follow: true } as const
        for await (const { message } of of.stream(request))
          if (message.type === MessageType.WalData && ++seen === enough) return seen
        return 'ended'
      } catch (error) {
        return Object.assign(error as Error, { seen })
      }
    }
    const told = await open()
    t.same(await partings(told), [])
    const careful = follow(told, 2)
    const careless = follow(await open(), 2)
    await running().driver.propose(
      commandDraft({
        do: 'recovered',
        how: 'survivor',
        from: '1'.repeat(32),
        to: '2'.repeat(32),
        wallTimeUs: 5,
      }),
    )
    await t.rejects(append(opened.epoch, START + 100), like({ kind: 'fenced', message: /member-recover/ }))
    const { message: next } = await connection.request({
      type: MessageType.WalOpen,
      timeline: ID,
      writer: 'w',
    })
    t.ok(next.epoch > opened.epoch + 1000, 'writers that were let in by what was lost have an older epoch')
    await append(next.epoch, START + 100)
    t.match(await careful, { kind: 'retry', message: /made again/, seen: 1 })
    t.equal(await careless, 2)
    const again = await open()
    t.same(await partings(again), [{ lsn: START + 100, cellId: '2'.repeat(32) }])
    t.equal(await follow(again, 2), 2)
  },
)
