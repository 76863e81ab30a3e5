// Redo ingest against InnoDB's own crash recovery of the same log, on the same machine.
//
// InnoDB: start mariadbd on a copy of the base with the whole log in front of it; from that, take the time of a start
// of the same server without anything to recover. Palimpsest: import the base with the log beyond it, until the server
// says that all of it is durable; from that, take the time of importing the base alone.
import { mkdirSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { copyDatadir, MariadbServer } from '../test/support/mariadb.ts'
import { palimpsest, startCluster, stopCluster } from './cluster.ts'
import { type Dataset, dataset, serverOptions } from './dataset.ts'
import { type Benchmark, note, Report, runIfMain, wholeNumber } from './harness.ts'

const recoveryName = 'InnoDB crash recovery'
const ingestName = 'Palimpsest ingest'

/** Runs `work` and gives its seconds. */
async function timed(work: () => Promise<unknown>): Promise<number> {
  const from = performance.now()
  await work()
  return (performance.now() - from) / 1000
}

type Recovery = { seconds: number; startWith: number; startWithout: number; log: string }

/** Times mariadbd's start with and without the log to recover. */
export async function timeRecovery(data: Dataset, redoMegabytes: number, scratch: string): Promise<Recovery> {
  const datadir = join(scratch, 'recovery')
  await copyDatadir(data.baseDatadir, datadir)
  rmSync(join(datadir, 'ib_logfile0'))
  await copyDatadir(data.logFile, join(datadir, 'ib_logfile0'))
  const server = await MariadbServer.createAt(datadir, serverOptions(redoMegabytes))
  try {
    const startWith = await timed(() => server.start([], 1_800_000))
    const log = server.logTail(200)
    if (!/crash recovery/.test(log)) throw new Error(`mariadbd recovered nothing\n${log}`)
    await server.stop(600_000)
    const startWithout = await timed(() => server.start())
    await server.stop(600_000)
    return { seconds: startWith - startWithout, startWith, startWithout, log }
  } finally {
    await server.remove()
    rmSync(datadir, { recursive: true, force: true })
  }
}

/** Times our ingest of the same log on the same base. */
export async function timeIngest(
  data: Dataset,
  scratch: string,
  devOptions: readonly string[],
): Promise<{ seconds: number; importWith: number; importWithout: number }> {
  const cluster = await startCluster(join(scratch, 'cluster'), devOptions)
  const load = (timeline: string, ...more: string[]): Promise<number> =>
    timed(() =>
      palimpsest([
        'import',
        '--connect',
        cluster.address,
        '--datadir',
        data.baseDatadir,
        '--timeline',
        timeline,
        ...more,
      ]),
    )
  try {
    const importWithout = await load('base')
    const importWith = await load('all', '--redo', data.logFile)
    return { seconds: importWith - importWithout, importWith, importWithout }
  } finally {
    await stopCluster(cluster)
  }
}

export const benchmark: Benchmark = {
  summary:
    "Redo ingest (parse, verify, index, durable) against InnoDB's crash recovery of the same sysbench log.",
  help: [
    '  --megabytes N  redo to record, once, under .palimpsest/bench/ (400)',
    '  --runs N       how often both take turns; the best counts (2)',
    '  --memory SIZE  memory of the page server (its default)',
    '  --only WHICH   innodb or palimpsest',
  ].join('\n'),
  options: {
    megabytes: { type: 'string' },
    runs: { type: 'string' },
    memory: { type: 'string' },
    only: { type: 'string' },
  },
  async run(values) {
    const megabytes = wholeNumber(values['megabytes'], 400, 'megabytes', 10)
    const runs = wholeNumber(values['runs'], 2, 'runs')
    const only = values['only']
    const devOptions = typeof values['memory'] === 'string' ? ['--memory', values['memory']] : []
    const data = await dataset(megabytes)
    const report = new Report({
      title: `Ingest of ${(data.redoBytes / 1e6).toFixed(0)} MB of sysbench redo`,
      unit: 'MB/s',
      references: [{ subject: recoveryName, heading: 'InnoDB recovery' }],
    })
    const group = 'whole log'
    const scratch = mkdtempSync(join(tmpdir(), 'pal-bench-'))
    try {
      const add = (
        subject: string,
        { seconds, ...extra }: { seconds: number } & Record<string, number>,
      ): void =>
        report.add({
          group,
          subject,
          perSecond: data.redoBytes / 1e6 / seconds,
          extra: { seconds, ...extra },
        })
      for (let run = 0; run < runs; run++) {
        if (only !== 'palimpsest') {
          note(`${recoveryName}…`)
          const { log, ...times } = await timeRecovery(data, megabytes, scratch)
          for (const line of log.split('\n'))
            if (/LSN|To recover|log sequence number/.test(line)) note(`  ${line}`)
          add(recoveryName, times)
        }
        if (only !== 'innodb') {
          note(`${ingestName}…`)
          const place = join(scratch, `run${run}`)
          mkdirSync(place)
          add(ingestName, await timeIngest(data, place, devOptions))
          rmSync(place, { recursive: true, force: true })
        }
      }
    } finally {
      rmSync(scratch, { recursive: true, force: true })
    }
    return report
  },
}

await runIfMain(import.meta.url, benchmark)
