import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { LayerCache } from '../../../server/pageserver/layer-cache.ts'
import { LayerSet } from '../../../server/pageserver/layer-store.ts'
import type { LayerEntry } from '../../../server/pageserver/manifest.ts'
import type { PalimpsestError } from '../../../server/shared/errors.ts'
import { silentLog } from '../../../server/shared/log.ts'
import { MemoryObjectStore } from '../../support/memory-object-store.ts'

const like = (error: object) => error as Error
const layer = (name: string, bytes = 100) => ({ key: `timelines/x/layers/${name}`, bytes })

function setUp(dir: string, bytesMax = 350, store = new MemoryObjectStore()) {
  const cache = new LayerCache(store, { dir, bytesMax, log: silentLog })
  let gets = 0
  store.fault = (when, operation) => {
    if (when === 'before' && operation === 'get') gets++
  }
  const has = (name: string, bytes = 100) =>
    store.objects.set(`timelines/x/layers/${name}`, Buffer.alloc(bytes, name))
  return { cache, store, has, gets: () => gets, files: () => readdirSync(join(dir, 'layers')) }
}

t.test('many readers of one layer cause one download, and it stays while it is held', async t => {
  const { cache, has, gets, files } = setUp(t.testdir())
  for (const name of ['a', 'b', 'c', 'd', 'e']) has(name)
  const held = await Promise.all(Array.from({ length: 20 }, () => cache.fetch(layer('a'))))
  t.equal(gets(), 1)
  t.equal(new Set(held).size, 1)
  t.equal(readFileSync(held[0]!.path, 'utf8'), 'a'.repeat(100))
  for (const name of ['b', 'c', 'd', 'e']) cache.release(await cache.fetch(layer(name)))
  await new Promise(next => setImmediate(next))
  t.ok(existsSync(held[0]!.path), 'the oldest, and held')
  t.ok(cache.bytes <= 350)
  for (const file of held) cache.release(file)
  has('f')
  cache.release(await cache.fetch(layer('f')))
  await new Promise(next => setImmediate(next))
  await cache.close()
  t.ok(cache.bytes <= 350)
  t.equal(files().length, cache.copies)
})

t.test('a layer that is stored stays here, one that could not be stored stays where it was', async t => {
  const dir = t.testdir()
  const { cache, store, gets } = setUp(dir)
  const path = join(dir, 'scratch')
  writeFileSync(path, 'z'.repeat(100))
  store.fault = when => {
    if (when === 'before') throw new Error('out of reach')
  }
  await t.rejects(cache.put('timelines/x/layers/z', path), /out of reach/)
  t.ok(existsSync(path))
  t.same(readdirSync(join(dir, 'partial')), [])
  // The second attempt takes effect, and is not heard of.
  store.fault = when => {
    if (when === 'after') throw new Error('lost')
  }
  await t.rejects(cache.put('timelines/x/layers/z', path), /lost/)
  store.fault = () => {}
  await cache.put('timelines/x/layers/z', path)
  t.notOk(existsSync(path))
  const file = cache.take(layer('z'))
  t.equal(readFileSync(file!.path, 'utf8'), 'z'.repeat(100))
  t.equal(gets(), 0)
  cache.release(file!)
  await cache.delete('timelines/x/layers/z')
  t.equal(cache.take(layer('z')), undefined)
  await cache.close()
  t.same(readdirSync(join(dir, 'layers')), [])
})

t.test('what a crash leaves is found again if it was whole, and removed if it was not', async t => {
  const dir = t.testdir()
  const { cache, has } = setUp(dir)
  has('a')
  has('b')
  cache.release(await cache.fetch(layer('a')))
  cache.release(await cache.fetch(layer('b')))
  mkdirSync(join(dir, 'partial'), { recursive: true })
  writeFileSync(join(dir, 'partial', '7'), 'half')
  // Emptied, and its name not removed yet.
  const emptied = readdirSync(join(dir, 'layers')).find(name => name.includes('~b~'))!
  writeFileSync(join(dir, 'layers', emptied), '')
  writeFileSync(join(dir, 'layers', 'something else'), 'x')
  const { cache: next, gets, has: hasNow } = setUp(dir)
  hasNow('a')
  hasNow('b')
  t.same(readdirSync(join(dir, 'partial')), [])
  t.equal(next.copies, 1)
  next.release(next.take(layer('a'))!)
  t.equal(next.take(layer('b')), undefined)
  next.release(await next.fetch(layer('b')))
  t.equal(gets(), 1)
  t.equal(next.take(layer('a', 99)), undefined, 'not of the size that the manifest says')
})

