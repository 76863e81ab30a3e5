/** The cell's log as its users see it: appending, cutting, resetting, reading, by index and by timeline. */
import t from 'tap'
import type { EntryId, LogIndex } from '../../../../server/safekeeper/core/types.ts'
import {
  appendAndFlush,
  createLog,
  entriesOf,
  gap,
  type Made,
  noop,
  openLog,
  redo,
  SEGMENT_BYTES,
  T1,
  T2,
} from '../../../support/cell-log-rig.ts'
import { MemoryDisk } from '../../../support/memory-disk.ts'

const like = (shape: object) => shape as Error

function index(n: number): LogIndex {
  return n as LogIndex
}

t.test('what was appended is read back, from memory and after a restart from disk', async t => {
  const { disk, log, events } = await createLog()
  const made: Made[] = []
  for (let i = 1; i <= 200; i++)
    made.push(i % 10 === 0 ? noop(i, 1 + (i >> 6)) : redo(i, 1 + (i >> 6), T1, i * 1000, 1000))
  log.append(made)
  t.equal(log.lastIndex, 200)
  t.equal(log.flushed.index, 0)
  await events.flushed(200)
  t.same(await entriesOf(log, 1, 200), made)
  t.ok(log.stats().rawSegments > 2)
  await log.close()
  const { log: again, start } = await openLog(disk)
  t.same(start.runs, [
    { term: 1, count: 63 },
    { term: 2, count: 64 },
    { term: 3, count: 64 },
    { term: 4, count: 9 },
  ])
  t.same(await entriesOf(again, 1, 200), made)
  t.equal((await again.read(index(50), index(200), 1)).length, 1, 'at least one')
  t.equal((await again.read(index(201), index(300), 1)).length, 0)
  t.equal(again.termAt(index(64)), 2)
  t.equal(again.termAt(index(0)), 0)
  t.equal(again.termAt(index(201)), undefined)
  t.throws(() => again.append([redo(203, 4, T1, 5, 5)]), like({ kind: 'internal' }))
  t.throws(() => again.append([noop(201, 3)]), like({ kind: 'internal' }))
})

t.test('a cut is durable: what was cut never comes back, and what follows stands', async t => {
  const { disk, log, events } = await createLog()
  const first: Made[] = []
  for (let i = 1; i <= 100; i++) first.push(redo(i, 1, T1, i * 1000, 1000))
  await appendAndFlush(log, events, first)
  const cut = log.truncateAfter(index(30))
  t.equal(log.lastIndex, 30, 'at once in memory')
  const second: Made[] = []
  for (let i = 31; i <= 60; i++) second.push(redo(i, 2, T1, i * 1000, 1000))
  log.append(second)
  await cut
  await events.flushed(60)
  t.ok(!events.all.some(id => id.index > 60 && id.term === 2))
  t.same(await entriesOf(log, 1, 60), [...first.slice(0, 30), ...second])
  const { log: again } = await openLog(disk.crash(() => 0))
  t.same(await entriesOf(again, 1, 100), [...first.slice(0, 30), ...second])
  await again.truncateAfter(index(40))
  const { log: third } = await openLog(disk.crash(() => 0))
  t.equal(third.lastIndex, 60)
})

t.test('a cut of what was never written, and a cut to nothing', async t => {
  const { disk, log, events } = await createLog()
  await appendAndFlush(log, events, [noop(1, 1), noop(2, 1)])
  log.append([noop(3, 1), noop(4, 1)])
  const cut = log.truncateAfter(index(2))
  log.append([noop(3, 2)])
  await cut
  await events.flushed(3)
  t.same(log.last, { index: 3, term: 2 })
  await log.truncateAfter(index(0))
  t.same(log.last, { index: 0, term: 0 })
  const { log: again } = await openLog(disk.crash(() => 0))
  t.equal(again.lastIndex, 0)
})

