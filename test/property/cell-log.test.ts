/** The cell's log against an array: random operations and restarts, then everything is read in every way. */
import fc from 'fast-check'
import t from 'tap'
import type { Lsn, TimelineId } from '../../protocol/ids.ts'
import type { EntryId, LogIndex } from '../../server/safekeeper/core/types.ts'
import {
  appendAndFlush,
  createLog,
  entriesOf,
  gap,
  type Made,
  noop,
  openLog,
  type Rig,
  redo,
  T1,
  T2,
} from '../support/cell-log-rig.ts'

type Operation =
  | { do: 'append'; sizes: number[] }
  | { do: 'cut'; part: number; thenAppend: boolean }
  | { do: 'apply'; part: number }
  | { do: 'pack' }
  | { do: 'reset'; ahead: number }
  | { do: 'trim'; part: number; needed: number }
  | { do: 'restart'; clean: boolean }
  | { do: 'read' }

const part = fc.double({ min: 0, max: 1, noNaN: true })
const size = fc.oneof(
  { weight: 6, arbitrary: fc.integer({ min: 1, max: 900 }) },
  { weight: 1, arbitrary: fc.integer({ min: 5000, max: 30_000 }) },
  { weight: 1, arbitrary: fc.constant(0) },
)
const operation: fc.Arbitrary<Operation> = fc.oneof(
  {
    weight: 8,
    arbitrary: fc.record({
      do: fc.constant('append' as const),
      sizes: fc.array(size, { minLength: 1, maxLength: 12 }),
    }),
  },
  { weight: 2, arbitrary: fc.record({ do: fc.constant('cut' as const), part, thenAppend: fc.boolean() }) },
  { weight: 5, arbitrary: fc.record({ do: fc.constant('apply' as const), part }) },
  { weight: 2, arbitrary: fc.record({ do: fc.constant('pack' as const) }) },
  { weight: 1, arbitrary: fc.record({ do: fc.constant('reset' as const), ahead: fc.nat(40) }) },
  { weight: 3, arbitrary: fc.record({ do: fc.constant('trim' as const), part, needed: part }) },
  { weight: 2, arbitrary: fc.record({ do: fc.constant('restart' as const), clean: fc.boolean() }) },
  { weight: 2, arbitrary: fc.record({ do: fc.constant('read' as const) }) },
)

class Pair {
  rig: Rig
  /** What the log holds, from base + 1 on. */
  entries: Made[] = []
  base = 0
  baseTerm = 0
  applied = 0
  term = 1
  readonly voids = new Set<number>()
  /** End of the valid redo of each timeline, as appended; a cut takes it back. */
  ends = new Map<TimelineId, number>()
  neededFrom = new Map<TimelineId, number>()

  constructor(rig: Rig) {
    this.rig = rig
  }

  get last(): number {
    return this.base + this.entries.length
  }

  make(sizes: readonly number[]): Made[] {
    return sizes.map((bytes, i) => {
      const index = this.last + i + 1
      const timeline = (index * 7) % 3 === 0 ? T1 : T2
      const at = this.ends.get(timeline) ?? 100
      if (bytes === 0 && index % 2 === 0) return noop(index, this.term)
      const end = at + (bytes === 0 ? 500 : bytes)
      // Every ninth is of a writer that came too late: at a place that another takes.
      if (index % 9 === 0) this.voids.add(index)
      else {
        this.voids.delete(index)
        this.ends.set(timeline, end)
      }
      return bytes === 0
        ? gap(index, this.term, timeline, at, end)
        : redo(index, this.term, timeline, at, bytes)
    })
  }

  async append(sizes: readonly number[]): Promise<void> {
    const made = this.make(sizes)
    await appendAndFlush(this.rig.log, this.rig.events, made)
    this.entries.push(...made)
  }

  recount(): void {
    this.ends = new Map([...this.neededFrom])
    for (const { index, timeline, endLsn } of this.entries)
      if (timeline !== undefined && !this.voids.has(index))
        this.ends.set(timeline, Math.max(endLsn, this.ends.get(timeline) ?? 0))
  }

