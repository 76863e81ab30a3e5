/**
 * How fast redo is applied to pages, on one core:
 *
 *     node bench/micro/apply.ts [--base DATADIR --redo FILE] [--rounds N] [--json]
 *
 * Without arguments it takes the recorded 4k log of the tests. Every page is brought from its base (or from nothing)
 * to the end of the log, all its entries in one go, as the page server does it. The reference is the least that any
 * such program must do: copying the bytes of the same records, entry by entry, over a page.
 */
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { parseArgs } from 'node:util'
import { zstdDecompressSync } from 'node:zlib'
import { PageApplier } from '../../parser/apply-page.ts'
import { MtrScanner, ScanResult } from '../../parser/mtr-scanner.ts'
import { FSP_SPACE_FLAGS, read4 } from '../../parser/page-format.ts'
import { ExtendedSubtype, RecordCursor, RecordType } from '../../parser/record-decoder.ts'
import { parseSpaceFlags, type SpaceFormat } from '../../parser/space-flags.ts'
import type { Lsn } from '../../protocol/ids.ts'
import { readTarZst } from '../../test/support/fixture-tar.ts'
import { NaiveReplay } from '../../test/support/naive-replay.ts'

const { values } = parseArgs({
  options: {
    base: { type: 'string' },
    redo: { type: 'string' },
    rounds: { type: 'string', default: '3' },
    json: { type: 'boolean', default: false },
  },
})

/** Everything one page goes through: positions in the log, three numbers an entry. */
interface PageWork {
  readonly space: number
  readonly page: number
  readonly base: Uint8Array | undefined
  readonly starts: number[]
  readonly ends: number[]
  readonly lsns: number[]
}

interface Workload {
  readonly log: Uint8Array
  readonly pages: PageWork[]
  readonly formats: Map<number, SpaceFormat>
  readonly bytes: number
}

function load(): Workload {
  const golden = join(import.meta.dirname, '../../test/fixtures/golden')
  let replay: NaiveReplay
  let log: Uint8Array
  if (values.base && values.redo) {
    replay = NaiveReplay.load(values.base)
    log = readFileSync(values.redo)
  } else {
    replay = new NaiveReplay()
    for (const [name, content] of readTarZst(join(golden, 'zoo-4k.base.tar.zst')))
      replay.addFile(name, content)
    log = zstdDecompressSync(readFileSync(join(golden, 'zoo-4k.redo.zst')))
    replay.useRedo(log)
  }
  const firstLsn = Number(new DataView(log.buffer, log.byteOffset).getBigUint64(8))
  const formats = new Map<number, SpaceFormat>()
  for (const space of replay.spaces.values()) formats.set(space.id, space.format!)
  const work = new Map<string, PageWork>()
  const scanner = new MtrScanner()
  const cursor = new RecordCursor()
  let bytes = 0
  let position = 0x3000 + replay.lsn - firstLsn
  while (scanner.scan(log, position, log.length, 0 as Lsn, null) === ScanResult.COMPLETE) {
    const lsn = firstLsn + scanner.mtrEnd - 0x3000
    let current: PageWork | undefined
    let start = 0
    let end = 0
    const close = (): void => {
      if (!current) return
      current.starts.push(start)
      current.ends.push(end)
      current.lsns.push(lsn)
      bytes += end - start
      current = undefined
    }
    cursor.reset(log, scanner.recordsStart, scanner.recordsEnd)
    while (cursor.next()) {
      if (cursor.type === RecordType.WRITE && cursor.page === 0) {
        const at = cursor.dataStart + FSP_SPACE_FLAGS - cursor.pageOffset
        if (at >= cursor.dataStart && at + 4 <= cursor.recordEnd)
          formats.set(cursor.space, parseSpaceFlags(read4(log, at)))
      }
      if (!cursor.samePage) {
        close()
        const trim = cursor.type === RecordType.EXTENDED && cursor.subtype === ExtendedSubtype.TRIM_PAGES
        if (cursor.type & 0x80 || trim) continue
        const key = `${cursor.space}:${cursor.page}`
        current = work.get(key)
        if (!current) {
          const base = replay.page(cursor.space, cursor.page)
          current = { space: cursor.space, page: cursor.page, base, starts: [], ends: [], lsns: [] }
          work.set(key, current)
        }
        start = cursor.recordStart
      }
      end = cursor.recordEnd
    }
    close()
    position = scanner.mtrEnd
  }
  return { log, pages: [...work.values()], formats, bytes }
}

const { log, pages, formats, bytes } = load()
const buffers = new Map<number, Uint8Array>()
for (const format of formats.values())
  if (!buffers.has(format.physicalSize)) buffers.set(format.physicalSize, new Uint8Array(format.physicalSize))
const applier = new PageApplier({ verifyChecksums: false })

function applyAll(): void {
  for (const work of pages) {
    const format = formats.get(work.space)!
    const page = buffers.get(format.physicalSize)!
    if (work.base) page.set(work.base)
    else page.fill(0)
    applier.begin(page, format, work.space, work.page)
    for (let i = 0; i < work.starts.length; i++)
      applier.apply(log, work.starts[i]!, work.ends[i]!, work.lsns[i] as Lsn)
    applier.end()
  }
}

function copyAll(): void {
  for (const work of pages) {
    const page = buffers.get(formats.get(work.space)!.physicalSize)!
    if (work.base) page.set(work.base)
    else page.fill(0)
    for (let i = 0; i < work.starts.length; i++) {
      const start = work.starts[i]!
      const end = Math.min(work.ends[i]!, start + page.length)
      if (end - start >= 96) page.set(log.subarray(start, end))
      else for (let at = start, to = 0; at < end; ) page[to++] = log[at++]!
    }
  }
}

function best(run: () => void): number {
  let seconds = Number.POSITIVE_INFINITY
  for (let i = 0; i < Math.max(1, Number(values.rounds)); i++) {
    const begin = performance.now()
    run()
    seconds = Math.min(seconds, (performance.now() - begin) / 1000)
  }
  return seconds
}

applyAll()
const records = applier.recordsApplied
const applySeconds = best(applyAll)
const copySeconds = best(copyAll)
const entries = pages.reduce((n, work) => n + work.starts.length, 0)
const result = {
  benchmark: 'apply',
  pages: pages.length,
  entries,
  records,
  redoBytes: bytes,
  recordsPerSecond: Math.round(records / applySeconds),
  entriesPerSecond: Math.round(entries / applySeconds),
  pagesPerSecond: Math.round(pages.length / applySeconds),
  mbPerSecond: Math.round(bytes / applySeconds / 1e6),
  copyRecordsPerSecond: Math.round(records / copySeconds),
  ratioToCopy: Number((copySeconds / applySeconds).toFixed(3)),
}
if (values.json) console.log(JSON.stringify(result))
else {
  console.log(
    `${pages.length} pages, ${entries} entries, ${records} records, ${(bytes / 1e6).toFixed(1)} MB of redo`,
  )
  console.log(
    `apply: ${result.recordsPerSecond.toLocaleString('en')} records/s, ${result.pagesPerSecond.toLocaleString('en')} pages/s, ${result.mbPerSecond} MB/s`,
  )
  console.log(
    `copying the same bytes: ${result.copyRecordsPerSecond.toLocaleString('en')} records/s; ratio ${result.ratioToCopy}`,
  )
}
