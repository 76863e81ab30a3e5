// The server that the other tests in this folder stand on.
import { existsSync } from 'node:fs'
import t from 'tap'
import { complaintsOf, MariadbServer, mariadbSkip } from '../support/mariadb.ts'

t.test('mariadb-check output', async t => {
  const output = [
    'mysql.proc                                         OK',
    'mysql.slow_log',
    "note     : The storage engine for the table doesn't support check",
    'shop.orders',
    'Error    : Table is corrupt',
    'status   : Operation failed',
    '',
  ].join('\n')
  t.strictSame(complaintsOf(output), ['shop.orders: Table is corrupt', 'shop.orders: Operation failed'])
})

t.test('a server starts, is killed, recovers, stops and leaves nothing', { skip: mariadbSkip() }, async t => {
  let socket = ''
  await t.test('life', async t => {
    const server = await MariadbServer.create(t, { pageSizeBytes: 4096 })
    socket = server.socket
    await server.sql('CREATE DATABASE d')
    await server.sql('CREATE TABLE d.t (a INT PRIMARY KEY, b VARCHAR(20)) ENGINE=InnoDB')
    const before = await server.currentLsn()
    await server.sql('INSERT INTO d.t VALUES (?, ?), (2, ?)', [1, 'one', 'two'])
    t.ok((await server.currentLsn()) > before, 'the LSN moves')
    await server.kill9()
    t.notOk(server.isRunning)
    await server.start()
    t.strictSame(await server.sql('SELECT a, b FROM d.t'), [
      { a: 1, b: 'one' },
      { a: 2, b: 'two' },
    ])
    t.strictSame(await server.checkAll(), [])
    const dump = await server.dump('d')
    t.match(dump, /INSERT INTO `t` VALUES \(1,'one'\)/)
    await server.restart()
    t.equal(await server.dump('d'), dump, 'dump is deterministic')
    const [variable] = await server.sql<{ Value: string }>("SHOW VARIABLES LIKE 'innodb_page_size'")
    t.equal(variable?.Value, '4096')
    await server.stop()
    t.match(server.logTail(), /Shutdown complete/)
  })
  t.notOk(existsSync(socket), 'its files are gone')
})

t.test('a server that cannot start says why', { skip: mariadbSkip() }, async t => {
  const server = MariadbServer.create(t, { args: ['--no-such-option'] })
  await t.rejects(server, /ended while starting \(exit code \d+\)[\s\S]*no-such-option/)
})
