/** An agent that is told to stop while it has nobody to talk to. */

import { setTimeout as sleep } from 'node:timers/promises'
import t from 'tap'
import { AttachAgent, Cluster } from '../support/cluster.ts'
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

t.test(
  'SIGTERM while the page server does not get on: the agent ends all the same',
  { skip: mariadbSkip() },
  async t => {
    const server = await MariadbServer.create(t)
    const safekeeper = await Cluster.safekeeper(t)
    const pageServer = await Cluster.pageserver(t, safekeeper)
    const attach = (to: Cluster): AttachAgent =>
      new AttachAgent(t, [
        'attach',
        '--json',
        ...['--datadir', server.datadir, '--timeline', 'prod'],
        ...['--connect', `${safekeeper.address},${to.address}`],
      ])
    const first = attach(pageServer)
    await first.saw('following')
    await first.stop()
    await pageServer.stop()

    // The same page server, but no redo comes to it.
    const deaf = await Cluster.pageserver(t, safekeeper, [
      ...['--data', pageServer.dataDir],
      ...['--safekeepers', '127.0.0.1:1'],
    ])
    await server.script(
      'CREATE DATABASE more; CREATE TABLE more.t (id INT) ENGINE=InnoDB; INSERT INTO more.t VALUES (1)',
    )
    const second = attach(deaf)
    await second.saw('following')
    // By then it waits for the page server, to compare undo tablespaces. Too early a signal would only make the test easier.
    await sleep(2000)
    const done = await second.stop()
    t.match(
      done,
      { event: 'done' },
      'within the time that this test may take; the page server is waited for ten minutes',
    )
  },
)
