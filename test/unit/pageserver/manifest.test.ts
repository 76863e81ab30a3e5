import t from 'tap'
import { type Lsn, toTimelineId } from '../../../protocol/ids.ts'
import {
  decodeManifest,
  encodeManifest,
  ImpossibleManifestError,
  type LayerEntry,
  listTimelines,
  type Manifest,
  ManifestClaim,
  ManifestStore,
  timelineKeys,
} from '../../../server/pageserver/manifest.ts'
import { MemoryObjectStore } from '../../support/memory-object-store.ts'

const timeline = toTimelineId('00112233445566778899aabbccddeeff')
const fresh = {
  timeline,
  name: 'shop',
  innodbPageSize: 16384,
  serverVersion: '10.11.18',
  startLsn: 100 as Lsn,
}
const fenced = { name: 'PalimpsestError', kind: 'fenced' } as unknown as Error

const layer = (key: string, lsnStart: number, lsnEnd: number): LayerEntry => ({
  key,
  kind: 'delta',
  level: 0,
  imagesDone: false,
  lsnStart: lsnStart as Lsn,
  lsnEnd: lsnEnd as Lsn,
  first: { space: 0, page: 1 },
  last: { space: 7, page: 9 },
  bytes: 1000,
  rawBytes: 4000,
  entries: 10,
  pages: 5,
  minTimeUs: 0,
  maxTimeUs: 0,
})

async function addLayer(manifests: ManifestStore, store: MemoryObjectStore, to: number): Promise<string> {
  const from = manifests.current.durableLsn
  const key = manifests.layerKey('delta', 0, from, to as Lsn)
  await store.putIfAbsent(key, Buffer.from('layer'))
  await manifests.update(current => ({
    ...current,
    durableLsn: to as Lsn,
    layers: [...current.layers, layer(key, from, to)],
  }))
  return key
}

t.test('what was committed is there after a restart, under a new generation', async t => {
  const store = new MemoryObjectStore()
  const first = await ManifestStore.create(store, fresh)
  t.same(await listTimelines(store), [timeline])
  await Promise.all([200, 300, 400].map(to => addLayer(first, store, to).catch(() => {})))
  const again = await ManifestStore.claim(store, timeline)
  t.equal(again?.current.generation, 2)
  t.same({ ...again?.current, generation: 1 }, first.current)
  t.equal(await ManifestStore.claim(store, toTimelineId('ff'.repeat(16))), undefined)
  await t.rejects(ManifestStore.create(store, fresh), /exists already/)
})

t.test('an earlier owner is fenced, and stays it', async t => {
  const store = new MemoryObjectStore()
  const old = await ManifestStore.create(store, fresh)
  await addLayer(old, store, 200)
  const next = (await ManifestStore.claim(store, timeline))!
  await t.rejects(addLayer(old, store, 300), fenced)
  t.ok(old.fenced)
  t.equal(old.current.durableLsn, 200, 'what failed did not take effect')
  await addLayer(next, store, 250)
  await t.rejects(addLayer(old, store, 300), fenced)
  t.equal((await ManifestStore.read(store, timeline))?.durableLsn, 250)
})

t.test('of two that claim at once one wins', async t => {
  const store = new MemoryObjectStore()
  await ManifestStore.create(store, fresh)
  const outcomes = await Promise.allSettled([
    ManifestStore.claim(store, timeline),
    ManifestStore.claim(store, timeline),
  ])
  t.same(outcomes.map(o => o.status).sort(), ['fulfilled', 'rejected'])
})

t.test('updates do not overtake each other; one that fails can be tried again', async t => {
  const store = new MemoryObjectStore()
  const manifests = await ManifestStore.create(store, fresh)
  await Promise.all(
    Array.from({ length: 20 }, (_, i) =>
      manifests.update(current => ({
        ...current,
        gaps: [...current.gaps, { from: i as Lsn, readableFrom: i as Lsn }],
      })),
    ),
  )
  t.same(
    manifests.current.gaps.map(gap => gap.from),
    Array.from({ length: 20 }, (_, i) => i),
  )
  store.fault = when => {
    if (when === 'after') throw new Error('reply lost')
  }
  const key = manifests.layerKey('delta', 0, 100 as Lsn, 500 as Lsn)
  const grow = (current: Manifest): Manifest => ({
    ...current,
    durableLsn: 500 as Lsn,
    layers: [layer(key, 100, 500)],
  })
  await t.rejects(manifests.update(grow), /reply lost/)
  store.fault = () => {}
  t.equal(manifests.current.durableLsn, 100)
  await manifests.update(grow)
  t.equal((await ManifestStore.read(store, timeline))?.durableLsn, 500)
})

