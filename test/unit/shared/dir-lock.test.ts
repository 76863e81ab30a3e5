import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { chmodSync, mkdirSync, readdirSync, readFileSync, renameSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { fileURLToPath } from 'node:url'
import t from 'tap'
import { directoryOwner, lockDirectory } from '../../../server/shared/dir-lock.ts'

const HOLDER = `
  const { lockDirectory } = await import(process.argv[1])
  try { lockDirectory(process.argv[2]); console.log('locked'); setInterval(() => {}, 1000) }
  catch (error) { console.log(error.message); process.exit(3) }`
const RACER = fileURLToPath(new URL('../../support/lock-racer.ts', import.meta.url))

function hold(directory: string) {
  const module = new URL('../../../server/shared/dir-lock.ts', import.meta.url).href
  const child = spawn(process.execPath, ['--input-type=module', '-e', HOLDER, module, directory])
  child.stdout.setEncoding('utf8')
  return child
}

/** The id of a process that is gone. */
async function deadPid(): Promise<number> {
  const child = spawn(process.execPath, ['-e', ''], { stdio: 'ignore' })
  await once(child, 'exit')
  return child.pid!
}

t.test('a second process is refused while the first lives, and let in when it was killed', async t => {
  const directory = join(t.testdir(), 'data')
  const first = hold(directory)
  t.teardown(() => first.kill('SIGKILL'))
  t.equal((await once(first.stdout, 'data'))[0], 'locked\n')

  const second = hold(directory)
  t.match((await once(second.stdout, 'data'))[0], `${directory} is in use by process ${first.pid}; stop it`)
  t.equal((await once(second, 'exit'))[0], 3)
  t.throws(() => lockDirectory(directory), /in use by process/)
  t.equal(directoryOwner(directory), first.pid)

  first.kill('SIGKILL')
  await once(first, 'exit')
  t.equal(directoryOwner(directory), undefined)
  const release = lockDirectory(directory)
  t.same(readdirSync(directory), ['LOCK'], 'nothing else is left behind')
  t.match(readFileSync(join(directory, 'LOCK'), 'utf8'), new RegExp(`^${process.pid} \\d+ flock\n$`))
  release()
  t.same(readdirSync(directory), [])
  const again = lockDirectory(directory)
  release()
  t.same(readdirSync(directory), ['LOCK'], 'a release counts once')
  again()
})

t.test('two parts of one process are two, too', async t => {
  const directory = t.testdir()
  const release = lockDirectory(directory)
  t.throws(() => lockDirectory(directory), /in use by this process/)
  release()
  lockDirectory(directory)()
})

t.test('of many processes that find the same stale lock at the same moment, one gets it', async t => {
  const ROUNDS = 25
  const RACERS = 4
  const root = t.testdir()
  const dead = await deadPid()
  const directories = Array.from({ length: ROUNDS }, (_, i) => {
    const directory = join(root, String(i))
    mkdirSync(directory)
    // What a process that was killed leaves behind, of the older kind that names it alone, and of today's.
    writeFileSync(join(directory, 'LOCK'), `${dead} 1${i % 2 === 0 ? '' : ' flock'}\n`)
    return directory
  })
  const racers = Array.from({ length: RACERS }, () => {
    const child: ChildProcess = spawn(process.execPath, [RACER, ...directories], {
      stdio: ['pipe', 'pipe', 'inherit'],
    })
    return { child, lines: createInterface({ input: child.stdout! })[Symbol.asyncIterator]() }
  })
  t.teardown(() => {
    for (const { child } of racers) child.kill('SIGKILL')
  })
  for (const { lines } of racers) t.equal((await lines.next()).value, 'ready')
  const beginMs = Date.now() + 100
  for (const { child } of racers) child.stdin!.write(String(beginMs))
  const owners = directories.map(() => 0)
  for (const { lines } of racers)
    for (const won of JSON.parse((await lines.next()).value as string) as number[]) owners[won]!++
  t.same(
    owners,
    directories.map(() => 1),
  )
  for (const { child } of racers) child.stdin!.end()
})

t.test('a lock whose process id was given to another process is stale', async t => {
  const directory = t.testdir()
  const other = hold(join(directory, 'elsewhere'))
  t.teardown(() => other.kill('SIGKILL'))
  await once(other.stdout, 'data')
  for (const how of ['', ' flock']) {
    writeFileSync(join(directory, 'LOCK'), `${other.pid} 1${how}\n`)
    lockDirectory(directory)()
  }
})

t.test('a process of an older version, which locked nothing, is the owner while it lives', async t => {
  const directory = t.testdir({ LOCK: '1 \n' })
  t.throws(() => lockDirectory(directory), /in use by process 1;/)
  // Of a process that did, only the lock counts: here, it is gone, and 1 is another container's.
  writeFileSync(join(directory, 'LOCK'), '1 ? flock\n')
  lockDirectory(directory)()
})

t.test('a lock file that says nothing is stale', async t => {
  const directory = t.testdir({ LOCK: 'rubbish' })
  lockDirectory(directory)()
})

t.test('a lock on a file that is no longer the one of that name is none', async t => {
  const directory = t.testdir()
  const first = hold(directory)
  t.teardown(() => first.kill('SIGKILL'))
  await once(first.stdout, 'data')
  // As it is between the two steps of a release.
  renameSync(join(directory, 'LOCK'), join(directory, 'gone'))
  const release = lockDirectory(directory)
  t.throws(() => lockDirectory(directory), /in use by this process/)
  release()
})

t.test('where files cannot be locked, nothing starts', { skip: process.platform === 'darwin' }, async t => {
  const directory = t.testdir({
    empty: {},
    odd: { flock: '#!/bin/sh\necho "flock: no locks here" >&2\nexit 71\n' },
  })
  chmodSync(join(directory, 'odd', 'flock'), 0o755)
  const path = process.env['PATH']
  t.teardown(() => {
    process.env['PATH'] = path
  })
  process.env['PATH'] = join(directory, 'empty')
  t.throws(() => lockDirectory(directory), { kind: 'internal', message: /no program "flock".*util-linux/ })
  process.env['PATH'] = join(directory, 'odd')
  t.throws(() => lockDirectory(directory), {
    kind: 'internal',
    message: /LOCK cannot be locked: flock: no locks here/,
  })
})
