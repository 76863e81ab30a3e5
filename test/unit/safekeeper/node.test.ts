/** A cell of one on a disk in memory: what a writer, a reader and a consumer of its timelines may rely on. */
import t from 'tap'
import { crc32c } from '../../../protocol/crc32c.ts'
import type { Lsn, TimelineId, WriterEpoch } from '../../../protocol/ids.ts'
import { CellNode } from '../../../server/safekeeper/node.ts'
import { retryError } from '../../../server/shared/errors.ts'
import { silentLog } from '../../../server/shared/log.ts'
import type { Disk } from '../../../server/shared/seams.ts'
import { fastClock } from '../../support/fast-clock.ts'
import { lsnBytes } from '../../support/lsn-bytes.ts'
import { MemoryDisk } from '../../support/memory-disk.ts'

const ID = 'cd'.repeat(16) as TimelineId
const START = 12_345 as Lsn
const SEGMENT_BYTES = 64 * 1024
const lsn = (n: number) => n as Lsn
const like = (fields: object) => fields as Error

async function boot(disk: Disk, segmentBytes = SEGMENT_BYTES) {
  const fatal: Error[] = []
  const node = await CellNode.start({
    dir: '/data',
    name: 'one',
    address: () => '127.0.0.1:1',
    zone: '',
    peers: new Map(),
    join: [],
    disk,
    clock: fastClock(50),
    randomHex: bytes => 'ab'.repeat(bytes),
    random: () => 0.5,
    log: silentLog,
    segmentBytes,
    dial: {},
    timing: undefined,
    metrics: undefined,
    onFatal: error => fatal.push(error),
  })
  await node.leaderKnown(10_000)
  return { node, fatal, timelines: node.timelines, close: () => node.close(retryError('closing')) }
}
type Timelines = Awaited<ReturnType<typeof boot>>['timelines']

async function newTimeline(t: Tap, disk: Disk, segmentBytes = SEGMENT_BYTES) {
  const booted = await boot(disk, segmentBytes)
  t.teardown(booted.close)
  await booted.timelines.create(ID, 'main', START)
  const { epoch } = await booted.timelines.open(ID, 'writer-1')
  return { ...booted, epoch }
}

interface Tap {
  teardown(run: () => unknown): void
}

/** Redo that tells where it belongs. */
async function append(timelines: Timelines, epoch: WriterEpoch, at: number, bytes: number, id = ID) {
  const payload = lsnBytes(at, bytes)
  return timelines.append(id, epoch, lsn(at), at * 10, payload, crc32c(payload, 0, bytes))
}

async function readAll(timelines: Timelines, from: number, id = ID) {
  const reader = timelines.read(id, lsn(from))
  const chunks = []
  for (let next = await reader.next(); next !== undefined; next = await reader.next()) chunks.push(next)
  return chunks
}

t.test('what is appended is read again, also after a restart', async t => {
  const disk = new MemoryDisk()
  const { timelines, epoch, close } = await newTimeline(t, disk)
  let at: number = START
  const bounds: number[] = []
  const appends: Promise<unknown>[] = []
  for (let i = 0; i < 300; i++) {
    const bytes = 1 + ((i * 7919) % 3001)
    bounds.push(at)
    appends.push(append(timelines, epoch, at, bytes))
    at += bytes
  }
  await Promise.all(appends)
  t.ok(disk.syncs < 100, `300 appends shared ${disk.syncs} syncs`)
  for (const reopened of [false, true]) {
    let log = timelines
    if (reopened) {
      await close()
      const again = await boot(disk)
      t.teardown(again.close)
      log = again.timelines
    }
    t.equal(log.endLsn(ID), at)
    for (const from of [0, 1, 100, 299]) {
      const chunks = await readAll(log, bounds[from]!)
      t.equal(chunks.length, 300 - from)
      t.ok(chunks.every(one => lsnBytes(one.beginLsn, one.payload.length).equals(one.payload)))
      t.ok(chunks.every(one => one.wallTimeUs === one.beginLsn * 10))
    }
    await t.rejects(readAll(log, bounds[5]! + 1), like({ kind: 'invalid', message: /is not where a chunk/ }))
    t.throws(() => log.read(ID, lsn(START - 1)), like({ kind: 'refresh', lsn: START }))
    t.throws(() => log.read(ID, lsn(at + 1)), like({ kind: 'refresh', lsn: lsn(at) }))
    t.same(await readAll(log, at), [])
    if (reopened) {
      const next = await log.open(ID, 'writer-2')
      t.same(next, { epoch: epoch + 1, beginLsn: START, endLsn: at })
      await append(log, next.epoch, at, 10)
      t.equal((await readAll(log, at)).length, 1)
    }
  }
})

