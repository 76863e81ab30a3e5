import t from 'tap'
import { Admission, addressKey, type Place } from '../../../server/shared/admission.ts'

const LIMITS = {
  unknownMax: 10,
  unknownMaxPerAddress: 8,
  unknownOldPerAddress: 4,
  unknownYoungMs: 1000,
  connectionsMax: 6,
  connectionsMaxPerAddress: 3,
}

function gate() {
  const admission = new Admission(LIMITS)
  const evicted: string[] = []
  const enter = (address: string, name: string, nowMs = 0): Place =>
    admission.enter(address, nowMs, () => evicted.push(name))
  return { admission, evicted, enter }
}

t.test('the oldest unknown connection of the same address gives way', async t => {
  const { admission, evicted, enter } = gate()
  for (let i = 0; i < 8; i++) enter('10.0.0.1', `a${i}`)
  t.same(evicted, [], 'many at once are no flood yet')
  enter('10.0.0.1', 'a8')
  t.same(evicted, ['a0'], 'too many are')
  enter('10.0.0.2', 'b0')
  t.equal(admission.unknown, 9)
  t.same(evicted, ['a0'], 'another address is not touched')
})

t.test('those that stay unknown for long are fewer', async t => {
  const { admission, evicted, enter } = gate()
  for (let i = 0; i < 4; i++) enter('10.0.0.1', `a${i}`, i * 400)
  enter('10.0.0.1', 'a4', 1000)
  t.same(evicted, [])
  enter('10.0.0.1', 'a5', 1001)
  t.same(evicted, ['a0'])
  t.equal(admission.unknown, 5)
  enter('10.0.0.1', 'a6', 3000)
  enter('10.0.0.1', 'a7', 3000)
  t.same(evicted, ['a0', 'a1', 'a2'])
})

t.test('when all places are taken, the address with most of them pays', async t => {
  const { admission, evicted, enter } = gate()
  const honest = enter('10.0.0.9', 'honest')
  for (let a = 1; a <= 3; a++) for (let i = 0; i < 3; i++) enter(`10.0.0.${a}`, `${a}.${i}`)
  t.equal(admission.unknown, 10)
  for (let a = 10; a < 15; a++) enter(`10.0.1.${a}`, `late${a}`)
  t.equal(admission.unknown, 10)
  t.same(evicted, ['1.0', '2.0', '3.0', '1.1', '2.1'])
  t.equal(admission.promote(honest), undefined)
  t.equal(admission.unknown, 9)
  t.equal(admission.known, 1)
})

t.test('known connections are limited, and leave', async t => {
  const { admission, enter } = gate()
  const places = [1, 2, 3].map(i => enter('10.0.0.1', String(i)))
  for (const place of places) t.equal(admission.promote(place), undefined)
  const fourth = enter('10.0.0.1', '4')
  t.match(admission.promote(fourth), /3 connections from 10\.0\.0\.1/)
  admission.leave(places[0]!)
  admission.leave(places[0]!)
  t.equal(admission.known, 2)
  t.equal(admission.promote(fourth), undefined)
  for (const address of ['10.0.0.2', '10.0.0.3', '10.0.0.4']) admission.promote(enter(address, address))
  t.match(admission.promote(enter('10.0.0.5', '5')), /this server has its 6 connections/)
})

t.test('wrong credentials are answered later and later; time forgives', async t => {
  const { admission, enter } = gate()
  const place = enter('10.0.0.1', 'a')
  const delays = Array.from({ length: 15 }, () => admission.failed(place, 1000))
  t.same(delays.slice(0, 8), [0, 0, 0, 0, 0, 100, 200, 400])
  t.equal(delays.at(-1), 5000)
  t.equal(admission.failed(enter('10.0.0.2', 'b'), 1000), 0)
  t.equal(admission.failed(place, 3000), 5000, 'two seconds forgive two')
  t.equal(admission.failed(place, 100_000), 0)
  // Addresses are remembered in bounded number.
  for (let i = 0; i < 6000; i++) admission.failed({ address: `x${i}` } as Place, 100_000)
  t.equal(admission.failed(place, 100_000), 0)
})

t.test('logs: once a second for an address, with the number left out', async t => {
  const { admission } = gate()
  t.equal(admission.mayLog('a', 1000), 0)
  t.equal(admission.mayLog('a', 1500), undefined)
  t.equal(admission.mayLog('b', 1500), 0)
  t.equal(admission.mayLog('a', 1999), undefined)
  t.equal(admission.mayLog('a', 2000), 2)
})

t.test('what counts as one address', async t => {
  for (const [address, key] of [
    ['10.1.2.3', '10.1.2.3'],
    ['::ffff:10.1.2.3', '10.1.2.3'],
    ['::1', '::1'],
    ['2001:db8:1:2:3:4:5:6', '2001:db8:1:2::/64'],
    ['2001:0DB8:1:2::9', '2001:db8:1:2::/64'],
    ['2001:db8::9', '2001:db8:0:0::/64'],
    ['fe80::1%eth0', 'fe80:0:0:0::/64'],
    [undefined, '?'],
  ] as const)
    t.equal(addressKey(address), key)
})
