// MariaDB's own test suites, run against a server of ours (mariadb-test-run --extern), where the mariadb-test package is
// installed. What counts here is what they make the server do, not whether they pass: some expect other options.
import { spawn } from 'node:child_process'
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { MariadbServer } from './mariadb.ts'

const HOMES = ['/usr/share/mysql/mysql-test', '/usr/share/mariadb/mariadb-test', '/usr/share/mysql-test']

function home(): string | undefined {
  return HOMES.find(dir => existsSync(join(dir, 'mariadb-test-run.pl')))
}

/** For tap's `skip` option. */
export function mtrSkip(): false | string {
  return home() === undefined ? "MariaDB's own test suites are not installed (package mariadb-test)" : false
}

/** As mariadb-test-run starts its servers, as far as files are concerned. */
export const mtrServerArgs = [
  '--character-set-server=latin1',
  '--collation-server=latin1_swedish_ci',
  '--secure-file-priv=',
  '--log-bin-trust-function-creators=1',
  '--innodb-lock-wait-timeout=5',
  '--innodb-buffer-pool-size=64M',
  '--innodb-undo-tablespaces=3',
  '--innodb-undo-log-truncate=ON',
  '--innodb-max-undo-log-size=10M',
  '--innodb-purge-rseg-truncate-frequency=1',
]

/** Restarts and crashes of the server are not for --extern, encryption is not supported. */
const UNFIT =
  /restart_mysqld|shutdown_mysqld|kill_mysqld|start_mysqld|shutdown_server|have_debug|expect_file|crash|encrypt|file_key_management/i

/** The tests of a suite that one running server will do for: no options of their own, no restarts. */
export function suiteTests(suite: string): string[] {
  const dir = join(home()!, 'suite', suite, 't')
  const files = new Set(readdirSync(dir))
  return [...files]
    .filter(file => file.endsWith('.test'))
    .map(file => file.slice(0, -5))
    .filter(name => !['.opt', '-master.opt', '.cnf'].some(extension => files.has(name + extension)))
    .filter(name => !UNFIT.test(readFileSync(join(dir, `${name}.test`), 'latin1')))
    .map(name => `${suite}.${name}`)
}

export interface MtrResult {
  readonly passed: number
  readonly failed: number
  readonly skipped: number
  readonly output: string
}

/** One after the other. What a test that failed has left behind does not stand in the way of the next one. */
export async function runMtr(server: MariadbServer, tests: readonly string[]): Promise<MtrResult> {
  const root = home()!
  // The suites are not the same in every release.
  let rest = tests.filter(name => {
    const [suite, test] = name.split('.')
    return existsSync(join(root, 'suite', suite!, 't', `${test}.test`))
  })
  await server.sql('CREATE DATABASE IF NOT EXISTS mtr')
  for (const file of ['mtr_warnings', 'mtr_check']) {
    const sql = readFileSync(join(root, 'include', `${file}.sql`), 'utf8')
    // The command line client wants the delimiter on a line of its own.
    const body = sql.replace(/^\s*(delimiter|use mtr|--).*$/gim, '')
    await server.script(`DELIMITER ||\n${body}\n`, 'mtr')
  }
  const total = { passed: 0, failed: 0, skipped: 0 }
  let output = ''
  while (rest.length > 0 && server.isRunning) {
    await cleanUp(server)
    const text = await runUntilFailure(server, root, rest)
    output += text
    const done = new Set<string>()
    for (const [, name, how] of text.matchAll(/^(\S+\.\S+) .*\[ (pass|fail|skipped|disabled) \]/gm)) {
      done.add(name!)
      if (how === 'pass') total.passed++
      else if (how === 'fail') total.failed++
      else total.skipped++
    }
    const before = rest.length
    rest = rest.filter(name => !done.has(name))
    // It stopped for another reason, which its output tells.
    if (rest.length === before) break
  }
  return { ...total, output }
}

async function cleanUp(server: MariadbServer): Promise<void> {
  for (const { data } of await server.sql<{ data: string }>('XA RECOVER'))
    await server.sql(`XA ROLLBACK '${data.replace(/'/g, "''")}'`).catch(() => {})
  const databases = await server.sql<{ Database: string }>('SHOW DATABASES')
  for (const { Database: name } of databases)
    if (!/^(mysql|mtr|sys|information_schema|performance_schema)$/.test(name))
      await server.sql(`SET FOREIGN_KEY_CHECKS = 0; DROP DATABASE \`${name}\``).catch(() => {})
  await server.sql('SET FOREIGN_KEY_CHECKS = 1; CREATE DATABASE IF NOT EXISTS test').catch(() => {})
}

async function runUntilFailure(
  server: MariadbServer,
  root: string,
  tests: readonly string[],
): Promise<string> {
  const vardir = mkdtempSync(join(process.env['PALIMPSEST_TEST_TMP'] ?? tmpdir(), 'pal-mtr-'))
  try {
    const args = [
      join(root, 'mariadb-test-run.pl'),
      `--extern=socket=${server.socket}`,
      '--extern=user=root',
      `--vardir=${vardir}/var`,
      '--testcase-timeout=2',
      '--retry=0',
      '--nowarnings',
      ...tests,
    ]
    const child = spawn('perl', args, { cwd: root, stdio: ['ignore', 'pipe', 'pipe'] })
    let output = ''
    for (const stream of [child.stdout, child.stderr])
      stream.setEncoding('utf8').on('data', (text: string) => {
        output += text
      })
    await new Promise(done => child.on('close', done))
    return output
  } finally {
    rmSync(vardir, { recursive: true, force: true })
  }
}
