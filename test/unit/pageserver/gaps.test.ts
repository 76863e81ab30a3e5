import t from 'tap'
import { LSN_MAX, type Lsn } from '../../../protocol/ids.ts'
import { awaitsImport, closeGaps, type Gap, gapAt } from '../../../server/pageserver/core/gaps.ts'

const gap = (from: number, readableFrom: number): Gap => ({
  from: from as Lsn,
  readableFrom: readableFrom as Lsn,
})
const ended = (startLsn: number, readableFromLsn: number, ...mended: number[]) => ({
  startLsn: startLsn as Lsn,
  readableFromLsn: readableFromLsn as Lsn,
  mends: (from: Lsn) => mended.includes(from),
})
const readable = (gaps: readonly Gap[], lsn: number) => gapAt(gaps, lsn as Lsn) === undefined

t.test('what lies in a gap', async t => {
  const gaps = [gap(100, 200), gap(500, 600)]
  t.same(
    [99, 100, 199, 200, 500, 501, 599, 600].filter(lsn => readable(gaps, lsn)),
    [200, 500, 600],
  )
  t.match(gapAt(gaps, 150 as Lsn), { isFirst: true })
  t.match(gapAt(gaps, 550 as Lsn), { isFirst: false, gap: { from: 500 } })
  t.notOk(awaitsImport(gaps))
  t.ok(awaitsImport([]))
  t.ok(awaitsImport([...gaps, gap(700, LSN_MAX)]))
})

t.test('an import that mends lost redo closes the gap where it is right again', async t => {
  const gaps = [gap(100, 200), gap(500, LSN_MAX)]
  t.same(closeGaps(gaps, ended(550, 600, 500)), [gap(100, 200), gap(500, 600)])
  t.same(closeGaps(gaps, ended(550, 550, 500)), [gap(100, 200), gap(500, 550)])
  t.same(closeGaps(gaps, ended(550, 600)), [...gaps, gap(549, 600)], 'what it does not mend stays open')
})

t.test('pages that may be newer than their LSN are not given out for it', async t => {
  const unlogged: Gap = { ...gap(500, LSN_MAX), cause: 'unlogged' }
  const closed = closeGaps([gap(100, 200), unlogged], ended(500, 600, 500))
  t.same(closed, [gap(100, 200), { ...gap(499, 600), cause: 'unlogged' }])
  t.notOk(readable(closed, 500))
  t.ok(readable(closed, 499))
  t.same(
    closeGaps([gap(100, 200), unlogged], ended(500, 500, 500)),
    [gap(100, 200)],
    'it turned out that none of them is',
  )
  t.same(
    closeGaps([gap(100, 200), unlogged], ended(400, 600, 500)),
    [gap(100, 200), { ...gap(399, 600), cause: 'unlogged' }],
    'begun anew from an earlier checkpoint',
  )
  t.same(closeGaps([gap(100, 800)], ended(400, 600)), [gap(100, 800)], 'that cannot be read anyway')
  t.same(closeGaps([], ended(400, 600)), [], 'nor can anything before the first import has ended')
})
