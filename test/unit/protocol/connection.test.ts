import { connect as connectSocket, createServer, type Server } from 'node:net'
import t from 'tap'
import { Connection } from '../../../protocol/connection.ts'
import { crc32c } from '../../../protocol/crc32c.ts'
import { dial, parseAddress, parseAddresses, tellFailures } from '../../../protocol/dial.ts'
import { PalimpsestError } from '../../../protocol/errors.ts'
import { BULK_WAIT, FrameFlag, FrameReader, FrameWriter } from '../../../protocol/frame.ts'
import type { Lsn, TimelineId, WriterEpoch } from '../../../protocol/ids.ts'
import { type AnyMessage, MessageType, PageSections, Role } from '../../../protocol/messages.ts'
import { Listener, type Service } from '../../../server/shared/listener.ts'
import { silentLog } from '../../../server/shared/log.ts'

const TIMELINE = 'ab'.repeat(16) as TimelineId
const lsn = (n: number) => n as Lsn
const PAGE = 16384
/** An error is compared with a pattern of some of its fields. */
const like = (fields: object) => fields as Error

/** A service with some of everything; what it saw is on the object. */
function testService() {
  const seen = { cancelled: 0, gapsSent: 0, streamed: 0, held: [] as (() => void)[] }
  const page = Buffer.from(new SharedArrayBuffer(PAGE))
  page.fill('palimpsest')
  const pageCrc = crc32c(page, 0, PAGE)
  const service: Service = {
    role: Role.SAFEKEEPER | Role.PAGESERVER,
    handlers: {
      [MessageType.WalList]: (_, ctx) => ctx.reply({ type: MessageType.WalListReply, timelines: [] }),
      [MessageType.WalState]: () => {
        throw new PalimpsestError('refresh', 'gone to another place', { lsn: lsn(42) })
      },
      [MessageType.WalDelete]: async () => {},
      [MessageType.WalTrim]: (_, ctx) => {
        seen.held.push(() => ctx.reply({ type: MessageType.WalTrimmed, beginLsn: lsn(1) }))
      },
      [MessageType.WalAppend]: ({ message, bulk }, ctx) => {
        const end = lsn(message.beginLsn + bulk.length)
        ctx.reply({ type: MessageType.WalAppended, flushedLsn: end, committedLsn: end })
      },
      [MessageType.GetPages]: ({ message }, ctx) => {
        const count = message.pages.length / 2
        const sections = new PageSections(count)
        for (let i = 0; i < count; i++)
          sections.set(i, message.pages[i * 2]!, message.pages[i * 2 + 1]!, 0, lsn(7), PAGE, pageCrc, false)
        const bulk = Array.from({ length: count }, () => page)
        ctx.reply({ type: MessageType.Pages, lsn: lsn(9), sections }, { bulk, compress: message.flags === 1 })
      },
      [MessageType.WalRead]: async ({ message }, ctx) => {
        ctx.closed.addEventListener('abort', () => {
          seen.cancelled++
        })
        const chunk = Buffer.alloc(300_000, 7)
        let at = message.fromLsn
        while (message.follow || at < 20_000_000) {
          await ctx.drain()
          if (ctx.done || ctx.closed.aborted) break
          ctx.reply(
            { type: MessageType.WalData, beginLsn: at, wallTimeUs: 1, committedLsn: at },
            { bulk: chunk, more: true },
          )
          at = lsn(at + chunk.length)
          seen.streamed += chunk.length
        }
        ctx.reply({ type: MessageType.WalReadEnd, endLsn: at })
      },
    },
  }
  return { service, seen, page }
}

async function start(t: Tap, limits = {}) {
  const { service, seen, page } = testService()
  const listener = new Listener({ host: '127.0.0.1', port: 0, log: silentLog, services: [service], limits })
  await listener.listen()
  t.teardown(() => listener.close())
  const open = async (options = {}) => {
    const connection = await Connection.connect({ host: '127.0.0.1', port: listener.port, ...options })
    t.teardown(() => connection.close())
    return connection
  }
  return { listener, seen, page, open }
}
interface Tap {
  teardown(run: () => unknown): void
}

