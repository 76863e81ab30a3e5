// The attach agent alone, in this process, against servers that keep what they are sent and replay it the dumb way.
import { setTimeout as sleep } from 'node:timers/promises'
import t from 'tap'
import { dial } from '../../protocol/dial.ts'
import { Role } from '../../protocol/messages.ts'
import { type AttachOptions, attach } from '../../server/attach/attach.ts'
import { findTimeline } from '../../server/attach/timeline-link.ts'
import { verifyDatadir } from '../../server/attach/verify.ts'
import { Progress } from '../../server/shared/progress.ts'
import { compareWithDatadir } from '../support/compare-datadir.ts'
import { MariadbServer, mariadbSkip } from '../support/mariadb.ts'
import { NaiveServer } from '../support/naive-server.ts'

const skip = mariadbSkip()
const progress = new Progress({ mode: 'silent' })

function options(server: MariadbServer, naive: NaiveServer): Omit<AttachOptions, 'once'> {
  return { datadir: server.datadir, timeline: 'db', live: true, connect: naive.addresses, progress }
}

t.test('what it sends makes every page, with a slow safekeeper too', { skip }, async t => {
  const server = await MariadbServer.create(t, { bufferPoolBytes: 16 << 20 })
  const naive = await NaiveServer.start()
  t.teardown(() => naive.stop())
  naive.appendDelayMs = 20
  await server.sql('CREATE DATABASE d')
  await server.sql('CREATE TABLE d.t (id INT AUTO_INCREMENT PRIMARY KEY, v VARCHAR(300), KEY (v))')
  const stop = new AbortController()
  const following = Promise.withResolvers<void>()
  const attached = attach({
    ...options(server, naive),
    once: false,
    signal: stop.signal,
    onState: state => state.kind === 'following' && following.resolve(),
  })
  for (let i = 0; i < 20; i++)
    await server.sql('INSERT INTO d.t (v) SELECT REPEAT(MD5(RAND(seq)), 8) FROM d.seq_1_to_500')
  await Promise.race([following.promise, attached])
  await server.sql('CREATE TABLE d.late SELECT * FROM d.t LIMIT 1000')
  await server.stop()
  await sleep(300)
  stop.abort()
  const { endLsn, overtaken } = await attached
  t.equal(overtaken, 0)

  const replay = naive.only.replayTo(endLsn)
  t.equal(replay.lsn, endLsn)
  const compared = compareWithDatadir(server.datadir, (space, page) =>
    replay.spaces.get(space)?.format ? replay.writtenPage(space, page) : undefined,
  )
  t.match(compared, { differing: 0, differences: [] })

  const pageServer = await dial(naive.addresses, Role.PAGESERVER)
  t.teardown(() => pageServer.close())
  const differences: string[] = []
  const verified = await verifyDatadir({
    pageServer,
    status: (await findTimeline(pageServer, 'db'))!,
    datadir: server.datadir,
    progress,
    onDifference: difference => differences.push(JSON.stringify(difference)),
  })
  t.strictSame(differences, [])
  t.equal(verified.compared, compared.compared, 'verify compares what the plain comparison does')
})

t.test(
  'told to stop in the middle of its import, it says so, and the next one completes it',
  { skip },
  async t => {
    const server = await MariadbServer.create(t)
    const naive = await NaiveServer.start()
    t.teardown(() => naive.stop())
    const stop = new AbortController()
    await t.rejects(
      attach({
        ...options(server, naive),
        once: false,
        signal: stop.signal,
        onState: state => state.kind === 'importing' && stop.abort(new Error('told to stop')),
      }),
    )
    t.equal(naive.only.imports.length, 0)
    const { readableFromLsn } = await attach({ ...options(server, naive), once: true })
    t.equal(naive.only.imports.length, 1)
    t.equal(naive.only.imports[0]!.readableFromLsn, readableFromLsn)
    // And once more with nothing to do.
    t.equal((await attach({ ...options(server, naive), once: true })).importedPages, 0)
  },
)
