import t from 'tap'
import { type Lsn, toTimelineId } from '../../../protocol/ids.ts'
import { decodeCatalogueEvents, encodeCatalogueEvents } from '../../../server/pageserver/catalogue-codec.ts'
import { loadCatalogue, saveCatalogue } from '../../../server/pageserver/catalogue-store.ts'
import { Catalogue, type CatalogueEvent } from '../../../server/pageserver/core/catalogue.ts'
import { ManifestStore } from '../../../server/pageserver/manifest.ts'
import { MemoryObjectStore } from '../../support/memory-object-store.ts'

const L = (lsn: number) => lsn as Lsn
const file = (
  kind: 'create' | 'modify' | 'delete',
  lsn: number,
  space: number,
  name: string,
): CatalogueEvent => ({
  kind,
  lsn: L(lsn),
  space,
  name,
  external: false,
})
const rename = (lsn: number, space: number, name: string, newName: string): CatalogueEvent => ({
  kind: 'rename',
  lsn: L(lsn),
  space,
  name,
  external: false,
  newName,
  newExternal: false,
})
const size = (lsn: number, space: number, pages: number): CatalogueEvent => ({
  kind: 'size',
  lsn: L(lsn),
  space,
  pages,
})
const trim = (lsn: number, space: number, pages: number): CatalogueEvent => ({
  kind: 'trim',
  lsn: L(lsn),
  space,
  pages,
})
const imported = (lsn: number, space: number, name: string, pages: number): CatalogueEvent => ({
  kind: 'import',
  lsn: L(lsn),
  space,
  name,
  external: false,
  flags: 21,
  pages,
})
const make = (...events: CatalogueEvent[]) => {
  const catalogue = new Catalogue()
  catalogue.applyAll(events)
  return catalogue
}

t.test('a tablespace over its life', async t => {
  const catalogue = make(
    file('create', 100, 7, 'db/t.ibd'),
    { kind: 'flags', lsn: L(110), space: 7, flags: 21 },
    size(110, 7, 4),
    size(150, 7, 64),
    rename(200, 7, 'db/t.ibd', 'db/u.ibd'),
    file('delete', 300, 7, 'db/u.ibd'),
  )
  t.equal(catalogue.spaceAt(7, L(99)), undefined)
  t.same(catalogue.spaceAt(7, L(100)), { space: 7, name: 'db/t.ibd', external: false, flags: 0, pages: 0 })
  t.match(catalogue.spaceAt(7, L(149)), { name: 'db/t.ibd', flags: 21, pages: 4 })
  t.match(catalogue.spaceAt(7, L(200)), { name: 'db/u.ibd', pages: 64 })
  t.equal(catalogue.spaceAt(7, L(300)), undefined)
  t.same(
    catalogue.list(L(250)).map(s => s.name),
    ['db/u.ibd'],
  )
  t.same(catalogue.list(L(300)), [])
})

t.test('an import as of C, with redo from C on top', async t => {
  const C = 1000
  const catalogue = make(
    // Seen by the import after the redo below had happened, or before.
    imported(C, 1, 'db/new.ibd', 128),
    imported(C, 2, 'db/late.ibd', 4),
    imported(C, 3, 'db/dropped.ibd', 8),
    imported(C, 4, 'db/copied-before-rename.ibd', 8),
    // Redo after C.
    file('modify', 1010, 1, 'db/old.ibd'),
    rename(1020, 1, 'db/old.ibd', 'db/new.ibd'),
    size(1030, 1, 128),
    file('create', 1040, 2, 'db/late.ibd'),
    file('delete', 1050, 3, 'db/dropped.ibd'),
    rename(1060, 4, 'db/copied-before-rename.ibd', 'db/four.ibd'),
    // Never seen by the import: dropped before it came there.
    file('modify', 1005, 5, 'db/gone.ibd'),
    file('delete', 1015, 5, 'db/gone.ibd'),
  )
  t.same(
    catalogue.list(L(1100)).map(s => [s.space, s.name, s.pages]),
    [
      [1, 'db/new.ibd', 128],
      [2, 'db/late.ibd', 4],
      [4, 'db/four.ibd', 8],
    ],
  )
})

t.test('a new import after a gap says what is gone', async t => {
  const catalogue = make(imported(100, 1, 'db/a.ibd', 8), imported(100, 2, 'db/b.ibd', 8), size(150, 1, 16))
  catalogue.applyAll([imported(500, 1, 'db/renamed.ibd', 32), { kind: 'gone', lsn: L(500), space: 2 }])
  t.same(
    catalogue.list(L(499)).map(s => s.name),
    ['db/a.ibd', 'db/b.ibd'],
  )
  t.same(
    catalogue.list(L(500)).map(s => [s.name, s.pages]),
    [['db/renamed.ibd', 32]],
  )
})