const getPages = (count: number, flags = 0) => ({
  type: MessageType.GetPages,
  timeline: TIMELINE,
  lsn: lsn(0),
  notModifiedSinceLsn: lsn(0),
  flags,
  pages: Uint32Array.from({ length: count * 2 }, (_, i) => i),
})

t.test('requests, pipelined, answered by pages from shared memory', async t => {
  const { open, page } = await start(t)
  const connection = await open()
  t.equal(connection.roles, 3)
  const pong = await connection.request({ type: MessageType.Ping })
  t.ok(pong.message.wallTimeUs > 1e15)
  const replies = await Promise.all([1, 2, 60, 3].map(count => connection.request(getPages(count))))
  t.same(
    replies.map(reply => reply.bulk.length / PAGE),
    [1, 2, 60, 3],
  )
  for (const { bulk } of replies)
    for (let at = 0; at < bulk.length; at += PAGE)
      t.equal(Buffer.compare(bulk.subarray(at, at + PAGE), page), 0)
  const packed = await connection.request(getPages(20, 1))
  t.ok(packed.header.flags & FrameFlag.BULK_ZSTD)
  t.equal(packed.bulk.length, 20 * PAGE)
  t.equal(Buffer.compare(packed.bulk.subarray(0, PAGE), page), 0)
})

t.test('a large bulk lands in the shared memory that the caller gave', async t => {
  const { open, page } = await start(t)
  const connection = await open()
  const region = Buffer.from(new SharedArrayBuffer(80 * PAGE), 16, 70 * PAGE)
  const { bulk } = await connection.request(getPages(64), { bulkTarget: () => region })
  t.equal(bulk.buffer, region.buffer)
  t.equal(bulk.length, 64 * PAGE)
  for (let i = 0; i < 64; i++) t.equal(Buffer.compare(bulk.subarray(i * PAGE, (i + 1) * PAGE), page), 0)
})

t.test('a recycled bulk is used again, others never', async t => {
  const { open, page } = await start(t)
  const connection = await open()
  const { bulk: first } = await connection.request(getPages(5))
  const { bulk: kept } = await connection.request(getPages(5))
  t.not(first.buffer, kept.buffer)
  connection.recycle(first)
  connection.recycle(first)
  connection.recycle(Buffer.alloc(81920))
  const replies = await Promise.all([connection.request(getPages(5)), connection.request(getPages(5))])
  t.equal(replies.filter(({ bulk }) => bulk.buffer === first.buffer).length, 1)
  t.equal(new Set(replies.map(({ bulk }) => bulk.buffer)).size, 2)
  for (const { bulk } of [...replies, { bulk: kept }]) {
    t.equal(bulk.length, 5 * PAGE)
    t.equal(Buffer.compare(bulk.subarray(4 * PAGE), page), 0)
  }
})

t.test('bulkTarget may make the connection wait', async t => {
  const { open } = await start(t)
  const connection = await open()
  let refusals = 0
  const answer = connection.request(getPages(64), {
    bulkTarget: () => (refusals++ < 2 ? BULK_WAIT : undefined),
  })
  let answered = false
  void answer.then(() => {
    answered = true
  })
  while (refusals < 1) await new Promise(resolve => setTimeout(resolve, 5))
  await new Promise(resolve => setTimeout(resolve, 20))
  t.equal(answered, false)
  connection.resumeReading()
  t.equal(answered, false)
  connection.resumeReading()
  t.equal((await answer).bulk.length, 64 * PAGE)
})

