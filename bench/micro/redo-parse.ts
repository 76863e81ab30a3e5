/**
 * How fast redo is parsed, on one core:
 *
 *     node bench/micro/redo-parse.ts [--redo IB_LOGFILE0] [--max-bytes N] [--chunk-bytes N] [--rounds N] [--json]
 *
 * (a) a bare walk from record to record to the ends of the mini-transactions: the reference, what any reader must do
 * (b) the same with the checksum of every mini-transaction
 * (c) the full index of ingestion: checksums, every record decoded and checked, entries grouped by page
 * and (d) the walk through all records alone, (e) checksums of ranges of various lengths by both implementations.
 * Without --redo it takes the recorded 4k log of the tests. The log is read into shared memory first and must not have
 * wrapped. Medians of the rounds, in time on the
 * processor.
 */
import { closeSync, fstatSync, openSync, readSync } from 'node:fs'
import { parseArgs } from 'node:util'
import { crc32c as nativeCrc32c } from '@node-rs/crc32'
import { ChunkIndexer } from '../../parser/chunk-index.ts'
import { LOG_START_OFFSET, LogGeometry, parseLogFileHead } from '../../parser/log-file.ts'
import { MtrScanner } from '../../parser/mtr-scanner.ts'
import { decodeVarint, RecordCursor } from '../../parser/record-decoder.ts'
import { Crc32cOfBuffer, crc32cTables } from '../../protocol/crc32c.ts'
import type { Lsn } from '../../protocol/ids.ts'
import { loadGoldenLog } from '../../test/support/redo-fixtures.ts'

const { values } = parseArgs({
  options: {
    redo: { type: 'string' },
    'max-bytes': { type: 'string', default: String(512 << 20) },
    'chunk-bytes': { type: 'string', default: String(1 << 20) },
    rounds: { type: 'string', default: '5' },
    json: { type: 'boolean', default: false },
  },
})
const maxBytes = Number(values['max-bytes'])
const chunkBytes = Number(values['chunk-bytes'])
const rounds = Number(values.rounds)

function load(): { log: Uint8Array; fileBytes: number } {
  if (values.redo === undefined) {
    const log = loadGoldenLog('4k')
    return { log, fileBytes: 2 ** 40 }
  }
  const fd = openSync(values.redo, 'r')
  const fileBytes = fstatSync(fd).size
  const log = new Uint8Array(new SharedArrayBuffer(Math.min(fileBytes, maxBytes)))
  for (let at = 0; at < log.length; ) {
    const read = readSync(fd, log, at, Math.min(1 << 26, log.length - at), at)
    if (read === 0) break
    at += read
  }
  closeSync(fd)
  return { log, fileBytes }
}

const { log, fileBytes } = load()
const { firstLsn, creator } = parseLogFileHead(log)
const scanner = new MtrScanner()
const whole = scanner.scanRange(
  log,
  LOG_START_OFFSET,
  log.length,
  firstLsn,
  new LogGeometry(firstLsn, fileBytes),
)
const end = LOG_START_OFFSET + whole.consumedBytes
const lsnAt = (offset: number) => (firstLsn + offset - LOG_START_OFFSET) as Lsn

/** Where mini-transactions end that are at least chunkBytes apart, and the end. */
const cuts = [LOG_START_OFFSET]
for (let at = LOG_START_OFFSET; at < end; ) {
  scanner.scan(log, at, end, lsnAt(at), null)
  at = scanner.mtrEnd
  if (at - cuts.at(-1)! >= chunkBytes || at === end) cuts.push(at)
}

function bareWalk(): number {
  let at = LOG_START_OFFSET
  let mtrs = 0
  while (at < end) {
    while (log[at]! > 1) {
      const short = log[at]! & 15
      at++
      at += short || decodeVarint(log, at) + 15
    }
    at += 5
    mtrs++
  }
  return mtrs
}

const indexer = new ChunkIndexer()
const counters = { records: 0, entries: 0, pages: 0 }

function index(): number {
  let mtrs = 0
  counters.records = counters.entries = counters.pages = 0
  for (let i = 1; i < cuts.length; i++) {
    const result = indexer.index(log, cuts[i - 1]!, cuts[i]!, lsnAt(cuts[i - 1]!))
    mtrs += result.mtrs
    counters.records += result.records
    counters.entries += result.entries
    counters.pages += result.pages
  }
  return mtrs
}

