// The page server's ingestion alone: a safekeeper holds the whole log before the clock starts, as InnoDB's recovery finds it
// whole on the disk. From the moment the page server is told of the timeline it takes the log over TCP, verifies every
// checksum and record, indexes it by page, and is done when all of it is in layers that its manifest lists.
import { closeSync, mkdirSync, mkdtempSync, openSync, readFileSync, readSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { LOG_START_OFFSET, parseLogFileHead } from '../parser/log-file.ts'
import { MtrScanner, ScanResult } from '../parser/mtr-scanner.ts'
import { Connection } from '../protocol/connection.ts'
import type { Lsn, TimelineId, WriterEpoch } from '../protocol/ids.ts'
import {
  type Checkpoint,
  MessageType,
  type TimelineCreate,
  type WaitLsn,
  type WalAppend,
} from '../protocol/messages.ts'
import { dataset } from './dataset.ts'
import { type Benchmark, endChild, note, Report, runIfMain, startChild, wholeNumber } from './harness.ts'
import { timeRecovery } from './recovery.ts'

const bin = fileURLToPath(new URL('../bin/palimpsest.js', import.meta.url))
const CHUNK_BYTES = 1 << 20
/** USER_HZ: the same on every Linux that Node.js has packages for. */
const TICKS_PER_SECOND = 100
const INGEST = 'Palimpsest page server'
const RECOVERY = 'InnoDB crash recovery'

async function server(args: readonly string[]) {
  const { child, match } = await startChild(
    bin,
    [...args, '--listen', '127.0.0.1:0', '--log-level', 'error'],
    /^ready (\S+)$/,
  )
  const address = match[1]!
  const connection = await Connection.connect({
    host: '127.0.0.1',
    port: Number(address.split(':')[1]),
    deadlineMs: 600_000,
  })
  return { child, address, connection }
}

/** Appends the redo of an ib_logfile0 that never wrapped, from its checkpoint on. Returns where it begins and ends. */
async function fill(
  safekeeper: Connection,
  timeline: TimelineId,
  name: string,
  logFile: string,
): Promise<{ begin: Lsn; end: Lsn }> {
  const fd = openSync(logFile, 'r')
  try {
    const head = Buffer.alloc(LOG_START_OFFSET)
    readSync(fd, head, 0, head.length, 0)
    const { firstLsn, checkpoint } = parseLogFileHead(head)
    if (checkpoint === undefined) throw new Error(`${logFile} has no valid checkpoint`)
    const begin = checkpoint.checkpointLsn
    await safekeeper.request({
      type: MessageType.WalCreate,
      timeline,
      startLsn: begin,
      name,
    })
    const opened = await safekeeper.request({
      type: MessageType.WalOpen,
      timeline,
      writer: 'bench',
    })
    const epoch = (opened.message as { epoch: WriterEpoch }).epoch
    const scanner = new MtrScanner()
    const buffer = Buffer.alloc(5 << 20)
    let lsn = begin
    let last: Promise<unknown> = Promise.resolve()
    for (;;) {
      const got = readSync(fd, buffer, 0, buffer.length, LOG_START_OFFSET + (lsn - firstLsn))
      let end = 0
      while (
        end < CHUNK_BYTES &&
        scanner.scan(buffer, end, got, (lsn + end) as Lsn, null) === ScanResult.COMPLETE
      )
        end = scanner.mtrEnd
      if (end === 0) break
      const append: WalAppend = {
        type: MessageType.WalAppend,
        timeline,
        epoch,
        beginLsn: lsn,
        wallTimeUs: Date.now() * 1000,
      }
      last = safekeeper.request(append, { bulk: Buffer.from(buffer.subarray(0, end)) })
      if ((lsn - begin) % (16 * CHUNK_BYTES) < CHUNK_BYTES) await last
      lsn = (lsn + end) as Lsn
    }
    await last
    return { begin, end: lsn }
  } finally {
    closeSync(fd)
  }
}

/**
 * Seconds from a timeline's creation until all of its log is durable in layers, summed over `timelines` of them that one
 * page server takes one after the other, each with the same log.
 */
export async function timePageServer(
  logFile: string,
  scratch: string,
  options: readonly string[],
  timelines = 1,
): Promise<{ seconds: number; redoBytes: number; rssPeakMiB: number; cpu: CpuPerGigabyte }> {
  mkdirSync(scratch, { recursive: true })
  const safekeeper = await server(['safekeeper', '--data', join(scratch, 'safekeeper')])
  try {
    const store = join(scratch, 'pageserver')
    const pageServer = await server([
      'pageserver',
      '--data',
      store,
      '--safekeepers',
      safekeeper.address,
      ...options,
    ])
    try {
      let seconds = 0
      let redoBytes = 0
      const cpu = { pageServer: 0, safekeeper: 0 }
      for (let i = 0; i < timelines; i++) {
        const timeline = (i + 1).toString(16).padStart(32, 'be') as TimelineId
        const name = `bench-${i}`
        const { begin, end } = await fill(safekeeper.connection, timeline, name, logFile)
        const before = [cpuSeconds(pageServer.child.pid!), cpuSeconds(safekeeper.child.pid!)] as const
        seconds += await timeTimeline(pageServer.connection, timeline, name, begin, end)
        cpu.pageServer += cpuSeconds(pageServer.child.pid!) - before[0]
        cpu.safekeeper += cpuSeconds(safekeeper.child.pid!) - before[1]
        redoBytes += end - begin
      }
      cpu.pageServer /= redoBytes / 1e9
      cpu.safekeeper /= redoBytes / 1e9
      return { seconds, redoBytes, rssPeakMiB: peakMemory(pageServer.child.pid!), cpu }
    } finally {
      pageServer.connection.close()
      await endChild(pageServer.child)
    }
  } finally {
    safekeeper.connection.close()
    await endChild(safekeeper.child)
    rmSync(scratch, { recursive: true, force: true })
  }
}

async function timeTimeline(
  pageServer: Connection,
  timeline: TimelineId,
  name: string,
  begin: Lsn,
  end: Lsn,
): Promise<number> {
  const create: TimelineCreate = {
    type: MessageType.TimelineCreate,
    timeline,
    startLsn: begin,
    innodbPageSize: 16384,
    name,
    serverVersion: '',
  }
  const wait: WaitLsn = { type: MessageType.WaitLsn, timeline, lsn: end, timeoutMs: 600_000 }
  const checkpoint: Checkpoint = { type: MessageType.Checkpoint, timeline }
  const from = performance.now()
  await pageServer.request(create)
  await pageServer.request(wait)
  const { durableLsn } = (await pageServer.request(checkpoint)).message
  if (durableLsn < end) throw new Error(`durable is only LSN ${durableLsn} of ${end}`)
  return (performance.now() - from) / 1000
}

/** Processor seconds that each side took for a GB of redo: far steadier than wall time on a machine with neighbours. */
export interface CpuPerGigabyte {
  pageServer: number
  safekeeper: number
}

/** Processor time of a process until now, all its threads, in seconds; 0 where the system does not tell (not Linux). */
function cpuSeconds(pid: number): number {
  try {
    const text = readFileSync(`/proc/${pid}/stat`, 'latin1')
    // Fields 14 and 15, user and system; the second is the name in parentheses, which may hold anything.
    const fields = text.slice(text.lastIndexOf(')') + 2).split(' ')
    return (Number(fields[11]) + Number(fields[12])) / TICKS_PER_SECOND
  } catch {
    return 0
  }
}

/** Largest resident size of a process in MiB, where the system tells (Linux); else 0. */
function peakMemory(pid: number): number {
  try {
    const text = Buffer.alloc(8192)
    const fd = openSync(`/proc/${pid}/status`, 'r')
    const length = readSync(fd, text)
    closeSync(fd)
    const match = /VmHWM:\s+(\d+) kB/.exec(text.toString('latin1', 0, length))
    return match === null ? 0 : Math.round(Number(match[1]) / 1024)
  } catch {
    return 0
  }
}

export const benchmark: Benchmark = {
  summary:
    "Redo ingest by the page server alone, out of a safekeeper that holds the log, against InnoDB's recovery.",
  help: [
    '  --megabytes N  redo to record, once, under .palimpsest/bench/ (400)',
    '  --redo FILE    use this ib_logfile0 (which never wrapped), without a reference',
    '  --runs N       how often both take turns; the best counts (2)',
    '  --memory SIZE  memory of the page server (its default)',
    '  --timelines N  how many timelines one page server takes one after the other, each with this log (1)',
  ].join('\n'),
  options: {
    megabytes: { type: 'string' },
    redo: { type: 'string' },
    runs: { type: 'string' },
    memory: { type: 'string' },
    timelines: { type: 'string' },
  },
  async run(values) {
    const megabytes = wholeNumber(values['megabytes'], 400, 'megabytes', 10)
    const runs = wholeNumber(values['runs'], 2, 'runs')
    const timelines = wholeNumber(values['timelines'], 1, 'timelines')
    const options = typeof values['memory'] === 'string' ? ['--memory', values['memory']] : []
    const given = values['redo']
    const data = typeof given === 'string' ? undefined : await dataset(megabytes)
    const logFile = data?.logFile ?? String(given)
    const report = new Report({
      title: 'Ingest of sysbench redo by the page server',
      unit: 'MB/s',
      references: [{ subject: RECOVERY, heading: 'InnoDB recovery' }],
    })
    const scratch = mkdtempSync(join(tmpdir(), 'pal-ingest-'))
    try {
      for (let run = 0; run < runs; run++) {
        if (data !== undefined) {
          note(`${RECOVERY}…`)
          const { seconds } = await timeRecovery(data, megabytes, scratch)
          report.add({ group: 'whole log', subject: RECOVERY, perSecond: data.redoBytes / 1e6 / seconds })
        }
        note(`${INGEST}…`)
        const { seconds, redoBytes, rssPeakMiB, cpu } = await timePageServer(
          logFile,
          join(scratch, `run${run}`),
          options,
          timelines,
        )
        note(
          `${Math.round(redoBytes / 1e6)} MB of redo; the page server took at most ${rssPeakMiB} MiB of memory; ` +
            `processor seconds a GB: ${cpu.pageServer.toFixed(2)} page server, ${cpu.safekeeper.toFixed(2)} safekeeper`,
        )
        report.add({
          group: 'whole log',
          subject: INGEST,
          perSecond: redoBytes / 1e6 / seconds,
          extra: {
            seconds,
            redoMegabytes: Math.round(redoBytes / 1e6),
            rssPeakMiB,
            cpuSecondsPerGbPageServer: cpu.pageServer,
            cpuSecondsPerGbSafekeeper: cpu.safekeeper,
          },
        })
      }
    } finally {
      rmSync(scratch, { recursive: true, force: true })
    }
    return report
  },
}

await runIfMain(import.meta.url, benchmark)
