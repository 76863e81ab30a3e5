import t from 'tap'
import { expiryComplaints } from '../../../server/commands/expiry-complaints.ts'

const DAY_MS = 86_400_000

t.test('certificates that run out within two weeks, once for all that share one', async t => {
  const now = Date.parse('2026-11-21T12:00:00Z')
  const one = (whose: string, days: number) => ({
    what: 'certificate of',
    whose,
    expiresAtMs: now + days * DAY_MS,
    renew: 'renew it',
  })
  t.same(expiryComplaints([one('a', 14), one('b', 300)], now), [])
  t.same(expiryComplaints([one('c', 13.5), one('a', 3), one('b', 3), one('d', -1), one('e', 0.5)], now), [
    'certificate of d: expired, 2026-11-20T12:00:00.000Z; renew it',
    'certificate of e: expires in 12 h, 2026-11-22T00:00:00.000Z; renew it',
    'certificate of a, b: expires in 3 d, 2026-11-24T12:00:00.000Z; renew it',
    'certificate of c: expires in 13 d, 2026-12-05T00:00:00.000Z; renew it',
  ])
  const token = {
    what: 'your own token',
    whose: 'f',
    beganAtMs: now - DAY_MS / 2,
    expiresAtMs: now + DAY_MS / 2,
    renew: '',
  }
  t.same(expiryComplaints([token], now), [], 'short-lived on purpose')
  t.equal(expiryComplaints([token], now + DAY_MS / 4).length, 1)
})
