// Branches of a timeline that a real server goes on writing to.
import { join } from 'node:path'
import t from 'tap'
import { Cluster } from '../support/cluster.ts'
import { MariadbServer, mariadbSkip } from '../support/mariadb.ts'
import { BankWorkload } from '../support/workloads/bank.ts'

t.test('a branch stays as it was, whatever happens to its ancestor', { skip: mariadbSkip() }, async t => {
  const server = await MariadbServer.create(t)
  const cluster = await Cluster.start(t)
  const bank = new BankWorkload(server)
  await bank.setup()
  const agent = cluster.attach(t, server.datadir, 'bank')
  await agent.saw('following')
  bank.start()
  const branch = async (name: string, from: string, ...more: string[]) =>
    (await cluster.cliJson('timeline', 'branch', name, '--from', from, ...more))['lsn'] as number
  await bank.run(30)
  const first = await branch('first', 'bank')
  await bank.run(30)
  const second = await branch('second', 'bank', '--lsn', String(await server.currentLsn()))
  // Asked of a branch, and before it began: it is the ancestor that is branched.
  const again = await branch('again', 'second', '--lsn', String(first))
  t.equal(again, first)
  await bank.stop()
  await server.sql('DROP DATABASE bank')
  await server.sql('CREATE DATABASE later')
  await agent.stop()

  const refused = await cluster.cli('timeline', 'delete', 'bank', '--yes')
  t.equal(refused.code, 1)
  t.match(refused.stderr, /branches \(again, first, second\)/)
  t.equal((await cluster.cli('timeline', 'rename', 'second', 'renamed')).code, 0)
  const dir = t.testdir()
  for (const [name, lsn] of [
    ['first', first],
    ['renamed', second],
    ['again', again],
  ] as const) {
    const out = join(dir, name)
    const done = await cluster.cliJson('export', '--timeline', name, '--out', out)
    t.equal(done['lsn'], lsn, `the newest of ${name} is where it branched off`)
    const copy = await MariadbServer.open(t, out)
    t.strictSame(await copy.checkAll(), [], `mariadb-check of ${name}`)
    t.strictSame(await bank.verify(copy, lsn), [], `transactions of ${name}`)
    await copy.remove()
  }
  for (const name of ['again', 'first', 'renamed', 'bank'])
    t.equal((await cluster.cli('timeline', 'delete', name, '--yes')).code, 0, `${name} deleted`)
})