  async run(operation: Operation): Promise<void> {
    const { log } = this.rig
    switch (operation.do) {
      case 'append':
        return this.append(operation.sizes)
      case 'cut': {
        const after = this.applied + Math.floor(operation.part * (this.last - this.applied))
        this.entries.length = after - this.base
        this.recount()
        this.term++
        const done = log.truncateAfter(after as LogIndex)
        if (operation.thenAppend) await this.append([10, 700])
        return done
      }
      case 'apply': {
        const to = this.applied + Math.ceil(operation.part * (this.last - this.applied))
        for (const entry of this.entries)
          if (entry.index > this.applied && entry.index <= to) log.applied(entry, this.voids.has(entry.index))
        this.applied = to
        return
      }
      case 'pack':
        return log.packed()
      case 'reset': {
        const base = { index: this.last + operation.ahead, term: this.term } as EntryId
        await log.reset(base)
        this.entries = []
        this.base = base.index
        this.applied = base.index
        return
      }
      case 'trim': {
        const keepFrom = (this.base + Math.floor(operation.part * (this.applied - this.base)) + 1) as LogIndex
        for (const [timeline, end] of this.ends)
          this.neededFrom.set(
            timeline,
            Math.max(this.neededFrom.get(timeline) ?? 0, Math.floor(end * operation.needed * 0.9)),
          )
        const neededFrom = (timeline: TimelineId) => (this.neededFrom.get(timeline) ?? 0) as Lsn
        const { index } = await log.trim({ keepFrom, neededFrom })
        await log.packed()
        if (index >= keepFrom) throw new Error(`trimmed to ${index}, beyond ${keepFrom}`)
        this.entries = this.entries.slice(index - this.base)
        this.base = index
        return
      }
      case 'restart': {
        await log.settleApplied()
        if (operation.clean) await log.close()
        this.rig = await openLog(operation.clean ? this.rig.disk : this.rig.disk.crash(() => 1), {
          appliedTo: this.applied,
        })
        return
      }
      case 'read':
        return this.compare()
    }
  }

  async compare(): Promise<void> {
    const { log } = this.rig
    const same = (got: unknown, expected: unknown, what: string) => {
      if (got !== expected) throw new Error(`${what}: ${got} instead of ${expected}`)
    }
    same(log.lastIndex, this.last, 'last index')
    same(log.base.index, this.base, 'base')
    same(log.flushed.index, this.last, 'flushed')
    const got = await entriesOf(log, this.base + 1, this.last, 3000)
    same(got.length, this.entries.length, 'entries')
    for (const [i, entry] of this.entries.entries()) {
      const other = got[i]!
      same(other.index, entry.index, 'index')
      same(other.term, entry.term, `term of ${entry.index}`)
      same(log.termAt(entry.index), entry.term, `termAt of ${entry.index}`)
      same(other.kind, entry.kind, `kind of ${entry.index}`)
      same(other.timeline, entry.timeline, `timeline of ${entry.index}`)
      same(other.beginLsn, entry.beginLsn, `begin of ${entry.index}`)
      same(other.endLsn, entry.endLsn, `end of ${entry.index}`)
      same(other.wallTimeUs, entry.wallTimeUs, `time of ${entry.index}`)
      same(other.payloadCrc, entry.payloadCrc, `CRC of ${entry.index}`)
      const mayBeDropped =
        this.voids.has(entry.index) || entry.endLsn <= (this.neededFrom.get(entry.timeline!) ?? 0)
      if (other.dropped ? !mayBeDropped : !Buffer.from(entry.payload).equals(other.payload))
        throw new Error(`payload of ${entry.index} is not what it was`)
    }
    for (const timeline of [T1, T2]) await this.compareTimeline(timeline)
  }

  async compareTimeline(timeline: TimelineId): Promise<void> {
    const { log } = this.rig
    const needed = this.neededFrom.get(timeline) ?? 0
    const expected = this.entries.filter(
      entry =>
        entry.timeline === timeline &&
        entry.index <= this.applied &&
        !this.voids.has(entry.index) &&
        entry.endLsn > needed,
    )
    const first = expected[0]
    if (first === undefined) return
    const cursor = log.timelineCursor(timeline, first.beginLsn)
    for (const entry of expected) {
      const chunk = await cursor.next()
      if (chunk?.index !== entry.index || !Buffer.from(entry.payload).equals(chunk.payload))
        throw new Error(
          `chunk of ${timeline} at ${entry.beginLsn}: entry ${chunk?.index}, not ${entry.index}`,
        )
    }
    const more = await cursor.next()
    if (more !== undefined) throw new Error(`entry ${more.index} of ${timeline} behind the end`)
    await cursor.close()
    const middle = expected[expected.length >> 1]!
    const boundary = await log.boundaryAtOrBelow(timeline, (middle.endLsn - 1) as Lsn)
    if (boundary !== middle.beginLsn) throw new Error(`boundary ${boundary} instead of ${middle.beginLsn}`)
  }
}

t.test('the log is what an array would be', { timeout: 240_000 }, async t => {
  await fc.assert(
    fc.asyncProperty(fc.array(operation, { minLength: 5, maxLength: 60 }), async operations => {
      const pair = new Pair(await createLog())
      for (const one of operations) await pair.run(one)
      await pair.compare()
      if (pair.rig.events.fatal.length > 0) throw pair.rig.events.fatal[0]
    }),
    { numRuns: Number(process.env['PALIMPSEST_RUNS'] ?? 120) },
  )
  t.pass()
})
