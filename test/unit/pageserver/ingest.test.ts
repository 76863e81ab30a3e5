/** Redo through arenas, workers and memtables, without any server around them. */
import t from 'tap'
import { ChunkIndexer } from '../../../parser/chunk-index.ts'
import { MtrScanner } from '../../../parser/mtr-scanner.ts'
import { RecordType } from '../../../parser/record-decoder.ts'
import type { Lsn } from '../../../protocol/ids.ts'
import { ArenaMemory, ArenaPool, NO_WORD } from '../../../server/pageserver/arena.ts'
import { RedoIngest } from '../../../server/pageserver/ingest.ts'
import { Memtable } from '../../../server/pageserver/memtable.ts'
import { RunCursor } from '../../../server/pageserver/run-index.ts'
import type { PalimpsestError } from '../../../server/shared/errors.ts'
import { WorkerPool } from '../../../server/shared/worker-pool.ts'
import { ChunkIndexView } from '../../support/chunk-index-view.ts'
import { chunksOf, type GoldenLog, goldenLog, seeded } from '../../support/page-server-rig.ts'
import { mtr, record } from '../../support/redo-builder.ts'

type Tasks = typeof import('../../../server/pageserver/worker.ts')
const memory = ArenaMemory.allocate(8 << 23, 1 << 23)
const workers = new WorkerPool<Tasks>({
  filename: new URL('../../../server/pageserver/worker.ts', import.meta.url).href,
  threads: 2,
  workerData: {
    arenas: memory.geometry,
    cache: new SharedArrayBuffer(8),
    layerBytesMax: 1 << 20,
    background: false,
    started: new SharedArrayBuffer(4),
  },
})
t.teardown(() => workers.close())

/** Takes in a whole log; calls `full` when the memtable holds more than `limit` bytes. */
async function takeIn(log: GoldenLog, size: () => number, limit: number, full: (memtable: Memtable) => void) {
  const pool = new ArenaPool(memory)
  let memtable = new Memtable(pool, log.begin as Lsn)
  const ingest = new RedoIngest(pool, workers, log.pageSize, log.begin as Lsn, {
    link(range) {
      memtable.hold(range.arena)
      memtable.link(range.header, range.bytes, range.endLsn, () => {})
      if (memtable.bytes < limit) return
      full(memtable)
      memtable.markFlushed()
      memtable = new Memtable(pool, range.endLsn)
    },
    stopped(error) {
      throw error
    },
    starved() {},
  })
  for (const chunk of chunksOf(log, size)) {
    let target = ingest.reserve(chunk.length)
    while (target === undefined) {
      await ingest.room()
      target = ingest.reserve(chunk.length)
    }
    target.set(chunk)
    ingest.commit(ingest.arrivedLsn, 0)
  }
  while (!ingest.idle) await new Promise(resolve => setTimeout(resolve, 2))
  full(memtable)
  memtable.markFlushed()
  ingest.close()
  return pool
}

t.test('every entry arrives once, in order, and every arena comes back', async t => {
  const log = goldenLog('64k')
  const random = seeded(1)
  const runs = new RunCursor(memory)
  for (const [what, size, limit] of [
    ['small chunks, one memtable', () => 500 * random(), 1 << 30],
    ['large chunks, many memtables', () => 200_000 * random(), 300_000],
  ] as const) {
    let entries = 0
    let bytes = 0
    let end = log.begin
    const pool = await takeIn(log, size, limit, memtable => {
      t.equal(memtable.beginLsn, end)
      end = memtable.endLsn
      const triples = memtable.toTriples()
      for (let i = 0; i < triples.length; i += 3) {
        let newer = Number.POSITIVE_INFINITY
        for (let run = triples[i + 2]!; run !== NO_WORD; run = runs.previous(run)) {
          runs.open(run)
          if (runs.lastLsn > newer) t.fail('runs out of order')
          newer = runs.firstLsn
          const before = { entries, bytes }
          let last = runs.firstLsn
          while (runs.next()) {
            entries++
            bytes += runs.end - runs.start
            if (runs.lsn < last || runs.lsn <= memtable.beginLsn || runs.lsn > memtable.endLsn)
              t.fail('an entry of another memtable')
            last = runs.lsn
          }
          if (last !== runs.lastLsn || entries - before.entries !== runs.entryCount)
            t.fail('entries are not those of the row')
          if (bytes - before.bytes !== runs.payloadBytes || runs.end !== runs.runEnd)
            t.fail('bytes are not those of the row')
        }
      }
    })
    t.equal(end, log.end, what)
    t.equal(pool.freeCount, pool.total, 'no arena is lost')
    t.matchOnly({ entries, bytes }, expected(log), what)
  }
})

