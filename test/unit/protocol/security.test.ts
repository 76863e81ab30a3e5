/** The one listener and the one dialer with TLS, tokens and limits: what gets in, what does not, and what is said about it. */
import { appendFileSync, readFileSync, writeFileSync } from 'node:fs'
import { connect as connectTcp } from 'node:net'
import { connect as connectTls } from 'node:tls'
import t from 'tap'
import { Connection } from '../../../protocol/connection.ts'
import { crc32c } from '../../../protocol/crc32c.ts'
import type { Lsn, TimelineId } from '../../../protocol/ids.ts'
import { MessageType, PageSections, Role, type TimelineSummary } from '../../../protocol/messages.ts'
import type { ConnectionSecurity } from '../../../protocol/security.ts'
import { openClientSecurity } from '../../../server/shared/client-security.ts'
import { invalidError } from '../../../server/shared/errors.ts'
import { Listener, type ListenerLimits, type Service } from '../../../server/shared/listener.ts'
import { silentLog } from '../../../server/shared/log.ts'
import { ServerSecurity, type ServerSecurityFiles } from '../../../server/shared/server-security.ts'
import { Pki } from '../../support/pki.ts'

const like = (fields: object) => fields as Error
const MINE = 'aa'.repeat(16) as TimelineId
const OTHER = 'bb'.repeat(16) as TimelineId
const lsn = (n: number) => n as Lsn
const PAGE = 16384
const LOOK_MS = 20

const summary = (timeline: TimelineId): TimelineSummary => ({
  timeline,
  name: timeline.slice(0, 2),
  state: 'active',
  startLsn: lsn(1),
  readableFromLsn: lsn(1),
  ingestedLsn: lsn(2),
  durableLsn: lsn(2),
  lastWallTimeUs: 0,
  innodbPageSize: PAGE,
})

function testService() {
  const seen = { appends: 0, bulksReserved: 0 }
  const page = Buffer.alloc(PAGE, 'palimpsest')
  const pageCrc = crc32c(page, 0, PAGE)
  const service: Service = {
    role: Role.SAFEKEEPER | Role.PAGESERVER,
    bulkTarget: () => {
      seen.bulksReserved++
      return undefined
    },
    handlers: {
      [MessageType.TimelineList]: (_, ctx) =>
        ctx.reply({ type: MessageType.TimelineListReply, timelines: [summary(MINE), summary(OTHER)] }),
      [MessageType.TimelineShow]: ({ message }) => {
        throw invalidError(`there is no timeline named ${message.name}`)
      },
      [MessageType.WalAppend]: ({ message, bulk }, ctx) => {
        seen.appends++
        const end = lsn(message.beginLsn + bulk.length)
        ctx.reply({ type: MessageType.WalAppended, flushedLsn: end, committedLsn: end })
      },
      [MessageType.WalRead]: async ({ message }, ctx) => {
        const chunk = Buffer.alloc(300_000, 7)
        let at = message.fromLsn
        while (at < 20_000_000) {
          await ctx.drain()
          if (ctx.done) break
          const reply = { type: MessageType.WalData, beginLsn: at, wallTimeUs: 1, committedLsn: at }
          ctx.reply(reply, { bulk: chunk, more: true })
          at = lsn(at + chunk.length)
        }
        ctx.reply({ type: MessageType.WalReadEnd, endLsn: at })
      },
      [MessageType.GetPages]: ({ message }, ctx) => {
        const count = message.pages.length / 2
        const sections = new PageSections(count)
        for (let i = 0; i < count; i++) sections.set(i, 0, i, 0, lsn(7), PAGE, pageCrc, false)
        ctx.reply(
          { type: MessageType.Pages, lsn: lsn(9), sections },
          { bulk: Array.from({ length: count }, () => page) },
        )
      },
    },
  }
  return { service, seen }
}

interface Tap {
  teardown(run: () => unknown): void
}

async function start(t: Tap, files: ServerSecurityFiles, limits: Partial<ListenerLimits> = {}) {
  const security = await ServerSecurity.open(files, silentLog, LOOK_MS)
  const { service, seen } = testService()
  const listener = new Listener({
    host: '127.0.0.1',
    port: 0,
    log: silentLog,
    services: [service],
    limits,
    security,
  })
  await listener.listen()
  t.teardown(async () => {
    await listener.close()
    security.close()
  })
  const open = async (client: ConnectionSecurity | undefined, host = '127.0.0.1') => {
    const connection = await Connection.connect({ host, port: listener.port, security: client })
    t.teardown(() => connection.close())
    return connection
  }
  return { listener, security, seen, open }
}

