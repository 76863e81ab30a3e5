// A private MariaDB server for tests: its own datadir and socket, no network, gone with the test.
import { type ChildProcess, execFile, spawn } from 'node:child_process'
import { createHash, randomBytes } from 'node:crypto'
import { existsSync, mkdirSync, mkdtempSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs'
import { connect } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { promisify } from 'node:util'
import { createPool, type Pool, type PoolConnection } from 'mariadb'
import type { Test } from 'tap'
import { type FoundMariadb, findMariadb } from '../../scripts/lib/mariadb.js'

const execFileAsync = promisify(execFile)

/** How a server is set up. What is left out keeps MariaDB's own default. */
export type MariadbOptions = {
  /** innodb_page_size; fixed when the datadir is made. Default 16384. */
  pageSizeBytes?: 4096 | 8192 | 16384 | 32768 | 65536
  /** innodb_log_file_size, the capacity of the redo ring. Default 100663296 (96 MiB). */
  logFileSizeBytes?: number
  /** innodb_buffer_pool_size. Default 128 MiB; small ones force pages out early. */
  bufferPoolBytes?: number
  /** More options for mariadb-install-db and mariadbd alike, e.g. innodb_checksum_algorithm. */
  installArgs?: readonly string[]
  /** More options for mariadbd only. */
  args?: readonly string[]
  /** Connections that `sql` may use at once. Default 16. */
  connectionsMax?: number
}

/**
 * Options that every server here is started with. They leave out work that no test looks at (performance
 * schema, buffer pool dump, network, binary log) and change nothing in InnoDB's files or redo.
 */
const quickOptions = [
  '--skip-networking',
  '--skip-log-bin',
  '--performance-schema=OFF',
  '--innodb-buffer-pool-dump-at-shutdown=OFF',
  '--innodb-buffer-pool-load-at-startup=OFF',
  '--key-buffer-size=1M',
  '--aria-pagecache-buffer-size=8M',
  '--max-connections=200',
  '--character-set-server=utf8mb4',
]

let foundOnce: FoundMariadb | undefined

/** The MariaDB of this machine, looked for once. */
export function mariadb(): FoundMariadb {
  foundOnce ??= findMariadb()
  return foundOnce
}

/** For tap's `skip` option: false where a server is there, else why it is not. */
export function mariadbSkip(): false | string {
  const found = mariadb()
  return found.ok ? false : found.reason
}

function programs(): Extract<FoundMariadb, { ok: true }> {
  const found = mariadb()
  if (!found.ok) throw new Error(`this test needs MariaDB: ${found.reason}`)
  return found
}

/** mariadbd refuses to run as root unless told to. */
function userOptions(): string[] {
  return process.getuid?.() === 0 ? ['--user=root'] : []
}

function temporaryRoot(): string {
  const dir = process.env['PALIMPSEST_TEST_TMP'] ?? tmpdir()
  mkdirSync(dir, { recursive: true })
  return dir
}

/**
 * Copies a directory tree, sharing blocks where the file system can and keeping holes as holes.
 * @param from existing directory
 * @param to must not exist
 */
export async function copyDatadir(from: string, to: string): Promise<void> {
  if (existsSync(to)) throw new Error(`copyDatadir: ${to} exists already`)
  const gnu = process.platform === 'linux'
  await execFileAsync('cp', gnu ? ['-r', '--reflink=auto', '--sparse=always', from, to] : ['-R', from, to])
}

/**
 * Makes a fresh datadir at `datadir`. mariadb-install-db takes seconds, so its result is kept for each
 * set of options and copied.
 */
export async function freshDatadir(datadir: string, options: MariadbOptions): Promise<void> {
  const found = programs()
  const installArgs = [
    `--innodb-page-size=${options.pageSizeBytes ?? 16384}`,
    `--innodb-log-file-size=${options.logFileSizeBytes ?? 100663296}`,
    ...(options.installArgs ?? []),
  ]
  const key = createHash('sha256')
    .update([found.mariadbd, found.version, ...installArgs].join('\0'))
    .digest('hex')
  const cacheDir = join(temporaryRoot(), `palimpsest-fresh-${process.getuid?.() ?? 0}`)
  const cached = join(cacheDir, key.slice(0, 16))
  if (!existsSync(cached)) {
    mkdirSync(cacheDir, { recursive: true, mode: 0o700 })
    const making = join(cacheDir, `making-${randomBytes(6).toString('hex')}`)
    const temporary = `${making}-tmp`
    mkdirSync(temporary)
    try {
      await execFileAsync(
        found.installDb,
        [
          '--no-defaults',
          `--datadir=${making}`,
          '--auth-root-authentication-method=normal',
          '--skip-test-db',
          // Its temporary tables must not meet those of others, nor what somebody left in /tmp.
          `--tmpdir=${temporary}`,
          ...userOptions(),
          ...installArgs,
        ],
        { maxBuffer: 16 << 20 },
      )
      // Two tests may make the same one at once; the first rename wins and both are alike.
      renameSync(making, cached)
    } catch (error) {
      rmSync(making, { recursive: true, force: true })
      if (!existsSync(cached)) throw error
    } finally {
      rmSync(temporary, { recursive: true, force: true })
    }
  }
  await copyDatadir(cached, datadir)
}

// A test process that ends in the middle must not leave its servers behind.
const running = new Set<ChildProcess>()
process.on('exit', () => {
  for (const child of running) child.kill('SIGKILL')
})

export class MariadbServer {
  readonly datadir: string
  readonly socket: string
  readonly logFile: string
  private readonly temporary: string
  private readonly options: MariadbOptions
  private readonly homeDir: string
  private child: ChildProcess | undefined
  private exited: Promise<string> = Promise.resolve('not started')
  private openPool: Pool | undefined

  private constructor(homeDir: string, datadir: string, options: MariadbOptions) {
    this.homeDir = homeDir
    this.datadir = datadir
    this.options = options
    this.socket = join(homeDir, 's')
    this.logFile = join(homeDir, 'error.log')
    this.temporary = join(homeDir, 'tmp')
    writeFileSync(this.logFile, '')
    mkdirSync(this.temporary)
  }

  /** A server on a fresh datadir, started. It is stopped and its files removed when `t` ends. */
  static async create(t: Test, options: MariadbOptions = {}): Promise<MariadbServer> {
    const homeDir = mkdtempSync(join(temporaryRoot(), 'pal-db-'))
    const server = new MariadbServer(homeDir, join(homeDir, 'data'), options)
    t.teardown(() => server.remove())
    await freshDatadir(server.datadir, options)
    await server.start()
    return server
  }

  /**
   * A server on a datadir that exists (an export, a copy), started. It is stopped when `t` ends; the
   * datadir stays.
   */
  static async open(t: Test, datadir: string, options: MariadbOptions = {}): Promise<MariadbServer> {
    const homeDir = mkdtempSync(join(temporaryRoot(), 'pal-db-'))
    const server = new MariadbServer(homeDir, datadir, options)
    t.teardown(() => server.remove())
    await server.start()
    return server
  }

  /** For use outside of a test (benchmarks, recordings): the caller calls `remove()` in the end. */
  static async createAt(datadir: string, options: MariadbOptions = {}): Promise<MariadbServer> {
    const homeDir = mkdtempSync(join(temporaryRoot(), 'pal-db-'))
    const server = new MariadbServer(homeDir, datadir, options)
    if (!existsSync(datadir)) await freshDatadir(datadir, options)
    return server
  }

  /** The server's process id. Throws if it does not run. */
  get pid(): number {
    if (this.child?.pid === undefined) throw new Error('the MariaDB server does not run')
    return this.child.pid
  }

  get isRunning(): boolean {
    return this.child !== undefined
  }

  /**
   * Starts the server and waits until it answers on its socket.
   * @param extraArgs for this start only
   * @throws with the end of its error log if it ends or does not answer in `timeoutMs`
   */
  async start(extraArgs: readonly string[] = [], timeoutMs = 120_000): Promise<void> {
    if (this.child !== undefined) throw new Error('the MariaDB server runs already')
    const args = [
      '--no-defaults',
      ...userOptions(),
      `--datadir=${this.datadir}`,
      `--socket=${this.socket}`,
      `--tmpdir=${this.temporary}`,
      `--pid-file=${join(this.homeDir, 'pid')}`,
      `--log-error=${this.logFile}`,
      ...quickOptions,
      `--innodb-page-size=${this.options.pageSizeBytes ?? 16384}`,
      `--innodb-log-file-size=${this.options.logFileSizeBytes ?? 100663296}`,
      `--innodb-buffer-pool-size=${this.options.bufferPoolBytes ?? 128 << 20}`,
      ...(this.options.installArgs ?? []),
      ...(this.options.args ?? []),
      ...extraArgs,
    ]
    const child = spawn(programs().mariadbd, args, { stdio: 'ignore', cwd: this.homeDir })
    this.child = child
    running.add(child)
    this.exited = new Promise(resolve => {
      const ended = (how: string) => {
        running.delete(child)
        if (this.child === child) this.child = undefined
        resolve(how)
      }
      child.once('error', error => ended(error.message))
      child.once('exit', (code, signal) => ended(signal === null ? `exit code ${code}` : signal))
    })
    const deadline = performance.now() + timeoutMs
    while (!(await this.answers())) {
      if (this.child !== child) {
        throw new Error(`mariadbd ended while starting (${await this.exited})\n${this.logTail()}`)
      }
      if (performance.now() > deadline) {
        await this.kill9()
        throw new Error(`mariadbd did not answer within ${timeoutMs} ms\n${this.logTail()}`)
      }
      await sleep(25)
    }
  }

  private answers(): Promise<boolean> {
    if (!existsSync(this.socket)) return Promise.resolve(false)
    return new Promise(resolve => {
      const socket = connect(this.socket)
      // The server speaks first: its greeting says that it accepts connections.
      socket.once('data', () => {
        resolve(true)
        socket.destroy()
      })
      socket.once('error', () => resolve(false))
      socket.once('close', () => resolve(false))
    })
  }

  /** Kills the server the hard way, as a power cut of the process would, and waits until it is gone. */
  async kill9(): Promise<void> {
    this.child?.kill('SIGKILL')
    await this.exited
    await this.closePool()
    rmSync(this.socket, { force: true })
  }

  /**
   * Shuts the server down cleanly, all pages written.
   * @throws with the end of its error log if it does not end properly in `timeoutMs`
   */
  async stop(timeoutMs = 120_000): Promise<void> {
    const child = this.child
    if (child === undefined) return
    await this.closePool()
    child.kill('SIGTERM')
    const timeout = new AbortController()
    const how = await Promise.race([
      this.exited,
      sleep(timeoutMs, 'timeout', { signal: timeout.signal }).catch(() => 'timeout'),
    ])
    timeout.abort()
    if (how === 'exit code 0') return
    await this.kill9()
    throw new Error(`mariadbd did not shut down cleanly (${how})\n${this.logTail()}`)
  }

  async restart(extraArgs: readonly string[] = []): Promise<void> {
    await this.stop()
    await this.start(extraArgs)
  }

  /** Ends the server, whatever its state, and removes its files; a datadir given to `open` stays. */
  async remove(): Promise<void> {
    await this.kill9()
    rmSync(this.homeDir, { recursive: true, force: true })
  }

  /** The pool behind `sql`. Integers come as number where that is exact, else as bigint. */
  get pool(): Pool {
    this.openPool ??= createPool({
      socketPath: this.socket,
      user: 'root',
      connectionLimit: this.options.connectionsMax ?? 16,
      multipleStatements: true,
      bigIntAsNumber: true,
      checkNumberRange: false,
      insertIdAsNumber: true,
      acquireTimeout: 30_000,
    })
    return this.openPool
  }

  private async closePool(): Promise<void> {
    const pool = this.openPool
    this.openPool = undefined
    // Connections to a killed server cannot say goodbye; there is nothing to learn from that.
    await pool?.end().catch(() => {})
  }

  /** Runs one statement, or several parted by `;`. @returns its rows, or the driver's summary of a change */
  async sql<Row = Record<string, unknown>>(text: string, values?: readonly unknown[]): Promise<Row[]> {
    return await this.pool.query<Row[]>(text, values === undefined ? undefined : [...values])
  }

  /** Runs `work` with a connection of its own: for transactions, `USE`, session variables. */
  async withConnection<T>(work: (connection: PoolConnection) => Promise<T>): Promise<T> {
    const connection = await this.pool.getConnection()
    try {
      return await work(connection)
    } finally {
      // Reset, so that no session state leaks into the next user of this connection.
      await connection.reset().catch(() => {})
      await connection.release()
    }
  }

  /** Feeds SQL text to the command line client, which knows DELIMITER; stops at the first error. */
  async script(text: string, database = ''): Promise<string> {
    const args = ['--no-defaults', `--socket=${this.socket}`, '--user=root', '--batch', '--comments']
    const child = execFileAsync(programs().client, database === '' ? args : [...args, database], {
      maxBuffer: 64 << 20,
    })
    // A client that stops at an error closes its end; its exit code and stderr tell why.
    child.child.stdin?.on('error', () => {})
    child.child.stdin?.end(text)
    return (await child).stdout
  }

  /** A number from SHOW GLOBAL STATUS, e.g. `Innodb_lsn_current`. */
  async status(name: string): Promise<number> {
    const [row] = await this.sql<{ Value: string }>(`SHOW GLOBAL STATUS LIKE '${name}'`)
    if (row === undefined) throw new Error(`the server has no status variable ${name}`)
    return Number(row.Value)
  }

  /** The end of the redo log: everything committed by now lies below it. */
  async currentLsn(): Promise<number> {
    return await this.status('Innodb_lsn_current')
  }

  /** The last lines of the server's error log. */
  logTail(lines = 30): string {
    return readFileSync(this.logFile, 'utf8').trimEnd().split('\n').slice(-lines).join('\n')
  }

  /**
   * mariadb-check --extended over all databases.
   * @returns the complaints, one a table; empty when all tables are sound
   */
  async checkAll(): Promise<string[]> {
    const { check } = programs()
    if (check === undefined) throw new Error('mariadb-check is not installed')
    const { stdout } = await execFileAsync(
      check,
      ['--no-defaults', `--socket=${this.socket}`, '--user=root', '--extended', '--all-databases'],
      { maxBuffer: 64 << 20 },
    ).catch(error => ({ stdout: `${error.stdout ?? ''}\nError: ${error.stderr ?? error}` }))
    return complaintsOf(stdout)
  }

  /** All of one database as SQL, the same text for the same contents. */
  async dump(database: string): Promise<string> {
    const { dump } = programs()
    if (dump === undefined) throw new Error('mariadb-dump is not installed')
    const { stdout } = await execFileAsync(
      dump,
      [
        '--no-defaults',
        `--socket=${this.socket}`,
        '--user=root',
        '--skip-comments',
        '--skip-dump-date',
        '--order-by-primary',
        '--hex-blob',
        '--routines',
        '--triggers',
        '--events',
        '--single-transaction',
        '--skip-extended-insert',
        database,
      ],
      { maxBuffer: 1 << 30 },
    )
    return stdout
  }
}

/**
 * The bad news in mariadb-check's output. Good tables have one line `db.table   OK`; others a line with
 * the name and lines `error : …`, `warning : …`, `note : …`, `status : …` below.
 */
export function complaintsOf(output: string): string[] {
  const complaints: string[] = []
  let table = ''
  for (const line of output.split('\n')) {
    if (/\sOK$/.test(line) || line.trim() === '') continue
    const detail = /^(error|warning|note|status|info)\s*:\s*(.*)$/i.exec(line)
    if (detail === null) {
      table = line.trim()
      if (/^error:/i.test(table)) complaints.push(table)
    } else if (/error|warning/i.test(detail[1]!)) complaints.push(`${table}: ${detail[2]}`)
    else if (/status/i.test(detail[1]!) && detail[2] !== 'OK') complaints.push(`${table}: ${detail[2]}`)
  }
  return complaints
}