t.test('damage: once a copy is fetched again, then the object is to blame', async t => {
  const { cache, has, gets } = setUp(t.testdir())
  has('a')
  const first = await cache.fetch(layer('a'))
  t.equal(cache.renew(layer('a'), first.path), true)
  t.ok(existsSync(first.path), 'somebody holds it')
  t.equal(cache.renew(layer('a'), first.path), true, 'nor has the next one who finds out to do without')
  const second = await cache.fetch(layer('a'))
  t.not(second.path, first.path)
  t.equal(gets(), 2)
  t.equal(cache.renew(layer('a'), first.path), true)
  t.equal(gets(), 2)
  t.equal(cache.renew(layer('a'), second.path), false)
  cache.release(first)
  cache.release(second)
  await cache.close()
  t.notOk(existsSync(first.path))
})

t.test('errors of downloads reach all who wait, and the next one tries again', async t => {
  const { cache, store, has } = setUp(t.testdir())
  const waiting = [cache.fetch(layer('gone')), cache.fetch(layer('gone'))]
  for (const one of waiting) await t.rejects(one, like({ kind: 'refresh' }))
  has('gone', 77)
  await t.rejects(
    cache.fetch(layer('gone')),
    like({ kind: 'corrupt', message: /77 bytes, the manifest says 100/ }),
  )
  store.objects.set('timelines/x/layers/gone', Buffer.alloc(100))
  cache.release(await cache.fetch(layer('gone')))
})

t.test('copies of layers that do not exist any more are thrown away', async t => {
  const dir = t.testdir()
  const { cache, has, files } = setUp(dir)
  for (const name of ['a', 'b', 'c']) {
    has(name)
    cache.release(await cache.fetch(layer(name)))
  }
  const held = cache.take(layer('b'))!
  cache.forgetAll(key => !key.endsWith('/c'))
  await new Promise(next => setImmediate(next))
  t.equal(cache.take(layer('a')), undefined)
  t.equal(cache.take(layer('b')), undefined)
  t.ok(existsSync(held.path), 'until nobody holds it')
  cache.release(held)
  await cache.close()
  t.equal(files().length, 1)
  t.equal(cache.bytes, 100)
})

t.test(
  'what is stored takes the place of a copy under its key, also where it cannot be cached itself',
  async t => {
    const dir = t.testdir()
    const { cache, store, has } = setUp(dir)
    has('a')
    cache.release(await cache.fetch(layer('a')))
    // Another store, or an older copy of this one: the key is given out again.
    store.objects.clear()
    const path = join(dir, 'scratch')
    writeFileSync(path, 'n'.repeat(100))
    rmSync(join(dir, 'partial'), { recursive: true })
    await cache.put('timelines/x/layers/a', path)
    mkdirSync(join(dir, 'partial'))
    const file = await cache.fetch(layer('a'))
    t.equal(readFileSync(file.path, 'utf8'), 'n'.repeat(100))
    cache.release(file)
    await cache.close()
  },
)

t.test('a download that cannot be kept leaves no file', async t => {
  const dir = t.testdir()
  const { cache, has } = setUp(dir)
  has('a')
  rmSync(join(dir, 'layers'), { recursive: true })
  await t.rejects(cache.fetch(layer('a')), /caching layer/)
  t.same(readdirSync(join(dir, 'partial')), [])
  await cache.close()
})

t.test('of several readers of one damaged copy none takes the layer for damaged', async t => {
  const { cache, has } = setUp(t.testdir())
  has('a')
  const entry = { ...layer('a'), kind: 'delta', lsnStart: 0, lsnEnd: 1 } as unknown as LayerEntry
  const set = new LayerSet(cache, async error => error as PalimpsestError)
  const place = set.add(entry)
  await set.fetchAll()
  const damage = `layer file ${set.sources[place]!.path}, byte 7: block 0 does not match its CRC-32C`
  t.ok(set.renew([place], damage))
  t.ok(set.renew([place], damage), 'another page of the same task')
  await set.fetchAll()
  t.ok(set.renew([place], damage), 'a task that began before')
  const again = `layer file ${set.sources[place]!.path}, byte 7: block 0 does not match its CRC-32C`
  t.not(again, damage)
  t.notOk(set.renew([place], again), 'the layer itself')
  t.notOk(
    set.renew([place], damage.replace(', byte', '9, byte')),
    'another copy, whose number begins like that',
  )
  set.release()
  await cache.close()
})
