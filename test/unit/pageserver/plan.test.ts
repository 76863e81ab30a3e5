import t from 'tap'
import type { Lsn } from '../../../protocol/ids.ts'
import {
  DEFAULT_PLAN_POLICY,
  deservesImage,
  type PlanLayer,
  planCompaction,
  planImages,
  replaceLayers,
} from '../../../server/pageserver/core/plan.ts'

const layer = (n: number, more: Partial<PlanLayer> = {}): PlanLayer => ({
  key: `layer ${n}`,
  kind: 'delta',
  level: 0,
  imagesDone: false,
  lsnStart: (n * 100) as Lsn,
  lsnEnd: (n * 100 + 100) as Lsn,
  first: { space: 0, page: 0 },
  last: { space: 9, page: 9 },
  bytes: 1000,
  rawBytes: 4000,
  ...more,
})
const policy = { ...DEFAULT_PLAN_POLICY, level0Max: 3, compactLayersMax: 5, compactBytesMax: 4500 }
const range = (n: number) => Array.from({ length: n }, (_, i) => layer(i))

t.test('the oldest layers of level 0 are merged once there are too many', async t => {
  t.equal(planCompaction(range(3), policy), undefined)
  const plan = planCompaction([...range(10)].reverse(), policy)!
  t.same(
    plan.inputs.map(l => l.key),
    ['layer 0', 'layer 1', 'layer 2', 'layer 3'],
    'as many as the bytes allow, oldest first',
  )
  t.same([plan.lsnStart, plan.lsnEnd], [0, 400])
  t.equal(planCompaction(range(10), { ...policy, compactBytesMax: 1 << 30 })?.inputs.length, 5)
  const large = range(10).map(l => ({ ...l, bytes: 1 << 30 }))
  t.equal(planCompaction(large, policy)?.inputs.length, 2, 'two at least, or it would never end')
  const others = [...range(3), layer(20, { level: 1 }), layer(21, { kind: 'image', level: 1 })]
  t.equal(planCompaction(others, policy), undefined)
})

t.test('each layer of level 1 is considered for images once, the oldest first', async t => {
  const layers = [
    layer(1, { level: 1, imagesDone: true }),
    layer(3, { level: 1 }),
    layer(2, { level: 1 }),
    layer(0),
    layer(0, { kind: 'image', level: 1 }),
    layer(0, { level: 1, first: null, last: null }),
  ]
  t.equal(planImages(layers)?.key, 'layer 2')
  t.equal(planImages(layers.slice(0, 1)), undefined)
})

t.test('what deserves an image', async t => {
  const cost = { redoBytes: 0, entries: 0, layers: 1 }
  t.notOk(deservesImage(cost, DEFAULT_PLAN_POLICY))
  t.ok(deservesImage({ ...cost, redoBytes: 1 << 20 }, DEFAULT_PLAN_POLICY))
  t.ok(deservesImage({ ...cost, entries: 10_000 }, DEFAULT_PLAN_POLICY))
  t.ok(deservesImage({ ...cost, layers: 10 }, DEFAULT_PLAN_POLICY))
})

t.test('inputs give way to outputs, all or nothing', async t => {
  const [a, b, c, d] = [layer(1), layer(2), layer(3), layer(4)]
  t.same(replaceLayers([a, b, c], [a, b], [d]), [c, d])
  t.throws(() => replaceLayers([b, c], [a, b], [d]), /given up/)
})
