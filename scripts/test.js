// npm test: sets up what is missing, then checks types and style and runs every test.
// With arguments, only the test files whose path contains (or, as a glob, matches) one of them.
// The last line is "N passed, N failed", with ", N skipped" where something was skipped.
import { randomUUID } from 'node:crypto'
import { mkdtempSync, readdirSync, rmSync } from 'node:fs'
import { availableParallelism, tmpdir } from 'node:os'
import path, { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { root, runMain, SetupError, say } from './lib/checkout.js'
import { ensureModules } from './lib/modules.js'
import { handOver } from './lib/node.js'
import { killMarked, markName, run } from './lib/processes.js'

/** Folders under test/ in the order they run: what fails fast and tells most comes first. */
const groups = [
  { name: 'unit', jobs: 2 },
  { name: 'contract', jobs: 2 },
  { name: 'property', jobs: 2 },
  { name: 'fuzz', jobs: 2 },
  { name: 'sim', jobs: 2 },
  { name: 'other', jobs: 2 },
  { name: 'scenarios', jobs: 1 },
  // One at a time: each brings up real servers, and some measure what they leave on disk.
  { name: 'mariadb', jobs: 1, timeoutSeconds: 1800 },
  // Against a real S3 service, Ceph's.
  { name: 's3', jobs: 1, timeoutSeconds: 900 },
]

/** @param {string} file @returns {string} the group it belongs to */
function groupOf(file) {
  const folder = file.split('/')[1] ?? ''
  return groups.some(group => group.name === folder) ? folder : 'other'
}

/** @param {string[]} patterns @returns {string[]} test files, relative to the root */
function chooseFiles(patterns) {
  const files = readdirSync(join(root, 'test'), { recursive: true, encoding: 'utf8' })
    .map(file => `test/${file.replaceAll('\\', '/')}`)
    .filter(file => file.endsWith('.test.ts'))
    .filter(file => !file.startsWith('test/fixtures/') && !file.startsWith('test/support/'))
    .sort()
  if (patterns.length === 0) return files
  return files.filter(file =>
    patterns.some(pattern => file.includes(pattern) || path.matchesGlob(file, pattern)),
  )
}

/** @param {string} line */
function print(line) {
  process.stdout.write(`${line}\n`)
}

/**
 * Runs the compiler and the linter, each counted as one test.
 * @param {import('./lib/tap-report.js').Tally} tally
 */
async function runChecks(tally) {
  print('types and style')
  const bin = join(root, 'node_modules', '.bin')
  const checks = [
    { name: 'tsc --noEmit', command: join(bin, 'tsc'), args: ['--noEmit'] },
    { name: 'biome check', command: join(bin, 'biome'), args: ['check', '.'] },
  ]
  await Promise.all(
    checks.map(async ({ name, command, args }) => {
      const { code, output } = await run(command, args)
      if (code === 0) {
        tally.passed++
        print(`  ok    ${name}`)
        return
      }
      print(`  FAIL  ${name}`)
      print(output.trimEnd())
      tally.fail(name)
    }),
  )
}

async function setUpMariadb() {
  const { setupMariadb } = await import('./setup-mariadb.js')
  const found = await setupMariadb({ profile: 'test' })
  if (found.ok) say(`MariaDB ${found.version} (${found.mariadbd})`)
  else say(`MariaDB is missing: ${found.reason}. Tests that need it are skipped.`)
}

async function setUpRadosgw() {
  const { setupRadosgw } = await import('./setup-radosgw.js')
  const found = setupRadosgw()
  if (found.ok) say(`S3: Ceph's gateway (${found.programs.radosgw})`)
  else say(`Ceph's S3 gateway is missing: ${found.reason}. Tests that need it are skipped.`)
}

await runMain(async () => {
  ensureModules({ forTests: true })
  await handOver(fileURLToPath(import.meta.url), process.argv.slice(2))

  // Only now, for these import packages that the lines above installed.
  const { Tally } = await import('./lib/tap-report.js')
  const { runFiles } = await import('./lib/test-files.js')
  const patterns = process.argv.slice(2)
  const files = chooseFiles(patterns)
  if (files.length === 0) {
    print('0 passed, 1 failed')
    throw new SetupError(
      patterns.length > 0
        ? `no file test/**/*.test.ts matches ${patterns.join(' ')}`
        : 'there are no test files under test/',
    )
  }

  const tally = new Tally()
  const mark = randomUUID()
  const temporary = mkdtempSync(join(tmpdir(), 'pal-test-'))
  const env = { ...process.env, [markName]: mark, PALIMPSEST_TEST_TMP: temporary }
  process.on('exit', () => rmSync(temporary, { recursive: true, force: true }))
  /** @type {Set<import('node:child_process').ChildProcess>} */
  const children = new Set()
  let interrupted = false
  for (const signal of /** @type {const} */ (['SIGINT', 'SIGTERM', 'SIGHUP'])) {
    process.on(signal, () => {
      if (!interrupted) tally.fail(`interrupted by ${signal}`)
      interrupted = true
      for (const child of children) child.kill('SIGTERM')
    })
  }

  const started = performance.now()
  if (patterns.length === 0) await runChecks(tally)
  for (const group of groups) {
    const chosen = files.filter(file => groupOf(file) === group.name)
    if (chosen.length === 0 || interrupted) continue
    if (group.name === 'mariadb' || group.name === 's3') await setUpMariadb()
    if (group.name === 's3') await setUpRadosgw()
    print(group.name)
    await runFiles(chosen, {
      jobs: Math.min(group.jobs, availableParallelism()),
      timeoutSeconds: group.timeoutSeconds ?? 600,
      env,
      tally,
      print,
      children,
      stopped: () => interrupted,
    })
    for (const left of await killMarked(mark, interrupted ? 0 : 3000)) {
      tally.fail(`a process was left running by the ${group.name} tests and was killed`, left)
    }
  }

  if (tally.failures.length > 0) {
    print('\nfailed:')
    for (const failure of tally.failures) print(`  - ${failure}`)
  }
  print(`\n${((performance.now() - started) / 1000).toFixed(0)} s`)
  const skipped = tally.skipped > 0 ? `, ${tally.skipped} skipped` : ''
  print(`${tally.passed} passed, ${tally.failed} failed${skipped}`)
  return tally.failed > 0 || tally.passed === 0 ? 1 : 0
})
