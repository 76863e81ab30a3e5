// The attach agent beside a real server that works, dies, restarts, resizes its log and races round it. What counts each
// time: after a clean shutdown no page of the timeline differs from the server's own files.
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import t, { type Test } from 'tap'
import { Cluster } from '../support/cluster.ts'
import { copyDatadir, MariadbServer, mariadbSkip } from '../support/mariadb.ts'
import { BankWorkload } from '../support/workloads/bank.ts'
import { DdlMixer } from '../support/workloads/ddl.ts'
import { sysbenchPrepare, sysbenchRun, sysbenchSkip } from '../support/workloads/sysbench.ts'
import { undoTruncationArgs, undoTruncationSql, zooSql } from '../support/workloads/zoo.ts'

const skip = mariadbSkip()

/** Stops the server and compares all its pages with the timeline. The agent has to be still attached. */
async function verifyClean(t: Test, cluster: Cluster, server: MariadbServer, timeline = 'db'): Promise<void> {
  await server.stop()
  // It waits until the page server has the end of the log.
  const { code, stdout, stderr } = await cluster.cli(
    'verify',
    '--timeline',
    timeline,
    '--datadir',
    server.datadir,
  )
  t.match(stdout.trim().split('\n').at(-1), /^compared [1-9]\d* pages, 0 differ$/, stderr.slice(0, 3000))
  t.equal(code, 0)
}

t.test(
  'sysbench: imported in the middle of it, followed, every page the same',
  {
    skip: skip || sysbenchSkip(),
  },
  async t => {
    const server = await MariadbServer.create(t, { bufferPoolBytes: 24 << 20 })
    const cluster = await Cluster.start(t)
    const sysbench = { tables: 2, rowsPerTable: 20_000, threads: 4 }
    await sysbenchPrepare(server, sysbench)
    const work = sysbenchRun(server, sysbench, { seconds: 8 })
    work.catch(() => {})
    const agent = cluster.attach(t, server.datadir, 'db')
    await agent.saw('following')
    await work
    await verifyClean(t, cluster, server)
    const done = await agent.stop()
    t.equal(done['overtaken'], 0)
  },
)

for (const pageSizeBytes of [4096, 16384, 65536] as const)
  t.test(`one of everything, page size ${pageSizeBytes}`, { skip }, async t => {
    const server = await MariadbServer.create(t, { pageSizeBytes, installArgs: undoTruncationArgs })
    const cluster = await Cluster.start(t)
    const agent = cluster.attach(t, server.datadir, 'db')
    await agent.saw('following')
    await server.script(zooSql({ pageSizeBytes }))
    await server.script(undoTruncationSql())
    await verifyClean(t, cluster, server)
    await agent.stop()
  })

t.test('schema changes while the import runs and after', { skip }, async t => {
  const server = await MariadbServer.create(t, { bufferPoolBytes: 16 << 20 })
  const cluster = await Cluster.start(t)
  const ddl = new DdlMixer(server, { seed: 7 })
  await ddl.setup()
  for (let i = 0; i < 30; i++) await ddl.step()
  const agent = cluster.attach(t, server.datadir, 'db')
  for (let i = 0; i < 150; i++) await ddl.step()
  await agent.saw('following')
  for (let i = 0; i < 50; i++) await ddl.step()
  await verifyClean(t, cluster, server)
  await agent.stop()
})

t.test('the server is killed, restarted, and its log resized while attached', { skip }, async t => {
  const server = await MariadbServer.create(t, { logFileSizeBytes: 16 << 20 })
  const cluster = await Cluster.start(t)
  const bank = new BankWorkload(server)
  await bank.setup()
  const agent = cluster.attach(t, server.datadir, 'db')
  await agent.saw('following')
  await bank.run(200)
  await server.sql(`SET GLOBAL innodb_log_file_size = ${32 << 20}`)
  await bank.run(500)
  bank.start()
  await sleep(300)
  await server.kill9()
  await bank.stop()
  await server.start()
  await bank.run(200)
  await server.restart([`--innodb-log-file-size=${24 << 20}`])
  await bank.run(300)
  await verifyClean(t, cluster, server)
  t.equal((await agent.stop())['overtaken'], 0)
})

