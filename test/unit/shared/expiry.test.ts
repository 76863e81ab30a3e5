import t from 'tap'
import { type Expiring, ExpiryWatch, isSoon } from '../../../server/shared/expiry.ts'
import type { Log } from '../../../server/shared/log.ts'
import { Metrics } from '../../../server/shared/metrics.ts'

const DAY_MS = 24 * 3600_000

function expiring(lifeMs: number, leftMs: number, nowMs = Date.now()): Expiring {
  return { kind: 'token', file: 'a.token', beganAtMs: nowMs + leftMs - lifeMs, expiresAtMs: nowMs + leftMs }
}

t.test('soon is a week, or a third of a shorter life', async t => {
  const now = Date.now()
  t.equal(isSoon(expiring(365 * DAY_MS, 8 * DAY_MS, now), now), false)
  t.equal(isSoon(expiring(365 * DAY_MS, 6 * DAY_MS, now), now), true)
  t.equal(isSoon(expiring(DAY_MS, DAY_MS / 2, now), now), false, 'one that is renewed every day')
  t.equal(isSoon(expiring(DAY_MS, DAY_MS / 4, now), now), true)
  t.equal(isSoon({ ...expiring(1, DAY_MS, now), beganAtMs: undefined }, now), true)
})

t.test('a process that runs on is told of its certificate once a day', async t => {
  const told: unknown[] = []
  const log = {
    warn: (fields: unknown, text: string) => told.push(['warn', fields, text]),
    error: (fields: unknown, text: string) => told.push(['error', fields, text]),
  } as unknown as Log
  const now = Date.now()
  let one = expiring(365 * DAY_MS, 8 * DAY_MS, now)
  const metrics = await Metrics.create()
  const watch = new ExpiryWatch(() => [one], log, metrics.part('process'))
  t.teardown(() => watch.close())
  t.same(told, [])
  for (let hour = 0; hour < 48; hour++) watch.check(now + DAY_MS + 1 + hour * 3600_000)
  t.match(told, [
    ['warn', { file: 'a.token' }, /expires soon/],
    ['warn', {}, /expires soon/],
  ])
  watch.check(one.expiresAtMs + 1)
  t.match(told[2], ['error', {}, /the token has expired/])
  const left = /^palimpsest_process_credential_left_seconds\{kind="token",file="a.token"\} (\d+)/m
  const before = Number(left.exec(await metrics.text())?.[1])
  t.ok(before > 7 * 24 * 3600 && before <= 8 * 24 * 3600)
  // Renewed: nothing more, and the next time it is due it is told at once.
  one = expiring(365 * DAY_MS, 100 * DAY_MS, now)
  watch.check(now)
  t.equal(told.length, 3)
  watch.check(now + 94 * DAY_MS)
  t.equal(told.length, 4)
})
