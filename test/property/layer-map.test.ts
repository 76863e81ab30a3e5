import fc from 'fast-check'
import t from 'tap'
import type { Lsn } from '../../protocol/ids.ts'
import {
  compareAge,
  comparePages,
  covers,
  LayerMap,
  type MapLayer,
} from '../../server/pageserver/core/layer-map.ts'

const pageId = fc.record({ space: fc.integer({ min: 0, max: 4 }), page: fc.integer({ min: 0, max: 6 }) })
const layers = fc
  .array(
    fc.record({
      image: fc.boolean(),
      level: fc.integer({ min: 0, max: 1 }),
      a: pageId,
      b: pageId,
      from: fc.integer({ min: 0, max: 20 }),
      length: fc.integer({ min: 1, max: 10 }),
      empty: fc.integer({ min: 0, max: 9 }),
    }),
    { maxLength: 60 },
  )
  .map(list =>
    list.map(({ image, level, a, b, from, length, empty }, i): MapLayer => {
      const [first, last] = comparePages(a, b) <= 0 ? [a, b] : [b, a]
      return {
        key: `${i}`,
        kind: image ? 'image' : 'delta',
        level: image ? 1 : level,
        lsnStart: from as Lsn,
        lsnEnd: (image ? from : from + length) as Lsn,
        first: empty === 0 ? null : first,
        last: empty === 0 ? null : last,
      }
    }),
  )

t.test('the layer map finds what a scan of all layers finds, in the same order of age', async t => {
  fc.assert(
    fc.property(
      layers,
      fc.array(fc.tuple(pageId, fc.integer({ min: 0, max: 30 }), fc.integer({ min: 0, max: 30 })), {
        maxLength: 20,
      }),
      (list, queries) => {
        const map = new LayerMap(list)
        for (const [{ space, page }, lsn, floor] of queries) {
          const got = map.candidates(space, page, lsn as Lsn, floor as Lsn, [])
          const wanted = list.filter(
            layer =>
              covers(layer, space, page) &&
              layer.lsnEnd > floor &&
              (layer.kind === 'image' ? layer.lsnEnd <= lsn : layer.lsnStart < lsn),
          )
          if (new Set(got).size !== got.length) return false
          if (wanted.length !== got.length || !wanted.every(layer => got.includes(layer))) return false
          for (let i = 1; i < got.length; i++) if (compareAge(got[i - 1]!, got[i]!) > 0) return false
        }
        return true
      },
    ),
    { numRuns: 400 },
  )
  t.pass()
})