t.test('updates that would break what a manifest promises are refused', async t => {
  const store = new MemoryObjectStore()
  const manifests = await ManifestStore.create(store, fresh)
  const key = await addLayer(manifests, store, 200)
  const refuse = (change: (current: Manifest) => Manifest, why: RegExp) =>
    t.rejects(manifests.update(change), why)
  await refuse(current => ({ ...current, durableLsn: 199 as Lsn }), /durable LSN would fall/)
  await refuse(
    current => ({ ...current, durableLsn: 199 as Lsn }),
    /^timelines\/[0-9a-f]{32}\/manifest\/000000000003 in memory is not written: /,
  )
  await manifests
    .update(current => ({ ...current, durableLsn: 199 as Lsn }))
    .catch(error => t.ok(error instanceof ImpossibleManifestError))
  const beyond = manifests.layerKey('delta', 0, 250 as Lsn, 300 as Lsn)
  await refuse(
    current => ({
      ...current,
      durableLsn: 300 as Lsn,
      layers: [...current.layers, layer(beyond, 250, 300)],
    }),
    /no layer has the redo from LSN 200 on/,
  )
  await refuse(current => ({ ...current, generation: 7 }), /identifies/)
  await refuse(current => ({ ...current, layers: [...current.layers, layer(key, 200, 300)] }), /twice/)
})

t.test('orphans are removed at start; what is named or younger is not', async t => {
  const store = new MemoryObjectStore()
  const old = await ManifestStore.create(store, fresh)
  const named = await addLayer(old, store, 200)
  const orphan = old.layerKey('delta', 0, 200 as Lsn, 300 as Lsn)
  const orphanObject = old.objectKey('catalogue-5')
  const chunk = timelineKeys.chunk(timeline, 'ab'.repeat(32))
  for (const key of [orphan, orphanObject, chunk]) await store.putIfAbsent(key, Buffer.from('x'))
  const next = (await ManifestStore.claim(store, timeline))!
  const underConstruction = next.layerKey('delta', 0, 200 as Lsn, 300 as Lsn)
  await store.putIfAbsent(underConstruction, Buffer.from('x'))
  t.same((await next.removeOrphans()).sort(), [orphan, orphanObject].sort())
  for (const key of [named, underConstruction, chunk]) t.ok(store.objects.has(key))
  t.not(underConstruction, orphan)
})

t.test('a timeline is deleted wholly, also when that was interrupted', async t => {
  const store = new MemoryObjectStore()
  const manifests = await ManifestStore.create(store, fresh)
  for (const to of [200, 300, 400]) await addLayer(manifests, store, to)
  let deletions = 0
  store.fault = (when, operation) => {
    if (when === 'before' && operation === 'delete' && deletions++ === 2) throw new Error('died')
  }
  await t.rejects(manifests.deleteTimeline(), /died/)
  store.fault = () => {}
  t.same(await listTimelines(store), [timeline], 'there is something left to do')
  await manifests.deleteTimeline()
  t.same(await listTimelines(store), [])
  t.match([...store.objects.keys()], [/\/manifest\/\d{12}$/], 'the tombstone, and nothing else')
  t.equal(store.objects.size, 1)
})

t.test('a deletion that died at any operation of the store is gone on with by the next start', async t => {
  for (const when of ['before', 'after'] as const)
    for (let diesAt = 0; ; diesAt++) {
      const store = new MemoryObjectStore()
      const manifests = await ManifestStore.create(store, fresh)
      for (const to of [200, 300, 400]) await addLayer(manifests, store, to)
      let operations = 0
      store.fault = now => {
        if (now === when && operations++ === diesAt) throw new Error('died')
      }
      const isDone = await manifests.deleteTimeline().then(
        () => true,
        () => false,
      )
      store.fault = () => {}
      const found = await ManifestStore.read(store, timeline)
      for (const id of await listTimelines(store)) {
        const claimed = await ManifestStore.claim(store, id)
        t.equal(
          claimed === undefined,
          found === undefined,
          `${when} operation ${diesAt}: all of it or nothing`,
        )
        for (const { key } of claimed?.current.layers ?? []) t.ok(store.objects.has(key))
      }
      if (found === undefined) {
        const left = [...store.objects.keys()].filter(key => !key.includes('/manifest/'))
        t.same(left, [], `${when} operation ${diesAt}: nothing is left`)
      }
      if (isDone) break
    }
})

