/** Requests that are passed on to the leader: one that takes long, a leader that stands still, too many. */
import t from 'tap'
import type { Connection } from '../../../protocol/connection.ts'
import { MessageType } from '../../../protocol/messages.ts'
import { Forwarder } from '../../../server/safekeeper/forward.ts'
import { retryError } from '../../../server/shared/errors.ts'
import { fastClock } from '../../support/fast-clock.ts'

const ADDRESS = '127.0.0.1:7071'

/** A leader that answers what it is told to answer. */
function leader() {
  const made = { dials: 0, pings: 0, alive: true, answers: new Map<string, () => void>() }
  const dial = async () => {
    made.dials++
    const over = new AbortController()
    const orLost = (answer: Promise<unknown>) =>
      new Promise((resolve, reject) => {
        over.signal.addEventListener('abort', () => reject(over.signal.reason))
        answer.then(resolve)
      })
    return {
      closed: over.signal,
      close: () => over.abort(retryError('closed by this side')),
      request: () => {
        made.pings++
        return orLost(made.alive ? Promise.resolve() : new Promise(() => {}))
      },
      requestAll: (message: { name: string }) => {
        const { promise, resolve } = Promise.withResolvers<void>()
        made.answers.set(message.name, resolve)
        return orLost(
          promise.then(() => [{ message: { type: MessageType.Ok }, bulk: Buffer.alloc(0), header: {} }]),
        )
      },
    } as unknown as Connection
  }
  return { made, forwarder: new Forwarder(dial, fastClock()) }
}

function forward(forwarder: Forwarder, name: string, bytes = 0): Promise<void> {
  const request = { message: { type: MessageType.WalDelete, name }, bulk: Buffer.alloc(bytes), header: {} }
  return forwarder.forward(ADDRESS, request as never, () => {})
}

const later = () => new Promise(resolve => setTimeout(resolve, 60))

t.test('a request that takes long ends nobody else, nor itself', async t => {
  const { made, forwarder } = leader()
  const slow = forward(forwarder, 'slow')
  for (let i = 0; i < 5; i++) {
    const quick = forward(forwarder, `quick${i}`)
    await new Promise(setImmediate)
    made.answers.get(`quick${i}`)!()
    await quick
    // Many seconds of the forwarder's.
    await later()
  }
  t.ok(made.pings > 0, 'it was asked for a sign of life')
  made.answers.get('slow')!()
  await slow
  t.equal(made.dials, 1)
  const { pings } = made
  await later()
  t.equal(made.pings, pings, 'nobody is asked while nothing waits')
  forwarder.close()
})

t.test('a leader that stands still is left, and all hear retry', async t => {
  const { made, forwarder } = leader()
  made.alive = false
  const requests = ['a', 'b', 'c'].map(name => forward(forwarder, name))
  for (const request of requests)
    await t.rejects(request, {
      kind: 'retry',
      message: /has not said anything for \d+ s/,
    } as unknown as Error)
  t.equal(made.pings, 1)
  made.alive = true
  const again = forward(forwarder, 'd')
  await new Promise(setImmediate)
  made.answers.get('d')!()
  await again
  t.equal(made.dials, 2)
  forwarder.close()
})

t.test('what waits is bounded', async t => {
  const { made, forwarder } = leader()
  const megabytes = Array.from({ length: 256 }, (_, i) => forward(forwarder, `${i}`, 1024 * 1024))
  await t.rejects(forward(forwarder, 'more', 1), {
    kind: 'retry',
    message: /256 requests/,
  } as unknown as Error)
  await new Promise(setImmediate)
  for (let i = 0; i < 256; i++) made.answers.get(`${i}`)!()
  await Promise.all(megabytes)
  const few = forward(forwarder, 'again', 1)
  await new Promise(setImmediate)
  made.answers.get('again')!()
  await few
  forwarder.close()
})
