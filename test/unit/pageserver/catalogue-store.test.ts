import t from 'tap'
import { type Lsn, toTimelineId } from '../../../protocol/ids.ts'
import {
  CATALOGUE_SNAPSHOT_LAYERS,
  catalogueSnapshotDue,
  loadCatalogue,
  saveCatalogue,
} from '../../../server/pageserver/catalogue-store.ts'
import { Catalogue } from '../../../server/pageserver/core/catalogue.ts'
import { ManifestStore } from '../../../server/pageserver/manifest.ts'
import { MemoryObjectStore } from '../../support/memory-object-store.ts'

const timeline = toTimelineId('00112233445566778899aabbccddeeff')
const lsn = (n: number) => n as Lsn

function create(store: MemoryObjectStore): Promise<ManifestStore> {
  return ManifestStore.create(store, {
    timeline,
    name: 'shop',
    innodbPageSize: 16384,
    serverVersion: '10.11.18',
    startLsn: lsn(100),
  })
}

t.test('a snapshot that is slow on its way does not replace one that knows more', async t => {
  const store = new MemoryObjectStore()
  const manifests = await create(store)
  const catalogue = new Catalogue()
  const { promise: goOn, resolve } = Promise.withResolvers<void>()
  let puts = 0
  store.slow = key => (key.includes('/objects/') && puts++ === 0 ? goOn : undefined)
  // A compaction's, and that of an import which ends meanwhile.
  const first = saveCatalogue(store, manifests, catalogue, lsn(100))
  await new Promise(resolve => setTimeout(resolve, 10))
  catalogue.apply({
    kind: 'import',
    lsn: lsn(90),
    space: 7,
    name: 'db/t.ibd',
    external: false,
    flags: 21,
    pages: 4,
  })
  const second = saveCatalogue(store, manifests, catalogue, lsn(100))
  await Promise.race([second, new Promise(resolve => setTimeout(resolve, 50))])
  resolve()
  await Promise.all([first, second])
  const again = await ManifestStore.claim(store, timeline)
  const loaded = await loadCatalogue(store, again!.current, async () => [])
  t.match(loaded.spaceAt(7, lsn(100)), { name: 'db/t.ibd', pages: 4 })
  t.same(
    [...store.objects.keys()].filter(key => key.includes('/objects/')),
    [again!.current.catalogue!.key],
  )
})

t.test('a snapshot is due for layers that it can have, not for those beyond what is durable', async t => {
  const manifests = await create(new MemoryObjectStore())
  const layers = (end: number) =>
    Array.from({ length: CATALOGUE_SNAPSHOT_LAYERS }, (_, i) => ({
      key: `timelines/${timeline}/layers/g1-${i}-image1-${end}`,
      kind: 'image' as const,
      level: 1,
      imagesDone: false,
      lsnStart: lsn(end),
      lsnEnd: lsn(end),
      first: { space: 0, page: 1 },
      last: { space: 7, page: 9 },
      bytes: 1,
      rawBytes: 1,
      entries: 1,
      pages: 1,
      minTimeUs: 0,
      maxTimeUs: 0,
    }))
  t.ok(catalogueSnapshotDue({ ...manifests.current, layers: layers(100) }))
  // An import that ended as of an LSN whose redo is still in memory.
  t.notOk(catalogueSnapshotDue({ ...manifests.current, layers: layers(101) }))
})