let counted: { entries: number; bytes: number } | undefined

/** The same numbers from a plain walk over the records. */
function expected(log: GoldenLog): { entries: number; bytes: number } {
  counted ??= countEntries(log)
  return counted
}

function countEntries(log: GoldenLog): { entries: number; bytes: number } {
  const indexer = new ChunkIndexer({ pageBytesMax: log.pageSize })
  indexer.index(log.bytes, 0, log.end - log.begin, log.begin as Lsn)
  const view = new ChunkIndexView(indexer)
  return { entries: view.entryCount, bytes: view.entryLength.reduce((sum, length) => sum + length, 0) }
}

t.test('redo whose index is far larger than itself', async t => {
  // Pages that are freed, and nothing else: ten bytes of redo make more than fifty of index.
  const mtrs: Uint8Array[] = []
  for (let page = 0; page < 400_000; page += 20)
    mtrs.push(
      mtr(
        Array.from({ length: 20 }, (_, i) =>
          record(RecordType.FREE_PAGE, { space: 500, page: 20_000 + page + i }),
        ),
      ),
    )
  const begin = 10_000
  const bytes = Buffer.concat(mtrs)
  const log = { bytes, begin, end: begin + bytes.length, pageSize: 16_384 } as GoldenLog
  let pages = 0
  const pool = await takeIn(
    log,
    () => 300_000,
    500_000,
    memtable => {
      pages += memtable.pages
    },
  )
  t.equal(pages, 400_000)
  t.equal(pool.freeCount, pool.total)
})

t.test('a flipped bit anywhere stops ingestion at its mini-transaction', async t => {
  const whole = goldenLog('64k')
  const random = seeded(99)
  const scanner = new MtrScanner()
  const begins: number[] = []
  let length = 0
  while (length < 400_000) {
    begins.push(length)
    scanner.scan(whole.bytes, length, whole.bytes.length, (whole.begin + length) as Lsn, null)
    length = scanner.mtrEnd
  }
  for (let round = 0; round < 40; round++) {
    const at = Math.floor(length * random())
    const damagedMtr = begins.findLast(begin => begin <= at)!
    const bytes = Uint8Array.from(whole.bytes.subarray(0, length))
    bytes[at]! ^= 1 << Math.floor(8 * random())
    const pool = new ArenaPool(memory)
    const memtable = new Memtable(pool, whole.begin as Lsn)
    let error: PalimpsestError | undefined
    const ingest = new RedoIngest(pool, workers, whole.pageSize, whole.begin as Lsn, {
      link(range) {
        memtable.hold(range.arena)
        memtable.link(range.header, range.bytes, range.endLsn, () => {})
      },
      stopped(why) {
        error = why
      },
      starved() {},
    })
    // Cut where mini-transactions end in the sound log.
    for (let from = 0; from < length && !ingest.isStopped; ) {
      const to = begins.find(begin => begin > from + 30_000 * random()) ?? length
      ingest.reserve(to - from)!.set(bytes.subarray(from, to))
      ingest.commit(ingest.arrivedLsn, 0)
      from = to
      if (round % 2 === 0) await new Promise(resolve => setImmediate(resolve))
    }
    while (!ingest.idle) await new Promise(resolve => setTimeout(resolve, 1))
    // The terminator's lowest bit belongs to the ring, not to the mini-transaction: nobody can tell.
    const unnoticed = error === undefined && memtable.endLsn === whole.begin + length
    if (!unnoticed) {
      t.equal(memtable.endLsn, whole.begin + damagedMtr, `bit at byte ${at}`)
      t.match(error, { kind: 'corrupt', lsn: whole.begin + damagedMtr })
    }
    memtable.markFlushed()
    ingest.close()
    // What was dropped behind the damage may still be at work in the other thread; it holds its arenas until then.
    for (let tries = 0; pool.freeCount < pool.total && tries < 10_000; tries++)
      await new Promise(resolve => setTimeout(resolve, 1))
    t.equal(pool.freeCount, pool.total)
  }
})
