// The workloads that the other tests in this folder throw at the server must themselves run, and the
// bank's journal must find what is wrong with a copy.
import { join } from 'node:path'
import t from 'tap'
import { copyDatadir, MariadbServer, mariadbSkip } from '../support/mariadb.ts'
import { BankWorkload } from '../support/workloads/bank.ts'
import { runDdl } from '../support/workloads/ddl.ts'
import { sysbenchPrepare, sysbenchRun, sysbenchSkip } from '../support/workloads/sysbench.ts'
import { undoTruncationArgs, undoTruncationSql, zooSql } from '../support/workloads/zoo.ts'

const skip = mariadbSkip()

t.test('bank', { skip }, async t => {
  const server = await MariadbServer.create(t)
  const bank = new BankWorkload(server, { accounts: 50, workers: 4 })
  await bank.setup()
  await bank.run(200)
  t.ok(bank.journal.length >= 200)
  const lsn = await server.currentLsn()
  t.strictSame(await bank.verify(server, lsn), [], 'a live server that stands still holds the journal')

  // A server killed while it works must hold, after its own recovery, what it acknowledged.
  bank.start()
  const killAt = bank.journal.length + 100
  while (bank.journal.length < killAt) await new Promise(next => setTimeout(next, 5))
  await server.kill9()
  await bank.stop()
  const copyDir = join(t.testdir(), 'copy')
  await copyDatadir(server.datadir, copyDir)
  const copy = await MariadbServer.open(t, copyDir)
  t.strictSame(await bank.verify(copy, Number.POSITIVE_INFINITY), [])

  const last = bank.journal.filter(transfer => transfer.lsnAfter < Number.POSITIVE_INFINITY).at(-1)!
  t.match(await bank.verify(copy, last.lsnBefore), [/is there at/], 'a copy that is too new is found out')
  await copy.sql(`DELETE FROM bank.transfer WHERE id = ${last.id}`)
  const wrong = await bank.verify(copy, Number.POSITIVE_INFINITY)
  t.ok(
    wrong.some(line => line.startsWith(`transfer ${last.id}, committed by`)),
    'a lost transfer is found',
  )
  t.ok(
    wrong.some(line => line.startsWith('account ')),
    'and its accounts',
  )
})

t.test('schema changes', { skip }, async t => {
  const server = await MariadbServer.create(t)
  const statements = await runDdl(server, { steps: 150, seed: 7 })
  t.ok(statements.length > 150)
  t.strictSame(await server.checkAll(), [])
})

t.test('zoo', { skip }, async t => {
  const server = await MariadbServer.create(t, { installArgs: undoTruncationArgs })
  await server.script(zooSql({ pageSizeBytes: 16384, scale: 0.3 }))
  await server.script(undoTruncationSql())
  while ((await server.status('Innodb_undo_truncations')) === 0)
    await new Promise(next => setTimeout(next, 50))
  t.pass('an undo tablespace was truncated')
  t.strictSame(await server.checkAll(), [])
})

t.test('sysbench', { skip: skip || sysbenchSkip() }, async t => {
  const server = await MariadbServer.create(t)
  const options = { tables: 2, rowsPerTable: 1000, threads: 2 }
  await sysbenchPrepare(server, options)
  const result = await sysbenchRun(server, options, { events: 200 })
  t.ok(result.transactions >= 200)
})
