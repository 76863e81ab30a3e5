/** An agent that is told to stop while it has nobody to talk to. */
import t from 'tap'
import { Cluster } from '../support/cluster.ts'
import { MariadbServer, mariadbSkip } from '../support/mariadb.ts'

t.test('SIGTERM while it tries again: what was complete is said to be', { skip: mariadbSkip() }, async t => {
  const server = await MariadbServer.create(t)
  const cluster = await Cluster.start(t)
  const agent = cluster.attach(t, server.datadir, 'prod')
  const { readableFromLsn } = await agent.saw('following')
  await cluster.kill9()
  await agent.saw(/trying again in/)
  t.match(await agent.stop(), { event: 'done', readableFromLsn })
  t.equal(await agent.exited, 0)
  t.equal(agent.stderr, '')
})