t.test('appends begin at the end; duplicates are answered, gaps and overlaps refused', async t => {
  const { timelines, epoch } = await newTimeline(t, new MemoryDisk())
  t.equal(await append(timelines, epoch, START, 100), START + 100)
  const [first, again] = [
    append(timelines, epoch, START + 100, 50),
    append(timelines, epoch, START + 100, 50),
  ]
  t.equal(await again, START + 150)
  await first
  t.equal((await readAll(timelines, START)).length, 2)
  await t.rejects(append(timelines, epoch, START + 151, 1), like({ kind: 'refresh', lsn: lsn(START + 150) }))
  await t.rejects(append(timelines, epoch, START + 149, 2), like({ kind: 'invalid', message: /overlaps/ }))
  const other = Buffer.alloc(50, 1)
  await t.rejects(
    timelines.append(ID, epoch, lsn(START + 100), 0, other, crc32c(other, 0, 50)),
    like({ kind: 'invalid', message: /differs/ }),
  )
  t.throws(
    () => timelines.append(ID, epoch, lsn(START + 150), 0, Buffer.alloc(0), 0),
    like({ kind: 'invalid' }),
  )
  await t.rejects(
    append(timelines, epoch, START + 150, 70_000),
    like({ kind: 'invalid', message: /fit in a segment/ }),
  )
})

t.test('a new writer fences the old one, also after a power loss', async t => {
  const disk = new MemoryDisk()
  const { timelines, epoch } = await newTimeline(t, disk)
  const queued = append(timelines, epoch, START, 100)
  const opening = timelines.open(ID, 'writer-2')
  const late = append(timelines, epoch, START + 100, 1)
  await t.rejects(
    late,
    like({ kind: 'retry', message: /about to be let in/ }),
    'the epoch counts from the moment that it is asked for, and fences once it is committed',
  )
  await queued
  const opened = await opening
  t.same(opened, { epoch: 2, beginLsn: START, endLsn: START + 100 })
  await t.rejects(append(timelines, epoch, START + 100, 1), like({ kind: 'fenced', message: /writer-2/ }))
  await t.rejects(append(timelines, 7 as WriterEpoch, START + 100, 1), like({ kind: 'invalid' }))
  await append(timelines, opened.epoch, START + 100, 1)
  const after = await boot(disk.crash(() => 0))
  t.teardown(after.close)
  t.match(await after.timelines.walState(ID), { epoch: 2, writer: 'writer-2', committedLsn: START + 101 })
})

t.test('a gap is kept and told', async t => {
  const disk = new MemoryDisk()
  const { timelines, epoch } = await newTimeline(t, disk)
  await append(timelines, epoch, START, 100)
  t.equal(await timelines.skip(ID, epoch, lsn(START + 100), lsn(START + 5000), 77), START + 5000)
  t.equal(await timelines.skip(ID, epoch, lsn(START + 100), lsn(START + 5000), 77), START + 5000)
  await append(timelines, epoch, START + 5000, 10)
  const after = await boot(disk.crash(() => 0))
  t.teardown(after.close)
  for (const log of [timelines, after.timelines])
    t.match(await readAll(log, START), [
      { kind: 'redo', beginLsn: START },
      { kind: 'gap', beginLsn: START + 100, endLsn: START + 5000, wallTimeUs: 77 },
      { kind: 'redo', beginLsn: START + 5000 },
    ])
})

