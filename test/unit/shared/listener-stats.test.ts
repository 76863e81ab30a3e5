import { connect } from 'node:net'
import { text } from 'node:stream/consumers'
import t from 'tap'
import { Connection } from '../../../protocol/connection.ts'
import { toTimelineId } from '../../../protocol/ids.ts'
import { MessageType, Role } from '../../../protocol/messages.ts'
import { invalidError } from '../../../server/shared/errors.ts'
import { Listener } from '../../../server/shared/listener.ts'
import { createLog, silentLog } from '../../../server/shared/log.ts'
import { Metrics } from '../../../server/shared/metrics.ts'

const TIMELINE = toTimelineId('0123456789abcdef0123456789abcdef')

t.test('connections and requests, by what became of them', async t => {
  const metrics = await Metrics.create()
  const listener = new Listener({
    host: '127.0.0.1',
    port: 0,
    log: silentLog,
    metrics: metrics.part('listener'),
    limits: { connectionsMax: 2 },
    services: [
      {
        role: Role.SAFEKEEPER,
        handlers: {
          [MessageType.WalDelete]: (_, ctx) => ctx.reply({ type: MessageType.Ok }),
          [MessageType.WalState]: () => {
            throw invalidError('no such timeline')
          },
          // Never answered.
          [MessageType.WalList]: () => new Promise<void>(() => {}),
        },
      },
    ],
  })
  await listener.listen()
  t.teardown(() => listener.close())
  const has = async (line: string): Promise<boolean> =>
    (await metrics.text()).includes(`palimpsest_listener_${line}\n`)

  const client = await Connection.connect({ host: '127.0.0.1', port: listener.port })
  await client.request({ type: MessageType.WalDelete, timeline: TIMELINE })
  await client.request({ type: MessageType.WalDelete, timeline: TIMELINE })
  t.match(await client.request({ type: MessageType.WalState, timeline: TIMELINE }).catch(e => e), {
    kind: 'invalid',
  })
  const waits = client.requestAll({ type: MessageType.WalList })
  waits.catch(() => {})
  await client.request({ type: MessageType.WalDelete, timeline: TIMELINE })
  t.ok(await has('open_connections 1'))
  t.ok(await has('requests_total{type="WalDelete",outcome="ok"} 3'))
  t.ok(await has('requests_total{type="WalState",outcome="invalid"} 1'))

  const stranger = connect({ host: '127.0.0.1', port: listener.port })
  stranger.write('GET / HTTP/1.1\r\nHost: localhost\r\nUser-Agent: something that is not ours\r\n\r\n')
  await text(stranger)
  t.ok(await has('refused_connections_total{reason="handshake"} 1'))

  client.close()
  await t.rejects(waits)
  while (listener.connections > 0) await new Promise(resolve => setTimeout(resolve, 5))
  t.ok(await has('requests_total{type="WalList",outcome="gone"} 1'))
  t.ok(await has('accepted_connections_total 2'))
  t.notOk(await has('received_bytes_total 0'))
  t.notOk(await has('sent_bytes_total 0'))
})

t.test('a failed request is logged with what it was about', async t => {
  const lines: Record<string, unknown>[] = []
  const log = createLog({
    name: 'safekeeper',
    node: 'a',
    level: 'debug',
    stream: { write: (line: string) => lines.push(JSON.parse(line)) },
  })
  const listener = new Listener({
    host: '127.0.0.1',
    port: 0,
    log,
    services: [
      {
        role: Role.SAFEKEEPER,
        handlers: {
          [MessageType.WalDelete]: () => {
            throw new Error('a defect')
          },
          [MessageType.WalState]: () => {
            throw invalidError('no such timeline')
          },
        },
      },
    ],
  })
  await listener.listen()
  t.teardown(() => listener.close())
  const client = await Connection.connect({ host: '127.0.0.1', port: listener.port })
  t.teardown(() => client.close())
  await t.rejects(client.request({ type: MessageType.WalDelete, timeline: TIMELINE }))
  await t.rejects(client.request({ type: MessageType.WalState, timeline: TIMELINE }))
  t.match(
    lines.find(line => line['msg'] === 'request failed'),
    {
      level: 50,
      name: 'safekeeper',
      node: 'a',
      request: 'WalDelete',
      timeline: TIMELINE,
      kind: 'internal',
      peer: /^127\.0\.0\.1:\d+$/,
      err: { message: 'a defect', stack: /a defect/ },
    },
  )
  t.match(
    lines.find(line => line['msg'] === 'request refused'),
    { level: 20, request: 'WalState', timeline: TIMELINE, kind: 'invalid', reason: 'no such timeline' },
  )
})
