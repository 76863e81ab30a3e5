/**
 * How fast the cell's log of one node takes entries, without consensus and network:
 *
 *     node bench/micro/log-append.ts [--dir DIR] [--writers 1,8,64] [--bytes 4096,262144] [--seconds N] [--rounds N] [--json]
 *
 * Each writer appends one entry and waits until it is synced, again and again. The reference is bare: the same number of the same
 * bytes written, then fdatasync, in a loop of synchronous calls, in the same run on the same disk; that is what a group commit of
 * all writers costs at least. Twice: over space that was written before, which is what a log reuses once segments are packed
 * ("reused": the log with packs, after a warm-up; all entries are applied at once, and the worker that compresses segments
 * shares the machine's cores and disk), and over new space ("new": the log without packs, which must have its blocks allocated). Of several
 * rounds the best counts, on both sides.
 */
import { closeSync, fdatasyncSync, mkdtempSync, openSync, rmSync, writeSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { crc32c } from '../../protocol/crc32c.ts'
import type { Lsn, TimelineId, WriterEpoch } from '../../protocol/ids.ts'
import type { EntryId, LogIndex, Term } from '../../server/safekeeper/core/types.ts'
import { CellLog, type LogEntry } from '../../server/safekeeper/log/cell-log.ts'
import { PACK_AT_ONCE } from '../../server/safekeeper/log/pack-policy.ts'
import { workerPackRunner } from '../../server/safekeeper/log/pack-pool.ts'
import { silentLog } from '../../server/shared/log.ts'
import { nodeClock, nodeDisk } from '../../server/shared/node-seams.ts'
import { loadGoldenLog } from '../../test/support/redo-fixtures.ts'
import { type Benchmark, note, Report, runIfMain, UsageError, wholeNumber } from '../harness.ts'

const FILE_BYTES = 64 * 1024 * 1024
const TIMELINE = 'ab'.repeat(16) as TimelineId

interface Case {
  readonly writers: number
  readonly bytes: number
  readonly seconds: number
}

/** A file of full length, with its blocks or without. */
function makeFile(path: string, fill: boolean): number {
  rmSync(path, { force: true })
  const fd = openSync(path, 'w')
  const zeros = Buffer.alloc(1024 * 1024)
  for (let at = 0; fill && at < FILE_BYTES; at += zeros.length) writeSync(fd, zeros, 0, zeros.length, at)
  if (!fill) writeSync(fd, zeros, 0, 1, FILE_BYTES - 1)
  fdatasyncSync(fd)
  return fd
}

/** Megabytes a second of bare group commits. */
function bare(dir: string, { writers, bytes, seconds }: Case, redo: Buffer, reused: boolean): number {
  const path = join(dir, 'bare')
  let fd = makeFile(path, reused)
  const group = Buffer.alloc(writers * bytes)
  for (let at = 0; at < group.length; at += bytes) redo.copy(group, at, 0, bytes)
  const until = performance.now() + seconds * 1000
  const begin = performance.now()
  let done = 0
  for (let at = 0; performance.now() < until; at += group.length) {
    if (at + group.length > FILE_BYTES) {
      at = 0
      if (!reused) {
        closeSync(fd)
        fd = makeFile(path, false)
      }
    }
    writeSync(fd, group, 0, group.length, at)
    fdatasyncSync(fd)
    done += group.length
  }
  const elapsed = (performance.now() - begin) / 1000
  closeSync(fd)
  rmSync(path)
  return done / 1e6 / elapsed
}

interface Measured {
  readonly mbPerSecond: number
  readonly latenciesUs: number[]
  readonly note: string
}

async function log(
  parent: string,
  { writers, bytes, seconds }: Case,
  redo: Buffer,
  packs: boolean,
): Promise<Measured> {
  const dir = join(parent, 'log')
  await CellLog.create({ disk: nodeDisk, dir }, { index: 0, term: 0 } as EntryId)
  const { log: cellLog } = await CellLog.open({
    disk: nodeDisk,
    clock: nodeClock,
    dir,
    log: silentLog,
    appliedTo: 0 as LogIndex,
    packs: packs ? workerPackRunner() : 'off',
    packPolicy: PACK_AT_ONCE,
    onFatal: error => {
      throw error
    },
  })
  let waiting: { index: number; resolve: () => void }[] = []
  let applied: LogEntry[] = []
  cellLog.onFlushed = id => {
    let ready = 0
    while (ready < waiting.length && waiting[ready]!.index <= id.index) waiting[ready++]!.resolve()
    waiting = waiting.slice(ready)
    if (!packs) return
    let count = 0
    while (count < applied.length && applied[count]!.index <= id.index) cellLog.applied(applied[count++]!)
    applied = applied.slice(count)
  }
  const pieces = Math.floor(redo.length / bytes)
  const payloads = Array.from({ length: Math.min(pieces, 256) }, (_, i) => {
    const payload = redo.subarray(i * bytes, (i + 1) * bytes)
    return { payload, payloadCrc: crc32c(payload, 0, bytes) }
  })
  let lsn = 10_000
  const latenciesUs: number[] = []
  const append = (): Promise<void> => {
    const index = (cellLog.lastIndex + 1) as LogIndex
    const entry: LogEntry = {
      index,
      term: 1 as Term,
      kind: 'redo',
      timeline: TIMELINE,
      epoch: 1 as WriterEpoch,
      beginLsn: lsn as Lsn,
      endLsn: (lsn + bytes) as Lsn,
      wallTimeUs: 1_790_000_000_000_000 + index,
      ...payloads[index % payloads.length]!,
      dropped: false,
    }
    lsn += bytes
    cellLog.append([entry])
    if (packs) applied.push(entry)
    return new Promise(resolve => waiting.push({ index, resolve }))
  }
  // Until segments come back from the packs.
  while (packs && cellLog.stats().packs < 3) {
    for (let i = 0; i < 64; i++) void append()
    await append()
  }
  const begin = performance.now()
  const until = begin + seconds * 1000
  const writer = async () => {
    while (performance.now() < until) {
      const from = performance.now()
      await append()
      latenciesUs.push((performance.now() - from) * 1000)
    }
  }
  await Promise.all(Array.from({ length: writers }, writer))
  const elapsed = (performance.now() - begin) / 1000
  const { packedBytes, packedRawBytes, packs: packCount } = cellLog.stats()
  await cellLog.close()
  rmSync(dir, { recursive: true })
  return {
    mbPerSecond: (latenciesUs.length * bytes) / 1e6 / elapsed,
    latenciesUs: latenciesUs.sort((a, b) => a - b),
    note: packs
      ? `${packCount} packs, ${packedRawBytes === 0 ? '-' : (100 - (packedBytes / packedRawBytes) * 100).toFixed(0)} % smaller`
      : '',
  }
}

export const benchmark: Benchmark = {
  summary: "the cell's log alone: group commits of a node",
  help: `  --dir DIR         on the disk to be measured; default the system's folder for temporary files
  --writers LIST    default 1,8,64
  --bytes LIST      of an entry; default 4096,262144
  --seconds N       of each measurement; default 3
  --rounds N        default 3`,
  options: {
    dir: { type: 'string' },
    writers: { type: 'string' },
    bytes: { type: 'string' },
    seconds: { type: 'string' },
    rounds: { type: 'string' },
  },
  async run(values) {
    const list = (name: string, fallback: string) =>
      String(values[name] ?? fallback)
        .split(',')
        .map(part => {
          const value = Number(part)
          if (!Number.isInteger(value) || value < 1)
            throw new UsageError(`--${name}: ${part} is not a number`)
          return value
        })
    const seconds = wholeNumber(values['seconds'], 3, '--seconds')
    const rounds = wholeNumber(values['rounds'], 3, '--rounds')
    const dir = mkdtempSync(join(String(values['dir'] ?? tmpdir()), 'palimpsest-bench-'))
    const redo = Buffer.from(loadGoldenLog('4k').subarray(12_288))
    const report = new Report({
      title: "The cell's log on one node",
      unit: 'MB/s',
      references: [{ subject: 'write + fdatasync', heading: 'of the ceiling' }],
    })
    try {
      for (const bytes of list('bytes', '4096,262144'))
        for (const writers of list('writers', '1,8,64'))
          for (let round = 0; round < rounds; round++) {
            const what = { writers, bytes, seconds }
            for (const packs of [true, false]) {
              const group = `${writers} writers, ${bytes >> 10} KiB, ${packs ? 'reused' : 'new'}`
              report.add({ group, subject: 'write + fdatasync', perSecond: bare(dir, what, redo, packs) })
              const { mbPerSecond, latenciesUs, note: text } = await log(dir, what, redo, packs)
              const at = (part: number) => latenciesUs[Math.floor(latenciesUs.length * part)] ?? 0
              report.add({
                group,
                subject: 'log',
                perSecond: mbPerSecond,
                latencyUsP50: at(0.5),
                latencyUsP99: at(0.99),
              })
              note(`${group}: ${mbPerSecond.toFixed(1)} MB/s${packs ? `, ${text}` : ''}`)
            }
          }
    } finally {
      rmSync(dir, { recursive: true, force: true })
    }
    return report
  },
}

await runIfMain(import.meta.url, benchmark)
