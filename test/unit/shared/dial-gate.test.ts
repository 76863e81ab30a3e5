import t from 'tap'
import { Role } from '../../../protocol/messages.ts'
import { DialGate } from '../../../server/shared/dial-gate.ts'
import { Listener } from '../../../server/shared/listener.ts'
import { silentLog } from '../../../server/shared/log.ts'
import { SafekeeperWatch } from '../../../server/shared/safekeeper-watch.ts'

t.test('so many at a time, in their order; a failure gives its place back', async t => {
  const gate = new DialGate(2)
  const begun: number[] = []
  const ends: (() => void)[] = []
  const runs = Array.from({ length: 6 }, (_, i) =>
    gate.pass(async () => {
      begun.push(i)
      await new Promise<void>(resolve => ends.push(resolve))
      if (i % 2 === 0) throw new Error(`${i} failed`)
      return i
    }),
  )
  const all = Promise.allSettled(runs)
  for (let done = 0; done < 6; done++) {
    await new Promise(resolve => setImmediate(resolve))
    t.equal(begun.length, Math.min(6, done + 2))
    ends[done]!()
  }
  t.same(
    (await all).map(({ status }) => status),
    ['rejected', 'fulfilled', 'rejected', 'fulfilled', 'rejected', 'fulfilled'],
  )
  t.same(begun, [0, 1, 2, 3, 4, 5])
  t.equal(gate.waiting, 0)
})

t.test('who gives up waiting takes no place', async t => {
  const gate = new DialGate(1)
  let end = () => {}
  const first = gate.pass(() => new Promise<void>(resolve => (end = resolve)))
  const stop = new AbortController()
  const second = gate.pass(async () => t.fail('it was given up'), stop.signal)
  let third = false
  const last = gate.pass(async () => {
    third = true
  })
  stop.abort(new Error('stop'))
  await t.rejects(second, { message: 'stop' })
  await t.rejects(
    gate.pass(async () => {}, stop.signal),
    { message: 'stop' },
  )
  t.equal(third, false)
  end()
  await first
  await last
  t.equal(third, true)
})

t.test('a thousand timelines that dial at once are never many at the safekeeper', async t => {
  const listener = new Listener({
    ...{ host: '127.0.0.1', port: 0, log: silentLog },
    services: [{ role: Role.SAFEKEEPER, handlers: {} }],
  })
  await listener.listen()
  t.teardown(() => listener.close())
  const watch = new SafekeeperWatch([listener.localAddress], { dialsMax: 8 })
  const { signal } = new AbortController()
  let open = 0
  let most = 0
  await Promise.all(
    Array.from({ length: 1000 }, async () => {
      const connection = await watch.dial(signal)
      most = Math.max(most, listener.connections - open)
      open++
      t.teardown(() => connection.close())
    }),
  )
  t.equal(open, 1000)
  // Counted by the server when a client goes on: those of which no client has heard yet.
  t.ok(most <= 8, `${most} at a time`)
})
