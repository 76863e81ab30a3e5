/** The command line as a process: what it prints, and what becomes of it when nobody reads that. */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { createServer, type Socket } from 'node:net'
import { join, resolve } from 'node:path'
import { text } from 'node:stream/consumers'
import { fileURLToPath } from 'node:url'
import t, { type Test } from 'tap'
import { palimpsest } from '../../support/cluster.ts'
import { fakeDatadir } from '../../support/fake-datadir.ts'

const BIN = resolve(fileURLToPath(import.meta.url), '../../../../bin/palimpsest.js')

t.test('nobody reads what it prints (… | head -1)', async t => {
  const child = spawn(process.execPath, [BIN, '--help'], { stdio: ['ignore', 'pipe', 'pipe'] })
  const stderr = text(child.stderr!)
  // Before it has begun to write.
  child.stdout!.destroy()
  t.same(await once(child, 'exit'), [0, null])
  t.equal(await stderr, '')
})

t.test('nor its errors', async t => {
  const child = spawn(process.execPath, [BIN, 'no-such-command'], { stdio: ['ignore', 'ignore', 'pipe'] })
  child.stderr!.destroy()
  t.same(await once(child, 'exit'), [2, null])
})

t.test('wrong usage is one line, and ends with 2', async t => {
  for (const [args, message] of [
    [['exprot'], /^palimpsest: unknown command 'exprot' \(Did you mean export\?\)\n$/],
    [['export', '--timeline', 'x', '--out', ''], /^palimpsest: option '--out <DIR>' .* it is empty\.\n$/],
    [
      ['export', '--timeline', 'x', '--out', 'y', '--lsn', '1', '--time', '2026-01-01'],
      /^palimpsest: give --lsn or --time, not both\n$/,
    ],
    [['dev', '--memory', '1M'], /"1M" is less than a page server needs, 256M\.\n$/],
    [
      ['page', 'history', '--timeline', 'x', '--space', '0', '--page', '0', '--from', '9', '--to', '9'],
      /^palimpsest: --from 9 is not before --to 9\n$/,
    ],
    [['timeline', 'create', 'x', '--lsn', '12'], /no log of InnoDB begins before LSN 8192\.\n$/],
    [
      ['ping', '--tls-cert', 'x'],
      /^palimpsest: --tls-cert and --tls-key belong together; one of them is missing\n$/,
    ],
    [['ping', '--tls-cert', 'x', '--tls-key', 'y'], /^palimpsest: --tls-cert needs --tls-ca: /],
    [
      ['export', '--timelin', 'x', '--out', 'y'],
      /^palimpsest: unknown option '--timelin' \(Did you mean --timeline\?\)\n$/,
    ],
    [
      ['export'],
      /^palimpsest: "palimpsest export" needs --timeline <NAME> \(.*\) and --out <DIR> \(.*\); see "palimpsest export --help"\n$/,
    ],
    [
      ['export', '--timeline', '--out', 'y'],
      /^palimpsest: --timeline <NAME> has no value: --out follows it at once\n$/,
    ],
  ] as const) {
    const child = spawn(process.execPath, [BIN, ...args], { stdio: ['ignore', 'ignore', 'pipe'] })
    const stderr = text(child.stderr!)
    t.same(await once(child, 'exit'), [2, null])
    t.match(await stderr, message)
  }
})

t.test('a data folder that cannot be used is said in one line, before anything listens', async t => {
  const dir = t.testdir({ file: 'text' })
  for (const command of [['dev'], ['safekeeper'], ['pageserver', '--safekeepers', '127.0.0.1:1']])
    for (const data of [join(dir, 'file'), join(dir, 'file', 'below')]) {
      const { code, stdout, stderr } = await palimpsest([
        ...command,
        '--data',
        data,
        '--listen',
        '127.0.0.1:0',
      ])
      t.same([code, stdout], [1, ''])
      t.equal(
        stderr,
        `palimpsest: the data folder ${data} cannot be used: ${join(dir, 'file')} is a file; give a directory\n`,
      )
    }
})

t.test('ping: who is not there is told on stderr; as JSON all are on stdout', async t => {
  const args = ['ping', '--connect', '127.0.0.1:1']
  const people = await palimpsest(args)
  t.match(people, { code: 1, stdout: '', stderr: /^palimpsest: cannot connect to 127\.0\.0\.1:1: .*\n$/ })
  const programs = await palimpsest([...args, '--json'])
  t.match(programs, { code: 1, stderr: '' })
  t.match(JSON.parse(programs.stdout), [{ address: '127.0.0.1:1', ok: false, error: /ECONNREFUSED/ }])
})

/** A server that never says a word; `dialled` when somebody has come. */
async function silentServer(t: Test): Promise<{ address: string; dialled: () => Promise<unknown> }> {
  const sockets = new Set<Socket>()
  const server = createServer(socket => sockets.add(socket.on('error', () => {})))
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  t.teardown(() => {
    for (const socket of sockets) socket.destroy()
    server.close()
  })
  const { port } = server.address() as { port: number }
  return { address: `127.0.0.1:${port}`, dialled: () => once(server, 'connection') }
}

t.test('Ctrl-C and SIGTERM: what is left, and how to go on; exit codes of a shell', async t => {
  const { address, dialled } = await silentServer(t)
  const datadir = fakeDatadir(t.testdir())
  const common = ['--timeline', 'x', '--connect', address]
  for (const [args, signal, code, message] of [
    [
      ['import', '--datadir', datadir, ...common],
      'SIGINT',
      130,
      /^palimpsest: stopped by Ctrl-C; the import into timeline x is not complete.* run the same command again to go on\n$/,
    ],
    [
      ['verify', '--datadir', datadir, ...common],
      'SIGTERM',
      143,
      /^palimpsest: stopped by SIGTERM; no difference was found until then, and the rest was not compared; .*\n$/,
    ],
    [
      ['export', '--out', join(t.testdirName, 'out'), ...common],
      'SIGINT',
      130,
      /^palimpsest: stopped by Ctrl-C; what was written to .*out has been removed; run the same command again\n$/,
    ],
  ] as const) {
    const arrived = dialled()
    const child = spawn(process.execPath, [BIN, ...args], { stdio: ['ignore', 'ignore', 'pipe'] })
    const stderr = text(child.stderr!)
    const exited = once(child, 'exit')
    await arrived
    child.kill(signal)
    t.same(await exited, [code, null], args[0])
    t.match(await stderr, message)
  }
})

t.test('an empty setting in the environment is none', async t => {
  const env = { ...process.env, PALIMPSEST_TOKEN_FILE: '', PALIMPSEST_TLS_CA: '' }
  const args = [BIN, 'ping', '--connect', '127.0.0.1:1']
  const child = spawn(process.execPath, args, { env, stdio: ['ignore', 'ignore', 'pipe'] })
  const stderr = text(child.stderr!)
  t.same(await once(child, 'exit'), [1, null])
  t.match(await stderr, /^palimpsest: cannot connect to 127\.0\.0\.1:1: nobody listens there/)
})
