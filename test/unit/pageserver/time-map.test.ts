import t from 'tap'
import type { Lsn } from '../../../protocol/ids.ts'
import { TimeMap } from '../../../server/pageserver/core/time-map.ts'
import {
  decodeTimeSamples,
  encodeTimeSamples,
  type TimeSample,
} from '../../../server/pageserver/time-samples.ts'

const L = (lsn: number) => lsn as Lsn
const none = async () => []
const SECOND = 1_000_000
const at = (sample: TimeSample | undefined) => sample?.lsn

t.test('a sample every 100 ms, and always the last before a pause', async t => {
  const times = new TimeMap()
  for (let i = 0; i <= 1000; i++) times.add(L(1000 + i), i * 1000)
  // A pause of an hour.
  times.add(L(5000), 3600 * SECOND)
  const samples = times.samplesIn(L(0), L(9999))
  t.ok(samples.length <= 13, `${samples.length} samples`)
  t.ok(
    samples.some(s => s.lsn === 2000),
    'the last one before the pause',
  )
  t.equal(at(await times.lsnAt(1800 * SECOND, [], none)), 2000)
  t.equal(at(await times.lsnAt(3600 * SECOND, [], none)), 5000)
  t.equal(await times.lsnAt(-1, [], none), undefined)
  t.equal(times.samplesIn(L(1000), L(1500)).at(-1)!.lsn <= 1500, true)
})

t.test('redo that is sent again changes nothing', async t => {
  const times = new TimeMap()
  times.add(L(100), SECOND)
  times.add(L(200), 2 * SECOND)
  times.add(L(150), 9 * SECOND)
  times.add(L(200), 9 * SECOND)
  t.same(times.samplesIn(L(0), L(999)), [
    { lsn: 100, timeUs: SECOND },
    { lsn: 200, timeUs: 2 * SECOND },
  ])
})

t.test('samples move from memory to layers and are found there, one layer opened', async t => {
  const times = new TimeMap()
  for (let i = 1; i <= 30; i++) times.add(L(i * 10), i * SECOND)
  const stored = new Map<string, TimeSample[]>()
  const layers = [0, 100, 200].map(from => {
    const samples = times.samplesIn(L(from), L(from + 100))
    stored.set(`${from}`, decodeTimeSamples(encodeTimeSamples(samples)))
    return {
      key: `${from}`,
      lsnStart: L(from),
      lsnEnd: L(from + 100),
      minTimeUs: samples[0]!.timeUs,
      maxTimeUs: samples.at(-1)!.timeUs,
    }
  })
  times.forget(L(300))
  t.same(times.samplesIn(L(0), L(300)), [])
  const opened: string[] = []
  const load = async (key: string) => {
    opened.push(key)
    return stored.get(key)!
  }
  t.equal(at(await times.lsnAt(15.5 * SECOND, layers, load)), 150)
  t.same(opened, ['100'])
  t.equal(at(await times.lsnAt(0.5 * SECOND, layers, load)), undefined)
  t.equal(at(await times.lsnAt(99 * SECOND, layers, load)), 300)
  t.same(await times.timeAt(L(151), layers, load), { lsn: 160, timeUs: 16 * SECOND })
  t.same(await times.timeAt(L(999), layers, load), { lsn: 300, timeUs: 30 * SECOND })
  times.add(L(310), 31 * SECOND)
  t.same(await times.timeAt(L(301), layers, load), { lsn: 310, timeUs: 31 * SECOND })
})

t.test('a clock that was set back: of the times that happened twice the later counts', async t => {
  const times = new TimeMap()
  times.add(L(10), 100 * SECOND)
  times.add(L(20), 200 * SECOND)
  times.add(L(30), 50 * SECOND)
  times.add(L(40), 120 * SECOND)
  t.equal(at(await times.lsnAt(60 * SECOND, [], none)), 30)
  t.equal(at(await times.lsnAt(110 * SECOND, [], none)), 30)
  t.equal(at(await times.lsnAt(300 * SECOND, [], none)), 40)
  const samples = times.samplesIn(L(0), L(99))
  t.same(decodeTimeSamples(encodeTimeSamples(samples)), samples)
})

t.test('hostile sample bytes are refused', async t => {
  const bytes = encodeTimeSamples([
    { lsn: L(5), timeUs: 1_700_000_000_000_000 },
    { lsn: L(2 ** 52), timeUs: 1_600_000_000_000_000 },
  ])
  t.equal(decodeTimeSamples(bytes).length, 2)
  for (let length = 0; length < bytes.length; length++)
    t.throws(() => decodeTimeSamples(bytes.subarray(0, length)))
  t.throws(() => decodeTimeSamples(Buffer.concat([bytes, Buffer.from([0])])))
  t.throws(() => decodeTimeSamples(Buffer.from([0xff, 0xff, 0xff, 0x7f])))
})
