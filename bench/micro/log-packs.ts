/**
 * How small redo becomes in the packs of the cell's log, and what that costs:
 *
 *     node bench/micro/log-packs.ts [--redo IB_LOGFILE0] [--skip-bytes N] [--max-bytes N] [--chunk-bytes N] [--levels 1,2,3]
 *                                   [--timelines N] [--json]
 *
 * The redo is cut into chunks, which are given to N timelines in turn, and packed in memory as whole segments are. The reference is
 * bare zstd from node:zlib on the same bytes in order, cut into pieces of 1 MiB. "smaller" counts everything: headers of
 * entries, tables, summaries. Without --redo it takes the recorded 4k log of the tests.
 */
import { closeSync, openSync, readSync } from 'node:fs'
import { crc32c } from '../../protocol/crc32c.ts'
import type { Lsn, TimelineId, WriterEpoch } from '../../protocol/ids.ts'
import type { LogIndex, Term } from '../../server/safekeeper/core/types.ts'
import { GROUP_BYTES_DEFAULT, PackBuilder } from '../../server/safekeeper/log/pack-builder.ts'
import type { PackEntry } from '../../server/safekeeper/log/pack-codec.ts'
import { packEntries, packSourceOf } from '../../server/safekeeper/log/pack-reader.ts'
import { zstdCompress } from '../../server/shared/zstd.ts'
import { loadGoldenLog } from '../../test/support/redo-fixtures.ts'
import { type Benchmark, note, Report, runIfMain, UsageError, wholeNumber } from '../harness.ts'

const SEGMENT_BYTES = 64 * 1024 * 1024
const LOG_START_OFFSET = 12_288

function load(path: string | undefined, skip: number, maxBytes: number): Buffer {
  if (path === undefined) return Buffer.from(loadGoldenLog('4k').subarray(LOG_START_OFFSET))
  const fd = openSync(path, 'r')
  const redo = Buffer.alloc(maxBytes)
  let at = 0
  for (;;) {
    const got = readSync(fd, redo, at, Math.min(1 << 26, maxBytes - at), LOG_START_OFFSET + skip + at)
    if (got === 0) break
    at += got
  }
  closeSync(fd)
  return redo.subarray(0, at)
}

function entriesOf(redo: Buffer, chunkBytes: number, timelines: number): PackEntry[] {
  const entries: PackEntry[] = []
  const lsns = new Map<number, number>()
  for (let at = 0; at < redo.length; at += chunkBytes) {
    const payload = redo.subarray(at, Math.min(redo.length, at + chunkBytes))
    const owner = entries.length % timelines
    const lsn = lsns.get(owner) ?? 10_000
    lsns.set(owner, lsn + payload.length)
    entries.push({
      index: (entries.length + 1) as LogIndex,
      term: 3 as Term,
      kind: 'redo',
      timeline: (owner + 1).toString(16).padStart(8, '0').repeat(4) as TimelineId,
      epoch: 2 as WriterEpoch,
      beginLsn: lsn as Lsn,
      endLsn: (lsn + payload.length) as Lsn,
      wallTimeUs: 1_790_000_000_000_000 + entries.length * 1733,
      payload,
      payloadCrc: crc32c(payload, 0, payload.length),
      dropped: false,
      isVoid: false,
    })
  }
  return entries
}

function makePacks(entries: readonly PackEntry[], level: number): Buffer[] {
  const packs: Buffer[] = []
  for (let from = 0; from < entries.length; ) {
    let bytes = 0
    let to = from
    while (to < entries.length && (to === from || bytes + entries[to]!.payload.length <= SEGMENT_BYTES))
      bytes += entries[to++]!.payload.length
    const builder = new PackBuilder(
      {
        firstIndex: entries[from]!.index,
        lastIndex: entries[to - 1]!.index,
        prevTerm: 3 as Term,
        generation: 1,
      },
      { level },
    )
    for (const entry of entries.slice(from, to)) builder.add(entry)
    builder.finish()
    packs.push(Buffer.concat(builder.take()))
    from = to
  }
  return packs
}

function cpuSeconds(from: NodeJS.CpuUsage): number {
  const { user, system } = process.cpuUsage(from)
  return (user + system) / 1e6
}

export const benchmark: Benchmark = {
  summary: 'redo at rest: how small packs are, and what they cost',
  help: `  --redo FILE       an ib_logfile0; default the recorded 4k log of the tests
  --skip-bytes N    of its redo
  --max-bytes N     default 256 MiB
  --chunk-bytes N   redo of an entry; default 65536
  --levels LIST     of zstd; default 1,2,3
  --timelines N     default 1`,
  options: {
    redo: { type: 'string' },
    'skip-bytes': { type: 'string' },
    'max-bytes': { type: 'string' },
    'chunk-bytes': { type: 'string' },
    levels: { type: 'string' },
    timelines: { type: 'string' },
  },
  async run(values) {
    const path = values['redo'] === undefined ? undefined : String(values['redo'])
    const maxBytes = wholeNumber(values['max-bytes'], 256 * 1024 * 1024, '--max-bytes')
    const redo = load(path, wholeNumber(values['skip-bytes'], 0, '--skip-bytes', 0), maxBytes)
    const chunkBytes = wholeNumber(values['chunk-bytes'], 65_536, '--chunk-bytes')
    const timelines = wholeNumber(values['timelines'], 1, '--timelines')
    const levels = String(values['levels'] ?? '1,2,3')
      .split(',')
      .map(Number)
    if (!levels.every(level => Number.isInteger(level) && level > 0 && level < 20))
      throw new UsageError('--levels: whole numbers from 1 to 19')
    const entries = entriesOf(redo, chunkBytes, timelines)
    note(`${redo.length} bytes of redo in ${entries.length} entries of ${timelines} timelines`)
    const report = new Report({
      title: 'Packs, one core (processor time)',
      unit: 'MB/s',
      references: [{ subject: 'bare zstd', heading: 'of bare zstd' }],
    })
    for (const level of levels) {
      let begin = process.cpuUsage()
      let bare = 0
      for (let at = 0; at < redo.length; at += GROUP_BYTES_DEFAULT)
        bare += zstdCompress(redo.subarray(at, at + GROUP_BYTES_DEFAULT), level).length
      report.add({
        group: `level ${level}`,
        subject: 'bare zstd',
        perSecond: redo.length / 1e6 / cpuSeconds(begin),
        extra: { smaller: 1 - bare / redo.length },
      })
      begin = process.cpuUsage()
      const packs = makePacks(entries, level)
      const seconds = cpuSeconds(begin)
      const bytes = packs.reduce((sum, pack) => sum + pack.length, 0)
      const smaller = (part: number) => `${(100 - (part / redo.length) * 100).toFixed(1)} %`
      report.add({
        group: `level ${level}`,
        subject: `packs, ${smaller(bytes)} smaller (zstd alone ${smaller(bare)})`,
        perSecond: redo.length / 1e6 / seconds,
        extra: { smaller: 1 - bytes / redo.length },
      })
      begin = process.cpuUsage()
      let read = 0
      for (const pack of packs)
        for await (const entry of packEntries(packSourceOf('memory', pack))) read += entry.payload.length
      if (read !== redo.length) throw new Error(`${read} bytes were read of ${redo.length}`)
      report.add({
        group: `level ${level}`,
        subject: 'read all and check',
        perSecond: redo.length / 1e6 / cpuSeconds(begin),
      })
    }
    return report
  },
}

await runIfMain(import.meta.url, benchmark)
