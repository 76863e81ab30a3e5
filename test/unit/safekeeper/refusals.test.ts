/**
 * What a leader that was deposed, and does not know it, may say: nothing for good. Its driver is one whose read barrier tells
 * the truth: either the lead is lost, or the state gets what it lacked.
 */
import t from 'tap'
import type { Lsn, TimelineId, WriterEpoch } from '../../../protocol/ids.ts'
import {
  type Applied,
  type CellCommand,
  CellState,
  encodeCommand,
} from '../../../server/safekeeper/cell-state.ts'
import { CellTimelines } from '../../../server/safekeeper/cell-timelines.ts'
import type { LogIndex, Term } from '../../../server/safekeeper/core/types.ts'
import type { Draft } from '../../../server/safekeeper/draft.ts'
import type { Driver } from '../../../server/safekeeper/driver.ts'
import type { CellLog } from '../../../server/safekeeper/log/cell-log.ts'
import { retryError } from '../../../server/shared/errors.ts'
import { silentLog } from '../../../server/shared/log.ts'
import { HandClock } from '../../support/fake-cell.ts'

const A = 'aa'.repeat(16) as TimelineId
const B = 'bb'.repeat(16) as TimelineId
const C = 'cc'.repeat(16) as TimelineId
const lsn = (n: number) => n as Lsn
const epoch = (n: number) => n as WriterEpoch
const like = (fields: object) => fields as Error
const PAYLOAD = Buffer.alloc(10)

class FakeDriver {
  readonly state = new CellState()
  readonly term = 1 as Term
  readonly writable = true
  readonly isServing = true
  failed: undefined
  barriers = 0
  /** What a read barrier brings: the entries that were missing here; undefined: it fails, since another one leads. */
  missed: (() => void) | undefined
  /** Proposals that are not committed. */
  readonly pending: Draft[] = []
  holds = false

  async readBarrier(): Promise<void> {
    this.barriers++
    await Promise.resolve()
    if (this.missed === undefined) throw retryError('this node leads the cell no longer')
    this.missed()
  }

  propose(draft: Draft): Promise<Applied> {
    if (!this.holds) return Promise.resolve(this.apply(draft))
    this.pending.push(draft)
    return new Promise(() => {})
  }

  apply(draft: Draft): Applied {
    const { kind, payload, timeline, epoch, beginLsn, endLsn, wallTimeUs } = draft
    const index = (this.state.last.index + 1) as LogIndex
    const about = { timeline, epoch, beginLsn, endLsn, wallTimeUs }
    return this.state.apply({ index, term: 1 as Term, kind, payload, ...about })
  }

  run(command: CellCommand): void {
    const nowhere = { epoch: epoch(0), beginLsn: lsn(0), endLsn: lsn(0), wallTimeUs: 0, payloadCrc: 0 }
    this.apply({ kind: 'command', timeline: undefined, payload: encodeCommand(command), ...nowhere })
  }
}

/** A leader that knows of A (from 100, writer of epoch 1, end 110). */
function deposed() {
  const driver = new FakeDriver()
  driver.run({ do: 'create', timeline: A, name: 'a', startLsn: lsn(100) })
  driver.run({ do: 'open', timeline: A, writer: 'w1' })
  const log = {
    payloadBytesMax: 1000,
    timelineCursor: () => ({ next: async () => undefined, close() {} }),
    forget() {},
  } as unknown as CellLog
  const timelines = new CellTimelines(driver as unknown as Driver, log, new HandClock(), silentLog)
  const append = (id: TimelineId, e: number, at: number, bytes = 10) =>
    timelines.append(id, epoch(e), lsn(at), 1, PAYLOAD.subarray(0, bytes), 0)
  return { driver, timelines, append }
}