t.test('truncation voids what came before, for the pages it cut off', async t => {
  const catalogue = make(
    imported(100, 9, 'undo001', 1000),
    trim(200, 9, 384),
    size(210, 9, 500),
    trim(300, 9, 400),
  )
  t.equal(catalogue.trimLsn(9, 384, L(199)), 0)
  t.equal(catalogue.trimLsn(9, 383, L(250)), 0)
  t.equal(catalogue.trimLsn(9, 384, L(250)), 200)
  t.equal(catalogue.trimLsn(9, 384, L(300)), 200, 'the later one left page 384 alone')
  t.equal(catalogue.trimLsn(9, 400, L(300)), 300)
  t.equal(catalogue.trimLsn(8, 400, L(300)), 0)
  t.equal(catalogue.spaceAt(9, L(205))?.pages, 384)
  t.equal(catalogue.spaceAt(9, L(250))?.pages, 500)
})

t.test('applied again, nothing changes; repetition costs nothing', async t => {
  const events = [
    file('create', 100, 7, 'db/t.ibd'),
    size(110, 7, 4),
    // Named and renamed by one mini-transaction.
    file('modify', 150, 7, 'db/t.ibd'),
    rename(150, 7, 'db/t.ibd', 'db/u.ibd'),
    trim(160, 7, 4),
    size(160, 7, 4),
    file('delete', 170, 7, 'db/u.ibd'),
  ]
  const catalogue = make(...events)
  const before = catalogue.events(L(1000))
  for (const event of events) t.notOk(catalogue.apply(event), `${event.kind} at ${event.lsn}`)
  t.same(catalogue.events(L(1000)), before)
  const named = make(file('modify', 1, 7, 'db/t.ibd'))
  for (let lsn = 2; lsn < 1000; lsn++) named.apply(file('modify', lsn, 7, 'db/t.ibd'))
  t.equal(named.versions, 1)
})

t.test('all kinds of events are stored and read again; hostile bytes are refused', async t => {
  const events: CatalogueEvent[] = [
    imported(2 ** 52, 1, 'db/a.ibd', 8),
    file('create', 5, 0xfffffff0, 'db/ü.ibd'),
    { ...file('modify', 6, 3, '/elsewhere/db/t.ibd'), external: true } as CatalogueEvent,
    file('delete', 6, 3, 'db/t.ibd'),
    rename(7, 4, 'a/b.ibd', 'c/d.ibd'),
    trim(8, 5, 384),
    size(9, 6, 0xffffffff),
    { kind: 'flags', lsn: L(10), space: 7, flags: 0x80000015 },
    { kind: 'gone', lsn: L(2 ** 53 - 1), space: 8 },
  ]
  const bytes = encodeCatalogueEvents(events)
  t.same(decodeCatalogueEvents(bytes), events)
  for (let length = 0; length < bytes.length; length++)
    t.throws(() => decodeCatalogueEvents(bytes.subarray(0, length)), `cut at ${length}`)
  t.throws(() => decodeCatalogueEvents(Buffer.from([0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x0f])))
  let refused = 0
  for (let i = 0; i < 3000; i++) {
    const bad = Buffer.from(bytes)
    bad[(i * 7919) % bad.length] = (i * 31) & 0xff
    try {
      decodeCatalogueEvents(bad)
    } catch {
      refused++
    }
  }
  t.ok(refused > 0, 'random damage gives an error or other events, never a crash or a hang')
})

t.test('a snapshot and the events of later layers bring it back', async t => {
  const store = new MemoryObjectStore()
  const manifests = await ManifestStore.create(store, {
    timeline: toTimelineId('00112233445566778899aabbccddeeff'),
    name: 'shop',
    innodbPageSize: 16384,
    serverVersion: '10.11.18',
    startLsn: L(100),
  })
  const catalogue = make(imported(100, 1, 'db/a.ibd', 8), trim(120, 1, 4), size(130, 1, 6), size(400, 1, 50))
  await saveCatalogue(store, manifests, catalogue, L(200))
  await saveCatalogue(store, manifests, catalogue, L(300))
  t.equal(
    [...store.objects.keys()].filter(key => key.includes('catalogue')).length,
    1,
    'the one before is gone',
  )
  const entry = {
    kind: 'delta',
    level: 0,
    imagesDone: false,
    first: null,
    last: null,
    bytes: 1,
    rawBytes: 1,
  } as const
  const rest = { entries: 0, pages: 0, minTimeUs: 0, maxTimeUs: 0 }
  await manifests.update(current => ({
    ...current,
    layers: [
      { ...entry, ...rest, key: 'late', lsnStart: L(300), lsnEnd: L(500) },
      { ...entry, ...rest, key: 'early', lsnStart: L(100), lsnEnd: L(300) },
    ],
  }))
  const asked: string[] = []
  const loaded = await loadCatalogue(store, manifests.current, async layer => {
    asked.push(layer.key)
    return [size(400, 1, 50)]
  })
  t.same(asked, ['late'], 'layers that the snapshot covers are not opened')
  t.same(loaded.events(L(1000)), catalogue.events(L(1000)))
  const key = manifests.current.catalogue!.key
  store.objects.get(key)![25]! ^= 1
  await t.rejects(
    loadCatalogue(store, manifests.current, async () => []),
    new RegExp(key),
  )
})
