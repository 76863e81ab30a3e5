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
      'GET /metrics HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n',
    ),
    /^HTTP\/1\.1 413 /,
  )
  // More connections than are taken: honest ones get their turn when the others have gone.
  const [host, port] = admin.address.split(':')
  const idle = Array.from({ length: 60 }, () => connect({ host: host as string, port: Number(port) }))
  for (const socket of idle) socket.on('error', () => {})
  const settled = (): boolean =>
    idle.every(socket => !socket.connecting) && idle.filter(socket => !socket.closed).length <= 32
  for (let i = 0; i < 1000 && !settled(); i++) await new Promise(resolve => setTimeout(resolve, 5))
  t.ok(settled(), 'the rest is cut')
  for (const socket of idle) socket.destroy()
  // They are gone as soon as the server has seen it.
  let reply = ''
  for (let i = 0; i < 1000 && reply === ''; i++) {
    reply = await raw('GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n').catch(() => '')
    await new Promise(resolve => setTimeout(resolve, 5))
  }
  t.match(reply, /^HTTP\/1\.1 200 /)
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
