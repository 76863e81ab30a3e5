/** Packs: the codec alone, and what the log does with them. */
import t from 'tap'
import type { Lsn, TimelineId } from '../../../../protocol/ids.ts'
import type { LogIndex, Term } from '../../../../server/safekeeper/core/types.ts'
import type { CellLog } from '../../../../server/safekeeper/log/cell-log.ts'
import { PackBuilder } from '../../../../server/safekeeper/log/pack-builder.ts'
import type { PackEntry } from '../../../../server/safekeeper/log/pack-codec.ts'
import { packEntries, packSourceOf, readPackHead } from '../../../../server/safekeeper/log/pack-reader.ts'
import {
  appendAndFlush,
  createLog,
  entriesOf,
  gap,
  LOG_DIR,
  type LogEvents,
  type Made,
  noop,
  openLog,
  redo,
  T1,
  T2,
} from '../../../support/cell-log-rig.ts'

const like = (shape: object) => shape as Error
const id = (n: number) => n.toString(16).padStart(8, '0').repeat(4) as TimelineId

function pack(entries: readonly PackEntry[], options: { level?: number; groupBytes?: number } = {}): Buffer {
  const builder = new PackBuilder(
    {
      firstIndex: entries[0]!.index,
      lastIndex: entries.at(-1)!.index,
      prevTerm: 1 as Term,
      generation: 3,
    },
    options,
  )
  const out: Uint8Array[] = []
  for (const entry of entries) {
    builder.add(entry)
    out.push(...builder.take())
  }
  builder.finish()
  out.push(...builder.take())
  return Buffer.concat(out)
}

async function unpack(bytes: Buffer): Promise<PackEntry[]> {
  const entries: PackEntry[] = []
  for await (const entry of packEntries(packSourceOf('memory', bytes)))
    entries.push({ ...entry, payload: Buffer.from(entry.payload) })
  return entries
}

t.test('a pack gives back what was put in, whatever the sizes of groups', async t => {
  const entries: PackEntry[] = []
  const ends = new Map<TimelineId, number>()
  for (let i = 0; i < 600; i++) {
    const index = 1000 + i
    const timeline = id(1 + ((i * i) % 37))
    const at = ends.get(timeline) ?? 5000 + i
    const bytes = 1 + ((i * 733) % 9000)
    const kind = i % 23
    let made: Made
    if (kind === 0) made = noop(index, 2 + (i >> 7))
    else if (kind === 1) made = gap(index, 2 + (i >> 7), timeline, at, at + bytes)
    else made = redo(index, 2 + (i >> 7), timeline, at, bytes)
    if (made.kind !== 'noop') ends.set(timeline, at + bytes)
    const dropped = kind === 5
    entries.push({
      ...made,
      ...(dropped ? { dropped, payload: Buffer.alloc(0) } : {}),
      isVoid: kind === 7,
    })
  }
  const big = redo(1600, 9, T1, 1, 3_000_000)
  entries.push({ ...big, isVoid: false })
  for (const groupBytes of [1, 10_000, 100_000, 1 << 20]) {
    const bytes = pack(entries, { groupBytes })
    t.same(await unpack(bytes), entries)
    const { summary, header } = await readPackHead(packSourceOf('memory', bytes))
    t.same(header, { firstIndex: 1000, lastIndex: 1600, prevTerm: 1, generation: 3 })
    t.equal(summary.timelines.length, 20)
    t.same(
      summary.runs.map(run => run.term),
      [2, 3, 4, 5, 6, 9],
    )
    t.ok(pack(entries, { groupBytes }).equals(bytes), 'the same entries make the same pack')
  }
})

t.test('every flipped bit of a pack is found', async t => {
  const entries = Array.from({ length: 20 }, (_, i) => ({
    ...(i % 5 === 0 ? noop(i + 1, 1) : redo(i + 1, 1, i % 2 === 0 ? T1 : T2, i * 100, 100)),
    isVoid: false,
  }))
  const bytes = pack(entries)
  for (let at = 0; at < bytes.length; at++) {
    const damaged = Buffer.from(bytes)
    damaged[at]! ^= 1 << (at % 8)
    try {
      await unpack(damaged)
      t.fail(`a flip at ${at} of ${bytes.length} went unnoticed`)
    } catch (error) {
      if (!/log pack memory is damaged at offset \d+: /.test((error as Error).message))
        t.fail((error as Error).message)
    }
  }
  for (let length = 0; length < bytes.length; length += 7)
    await t.rejects(unpack(bytes.subarray(0, length)), like({ kind: 'corrupt' }))
})

/** Appends and applies redo of a few timelines; what is expected of each, by LSN. */
class Workload {
  readonly made: Made[] = []
  readonly ends = new Map<TimelineId, number>()
  readonly chunks = new Map<TimelineId, Made[]>()