const getPages = (count: number, timeline = MINE) => ({
  type: MessageType.GetPages,
  timeline,
  lsn: lsn(0),
  notModifiedSinceLsn: lsn(0),
  flags: 0,
  pages: Uint32Array.from({ length: count * 2 }, (_, i) => i),
})
const append = (timeline: TimelineId) => ({
  type: MessageType.WalAppend,
  timeline,
  epoch: 1 as never,
  beginLsn: lsn(100),
  wallTimeUs: 1,
})

/** Waits for something that another part does by itself. */
async function until(what: () => boolean | Promise<boolean>): Promise<void> {
  while (!(await what())) await new Promise(resolve => setTimeout(resolve, 10))
}

t.test('everything works over TLS as it does without', async t => {
  const pki = await Pki.make(t)
  const { open, listener } = await start(t, pki.serverTls)
  const connection = await open(pki.client())
  const replies = await Promise.all([1, 60, 3].map(count => connection.request(getPages(count))))
  t.same(
    replies.map(reply => reply.bulk.length / PAGE),
    [1, 60, 3],
  )
  const bulk = Buffer.alloc(5_000_000, 'redo')
  const { message } = await connection.request(append(MINE), { bulk })
  t.equal(message.committedLsn, 5_000_100)
  let bytes = 0
  const read = { type: MessageType.WalRead, timeline: MINE, fromLsn: lsn(0), follow: false }
  // A slow reader, so that the socket stops and goes on.
  for await (const frame of connection.stream(read, { queueFramesMax: 2 })) {
    bytes += frame.bulk.length
    if (bytes % 3_000_000 === 0) await new Promise(resolve => setTimeout(resolve, 5))
  }
  t.equal(bytes, 20_100_000)
  const left = connection.certificateExpiresAtMs! - Date.now()
  t.equal(Math.round(left / 86_400_000), 30, 'until when the certificate is valid')
  await open(pki.client(), 'localhost')
  const tls12 = connectTls({ port: listener.port, ca: [readFileSync(pki.caFile)], maxVersion: 'TLSv1.2' })
  await new Promise(resolve => tls12.once('secureConnect', resolve))
  t.equal(tls12.getProtocol(), 'TLSv1.2')
  tls12.destroy()
})

t.test('a server that is not the one dialled gets nothing', async t => {
  const pki = await Pki.make(t)
  const others = await Pki.make(t)
  const { open, listener } = await start(t, pki.serverTls)
  await t.rejects(
    open(others.client()),
    like({ kind: 'invalid', message: /certificate is not accepted: .*is --tls-ca the CA that signed it/ }),
  )
  await t.rejects(open(openClientSecurity({ tlsCa: 'system' })), like({ kind: 'invalid' }))
  await pki.writeNode('elsewhere', ['db.example'])
  const elsewhere = await start(t, { tlsCert: pki.path('elsewhere.pem'), tlsKey: pki.path('elsewhere.key') })
  const tokenFile = await pki.tokenFile(['admin'])
  await t.rejects(
    elsewhere.open(pki.client(tokenFile)),
    like({ kind: 'invalid', message: /certificate does not name 127\.0\.0\.1/ }),
  )
  t.equal(elsewhere.listener.connections, 0)
  // One side speaks TLS, the other does not.
  await t.rejects(open(undefined), like({ message: /TLS/ }))
  const plain = await start(t, {})
  await t.rejects(plain.open(pki.client()), like({ kind: 'invalid', message: /does not speak TLS/ }))
  t.equal((await plain.open(undefined)).certificateExpiresAtMs, undefined)
  t.ok(await open(pki.client()), `${listener.address} is well`)
})

t.test('a client CA: certificates before anything else', async t => {
  const pki = await Pki.make(t)
  const others = await Pki.make(t)
  const { open } = await start(t, { ...pki.serverTls, tlsClientCa: pki.caFile })
  t.ok(await open(pki.client(undefined, pki.clientCertificate)))
  await t.rejects(open(pki.client()), like({ kind: 'invalid', message: /wants a client certificate/ }))
  await t.rejects(
    open(pki.client(undefined, others.clientCertificate)),
    like({ message: /another CA signed the client certificate/ }),
  )
})

