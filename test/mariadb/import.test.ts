// Cold datadirs, with and without redo beyond them.
import { copyFileSync, cpSync, rmSync, truncateSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { Cluster } from '../support/cluster.ts'
import { copyDatadir, MariadbServer, mariadbSkip } from '../support/mariadb.ts'
import { BankWorkload } from '../support/workloads/bank.ts'

const skip = mariadbSkip()

t.test('a cold datadir, then the redo of a log copied later', { skip }, async t => {
  const server = await MariadbServer.create(t)
  const cluster = await Cluster.start(t)
  const bank = new BankWorkload(server)
  await bank.setup()
  await server.stop()
  const base = join(t.testdir(), 'base')
  await copyDatadir(server.datadir, base)
  await server.start()
  await bank.run(500)
  await server.stop()
  const redo = join(base, '..', 'redo')
  copyFileSync(join(server.datadir, 'ib_logfile0'), redo)

  const { code, stdout, stderr } = await cluster.cli(
    'import',
    '--datadir',
    base,
    '--timeline',
    'cold',
    '--redo',
    redo,
  )
  t.equal(code, 0, stderr)
  t.match(stdout, /holds everything up to LSN \d+/)
  const verified = await cluster.cli('verify', '--timeline', 'cold', '--datadir', server.datadir)
  t.match(verified.stdout, /compared \d+ pages, 0 differ\n$/, verified.stderr)

  // The base alone, which is older, is no match for the timeline's name but for one of its own.
  t.equal((await cluster.cli('import', '--datadir', base, '--timeline', 'base')).code, 0)
  const same = await cluster.cli('verify', '--timeline', 'base', '--datadir', base)
  t.match(same.stdout, /compared \d+ pages, 0 differ\n$/, same.stderr)
})

t.test('into a timeline that was made before, and is empty', { skip }, async t => {
  const server = await MariadbServer.create(t)
  const cluster = await Cluster.start(t)
  await server.stop()
  const made = await cluster.cliJson('timeline', 'create', 'early')
  t.equal(made.startLsn, 12288, 'where the log of every new server begins')
  const twice = await cluster.cli('timeline', 'create', 'early')
  t.equal(twice.code, 1)
  t.match(twice.stderr, /there is a timeline named early already/)
  t.equal((await cluster.cli('timeline', 'create', 'odd', '--page-size', '5000')).code, 2)
  const early = await cluster.cli('export', '--timeline', 'early', '--out', join(t.testdir(), 'out'))
  t.match(early.stderr, /holds no whole database yet/)
  const { code, stderr } = await cluster.cli('import', '--datadir', server.datadir, '--timeline', 'early')
  t.equal(code, 0, stderr)
  const verified = await cluster.cli('verify', '--timeline', 'early', '--datadir', server.datadir)
  t.match(verified.stdout, /compared \d+ pages, 0 differ\n$/, verified.stderr)
  const { summary } = await cluster.cliJson('timeline', 'show', 'early')
  t.match(summary, { name: 'early', timeline: made.timeline, state: 'active' })
})

t.test('a datadir after a crash', { skip }, async t => {
  const server = await MariadbServer.create(t)
  const cluster = await Cluster.start(t)
  const bank = new BankWorkload(server)
  await bank.setup()
  bank.start()
  while (bank.journal.length < 300) await new Promise(next => setTimeout(next, 5))
  await server.kill9()
  await bank.stop()
  t.equal((await cluster.cli('import', '--datadir', server.datadir, '--timeline', 'crashed')).code, 0)
  const out = join(t.testdir(), 'out')
  await cluster.cliJson('export', '--timeline', 'crashed', '--out', out)
  const copy = await MariadbServer.open(t, out)
  t.strictSame(await bank.verify(copy, Number.POSITIVE_INFINITY), [])
  await copy.remove()
})

t.test('what is no datadir is refused with a reason', { skip }, async t => {
  const server = await MariadbServer.create(t)
  const cluster = await Cluster.start(t)
  await server.stop()
  const dir = t.testdir({ empty: {} })
  const refused = async (datadir: string): Promise<string> => {
    const { code, stderr } = await cluster.cli('import', '--datadir', datadir, '--timeline', 'x')
    t.equal(code, 1)
    t.equal(stderr.trim().split('\n').length, 1, 'one line')
    return stderr
  }
  t.match(await refused(join(dir, 'empty')), /is empty; give the datadir/)
  t.match(await refused(join(dir, 'nowhere')), /no such file or directory/)
  const copy = join(dir, 'copy')
  await copyDatadir(server.datadir, copy)
  rmSync(join(copy, 'ib_logfile0'))
  t.match(await refused(copy), /has no ib_logfile0/)
  copyFileSync(join(server.datadir, 'ib_logfile0'), join(copy, 'ib_logfile0'))
  truncateSync(join(copy, 'ib_logfile0'), 4096)
  t.match(await refused(copy), /ib_logfile0.*too short/)
  copyFileSync(join(server.datadir, 'ib_logfile0'), join(copy, 'ib_logfile0'))
  truncateSync(join(copy, 'ibdata1'), 1 << 20)
  t.match(await refused(copy), /the system tablespace has \d+ pages, but ibdata1 hold only 64/)
  cpSync(join(server.datadir, 'ibdata1'), join(copy, 'ibdata1'))
  cpSync(join(copy, 'mysql'), join(copy, 'mysql2'), { recursive: true })
  t.match(await refused(copy), /has the same tablespace id/)
  const { stdout } = await cluster.cli('timeline', 'list')
  t.match(stdout, /no timelines yet/, 'nothing was made for any of them')
})
