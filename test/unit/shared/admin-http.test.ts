import { once } from 'node:events'
import { connect } from 'node:net'
import { text } from 'node:stream/consumers'
import t from 'tap'
import { AdminServer, Readiness } from '../../../server/shared/admin-http.ts'
import { silentLog } from '../../../server/shared/log.ts'
import { Metrics } from '../../../server/shared/metrics.ts'

const readiness = new Readiness()
const loaded = readiness.pending('pageserver', 'manifests are not loaded yet')
const metrics = await Metrics.create()
metrics.collectProcess()
metrics.part('x').counter('requests_total', 'r').add(3)
const admin = await AdminServer.listen({ host: '127.0.0.1', port: 0, metrics, readiness, log: silentLog })
t.teardown(() => admin.close())
const url = `http://${admin.address}`

/** What comes back for these bytes, up to the end of the connection. */
function raw(bytes: string): Promise<string> {
  const [host, port] = admin.address.split(':')
  const socket = connect({ host: host as string, port: Number(port) })
  socket.on('error', () => {})
  socket.write(bytes)
  return text(socket)
}

t.test('metrics, health, readiness', async t => {
  const scraped = await fetch(`${url}/metrics`)
  t.equal(scraped.status, 200)
  t.match(scraped.headers.get('content-type'), 'text/plain; version=0.0.4')
  const body = await scraped.text()
  for (const name of [
    'palimpsest_x_requests_total 3',
    'nodejs_eventloop_lag_p99_seconds',
    'nodejs_heap_size_used_bytes',
  ])
    t.match(body, name)
  t.equal((await fetch(`${url}/healthz`)).status, 200)
  const before = await fetch(`${url}/readyz`)
  t.equal(before.status, 503)
  t.match(await before.text(), 'not ready pageserver: manifests are not loaded yet')
  loaded()
  const after = await fetch(`${url}/readyz?verbose`)
  t.equal(after.status, 200)
  t.equal(await after.text(), 'ok pageserver\nready\n')
})

t.test('nothing else', async t => {
  t.equal((await fetch(`${url}/`)).status, 404)
  const post = await fetch(`${url}/metrics`, { method: 'DELETE' })
  t.equal(post.status, 405)
  t.equal(post.headers.get('allow'), 'GET, HEAD')
  t.equal((await fetch(`${url}/metrics`, { method: 'POST', body: 'x' })).status, 413)
  const head = await fetch(`${url}/metrics`, { method: 'HEAD' })
  t.equal(head.status, 200)
  t.equal(await head.text(), '')
})

t.test('hostile input', async t => {
  t.match(await raw('\x16\x03\x01\x02\x00 what is this\r\n\r\n'), /^HTTP\/1\.1 400 /)
  t.match(await raw(`GET / HTTP/1.1\r\nHost: x\r\nX: ${'y'.repeat(20_000)}\r\n\r\n`), /^HTTP\/1\.1 4\d\d |^$/)
  t.match(
    await raw(
      'GET /metrics HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n',
    ),
    /^HTTP\/1\.1 413 /,
  )
  // More connections than are taken: they say nothing, and keep nobody out.
  const [host, port] = admin.address.split(':')
  const idle = Array.from({ length: 60 }, () => connect({ host: host as string, port: Number(port) }))
  for (const socket of idle) socket.on('error', () => {}).resume()
  t.teardown(() => {
    for (const socket of idle) socket.destroy()
  })
  await Promise.all(idle.map(socket => (socket.connecting ? once(socket, 'connect') : undefined)))
  t.match(
    await raw('GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n'),
    /^HTTP\/1\.1 200 /,
  )
  for (let i = 0; i < 1000 && idle.filter(socket => !socket.closed).length > 31; i++)
    await new Promise(resolve => setTimeout(resolve, 5))
  t.equal(idle.filter(socket => !socket.closed).length, 31, 'the oldest are cut')
})

t.test('one who was told 400 is not waited for', async t => {
  const [host, port] = admin.address.split(':')
  const socket = connect({ host: host as string, port: Number(port), allowHalfOpen: true })
  socket.on('error', () => {})
  socket.write('rubbish\r\n\r\n')
  await once(socket.resume(), 'end')
  // What is still written is answered by a reset, since nobody is there any more.
  for (let i = 0; i < 1000 && !socket.destroyed; i++) {
    socket.write('x')
    await new Promise(resolve => setTimeout(resolve, 5))
  }
  t.equal(socket.destroyed, true)
})

t.test('a page in a browser whose name was made to mean this machine gets nothing', async t => {
  const ask = (host: string) => raw(`GET /metrics HTTP/1.1\r\nHost: ${host}\r\nConnection: close\r\n\r\n`)
  for (const host of [
    'evil.example',
    'evil.example:9071',
    '127.0.0.1.evil.example',
    'localhost.evil.example',
  ])
    t.match(await ask(host), /^HTTP\/1\.1 421 /, host)
  for (const host of ['localhost', 'LOCALHOST:9071', 'a.localhost', '127.0.0.1', '127.0.0.1:1', '[::1]:9071'])
    t.match(await ask(host), /^HTTP\/1\.1 200 /, host)
  t.match(await raw('GET /metrics HTTP/1.0\r\n\r\n'), /^HTTP\/1\.1 200 /, 'no browser')
  // Where others may ask, they do so by whatever name it has there.
  const open = await AdminServer.listen({
    ...{ host: '0.0.0.0', port: 0, metrics, readiness, log: silentLog, insecureListen: true },
  })
  t.teardown(() => open.close())
  const answer = await fetch(`http://localhost:${open.address.split(':')[1]}/healthz`)
  t.equal(answer.status, 200)
})

t.test('only on loopback unless told otherwise', async t => {
  await t.rejects(
    AdminServer.listen({ host: '0.0.0.0', port: 0, metrics, readiness, log: silentLog }),
    /refusing to serve metrics on 0\.0\.0\.0.*--insecure-admin-listen/,
  )
  const [host, port] = admin.address.split(':')
  await t.rejects(
    AdminServer.listen({ host: host as string, port: Number(port), metrics, readiness, log: silentLog }),
    /cannot listen on admin address .* EADDRINUSE/,
  )
})