t.test(
  'a timeline made again under its id gives no key out twice, and fences whoever had the first one',
  async t => {
    const store = new MemoryObjectStore()
    const first = await ManifestStore.create(store, fresh)
    const before = await addLayer(first, store, 200)
    const stale = await ManifestStore.create(store, { ...fresh, timeline: toTimelineId('11'.repeat(16)) })
    await first.deleteTimeline()
    t.equal(await ManifestStore.read(store, timeline), undefined)
    t.equal(await ManifestStore.claim(store, timeline), undefined)
    const second = await ManifestStore.create(store, { ...fresh, name: 'again' })
    t.not(await addLayer(second, store, 200), before)
    t.ok(second.current.generation > first.current.generation)
    await t.rejects(first.deleteTimeline(), fenced, 'the first one is not to delete the second')
    t.ok(store.objects.has(second.current.layers[0]!.key))
    t.equal((await ManifestStore.claim(store, timeline))?.current.name, 'again')
    t.notOk(stale.fenced, 'others do not mind')
  },
)

t.test('an owner that sleeps while it deletes leaves alone what was made again meanwhile', async t => {
  const objects = new Map<string, Buffer>()
  const sleeper = new MemoryObjectStore(objects)
  const other = new MemoryObjectStore(objects)
  const old = await ManifestStore.create(sleeper, fresh)
  await addLayer(old, sleeper, 200)
  const asleep = Promise.withResolvers<void>()
  const wakes = Promise.withResolvers<void>()
  const list = sleeper.list.bind(sleeper)
  // Where it sleeps: before it lists what there is to delete.
  sleeper.list = async prefix => {
    if (prefix === timelineKeys.all(timeline)) {
      asleep.resolve()
      await wakes.promise
    }
    return list(prefix)
  }
  const deletion = old.deleteTimeline()
  await asleep.promise
  const again = await ManifestStore.create(other, fresh)
  const key = await addLayer(again, other, 200)
  wakes.resolve()
  await t.rejects(deletion, fenced)
  t.ok(objects.has(key))
  t.same(await listTimelines(other), [timeline])
})

t.test('an owner that was replaced deletes nothing', async t => {
  const store = new MemoryObjectStore()
  const old = await ManifestStore.create(store, fresh)
  const key = await addLayer(old, store, 200)
  await ManifestStore.claim(store, timeline)
  await t.rejects(old.deleteTimeline(), fenced)
  t.ok(store.objects.has(key))
})

t.test('a claim whose reply was lost is no reason to take the timeline from the next owner', async t => {
  const store = new MemoryObjectStore()
  await ManifestStore.create(store, fresh)
  const claim = new ManifestClaim(store, timeline)
  store.fault = (when, operation) => {
    if (when === 'after' && operation === 'put') throw new Error('reply lost')
  }
  await t.rejects(claim.take(), /reply lost/)
  store.fault = () => {}
  t.test('nobody else came', async t => {
    t.ok(await new ManifestClaim(new MemoryObjectStore(new Map(store.objects)), timeline).take())
  })
  const next = (await ManifestStore.claim(store, timeline))!
  await t.rejects(claim.take(), fenced)
  await addLayer(next, store, 200)
  t.notOk(next.fenced)
})

t.test('thousands of layers stay small', async t => {
  const store = new MemoryObjectStore()
  const manifests = await ManifestStore.create(store, fresh)
  const layers = Array.from({ length: 5000 }, (_, i) =>
    layer(manifests.layerKey('delta', 0, (100 + i) as Lsn, (101 + i) as Lsn), 100 + i, 101 + i),
  )
  await manifests.update(current => ({ ...current, layers }))
  const bytes = encodeManifest(manifests.current)
  t.ok(bytes.length < 200_000, `${bytes.length} bytes`)
  t.same(decodeManifest(bytes, 'here'), manifests.current)
})

t.test('what is no manifest of ours is refused, with the field at fault', async t => {
  const good: Manifest = {
    formatVersion: 1,
    ...fresh,
    generation: 1,
    durableLsn: 100 as Lsn,
    stopped: null,
    partings: [],
    ancestors: [],
    gaps: [],
    layers: [],
    catalogue: null,
    files: [],
  }
  const bad = (change: object, why: RegExp) =>
    t.throws(() => decodeManifest(encodeManifest({ ...good, ...change } as Manifest), 'here'), why)
  t.same(decodeManifest(encodeManifest(good), 'here'), good)
  bad({ formatVersion: 2 }, /here: format version 2; this software reads version 1/)
  bad({ innodbPageSize: 1000 }, /innodbPageSize/)
  bad({ durableLsn: -1 }, /durableLsn/)
  bad({ timeline: 'xyz' }, /timeline/)
  bad({ layers: [{ ...layer('k', 1, 2), key: '../../etc/passwd' }] }, /layers\.0\.key/)
  bad({ layers: [layer('k', 3, 2)] }, /layers\.0/)
  t.throws(() => decodeManifest(Buffer.from('nothing of the kind'), 'here'), /no manifest/)
  const bytes = encodeManifest(good)
  for (let length = 0; length < bytes.length; length++)
    t.throws(() => decodeManifest(bytes.subarray(0, length), 'here'))
})