t.test('after a reset the log begins where it was told to', async t => {
  const { disk, log, events } = await createLog()
  const made: Made[] = []
  for (let i = 1; i <= 100; i++) made.push(redo(i, 1, T1, i * 1000, 1000))
  await appendAndFlush(log, events, made)
  const base = { index: 500, term: 7 } as EntryId
  const reset = log.reset(base)
  log.append([noop(501, 7)])
  await reset
  await events.flushed(501)
  t.equal(log.beginIndex, 501)
  t.equal(log.termAt(index(500)), 7)
  await t.rejects(log.read(index(100), index(200), 1000), like({ kind: 'refresh' }))
  const { log: again, start } = await openLog(
    disk.crash(() => 0),
    { appliedTo: 500 },
  )
  t.same(start.base, base)
  t.same(start.runs, [{ term: 7, count: 1 }])
  t.equal(disk.paths().filter(path => path.endsWith('.seg') && !path.includes('spare')).length, 1)
  t.equal(again.lastIndex, 501)
})

t.test('timelines are read by LSN, without what is void or not applied', async t => {
  const { disk, log, events } = await createLog()
  const made: Made[] = [
    redo(1, 1, T1, 1000, 100),
    redo(2, 1, T2, 5000, 700),
    redo(3, 1, T1, 1100, 200),
    redo(4, 1, T1, 1100, 300),
    gap(5, 1, T1, 1300, 2000),
    redo(6, 1, T1, 2000, 50),
    redo(7, 1, T1, 2050, 50),
  ]
  await appendAndFlush(log, events, made)
  for (const entry of made.slice(0, 6)) log.applied(entry, entry.index === 4)
  const chunks = async (from: number, reader = log) => {
    const cursor = reader.timelineCursor(T1, from as never)
    const out: string[] = []
    for (let chunk = await cursor.next(); chunk !== undefined; chunk = await cursor.next())
      out.push(`${chunk.index} ${chunk.kind} ${chunk.beginLsn}-${chunk.endLsn} ${chunk.payload.length}`)
    return out
  }
  const all = ['1 redo 1000-1100 100', '3 redo 1100-1300 200', '5 gap 1300-2000 0', '6 redo 2000-2050 50']
  t.same(await chunks(1000), all)
  t.same(await chunks(1100), all.slice(1))
  await t.rejects(chunks(1101), like({ kind: 'invalid', message: /nearest are 1100 and 1300/ }))
  await t.rejects(chunks(900), like({ kind: 'refresh' }))
  t.same(await chunks(2050), [])
  t.equal(await log.boundaryAtOrBelow(T1, 1999 as never), 1300)
  t.equal(await log.boundaryAtOrBelow(T1, 1300 as never), 1300)
  t.equal(await log.boundaryAtOrBelow(T1, 9999 as never), 2050)
  await log.settleApplied()
  const { log: again } = await openLog(
    disk.crash(() => 0),
    { appliedTo: 6 },
  )
  t.same(await chunks(1000, again), all)
  again.applied(made[6]!)
  t.same((await chunks(1000, again)).at(-1), '7 redo 2050-2100 50')
  t.throws(() => again.applied(made[6]!), like({ kind: 'internal' }))
})

t.test('a full disk drops what does not fit, takes small entries, and is writable again', async t => {
  const { disk, log, events } = await createLog()
  const made: Made[] = []
  let at = 1
  disk.capacity = 8 * SEGMENT_BYTES
  while (log.writable) {
    log.append([redo(at, 1, T1, at * 9000, 9000), redo(at + 1, 1, T1, (at + 1) * 9000, 9000)])
    await events.quiet(log)
    for (; at <= log.lastIndex; at++) made.push(redo(at, 1, T1, at * 9000, 9000))
  }
  t.same(events.writable, [false])
  t.equal(log.flushed.index, log.lastIndex)
  t.match(log.lastError, /no space/)
  t.throws(() => log.append([redo(at, 1, T1, at * 9000, 9000)]), like({ kind: 'retry' }))
  for (let i = 0; i < 20; i++, at++) {
    const entry = noop(at, 2)
    made.push(entry)
    await appendAndFlush(log, events, [entry])
  }
  t.same(await entriesOf(log, 1, at), made)
  disk.capacity = Number.POSITIVE_INFINITY
  const awake = setInterval(() => {}, 1000)
  await events.writableAgain
  clearInterval(awake)
  const more = redo(at, 2, T1, at * 9000, 9000)
  await appendAndFlush(log, events, [more])
  t.same(events.fatal, [])
  const { log: again } = await openLog(disk.crash(() => 0))
  t.same(await entriesOf(again, 1, at), [...made, more])
})

