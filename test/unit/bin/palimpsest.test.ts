// The command line's first step: from anywhere, through a link, on whatever Node.js there is.
import { spawn, spawnSync } from 'node:child_process'
import { symlinkSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import t from 'tap'

const bin = fileURLToPath(new URL('../../../bin/palimpsest.js', import.meta.url))
const nodeLibrary = new URL('../../../scripts/lib/node.js', import.meta.url).href

t.test('through a link and from another directory', async t => {
  const link = join(t.testdir(), 'palimpsest')
  symlinkSync(bin, link)
  for (const file of [bin, link]) {
    const { status, stdout } = spawnSync(process.execPath, [file, '--version'], {
      cwd: tmpdir(),
      encoding: 'utf8',
    })
    t.equal(status, 0)
    t.match(stdout, /^\d+\.\d+\.\d+/)
  }
  const wrong = spawnSync(process.execPath, [bin, 'no-such-command'], { encoding: 'utf8' })
  t.equal(wrong.status, 2)
  t.match(wrong.stderr, /no-such-command/)
})

t.test('an older Node.js on the machine hands over', async t => {
  // Any node on the PATH that is not the project's own; where there is none, there is nothing to test.
  const path = (process.env['PATH'] ?? '').split(':').filter(dir => !dir.includes('node_modules'))
  const version = spawnSync('node', ['--version'], {
    env: { ...process.env, PATH: path.join(':') },
    encoding: 'utf8',
  })
  if (version.error !== undefined || Number(/^v(\d+)/.exec(version.stdout)?.[1]) >= 24)
    return t.plan(0, 'no older node')
  const { status, stdout } = spawnSync('node', [bin, '--version'], {
    env: { ...process.env, PATH: path.join(':') },
    encoding: 'utf8',
  })
  t.equal(status, 0)
  t.match(stdout, /^\d+\.\d+\.\d+/)
})

/** Runs `script` behind a process that has handed over to it, sends `signal` to the one in front. */
function signalled(
  script: string,
  signal: NodeJS.Signals,
): Promise<{ code: number | null; signal: string | null; out: string }> {
  const front = `import { becomeChild } from ${JSON.stringify(nodeLibrary)}
    await becomeChild(process.execPath, ['-e', ${JSON.stringify(script)}])`
  const child = spawn(process.execPath, ['--input-type=module', '-e', front], {
    stdio: ['ignore', 'pipe', 'inherit'],
  })
  let out = ''
  return new Promise(resolve => {
    child.stdout.on('data', chunk => {
      out += chunk
      if (out.includes('up\n') && !child.killed) child.kill(signal)
    })
    child.once('close', (code, by) => resolve({ code, signal: by, out }))
  })
}

t.test('signals and the way it ended go through', async t => {
  const polite = `process.on('SIGTERM', () => { console.log('bye'); process.exit(7) }); setTimeout(() => {}, 60000); console.log('up')`
  t.strictSame(await signalled(polite, 'SIGTERM'), { code: 7, signal: null, out: 'up\nbye\n' })
  t.strictSame(await signalled(polite.replace('SIGTERM', 'SIGINT'), 'SIGINT'), {
    code: 7,
    signal: null,
    out: 'up\nbye\n',
  })
  const plain = `setTimeout(() => {}, 60000); console.log('up')`
  t.strictSame(await signalled(plain, 'SIGHUP'), { code: null, signal: 'SIGHUP', out: 'up\n' })
})

t.test('a server ends with the process in front of it, even if that is killed', async t => {
  const script = `import(${JSON.stringify(nodeLibrary)}).then(({ endWithFront }) => {
    endWithFront(); setTimeout(() => {}, 60000); console.log('up') })`
  // "close" is only told when nobody holds the output any more: the child has ended, too.
  t.match(await signalled(script, 'SIGKILL'), { code: null, signal: 'SIGKILL', out: 'up\n' })
  const short = `import(${JSON.stringify(nodeLibrary)}).then(({ endWithFront }) => {
    endWithFront(); console.log('up', process.env.PALIMPSEST_FRONT) })`
  t.match(await signalled(short, 'SIGCONT'), { code: 0, out: 'up undefined\n' })
  const further = `process.env.PALIMPSEST_FRONT = '1'; ${short}`
  t.match(await signalled(further, 'SIGCONT'), { code: 0, out: 'up undefined\n' })
})
