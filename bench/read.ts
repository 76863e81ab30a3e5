// Reading pages from a page server, warm and cold, against the bare node:net ceiling and against HTTP with JSON.
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { Connection } from '../protocol/connection.ts'
import { dial } from '../protocol/dial.ts'
import type { Lsn, TimelineId } from '../protocol/ids.ts'
import { type GetPages, MessageType, PageStatus, Role } from '../protocol/messages.ts'
import { type Cluster, palimpsest, startCluster, stopCluster } from './cluster.ts'
import { dataset } from './dataset.ts'
import { type Benchmark, note, Report, runIfMain, UsageError, wholeNumber } from './harness.ts'
import { httpJsonName, measureHttpJson } from './http-json-server.ts'
import { atRandom, drive, eachOnce, type PageSource, patterns } from './load.ts'
import { ceilingName, latencies, measureCeiling } from './net-ceiling.ts'

/** Our protocol's client, just as everybody uses it: every page's checksum is verified as it arrives. */
class PalimpsestSource implements PageSource {
  readonly name: string
  private readonly connection: Connection
  private readonly timeline: TimelineId
  private readonly lsn: Lsn

  constructor(name: string, connection: Connection, timeline: TimelineId, lsn: Lsn) {
    this.name = name
    this.connection = connection
    this.timeline = timeline
    this.lsn = lsn
  }

  async fetch(pages: Uint32Array): Promise<void> {
    const { timeline, lsn } = this
    const request: GetPages = {
      type: MessageType.GetPages,
      timeline,
      lsn,
      notModifiedSinceLsn: lsn,
      flags: 0,
      pages,
    }
    let came = 0
    for (const { message, bulk } of await this.connection.requestAll(request)) {
      const { sections } = message
      for (let i = 0; i < sections.count; i++) {
        if (sections.status(i) !== PageStatus.OK) {
          throw new Error(
            `page ${sections.page(i)} of space ${sections.space(i)} came with status ${sections.status(i)}`,
          )
        }
      }
      came += sections.count
      this.connection.recycle(bulk)
    }
    if (came !== pages.length >>> 1) throw new Error(`asked for ${pages.length >>> 1} pages, ${came} came`)
  }

  async close(): Promise<void> {
    this.connection.close()
  }
}

type Target = { connection: Connection; timeline: TimelineId; lsn: Lsn; pages: Uint32Array }

/** Connects and finds out which pages there are at the newest LSN. */
async function open(address: string, timelineName: string): Promise<Target> {
  const connection = await dial(address, Role.PAGESERVER)
  const shown = await connection.request({
    type: MessageType.TimelineShow,
    timeline: undefined,
    name: timelineName,
  })
  const timeline = shown.message.summary.timeline
  const pairs: number[] = []
  let lsn = 0 as Lsn
  for (const { message } of await connection.requestAll({
    type: MessageType.SpaceList,
    timeline,
    lsn: 0 as Lsn,
  })) {
    lsn = message.lsn
    for (const { space, pages } of message.spaces)
      for (let page = 0; page < pages; page++) pairs.push(space, page)
  }
  const pages = await thoseThatExist(connection, timeline, lsn, Uint32Array.from(pairs))
  return { connection, timeline, lsn, pages }
}

/** Of all page numbers, those that have contents: never-written ones would be cheap to serve. */
async function thoseThatExist(
  connection: Connection,
  timeline: TimelineId,
  lsn: Lsn,
  all: Uint32Array,
): Promise<Uint32Array> {
  const kept: number[] = []
  for (let at = 0; at < all.length; at += 512) {
    const pages = all.subarray(at, at + 512)
    const request: GetPages = {
      type: MessageType.GetPages,
      timeline,
      lsn,
      notModifiedSinceLsn: lsn,
      flags: 0,
      pages,
    }
    for (const { message } of await connection.requestAll(request, { deadlineMs: 300_000 })) {
      const { sections } = message
      for (let i = 0; i < sections.count; i++) {
        if (sections.status(i) === PageStatus.OK && sections.pageLsn(i) > 0)
          kept.push(sections.space(i), sections.page(i))
      }
    }
  }
  if (kept.length === 0) throw new Error('the timeline has no pages')
  return Uint32Array.from(kept)
}

/** The first `count` pages of a list, spread evenly over it. */
function sample(pages: Uint32Array, count: number): Uint32Array {
  const all = pages.length >>> 1
  if (count >= all) return pages
  const out = new Uint32Array(2 * count)
  for (let i = 0; i < count; i++) {
    const from = 2 * Math.floor((i * all) / count)
    out[2 * i] = pages[from]!
    out[2 * i + 1] = pages[from + 1]!
  }
  return out
}

