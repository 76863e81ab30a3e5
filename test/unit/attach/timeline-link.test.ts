/** Making a timeline, also where an attempt before was cut off. */
import t from 'tap'
import type { Connection } from '../../../protocol/connection.ts'
import { type TimelineId, toLsn, toTimelineId } from '../../../protocol/ids.ts'
import { type Message, MessageType } from '../../../protocol/messages.ts'
import { createTimeline, type Servers } from '../../../server/attach/timeline-link.ts'
import { invalidError } from '../../../server/shared/errors.ts'

const HALF = toTimelineId('1'.repeat(32))
const OTHER = toTimelineId('2'.repeat(32))

function servers(logs: readonly { name: string; timeline: TimelineId; beginLsn: number }[]) {
  const seen: Message[] = []
  const server = {
    requestAll: async () => [{ message: { timelines: logs } }],
    request: async (message: Message) => {
      seen.push(message)
    },
  } as unknown as Connection
  return { seen, servers: { safekeeper: server, pageServer: server, close() {} } satisfies Servers }
}

const wanted = { name: 'main', startLsn: toLsn(5000), innodbPageSize: 16384, serverVersion: '' }

t.test('anew', async t => {
  const { seen, servers: both } = servers([{ name: 'else', timeline: HALF, beginLsn: 77 }])
  const made = await createTimeline(both, { ...wanted, timeline: OTHER })
  t.strictSame(made, { timeline: OTHER, startLsn: 5000 })
  t.match(seen, [
    { type: MessageType.WalCreate, timeline: OTHER, startLsn: 5000 },
    { type: MessageType.TimelineCreate, timeline: OTHER, startLsn: 5000 },
  ])
})

t.test('the other half of one that the safekeepers have: what it tells is how that begins', async t => {
  const { seen, servers: both } = servers([{ name: 'main', timeline: HALF, beginLsn: 12_288 }])
  t.strictSame(await createTimeline(both, wanted), { timeline: HALF, startLsn: 12_288 })
  t.match(seen, [{ type: MessageType.TimelineCreate, timeline: HALF, startLsn: 12_288 }])
  t.equal(seen.length, 1)
})

t.test('an id that was asked for is no other', async t => {
  const { seen, servers: both } = servers([{ name: 'main', timeline: HALF, beginLsn: 12_288 }])
  await t.rejects(createTimeline(both, { ...wanted, timeline: OTHER }), {
    kind: 'invalid',
    message: /already, with id 1{32}: .* Leave --id out/,
  })
  t.strictSame(seen, [])
})

t.test('a token that is not for the random id: the refusal names none, but --id', async t => {
  const { servers: both } = servers([])
  both.safekeeper.request = (async ({ timeline }: { timeline: TimelineId }) => {
    const refusal = `the token of "a" (write:${OTHER}) does not allow WalCreate of timeline ${timeline}: it takes write:${timeline}, or admin`
    throw invalidError(refusal)
  }) as unknown as Connection['request']
  await t.rejects(createTimeline(both, wanted), {
    kind: 'invalid',
    message: new RegExp(
      `^the token may not write to a timeline main, if there is one; to make it, give --id, .*\\(write:${OTHER}\\) does not allow WalCreate of timeline ID: it takes write:ID`,
    ),
  })
  await t.rejects(createTimeline(both, { ...wanted, timeline: HALF }), {
    message: new RegExp(`^the token of "a" .*it takes write:${HALF}`),
  })
})
