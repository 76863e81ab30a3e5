/** Applying from disk while the log goes away beneath it. */
import t from 'tap'
import { Applier } from '../../../server/safekeeper/applier.ts'
import { CellState } from '../../../server/safekeeper/cell-state.ts'
import type { LogIndex, Term } from '../../../server/safekeeper/core/types.ts'
import type { EntryCache } from '../../../server/safekeeper/entry-cache.ts'
import type { CellLog } from '../../../server/safekeeper/log/cell-log.ts'
import { refreshError } from '../../../server/shared/errors.ts'
import { silentLog } from '../../../server/shared/log.ts'
import { nodeClock } from '../../../server/shared/node-seams.ts'
import { noop } from '../../support/cell-log-rig.ts'

const stateAt = (index: number) =>
  new CellState(
    { voters: ['a.0000000000000001'], learners: [] },
    { index: index as LogIndex, term: 1 as Term },
  )
const tick = () => new Promise(setImmediate)

/** Entries up to 3 are on disk only, where reads do not end before they are told to. */
function start() {
  const fatal: Error[] = []
  const applied: number[] = []
  const reads: ((error: Error) => void)[] = []
  const applier = new Applier({
    log: {
      read: () => new Promise((_, reject) => reads.push(reject)),
      applied: () => {},
    } as unknown as CellLog,
    cache: { get: (index: number) => (index > 3 ? noop(index, 1) : undefined) } as unknown as EntryCache,
    logger: silentLog,
    state: stateAt(0),
    clock: nodeClock,
    onApplied: ({ index }) => applied.push(index),
    onFatal: error => fatal.push(error),
  })
  applier.committed(3 as LogIndex)
  return { applier, fatal, applied, fail: (error: Error) => reads.shift()!(error) }
}

t.test('a read that the end of the log cuts off is no failure', async t => {
  const { applier, fatal, fail } = start()
  applier.stop()
  fail(new Error('file closed'))
  await tick()
  t.same(fatal, [])
})

t.test('nor one that a snapshot cuts off, after which applying goes on', async t => {
  for (const isLate of [false, true]) {
    const { applier, fatal, applied, fail } = start()
    const trimmed = refreshError('entry 1 was trimmed')
    applier.beginInstall()
    if (!isLate) fail(trimmed)
    await tick()
    applier.install(stateAt(10))
    applier.committed(12 as LogIndex)
    if (isLate) fail(trimmed)
    await tick()
    t.same(fatal, [])
    t.same(applied, [11, 12])
  }
})

t.test('any other is', async t => {
  const { fatal, fail } = start()
  fail(refreshError('entry 1 was trimmed'))
  await tick()
  t.equal(fatal.length, 1)
})