t.test('a cut on a full disk succeeds with the help of the reserve', async t => {
  const { disk, log, events } = await createLog()
  await appendAndFlush(
    log,
    events,
    Array.from({ length: 10 }, (_, i) => redo(i + 1, 1, T1, i * 1000, 1000)),
  )
  disk.capacity = disk.used
  await log.truncateAfter(index(5))
  t.equal((await openLog(disk.crash(() => 0))).log.lastIndex, 5)
})

t.test('a failed sync ends the node and acknowledges nothing', async t => {
  const { disk, log, events } = await createLog()
  await appendAndFlush(log, events, [noop(1, 1)])
  const { syncs } = disk
  disk.hook = operation => {
    if (operation === 'datasync') throw Object.assign(new Error('EIO'), { code: 'EIO' })
  }
  log.append([noop(2, 1)])
  await events.fatalSeen
  t.match(events.fatal, [{ kind: 'internal', message: /sync of .* failed: EIO/ }])
  t.equal(log.flushed.index, 1)
  disk.hook = () => {}
  t.throws(() => log.append([noop(3, 1)]), like({ kind: 'internal' }))
  t.equal(disk.syncs, syncs, 'it was not tried again')
})

t.test('memberships are found at the start', async t => {
  const { disk, log, events } = await createLog()
  const payload = Buffer.from('{"voters":["a"]}')
  const { crc32c } = await import('../../../../protocol/crc32c.ts')
  const membership = {
    ...noop(2, 1),
    kind: 'membership' as const,
    payload,
    payloadCrc: crc32c(payload, 0, payload.length),
  }
  await appendAndFlush(log, events, [noop(1, 1), membership])
  const { start } = await openLog(disk.crash(() => 0))
  t.same(
    start.memberships.map(({ index, payload }) => [index, Buffer.from(payload).toString()]),
    [[2, payload.toString()]],
  )
})

t.test('a log is made once, and opened only where one is', async t => {
  const { disk } = await createLog()
  const { CellLog } = await import('../../../../server/safekeeper/log/cell-log.ts')
  await t.rejects(
    CellLog.create({ disk, dir: '/data/log' }, { index: 0, term: 0 } as EntryId),
    like({ kind: 'invalid' }),
  )
  t.equal(await CellLog.exists(disk, '/data/log'), true)
  t.equal(await CellLog.exists(new MemoryDisk(), '/data/log'), false)
})

t.test('redo that was dropped before it came here is no damage, raw or packed', async t => {
  const { disk, log, events } = await createLog()
  // As a member gets it that joins late: without bytes, with the CRC that they had.
  const dropped = (index: number, lsn: number) => ({
    ...redo(index, 1, T1, lsn, 700),
    payload: Buffer.alloc(0),
    dropped: true,
  })
  const made: Made[] = []
  for (let i = 1; i <= 150; i++) made.push(i <= 60 ? dropped(i, i * 700) : redo(i, 1, T1, i * 700, 700))
  for (const entry of made) await appendAndFlush(log, events, [entry])
  t.same(await entriesOf(log, 1, 150), made)
  const again = await openLog(
    disk.crash(() => 0),
    { appliedTo: 0 },
  )
  t.equal(again.log.lastIndex, 150)
  t.equal(again.start.damage, undefined)
  t.same(await entriesOf(again.log, 1, 150), made)
  for (const entry of made) again.log.applied(entry)
  await again.log.packed()
  t.ok(again.log.stats().packs > 0)
  t.same(await entriesOf(again.log, 1, 150), made)
})
