// A stock mariadbd started on an export: at random moments of a running workload, and by wall clock.
import { existsSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import t from 'tap'
import { Cluster } from '../support/cluster.ts'
import { MariadbServer, mariadbSkip } from '../support/mariadb.ts'
import { BankWorkload } from '../support/workloads/bank.ts'
import { SeededRandom } from '../support/workloads/random.ts'
import { zooSql } from '../support/workloads/zoo.ts'

const skip = mariadbSkip()
const EXPORTS = Number(process.env['PALIMPSEST_TEST_EXPORTS'] ?? 6)

t.test('random moments of a bank at work hold exactly what was committed by then', { skip }, async t => {
  // With a binary log there are always transactions that are prepared and not committed yet.
  const server = await MariadbServer.create(t, { bufferPoolBytes: 24 << 20, args: ['--log-bin=binlog'] })
  const cluster = await Cluster.start(t)
  const bank = new BankWorkload(server)
  await bank.setup()
  await bank.run(50)
  const agent = cluster.attach(t, server.datadir, 'bank')
  const { readableFromLsn } = await agent.saw('following')
  bank.start()
  const seed = Number(process.env['PALIMPSEST_TEST_SEED'] ?? Date.now() % 1_000_000)
  t.comment(`seed ${seed}`)
  const random = new SeededRandom(seed)
  const dir = t.testdir()
  for (let i = 0; i < EXPORTS; i++) {
    await sleep(400)
    const from = Number(readableFromLsn)
    const lsn = from + random.below((await server.currentLsn()) - from)
    const out = join(dir, String(i))
    const done = await cluster.cliJson('export', '--timeline', 'bank', '--lsn', String(lsn), '--out', out)
    t.equal(done['lsn'], lsn)
    const copy = await MariadbServer.open(t, out)
    // Checked when the journal is complete up to there.
    const complaints = await copy.checkAll()
    t.strictSame(complaints, [], `mariadb-check at LSN ${lsn}`)
    t.strictSame(await bank.verify(copy, lsn), [], `transactions at LSN ${lsn}`)
    await copy.remove()
  }
  await bank.stop()
  await agent.stop()
})

t.test('by wall clock, and the newest', { skip }, async t => {
  const server = await MariadbServer.create(t)
  const cluster = await Cluster.start(t)
  await server.sql('CREATE DATABASE clock')
  await server.sql('CREATE TABLE clock.t (id INT PRIMARY KEY, v VARCHAR(20))')
  const agent = cluster.attach(t, server.datadir, 'clock')
  await agent.saw('following')
  await server.sql("INSERT INTO clock.t VALUES (1, 'before')")
  await sleep(1200)
  const between = new Date()
  await sleep(1200)
  await server.sql("UPDATE clock.t SET v = 'after'")
  await server.sql('CREATE VIEW clock.seen AS SELECT v FROM clock.t')
  const lsn = await server.currentLsn()
  await agent.stop()
  const dir = t.testdir()

  const past = await cluster.cli(
    'export',
    '--timeline',
    'clock',
    '--time',
    between.toISOString(),
    '--out',
    join(dir, 'past'),
  )
  t.match(past.stdout, /^exported LSN \d+, written by \d{4}-/)
  const before = await MariadbServer.open(t, join(dir, 'past'))
  t.strictSame(await before.sql('SELECT * FROM clock.t'), [{ id: 1, v: 'before' }])
  await before.remove()

  const newest = await cluster.cliJson('export', '--timeline', 'clock', '--out', join(dir, 'newest'))
  t.ok((newest['lsn'] as number) >= lsn, 'what was committed before the agent stopped is there')
  const after = await MariadbServer.open(t, join(dir, 'newest'))
  t.strictSame(
    await after.sql('SELECT * FROM clock.seen'),
    [{ v: 'after' }],
    'with the view that was made meanwhile',
  )
  await after.remove()

  // What the server did since the agent stopped is not known, so nothing can be said of this moment.
  await sleep(100)
  await server.sql("UPDATE clock.t SET v = 'unseen'")
  const now = new Date().toISOString()
  const unseen = await cluster.cli(
    'export',
    '--timeline',
    'clock',
    '--time',
    now,
    '--out',
    join(dir, 'unseen'),
  )
  t.equal(unseen.code, 1)
  t.match(unseen.stderr, /is later than the newest change that timeline clock knows: .* \(LSN \d+\)/)
  t.notOk(existsSync(join(dir, 'unseen')))

  const full = await cluster.cli('export', '--timeline', 'clock', '--out', join(dir, 'newest'))
  t.equal(full.code, 1)
  t.match(full.stderr, /is not empty/)
  const both = await cluster.cli(
    'export',
    '--timeline',
    'clock',
    '--lsn',
    '1',
    '--time',
    '2026-01-01',
    '--out',
    join(dir, 'x'),
  )
  t.equal(both.code, 2, 'wrong usage')
  const early = await cluster.cli(
    'export',
    '--timeline',
    'clock',
    '--time',
    '2001-01-01T00:00:00Z',
    '--out',
    join(dir, 'x'),
  )
  t.equal(early.code, 1)
  t.match(early.stderr, /begins later: its first redo was seen at/)
  const late = await cluster.cli(
    'export',
    '--timeline',
    'clock',
    '--time',
    '2226-01-01T00:00:00Z',
    '--out',
    join(dir, 'x'),
  )
  t.equal(late.code, 1)
  t.match(late.stderr, /^palimpsest: 2226-01-01T00:00:00.000Z is still to come: it is /)
})

t.test('one of everything comes back as it was', { skip }, async t => {
  const server = await MariadbServer.create(t)
  const cluster = await Cluster.start(t)
  const agent = cluster.attach(t, server.datadir, 'zoo')
  await agent.saw('following')
  await server.script(zooSql({ pageSizeBytes: 16384, database: 'zoo' }))
  // Counters that are only reserved live in the server's memory, and no restart brings them back.
  const dump = async (of: MariadbServer): Promise<string[]> =>
    (await of.dump('zoo')).replace(/ AUTO_INCREMENT=\d+/g, '').split('\n')
  const lines = await dump(server)
  await server.stop()
  await sleep(500)
  await agent.stop()
  const out = join(t.testdir(), 'out')
  await cluster.cliJson('export', '--timeline', 'zoo', '--out', out)
  const copy = await MariadbServer.open(t, out)
  t.strictSame(await copy.checkAll(), [])
  const got = await dump(copy)
  const at = lines.findIndex((line, i) => line !== got[i])
  t.strictSame(
    [got.length, got[at]?.slice(0, 300)],
    [lines.length, lines[at]?.slice(0, 300)],
    'a dump of the copy is the same text',
  )
  await copy.remove()
})
