import t from 'tap'
import type { Lsn } from '../../../protocol/ids.ts'
import { AttachMetrics, type SessionView } from '../../../server/attach/metrics.ts'
import { Metrics } from '../../../server/shared/metrics.ts'

t.test('counts go on over sessions, and the position is kept in between', async t => {
  const metrics = await Metrics.create()
  const agent = new AttachMetrics(metrics.part('attach'), 'prod')
  const value = async (name: string): Promise<string | undefined> =>
    new RegExp(`^palimpsest_attach_${name}\\{timeline="prod"\\} (.*)$`, 'm').exec(await metrics.text())?.[1]
  const session = (view: Partial<SessionView>) => (): SessionView => ({
    sentLsn: 5000 as Lsn,
    flushedLsn: 4000 as Lsn,
    redoBytes: 900,
    chunks: 3,
    endSeenAtMs: performance.now(),
    importing: false,
    following: false,
    files: 7,
    ...view,
  })
  t.equal(agent.state, 'connecting')
  t.match(agent.missing, 'no connection')
  t.equal(await value('read_lsn'), undefined, 'not known yet')
  agent.begin(session({ importing: true }))
  t.equal(agent.state, 'importing')
  agent.begin(session({ following: true }))
  t.equal(agent.missing, undefined)
  t.equal(await value('unacknowledged_bytes'), '1000')
  agent.end()
  agent.end()
  t.equal(agent.state, 'connecting')
  t.equal(await value('read_lsn'), '5000')
  t.equal(await value('captured_files'), undefined)
  agent.begin(session({ redoBytes: 100, chunks: 1 }))
  t.equal(agent.state, 'reading')
  t.equal(await value('sent_bytes_total'), '1000')
  t.equal(await value('sent_chunks_total'), '4')
  t.equal(await value('opened_sessions_total'), '3')
  t.match(await metrics.text(), 'palimpsest_attach_agent_info{timeline="prod",state="reading"} 1')
})
