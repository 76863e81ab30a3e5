import t from 'tap'
import { crc32c } from '../../../protocol/crc32c.ts'
import type { Lsn, TimelineId, WriterEpoch } from '../../../protocol/ids.ts'
import { TimelineStore } from '../../../server/safekeeper/timelines.ts'
import { retryError } from '../../../server/shared/errors.ts'
import { silentLog } from '../../../server/shared/log.ts'
import type { Disk } from '../../../server/shared/seams.ts'
import { MemoryDisk } from '../../support/memory-disk.ts'

const ID = 'cd'.repeat(16) as TimelineId
const START = 12_345 as Lsn
const SEGMENT_BYTES = 64 * 1024
const lsn = (n: number) => n as Lsn
const like = (fields: object) => fields as Error
/** Passes fast enough that some spare segments are filled and some are not. */
let nowMs = 0
const DIR = `/data/timelines/${ID}`

async function openStore(disk: Disk, segmentBytes = SEGMENT_BYTES) {
  const fatal: Error[] = []
  const store = await TimelineStore.open({
    disk,
    clock: { wallTimeUs: () => 0, monotonicMs: () => (nowMs += 500), sleep: async () => {} },
    dataDir: '/data',
    segmentBytes,
    log: silentLog,
    onFatal: error => fatal.push(error),
  })
  return { store, fatal }
}

async function newTimeline(disk: Disk, segmentBytes = SEGMENT_BYTES) {
  const { store, fatal } = await openStore(disk, segmentBytes)
  await store.create(ID, 'main', START)
  const timeline = store.get(ID)
  const { epoch } = await timeline.open('writer-1')
  return { store, timeline, epoch, fatal }
}

/** Redo that tells where it belongs. */
function chunk(beginLsn: number, bytes: number): Buffer {
  const out = Buffer.alloc(bytes)
  for (let i = 0; i < bytes; i++) out[i] = (beginLsn + i) * 31 + ((beginLsn + i) >> 8)
  return out
}

function append(
  timeline: Awaited<ReturnType<typeof newTimeline>>['timeline'],
  epoch: WriterEpoch,
  at: number,
  bytes: number,
) {
  const payload = chunk(at, bytes)
  return timeline.append(epoch, lsn(at), at * 10, payload, crc32c(payload, 0, bytes))
}

async function readAll(timeline: Awaited<ReturnType<typeof newTimeline>>['timeline'], from: number) {
  const cursor = timeline.read(lsn(from))
  const entries = []
  for (let entry = await cursor.next(); entry !== undefined; entry = await cursor.next()) entries.push(entry)
  await cursor.close()
  return entries
}

t.test('what is appended is read again, from memory and from disk, over many segments', async t => {
  const disk = new MemoryDisk()
  const { store, timeline, epoch } = await newTimeline(disk)
  let at: number = START
  const bounds: number[] = []
  const appends: Promise<unknown>[] = []
  for (let i = 0; i < 300; i++) {
    const bytes = 1 + ((i * 7919) % 3001)
    bounds.push(at)
    appends.push(append(timeline, epoch, at, bytes))
    at += bytes
  }
  await Promise.all(appends)
  t.equal(timeline.flushedLsn, at)
  t.ok(disk.syncs < 60, `300 appends shared ${disk.syncs} syncs`)
  for (const reopened of [false, true]) {
    if (reopened) await store.close(retryError('closing'))
    const { store: again } = reopened ? await openStore(disk) : { store }
    const log = again.get(ID)
    t.equal(log.flushedLsn, at)
    for (const from of [0, 1, 100, 299]) {
      const entries = await readAll(log, bounds[from]!)
      t.equal(entries.length, 300 - from)
      for (const entry of entries) {
        t.ok(chunk(entry.beginLsn, entry.payload.length).equals(entry.payload))
        t.equal(entry.wallTimeUs, entry.beginLsn * 10)
      }
    }
    await t.rejects(readAll(log, bounds[5]! + 1), like({ kind: 'invalid', message: /is not where a chunk/ }))
    t.throws(() => log.read(lsn(START - 1)), like({ kind: 'refresh', lsn: START }))
    t.throws(() => log.read(lsn(at + 1)), like({ kind: 'refresh', lsn: lsn(at) }))
    t.same(await readAll(log, at), [])
    if (reopened) {
      const next = await log.open('writer-2')
      t.same(next, { epoch: epoch + 1, beginLsn: START, endLsn: at })
      await append(log, next.epoch, at, 10)
      t.equal((await readAll(log, at)).length, 1)
    }
  }
})

