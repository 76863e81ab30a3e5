// Durable appends: safekeepers, each a process of its own, against what the same disk can do at all, and against etcd.
import { mkdirSync, mkdtempSync, rmSync } from 'node:fs'
import { join, resolve } from 'node:path'
import { type AppendTarget, drive, type Load, type Measured } from './append/closed-loop.ts'
import { bestGroup, oneEach, type Space } from './append/disk.ts'
import { findEtcd, HOW_TO_GET_ETCD, startEtcd } from './append/etcd.ts'
import { SHARED, startSafekeepers } from './append/safekeepers.ts'
import { type Benchmark, note, Report, runIfMain, UsageError, wholeNumber } from './harness.ts'

const ONE_EACH = 'disk, a sync for each append'

function bestGroupName(space: Space, files: number): string {
  const where = space === 'new' ? 'new space' : 'the same space again'
  return `disk, best group, ${where}${files === 1 ? '' : `, ${files} files at once`}`
}

function groupName({ writers, appendBytes, depth }: Load): string {
  const size = appendBytes % 1024 === 0 ? `${appendBytes / 1024} KiB` : `${appendBytes} B`
  return `${writers} writer${writers === 1 ? '' : 's'}, ${size}${depth > 1 ? `, ${depth} in flight each` : ''}`
}

function add(report: Report, load: Load, subject: string, result: Measured, group?: number): void {
  report.add({
    group: groupName(load),
    subject,
    perSecond: result.megabytesPerSecond,
    latencyUsP50: result.latencyUsP50,
    latencyUsP95: result.latencyUsP95,
    latencyUsP99: result.latencyUsP99,
    extra: {
      appendsPerSecond: Math.round(result.appendsPerSecond),
      ...(result.cpuUsPerAppend !== undefined && { cpuUsPerAppend: Math.round(result.cpuUsPerAppend) }),
      ...(group === undefined ? {} : { appendsPerSync: group }),
    },
  })
}

/** Drives a load against processes that were started for it. */
async function measure(
  report: Report,
  load: Load,
  scratch: string,
  start: (dir: string) => Promise<AppendTarget>,
): Promise<void> {
  const dir = mkdtempSync(join(scratch, 'nodes-'))
  const target = await start(dir)
  try {
    note(`${target.name}: ${groupName(load)}…`)
    add(report, load, target.name, await drive(target, load))
  } finally {
    await target.close()
    rmSync(dir, { recursive: true, force: true })
  }
}

async function measureDisk(report: Report, load: Load, scratch: string, nodes: number): Promise<void> {
  const { appendBytes, seconds } = load
  note(`disk: ${groupName(load)}…`)
  add(report, load, ONE_EACH, await oneEach(scratch, appendBytes, Math.min(2, seconds)), 1)
  const inFlight = load.writers * load.depth
  const ways: [Space, number][] = [
    ['again', 1],
    ['new', 1],
  ]
  if (nodes > 1) ways.push(['new', nodes])
  for (const [space, files] of ways) {
    const best = await bestGroup(scratch, space, files, appendBytes, inFlight, seconds)
    add(report, load, bestGroupName(space, files), best, best.group)
  }
}

function list(value: string | boolean | undefined, standard: readonly number[], name: string): number[] {
  if (typeof value !== 'string') return [...standard]
  return value.split(',').map(item => wholeNumber(item, 0, name))
}

export const benchmark: Benchmark = {
  summary: "Durable appends to safekeepers, against the same disk's fdatasync and against etcd.",
  help: `  --nodes N         safekeepers, and processes of etcd (3)
  --writers N,…     writers at once; each waits for its append before the next (1,8,64)
  --append-bytes N,…  sizes of an append (4096,262144)
  --depth N         appends in flight for each writer (1)
  --seconds N       length of each measurement (4)
  --rounds N        measure all of it so often, and keep the best of each (1)
  --dir DIR         where all of them keep their files: the disk that is measured (.palimpsest/bench/append)
  --no-etcd         leave etcd out
  --only-disk       measure the disk alone`,
  options: {
    nodes: { type: 'string' },
    writers: { type: 'string' },
    'append-bytes': { type: 'string' },
    depth: { type: 'string' },
    seconds: { type: 'string' },
    rounds: { type: 'string' },
    dir: { type: 'string' },
    'no-etcd': { type: 'boolean' },
    'only-disk': { type: 'boolean' },
  },
  async run(values) {
    const nodes = wholeNumber(values['nodes'], 3, 'nodes')
    if (nodes % 2 === 0 || nodes > 7) throw new UsageError('--nodes must be 1, 3, 5 or 7')
    const seconds = wholeNumber(values['seconds'], 4, 'seconds')
    const rounds = wholeNumber(values['rounds'], 1, 'rounds')
    const onlyDisk = values['only-disk'] === true
    const depth = wholeNumber(values['depth'], 1, 'depth')
    const writers = list(values['writers'], [1, 8, 64], 'writers')
    const sizes = list(values['append-bytes'], [4096, 262144], 'append-bytes')
    if (sizes.some(size => size > 1 << 20)) throw new UsageError('--append-bytes must be at most 1048576')
    const loads = sizes.flatMap(appendBytes =>
      writers.map(w => ({ writers: w, appendBytes, depth, seconds })),
    )
    const parent = resolve(typeof values['dir'] === 'string' ? values['dir'] : '.palimpsest/bench/append')
    mkdirSync(parent, { recursive: true })
    const scratch = mkdtempSync(join(parent, 'run-'))

    const references = [
      { subject: ONE_EACH, heading: 'of a sync each' },
      { subject: bestGroupName('again', 1), heading: 'of same space' },
      { subject: bestGroupName('new', 1), heading: 'of new space' },
    ]
    if (nodes > 1) references.push({ subject: bestGroupName('new', nodes), heading: `of new ×${nodes}` })
    references.push({ subject: `etcd ×${nodes}`, heading: 'of etcd' })
    if (writers.some(count => count > 1))
      references.push({ subject: `etcd ×${nodes}${SHARED}`, heading: 'of etcd, one conn.' })
    const report = new Report({
      title: `Durable appends, ${nodes} process${nodes === 1 ? '' : 'es'} on one disk`,
      unit: 'MB/s',
      references,
      columns: [{ key: 'cpuUsPerAppend', heading: 'CPU µs' }],
    })
    try {
      const etcd = values['no-etcd'] === true || onlyDisk ? undefined : findEtcd()
      if (etcd === undefined && values['no-etcd'] !== true && !onlyDisk) note(HOW_TO_GET_ETCD)
      // Side by side, so that what else the machine does falls on all of them.
      for (let round = 0; round < rounds; round++) {
        for (const load of loads) {
          const { writers } = load
          await measureDisk(report, load, scratch, nodes)
          for (const isShared of writers > 1 ? [false, true] : [false]) {
            if (etcd !== undefined)
              try {
                await measure(report, load, scratch, dir => startEtcd(etcd, dir, nodes, writers, isShared))
              } catch (error) {
                // Its server ends an HTTP/2 connection that it finds too busy, as one with 64 puts of 256 KiB at once.
                if (!isShared) throw error
                note(`etcd refused to go on, its row is left out: ${(error as Error).message}`)
              }
            if (!onlyDisk)
              await measure(report, load, scratch, dir => startSafekeepers(dir, nodes, writers, isShared))
          }
        }
      }
      return report
    } finally {
      rmSync(scratch, { recursive: true, force: true })
    }
  },
}

await runIfMain(import.meta.url, benchmark)
