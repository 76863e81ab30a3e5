// Encryption that is switched on while the agent follows: it stops there and says so; what was read stays readable.
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { Cluster } from '../support/cluster.ts'
import { MariadbServer, mariadbSkip } from '../support/mariadb.ts'

const skip = mariadbSkip()

async function withKeys(t: Test): Promise<MariadbServer> {
  const keys = join(t.testdir(), 'keys')
  writeFileSync(keys, `1;${'0123456789abcdef'.repeat(2)}\n`)
  return await MariadbServer.create(t, {
    args: [
      '--plugin-load-add=file_key_management',
      `--loose-file-key-management-filename=${keys}`,
      '--innodb-encryption-threads=2',
      '--innodb-encryption-rotate-key-age=1',
    ],
  })
}

t.test('a table with ENCRYPTED=YES', { skip }, async t => {
  const server = await withKeys(t)
  const cluster = await Cluster.start(t)
  const agent = cluster.attach(t, server.datadir, 'db')
  await agent.saw('following')
  await server.sql('CREATE DATABASE e')
  // This one has encryption information, which says that it is not encrypted.
  await server.sql('CREATE TABLE e.plain (id INT PRIMARY KEY) ENCRYPTED=NO')
  await server.sql('INSERT INTO e.plain VALUES (1)')
  await server.sql('CREATE TABLE e.secret (id INT PRIMARY KEY) ENCRYPTED=YES')
  await server.sql('INSERT INTO e.secret VALUES (1)')
  t.equal(await agent.exited, 1)
  t.match(agent.stderr, /tablespace \d+ \(e\/secret\.ibd\) is encrypted from LSN \d+ on/)
  const lsn = /from LSN (\d+) on/.exec(agent.stderr)![1]!
  const out = join(t.testdir(), 'out')
  const done = await cluster.cliJson('export', '--timeline', 'db', '--lsn', lsn, '--out', out)
  t.strictSame(done['warnings'], [])
  const copy = await MariadbServer.open(t, out)
  t.strictSame(await copy.sql('SHOW TABLES IN e'), [{ Tables_in_e: 'plain' }])
  await copy.remove()
  const again = await cluster.cli('attach', '--datadir', server.datadir, '--timeline', 'db')
  t.equal(again.code, 1)
  t.match(again.stderr, /encrypted/)
})

t.test('innodb_encrypt_tables is switched on', { skip }, async t => {
  const server = await withKeys(t)
  const cluster = await Cluster.start(t)
  await server.sql('CREATE DATABASE e')
  await server.sql('CREATE TABLE e.t SELECT seq AS id FROM e.seq_1_to_1000')
  const agent = cluster.attach(t, server.datadir, 'db')
  await agent.saw('following')
  await server.sql('SET GLOBAL innodb_encrypt_tables = ON')
  t.equal(await agent.exited, 1)
  t.match(agent.stderr, /tablespace \d+ \((e\/t\.ibd|mysql\/.*|ibdata1)\) is encrypted from LSN \d+ on/)
})

t.test('a table that was ENCRYPTED=NO is altered', { skip }, async t => {
  const server = await withKeys(t)
  const cluster = await Cluster.start(t)
  await server.sql('CREATE DATABASE e')
  await server.sql('CREATE TABLE e.t (id INT PRIMARY KEY) ENCRYPTED=NO')
  const agent = cluster.attach(t, server.datadir, 'db')
  await agent.saw('following')
  await server.sql('ALTER TABLE e.t ENCRYPTED=YES')
  t.equal(await agent.exited, 1)
  t.match(agent.stderr, /encrypted/)
})
