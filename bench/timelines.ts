// Many timelines on one cell of safekeepers: what each costs to make, to keep, to write to and to start again with.
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync } from 'node:fs'
import { join, resolve } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import Table from 'cli-table3'
import { Connection } from '../protocol/connection.ts'
import type { Lsn, WriterEpoch } from '../protocol/ids.ts'
import { MessageType } from '../protocol/messages.ts'
import { CellState } from '../server/safekeeper/cell-state.ts'
import { cpuMs, histogram, payloads } from './append/closed-loop.ts'
import { START_LSN, startCell, timelineId } from './append/safekeepers.ts'
import { type Benchmark, endChild, machine, note, runIfMain, UsageError, wholeNumber } from './harness.ts'

const APPEND_BYTES = 4096
const IDLE_SECONDS = 5
const SPREAD_APPENDS_MIN = 20_000

interface Open {
  readonly epoch: WriterEpoch
  lsn: Lsn
}

interface Row {
  readonly what: string
  readonly value: number
  readonly unit: string
}

/** Runs `step(0)` to `step(count - 1)`, so many at a time. @returns seconds, and the median and 99th percentile of one in ms */
async function each(
  count: number,
  atOnce: number,
  step: (i: number) => Promise<void>,
): Promise<{ seconds: number; p50: number; p99: number }> {
  const latencies = histogram()
  const begun = performance.now()
  let next = 0
  const lane = async (): Promise<void> => {
    while (next < count) {
      const sent = performance.now()
      await step(next++)
      latencies.recordValue(Math.max(1, Math.round((performance.now() - sent) * 1000)))
    }
  }
  await Promise.all(Array.from({ length: atOnce }, lane))
  return {
    seconds: (performance.now() - begun) / 1000,
    p50: latencies.getValueAtPercentile(50) / 1000,
    p99: latencies.getValueAtPercentile(99) / 1000,
  }
}

/** Memory of a process that is its own, in MB; of the largest of them. */
function residentMb(pids: readonly number[]): number {
  const all = pids.map(pid => {
    const line = /^VmRSS:\s+(\d+) kB/m.exec(readFileSync(`/proc/${pid}/status`, 'latin1'))
    return Number(line?.[1] ?? Number.NaN) * 1024
  })
  return Math.max(...all) / 1e6
}

/** The newest snapshot of a node: its JSON, without the line of its CRC. */
function newestSnapshot(dir: string): Buffer | undefined {
  const names = readdirSync(dir).filter(name => /^snapshot-\d+\.json$/.test(name))
  const newest = names.sort((a, b) => Number(a.replace(/\D/g, '')) - Number(b.replace(/\D/g, ''))).at(-1)
  if (newest === undefined) return undefined
  const bytes = readFileSync(join(dir, newest))
  return bytes.subarray(0, bytes.indexOf(0x0a))
}

function logBytes(dir: string): number {
  let bytes = 0
  for (const name of readdirSync(join(dir, 'log'))) bytes += statSync(join(dir, 'log', name)).blocks * 512
  return bytes
}