t.test('consumers', async t => {
  const { timelines, epoch } = await newTimeline(t, new MemoryDisk())
  let at: number = START
  for (let i = 0; i < 10; i++, at += 5000) await append(timelines, epoch, at, 5000)
  t.equal(await timelines.trim(ID, 'slow', START), START)
  t.equal(await timelines.trim(ID, 'fast', lsn(at)), START, 'the slow one holds it')
  await timelines.trim(ID, 'slow', lsn(START + 30_000))
  await timelines.trim(ID, 'slow', lsn(START + 35_000))
  await timelines.flushTrims()
  t.equal((await timelines.walState(ID)).beginLsn, START + 35_000)
  await t.rejects(timelines.trim(ID, 'fast', lsn(at + 1)), like({ kind: 'invalid' }))
  await timelines.dropConsumer(ID, 'slow')
  t.match(await timelines.walState(ID), { beginLsn: at, consumers: [{ consumer: 'fast', durableLsn: at }] })
})

t.test('the log is trimmed to what consumers need, and snapshots with it', async t => {
  const disk = new MemoryDisk()
  const { timelines, epoch, node } = await newTimeline(t, disk)
  await timelines.trim(ID, 'page-server', START)
  let at: number = START
  for (let i = 0; i < 200; i++, at += 5000) await append(timelines, epoch, at, 5000)
  const settled = async (met: () => boolean) => {
    for (let i = 0; !met(); i++) {
      if (i === 5000) throw new Error(JSON.stringify(node.status()))
      await new Promise(resolve => setTimeout(resolve, 1))
    }
  }
  const snapshots = () => disk.paths().filter(path => path.includes('/snapshot-')).length
  await settled(() => snapshots() > 2)
  t.equal(node.status().beginIndex, 1, 'a consumer needs all of it')
  const need = START + 150 * 5000
  await timelines.trim(ID, 'page-server', lsn(need))
  await settled(() => node.status().beginIndex > 50)
  t.equal((await readAll(timelines, need)).length, 50)
  await t.rejects(readAll(timelines, START), like({ kind: 'refresh' }))
  const after = await boot(disk.crash(() => 0))
  t.teardown(after.close)
  t.equal((await readAll(after.timelines, need)).length, 50)
  t.match(await after.timelines.walState(ID), { committedLsn: at, beginLsn: need })
  await timelines.trim(ID, 'page-server', lsn(at))
  await append(timelines, epoch, at, 10)
})

t.test('a branch reads its ancestor below its beginning', async t => {
  const { timelines, epoch } = await newTimeline(t, new MemoryDisk())
  const BRANCH = 'be'.repeat(16) as TimelineId
  const TWIG = 'b2'.repeat(16) as TimelineId
  for (let i = 0; i < 5; i++) await append(timelines, epoch, START + i * 1000, 1000)
  t.equal(await timelines.branch(BRANCH, ID, lsn(START + 3500), 'branch'), START + 3000, 'down to a chunk')
  t.equal(await timelines.branch(BRANCH, ID, lsn(START + 3500), 'branch'), START + 3000, 'again')
  const { epoch: own, endLsn } = await timelines.open(BRANCH, 'w')
  t.equal(endLsn, START + 3000)
  await append(timelines, own, START + 3000, 77, BRANCH)
  await timelines.branch(TWIG, BRANCH, lsn(START + 3077), 'twig')
  t.same(
    (await readAll(timelines, START + 1000, TWIG)).map(one => one.endLsn - START),
    [2000, 3000, 3077],
  )
  t.match(timelines.show(BRANCH), { ancestor: ID, startLsn: START + 3000, branches: 1 })
  await t.rejects(timelines.delete(ID), like({ message: /delete them first/ }))
  await timelines.rename(BRANCH, 'other')
  await timelines.delete(TWIG)
  await timelines.delete(BRANCH)
  await t.rejects(timelines.create(BRANCH, 'x', START), like({ message: /was deleted/ }))
})

