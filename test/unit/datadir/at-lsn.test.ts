/** Which LSN a moment is: exactly that, or an error that says what can be had. */
import t from 'tap'
import type { Connection } from '../../../protocol/connection.ts'
import { LSN_MAX, type Lsn, toLsn } from '../../../protocol/ids.ts'
import { type Message, MessageType, type TimelineStatus } from '../../../protocol/messages.ts'
import { resolveMoment } from '../../../server/datadir/at-lsn.ts'

interface Sample {
  readonly lsn: Lsn
  readonly timeUs: number
}

const at = (seconds: number): number => Date.UTC(2026, 0, 1, 12, 0, seconds) * 1000
const sample = (lsn: number, seconds: number): Sample => ({ lsn: toLsn(lsn), timeUs: at(seconds) })

/** A page server that has these samples; more may join them. */
function pageServer(samples: Sample[]): Connection {
  return {
    async request(message: Message) {
      if (message.type === MessageType.LsnAtTime)
        return { message: samples.findLast(({ timeUs }) => timeUs <= message.timeUs) }
      if (message.type === MessageType.TimeAtLsn)
        return { message: samples.find(({ lsn }) => lsn >= message.lsn) ?? samples.at(-1) }
      throw new Error(`nobody asks for ${message.type}`)
    },
  } as unknown as Connection
}

function status(gaps: { fromLsn: number; toLsn: number }[] = []): TimelineStatus {
  return {
    summary: { name: 'main', timeline: 'ab', readableFromLsn: 100, ingestedLsn: 10_000 },
    gaps,
  } as unknown as TimelineStatus
}

t.test('between two samples it is the earlier one', async t => {
  const server = pageServer([sample(200, 1), sample(300, 2), sample(400, 9)])
  t.strictSame(await resolveMoment(server, status(), { timeUs: at(3) }), {
    lsn: 300,
    sampleTimeUs: at(2),
    nextSampleTimeUs: at(9),
  })
  t.equal((await resolveMoment(server, status(), { timeUs: at(9) })).lsn, 400, 'the newest, to the point')
  t.equal((await resolveMoment(server, status(), { lsn: toLsn(333) })).lsn, 333)
  t.equal((await resolveMoment(server, status(), {})).lsn, 10_000)
})

t.test('after the newest sample nothing is known', async t => {
  const server = pageServer([sample(200, 1), sample(300, 2)])
  await t.rejects(resolveMoment(server, status(), { timeUs: at(3) }), {
    kind: 'invalid',
    message:
      /12:00:03\.000Z is later than the newest change that timeline main knows: 2026-01-01T12:00:02\.000Z \(LSN 300\).* --lsn 300/,
  })
})

t.test('redo that is on its way is waited for', async t => {
  const samples = [sample(200, 1)]
  setTimeout(() => samples.push(sample(300, 2), sample(400, 4)), 300)
  t.equal((await resolveMoment(pageServer(samples), status(), { timeUs: at(3) })).lsn, 300)
})

t.test('a moment in which the server was not followed', async t => {
  const server = pageServer([sample(200, 1), sample(300, 2), sample(900, 60)])
  const gap = status([{ fromLsn: 300, toLsn: 1000 }])
  await t.rejects(resolveMoment(server, gap, { timeUs: at(30) }), {
    message:
      /lies in a gap of timeline main, from .*:02\.000Z to .*:01:00\.000Z: .*\(--lsn 300 or --lsn 1000\)/,
  })
  t.equal((await resolveMoment(server, gap, { timeUs: at(1) })).lsn, 200)
  const open = status([{ fromLsn: 300, toLsn: LSN_MAX }])
  await t.rejects(resolveMoment(server, open, { timeUs: at(30) }), { message: /\(--lsn 300\)/ })
})

t.test('what cannot be had at all', async t => {
  const server = pageServer([sample(50, 1), sample(300, 2)])
  await t.rejects(resolveMoment(server, status(), { timeUs: at(1) }), { message: /\(LSN 50\) is before it/ })
  await t.rejects(resolveMoment(server, status(), { lsn: toLsn(99) }), {
    message: /can be read from LSN 100 on/,
  })
  await t.rejects(resolveMoment(server, status(), { timeUs: 9e15 }), { message: /is still to come/ })
  await t.rejects(resolveMoment(server, status([{ fromLsn: 300, toLsn: 1000 }]), { lsn: toLsn(500) }), {
    message: /lies in a gap of timeline main/,
  })
})
