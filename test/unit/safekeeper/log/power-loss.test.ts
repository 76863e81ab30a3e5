/**
 * Power is lost at any operation of the cell's log: appending, cutting, resetting, packing, trimming. Unsynced writes are lost, kept or
 * torn. After each, what was flushed and not cut is there, nothing that was cut is, and no damage is claimed; then a
 * bit is flipped, and that is found. Each run is named by its seed; PALIMPSEST_SEEDS sets how many there are.
 */
import t from 'tap'
import type { EntryId, LogIndex } from '../../../../server/safekeeper/core/types.ts'
import {
  appendAndFlush,
  createLog,
  entriesOf,
  LOG_DIR,
  type Made,
  noop,
  openLog,
  type Rig,
  redo,
  T1,
  T2,
} from '../../../support/cell-log-rig.ts'
import type { MemoryDisk } from '../../../support/memory-disk.ts'

const SEEDS = Number(process.env['PALIMPSEST_SEEDS'] ?? 150)

function random(seed: number): () => number {
  let state = seed | 0
  return () => {
    state = (state + 0x6d2b79f5) | 0
    let z = Math.imul(state ^ (state >>> 15), 1 | state)
    z = (z + Math.imul(z ^ (z >>> 7), 61 | z)) ^ z
    return ((z ^ (z >>> 14)) >>> 0) / 2 ** 32
  }
}

/** What may and must be found after a crash at this moment. */
interface Expectation {
  /** Entries that were flushed, and not cut since: must be there. By index. */
  must: Map<number, Made>
  /** Entries that may be there. */
  may: Map<number, Made[]>
  /** The log may begin no later than after this. */
  baseMax: number
  appliedTo: number
}

class Model {
  readonly rig: Rig
  readonly next: () => number
  entries: Made[] = []
  base = 0
  /** Of a reset or trim that is under way. */
  baseMax = 0
  /** A cut that is under way: entries of before, which may still be there. */
  cutting: Made[] = []
  applied = 0
  term = 1

  constructor(rig: Rig, next: () => number) {
    this.rig = rig
    this.next = next
  }

  below(n: number): number {
    return Math.floor(this.next() * n)
  }

  append(): void {
    const batch: Made[] = []
    for (let n = 1 + this.below(6); n > 0; n--) {
      const index = this.base + this.entries.length + 1
      const timeline = this.below(2) === 0 ? T1 : T2
      const bytes = 1 + this.below(this.below(4) === 0 ? 9000 : 600)
      const entry =
        this.below(8) === 0 ? noop(index, this.term) : redo(index, this.term, timeline, 10 * index, bytes)
      batch.push(entry)
      this.entries.push(entry)
    }
    this.rig.log.append(batch)
  }

  expectation(): Expectation {
    const { flushed } = this.rig.log
    const must = new Map<number, Made>()
    const may = new Map<number, Made[]>()
    for (const entry of this.entries) {
      if (entry.index <= flushed.index) must.set(entry.index, entry)
      may.set(entry.index, [entry])
    }
    for (const entry of this.cutting) may.set(entry.index, [...(may.get(entry.index) ?? []), entry])
    return {
      must,
      may,
      baseMax: Math.max(this.base, this.baseMax),
      appliedTo: this.applied,
    }
  }
}

interface Crash {
  readonly image: MemoryDisk
  readonly expected: Expectation
}

