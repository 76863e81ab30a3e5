import t from 'tap'
import { PalimpsestError } from '../../../protocol/errors.ts'
import type { Lsn } from '../../../protocol/ids.ts'
import { LsnWaiters } from '../../../server/pageserver/lsn-waiters.ts'

const late = () => new PalimpsestError('retry', 'too late')
const lsn = (n: number) => n as Lsn

t.test('who waits is told, in time or not at all', async t => {
  const waiters = new LsnWaiters()
  const reached = [100, 150].map(at => waiters.wait(lsn(at), 60_000, late))
  const beyond = waiters.wait(lsn(151), 60_000, late)
  await t.rejects(waiters.wait(lsn(200), 1, late), { message: 'too late' })
  waiters.reached(lsn(150))
  await Promise.all(reached)
  t.equal(waiters.size, 1)
  waiters.rejectAll(at => new PalimpsestError('retry', `never ${at}`))
  await t.rejects(beyond, { message: 'never 151' })
  t.equal(waiters.size, 0)
})

t.test('nobody waits for a client that has gone', async t => {
  const waiters = new LsnWaiters()
  const client = new AbortController()
  const waiting = waiters.wait(lsn(100), 2 ** 31, late, client.signal)
  client.abort()
  await t.rejects(waiting, { message: 'too late' })
  t.equal(waiters.size, 0)
  await t.rejects(waiters.wait(lsn(100), 2 ** 31, late, client.signal), { message: 'too late' })
  t.equal(waiters.size, 0)
})