  async run(log: CellLog, events: LogEvents, count: number, bytes = 700): Promise<void> {
    const batch: Made[] = []
    for (let i = 0; i < count; i++) {
      const index = log.lastIndex + batch.length + 1
      const timeline = id(1 + (index % 3))
      const at = this.ends.get(timeline) ?? 1000
      const entry = index % 11 === 0 ? noop(index, 1) : redo(index, 1, timeline, at, bytes + (index % 50))
      batch.push(entry)
      if (entry.kind === 'noop') continue
      this.ends.set(timeline, entry.endLsn)
      this.chunks.set(timeline, [...(this.chunks.get(timeline) ?? []), entry])
    }
    await appendAndFlush(log, events, batch)
    this.made.push(...batch)
    for (const entry of batch) log.applied(entry)
  }
}

async function read(log: CellLog, timeline: TimelineId, from: number): Promise<Made[]> {
  const cursor = log.timelineCursor(timeline, from as Lsn)
  const out: Made[] = []
  for (let chunk = await cursor.next(); chunk !== undefined; chunk = await cursor.next())
    out.push({ ...chunk, payload: Buffer.from(chunk.payload) } as unknown as Made)
  return out
}

function matchChunks(
  t: { equal(a: number, b: number): unknown; fail(why: string): unknown },
  got: readonly Made[],
  expected: readonly Made[],
): void {
  t.equal(got.length, expected.length)
  for (const [i, entry] of got.entries())
    if (entry.index !== expected[i]!.index || !Buffer.from(expected[i]!.payload).equals(entry.payload))
      t.fail(`chunk ${i} is not what was appended`)
}

t.test('sealed segments that are applied become packs; nothing changes for readers', async t => {
  const { disk, log, events } = await createLog()
  const work = new Workload()
  await work.run(log, events, 500)
  await log.packed()
  const { packs, rawSegments, packedBytes, packedRawBytes } = log.stats()
  t.ok(packs > 5 && rawSegments === 1, `${packs} packs, ${rawSegments} raw`)
  t.ok(packedBytes < packedRawBytes * 0.9)
  t.same(await entriesOf(log, 1, 500), work.made)
  t.match(log.timelineStats(id(1)), { rawBytes: work.ends.get(id(1))! - 1000 })
  for (const reader of [
    log,
    (
      await openLog(
        disk.crash(() => 0),
        { appliedTo: 500 },
      )
    ).log,
  ]) {
    t.same(await entriesOf(reader, 1, 500), work.made)
    for (const timeline of [id(1), id(2), id(3)]) {
      const chunks = work.chunks.get(timeline)!
      matchChunks(t, await read(reader, timeline, 1000), chunks)
      matchChunks(t, await read(reader, timeline, chunks[17]!.beginLsn), chunks.slice(17))
      await t.rejects(read(reader, timeline, chunks[5]!.beginLsn + 1), like({ kind: 'invalid' }))
      await t.rejects(read(reader, timeline, 900), like({ kind: 'refresh' }))
      t.equal(await reader.boundaryAtOrBelow(timeline, (chunks[5]!.beginLsn + 1) as Lsn), chunks[5]!.beginLsn)
      t.equal(await reader.boundaryAtOrBelow(timeline, chunks[5]!.beginLsn), chunks[5]!.beginLsn)
      t.equal(await reader.boundaryAtOrBelow(timeline, 10 as Lsn), undefined)
    }
    t.same(await read(reader, id(9), 1000), [])
  }
})

