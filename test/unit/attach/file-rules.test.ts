import t from 'tap'
import { captureOrder, isCaptured } from '../../../server/attach/file-rules.ts'

t.test('what a server needs to start is kept', async t => {
  for (const path of [
    'mysql/global_priv.MAI',
    'mysql/global_priv.MAD',
    'mysql/global_priv.frm',
    'test/db.opt',
    'test/t.frm',
    'test/t.TRG',
    'test/trg.TRN',
    'test/p.par',
    'test/m.MYD',
    'test/m.MYI',
    'mysql/general_log.CSV',
    'mysql/general_log.CSM',
    'aria_log_control',
    'aria_log.00000001',
    'ddl_recovery.log',
    'tc.log',
    'mysql_upgrade_info',
    'my.cnf',
    'test/core.frm',
    'bin_log_table/x-bin.frm',
  ])
    t.ok(isCaptured(path), path)
})

t.test("InnoDB's files, and what belongs to one running server, are not", async t => {
  for (const path of [
    'ibdata1',
    'ibdata2',
    'undo001',
    'ib_logfile0',
    'ib_logfile101',
    'ibtmp1',
    'ib_buffer_pool',
    'test/t.ibd',
    'test/t.isl',
    'host.pid',
    'mysql.sock',
    'host.err',
    'slow.log',
    'mysql-bin.000001',
    'mysql-bin.index',
    'mysql-bin.state',
    'host-relay-bin.000002',
    'master.info',
    'relay-log.info',
    'core.4711',
    '#sql-temptable-1-2-3.MAI',
  ])
    t.notOk(isCaptured(path), path)
})

t.test('globs add and take away, but never pages', async t => {
  t.ok(isCaptured('mysql-bin.000001', { include: ['mysql-bin.*'] }))
  t.notOk(isCaptured('test/big.MYD', { exclude: ['test/*.MYD'] }))
  t.notOk(isCaptured('a/b.frm', { include: ['**/*.frm'], exclude: ['a/**'] }), 'exclude wins')
  t.notOk(isCaptured('test/t.ibd', { include: ['**'] }))
  t.notOk(isCaptured('test/back\\slash.frm'))
})

t.test("Aria's log is read after the tables, its control file last", async t => {
  const order = ['aria_log_control', 'mysql/x.MAD', 'aria_log.00000001'].sort(
    (a, b) => captureOrder(a) - captureOrder(b),
  )
  t.strictSame(order, ['mysql/x.MAD', 'aria_log.00000001', 'aria_log_control'])
})
