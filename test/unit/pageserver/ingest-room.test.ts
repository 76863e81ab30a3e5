/** What ingestion does when there is no room, or when it is ended amid its work. */
import t from 'tap'
import type { Lsn } from '../../../protocol/ids.ts'
import { ArenaMemory, ArenaPool } from '../../../server/pageserver/arena.ts'
import { RedoIngest } from '../../../server/pageserver/ingest.ts'
import { Memtable } from '../../../server/pageserver/memtable.ts'
import { WorkerPool } from '../../../server/shared/worker-pool.ts'
import { chunksOf, goldenLog } from '../../support/page-server-rig.ts'

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

t.test('who was refused room is not told at once that there is some', async t => {
  // A reader that asks again at once, for ever, would keep everybody else from working.
  const pool = new ArenaPool(memory)
  const ingest = new RedoIngest(pool, workers, 16_384, 1000 as Lsn, {
    link() {},
    stopped() {},
    starved() {},
  })
  let reserved = 0
  while (ingest.reserve(1 << 20) !== undefined) reserved++
  t.ok(reserved > 20 && pool.hasRoom, 'too much has arrived that nobody has taken up yet')
  let told = false
  void ingest.room().then(() => {
    told = true
  })
  await new Promise(resolve => setTimeout(resolve, 10))
  t.notOk(told)
  ingest.abandon()
  await new Promise(resolve => setTimeout(resolve, 10))
  t.ok(told)
  ingest.close()
  t.equal(pool.freeCount, pool.total)
})

t.test('a timeline that ends amid its work gives back every arena', async t => {
  const log = goldenLog('64k')
  for (const wait of [0, 1, 5, 20]) {
    const pool = new ArenaPool(memory)
    const memtable = new Memtable(pool, log.begin as Lsn)
    const ingest = new RedoIngest(pool, workers, log.pageSize, log.begin as Lsn, {
      link(range) {
        memtable.hold(range.arena)
        memtable.link(range.header, range.bytes, range.endLsn, () => {})
      },
      stopped() {},
      starved() {},
    })
    const chunks = [...chunksOf(log, () => 1 << 20)]
    // More than is worked on at a time.
    for (const chunk of [...chunks, ...chunks, ...chunks, ...chunks]) {
      const target = ingest.reserve(chunk.length)
      if (target === undefined) break
      target.set(chunk)
      ingest.commit(ingest.arrivedLsn, 0)
    }
    await new Promise(resolve => setTimeout(resolve, wait))
    ingest.close()
    memtable.markFlushed()
    t.ok(ingest.idle)
    // What workers are at is read and written by them until they are done.
    while (workers.running > 0) await new Promise(resolve => setTimeout(resolve, 10))
    await new Promise(resolve => setTimeout(resolve, 10))
    t.equal(pool.freeCount, pool.total, `after ${wait} ms`)
  }
})

t.test('an index that is too large for the arena of its redo gets another one', async t => {
  const pool = new ArenaPool(memory)
  const asked: number[] = []
  // In the place of the workers: the third range has an index many times its size.
  const table = {
    threads: 2,
    async run(_: 'indexRange', input: { indexArena: number; indexBytes: number }) {
      asked.push(input.indexBytes)
      if (asked.length !== 3) return { status: 'ok', header: 0, events: [], mtrs: 1, records: 1 }
      memory.giveBack(input.indexArena, input.indexBytes)
      return { status: 'no-room', bytes: 3 << 20 }
    },
  } as unknown as WorkerPool<Tasks>
  let linked = 0
  const ingest = new RedoIngest(pool, table, 16_384, 1000 as Lsn, {
    link() {
      linked++
    },
    stopped(error) {
      throw error
    },
    starved() {},
  })
  // Two that leave the arena of the redo less than the third one's index needs, and the one of indexes as well.
  for (const bytes of [3 << 20, 3300 << 10, 100 << 10]) {
    t.ok(ingest.reserve(bytes))
    ingest.commit(ingest.arrivedLsn, 0)
    await new Promise(resolve => setTimeout(resolve, 1))
  }
  t.equal(linked, 3, `asked for ${asked}`)
  t.ok(ingest.idle, 'nobody else would have given an arena back')
  ingest.close()
  t.equal(pool.freeCount, pool.total)
})
