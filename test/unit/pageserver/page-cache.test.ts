import fc from 'fast-check'
import t from 'tap'
import type { Lsn } from '../../../protocol/ids.ts'
import { PageCache } from '../../../server/pageserver/page-cache.ts'

const lsn = (value: number) => value as Lsn
const fill = (from: number) => ({ from: lsn(from), pageLsn: lsn(from), crc: 1, freed: false })

t.test('versions are valid where they should be', async t => {
  const cache = new PageCache(1 << 20)
  const newest = cache.begin(1, 7, lsn(100), true, 16384)
  t.equal(cache.find(1, 7, lsn(100)), newest, 'found while it is filling')
  t.notOk(cache.isReady(newest))
  cache.invalidate(1, 7, lsn(120))
  const filled = cache.filled(newest)
  cache.fill(newest, fill(90))
  await filled
  t.equal(cache.find(1, 7, lsn(90)), newest)
  t.equal(cache.find(1, 7, lsn(119)), newest)
  t.equal(cache.find(1, 7, lsn(120)), -1, 'it changed while it was made')
  t.equal(cache.find(1, 7, lsn(89)), -1)
  const past = cache.begin(1, 7, lsn(50), false, 16384)
  cache.fill(past, fill(40))
  t.equal(cache.find(1, 7, lsn(40)), past)
  t.equal(cache.find(1, 7, lsn(51)), -1, 'nobody knows what came after')
  t.equal(cache.find(2, 7, lsn(50)), -1)
})

t.test('a failed version leaves nothing', async t => {
  const cache = new PageCache(1 << 20)
  const slot = cache.begin(1, 1, lsn(10), true, 4096)
  const filled = cache.filled(slot)
  cache.fail(slot)
  await filled
  t.equal(cache.find(1, 1, lsn(10)), -1)
  t.equal(cache.pages, 0)
})

t.test('a dropped tablespace', async t => {
  const cache = new PageCache(1 << 20)
  for (let page = 0; page < 10; page++) cache.fill(cache.begin(3, page, lsn(10), true, 4096), fill(5))
  cache.invalidateSpaces(new Set([3]), 4, lsn(20))
  t.equal(cache.find(3, 3, lsn(30)) >= 0, true)
  t.equal(cache.find(3, 4, lsn(30)), -1)
  t.equal(cache.find(3, 4, lsn(19)) >= 0, true, 'readers of the past still find it')
})

t.test('pinned slots stay, and all sizes find room', async t => {
  const cache = new PageCache(8 * 65536)
  const pinned = cache.begin(1, 0, lsn(1), true, 16384)
  cache.fill(pinned, fill(1))
  for (let page = 1; page < 500; page++) {
    const size = [1024, 4096, 8192, 16384, 32768, 65536][page % 6]!
    const slot = cache.begin(1, page, lsn(1), true, size)
    t.ok(slot >= 0, `page ${page} of ${size} bytes`)
    t.equal(cache.view(slot).length, size)
    cache.fill(slot, fill(1))
    cache.unpin(slot)
  }
  t.equal(cache.find(1, 0, lsn(1)), pinned)
})

t.test('against a plain list of versions', async () => {
  const step = fc.record({
    op: fc.constantFrom('make', 'make', 'change', 'find', 'find'),
    page: fc.integer({ min: 0, max: 30 }),
    back: fc.integer({ min: 0, max: 20 }),
  })
  fc.assert(
    fc.property(fc.array(step, { maxLength: 300 }), steps => {
      const cache = new PageCache(4 * 65536)
      // What a page was changed at, ascending: its content is identified by the last change.
      const changes = new Map<number, number[]>()
      const contentAt = (page: number, at: number) =>
        (changes.get(page) ?? [1]).filter(change => change <= at).at(-1)!
      const content = new Map<number, number>()
      let now = 10
      for (const { op, page, back } of steps) {
        const at = Math.max(1, now - back)
        if (op === 'change') {
          now++
          changes.set(page, [...(changes.get(page) ?? [1]), now])
          cache.invalidate(9, page, lsn(now))
        } else {
          const found = cache.find(9, page, lsn(at))
          if (found >= 0 && content.get(found) !== contentAt(page, at)) return false
          if (found < 0 && op === 'make') {
            const slot = cache.begin(9, page, lsn(at), at === now, 16384)
            if (slot < 0) return false
            cache.fill(slot, fill(contentAt(page, at)))
            content.set(slot, contentAt(page, at))
            cache.unpin(slot)
          }
        }
      }
      return true
    }),
  )
})