t.test('once a connection is closed nothing more comes into the memory that was given', async t => {
  const { open } = await start(t)
  for (const round of [1, 2, 3, 4, 5]) {
    const connection = await open()
    const memory = Buffer.from(new SharedArrayBuffer(300_000))
    const stream = connection.stream(
      { type: MessageType.WalRead, timeline: TIMELINE, fromLsn: lsn(1), follow: true },
      {
        bulkTarget: () => {
          // In the middle of it: what has come with its head is there, the rest is under way. So is something of ours.
          queueMicrotask(() => {
            const append = {
              type: MessageType.WalAppend,
              timeline: TIMELINE,
              epoch: 1 as WriterEpoch,
              beginLsn: lsn(1),
              wallTimeUs: 1,
            } as const
            connection.request(append, { bulk: Buffer.alloc(15 << 20) }).catch(() => {})
            connection.close()
            memory.fill(0xee)
          })
          return memory
        },
      },
    )
    await t.rejects(stream.next(), like({ kind: 'retry' }))
    await new Promise(resolve => setTimeout(resolve, 200))
    t.equal(
      memory.findIndex(byte => byte !== 0xee),
      -1,
      `round ${round}`,
    )
  }
})

t.test('errors keep kind, LSN and address; the connection lives on', async t => {
  const { open, listener } = await start(t)
  const connection = await open()
  const error = await connection.request({ type: MessageType.WalState, timeline: TIMELINE }).then(
    () => t.fail('no error'),
    error => error,
  )
  t.match(error, {
    kind: 'refresh',
    message: 'gone to another place',
    lsn: 42,
    address: `127.0.0.1:${listener.port}`,
  })
  await t.rejects(
    connection.request({ type: MessageType.WalDelete, timeline: TIMELINE }),
    like({
      kind: 'internal',
      message: /left without an answer/,
    }),
  )
  await t.rejects(
    connection.request({ type: MessageType.Checkpoint, timeline: TIMELINE }),
    like({
      kind: 'invalid',
      message: /not for this server/,
    }),
  )
  await t.rejects(connection.request({ type: 0x7777 } as never), like({ kind: 'invalid' }))
  t.same((await connection.request({ type: MessageType.WalList })).message.timelines, [])
})

t.test('a stream: whole, slowly, and left early', async t => {
  const { open, seen } = await start(t)
  const connection = await open()
  let bytes = 0
  let end = 0
  const read = { type: MessageType.WalRead, timeline: TIMELINE, fromLsn: lsn(0), follow: false }
  for await (const { message, bulk } of connection.stream(read)) {
    if (message.type === MessageType.WalData) t.equal(message.beginLsn, bytes)
    else if (message.type === MessageType.WalReadEnd) end = message.endLsn
    bytes += bulk.length
  }
  t.equal(bytes, 20_100_000)
  t.equal(end, bytes)

  const slow = await open()
  seen.streamed = 0
  let frames = 0
  for await (const { bulk } of slow.stream({ ...read, follow: true })) {
    t.equal(bulk.length, 300_000)
    if (++frames === 10) {
      await new Promise(resolve => setTimeout(resolve, 300))
      // Our queue, both kernels' buffers and the server's: bounded, whatever we do not read.
      t.ok(
        seen.streamed < 64 * 1024 * 1024,
        `the server sent ${seen.streamed} bytes to one who does not read`,
      )
    }
    if (frames === 20) break
  }
  await slow.request({ type: MessageType.Ping })
  t.equal(seen.cancelled, 1, 'the server was told')
})

t.test('an aborted signal ends a request, and a stream that waits', async t => {
  const { open, seen } = await start(t)
  const connection = await open()
  const abort = new AbortController()
  const trim = { type: MessageType.WalTrim, timeline: TIMELINE, durableLsn: lsn(1), consumer: 'c' }
  const waiting = connection.request(trim, { signal: abort.signal })
  await connection.request({ type: MessageType.Ping })
  abort.abort(new PalimpsestError('retry', 'enough'))
  await t.rejects(waiting, like({ message: 'enough' }))
  seen.held.splice(0).forEach(reply => {
    reply()
  })
  await connection.request({ type: MessageType.Ping })
  t.notOk(connection.closed.aborted, 'the late answer does no harm')
})