const cursor = new RecordCursor()
function walkRecords(): number {
  let at = LOG_START_OFFSET
  let mtrs = 0
  while (at < end) {
    const start = at
    while (log[at]! > 1) {
      const short = log[at]! & 15
      at++
      at += short || decodeVarint(log, at) + 15
    }
    cursor.reset(log, start, at)
    while (cursor.next());
    at += 5
    mtrs++
  }
  return mtrs
}

function median(times: number[]): number {
  return times.sort((a, b) => a - b)[times.length >> 1]!
}

/** This thread's time on a processor: what one core needs, whatever else the machine is doing. */
function cpuMs(): number {
  const { user, system } = process.threadCpuUsage()
  return (user + system) / 1000
}

/** Megabytes a processor second, median. */
function measure(run: () => number): number {
  const times = []
  for (let round = 0; round <= rounds; round++) {
    const startedAt = cpuMs()
    if (run() !== whole.mtrs) throw new Error('a run found another number of mini-transactions')
    const ms = cpuMs() - startedAt
    // The first round warms up.
    if (round > 0) times.push(ms)
  }
  return whole.consumedBytes / median(times) / 1000
}

const walkMbS = measure(bareWalk)
const crcMbS = measure(() => scanner.scanRange(log, LOG_START_OFFSET, end, firstLsn, null).mtrs)
const recordsMbS = measure(walkRecords)
const indexMbS = measure(index)

/** Nanoseconds for one checksum of `bytes` bytes, somewhere in the log. */
function crcNs(bytes: number, sum: (start: number, end: number) => number): number {
  const times = []
  const count = 20_000
  let sink = 0
  for (let round = 0; round <= rounds; round++) {
    const startedAt = performance.now()
    for (let i = 0; i < count; i++) {
      const at = (i * 1237) % (end - bytes)
      sink ^= sum(at, at + bytes)
    }
    if (round > 0) times.push(performance.now() - startedAt)
  }
  if (sink === 1.5) throw new Error('never: keeps the loop alive')
  // Too short for the processor clock; the quickest round is the least disturbed one.
  return (Math.min(...times) / count) * 1e6
}
const bound = new Crc32cOfBuffer()
bound.bind(log)
const crcLengths = [32, 64, 128, 200, 256, 320, 400, 800, 4096].map(bytes => ({
  bytes,
  tablesNs: Math.round(crcNs(bytes, (a, b) => crc32cTables(log, a, b))),
  wordsNs: Math.round(crcNs(bytes, (a, b) => bound.sumByTables(a, b))),
  nativeNs: Math.round(crcNs(bytes, (a, b) => nativeCrc32c(log.subarray(a, b)))),
}))

const result = {
  log: { creator, bytes: whole.consumedBytes, mtrs: whole.mtrs, ...counters, chunks: cuts.length - 1 },
  mbPerS: {
    walk: Math.round(walkMbS),
    walkAndCrc: Math.round(crcMbS),
    walkAndRecords: Math.round(recordsMbS),
    index: Math.round(indexMbS),
  },
  ratioToWalk: {
    walkAndCrc: Number((crcMbS / walkMbS).toFixed(3)),
    walkAndRecords: Number((recordsMbS / walkMbS).toFixed(3)),
    index: Number((indexMbS / walkMbS).toFixed(3)),
  },
  nsPerRecord: Number(((1000 * whole.consumedBytes) / indexMbS / counters.records).toFixed(1)),
  crc: crcLengths,
}

if (values.json) process.stdout.write(`${JSON.stringify(result)}\n`)
else {
  const { log: l, mbPerS: m, ratioToWalk: r } = result
  const line = (label: string, mb: number, ratio: number) =>
    `${label.padEnd(44)}${String(mb).padStart(6)} MB/s   ${ratio.toFixed(3)} of the bare walk\n`
  process.stdout.write(
    `${l.creator}: ${(l.bytes / 1e6).toFixed(0)} MB, ${l.mtrs} mini-transactions, ${l.records} records, ${l.entries} entries, ${l.chunks} chunks\n` +
      line('(a) bare walk', m.walk, 1) +
      line('(b) walk + checksums', m.walkAndCrc, r.walkAndCrc) +
      line('(c) full index', m.index, r.index) +
      line('(d) walk + every record decoded and checked', m.walkAndRecords, r.walkAndRecords) +
      `${result.nsPerRecord} ns a record in the index\n(e) CRC-32C, ns:\n` +
      crcLengths
        .map(
          c =>
            `    ${String(c.bytes).padStart(5)} bytes: bytewise tables ${c.tablesNs}, by words ${c.wordsNs}, native ${c.nativeNs}\n`,
        )
        .join(''),
  )
}
