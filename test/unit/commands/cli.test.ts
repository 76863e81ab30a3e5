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

t.test('wrong usage is one line, and ends with 2', async t => {
  for (const [args, message] of [
    [['exprot'], /^palimpsest: unknown command 'exprot' \(Did you mean export\?\)\n$/],
    [['export', '--timeline', 'x', '--out', ''], /^palimpsest: option '--out <DIR>' .* it is empty\.\n$/],
    [
      ['export', '--timeline', 'x', '--out', 'y', '--lsn', '1', '--time', '2026-01-01'],
      /^palimpsest: give --lsn or --time, not both\n$/,
    ],
    [['timeline', 'create', 'x', '--lsn', '12'], /no log of InnoDB begins before LSN 8192\.\n$/],
  ] as const) {
    const child = spawn(process.execPath, [BIN, ...args], { stdio: ['ignore', 'ignore', 'pipe'] })
    const stderr = text(child.stderr!)
    t.same(await once(child, 'exit'), [2, null])
    t.match(await stderr, message)
  }
})
