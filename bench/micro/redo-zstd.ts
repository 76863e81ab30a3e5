/**
 * How much smaller redo becomes at rest, by the size of the groups that are compressed together and by zstd's level, and how
 * fast, on one core:
 *
 *     node bench/micro/redo-zstd.ts [--sample-bytes N] [--json] IB_LOGFILE0...
 *
 * Each log must not have wrapped. Of a long one a sample is taken, in stretches of 8 MiB spread evenly over it. Only whole
 * mini-transactions count, neither the file's head nor what lies behind the end of the log. Speeds are bytes of redo per second
 * of processor time, compressing and decompressing.
 */
import { closeSync, openSync, readSync } from 'node:fs'
import { basename, dirname } from 'node:path'
import { parseArgs } from 'node:util'
import Table from 'cli-table3'
import { LOG_START_OFFSET, parseLogFileHead } from '../../parser/log-file.ts'
import { MtrScanner } from '../../parser/mtr-scanner.ts'
import type { Lsn } from '../../protocol/ids.ts'
import { zstdCompress, zstdDecompress } from '../../server/shared/zstd.ts'

const GROUP_BYTES = [64 << 10, 256 << 10, 1 << 20, 4 << 20]
const LEVELS = [1, 2, 3]
const STRETCH_BYTES = 8 << 20
/** Read at once while looking for the end; more than the longest mini-transaction. */
const SCAN_BYTES = 32 << 20

interface Measured {
  readonly groupBytes: number
  readonly level: number
  readonly redoBytes: number
  readonly storedBytes: number
  /** 1 − stored / redo: how much smaller. */
  readonly saved: number
  readonly compressMBs: number
  readonly decompressMBs: number
}

const { values, positionals } = parseArgs({
  options: {
    'sample-bytes': { type: 'string', default: String(128 << 20) },
    json: { type: 'boolean', default: false },
  },
  allowPositionals: true,
})
if (positionals.length === 0) {
  process.stderr.write('palimpsest: name one or more ib_logfile0\n')
  process.exit(2)
}

/** Where the redo lies in the file: from the first mini-transaction to the end of the last whole one. */
function extent(fd: number, path: string): { from: number; to: number } {
  const head = Buffer.alloc(LOG_START_OFFSET)
  readSync(fd, head, 0, head.length, 0)
  const { firstLsn, checkpoint } = parseLogFileHead(head)
  const buffer = Buffer.alloc(SCAN_BYTES)
  const scanner = new MtrScanner()
  const scanFrom = (lsn: number): number => {
    let at = LOG_START_OFFSET + (lsn - firstLsn)
    for (;;) {
      const got = readSync(fd, buffer, 0, buffer.length, at)
      const { consumedBytes } = scanner.scanRange(buffer, 0, got, lsn as Lsn, null)
      if (consumedBytes === 0) return at
      at += consumedBytes
    }
  }
  const to = scanFrom(firstLsn)
  // A log that a datadir was copied with may begin in the middle.
  if (
    to > LOG_START_OFFSET &&
    (checkpoint === undefined || to > LOG_START_OFFSET + (checkpoint.checkpointLsn - firstLsn))
  )
    return { from: LOG_START_OFFSET, to }
  if (checkpoint === undefined) throw new Error(`${path} has neither redo at its beginning nor a checkpoint`)
  return {
    from: LOG_START_OFFSET + (checkpoint.checkpointLsn - firstLsn),
    to: scanFrom(checkpoint.checkpointLsn),
  }
}

/** Stretches spread over the redo, `bytes` of them together at the most. */
function sample(path: string, bytes: number): { stretches: Buffer[]; allBytes: number } {
  const fd = openSync(path, 'r')
  try {
    const { from, to } = extent(fd, path)
    if (to === from) throw new Error(`${path} holds no redo`)
    const count = Math.max(1, Math.floor(Math.min(bytes, to - from) / STRETCH_BYTES))
    const each = Math.min(STRETCH_BYTES, to - from)
    const whole = to - from <= bytes
    const stretches = whole
      ? [Buffer.alloc(to - from)]
      : Array.from({ length: count }, () => Buffer.alloc(each))
    stretches.forEach((buffer, i) => {
      readSync(fd, buffer, 0, buffer.length, whole ? from : from + Math.floor((i * (to - from)) / count))
    })
    return { stretches, allBytes: to - from }
  } finally {
    closeSync(fd)
  }
}

function measure(stretches: readonly Buffer[], groupBytes: number, level: number): Measured {
  let redoBytes = 0
  let storedBytes = 0
  let compressUs = 0
  let decompressUs = 0
  for (const stretch of stretches) {
    const groups: { raw: number; stored: Buffer }[] = []
    let before = process.cpuUsage()
    for (let at = 0; at < stretch.length; at += groupBytes) {
      const raw = stretch.subarray(at, at + groupBytes)
      const stored = zstdCompress(raw, level)
      groups.push({ raw: raw.length, stored })
      redoBytes += raw.length
      storedBytes += stored.length
    }
    compressUs += elapsed(before)
    before = process.cpuUsage()
    for (const { raw, stored } of groups) zstdDecompress(stored, raw)
    decompressUs += elapsed(before)
  }
  return {
    groupBytes,
    level,
    redoBytes,
    storedBytes,
    saved: 1 - storedBytes / redoBytes,
    compressMBs: redoBytes / compressUs,
    decompressMBs: redoBytes / decompressUs,
  }
}

function elapsed(since: NodeJS.CpuUsage): number {
  const { user, system } = process.cpuUsage(since)
  return user + system
}

const all = positionals.map(path => {
  const { stretches, allBytes } = sample(path, Number(values['sample-bytes']))
  const results = GROUP_BYTES.flatMap(groupBytes =>
    LEVELS.map(level => measure(stretches, groupBytes, level)),
  )
  return { path, allBytes, sampledBytes: results[0]!.redoBytes, results }
})

if (values.json) process.stdout.write(`${JSON.stringify(all)}\n`)
else
  for (const { path, allBytes, sampledBytes, results } of all) {
    const table = new Table({
      head: ['group', 'level', 'smaller by', 'ratio', 'compress MB/s', 'decompress MB/s'],
      colAligns: ['right', 'right', 'right', 'right', 'right', 'right'],
      style: { head: [], border: [], compact: true },
    })
    for (const r of results)
      table.push([
        `${r.groupBytes >> 10} KiB`,
        String(r.level),
        `${(r.saved * 100).toFixed(1)} %`,
        `${(r.redoBytes / r.storedBytes).toFixed(2)} ×`,
        r.compressMBs.toFixed(0),
        r.decompressMBs.toFixed(0),
      ])
    const name = `${basename(dirname(path))}/${basename(path)}`
    process.stdout.write(
      `${name}: ${(allBytes / 1e6).toFixed(0)} MB of redo, ${(sampledBytes / 1e6).toFixed(0)} MB measured\n${table.toString()}\n`,
    )
  }