t.test('a full disk refuses appends with retry, serves reads, and recovers', async t => {
  const disk = new MemoryDisk()
  const { timelines, epoch, fatal } = await newTimeline(t, disk)
  let at: number = START
  await append(timelines, epoch, at, 9000)
  at += 9000
  disk.capacity = disk.used + SEGMENT_BYTES / 2
  let refusal: unknown
  while (refusal === undefined) {
    const [one, two] = await Promise.allSettled([
      append(timelines, epoch, at, 9000),
      append(timelines, epoch, at + 9000, 9000),
    ])
    if (one.status === 'fulfilled') at += 9000
    if (two.status === 'fulfilled') at += 9000
    if (two.status === 'rejected') refusal = two.reason
  }
  t.match(refusal, { kind: 'retry' })
  await t.rejects(append(timelines, epoch, at, 9000), like({ kind: 'retry' }), 'still full')
  t.equal((await readAll(timelines, START)).length, (at - START) / 9000)
  disk.capacity = Number.POSITIVE_INFINITY
  for (;;) {
    try {
      await append(timelines, epoch, at, 9000)
      break
    } catch (error) {
      t.match(error, { kind: 'retry' })
      await new Promise(resolve => setTimeout(resolve, 1))
    }
  }
  t.same(fatal, [])
})

t.test('a failed sync ends the node and acknowledges nothing', async t => {
  const disk = new MemoryDisk()
  const { timelines, epoch, fatal } = await newTimeline(t, disk)
  await append(timelines, epoch, START, 100)
  const { syncs } = disk
  disk.hook = operation => {
    if (operation === 'datasync') throw Object.assign(new Error('EIO'), { code: 'EIO' })
  }
  const results = await Promise.allSettled([
    append(timelines, epoch, START + 100, 100),
    append(timelines, epoch, START + 200, 100),
  ])
  t.match(results, [
    { status: 'rejected', reason: { kind: 'internal', message: /sync of .* failed: EIO/ } },
    { status: 'rejected' },
  ])
  disk.hook = () => {}
  await t.rejects(append(timelines, epoch, START + 300, 100), like({ kind: 'internal' }))
  t.equal(fatal.length, 1)
  t.equal(disk.syncs, syncs, 'it was not tried again')
})

t.test('a folder of an earlier release, or of another node', async t => {
  const disk = new MemoryDisk()
  await disk.makeDir('/data/timelines')
  await t.rejects(boot(disk), like({ kind: 'invalid', message: /earlier release/ }))
  const other = new MemoryDisk()
  const { close } = await boot(other)
  await close()
  const lost = other.crash(() => 1)
  await lost.remove('/data/log')
  await t.rejects(boot(lost), like({ kind: 'corrupt', message: /log is gone/ }))
  for (const name of ['/data/node.json', '/data/node-copy.json']) other.content(name)[20]! ^= 1
  await t.rejects(boot(other), like({ kind: 'corrupt', message: /node.json/ }))
})

t.test('a node that was stopped answers nothing, and leaves nobody waiting', async t => {
  const { node, timelines, epoch } = await newTimeline(t, new MemoryDisk())
  const before = append(timelines, epoch, START, 100)
  node.driver.stop(retryError('it stops'))
  await t.rejects(before, like({ kind: 'retry', message: /it stops/ }))
  await t.rejects(append(timelines, epoch, START, 100), like({ kind: 'retry', message: /it stops/ }))
  await t.rejects(node.driver.readBarrier(), like({ kind: 'retry', message: /it stops/ }))
  await t.rejects(timelines.list(), like({ kind: 'retry' }))
})