t.test('appends begin at the end; duplicates are answered, gaps and overlaps refused', async t => {
  const { timeline, epoch } = await newTimeline(new MemoryDisk())
  t.equal(await append(timeline, epoch, START, 100), START + 100)
  const [first, again] = [append(timeline, epoch, START + 100, 50), append(timeline, epoch, START + 100, 50)]
  t.equal(await again, START + 150)
  await first
  t.equal((await readAll(timeline, START)).length, 2)
  await t.rejects(append(timeline, epoch, START + 151, 1), like({ kind: 'refresh', lsn: lsn(START + 150) }))
  await t.rejects(append(timeline, epoch, START + 149, 2), like({ kind: 'invalid', message: /overlaps/ }))
  const other = Buffer.alloc(50, 1)
  await t.rejects(
    timeline.append(epoch, lsn(START + 100), 0, other, crc32c(other, 0, 50)),
    like({ kind: 'invalid', message: /differs/ }),
  )
  await t.rejects(timeline.append(epoch, lsn(START + 150), 0, Buffer.alloc(0), 0), like({ kind: 'invalid' }))
  await t.rejects(
    append(timeline, epoch, START + 150, 70_000),
    like({ kind: 'invalid', message: /fit in a segment/ }),
  )
})

t.test('a new writer fences the old one, also after a restart', async t => {
  const disk = new MemoryDisk()
  const { timeline, epoch } = await newTimeline(disk)
  const queued = append(timeline, epoch, START, 100)
  const opened = await timeline.open('writer-2')
  await queued
  t.same(opened, { epoch: 2, beginLsn: START, endLsn: START + 100 })
  await t.rejects(append(timeline, epoch, START + 100, 1), like({ kind: 'fenced', message: /writer-2/ }))
  await t.rejects(append(timeline, 7 as WriterEpoch, START + 100, 1), like({ kind: 'invalid' }))
  await append(timeline, opened.epoch, START + 100, 1)
  const { store } = await openStore(disk.crash(() => 0))
  t.equal(store.get(ID).state().epoch, 2)
  t.equal(store.get(ID).flushedLsn, START + 101)
})

t.test('a gap is kept and told', async t => {
  const disk = new MemoryDisk()
  const { timeline, epoch } = await newTimeline(disk)
  await append(timeline, epoch, START, 100)
  t.equal(await timeline.skip(epoch, lsn(START + 100), lsn(START + 5000), 77), START + 5000)
  t.equal(await timeline.skip(epoch, lsn(START + 100), lsn(START + 5000), 77), START + 5000)
  await append(timeline, epoch, START + 5000, 10)
  for (const log of [timeline, (await openStore(disk.crash(() => 0))).store.get(ID)])
    t.match(await readAll(log, START), [
      { kind: 'data', beginLsn: START },
      { kind: 'gap', beginLsn: START + 100, endLsn: START + 5000, wallTimeUs: 77 },
      { kind: 'data', beginLsn: START + 5000 },
    ])
})

t.test('trimming waits for the slowest consumer and gives up whole segments', async t => {
  const disk = new MemoryDisk()
  const { timeline, epoch } = await newTimeline(disk)
  let at: number = START
  for (let i = 0; i < 100; i++, at += 5000) await append(timeline, epoch, at, 5000)
  const held = timeline.state().bytesHeld
  const slow = timeline.read(START)
  await slow.next()
  t.equal(await timeline.trim('slow', START), START)
  t.equal(await timeline.trim('fast', lsn(at)), START, 'the slow one holds it')
  t.ok((await timeline.trim('slow', lsn(START + 300_000))) > START + 200_000)
  t.ok(timeline.beginLsn <= START + 300_000)
  t.ok(timeline.state().bytesHeld < held / 2)
  t.ok(disk.used < held, 'the space is free')
  await t.rejects(readAll(timeline, timeline.beginLsn - 5000), like({ kind: 'refresh' }))
  // Its entries may still be in memory; from the disk it must be told that it came too late, not that there is damage.
  await t.rejects(
    (async () => {
      while ((await slow.next()) !== undefined);
      const { store } = await openStore(disk)
      await readAll(store.get(ID), START)
    })(),
    like({ kind: 'refresh' }),
  )
  await t.rejects(timeline.trim('fast', lsn(at + 1)), like({ kind: 'invalid' }))
  // Trimmed segments are used again.
  for (let i = 0; i < 30; i++, at += 5000) await append(timeline, epoch, at, 5000)
  const { store } = await openStore(disk.crash(() => 0))
  const log = store.get(ID)
  t.equal(log.flushedLsn, at)
  t.match(log.state().consumers, [{ consumer: 'slow' }, { consumer: 'fast' }])
  for (const entry of await readAll(log, log.beginLsn))
    t.ok(chunk(entry.beginLsn, entry.payload.length).equals(entry.payload))
})