t.test('the agent is killed and started again, and the cluster too', { skip }, async t => {
  const server = await MariadbServer.create(t)
  const cluster = await Cluster.start(t)
  const bank = new BankWorkload(server)
  await bank.setup()
  bank.start()
  const first = cluster.attach(t, server.datadir, 'db')
  // In the middle of its import, or soon after.
  await first.saw(/importing/)
  await first.kill9()
  const second = cluster.attach(t, server.datadir, 'db')
  await second.saw('following')
  await sleep(300)
  await second.kill9()
  await server.sql("CREATE TABLE bank.while_away (id INT PRIMARY KEY) COMMENT 'made while nobody looked'")
  const third = cluster.attach(t, server.datadir, 'db')
  await third.saw('following')
  await sleep(200)
  await cluster.kill9()
  await sleep(500)
  await cluster.restart()
  await third.saw(/trying again/)
  await sleep(1000)
  await bank.stop()
  await verifyClean(t, cluster, server)
  await third.stop()
  const { stdout } = await cluster.cli('attach', '--datadir', server.datadir, '--timeline', 'db', '--once')
  t.match(stdout, /holds everything up to LSN/)
})

t.test('a ring that overtakes the reader: what changed is imported again', { skip }, async t => {
  const server = await MariadbServer.create(t, { logFileSizeBytes: 4 << 20, bufferPoolBytes: 16 << 20 })
  const cluster = await Cluster.start(t)
  await server.sql('CREATE DATABASE ring')
  await server.sql('CREATE TABLE ring.t (id INT AUTO_INCREMENT PRIMARY KEY, v VARCHAR(300), KEY (v))')
  await server.sql('CREATE TABLE ring.dropped (id INT PRIMARY KEY)')
  await server.sql('CREATE TABLE ring.untouched SELECT seq AS id FROM ring.seq_1_to_5000')
  const agent = cluster.attach(t, server.datadir, 'db')
  await agent.saw('following')
  const insert = (): Promise<unknown> =>
    server.sql('INSERT INTO ring.t (v) SELECT REPEAT(MD5(RAND(seq)), 8) FROM ring.seq_1_to_2000')
  await insert()
  const before = await server.currentLsn()
  await cluster.cliJson('timeline', 'show', 'db')
  agent.signal('SIGSTOP')
  while ((await server.currentLsn()) < before + (12 << 20)) await insert()
  await server.sql('DROP TABLE ring.dropped')
  await server.sql('CREATE TABLE ring.made SELECT seq AS id FROM ring.seq_1_to_500')
  await server.sql('RENAME TABLE ring.made TO ring.renamed')
  agent.signal('SIGCONT')
  const overtaken = await agent.saw(/has overtaken the reader/)
  await agent.saw(/importing the pages that changed/)
  await agent.saw(/^imported /, { after: overtaken })
  await insert()
  await verifyClean(t, cluster, server)
  t.equal((await agent.stop())['overtaken'], 1)
  const inGap = Number(overtaken['fromLsn']) + 1
  const out = `${t.testdir()}/out`
  const refused = await cluster.cli('export', '--timeline', 'db', '--lsn', String(inGap), '--out', out)
  t.equal(refused.code, 1)
  t.match(refused.stderr, /lies in a gap .* choose one of these/)
})

t.test('killed while it repairs: the next agent does it over', { skip }, async t => {
  const server = await MariadbServer.create(t, { logFileSizeBytes: 4 << 20, bufferPoolBytes: 16 << 20 })
  const cluster = await Cluster.start(t)
  await server.sql('CREATE DATABASE ring')
  await server.sql('CREATE TABLE ring.t (id INT AUTO_INCREMENT PRIMARY KEY, v VARCHAR(300), KEY (v))')
  const insert = (): Promise<unknown> =>
    server.sql('INSERT INTO ring.t (v) SELECT REPEAT(MD5(RAND(seq)), 8) FROM ring.seq_1_to_2000')
  const first = cluster.attach(t, server.datadir, 'db')
  await first.saw('following')
  const before = await server.currentLsn()
  first.signal('SIGSTOP')
  while ((await server.currentLsn()) < before + (12 << 20)) await insert()
  first.signal('SIGCONT')
  await first.saw(/has overtaken the reader/)
  await first.kill9()
  await insert()
  const second = cluster.attach(t, server.datadir, 'db')
  await second.saw('following')
  await insert()
  await verifyClean(t, cluster, server)
  await second.stop()
})