t.test('a deadline closes the connection and fails all that was in flight', async t => {
  const { open } = await start(t)
  const connection = await open()
  const trim = { type: MessageType.WalTrim, timeline: TIMELINE, durableLsn: lsn(1), consumer: 'c' }
  const other = connection.request(trim)
  const late = connection.request(trim, { deadlineMs: 30 })
  await t.rejects(late, like({ kind: 'retry', message: /WalTrim was not answered within 30 ms/ }))
  await t.rejects(other, like({ kind: 'retry' }))
  t.ok(connection.closed.aborted)
  await t.rejects(connection.request({ type: MessageType.Ping }), like({ kind: 'retry' }))
})

t.test('more requests than may be in flight wait their turn, in order', async t => {
  const { open } = await start(t, { requestsMax: 4, requestBytesMax: 100_000 })
  const connection = await open({ requestsMax: 3, requestBytesMax: 50_000 })
  const bulk = Buffer.alloc(20_000, 1)
  const order: number[] = []
  await Promise.all(
    Array.from({ length: 40 }, async (_, i) => {
      const { message } = await connection.request(
        {
          type: MessageType.WalAppend,
          timeline: TIMELINE,
          epoch: 1 as WriterEpoch,
          beginLsn: lsn(i),
          wallTimeUs: 0,
        },
        { bulk },
      )
      order.push(message.flushedLsn - bulk.length)
    }),
  )
  t.same(
    order,
    Array.from({ length: 40 }, (_, i) => i),
  )
})

t.test('all connections together have a budget for what they send', async t => {
  const { open, seen } = await start(t, { requestBytesMaxAll: 1_000_000 })
  const trim = { type: MessageType.WalTrim, timeline: TIMELINE, durableLsn: lsn(1), consumer: 'c' }
  const append = (connection: Connection, at: number) =>
    connection.request(
      {
        type: MessageType.WalAppend,
        timeline: TIMELINE,
        epoch: 1 as WriterEpoch,
        beginLsn: lsn(at),
        wallTimeUs: 0,
      },
      { bulk: Buffer.alloc(400_000, at) },
    )
  const connections = await Promise.all(Array.from({ length: 8 }, () => open()))
  // A request that is held takes its share for as long as it is held.
  const held = connections[0]!.request(trim)
  const ends = await Promise.all(
    connections.flatMap((connection, i) => [append(connection, 2 * i), append(connection, 2 * i + 1)]),
  )
  t.same(
    ends.map(({ message }) => message.flushedLsn - 400_000),
    Array.from({ length: 16 }, (_, i) => i),
  )
  seen.held.splice(0).forEach(reply => {
    reply()
  })
  await held

  // One that stops in the middle of a bulk holds the others up only until it is cut off.
  const { open: openShort, listener } = await start(t, { requestBytesMaxAll: 500_000, stalledMs: 200 })
  const w = new FrameWriter()
  const encode = (message: object, bulk?: Buffer) =>
    Buffer.concat(w.encode({ requestId: 1, message: message as AnyMessage, bulk }))
  const hello = {
    type: MessageType.Hello,
    versionMin: 1,
    versionMax: 1,
    features: 0,
    frameBytesMax: 0,
    token: '',
    software: '',
  }
  const half = encode(
    { type: MessageType.WalAppend, timeline: TIMELINE, epoch: 1, beginLsn: 0, wallTimeUs: 0 },
    Buffer.alloc(400_000),
  ).subarray(0, 200_000)
  const stalled = connectSocket(listener.port, '127.0.0.1')
  stalled.on('error', () => {})
  stalled.write(Buffer.concat([encode(hello), half]))
  t.teardown(() => stalled.destroy())
  const other = await openShort()
  while (listener.connections < 2) await new Promise(resolve => setTimeout(resolve, 1))
  t.equal((await append(other, 5)).message.flushedLsn, 400_005)
})

t.test('the server is gone: kind retry with the address', async t => {
  const { open, listener } = await start(t)
  const connection = await open()
  const trim = { type: MessageType.WalTrim, timeline: TIMELINE, durableLsn: lsn(1), consumer: 'c' }
  const waiting = connection.request(trim)
  await connection.request({ type: MessageType.Ping })
  const { port } = listener
  await listener.close()
  await t.rejects(waiting, like({ kind: 'retry', address: `127.0.0.1:${port}` }))
  await t.rejects(
    Connection.connect({ host: '127.0.0.1', port }),
    like({
      kind: 'retry',
      message: /cannot connect/,
    }),
  )
})