t.test('a full disk refuses appends with retry, serves reads and trims, and recovers', async t => {
  const disk = new MemoryDisk()
  const { timeline, epoch, fatal } = await newTimeline(disk)
  let at: number = START
  disk.capacity = 5 * SEGMENT_BYTES
  let refusal: unknown
  while (refusal === undefined) {
    const [one, two] = await Promise.allSettled([
      append(timeline, epoch, at, 9000),
      append(timeline, epoch, at + 9000, 9000),
    ])
    if (one.status === 'fulfilled') at += 9000
    if (two.status === 'fulfilled') at += 9000
    if (two.status === 'rejected') refusal = two.reason
  }
  t.match(refusal, { kind: 'retry', message: /ENOSPC/ })
  t.equal(timeline.flushedLsn, at)
  t.match(timeline.state().lastError, /no space/)
  await t.rejects(append(timeline, epoch, at, 9000), like({ kind: 'retry' }), 'still full')
  t.equal((await readAll(timeline, START)).length, (at - START) / 9000)
  t.ok((await timeline.trim('page-server', lsn(at))) > START)
  t.equal(await append(timeline, epoch, at, 9000), at + 9000, 'trimming made room')
  t.equal(timeline.state().lastError, '')
  t.same(fatal, [])
})

t.test('a failed sync ends the node and acknowledges nothing', async t => {
  const disk = new MemoryDisk()
  const { timeline, epoch, fatal } = await newTimeline(disk)
  await append(timeline, epoch, START, 100)
  const { syncs } = disk
  disk.hook = operation => {
    if (operation === 'datasync') throw Object.assign(new Error('EIO'), { code: 'EIO' })
  }
  const results = await Promise.allSettled([
    append(timeline, epoch, START + 100, 100),
    append(timeline, epoch, START + 200, 100),
  ])
  t.match(results, [
    { status: 'rejected', reason: { kind: 'internal', message: /sync of .* failed: EIO/ } },
    { status: 'rejected' },
  ])
  disk.hook = () => {}
  await t.rejects(append(timeline, epoch, START + 300, 100), like({ kind: 'internal' }))
  t.equal(fatal.length, 1)
  t.equal(disk.syncs, syncs, 'it was not tried again')
})

t.test('damage', async t => {
  const make = async () => {
    const disk = new MemoryDisk()
    const { timeline, epoch } = await newTimeline(disk)
    let at: number = START
    for (let i = 0; i < 40; i++, at += 4000) await append(timeline, epoch, at, 4000)
    const files = disk.paths().filter(path => /[0-9]\.wal$/.test(path))
    return { disk, files, endLsn: at }
  }
  t.test('to acknowledged redo in the newest segment is an error that names the place', async t => {
    for (const [offset, name] of [
      [4096, 'header'],
      [4096 + 70, 'payload'],
    ] as const) {
      const { disk, files } = await make()
      disk.content(files.at(-1)!)[offset + 2]! ^= 0x10
      const { store } = await openStore(disk)
      t.throws(
        () => store.get(ID),
        like({ kind: 'corrupt', message: new RegExp(`${files.at(-1)} is damaged at offset 4096`) }),
        name,
      )
    }
  })
  t.test('to the unacknowledged last entry is a torn tail', async t => {
    const { disk, files, endLsn } = await make()
    const bytes = disk.content(files.at(-1)!)
    bytes[bytes.lastIndexOf('PLEN') + 100]! ^= 1
    const { store } = await openStore(disk)
    t.equal(store.get(ID).flushedLsn, endLsn - 4000)
  })
  t.test('after a clean end even the last entry is known', async t => {
    const { disk, files } = await make()
    const { store: clean } = await openStore(disk)
    await clean.close(retryError('closing'))
    const bytes = disk.content(files.at(-1)!)
    bytes[bytes.lastIndexOf('PLEN') + 100]! ^= 1
    t.throws(() => clean.get(ID), like({ kind: 'invalid' }))
    const { store } = await openStore(disk)
    t.throws(() => store.get(ID), like({ kind: 'corrupt', message: /was acknowledged/ }))
  })
  t.test('in an older segment is found when it is read, and stops there', async t => {
    const { disk, files } = await make()
    const bytes = disk.content(files[0]!)
    bytes[9000]! ^= 1
    const { store } = await openStore(disk)
    const cursor = store.get(ID).read(START)
    await cursor.next()
    await t.rejects(cursor.next(), like({ kind: 'corrupt', lsn: START + 4000 }))
    t.equal(store.get(ID).state().epoch, 1)
  })
  t.test('to headers and the control file', async t => {
    const cases: [RegExp, number, RegExp][] = [
      [/[0-9]\.wal$/, 3, /no log segment/],
      [/[0-9]\.wal$/, 8, /format version/],
      [/[0-9]\.wal$/, 33, /CRC-32C/],
      [/control$/, 5, /control file .* wrong CRC/],
    ]
    for (const [which, offset, message] of cases) {
      const { disk } = await make()
      disk.content(disk.paths().find(path => which.test(path))!)[offset]! ^= 1
      const { store } = await openStore(disk)
      t.throws(() => store.get(ID), like({ kind: 'corrupt', message }))
    }
    const { disk, files } = await make()
    await disk.remove(files[1]!)
    const { store } = await openStore(disk)
    await t.rejects(readAll(store.get(ID), START), like({ kind: 'corrupt' }), 'a segment is missing')
  })
})

