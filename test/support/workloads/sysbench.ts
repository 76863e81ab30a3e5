// sysbench's OLTP workloads against a private server.
import { execFile } from 'node:child_process'
import { promisify } from 'node:util'
import { findProgram } from '../../../scripts/lib/mariadb.js'
import type { MariadbServer } from '../mariadb.ts'

const execFileAsync = promisify(execFile)

export type SysbenchOptions = {
  /** Lua script, default `oltp_write_only`. */
  test?: string
  tables: number
  rowsPerTable: number
  threads: number
  /** Default `sbtest`; made if it is not there. */
  database?: string
}

export type SysbenchResult = { transactions: number; transactionsPerSecond: number; latencyMsP95: number }

/** For tap's `skip` option: false where sysbench is installed. */
export function sysbenchSkip(): false | string {
  return findProgram(['sysbench']) === undefined ? 'sysbench is not installed' : false
}

async function sysbench(server: MariadbServer, options: SysbenchOptions, args: string[]): Promise<string> {
  const program = findProgram(['sysbench'])
  if (program === undefined) throw new Error('sysbench is not installed')
  const common = [
    options.test ?? 'oltp_write_only',
    '--db-driver=mysql',
    `--mysql-socket=${server.socket}`,
    '--mysql-user=root',
    `--mysql-db=${options.database ?? 'sbtest'}`,
    `--tables=${options.tables}`,
    `--table-size=${options.rowsPerTable}`,
    `--threads=${options.threads}`,
  ]
  const { stdout } = await execFileAsync(program, [...common, ...args], { maxBuffer: 64 << 20 })
  return stdout
}

/** Creates and fills the tables. */
export async function sysbenchPrepare(server: MariadbServer, options: SysbenchOptions): Promise<void> {
  await server.sql(`CREATE DATABASE IF NOT EXISTS ${options.database ?? 'sbtest'}`)
  await sysbench(server, options, ['prepare'])
}

/** Runs for `seconds`, or for `events` transactions where that is given. */
export async function sysbenchRun(
  server: MariadbServer,
  options: SysbenchOptions,
  length: { seconds: number } | { events: number },
): Promise<SysbenchResult> {
  const args = 'seconds' in length ? [`--time=${length.seconds}`] : ['--time=0', `--events=${length.events}`]
  const output = await sysbench(server, options, [...args, 'run'])
  const transactions = /transactions:\s+(\d+)\s+\(([\d.]+) per sec/.exec(output)
  if (transactions === null) throw new Error(`sysbench printed no transactions:\n${output}`)
  return {
    transactions: Number(transactions[1]),
    transactionsPerSecond: Number(transactions[2]),
    latencyMsP95: Number(/95th percentile:\s+([\d.]+)/.exec(output)?.[1] ?? Number.NaN),
  }
}
