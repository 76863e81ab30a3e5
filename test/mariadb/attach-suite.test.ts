// MariaDB's own InnoDB tests, on a server that is followed meanwhile: in the end no page differs, and an export is sound.
// PALIMPSEST_TEST_MTR chooses them: `innodb` or another suite's name for all that fit, or names of tests; several with spaces.
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { Cluster } from '../support/cluster.ts'
import { MariadbServer, mariadbSkip } from '../support/mariadb.ts'
import { mtrServerArgs, mtrSkip, runMtr, suiteTests } from '../support/mtr.ts'

const FEW = [
  'innodb.alter_table',
  'innodb.alter_varchar_change',
  'innodb.create-index',
  'innodb.import_hidden_fts',
  'innodb.import_bugs',
  'innodb.innodb-truncate',
  'innodb.instant_alter_charset',
  'innodb.innodb-alter-nullable',
  'innodb.innodb-virtual-columns',
  'innodb.innodb-wl5522-1',
  'innodb.innodb_bug53592',
  'innodb.innodb_bulk_create_index_small',
  'innodb.instant_alter_bugs',
  'innodb.instant_auto_inc',
  'innodb_gis.create_spatial_index',
  'innodb_zip.index_large_prefix',
]

t.test("MariaDB's own tests", { skip: mariadbSkip() || mtrSkip() }, async t => {
  const chosen = process.env['PALIMPSEST_TEST_MTR']?.split(/[\s,]+/)
  const tests = chosen?.flatMap(name => (name.includes('.') ? [name] : suiteTests(name))) ?? FEW
  const server = await MariadbServer.create(t, {
    installArgs: ['--innodb-undo-tablespaces=3'],
    args: mtrServerArgs,
  })
  const cluster = await Cluster.start(t)
  const agent = cluster.attach(t, server.datadir, 'mtr')
  await agent.saw('following')
  const { passed, failed, skipped, output } = await runMtr(server, tests)
  t.comment(`${tests.length} tests: ${passed} passed, ${failed} failed, ${skipped} skipped`)
  if (process.env['PALIMPSEST_TEST_MTR_LOG']) writeFileSync(process.env['PALIMPSEST_TEST_MTR_LOG'], output)
  if (!t.ok(passed + failed > tests.length / 2, 'most of them ran')) t.comment(output.slice(-3000))
  t.ok(server.isRunning, 'they left the server alive')
  // What they left broken on purpose is so in the copy as well.
  const complaints = await server.checkAll()
  await server.stop()
  const { stdout, stderr } = await cluster.cli('verify', '--timeline', 'mtr', '--datadir', server.datadir)
  t.match(stdout.trim().split('\n').at(-1), /^compared [1-9]\d* pages, 0 differ$/, stderr.slice(0, 3000))
  await agent.stop()
  const out = join(t.testdir(), 'out')
  const done = await cluster.cliJson('export', '--timeline', 'mtr', '--out', out)
  t.strictSame(done['warnings'], [])
  const copy = await MariadbServer.open(t, out, { installArgs: ['--innodb-undo-tablespaces=3'] })
  t.strictSame(await copy.checkAll(), complaints)
  await copy.remove()
})