t.test('dial finds the server with the role', async t => {
  const { listener } = await start(t)
  const keeper = new Listener({
    host: '127.0.0.1',
    port: 0,
    log: silentLog,
    services: [{ role: Role.SAFEKEEPER, handlers: {} }],
  })
  await keeper.listen()
  t.teardown(() => keeper.close())
  const found = await dial(`${keeper.address},${listener.address}`, Role.PAGESERVER)
  t.equal(found.address, listener.address)
  found.close()
  await t.rejects(
    dial(keeper.address, Role.PAGESERVER),
    like({ message: /is a safekeeper, not a pageserver/ }),
  )
  await t.rejects(dial(`127.0.0.1:1,${keeper.address}`, Role.PAGESERVER), like({ kind: 'retry' }))
  t.same(parseAddresses('[::1]:80, localhost:1'), [
    { host: '::1', port: 80 },
    { host: 'localhost', port: 1 },
  ])
  for (const bad of ['', 'x', 'x:', 'x:99999', '::1:80', 'a b:1'])
    t.throws(() => parseAddress(bad), like({ kind: 'invalid' }))
})

t.test('listens on loopback only unless told', async t => {
  for (const host of ['0.0.0.0', '::', '10.0.0.1', 'example.com'])
    t.throws(() => new Listener({ host, port: 0, log: silentLog }), {
      kind: 'invalid',
      message: /insecure-listen/,
    })
  t.ok(new Listener({ host: '0.0.0.0', port: 0, log: silentLog, insecureListen: true }))
})

/** Sends raw bytes and collects frames until the server closes. */
async function raw(port: number, bytes: Uint8Array): Promise<{ frames: AnyMessage[]; closed: boolean }> {
  const frames: AnyMessage[] = []
  const reader = new FrameReader({
    onFrame: frame => frames.push(frame.message),
    onRefused: (_, error) => {
      throw error
    },
  })
  return new Promise(resolve => {
    const socket = connectSocket(port, '127.0.0.1')
    const timer = setTimeout(() => {
      resolve({ frames, closed: false })
      socket.destroy()
    }, 400)
    socket.on('data', chunk => reader.push(chunk))
    socket.on('error', () => {})
    socket.on('close', () => {
      clearTimeout(timer)
      resolve({ frames, closed: true })
    })
    socket.write(bytes)
  })
}

t.test('hostile clients', async t => {
  const { listener } = await start(t, { helloMs: 100 })
  const w = new FrameWriter()
  const frame = (message: object, requestId = 1) =>
    Buffer.concat(w.encode({ requestId, message: message as AnyMessage }).map(piece => Buffer.from(piece)))
  const hello = (version = 1) =>
    frame({
      type: MessageType.Hello,
      versionMin: version,
      versionMax: version,
      features: 0,
      frameBytesMax: 1 << 24,
      token: '',
      software: 't',
    })
  const invalid = { type: MessageType.ErrorReply, kind: 'invalid' }
  t.match(await raw(listener.port, Buffer.from('GET / HTTP/1.1\r\nHost: somewhere.example\r\n\r\n\r\n')), {
    frames: [invalid],
    closed: true,
  })
  t.match(await raw(listener.port, Buffer.alloc(10)), {
    frames: [{ ...invalid, message: 'no hello in time' }],
  })
  t.match(await raw(listener.port, frame({ type: MessageType.Ping })), { frames: [invalid], closed: true })
  t.match(await raw(listener.port, hello(9)), {
    frames: [{ ...invalid, message: /versions 9 to 9/ }],
    closed: true,
  })

  const ok = { type: MessageType.HelloOk }
  const pong = { type: MessageType.Pong }
  const unknown = frame({ type: MessageType.Ping })
  unknown.writeUInt16LE(0x7777, 16)
  unknown.writeUInt32LE(crc32c(unknown, 8, 40), 4)
  const ping = frame({ type: MessageType.Ping }, 2)
  t.match(await raw(listener.port, Buffer.concat([hello(), unknown, ping])), {
    frames: [ok, { ...invalid, message: /0x7777 is unknown/ }, pong],
    closed: false,
  })
  const huge = Buffer.from(ping)
  huge.writeUInt32LE(0xfffffff8, 0)
  huge.writeUInt32LE(0xffffffd0, 28)
  t.match(await raw(listener.port, Buffer.concat([hello(), huge])), {
    frames: [ok, { ...invalid, message: /exceeds the limit/ }],
    closed: true,
  })
  const damaged = Buffer.from(ping)
  damaged[10]! ^= 1
  t.match(await raw(listener.port, Buffer.concat([hello(), ping, damaged])), {
    frames: [ok, pong, { ...invalid, message: /CRC-32C/ }],
    closed: true,
  })
})

