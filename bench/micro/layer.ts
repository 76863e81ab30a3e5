/**
 * How fast delta layers are written and read, on one core, per zstd level and block size:
 *
 *     node bench/micro/layer.ts [--redo IB_LOGFILE0] [--max-bytes N] [--skip-bytes N] [--rounds N] [--levels 0,-3,1,3]
 *                               [--block-bytes 65536] [--json]
 *
 * The reference is bare zstd from node:zlib on the same bytes: all entries of the redo sorted by page, cut into
 * blocks of the same size, no CRCs, no index, no file (level 0, uncompressed: a copy). "entries alone" is what the writer does beside compressing, taken
 * as the difference. Times are those of the processor; medians of the rounds. Without --redo it takes the recorded 4k log
 * of the tests.
 */
import { closeSync, mkdtempSync, openSync, readSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { ChunkIndexer } from '../../parser/chunk-index.ts'
import { LOG_START_OFFSET, parseLogFileHead } from '../../parser/log-file.ts'
import { MtrScanner } from '../../parser/mtr-scanner.ts'
import { addLsn, type Lsn, toTimelineId } from '../../protocol/ids.ts'
import { DeltaLayerWriter } from '../../server/pageserver/delta-layer.ts'
import { LayerReader } from '../../server/pageserver/layer-reader.ts'
import { zstdCompress, zstdDecompress } from '../../server/shared/zstd.ts'
import { ChunkIndexView } from '../../test/support/chunk-index-view.ts'
import { loadGoldenLog } from '../../test/support/redo-fixtures.ts'
import { type Benchmark, note, Report, runIfMain, UsageError, wholeNumber } from '../harness.ts'

const RANDOM_READS = 2000
const CHUNK_BYTES = 1 << 20

interface Sorted {
  readonly log: Buffer
  readonly begin: Lsn
  readonly end: Lsn
  /** Page after page: space, page, first entry, entry count. */
  readonly pages: Uint32Array
  /** Entry after entry: offset, length, LSN relative to begin, flags. */
  readonly entries: Uint32Array
  readonly entryBytes: number
}

function load(path: string | undefined, skip: number, maxBytes: number): Sorted {
  let log: Uint8Array
  if (path === undefined) {
    log = loadGoldenLog('4k')
  } else {
    const fd = openSync(path, 'r')
    log = new Uint8Array(new SharedArrayBuffer(LOG_START_OFFSET + skip + maxBytes))
    for (let at = 0; at < log.length; ) {
      const read = readSync(fd, log, at, Math.min(1 << 26, log.length - at), at)
      if (read === 0) break
      at += read
    }
    closeSync(fd)
  }
  const { firstLsn } = parseLogFileHead(log)
  const scanner = new MtrScanner()
  let from = LOG_START_OFFSET
  const lsnOf = (at: number) => addLsn(firstLsn, at - LOG_START_OFFSET)
  if (skip > 0) from += scanner.scanRange(log, from, from + skip, firstLsn, null).consumedBytes
  const limit = Math.min(log.length, from + maxBytes)
  const bytes = scanner.scanRange(log, from, limit, lsnOf(from), null).consumedBytes
  if (bytes === 0) throw new UsageError('there is no redo at that place')
  // Chunk by chunk, as ingestion does it; then all entries of a page together, in the order of the log.
  const begin = lsnOf(from)
  const indexer = new ChunkIndexer()
  const byPage = new Map<string, number[]>()
  const ids: { space: number; page: number; key: string }[] = []
  let entryBytes = 0
  let E = 0
  for (let at = from; at < from + bytes; ) {
    const end =
      at + scanner.scanRange(log, at, Math.min(from + bytes, at + CHUNK_BYTES), lsnOf(at), null).consumedBytes
    const chunkAt = at
    indexer.index(log, at, end, lsnOf(at))
    const view = new ChunkIndexView(indexer)
    for (let p = 0; p < view.pageCount; p++) {
      const space = view.pageSpace[p]!
      const page = view.pageNumber[p]!
      const key = `${space}:${page}`
      let list = byPage.get(key)
      if (list === undefined) {
        list = []
        byPage.set(key, list)
        ids.push({ space, page, key })
      }
      const known = list
      view.forEachEntry(p, (offset, length, lsn, flags) => {
        known.push(chunkAt + offset, length, lsn + (chunkAt - from), flags)
        entryBytes += length
        E++
      })
    }
    at = end
  }
  ids.sort((a, b) => a.space - b.space || a.page - b.page)
  const pages = new Uint32Array(4 * ids.length)
  const entries = new Uint32Array(4 * E)
  let next = 0
  ids.forEach(({ space, page, key }, p) => {
    const list = byPage.get(key)!
    pages.set([space, page, next / 4, list.length / 4], 4 * p)
    entries.set(list, next)
    next += list.length
  })
  return {
    log: Buffer.from(log.buffer, log.byteOffset, log.length),
    begin,
    end: addLsn(begin, bytes),
    pages,
    entries,
    entryBytes,
  }
}

function cpuSeconds(work: () => void): number {
  const before = process.cpuUsage()
  work()
  const used = process.cpuUsage(before)
  return (used.user + used.system) / 1e6
}

function median(rounds: number, work: () => void): number {
  const times = Array.from({ length: rounds }, () => cpuSeconds(work)).sort((a, b) => a - b)
  return times[rounds >> 1]!
}

export const benchmark: Benchmark = {
  summary: 'Delta layers: writing and reading against bare zstd',
  help: `  --redo FILE        an ib_logfile0 that has not wrapped (default: a recorded one)
  --max-bytes N      redo to take (default 48 MiB)
  --skip-bytes N     redo to pass over first
  --rounds N         (default 3)
  --levels L,L,…     zstd levels (default 0,-3,1,3; 0: uncompressed)
  --block-bytes N,…  uncompressed sizes of blocks (default 65536)`,
  options: {
    redo: { type: 'string' },
    'max-bytes': { type: 'string' },
    'skip-bytes': { type: 'string' },
    rounds: { type: 'string' },
    levels: { type: 'string' },
    'block-bytes': { type: 'string' },
  },
  async run(values) {
    const maxBytes = wholeNumber(values['max-bytes'], 48 << 20, 'max-bytes')
    const skip = wholeNumber(values['skip-bytes'], 0, 'skip-bytes', 0)
    const rounds = wholeNumber(values['rounds'], 3, 'rounds')
    const levels = String(values['levels'] ?? '0,-3,1,3')
      .split(',')
      .map(Number)
    const blockSizes = String(values['block-bytes'] ?? '65536')
      .split(',')
      .map(Number)
    const path = typeof values['redo'] === 'string' ? values['redo'] : undefined
    const input = load(path, skip, maxBytes)
    const { log, pages, entries, entryBytes } = input
    const pageCount = pages.length / 4
    const entryCount = entries.length / 4
    note(
      `${(input.end - input.begin).toLocaleString('en-GB')} bytes of redo, ${entryCount.toLocaleString('en-GB')} entries of ` +
        `${(entryBytes / entryCount).toFixed(0)} bytes, ${pageCount.toLocaleString('en-GB')} pages`,
    )
    const report = new Report({
      title: 'Delta layers, one core',
      unit: 'MB/s',
      references: [{ subject: 'bare zstd', heading: 'of bare zstd' }],
    })
    const sorted = Buffer.allocUnsafeSlow(entryBytes)
    for (let e = 0, at = 0; e < entryCount; e++) {
      at += log.copy(sorted, at, entries[4 * e]!, entries[4 * e]! + entries[4 * e + 1]!)
    }
    const dir = mkdtempSync(join(tmpdir(), 'palimpsest-bench-'))
    const timeline = toTimelineId('00'.repeat(16))
    const megabytes = entryBytes / 1e6
    try {
      for (const blockBytes of blockSizes)
        for (const level of levels) {
          const blocks: { stored: Buffer; raw: number }[] = []
          const bareWrite = median(rounds, () => {
            blocks.length = 0
            for (let at = 0; at < sorted.length; at += blockBytes) {
              const block = sorted.subarray(at, Math.min(sorted.length, at + blockBytes))
              blocks.push({
                stored: level === 0 ? Buffer.from(block) : zstdCompress(block, level),
                raw: block.length,
              })
            }
          })
          const bareBytes = blocks.reduce((sum, block) => sum + block.stored.length, 0)
          const bareRead = median(rounds, () => {
            for (const { stored, raw } of blocks)
              level === 0 ? Buffer.from(stored) : zstdDecompress(stored, raw)
          })

          const file = join(dir, 'layer')
          let fileBytes = 0
          const write = median(rounds, () => {
            rmSync(file, { force: true })
            const writer = new DeltaLayerWriter(file, {
              timeline,
              generation: 1,
              lsnStart: input.begin,
              lsnEnd: input.end,
              zstdLevel: level,
              blockBytes,
            })
            for (let p = 0; p < pages.length; p += 4) {
              writer.beginPage(pages[p]!, pages[p + 1]!)
              const last = pages[p + 2]! + pages[p + 3]!
              for (let e = 4 * pages[p + 2]!; e < 4 * last; e += 4)
                writer.addEntry(
                  input.begin + entries[e + 2]!,
                  entries[e + 3]!,
                  log,
                  entries[e]!,
                  entries[e + 1]!,
                )
            }
            fileBytes = writer.finish().bytes
          })
          let seen = 0
          const read = median(rounds, () => {
            const reader = LayerReader.open(file)
            seen = 0
            for (let h = 0; h < reader.pages; h++) {
              const cursor = reader.cursor(h, 0, input.end)
              while (cursor.next()) seen += cursor.end - cursor.start
            }
            reader.close()
          })
          if (seen !== entryBytes) throw new Error(`${seen} bytes were read of ${entryBytes}`)
          const reader = LayerReader.open(file)
          let x = 1
          const single = cpuSeconds(() => {
            for (let i = 0; i < RANDOM_READS; i++) {
              x = (Math.imul(x, 1103515245) + 12345) >>> 0
              const cursor = reader.cursor(x % reader.pages, 0, input.end, true)
              if (cursor.next()) seen++
            }
          })
          reader.close()

          const group = `level ${level}, ${blockBytes >> 10} KiB${level === 0 ? ' (reference: a copy)' : ''}`
          const ratio = (bytes: number) => Number((entryBytes / bytes).toFixed(2))
          report.add({
            group: `write, ${group}`,
            subject: 'bare zstd',
            perSecond: megabytes / bareWrite,
            extra: { ratio: ratio(bareBytes) },
          })
          report.add({
            group: `write, ${group}`,
            subject: `layer (ratio ${ratio(fileBytes)}, zstd ${ratio(bareBytes)})`,
            perSecond: megabytes / write,
            extra: {
              ratio: ratio(fileBytes),
              nsPerEntryBesideZstd: Math.round(((write - bareWrite) / entryCount) * 1e9),
            },
          })
          report.add({ group: `read all, ${group}`, subject: 'bare zstd', perSecond: megabytes / bareRead })
          report.add({
            group: `read all, ${group}`,
            subject: `layer (one page's first block: ${((single / RANDOM_READS) * 1e6).toFixed(0)} µs)`,
            perSecond: megabytes / read,
            extra: { singlePageUs: Math.round((single / RANDOM_READS) * 1e6) },
          })
          note(
            `${group}: beside zstd, ${Math.round(((write - bareWrite) / entryCount) * 1e9)} ns an entry written, ` +
              `${Math.round(((read - bareRead) / entryCount) * 1e9)} ns an entry read`,
          )
        }
    } finally {
      rmSync(dir, { recursive: true })
    }
    return report
  },
}

await runIfMain(import.meta.url, benchmark)