t.test('tokens: who gets in, and what for', async t => {
  const pki = await Pki.make(t)
  const apiKey = pki.apiKey('fixed', ['read:*'])
  writeFileSync(pki.path('api-keys'), apiKey.line)
  const { open, seen } = await start(t, { ...pki.serverFiles, apiKeys: pki.path('api-keys') })
  const withToken = async (...scopes: string[]) => await open(pki.client(await pki.tokenFile(scopes)))

  await t.rejects(open(pki.client()), like({ kind: 'invalid', message: /wants a token or an API key/ }))
  const wrong = pki.apiKey('wrong', ['admin'])
  await t.rejects(open(pki.client(wrong.file)), like({ kind: 'invalid', message: /API key is not known/ }))
  const late = await pki.tokenFile(['admin'], { expiresAtMs: Date.now() - 60_000 })
  await t.rejects(open(pki.client(late)), like({ kind: 'invalid', message: /expired at/ }))

  const reader = await withToken(`read:${MINE}`)
  await reader.request({ type: MessageType.Ping })
  t.equal((await reader.request(getPages(2))).bulk.length, 2 * PAGE)
  await t.rejects(
    reader.request(getPages(2, OTHER)),
    like({
      kind: 'invalid',
      message: /"tester" \(read:a+\) does not allow GetPages of timeline b+: it takes read:b+/,
    }),
  )
  const reserved = seen.bulksReserved
  await t.rejects(reader.request(append(MINE), { bulk: Buffer.alloc(100_000) }), like({ kind: 'invalid' }))
  t.same([seen.appends, seen.bulksReserved], [0, reserved], 'the service never heard of it')
  const { message } = await reader.request({ type: MessageType.TimelineList })
  t.same(
    message.timelines.map(item => item.timeline),
    [MINE],
  )
  const byName = { type: MessageType.TimelineShow, timeline: undefined, name: 'prod' }
  await t.rejects(
    reader.request(byName),
    like({ message: /does not allow to read a timeline "prod", if there is one/ }),
  )

  const writer = await withToken(`write:${MINE}`)
  await writer.request(append(MINE), { bulk: Buffer.alloc(100_000) })
  await t.rejects(writer.request(append(OTHER), { bulk: Buffer.alloc(100_000) }))
  t.equal(seen.appends, 1)
  const admin = await withToken('admin')
  t.equal((await admin.request({ type: MessageType.TimelineList })).message.timelines.length, 2)
  await t.rejects(admin.request(byName), like({ message: /there is no timeline named prod/ }))
  const fixed = await open(pki.client(apiKey.file))
  await fixed.request(getPages(1, OTHER))
  await t.rejects(fixed.request(append(OTHER)), like({ message: /the token of "fixed" \(read:\*\)/ }))
})

t.test('what a token is worth ends with it', async t => {
  const pki = await Pki.make(t)
  const apiKey = pki.apiKey('fixed', ['admin'])
  const other = pki.apiKey('other', ['admin'])
  writeFileSync(pki.path('api-keys'), apiKey.line + other.line)
  const { open, security } = await start(t, { ...pki.serverFiles, apiKeys: pki.path('api-keys') })
  // 30 s of clock difference are forgiven: this one has eight left.
  const ending = await open(pki.client(await pki.tokenFile(['admin'], { expiresAtMs: Date.now() - 22_000 })))
  const [fixed, kept] = await Promise.all([open(pki.client(apiKey.file)), open(pki.client(other.file))])
  writeFileSync(pki.path('api-keys'), other.line)
  await until(() => fixed.closed.aborted)
  t.match(fixed.closed.reason, { kind: 'retry', message: /the key of "fixed" was withdrawn/ })
  await t.rejects(open(pki.client(apiKey.file)), like({ message: /not known/ }))
  await kept.request({ type: MessageType.Ping })
  await until(() => ending.closed.aborted)
  t.match(ending.closed.reason, { kind: 'retry', message: /the token of "tester" has expired/ })
  // A file that makes no sense leaves things as they are; SIGHUP comes to the same.
  appendFileSync(pki.path('api-keys'), 'nonsense\n')
  await security.reload()
  await open(pki.client(other.file))
  await kept.request({ type: MessageType.Ping })
})

t.test('certificates are renewed while it runs', async t => {
  const pki = await Pki.make(t)
  const { open, security, listener } = await start(t, { ...pki.serverTls, tlsClientCa: pki.caFile })
  const client = pki.client(undefined, pki.clientCertificate)
  const serial = () =>
    new Promise<string>((resolve, reject) => {
      const socket = connectTls({ port: listener.port, rejectUnauthorized: false }, () => {
        resolve(socket.getPeerX509Certificate()?.serialNumber ?? '')
        socket.destroy()
      }).on('error', reject)
    })
  const before = await serial()
  const open1 = await open(client)
  await pki.writeNode('node')
  await until(async () => (await serial()) !== before)
  await open1.request({ type: MessageType.Ping })
  // The client took the new pair, too: it is the same files.
  await (await open(client)).request({ type: MessageType.Ping })
  const second = await serial()
  // Half a change: the certificate is of another key.
  const key = readFileSync(pki.path('node.key'))
  await pki.writeNode('node')
  writeFileSync(pki.path('node.key'), key)
  await security.reload()
  t.equal(await serial(), second)
  writeFileSync(pki.path('node.pem'), 'no certificate')
  await security.reload()
  t.equal(await serial(), second)
  await open1.request({ type: MessageType.Ping })
})

