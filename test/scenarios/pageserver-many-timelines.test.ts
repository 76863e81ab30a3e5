/** More timelines than arenas: each gets its turn. */
import t from 'tap'
import type { Lsn, TimelineId } from '../../protocol/ids.ts'
import { MessageType, type TimelineCreate, type WaitLsn } from '../../protocol/messages.ts'
import { chunksOf, goldenLog, Rig, seeded } from '../support/page-server-rig.ts'

t.test('forty timelines share a dozen arenas', async t => {
  const log = goldenLog('64k')
  const random = seeded(3)
  const rig = new Rig({ memoryBytes: 256 << 20 })
  t.teardown(() => rig.destroy())
  await rig.start()
  const ids = Array.from({ length: 40 }, (_, i) => (1000 + i).toString(16).padStart(32, '0') as TimelineId)
  t.ok(rig.server!.env.arenas.total < ids.length)
  for (const timeline of ids) {
    rig.wal.create(timeline, log.begin)
    const create: TimelineCreate = {
      type: MessageType.TimelineCreate,
      timeline,
      startLsn: log.begin as Lsn,
      innodbPageSize: log.pageSize,
      name: `t${timeline.slice(-4)}`,
      serverVersion: '',
    }
    await rig.connection.request(create)
    for (const chunk of chunksOf(log, () => 300_000 * random())) rig.wal.append(timeline, chunk)
  }
  for (const timeline of ids) {
    const wait: WaitLsn = { type: MessageType.WaitLsn, timeline, lsn: log.end as Lsn, timeoutMs: 60_000 }
    await rig.connection.request(wait, { deadlineMs: 70_000 })
  }
  t.equal(
    [...rig.server!.timelines.all].filter(timeline => timeline.ingestedLsn === log.end).length,
    ids.length,
  )
})
