import { setTimeout as sleep } from 'node:timers/promises'
import t from 'tap'
import { InterruptedError, interruptible, orAborted } from '../../../server/commands/interruption.ts'

const listeners = () => [process.listenerCount('SIGINT'), process.listenerCount('SIGTERM')]

/** To the newest listener alone: the test runner has some of its own. */
const send = (signal: 'SIGINT' | 'SIGTERM') => process.listeners(signal).at(-1)!(signal)

t.test('work that is told to stop', async t => {
  const before = listeners()
  for (const [signal, exitCode] of [
    ['SIGINT', 130],
    ['SIGTERM', 143],
  ] as const) {
    const work = interruptible(
      () => 'something is left',
      async stop => {
        send(signal)
        t.ok(stop.aborted)
        t.same(listeners(), before, 'a second one ends the process at once')
        throw new Error('what becomes of being stopped')
      },
    )
    await t.rejects(work, { exitCode, message: /^stopped by (?:Ctrl-C|SIGTERM); something is left$/ })
  }
  t.same(listeners(), before)
})

t.test('work that succeeds or fails by itself', async t => {
  const before = listeners()
  t.equal(await interruptible('', async () => 1), 1)
  await t.rejects(
    interruptible('', async () => {
      throw new Error('own')
    }),
    { message: 'own' },
  )
  const done = async () => {
    send('SIGINT')
    return 2
  }
  t.equal(await interruptible('', done), 2, 'done all the same')
  t.same(listeners(), before)
})

t.test('work that cannot be told to stop is left', async t => {
  const stop = new AbortController()
  t.equal(await orAborted(stop.signal, Promise.resolve(1)), 1)
  const never = orAborted(stop.signal, sleep(60_000, 0, { ref: false }))
  stop.abort(new InterruptedError('SIGINT', 'nothing is left'))
  await t.rejects(never, InterruptedError)
  await t.rejects(orAborted(stop.signal, sleep(60_000, 0, { ref: false })), InterruptedError)
})
