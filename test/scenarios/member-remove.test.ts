/** `palimpsest member remove` of a member, of one that was one, and of one that never was, as a person sees it. */
import { execFile } from 'node:child_process'
import { join } from 'node:path'
import t from 'tap'
import { formatAddress } from '../../protocol/dial.ts'
import { TestCell } from '../support/cell.ts'

const CLI = join(import.meta.dirname, '..', '..', 'bin', 'palimpsest.js')

function run(...args: readonly string[]): Promise<{ code: number; out: string; err: string }> {
  return new Promise(resolve => {
    execFile(process.execPath, [CLI, ...args], (error, out, err) => {
      resolve({ code: error === null ? 0 : Number(error.code), out, err })
    })
  })
}

t.test('a mistyped name is an error that names the members', { timeout: 120_000 }, async t => {
  const cell = await TestCell.start(t)
  const leader = (await cell.leader()).name
  const out = ['a', 'b', 'c'].find(name => name !== leader)!
  const left = ['a', 'b', 'c'].filter(name => name !== out)
  const connect = () => ['--connect', cell.list.map(formatAddress).join(',')]
  const wrong = await run('member', 'remove', 'bb', ...connect())
  t.equal(wrong.code, 1)
  t.match(wrong.err, /no member "bb"; its members are a, b, c/)
  t.match(await run('member', 'remove', out, ...connect()), { code: 0, out: /is no member any more/ })
  t.match(await run('member', 'remove', out, ...connect()), { code: 0, out: /was removed before/ })
  const again = await run('member', 'remove', out, '--json', ...connect())
  t.same(JSON.parse(again.out), { removed: out, before: true })
  // Another leader remembers it too, also one that was started since.
  await cell.stop(out)
  for (const name of left) {
    await cell.stop(name)
    await cell.startNode(name)
    await cell.leader()
  }
  t.match(await run('member', 'remove', out, ...connect()), { code: 0, out: /was removed before/ })
  const unknown = await run('member', 'remove', 'd', ...connect())
  t.equal(unknown.code, 1)
  t.match(unknown.err, new RegExp(`its members are ${left.join(', ')}`))
})
