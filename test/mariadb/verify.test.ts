// verify must find what is wrong, and say what cannot be compared.
import { copyFileSync, openSync, readSync, writeSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { stampChecksum } from '../../parser/page-format.ts'
import { readSpaceFormat } from '../../parser/space-flags.ts'
import { Cluster } from '../support/cluster.ts'
import { MariadbServer, mariadbSkip } from '../support/mariadb.ts'

const PAGE = 16384

t.test(
  'finds a changed byte, a missing tablespace and an unclean datadir',
  { skip: mariadbSkip() },
  async t => {
    const server = await MariadbServer.create(t)
    const cluster = await Cluster.start(t)
    await server.sql('CREATE DATABASE d')
    await server.sql("CREATE TABLE d.t SELECT seq AS id, REPEAT('x', 100) AS v FROM d.seq_1_to_2000")
    const verify = () => cluster.cli('verify', '--timeline', 'd', '--datadir', server.datadir)
    const attach = () => cluster.cli('attach', '--timeline', 'd', '--datadir', server.datadir, '--once')
    t.equal((await attach()).code, 0)
    const running = await verify()
    t.equal(running.code, 1)
    t.match(
      running.stderr,
      /a server \(process \d+\) runs on this datadir; shut it down|was not shut down cleanly.*if a server runs on it, stop it/,
    )
    await server.stop()
    t.equal((await attach()).code, 0, 'a stopped server can be attached to as well')
    t.match((await verify()).stdout, /compared \d+ pages, 0 differ\n$/)

    const path = join(server.datadir, 'd/t.ibd')
    const file = openSync(path, 'r+')
    const page = Buffer.alloc(PAGE)
    readSync(file, page, 0, PAGE, 0)
    const format = readSpaceFormat(page)
    readSync(file, page, 0, PAGE, 3 * PAGE)
    page[5000]! ^= 1
    stampChecksum(page, format)
    writeSync(file, page, 0, PAGE, 3 * PAGE)
    const changed = await verify()
    t.equal(changed.code, 1)
    t.match(changed.stdout, /compared \d+ pages, 1 differ\n$/)
    t.match(changed.stderr, /\(d\/t\.ibd\) page 3: different bytes at offsets 5000, 16380/)
    const json = await cluster.cli('verify', '--timeline', 'd', '--datadir', server.datadir, '--json')
    const difference = json.stdout
      .split('\n')
      .filter(Boolean)
      .map(line => JSON.parse(line) as Record<string, unknown>)
      .find(event => event['event'] === 'difference')
    t.match(difference, { name: 'd/t.ibd', page: 3, fileType: 'INDEX', timelineType: 'INDEX' })

    // A page whose checksum is wrong, too.
    writeSync(file, Buffer.from([255]), 0, 1, 3 * PAGE + 6000)
    t.match((await verify()).stderr, /page 3: damaged in the file: full_crc32 checksum/)

    copyFileSync(join(server.datadir, 'mysql/innodb_table_stats.ibd'), join(server.datadir, 'd/extra.ibd'))
    const twice = await verify()
    t.match(twice.stderr, /has the same tablespace id/)
  },
)

t.test('pages: get, history, inspect', { skip: mariadbSkip() }, async t => {
  const server = await MariadbServer.create(t)
  const cluster = await Cluster.start(t)
  const agent = cluster.attach(t, server.datadir, 'p')
  await agent.saw('following')
  await server.sql('CREATE DATABASE p')
  await server.sql('CREATE TABLE p.t (id INT PRIMARY KEY, v VARCHAR(100))')
  await server.sql("INSERT INTO p.t VALUES (1, 'the first text')")
  await server.sql("UPDATE p.t SET v = 'the second text'")
  await server.stop()
  t.equal((await cluster.cli('verify', '--timeline', 'p', '--datadir', server.datadir)).code, 0)
  await agent.stop()
  const where = ['--timeline', 'p', '--space', 'p/t', '--page', '3']
  const history = (await cluster.cliJson('page', 'history', ...where)) as {
    changes: { lsn: number; records: { type: string }[] }[]
  }
  t.ok(history.changes.length >= 3)
  const lsns = history.changes.map(change => change.lsn)
  t.strictSame(
    lsns,
    [...lsns].sort((a, b) => b - a),
    'newest first',
  )
  const texts = new Set<string>()
  for (const lsn of lsns) {
    const { base64, pageLsn } = await cluster.cliJson('page', 'get', ...where, '--lsn', String(lsn))
    t.equal(pageLsn, lsn, 'each is the LSN of the page right after it')
    const text = Buffer.from(String(base64), 'base64').toString('latin1')
    if (text.includes('the first text')) texts.add('first')
    if (text.includes('the second text')) texts.add('second')
  }
  t.strictSame(texts, new Set(['first', 'second']))
  const inspected = await cluster.cli('page', 'inspect', ...where)
  t.equal(inspected.code, 0)
  t.match(inspected.stdout, /INDEX/)
  const missing = await cluster.cli('page', 'get', '--timeline', 'p', '--space', 'p/t', '--page', '99999')
  t.match(missing.stderr, /there was no page 99999/)
  const nobody = await cluster.cli('page', 'get', '--timeline', 'p', '--space', 'p/nobody', '--page', '0')
  t.match(nobody.stderr, /had no tablespace "p\/nobody"/)
})