/** A small generator of our own: each run is named by its seed. */
function random(seed: number): () => number {
  let state = Math.imul(seed, 2654435761) >>> 0
  return () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0
    return state / 2 ** 32
  }
}

/** Appends and trims until the power fails at a random operation; what was acknowledged and trimmed by then, and the disk. */
async function runUntilPowerLoss(next: () => number, lies: boolean) {
  const disk = new MemoryDisk()
  const { timeline, epoch } = await newTimeline(disk)
  disk.lies = lies
  const crashAfter = Math.floor(next() * 120)
  let operations = 0
  let image: MemoryDisk | undefined
  let ackedAtCrash: number = START
  let acked: number = START
  let trimmedTo: number = START
  disk.hook = () => {
    if (operations++ === crashAfter) {
      image = disk.crash(() => Math.min(1, Math.max(0, next() * 3 - 1)))
      ackedAtCrash = acked
    }
  }
  let at: number = START
  while (image === undefined) {
    const round: Promise<unknown>[] = []
    for (let i = Math.floor(next() * 6); i >= 0; i--) {
      const bytes = 1 + Math.floor(next() * 9000)
      const end = at + bytes
      round.push(
        append(timeline, epoch, at, bytes).then(() => {
          acked = Math.max(acked, end)
        }),
      )
      at = end
    }
    if (next() < 0.5) await Promise.all(round)
    else {
      await Promise.resolve()
      void Promise.all(round)
    }
    if (next() < 0.2 && acked > START) {
      trimmedTo = acked
      await timeline.trim('c', lsn(acked))
    }
  }
  return { image, acked: ackedAtCrash, trimmedTo }
}

t.test('power is lost at every moment: what was acknowledged is there', async t => {
  for (let seed = 1; seed <= 150; seed++) {
    const { image, acked, trimmedTo } = await runUntilPowerLoss(random(seed), false)
    const { store } = await openStore(image)
    const log = store.get(ID)
    t.ok(log.flushedLsn >= acked, `seed ${seed}: ${log.flushedLsn} of ${acked}`)
    t.ok(log.beginLsn <= trimmedTo, `seed ${seed}: nothing was trimmed too early`)
    let expected: number = log.beginLsn
    for (const entry of await readAll(log, log.beginLsn)) {
      if (entry.beginLsn !== expected || !chunk(expected, entry.payload.length).equals(entry.payload))
        t.fail(`seed ${seed}: wrong bytes at ${expected}`)
      expected = entry.endLsn
    }
    t.equal(expected, log.flushedLsn)
    const { epoch, endLsn } = await log.open('after')
    await append(log, epoch, endLsn, 3000)
    const { store: third } = await openStore(image.crash(() => 0))
    t.equal(third.get(ID).flushedLsn, endLsn + 3000, `seed ${seed}: goes on after recovery`)
  }
})

t.test('the same on a disk that lies about syncing loses redo, or the test above proves nothing', async t => {
  let losses = 0
  for (let seed = 1; seed <= 50; seed++) {
    const { image, acked } = await runUntilPowerLoss(random(seed), true)
    const { store } = await openStore(image)
    try {
      if (store.get(ID).flushedLsn < acked) losses++
    } catch {
      losses++
    }
  }
  t.ok(losses > 10, `${losses} of 50`)
})

t.test('timelines are made once, listed, and deleted', async t => {
  const disk = new MemoryDisk()
  const { store } = await openStore(disk)
  await store.create(ID, 'main', START)
  await store.create(ID, 'main', START)
  await t.rejects(store.create(ID, 'other', START), like({ kind: 'invalid' }))
  await t.rejects(store.create('ef'.repeat(16) as TimelineId, 'main', START), like({ kind: 'invalid' }))
  t.match(
    store.list().map(timeline => timeline.summary()),
    [{ name: 'main', beginLsn: START, committedLsn: START, epoch: 0 }],
  )
  const { store: again } = await openStore(disk.crash(() => 0))
  t.equal(again.list().length, 1)
  await again.delete(ID)
  t.throws(() => again.get(ID), like({ kind: 'invalid' }))
  t.same(disk.paths().filter(path => path.startsWith(`${DIR}/`)).length > 0, true)
})