async function runUntilPowerLoss(seed: number, lies = false): Promise<Crash> {
  const next = random(seed)
  const rig = await createLog()
  const { disk, log } = rig
  disk.lies = lies
  const model = new Model(rig, next)
  const crashAfter = Math.floor(next() * 400)
  let operations = 0
  let crash: Crash | undefined
  const operation = () => {
    if (operations++ !== crashAfter) return
    crash = {
      image: disk.crash(() => Math.min(1, Math.max(0, next() * 3 - 1))),
      expected: model.expectation(),
    }
  }
  disk.hook = operation
  for (const name of ['rename', 'syncDir', 'remove'] as const) {
    const real = disk[name].bind(disk) as (...args: string[]) => Promise<void>
    disk[name] = async (...args: string[]) => {
      operation()
      await real(...args)
    }
  }
  while (crash === undefined) {
    const dice = next()
    if (dice < 0.6) model.append()
    else if (dice < 0.68 && log.lastIndex > model.applied) {
      const after = model.applied + model.below(log.lastIndex - model.applied + 1)
      const kept = model.entries.filter(entry => entry.index <= after)
      const cut = model.entries.slice(kept.length)
      model.cutting = [...model.cutting, ...cut]
      model.entries = kept
      model.term += model.below(2)
      const done = log.truncateAfter(after as LogIndex)
      if (model.below(2) === 0) model.append()
      await done
      model.cutting = []
    } else if (dice < 0.85 && log.flushed.index > model.applied) {
      const to = model.applied + model.below(log.flushed.index - model.applied + 1)
      for (const entry of model.entries)
        if (entry.index > model.applied && entry.index <= to) log.applied(entry)
      model.applied = to
      if (model.below(2) === 0) await log.packed()
    } else if (dice < 0.87) {
      const base = { index: log.lastIndex + model.below(50), term: model.term } as EntryId
      model.cutting = [...model.cutting, ...model.entries]
      model.entries = []
      model.base = base.index
      model.applied = base.index
      await log.reset(base)
      model.cutting = []
    } else if (dice < 0.93 && model.applied > model.base) {
      const keepFrom = model.base + model.below(model.applied - model.base + 1)
      const neededFrom = () => (model.below(3) * 5 * keepFrom) as never
      model.baseMax = keepFrom
      await log.trim({ keepFrom: (keepFrom + 1) as LogIndex, neededFrom })
      await log.packed()
      model.baseMax = 0
      model.entries = model.entries.filter(entry => entry.index > log.base.index)
      model.base = log.base.index
    } else await new Promise(setImmediate)
    if (next() < 0.3) await new Promise(setImmediate)
  }
  if (rig.events.fatal.length > 0) throw rig.events.fatal[0]
  return crash
}

/** Throws if the log is not one that the expectation allows. */
async function check({ expected }: Crash, rig: Rig): Promise<void> {
  const { log } = rig
  const base = log.base.index
  if (base > expected.baseMax) throw new Error(`the log begins after ${base}, not ${expected.baseMax}`)
  const entries = await entriesOf(log, base + 1, log.lastIndex)
  for (const [index, entry] of expected.must)
    if (index > base && index > log.lastIndex)
      throw new Error(`entry ${index} of term ${entry.term} was flushed and is gone`)
  for (const entry of entries) {
    const allowed = expected.may.get(entry.index) ?? []
    const isSame = allowed.some(
      made =>
        made.term === entry.term &&
        made.kind === entry.kind &&
        made.endLsn === entry.endLsn &&
        (entry.dropped || Buffer.from(made.payload).equals(entry.payload)),
    )
    if (!isSame) throw new Error(`entry ${entry.index} of term ${entry.term} must not be there`)
  }
  for (const [index, made] of expected.must) {
    if (index <= base) continue
    const entry = entries[index - base - 1]!
    if (entry.term !== made.term || entry.endLsn !== made.endLsn)
      throw new Error(`entry ${index} is not the one that was flushed`)
  }
}

t.test(`power is lost at any moment, ${SEEDS} times`, { timeout: 600_000 }, async t => {
  let entries = 0
  for (let seed = 1; seed <= SEEDS; seed++) {
    try {
      const crash = await runUntilPowerLoss(seed)
      const rig = await openLog(crash.image, { appliedTo: crash.expected.appliedTo })
      await check(crash, rig)
      entries += rig.log.lastIndex - rig.log.base.index
      // It goes on, and comes back once more.
      const at = rig.log.lastIndex + 1
      const more = redo(at, rig.log.last.term + 1, T1, 10, 300)
      await appendAndFlush(rig.log, rig.events, [more])
      const again = await openLog(
        crash.image.crash(() => 0),
        { appliedTo: rig.log.appliedIndex },
      )
      t.same((await entriesOf(again.log, at, at))[0], more)
    } catch (error) {
      t.fail(`seed ${seed}: ${(error as Error).stack}`)
      return
    }
  }
  t.ok(entries > SEEDS * 5, `${entries} entries survived`)
})