t.test('where a server may listen, and what it refuses to start with', async t => {
  const pki = await Pki.make(t)
  writeFileSync(pki.path('api-keys'), pki.apiKey('a', ['admin']).line)
  const listen = async (files: ServerSecurityFiles, insecureListen = false) => {
    const security = await ServerSecurity.open(files, silentLog)
    security.close()
    return new Listener({ host: '0.0.0.0', port: 0, log: silentLog, security, insecureListen })
  }
  await t.rejects(listen({}), like({ message: /without encryption .* and proof/ }))
  await t.rejects(listen(pki.serverTls), like({ message: /without proof of who the clients are/ }))
  await t.rejects(
    listen({ apiKeys: pki.path('api-keys') }),
    like({ message: /without encryption \(--tls-cert/ }),
  )
  for (const files of [
    { ...pki.serverTls, apiKeys: pki.path('api-keys') },
    { ...pki.serverTls, tlsClientCa: pki.caFile },
    pki.serverFiles,
  ])
    t.ok(await listen(files))
  t.ok(await listen({}, true))
  await t.rejects(ServerSecurity.open({ tlsCert: 'x' }, silentLog), like({ message: /belong together/ }))
  await t.rejects(ServerSecurity.open({ tlsClientCa: 'x' }, silentLog), like({ message: /needs --tls-cert/ }))
  await t.rejects(
    ServerSecurity.open({ apiKeys: '/nowhere' }, silentLog),
    like({ message: /cannot read the file of API keys \/nowhere: ENOENT/ }),
  )
  await pki.writeNode('old', ['a'], -1)
  const old = { tlsCert: pki.path('old.pem'), tlsKey: pki.path('old.key') }
  await t.rejects(ServerSecurity.open(old, silentLog), like({ message: /expired at/ }))
})

t.test('a client does not give its token to the network', async t => {
  const pki = await Pki.make(t)
  const tokenFile = await pki.tokenFile(['admin'])
  const security = openClientSecurity({ tokenFile })
  await t.rejects(
    Connection.connect({ host: 'db.example', port: 1, security }),
    like({ kind: 'invalid', message: /not sending the token to db\.example:1 unencrypted/ }),
  )
  writeFileSync(tokenFile, 'two\nlines')
  t.throws(() => openClientSecurity({ tokenFile }), like({ message: /does not hold one token/ }))
  t.throws(() => openClientSecurity({ tlsCert: 'x', tlsCa: 'y' }), like({ message: /belong together/ }))
  t.throws(() => openClientSecurity({ tlsCert: 'x', tlsKey: 'z' }), like({ message: /needs --tls-ca/ }))
  t.throws(() => openClientSecurity({ tlsCa: '/nowhere' }), like({ message: /cannot read the CA \/nowhere/ }))
})

t.test('half-open and slow connections', async t => {
  const pki = await Pki.make(t)
  const limits = { helloMs: 300, unknownMaxPerAddress: 20, unknownOldPerAddress: 20 }
  const plain = await start(t, { tokenKeys: pki.path('token-keys.json') }, limits)
  const tls = await start(t, pki.serverFiles, limits)
  const tokenFile = await pki.tokenFile(['admin'])
  for (const [{ listener, open }, client] of [
    [plain, openClientSecurity({ tokenFile })],
    [tls, pki.client(tokenFile)],
  ] as const) {
    const ended = { count: 0 }
    const sockets = Array.from({ length: 50 }, () => {
      const socket = connectTcp({ port: listener.port, host: '127.0.0.1' })
      socket.on('error', () => {}).on('close', () => ended.count++)
      socket.write(Buffer.from([0x16, 3, 1]))
      return socket.resume()
    })
    await until(() => ended.count >= 30)
    await (await open(client)).request({ type: MessageType.Ping })
    // What is left has its time, and no more.
    await until(() => ended.count === sockets.length)
    t.pass('all gone')
  }
})

t.test('hundreds of honest connections at once are no flood', async t => {
  const pki = await Pki.make(t)
  const client = openClientSecurity({ tokenFile: await pki.tokenFile(['admin']) })
  const { open, listener } = await start(t, { tokenKeys: pki.path('token-keys.json') })
  const connections = await Promise.all(Array.from({ length: 500 }, () => open(client)))
  await Promise.all(connections.map(connection => connection.request({ type: MessageType.Ping })))
  t.equal(listener.connections, 500)
})