t.test(
  'another server, or an older state of it, is refused, and the agent at work goes on',
  { skip },
  async t => {
    const small = { logFileSizeBytes: 4 << 20, bufferPoolBytes: 16 << 20 }
    const server = await MariadbServer.create(t, small)
    await server.sql('CREATE DATABASE ring')
    await server.sql('CREATE TABLE ring.t (id INT AUTO_INCREMENT PRIMARY KEY, v VARCHAR(300), KEY (v))')
    const insert = (into: MariadbServer): Promise<unknown> =>
      into.sql('INSERT INTO ring.t (v) SELECT REPEAT(MD5(RAND(seq)), 8) FROM ring.seq_1_to_2000')
    await insert(server)
    await server.stop()
    const old = join(t.testdir(), 'old')
    await copyDatadir(server.datadir, old)
    await server.start()
    const cluster = await Cluster.start(t)
    const agent = cluster.attach(t, server.datadir, 'db')
    await agent.saw('following')

    const other = await MariadbServer.create(t, { installArgs: ['--innodb-undo-tablespaces=1'] })
    const foreign = await cluster.cli('attach', '--datadir', other.datadir, '--timeline', 'db', '--once')
    t.equal(foreign.code, 1)
    t.match(foreign.stderr, /aria_log_control: this is not the server that timeline db follows/)
    await other.remove()
    await insert(server)

    const restored = await MariadbServer.open(t, old, small)
    const ahead = (await server.currentLsn()) + (6 << 20)
    while ((await restored.currentLsn()) < ahead) await insert(restored)
    const parted = await cluster.cli('attach', '--datadir', old, '--timeline', 'db', '--once')
    t.equal(parted.code, 1)
    t.match(parted.stderr, /does not continue (timeline db|the one that was followed)/)
    await restored.remove()

    t.equal((await agent.stop())['overtaken'], 0)
    const again = cluster.attach(t, server.datadir, 'db')
    await again.saw('following')
    await verifyClean(t, cluster, server)
    await again.stop()
  },
)

t.test('a second agent takes over, and the first one stops', { skip }, async t => {
  const server = await MariadbServer.create(t)
  const cluster = await Cluster.start(t)
  const first = cluster.attach(t, server.datadir, 'db')
  await first.saw('following')
  const second = cluster.attach(t, server.datadir, 'db')
  await second.saw('following')
  await server.sql('CREATE DATABASE more')
  await server.sql('CREATE TABLE more.t SELECT seq AS id FROM more.seq_1_to_1000')
  t.equal(await first.exited, 1)
  t.match(first.stderr, /epoch|writer/)
  await verifyClean(t, cluster, server)
  await second.stop()
})

t.test(
  'an agent that was cut off meanwhile does not take back what a second one follows',
  { skip },
  async t => {
    const server = await MariadbServer.create(t)
    const cluster = await Cluster.start(t)
    const first = cluster.attach(t, server.datadir, 'db')
    await first.saw('following')
    first.signal('SIGSTOP')
    await cluster.kill9()
    await cluster.restart()
    const second = cluster.attach(t, server.datadir, 'db')
    await second.saw('following')
    first.signal('SIGCONT')
    t.equal(await first.exited, 1)
    t.match(first.stderr, /has a newer writer, attach@/)
    await server.sql('CREATE DATABASE more')
    await verifyClean(t, cluster, server)
    await second.stop()
  },
)

t.test('a ring that overtakes the reader again before it has repaired', { skip }, async t => {
  const server = await MariadbServer.create(t, { logFileSizeBytes: 4 << 20, bufferPoolBytes: 16 << 20 })
  const cluster = await Cluster.start(t)
  await server.sql('CREATE DATABASE ring')
  await server.sql('CREATE TABLE ring.t (id INT AUTO_INCREMENT PRIMARY KEY, v VARCHAR(300), KEY (v))')
  const race = async (): Promise<void> => {
    const end = (await server.currentLsn()) + (12 << 20)
    while ((await server.currentLsn()) < end)
      await server.sql('INSERT INTO ring.t (v) SELECT REPEAT(MD5(RAND(seq)), 8) FROM ring.seq_1_to_2000')
  }
  const first = cluster.attach(t, server.datadir, 'db')
  await first.saw('following')
  first.signal('SIGSTOP')
  await race()
  first.signal('SIGCONT')
  // The gap is open from here on, until the repair has ended.
  await first.saw(/importing the pages that changed/)
  await first.kill9()
  await race()
  const second = cluster.attach(t, server.datadir, 'db')
  await second.saw('following')
  await verifyClean(t, cluster, server)
  t.ok(Number((await second.stop())['overtaken']) >= 1)
})

t.test('other undo tablespaces after a restart, which no record of the log names', { skip }, async t => {
  const server = await MariadbServer.create(t, { installArgs: undoTruncationArgs })
  const cluster = await Cluster.start(t)
  const bank = new BankWorkload(server)
  await bank.setup()
  const agent = cluster.attach(t, server.datadir, 'db')
  await agent.saw('following')
  await server.restart(['--innodb-undo-tablespaces=5'])
  await bank.run(50)
  await agent.saw(/other undo tablespaces than before: undo001 \(id \d+\), .* undo005/)
  await server.restart(['--innodb-undo-tablespaces=2'])
  await bank.run(50)
  await verifyClean(t, cluster, server)
  await agent.stop()
})

