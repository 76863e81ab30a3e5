import t from 'tap'
import type { Lsn } from '../../../protocol/ids.ts'
import { LayerMap, type MapLayer } from '../../../server/pageserver/core/layer-map.ts'

const layer = (key: string, lsnStart: number, lsnEnd: number, more: Partial<MapLayer> = {}): MapLayer => ({
  key,
  kind: lsnStart === lsnEnd ? 'image' : 'delta',
  level: 1,
  lsnStart: lsnStart as Lsn,
  lsnEnd: lsnEnd as Lsn,
  first: { space: 0, page: 0 },
  last: { space: 9, page: 9 },
  ...more,
})

const found = (map: LayerMap<MapLayer>, space: number, page: number, lsn: number, floor = 0) =>
  map.candidates(space, page, lsn as Lsn, floor as Lsn, []).map(l => l.key)

t.test('newest first; an image comes before the deltas that it makes unnecessary', async t => {
  const map = new LayerMap([
    layer('old', 0, 100),
    layer('image at 100', 100, 100),
    layer('new', 200, 300, { level: 0 }),
    layer('middle', 100, 200),
    layer('image at 150', 150, 150),
  ])
  t.same(found(map, 1, 1, 300), ['new', 'middle', 'image at 150', 'image at 100', 'old'])
  t.same(found(map, 1, 1, 149), ['middle', 'image at 100', 'old'], 'an image of later does not help')
  t.same(found(map, 1, 1, 150), ['middle', 'image at 150', 'image at 100', 'old'])
  t.same(found(map, 1, 1, 100), ['image at 100', 'old'], 'a delta that begins at the LSN has nothing of it')
  t.same(found(map, 1, 1, 300, 150), ['new', 'middle'], 'nothing at or before the floor')
})

t.test('only layers whose range has the page, and none without pages', async t => {
  const at = (space: number, page: number) => ({ space, page })
  const map = new LayerMap([
    layer('a', 0, 100, { first: at(0, 5), last: at(2, 3) }),
    layer('b', 0, 100, { first: at(2, 4), last: at(0xffffffff, 0xffffffff) }),
    layer('empty', 0, 100, { first: null, last: null }),
  ])
  t.same(found(map, 0, 4, 100), [])
  t.same(found(map, 0, 5, 100), ['a'])
  t.same(found(map, 1, 0xffffffff, 100), ['a'])
  t.same(found(map, 2, 3, 100), ['a'])
  t.same(found(map, 2, 4, 100), ['b'])
  t.same(found(map, 0xffffffff, 0xffffffff, 100), ['b'])
  t.same(found(new LayerMap([]), 1, 1, 1), [])
})
