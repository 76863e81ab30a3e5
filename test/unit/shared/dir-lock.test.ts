import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { readdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { lockDirectory } from '../../../server/shared/dir-lock.ts'

const HOLDER = `
  const { lockDirectory } = await import(process.argv[1])
  try { lockDirectory(process.argv[2]); console.log('locked'); setInterval(() => {}, 1000) }
  catch (error) { console.log(error.message); process.exit(3) }`

function hold(directory: string) {
  const module = new URL('../../../server/shared/dir-lock.ts', import.meta.url).href
  const child = spawn(process.execPath, ['--input-type=module', '-e', HOLDER, module, directory])
  child.stdout.setEncoding('utf8')
  return child
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

  first.kill('SIGKILL')
  await once(first, 'exit')
  const release = lockDirectory(directory)
  t.same(readdirSync(directory), ['LOCK'], 'no drafts are left behind')
  release()
  t.same(readdirSync(directory), [])
})

t.test('a lock whose process id was given to another process is stale', async t => {
  const directory = t.testdir()
  const other = hold(join(directory, 'elsewhere'))
  t.teardown(() => other.kill('SIGKILL'))
  await once(other.stdout, 'data')
  writeFileSync(join(directory, 'LOCK'), `${other.pid} 1\n`)
  lockDirectory(directory)()
})

t.test('a lock file that says nothing is stale', async t => {
  const directory = t.testdir({ LOCK: 'rubbish' })
  lockDirectory(directory)()
})
