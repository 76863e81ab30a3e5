// Exports at random moments of a server that changes its schema all the time, beside transactions: each starts, is sound,
// has a definition for every table that InnoDB has and the other way round, and holds exactly what was committed by then.
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import t from 'tap'
import { Cluster } from '../support/cluster.ts'
import { MariadbServer, mariadbSkip } from '../support/mariadb.ts'
import { BankWorkload } from '../support/workloads/bank.ts'
import { DdlMixer } from '../support/workloads/ddl.ts'
import { SeededRandom } from '../support/workloads/random.ts'
import { sysbenchPrepare, sysbenchRun, sysbenchSkip } from '../support/workloads/sysbench.ts'

const EXPORTS = Number(process.env['PALIMPSEST_TEST_EXPORTS'] ?? 5)
const MIXERS = 2

/** Tables that InnoDB has and the server does not, or the other way round; none in a sound datadir. */
async function orphans(server: MariadbServer): Promise<string[]> {
  const inInnodb = await server.sql<{ name: string }>(
    `SELECT NAME AS name FROM information_schema.INNODB_SYS_TABLES WHERE NAME LIKE '%/%' AND NAME NOT LIKE '%/FTS\\_%'`,
  )
  const defined = await server.sql<{ name: string }>(
    `SELECT CONCAT(TABLE_SCHEMA, '/', TABLE_NAME) AS name FROM information_schema.TABLES WHERE ENGINE = 'InnoDB'`,
  )
  const a = new Set(inInnodb.map(row => row.name.replace(/#P#.*$/i, '')))
  const b = new Set(defined.map(row => row.name))
  return [
    ...[...a].filter(name => !b.has(name)).map(name => `${name} has no definition`),
    ...[...b].filter(name => !a.has(name)).map(name => `${name} is not in InnoDB`),
  ]
}

t.test('random moments of heavy DDL', { skip: mariadbSkip(), timeout: 600_000 }, async t => {
  const server = await MariadbServer.create(t, { bufferPoolBytes: 32 << 20 })
  const cluster = await Cluster.start(t)
  const seed = Number(process.env['PALIMPSEST_TEST_SEED'] ?? Date.now() % 1_000_000)
  t.comment(`seed ${seed}`)
  const bank = new BankWorkload(server, { workers: 2, seed })
  await bank.setup()
  const mixers = Array.from(
    { length: MIXERS },
    (_, i) => new DdlMixer(server, { seed: seed + i, database: `ddl${i}` }),
  )
  for (const mixer of mixers) await mixer.setup()
  const agent = cluster.attach(t, server.datadir, 'ddl')
  const { readableFromLsn } = await agent.saw('following')
  const until = performance.now() + 4000 + EXPORTS * 400
  bank.start()
  const load = sysbenchSkip()
    ? Promise.resolve()
    : (async () => {
        const sysbench = { tables: 2, rowsPerTable: 2000, threads: 2 }
        await sysbenchPrepare(server, sysbench)
        await sysbenchRun(server, sysbench, { seconds: 4 })
      })()
  const changes = mixers.map(async mixer => {
    while (performance.now() < until) await mixer.step()
  })
  await Promise.all([...changes, load])
  await bank.stop()
  t.comment(`${mixers.map(mixer => mixer.statements.length).join(' + ')} statements`)
  const end = await server.currentLsn()
  await sleep(500)
  await agent.stop()

  const random = new SeededRandom(seed)
  const dir = t.testdir()
  for (let i = 0; i < EXPORTS; i++) {
    const from = Number(readableFromLsn)
    const lsn = from + random.below(end - from)
    const out = join(dir, String(i))
    const done = await cluster.cliJson('export', '--timeline', 'ddl', '--lsn', String(lsn), '--out', out)
    // A table that was just being made or dropped partition by partition may be left out, and the export says so.
    const warnings = (done['warnings'] as string[]).filter(text => !/amid a CREATE or DROP TABLE/.test(text))
    t.strictSame(warnings, [], `seed ${seed}: warnings at LSN ${lsn}`)
    const copy = await MariadbServer.open(t, out)
    // While purge works on what the copy inherits, CHECK TABLE may meet a delete-marked index entry whose row has just gone,
    // and warn; a server that was killed and started again does the same.
    await copy.sql('SET GLOBAL innodb_max_purge_lag_wait = 0')
    t.strictSame(await copy.checkAll(), [], `mariadb-check at LSN ${lsn}`)
    t.strictSame(await orphans(copy), [], `tables at LSN ${lsn}`)
    t.strictSame(await bank.verify(copy, lsn), [], `transactions at LSN ${lsn}`)
    if (!t.passing()) t.comment(copy.logTail(60))
    await copy.remove()
  }
})