async function measure(dir: string, nodes: number, count: number, atOnce: number): Promise<Row[]> {
  const rows: Row[] = []
  const add = (what: string, value: number, unit: string): void => {
    rows.push({ what, value, unit })
    note(`${what}: ${text(value)} ${unit}`)
  }
  const begun = performance.now()
  let cell = await startCell(dir, nodes)
  add('first start, until a leader takes a timeline', (performance.now() - begun) / 1000, 's')
  const pids = (): number[] => cell.children.map(child => child.pid!)
  let connection = await Connection.connect({ host: '127.0.0.1', port: cell.leader, deadlineMs: 60_000 })
  const before = residentMb(pids())
  add('memory of a node without timelines (largest)', before, 'MB')

  const created = await each(count, atOnce, async i => {
    const message = { timeline: timelineId(i + 1), startLsn: START_LSN, name: `t${i}` }
    await connection.request({ type: MessageType.WalCreate, ...message })
  })
  add(`created, ${atOnce} at a time`, count / created.seconds, 'timelines/s')
  add('… one of them, median', created.p50, 'ms')

  const open: Open[] = []
  const opened = await each(count, atOnce, async i => {
    const { message } = await connection.request({
      type: MessageType.WalOpen,
      timeline: timelineId(i + 1),
      writer: 'bench',
    })
    open[i] = { epoch: message.epoch, lsn: message.endLsn }
  })
  add(`opened by a writer, ${atOnce} at a time`, count / opened.seconds, 'timelines/s')

  const payload = payloads().subarray(0, APPEND_BYTES)
  const append = async (i: number): Promise<void> => {
    const { epoch, lsn } = open[i]!
    open[i]!.lsn = (lsn + APPEND_BYTES) as Lsn
    await connection.request(
      { type: MessageType.WalAppend, timeline: timelineId(i + 1), epoch, beginLsn: lsn, wallTimeUs: 0 },
      { bulk: payload },
    )
  }
  const turns = Math.min(count, 2000)
  const oneOfThem = await each(turns, 1, () => append(0))
  add('append of 4 KiB to one of them, one at a time, median', oneOfThem.p50, 'ms')
  add('… 99th percentile', oneOfThem.p99, 'ms')
  const inTurn = await each(turns, 1, append)
  add('append of 4 KiB to each in turn, one at a time, median', inTurn.p50, 'ms')
  add('… 99th percentile', inTurn.p99, 'ms')
  const cpuBefore = cpuMs(pids())
  // Enough for a snapshot to be due.
  const many = Math.max(count, SPREAD_APPENDS_MIN)
  const spread = await each(many, atOnce, i => append(i % count))
  add(`append of 4 KiB to all in turn, ${atOnce} at a time`, many / spread.seconds, 'appends/s')
  const cpuAfter = cpuMs(pids())
  if (cpuBefore !== undefined && cpuAfter !== undefined)
    add('… processor time of all nodes for one', ((cpuAfter - cpuBefore) * 1000) / many, 'µs')
  const after = residentMb(pids())
  add('memory of a node with them (largest)', after, 'MB')

  const idleBefore = cpuMs(pids())
  await sleep(IDLE_SECONDS * 1000)
  const idleAfter = cpuMs(pids())
  if (idleBefore !== undefined && idleAfter !== undefined)
    add('idle: processor time of a node', (idleAfter - idleBefore) / (IDLE_SECONDS * 10) / nodes, '%')

  connection.close()
  const stopping = performance.now()
  await Promise.all(cell.children.map(endChild))
  add('stop of all nodes', (performance.now() - stopping) / 1000, 's')
  add('log of a node, raw segments and spares in full', logBytes(join(dir, 'n0')) / 1e6, 'MB')
  const snapshot = newestSnapshot(join(dir, 'n0'))
  if (snapshot !== undefined) {
    add('snapshot', snapshot.length / 1e6, 'MB')
    const reading = performance.now()
    const state = CellState.decode(snapshot)
    add('… read into a state', performance.now() - reading, 'ms')
    const making = performance.now()
    state.encode()
    add('… made from a state', performance.now() - making, 'ms')
  }

  const starting = performance.now()
  cell = await startCell(
    dir,
    nodes,
    cell.safekeepers.map(({ port }) => port),
  )
  connection = await Connection.connect({ host: '127.0.0.1', port: cell.leader, deadlineMs: 60_000 })
  const replies = await connection.requestAll({ type: MessageType.WalList })
  add('start again, until the leader lists all', (performance.now() - starting) / 1000, 's')
  const listed = replies.reduce((sum, { message }) => sum + message.timelines.length, 0)
  // One more is how the leader was found.
  if (listed !== count + 1) throw new Error(`${listed} timelines after the start, ${count + 1} were made`)
  add('memory of a node after the start (largest)', residentMb(pids()), 'MB')
  connection.close()
  await Promise.all(cell.children.map(endChild))
  return rows
}

function text(value: number): string {
  return value >= 100 ? Math.round(value).toLocaleString('en-GB') : value.toFixed(value >= 10 ? 1 : 2)
}

export const benchmark: Benchmark = {
  summary: 'Many timelines on one cell of safekeepers: time, memory, idle cost, snapshots, restart.',
  help: `  --count N         timelines (10000)
  --nodes N         safekeepers (3)
  --at-once N       requests in flight where several are (64)
  --dir DIR         where the safekeepers keep their files (.palimpsest/bench/timelines)`,
  options: {
    count: { type: 'string' },
    nodes: { type: 'string' },
    'at-once': { type: 'string' },
    dir: { type: 'string' },
  },
  async run(values) {
    const count = wholeNumber(values['count'], 10_000, 'count')
    const nodes = wholeNumber(values['nodes'], 3, 'nodes')
    if (nodes % 2 === 0 || nodes > 7) throw new UsageError('--nodes must be 1, 3, 5 or 7')
    const atOnce = wholeNumber(values['at-once'], 64, 'at-once')
    const parent = resolve(typeof values['dir'] === 'string' ? values['dir'] : '.palimpsest/bench/timelines')
    mkdirSync(parent, { recursive: true })
    const dir = mkdtempSync(join(parent, 'run-'))
    try {
      const rows = await measure(dir, nodes, count, atOnce)
      const title = `${count.toLocaleString('en-GB')} timelines on a cell of ${nodes}`
      if (values['json'] === true) {
        process.stdout.write(
          `${JSON.stringify({ title, machine: machine(), date: new Date().toISOString(), results: rows })}\n`,
        )
        return undefined
      }
      const table = new Table({
        colAligns: ['left', 'right', 'left'],
        style: { head: [], border: [], compact: true },
      })
      for (const { what, value, unit } of rows) table.push([what, text(value), unit])
      process.stdout.write(`${title}\n${table.toString()}\n`)
      return undefined
    } finally {
      rmSync(dir, { recursive: true, force: true })
    }
  },
}

await runIfMain(import.meta.url, benchmark)
