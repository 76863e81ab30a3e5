// The log that the benchmarks work on: a datadir at a checkpoint and the redo of a sysbench run from there on. It is
// made once by the machine's own MariaDB and kept under .palimpsest/bench/.
import {
  closeSync,
  existsSync,
  mkdirSync,
  openSync,
  readFileSync,
  readSync,
  renameSync,
  rmSync,
  writeFileSync,
  writeSync,
} from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { copyDatadir, MariadbServer, mariadb } from '../test/support/mariadb.ts'
import { sysbenchPrepare, sysbenchRun, sysbenchSkip } from '../test/support/workloads/sysbench.ts'
import { note } from './harness.ts'

/** Bytes of a log file before its records. */
const logHeaderBytes = 0x3000

export type Dataset = {
  /** Cleanly shut down datadir whose last checkpoint the redo follows. Its ib_logfile0 ends there. */
  baseDatadir: string
  /**
   * ib_logfile0 at the end, nothing in it overwritten, its checkpoint blocks still those of the base: on a copy of
   * the base it makes a server recover all of it.
   */
  logFile: string
  /** Redo from the checkpoint to the end. */
  redoBytes: number
}

/** What the server runs with: a ring that is never full, so that the whole run stays in it. */
export function serverOptions(redoMegabytes: number): {
  logFileSizeBytes: number
  bufferPoolBytes: number
  args: string[]
} {
  return {
    logFileSizeBytes: Math.ceil((redoMegabytes * 3 + 256) / 4) * 4 * (1 << 20),
    bufferPoolBytes: 1 << 30,
    args: ['--innodb-flush-log-at-trx-commit=2'],
  }
}

/**
 * @param redoMegabytes about how much redo
 * @param root the checkout, or wherever .palimpsest/bench/ shall lie
 * @throws where MariaDB or sysbench is missing
 */
export async function dataset(
  redoMegabytes: number,
  root = fileURLToPath(new URL('..', import.meta.url)),
): Promise<Dataset> {
  const found = mariadb()
  if (!found.ok) throw new Error(`this benchmark needs MariaDB: ${found.reason}`)
  const missing = sysbenchSkip()
  if (missing !== false) throw new Error(`this benchmark needs sysbench: ${missing}`)

  const dir = join(root, '.palimpsest', 'bench', `sysbench-${redoMegabytes}mb-${found.version}`)
  if (!existsSync(dir)) {
    mkdirSync(join(root, '.palimpsest', 'bench'), { recursive: true })
    const making = `${dir}.making-${process.pid}`
    try {
      mkdirSync(making)
      await record(making, redoMegabytes)
      renameSync(making, dir)
    } finally {
      rmSync(making, { recursive: true, force: true })
    }
  }
  const { redoBytes } = JSON.parse(readFileSync(join(dir, 'dataset.json'), 'utf8')) as { redoBytes: number }
  return { baseDatadir: join(dir, 'base'), logFile: join(dir, 'ib_logfile0'), redoBytes }
}

async function record(dir: string, redoMegabytes: number): Promise<void> {
  note(`recording about ${redoMegabytes} MB of redo from sysbench (once; kept under .palimpsest/bench/)…`)
  const live = join(dir, 'live')
  const base = join(dir, 'base')
  const server = await MariadbServer.createAt(live, serverOptions(redoMegabytes))
  try {
    // One start and clean stop, so that the base has just the settings of the run.
    await server.start()
    await server.sql('CREATE DATABASE sbtest')
    await server.stop()
    await copyDatadir(live, base)
    await server.start()
    const from = await server.currentLsn()
    const until = from + redoMegabytes * 1e6
    // Half of it from filling the tables (a row is about 600 bytes of redo), half from updates.
    const tables = 4
    const options = { tables, rowsPerTable: Math.round((redoMegabytes * 1e6) / 2 / 600 / tables), threads: 4 }
    await sysbenchPrepare(server, options)
    while ((await server.currentLsn()) < until) await sysbenchRun(server, options, { seconds: 2 })
    // Make the end of the log durable, then end without the pages.
    await server.sql('SET GLOBAL innodb_flush_log_at_trx_commit = 1')
    await server.sql('CREATE TABLE sbtest.last (a INT) ENGINE=InnoDB')
    const redoBytes = (await server.currentLsn()) - from
    await server.kill9()
    await copyDatadir(join(live, 'ib_logfile0'), join(dir, 'ib_logfile0'))
    overwriteStart(join(base, 'ib_logfile0'), join(dir, 'ib_logfile0'))
    writeFileSync(join(dir, 'dataset.json'), JSON.stringify({ redoBytes }))
    rmSync(live, { recursive: true, force: true })
  } finally {
    await server.remove()
  }
}

/** Puts the header and checkpoint blocks of one log file into another of the same geometry. */
function overwriteStart(from: string, to: string): void {
  const header = Buffer.alloc(logHeaderBytes)
  const source = openSync(from, 'r')
  const target = openSync(to, 'r+')
  try {
    readSync(source, header, 0, logHeaderBytes, 0)
    const kept = Buffer.alloc(16)
    readSync(target, kept, 0, 16, 0)
    if (!kept.equals(header.subarray(0, 16))) throw new Error(`${to} was resized while it was recorded`)
    writeSync(target, header, 0, logHeaderBytes, 0)
  } finally {
    closeSync(source)
    closeSync(target)
  }
}