t.test('connections are limited, and a server that is none is recognised', async t => {
  const { open } = await start(t, { connectionsMax: 1 })
  const first = await open()
  await t.rejects(open(), like({ kind: 'retry' }))
  await first.request({ type: MessageType.Ping })

  const web: Server = createServer(socket =>
    socket.end('HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n'),
  )
  await new Promise<void>(resolve => web.listen(0, '127.0.0.1', resolve))
  t.teardown(() => web.close())
  const { port } = web.address() as { port: number }
  await t.rejects(
    Connection.connect({ host: '127.0.0.1', port }),
    like({ message: /does not answer as a Palimpsest server does; .* MariaDB/ }),
  )
})

t.test('peers that stop half-way are cut off', async t => {
  const { listener } = await start(t, { stalledMs: 100, sendBytesMax: 1 << 20 })
  const w = new FrameWriter()
  const hello = {
    type: MessageType.Hello,
    versionMin: 1,
    versionMax: 1,
    features: 0,
    frameBytesMax: 1 << 24,
    token: '',
    software: 't',
  }
  const encode = (message: object, requestId: number) =>
    Buffer.concat(w.encode({ requestId, message: message as AnyMessage }))
  const talk = (bytes: Buffer, reads: boolean) =>
    new Promise<void>(resolve => {
      const socket = connectSocket(listener.port, '127.0.0.1')
      socket.on('error', () => {})
      socket.on('close', () => resolve())
      if (reads) socket.on('data', () => {})
      else socket.pause()
      socket.write(bytes)
      t.teardown(() => socket.destroy())
    })
  await talk(Buffer.concat([encode(hello, 0), encode(getPages(1), 1).subarray(0, 50)]), true)
  t.pass('half a frame')
  // More answers than the kernel buffers; the server must neither keep them all nor wait for ever.
  const requests = Array.from({ length: 900 }, (_, i) => encode(getPages(10), i + 1))
  const before = process.memoryUsage().rss
  void talk(Buffer.concat([encode(hello, 0), ...requests]), false)
  while (listener.connections === 0) await new Promise(resolve => setTimeout(resolve, 1))
  while (listener.connections > 0) await new Promise(resolve => setTimeout(resolve, 10))
  t.ok(process.memoryUsage().rss - before < 200 * 1024 * 1024)

  const idle = await Connection.connect({ host: '127.0.0.1', port: listener.port })
  await new Promise(resolve => setTimeout(resolve, 350))
  await idle.request({ type: MessageType.Ping })
  idle.close()
})

t.test('what was wrong with several servers, once where it was the same', async t => {
  const failures = [
    'cannot connect to a:1: nobody listens there',
    'cannot connect to b:2: nobody listens there',
    'b:3 is a safekeeper, not a pageserver',
    'cannot connect to c:4: no answer',
    'cannot connect to a:1: nobody listens there',
  ]
  t.equal(
    tellFailures(failures.map(text => new Error(text))),
    'cannot connect to a:1, b:2: nobody listens there; cannot connect to c:4: no answer; b:3 is a safekeeper, not a pageserver',
  )
})
