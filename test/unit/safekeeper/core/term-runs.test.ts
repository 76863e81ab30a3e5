import fc from 'fast-check'
import t from 'tap'
import {
  appendRun,
  createRuns,
  entryAt,
  lastAtMost,
  lastEntry,
  resetRuns,
  runsBetween,
  type TermRuns,
  termAt,
  trimRuns,
  truncateRuns,
} from '../../../../server/safekeeper/core/term-runs.ts'
import type { LogIndex, Term } from '../../../../server/safekeeper/core/types.ts'
import { at, entry, run, term } from '../../../support/core-rig.ts'

/** The dumb version: a term for each entry. */
interface Plain {
  base: number
  baseTerm: number
  terms: number[]
}

function sameAsPlain(log: TermRuns, plain: Plain): boolean {
  const last = plain.base + plain.terms.length
  if (log.last !== last || log.base.index !== plain.base || log.base.term !== plain.baseTerm) return false
  if (termAt(log, (plain.base - 1) as LogIndex) !== undefined) return false
  if (termAt(log, (last + 1) as LogIndex) !== undefined) return false
  for (let index = plain.base; index <= last; index++) {
    const expected = index === plain.base ? plain.baseTerm : plain.terms[index - plain.base - 1]
    if (termAt(log, index as LogIndex) !== expected) return false
  }
  return log.firsts.length === log.terms.length && new Set(log.terms).size === log.terms.length
}

t.test('any sequence of changes is what a list of terms would be', async () => {
  const operation = fc.oneof(
    fc.record({ type: fc.constant('append' as const), up: fc.nat(2), count: fc.integer({ min: 1, max: 9 }) }),
    fc.record({ type: fc.constant('truncate' as const), part: fc.double({ min: 0, max: 1, noNaN: true }) }),
    fc.record({ type: fc.constant('trim' as const), part: fc.double({ min: 0, max: 1, noNaN: true }) }),
    fc.record({ type: fc.constant('reset' as const), up: fc.nat(20) }),
  )
  fc.assert(
    fc.property(fc.array(operation, { maxLength: 60 }), operations => {
      const log = createRuns(entry(0, 0), [])
      const plain: Plain = { base: 0, baseTerm: 0, terms: [] }
      for (const what of operations) {
        const newest = plain.terms[plain.terms.length - 1] ?? plain.baseTerm
        if (what.type === 'append') {
          appendRun(log, (newest + what.up) as Term, what.count)
          for (let i = 0; i < what.count; i++) plain.terms.push(newest + what.up)
        } else if (what.type === 'truncate') {
          const keep = Math.round(plain.terms.length * what.part)
          truncateRuns(log, (plain.base + keep) as LogIndex)
          plain.terms.length = keep
        } else if (what.type === 'trim') {
          const gone = Math.round(plain.terms.length * what.part)
          const baseTerm = plain.terms[gone - 1] ?? plain.baseTerm
          trimRuns(log, entry(plain.base + gone, baseTerm))
          plain.terms.splice(0, gone)
          plain.base += gone
          plain.baseTerm = baseTerm
        } else {
          plain.base += plain.terms.length + what.up
          plain.baseTerm = newest
          plain.terms = []
          resetRuns(log, entry(plain.base, newest))
        }
        if (!sameAsPlain(log, plain)) return false
        const all = runsBetween(log, log.base.index, log.last)
        if (all.reduce((sum, { count }) => sum + count, 0) !== plain.terms.length) return false
      }
      return true
    }),
  )
})

t.test('runsBetween cuts at both ends', async t => {
  const log = createRuns(entry(10, 1), [run(1, 5), run(3, 5), run(4, 5)])
  t.same(runsBetween(log, at(10), at(25)), [run(1, 5), run(3, 5), run(4, 5)])
  t.same(runsBetween(log, at(12), at(17)), [run(1, 3), run(3, 2)])
  t.same(runsBetween(log, at(15), at(16)), [run(3, 1)])
  t.same(runsBetween(log, at(14), at(15)), [run(1, 1)])
  t.same(runsBetween(log, at(20), at(20)), [])
})

t.test('lastAtMost finds where two logs may still be one', async t => {
  const log = createRuns(entry(10, 1), [run(1, 5), run(3, 5), run(6, 5)])
  const table: [index: number, ofTerm: number, expected: ReturnType<typeof entry>][] = [
    [25, 6, entry(25, 6)],
    [99, 9, entry(25, 6)],
    [22, 6, entry(22, 6)],
    [22, 5, entry(20, 3)],
    [18, 5, entry(18, 3)],
    [18, 2, entry(15, 1)],
    [18, 0, entry(10, 1)],
    [10, 9, entry(10, 1)],
    [3, 9, entry(10, 1)],
  ]
  for (const [index, ofTerm, expected] of table) {
    t.same(lastAtMost(log, at(index), term(ofTerm)), expected, `${index} ${ofTerm}`)
  }
})

t.test('what cannot be is refused', async t => {
  const log = createRuns(entry(10, 2), [run(2, 5)])
  t.throws(() => appendRun(log, term(1), 1), /entry 16 of term 1 follows one of term 2/)
  t.throws(() => appendRun(log, term(2), 0), /run of 0/)
  t.throws(() => truncateRuns(log, at(9)), /below the log's base 10/)
  t.throws(() => trimRuns(log, entry(12, 1)), /does not hold/)
  t.throws(() => trimRuns(log, entry(16, 2)), /does not hold/)
  t.throws(() => entryAt(log, at(16)), /outside the log/)
  t.same(lastEntry(log), entry(15, 2))
})