t.test('IMPORT TABLESPACE: content that is in no log', { skip }, async t => {
  const server = await MariadbServer.create(t)
  const cluster = await Cluster.start(t)
  await server.script(`
    CREATE DATABASE moved; USE moved;
    CREATE TABLE source (id INT PRIMARY KEY, v VARCHAR(200)) ENGINE=InnoDB;
    INSERT INTO source SELECT seq, REPEAT(MD5(seq), 5) FROM seq_1_to_5000;
    CREATE TABLE target LIKE source;
    INSERT INTO target VALUES (1, 'before');`)
  const agent = cluster.attach(t, server.datadir, 'db')
  await agent.saw('following')
  await server.script('ALTER TABLE target DISCARD TABLESPACE', 'moved')
  await server.script(
    `FLUSH TABLES source FOR EXPORT; system cp ${server.datadir}/moved/source.ibd ${server.datadir}/moved/target.ibd; system cp ${server.datadir}/moved/source.cfg ${server.datadir}/moved/target.cfg; UNLOCK TABLES;
     ALTER TABLE target IMPORT TABLESPACE; UPDATE target SET v = 'after' WHERE id % 10 = 0;`
      .split('; ')
      .join(';\n'),
    'moved',
  )
  await agent.saw(/is not in the redo log \(IMPORT TABLESPACE\)/)
  await agent.saw(/^copied [1-9]\d* pages of .*target/)
  await server.script('INSERT INTO target SELECT id + 100000, v FROM source LIMIT 500', 'moved')
  await verifyClean(t, cluster, server)
  await agent.stop()
})

t.test('IMPORT TABLESPACE of two more, one right after the other', { skip }, async t => {
  const server = await MariadbServer.create(t)
  const cluster = await Cluster.start(t)
  await server.script(`
    CREATE DATABASE moved; USE moved;
    CREATE TABLE source (id INT PRIMARY KEY, v VARCHAR(200)) ENGINE=InnoDB;
    INSERT INTO source SELECT seq, REPEAT(MD5(seq), 5) FROM seq_1_to_5000;
    CREATE TABLE target LIKE source;
    INSERT INTO target VALUES (1, 'before');`)
  const agent = cluster.attach(t, server.datadir, 'db')
  await agent.saw('following')
  await server.script('ALTER TABLE target DISCARD TABLESPACE', 'moved')
  await server.script(
    `FLUSH TABLES source FOR EXPORT; system cp ${server.datadir}/moved/source.ibd ${server.datadir}/moved/target.ibd; system cp ${server.datadir}/moved/source.cfg ${server.datadir}/moved/target.cfg; UNLOCK TABLES;
     ALTER TABLE target IMPORT TABLESPACE; UPDATE target SET v = 'after' WHERE id % 10 = 0;`
      .split('; ')
      .join(';\n'),
    'moved',
  )
  await agent.saw(/is not in the redo log \(IMPORT TABLESPACE\)/)
  await agent.saw(/^copied [1-9]\d* pages of .*target/)
  await server.script(
    'CREATE TABLE second LIKE source; ALTER TABLE second DISCARD TABLESPACE; CREATE TABLE third LIKE source; ALTER TABLE third DISCARD TABLESPACE;',
    'moved',
  )
  await server.script(
    `FLUSH TABLES source FOR EXPORT;
system cp ${server.datadir}/moved/source.ibd ${server.datadir}/moved/second.ibd;
system cp ${server.datadir}/moved/source.cfg ${server.datadir}/moved/second.cfg;
system cp ${server.datadir}/moved/source.ibd ${server.datadir}/moved/third.ibd;
system cp ${server.datadir}/moved/source.cfg ${server.datadir}/moved/third.cfg;
UNLOCK TABLES;
ALTER TABLE second IMPORT TABLESPACE;
ALTER TABLE third IMPORT TABLESPACE;
INSERT INTO second SELECT id + 100000, v FROM source LIMIT 500;
INSERT INTO third SELECT id + 100000, v FROM source LIMIT 500;
`,
    'moved',
  )
  for (const name of ['second', 'third']) await agent.saw(new RegExp(`^copied [1-9]\\d* pages of .*${name}`))
  await server.script('INSERT INTO target SELECT id + 100000, v FROM source LIMIT 500', 'moved')
  await verifyClean(t, cluster, server)
  await agent.stop()
})
