/** The cell's state: whatever entries come, a snapshot anywhere and the rest after it give what all of them gave. */
import fc from 'fast-check'
import t from 'tap'
import type { Lsn, TimelineId, WriterEpoch } from '../../protocol/ids.ts'
import {
  type CellCommand,
  CellState,
  encodeCommand,
  type StateEntry,
} from '../../server/safekeeper/cell-state.ts'
import type { LogIndex, Term } from '../../server/safekeeper/core/types.ts'

const ids = [0, 1, 2, 3].map(n => String(n).repeat(32).replace(/^./, 'a') as TimelineId)
const id = fc.constantFrom(...ids)
const name = fc.constantFrom('a', 'b', 'c', 'd')
const lsn = fc.integer({ min: 100, max: 130 }).map(n => n as Lsn)
const peer = fc.constantFrom('p1', 'p2')

const command: fc.Arbitrary<CellCommand> = fc.oneof(
  fc.record({ do: fc.constant('create' as const), timeline: id, name, startLsn: fc.constant(100 as Lsn) }),
  fc.record({ do: fc.constant('branch' as const), timeline: id, name, ancestor: id, lsn }),
  fc.record({ do: fc.constant('rename' as const), timeline: id, name }),
  fc.record({ do: fc.constant('delete' as const), timeline: id }),
  fc.record({ do: fc.constant('open' as const), timeline: id, writer: peer }),
  fc.record({
    do: fc.constant('trim' as const),
    trims: fc.array(fc.record({ timeline: id, consumer: peer, lsn }), { minLength: 1, maxLength: 3 }),
  }),
  fc.record({ do: fc.constant('dropConsumer' as const), timeline: id, consumer: peer }),
  fc.record({ do: fc.constant('pin' as const), timeline: id, name: peer, lsn: fc.option(lsn) }),
  fc.record({
    do: fc.constant('node' as const),
    id: fc.constantFrom('a.0000000000000001', 'b.0000000000000002'),
    address: fc.option(fc.constant('127.0.0.1:1')),
    zone: fc.constant('z'),
  }),
  fc.record({ do: fc.constant('note' as const), key: peer, value: fc.constantFrom(null, 1, { x: [1] }) }),
)

type Step =
  | { readonly kind: 'command'; readonly command: CellCommand }
  | { readonly kind: 'redo'; readonly timeline: TimelineId; readonly stale: boolean; readonly shift: number }

const step: fc.Arbitrary<Step> = fc.oneof(
  fc.record({ kind: fc.constant('command' as const), command }),
  fc.record({
    kind: fc.constant('redo' as const),
    timeline: id,
    stale: fc.boolean(),
    shift: fc.constantFrom(0, 0, 0, 1, -1),
  }),
)

function entryOf(state: CellState, step: Step): StateEntry {
  const base = {
    index: (state.last.index + 1) as LogIndex,
    term: 1 as Term,
    timeline: undefined,
    epoch: 0 as WriterEpoch,
    beginLsn: 0 as Lsn,
    endLsn: 0 as Lsn,
    wallTimeUs: state.last.index,
    payload: Buffer.alloc(0),
  }
  if (step.kind === 'command') return { ...base, kind: 'command', payload: encodeCommand(step.command) }
  const timeline = state.timelines.get(step.timeline)
  const beginLsn = ((timeline?.endLsn ?? 100) + step.shift) as Lsn
  return {
    ...base,
    kind: 'redo',
    timeline: step.timeline,
    epoch: ((timeline?.epoch ?? 0) - (step.stale ? 1 : 0)) as WriterEpoch,
    beginLsn,
    endLsn: (beginLsn + 5) as Lsn,
  }
}

/** What must hold whatever happened. */
function checkRules(state: CellState): void {
  const names = new Set<string>()
  for (const timeline of state.timelines.values()) {
    if (state.tombstones.has(timeline.id)) throw new Error('a deleted timeline lives')
    if (names.has(timeline.name)) throw new Error(`two are named ${timeline.name}`)
    names.add(timeline.name)
    if (state.named(timeline.name) !== timeline) throw new Error('the name leads elsewhere')
    if (timeline.endLsn < timeline.startLsn) throw new Error('it ends before it begins')
    if (timeline.ancestor !== undefined) {
      const ancestor = state.timelines.get(timeline.ancestor.timeline)
      if (!ancestor?.branches.has(timeline.id)) throw new Error('a branch without its ancestor')
    }
    if (timeline.consumers.size === 0 && state.neededFrom(timeline) > timeline.startLsn)
      throw new Error('redo would go that nobody has consumed')
  }
}

t.test('replaying equals a snapshot and the rest', async t => {
  fc.assert(
    fc.property(fc.array(step, { maxLength: 60 }), fc.nat(60), (steps, cut) => {
      const whole = new CellState()
      const entries: StateEntry[] = []
      for (const one of steps) {
        const entry = entryOf(whole, one)
        entries.push(entry)
        const before = whole.encode()
        const { void: isVoid } = whole.apply(entry)
        checkRules(whole)
        if (isVoid) {
          const strip = (bytes: Buffer) => ({ ...JSON.parse(bytes.toString()), index: 0, term: 0 })
          if (JSON.stringify(strip(before)) !== JSON.stringify(strip(whole.encode())))
            throw new Error(`a void entry changed something: ${JSON.stringify(one)}`)
        }
      }
      let part = new CellState()
      entries.forEach((entry, i) => {
        if (i === cut) part = CellState.decode(part.encode())
        part.apply(entry)
      })
      return (
        whole.encode().equals(part.encode()) &&
        whole.encode().equals(CellState.decode(whole.encode()).encode())
      )
    }),
    { numRuns: 500 },
  )
  t.pass()
})

t.test('10,000 timelines: an entry costs the same', async t => {
  const state = new CellState()
  let index = 0
  const apply = (step: Step) => state.apply(entryOf(state, step))
  for (; index < 10_000; index++) {
    const timeline = (index + 1).toString(16).padStart(32, '0') as TimelineId
    const command: CellCommand = { do: 'create', timeline, name: `t-${index}`, startLsn: 100 as Lsn }
    if (apply({ kind: 'command', command }).void) t.fail('void')
  }
  t.equal(state.timelines.size, 10_000)
  const bytes = state.encode()
  t.ok(bytes.length < 10_000 * 300, `${bytes.length} bytes of snapshot`)
  t.equal(CellState.decode(bytes).timelines.size, 10_000)
})
