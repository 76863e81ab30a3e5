import t from 'tap'
import { CAS_VERSIONS_KEPT, CasObject } from '../../../server/shared/cas-object.ts'
import { MemoryObjectStore } from '../../support/memory-object-store.ts'

const object = (store: MemoryObjectStore) => new CasObject(store, 'things/one', 'the thing')
const fenced = { name: 'PalimpsestError', kind: 'fenced' } as unknown as Error
const load = async (cas: CasObject) => (await cas.load())?.bytes.toString()

t.test('each commit follows the one before; old versions are cleaned away', async t => {
  const store = new MemoryObjectStore()
  const cas = object(store)
  t.equal(await load(cas), undefined)
  for (let i = 1; i <= 20; i++) t.equal(await cas.commit(Buffer.from(`v${i}`)), i)
  t.equal(store.objects.size, CAS_VERSIONS_KEPT)
  const other = object(store)
  t.equal(await load(other), 'v20')
  t.equal(await other.commit(Buffer.from('v21')), 21)
  await t.rejects(cas.commit(Buffer.from('lost')), fenced)
  t.equal(await load(object(store)), 'v21')
})

t.test('of several that replace the same version one wins', async t => {
  const store = new MemoryObjectStore()
  await object(store).commit(Buffer.from('first'))
  const rivals = Array.from({ length: 8 }, () => object(store))
  for (const rival of rivals) await rival.load()
  const outcomes = await Promise.allSettled(rivals.map((rival, i) => rival.commit(Buffer.from(`rival ${i}`))))
  t.equal(outcomes.filter(o => o.status === 'fulfilled').length, 1)
  const winner = outcomes.findIndex(o => o.status === 'fulfilled')
  t.equal(await load(object(store)), `rival ${winner}`)
})

t.test('one that slept until its next number had come and gone is fenced all the same', async t => {
  const store = new MemoryObjectStore()
  const sleeper = object(store)
  await sleeper.commit(Buffer.from('1'))
  const other = object(store)
  await other.load()
  for (let i = 2; i <= 30; i++) await other.commit(Buffer.from(`${i}`))
  t.notOk(store.objects.has(sleeper.key(2)), 'the number it will try is free again')
  await t.rejects(sleeper.commit(Buffer.from('stale')), fenced)
  t.notOk(store.objects.has(sleeper.key(2)), 'and it leaves nothing there')
  t.equal(await load(object(store)), '30')
  await t.rejects(sleeper.commit(Buffer.from('stale again')), fenced)
})

t.test('a put whose reply was lost is recognised as our own', async t => {
  const store = new MemoryObjectStore()
  const cas = object(store)
  await cas.commit(Buffer.from('one'))
  const loseReply = () => {
    let lost = false
    store.fault = (when, operation) => {
      if (!lost && when === 'after' && operation === 'put') {
        lost = true
        throw new Error('connection reset')
      }
    }
  }
  loseReply()
  await t.rejects(cas.commit(Buffer.from('two')), /connection reset/)
  t.equal(await load(object(store)), 'two', 'it came through')
  await cas.commit(Buffer.from('two'))
  t.equal(await load(object(store)), 'two')
  loseReply()
  await t.rejects(cas.commit(Buffer.from('three')), /connection reset/)
  await cas.commit(Buffer.from('newer three'))
  t.equal(await load(object(store)), 'newer three')
  store.fault = when => {
    if (when === 'before') throw new Error('no route')
  }
  await t.rejects(cas.commit(Buffer.from('four')), /no route/)
  store.fault = () => {}
  await cas.commit(Buffer.from('four'))
  t.equal(await load(object(store)), 'four')
})

t.test('a death between any two steps leaves the old version or the new one', async t => {
  for (let step = 0; step < 8; step++) {
    const store = new MemoryObjectStore()
    const cas = object(store)
    for (let i = 1; i <= 6; i++) await cas.commit(Buffer.from(`v${i}`))
    let calls = 0
    store.fault = () => {
      if (calls++ === step) throw new Error('died')
    }
    const outcome = await cas.commit(Buffer.from('v7')).then(
      () => true,
      () => false,
    )
    store.fault = () => {}
    const next = object(store)
    const found = await load(next)
    t.ok(outcome ? found === 'v7' : found === 'v6' || found === 'v7', `step ${step}: ${found}`)
    await next.commit(Buffer.from('v8'))
    t.equal(await load(object(store)), 'v8')
  }
})

t.test('every damaged byte of a version is noticed', async t => {
  const store = new MemoryObjectStore()
  const cas = object(store)
  await cas.commit(Buffer.from('contents'))
  const key = cas.key(1)
  const good = store.objects.get(key)!
  let noticed = 0
  for (let at = 0; at < good.length; at++) {
    const bad = Buffer.from(good)
    bad[at] = bad[at]! ^ 0x40
    store.objects.set(key, bad)
    try {
      await cas.load()
      t.fail(`byte ${at}`)
    } catch (error) {
      t.match((error as Error).message, key)
      noticed++
    }
  }
  t.equal(noticed, good.length)
  store.objects.set(key, good.subarray(0, 20))
  await t.rejects(cas.load(), /no versioned object/)
})