t.test('on a disk that lies about syncing entries are lost, or the test above proves nothing', async t => {
  let losses = 0
  const runs = 40
  for (let seed = 1; seed <= runs; seed++) {
    const crash = await runUntilPowerLoss(seed, true)
    try {
      await check(crash, await openLog(crash.image, { appliedTo: crash.expected.appliedTo }))
    } catch {
      losses++
    }
  }
  t.ok(losses > runs / 4, `${losses} of ${runs}`)
})

t.test('a flipped bit in what was flushed is found, and named by file and index', async t => {
  const next = random(77)
  let found = 0
  let torn = 0
  for (let run = 0; run < SEEDS; run++) {
    const { disk, log, events } = await createLog()
    const made: Made[] = []
    for (let i = 1; i <= 60; i++)
      made.push(redo(i, 1, i % 2 ? T1 : T2, i * 1000, 1 + Math.floor(next() * 3000)))
    for (let i = 0; i < 60; i += 5) await appendAndFlush(log, events, made.slice(i, i + 5))
    for (const entry of made.slice(0, Math.floor(next() * 61))) log.applied(entry)
    await log.packed()
    const applied = log.appliedIndex
    if (run % 2 === 0) await log.close()
    const paths = disk.paths().filter(path => /[0-9]\.(seg|pack)$/.test(path))
    const path = paths[Math.floor(next() * paths.length)]!
    const bytes = disk.content(path)
    // Somewhere in an entry or table: behind the newest end everything may flip.
    const last = path.endsWith('.pack') ? bytes.length : bytes.lastIndexOf('PLE2') + 104
    let at = Math.floor(next() * last)
    if (path.endsWith('.seg') && at >= 64 && at < 4096) at = 4096 + (at % 64)
    bytes[at]! ^= 1 << Math.floor(next() * 8)
    let message = ''
    let last60 = 60
    try {
      const { log: again } = await openLog(disk, { appliedTo: applied })
      last60 = again.lastIndex
      const entries = await entriesOf(again, 1, 60)
      for (const [i, entry] of entries.entries())
        if (!Buffer.from(made[i]!.payload).equals(entry.payload) || entry.endLsn !== made[i]!.endLsn)
          t.fail(`run ${run}: entry ${entry.index} is wrong and nobody said so`)
    } catch (error) {
      message = (error as Error).message
    }
    if (message === '' && last60 < 60) {
      // The last batch, after no clean stop: cannot be told from a torn write.
      torn++
      t.ok(run % 2 === 1 && last60 >= 55, `run ${run}: entries after ${last60} were given up without a word`)
    } else if (message !== '') {
      found++
      t.match(message, new RegExp(`${LOG_DIR}/`))
    } else if (!path.endsWith('.seg')) t.fail(`run ${run}: a flip at ${at} of ${path} went unnoticed`)
  }
  t.ok(found > SEEDS / 2, `${found} of ${SEEDS} found, ${torn} torn`)
})

t.test('what lay behind a torn entry is not taken for the continuation of another in its place', async t => {
  const { disk, log, events } = await createLog()
  await appendAndFlush(log, events, [noop(1, 1)])
  const image = new Promise<MemoryDisk>(resolve => {
    disk.hook = operation => {
      // The first of the two entries is torn, the second is whole: bytes of one write, kept in another order.
      if (operation === 'datasync') resolve(disk.crash(() => 1))
    }
  })
  log.append([redo(2, 1, T1, 1000, 1000), redo(3, 1, T1, 2000, 1000)])
  const crashed = await image
  const path = crashed.paths().find(name => /\/[0-9]{20}\.seg$/.test(name))!
  crashed.content(path)[4096 + 104 + 104 + 500]! ^= 1
  const rig = await openLog(crashed)
  t.equal(rig.log.lastIndex, 1)
  // The same length, the same term: only the chain tells them apart.
  const other = { ...redo(2, 1, T2, 1000, 1000) }
  await appendAndFlush(rig.log, rig.events, [other])
  const { log: again } = await openLog(crashed.crash(() => 0))
  t.equal(again.lastIndex, 2)
  t.same(await entriesOf(again, 2, 3), [other])
})