t.test(
  'what is not needed goes: whole packs at the beginning, parts of the rest; small packs are joined',
  async t => {
    const { disk, log, events } = await createLog()
    const work = new Workload()
    await work.run(log, events, 1000)
    await log.packed()
    const before = log.stats()
    // One timeline's reader is away; the others need nothing.
    const away = id(2)
    const neededFrom = (timeline: TimelineId) => (timeline === away ? 1000 : work.ends.get(timeline)) as Lsn
    t.equal((await log.trim({ keepFrom: 900 as LogIndex, neededFrom })).index, 0)
    for (let i = 0; i < 4; i++) {
      await log.packed()
      await log.trim({ keepFrom: 900 as LogIndex, neededFrom })
    }
    await log.packed()
    const after = log.stats()
    t.ok(after.packedBytes < before.packedBytes * 0.7, `${after.packedBytes} of ${before.packedBytes}`)
    t.ok(after.packs <= before.packs)
    for (const reader of [
      log,
      (
        await openLog(
          disk.crash(() => 0),
          { appliedTo: 1000 },
        )
      ).log,
    ]) {
      matchChunks(t, await read(reader, away, 1000), work.chunks.get(away)!)
      // The first one has the newest entries in memory.
      if (reader !== log) await t.rejects(read(reader, id(1), 1000), like({ kind: 'refresh' }))
      const entries = await entriesOf(reader, 1, 1000)
      t.equal(entries.length, 1000)
      for (const [i, entry] of entries.entries()) {
        const made = work.made[i]!
        if (entry.dropped) t.ok(made.timeline !== away && entry.payload.length === 0)
        t.same({ ...entry, dropped: false, payload: made.payload }, made, 'index and header stay')
      }
    }
    // It comes back, reads all, and needs it no longer.
    const base = await log.trim({
      keepFrom: 900 as LogIndex,
      neededFrom: timeline => work.ends.get(timeline) as Lsn,
    })
    t.ok(base.index > 800 && base.index < 900, `begins after ${base.index}`)
    await t.rejects(log.read(1 as LogIndex, 5 as LogIndex, 100), like({ kind: 'refresh' }))
    t.equal(log.termAt(base.index), 1)
    const { log: again } = await openLog(
      disk.crash(() => 0),
      { appliedTo: 1000 },
    )
    t.same(again.base, base)
    t.equal((await entriesOf(again, base.index + 1, 1000)).length, 1000 - base.index)
  },
)

t.test('a deleted timeline is given up', async t => {
  const { log, events } = await createLog()
  const work = new Workload()
  await work.run(log, events, 400)
  await log.packed()
  log.forget(id(1))
  const neededFrom = (timeline: TimelineId) => (timeline === id(1) ? undefined : (1000 as Lsn))
  for (let i = 0; i < 3; i++) {
    await log.trim({ keepFrom: 400 as LogIndex, neededFrom })
    await log.packed()
  }
  t.ok(log.timelineStats(id(1)).rawBytes < 20_000, 'but for what the newest segment has')
  matchChunks(t, await read(log, id(2), 1000), work.chunks.get(id(2))!)
})

t.test('void entries stay in the log and out of the timeline, also in a pack', async t => {
  const { disk, log, events } = await createLog()
  const made: Made[] = []
  let at = 1000
  for (let i = 1; i <= 100; i++) {
    made.push(redo(i, 1, T1, at, 900))
    if (i % 7 !== 0) at += 900
  }
  await appendAndFlush(log, events, made)
  for (const entry of made) log.applied(entry, entry.index % 7 === 0)
  await log.settleApplied()
  await log.packed()
  const expected = made.filter(entry => entry.index % 7 !== 0)
  matchChunks(t, await read(log, T1, 1000), expected)
  const { log: again } = await openLog(
    disk.crash(() => 0),
    { appliedTo: 100 },
  )
  matchChunks(t, await read(again, T1, 1000), expected)
  t.same(await entriesOf(again, 1, 100), made)
})

t.test('damage in a pack', async t => {
  const make = async () => {
    const { disk, log, events } = await createLog()
    const work = new Workload()
    await work.run(log, events, 500)
    await log.packed()
    await log.close()
    const paths = disk.paths().filter(path => path.endsWith('.pack'))
    return { disk, paths, work }
  }
  t.test('in a group is found when it is read, with its place', async t => {
    const { disk, paths } = await make()
    disk.content(paths[2]!)[100]! ^= 4
    const { log } = await openLog(disk, { appliedTo: 500 })
    await t.rejects(
      entriesOf(log, 1, 500),
      like({ kind: 'corrupt', message: new RegExp(`${paths[2]} is damaged at offset 64`) }),
    )
  })
  t.test('in the footer is found at the start; accepted, the log ends before it', async t => {
    const { disk, paths, work } = await make()
    const bytes = disk.content(paths[2]!)
    bytes[bytes.length - 20]! ^= 4
    await t.rejects(
      openLog(disk, { appliedTo: 500 }),
      like({ kind: 'corrupt', message: /Nothing was changed/ }),
    )
    const { log, start } = await openLog(disk, { appliedTo: 500, acceptDamage: true })
    const first = Number(paths[2]!.slice(LOG_DIR.length + 1, -5))
    t.match(start.damage, { index: first, path: paths[2] })
    t.equal(log.lastIndex, first - 1)
    t.same(await entriesOf(log, 1, 500), work.made.slice(0, first - 1))
    t.ok(disk.paths().some(path => path.includes('damaged-2-')))
    const { log: again } = await openLog(
      disk.crash(() => 0),
      { appliedTo: 100 },
    )
    t.equal(again.lastIndex, first - 1)
  })
  t.test('a pack that is missing', async t => {
    const { disk, paths } = await make()
    await disk.remove(paths[1]!)
    await t.rejects(openLog(disk, { appliedTo: 500 }), like({ kind: 'corrupt', message: /are missing/ }))
  })
})
