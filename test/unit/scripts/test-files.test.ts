// The test runner itself: what it must never do is to call a broken file passed.
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { join, relative } from 'node:path'
import { fileURLToPath } from 'node:url'
import t from 'tap'

type Tally = { passed: number; failed: number; skipped: number; failures: string[] }
type Options = {
  jobs: number
  timeoutSeconds: number
  env: NodeJS.ProcessEnv
  tally: Tally
  print: (line: string) => void
  children: Set<unknown>
  stopped: () => boolean
}

const root = fileURLToPath(new URL('../../../', import.meta.url))
const at = (name: string): string => new URL(`../../../scripts/lib/${name}`, import.meta.url).href
const { Tally } = (await import(at('tap-report.js'))) as { Tally: new () => Tally }
const { runFiles } = (await import(at('test-files.js'))) as {
  runFiles: (files: string[], options: Options) => Promise<void>
}
const { killMarked, markName } = (await import(at('processes.js'))) as {
  killMarked: (mark: string, graceMs: number) => Promise<string[]>
  markName: string
}

/** Runs one file with this source. */
async function runSource(
  source: string,
  timeoutSeconds = 30,
): Promise<Tally & { lines: string[]; left: string[] }> {
  // In the checkout, so that the file finds tap.
  mkdirSync(join(root, '.palimpsest'), { recursive: true })
  const dir = mkdtempSync(join(root, '.palimpsest', 'runner-'))
  const lines: string[] = []
  const tally = new Tally()
  const mark = `runner-test-${process.pid}-${Math.random()}`
  try {
    const file = join(dir, 'x.test.ts')
    writeFileSync(file, source)
    await runFiles([relative(root, file)], {
      jobs: 1,
      timeoutSeconds,
      env: { ...process.env, [markName]: mark },
      tally,
      print: line => lines.push(line),
      children: new Set(),
      stopped: () => false,
    })
  } finally {
    rmSync(dir, { recursive: true, force: true })
  }
  const { passed, failed, skipped, failures } = tally
  return { passed, failed, skipped, failures, lines, left: await killMarked(mark, 0) }
}

const tap = "import t from 'tap'\n"

t.test('assertions are counted, however deep', async t => {
  const { passed, failed, skipped } = await runSource(
    `${tap}t.ok(1); t.test('a', async t => { t.ok(1); t.test('b', async t => { t.ok(1); t.ok(1) }) }); t.test('c', { skip: 'no' }, () => {})`,
  )
  t.strictSame({ passed, failed, skipped }, { passed: 4, failed: 0, skipped: 1 })
})

t.test('a failed assertion is named, with what was found', async t => {
  const { passed, failed, failures } = await runSource(
    `${tap}t.ok(1); t.test('outer', async t => { t.equal(1, 2, 'one is two') })`,
  )
  t.strictSame({ passed, failed }, { passed: 1, failed: 1 })
  t.match(failures[0], /x\.test\.ts: outer > one is two\n[\s\S]*-2[\s\S]*\+1/)
})

t.test('a file that breaks is a failure', async t => {
  const broken: [string, string, RegExp][] = [
    ['throws', `${tap}t.ok(1)\nthrow new Error('boom')`, /boom/],
    ['does not compile', `${tap}t.ok(1\n`, /exit code|not complete/],
    ['is killed', `${tap}t.ok(1); setTimeout(() => process.kill(process.pid, 'SIGKILL'), 5)`, /SIGKILL/],
    ['ends with an exit code', `${tap}t.ok(1); t.end(); process.exitCode = 3`, /exit code 3/],
    ['holds no test', 'export {}', /held no test/],
    ['leaves a subtest waiting', `${tap}t.test('waits', () => new Promise(() => {}))`, /waits/],
    ['keeps no plan', `${tap}t.plan(3); t.ok(1)`, /./],
  ]
  for (const [what, source, wanted] of broken) {
    const { failed, failures } = await runSource(source)
    t.ok(failed >= 1, what)
    t.match(failures.join('\n'), wanted, what)
  }
})

t.test('a file that hangs is ended', async t => {
  const { failures } = await runSource(`${tap}t.ok(1); setInterval(() => {}, 1000)`, 1)
  t.match(failures.join('\n'), /did not end within 1 s|timeout/)
})

t.test('a skipped file is no failure', async t => {
  const { passed, failed, skipped, lines } = await runSource(`${tap}t.plan(0, 'no server here')`)
  t.strictSame({ passed, failed, skipped }, { passed: 0, failed: 0, skipped: 1 })
  t.match(lines[0], /no server here/)
})

t.test('what a test leaves running is found and ended', { skip: process.platform !== 'linux' }, async t => {
  const { left } = await runSource(
    `${tap}import { spawn } from 'node:child_process'
    spawn('sleep', ['1000'], { detached: true, stdio: 'inherit' }).unref()
    t.ok(1)`,
  )
  t.match(left, [/sleep 1000/])
})