async function measureWarm(
  report: Report,
  target: Target,
  workingSet: number,
  seconds: number,
): Promise<void> {
  const { connection, timeline, lsn, pages } = target
  const source = new PalimpsestSource('Palimpsest, warm', connection, timeline, lsn)
  const chosen = sample(pages, workingSet)
  for (const pattern of patterns) {
    note(`${source.name}: ${pattern.name}, ${chosen.length >>> 1} pages…`)
    await drive(source, { name: 'fill the cache', depth: 4, pagesPerRequest: 64 }, eachOnce(chosen), 600)
    const measured = await drive(source, pattern, atRandom(chosen), seconds, 1)
    report.add({
      group: pattern.name,
      subject: source.name,
      perSecond: measured.pagesPerSecond,
      ...latencies(measured),
    })
  }
}

/** Each page once, on a server that was just started: nothing is in its memory. */
async function measureCold(report: Report, restart: () => Promise<Target>, seconds: number): Promise<void> {
  for (const pattern of patterns) {
    const { connection, timeline, lsn, pages } = await restart()
    const source = new PalimpsestSource('Palimpsest, cold', connection, timeline, lsn)
    note(`${source.name}: ${pattern.name}, ${pages.length >>> 1} pages, each once…`)
    const measured = await drive(source, pattern, eachOnce(pages), seconds)
    report.add({
      group: pattern.name,
      subject: source.name,
      perSecond: measured.pagesPerSecond,
      ...latencies(measured),
    })
    await source.close()
  }
}

export const benchmark: Benchmark = {
  summary: 'Reading pages, warm and cold, against bare node:net and against HTTP with JSON.',
  help: [
    '  --megabytes N      redo of the sysbench data set to read from (400)',
    '  --working-set N    pages that are read again and again when warm (8192: 128 MiB)',
    '  --seconds N        length of each measurement (5)',
    '  --rounds N         how often references and we take turns when warm; the best counts (2)',
    '  --connect ADDRESS  a running page server instead of one of our own; warm only',
    '  --timeline NAME    its timeline',
  ].join('\n'),
  options: {
    megabytes: { type: 'string' },
    'working-set': { type: 'string' },
    seconds: { type: 'string' },
    rounds: { type: 'string' },
    connect: { type: 'string' },
    timeline: { type: 'string' },
  },
  async run(values) {
    const seconds = wholeNumber(values['seconds'], 5, 'seconds')
    const workingSet = wholeNumber(values['working-set'], 8192, 'working-set')
    const rounds = wholeNumber(values['rounds'], 2, 'rounds')
    const report = new Report({
      title: 'Reading 16 KiB pages over loopback, one connection',
      unit: 'pages/s',
      references: [
        { subject: ceilingName, heading: 'node:net ceiling' },
        { subject: httpJsonName, heading: httpJsonName },
      ],
    })
    const { connect, timeline } = values
    if (typeof connect === 'string') {
      if (typeof timeline !== 'string') throw new UsageError('--connect needs --timeline NAME')
      const target = await open(connect, timeline)
      await measureInRounds(report, target, { rounds, workingSet, seconds })
      target.connection.close()
      return report
    }
    const data = await dataset(wholeNumber(values['megabytes'], 400, 'megabytes', 10))
    await measureOwnCluster(report, data, { rounds, workingSet, seconds })
    return report
  },
}

type Amount = { rounds: number; workingSet: number; seconds: number }

/** References and we take turns, so that a busy moment of the machine does not hit one of them alone. */
async function measureInRounds(report: Report, target: Target, amount: Amount): Promise<void> {
  for (let round = 0; round < amount.rounds; round++) {
    await measureReferences(report, target, amount.workingSet, amount.seconds)
    await measureWarm(report, target, amount.workingSet, amount.seconds)
  }
}

/** The references send as many different pages as we do: what fits into a processor's cache is quicker. */
async function measureReferences(
  report: Report,
  target: Target,
  workingSet: number,
  seconds: number,
): Promise<void> {
  const count = Math.min(workingSet, target.pages.length >>> 1)
  await measureCeiling(report, count, seconds)
  await measureHttpJson(report, count, seconds)
}

async function measureOwnCluster(
  report: Report,
  data: { baseDatadir: string; logFile: string },
  { rounds, workingSet, seconds }: Amount,
): Promise<void> {
  const scratch = mkdtempSync(join(tmpdir(), 'pal-bench-'))
  const dataDir = join(scratch, 'cluster')
  let cluster: Cluster = await startCluster(dataDir)
  try {
    note('importing the data set…')
    const { address } = cluster
    await palimpsest([
      'import',
      '--connect',
      address,
      '--datadir',
      data.baseDatadir,
      '--timeline',
      'bench',
      '--redo',
      data.logFile,
    ])
    const target = await open(address, 'bench')
    await measureInRounds(report, target, { rounds, workingSet, seconds })
    target.connection.close()
    await measureCold(
      report,
      async () => {
        await stopCluster(cluster)
        cluster = await startCluster(dataDir)
        // The list of pages is known; finding it out again would warm the server.
        const connection = await dial(cluster.address, Role.PAGESERVER)
        return { ...target, connection }
      },
      seconds,
    )
  } finally {
    await stopCluster(cluster)
    rmSync(scratch, { recursive: true, force: true })
  }
}

await runIfMain(import.meta.url, benchmark)
