/** The command line as a process: what it prints, and what becomes of it when nobody reads that. */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { resolve } from 'node:path'
import { text } from 'node:stream/consumers'
import { fileURLToPath } from 'node:url'
import t from 'tap'

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