/** Each thing that can be refused for good, and what would make it right. */
const REFUSALS: [
  what: string,
  ask: (d: ReturnType<typeof deposed>) => Promise<unknown>,
  refusal: object,
  mends: (driver: FakeDriver) => void,
][] = [
  [
    'an append to a timeline that is not known',
    d => d.append(B, 1, 50),
    { kind: 'invalid', message: /no timeline/ },
    driver => {
      driver.run({ do: 'create', timeline: B, name: 'b', startLsn: lsn(50) })
      driver.run({ do: 'open', timeline: B, writer: 'w' })
    },
  ],
  [
    'an append of an epoch that was not given out',
    d => d.append(A, 2, 100),
    { kind: 'invalid', message: /never given out/ },
    driver => driver.run({ do: 'open', timeline: A, writer: 'w2' }),
  ],
  [
    'a writer to be let in where no timeline is known',
    d => d.timelines.open(B, 'w'),
    { kind: 'invalid' },
    driver => driver.run({ do: 'create', timeline: B, name: 'b', startLsn: lsn(50) }),
  ],
  [
    'a trim beyond the end',
    async d => {
      await d.timelines.trim(A, 'page-server', lsn(105))
    },
    { kind: 'invalid', message: /the log ends at 100/ },
    driver => {
      const draft = {
        kind: 'redo',
        timeline: A,
        epoch: epoch(1),
        beginLsn: lsn(100),
        endLsn: lsn(110),
      } as const
      driver.apply({ ...draft, wallTimeUs: 1, payload: PAYLOAD, payloadCrc: 0 })
    },
  ],
  [
    'a name that is taken',
    d => d.timelines.create(C, 'a', lsn(7)),
    { kind: 'invalid', message: /named "a"/ },
    driver => driver.run({ do: 'rename', timeline: A, name: 'z' }),
  ],
  [
    'a rename of what is not known',
    d => d.timelines.rename(B, 'c'),
    { kind: 'invalid' },
    driver => driver.run({ do: 'create', timeline: B, name: 'b', startLsn: lsn(50) }),
  ],
  [
    'a deletion of what is not known',
    d => d.timelines.delete(B),
    { kind: 'invalid' },
    driver => driver.run({ do: 'create', timeline: B, name: 'b', startLsn: lsn(50) }),
  ],
  [
    'a branch of what is not known',
    d => d.timelines.branch(C, B, lsn(50), 'c'),
    { kind: 'invalid' },
    driver => driver.run({ do: 'create', timeline: B, name: 'b', startLsn: lsn(50) }),
  ],
  [
    'a consumer to be dropped where no timeline is known',
    d => d.timelines.dropConsumer(B, 'page-server'),
    { kind: 'invalid' },
    driver => driver.run({ do: 'create', timeline: B, name: 'b', startLsn: lsn(50) }),
  ],
  [
    'the state of what is not known',
    d =>
      d.timelines
        .walState(B)
        .catch(error => (/timelineStats/.test(error.message) ? 'there' : Promise.reject(error))),
    { kind: 'invalid' },
    driver => driver.run({ do: 'create', timeline: B, name: 'b', startLsn: lsn(50) }),
  ],
  [
    'to show what is not known',
    d => d.timelines.sure(B),
    { kind: 'invalid' },
    driver => driver.run({ do: 'create', timeline: B, name: 'b', startLsn: lsn(50) }),
  ],
]

for (const [what, ask, refusal, mends] of REFUSALS)
  t.test(what, async t => {
    const old = deposed()
    await t.rejects(ask(old), like({ kind: 'retry', message: /leads the cell no longer/ }), 'deposed: retry')
    const sure = deposed()
    sure.driver.missed = () => {}
    await t.rejects(ask(sure), like(refusal), 'the leader, and nothing is missing: for good')
    const late = deposed()
    let isDone = false
    late.driver.missed = () => {
      if (!isDone) mends(late.driver)
      isDone = true
    }
    await t.resolves(ask(late), 'judged anew by what was missing')
  })

t.test('a writer that was fenced', async t => {
  const { driver, append } = deposed()
  driver.run({ do: 'open', timeline: A, writer: 'w2' })
  await t.rejects(append(A, 1, 100), like({ kind: 'retry' }))
  driver.missed = () => {}
  await t.rejects(append(A, 1, 100), like({ kind: 'fenced', message: /w2/ }))
  await append(A, 2, 100)
  t.equal(driver.barriers, 2, 'what is right needs none')
})

t.test('nobody is fenced by a writer that is not committed, nor refused by redo that is not', async t => {
  const { driver, timelines, append } = deposed()
  driver.missed = () => {}
  driver.holds = true
  void timelines.open(A, 'w2')
  await t.rejects(append(A, 1, 100), like({ kind: 'retry', message: /about to be let in/ }))
  const other = deposed()
  other.driver.missed = () => {}
  other.driver.holds = true
  void other.append(A, 1, 100)
  await t.rejects(
    other.append(A, 1, 105),
    like({ kind: 'refresh', message: /on the move/ }),
    'overlaps what is pending',
  )
  for (const draft of other.driver.pending) other.driver.apply(draft)
  await t.rejects(
    other.append(A, 1, 105),
    like({ kind: 'invalid', message: /overlaps/ }),
    'and what is committed',
  )
})

t.test(
  'a follower does not say that there is no timeline; that one was deleted it knows for ever',
  async t => {
    const { driver, timelines } = deposed()
    t.throws(() => timelines.read(B, lsn(1)), like({ kind: 'retry' }))
    t.throws(() => timelines.show(B), like({ kind: 'retry' }))
    driver.run({ do: 'delete', timeline: A })
    t.throws(() => timelines.read(A, lsn(1)), like({ kind: 'invalid', message: /was deleted/ }))
    t.equal(driver.barriers, 0)
  },
)
