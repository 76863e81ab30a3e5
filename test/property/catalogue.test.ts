/** The catalogue and the map of time against folds over plain lists. */
import fc from 'fast-check'
import t from 'tap'
import type { Lsn } from '../../protocol/ids.ts'
import { decodeCatalogueEvents, encodeCatalogueEvents } from '../../server/pageserver/catalogue-codec.ts'
import { Catalogue, type CatalogueEvent } from '../../server/pageserver/core/catalogue.ts'
import { TimeMap } from '../../server/pageserver/core/time-map.ts'
import { decodeTimeSamples, encodeTimeSamples } from '../../server/pageserver/time-samples.ts'

const space = fc.integer({ min: 1, max: 3 })
const name = fc.constantFrom('a/x.ibd', 'a/y.ibd', 'b/z.ibd')
const number = fc.constantFrom(4, 64, 100, 384)
const kinds = fc.oneof(
  fc.record({ kind: fc.constantFrom('create' as const, 'modify' as const, 'delete' as const), space, name }),
  fc.record({ kind: fc.constant('rename' as const), space, name, newName: name }),
  fc.record({ kind: fc.constantFrom('size' as const, 'trim' as const), space, pages: number }),
  fc.record({ kind: fc.constant('flags' as const), space, flags: number }),
  fc.record({ kind: fc.constant('import' as const), space, name, flags: number, pages: number }),
  fc.record({ kind: fc.constant('gone' as const), space }),
)
/** In the order of the log; each mini-transaction says one thing of a tablespace. */
const history = fc.array(fc.tuple(kinds, fc.integer({ min: 1, max: 4 })), { maxLength: 60 }).map(list => {
  let lsn = 100
  return list.map(([event, step]) => {
    lsn += step
    const external = event.kind === 'rename' ? { external: false, newExternal: false } : { external: false }
    return { ...event, ...external, lsn: lsn as Lsn } as CatalogueEvent
  })
})

interface Naive {
  name: string | undefined
  flags: number
  pages: number
}

function fold(events: readonly CatalogueEvent[], lsn: number): Map<number, Naive> {
  const spaces = new Map<number, Naive>()
  for (const event of events) {
    if (event.lsn > lsn) continue
    const state = spaces.get(event.space) ?? { name: undefined, flags: 0, pages: 0 }
    spaces.set(event.space, state)
    if (event.kind === 'create' || event.kind === 'modify' || event.kind === 'import') state.name = event.name
    if (event.kind === 'rename') state.name = event.newName
    if (event.kind === 'delete' || event.kind === 'gone') state.name = undefined
    if (event.kind === 'flags' || event.kind === 'import') state.flags = event.flags
    if (event.kind === 'size' || event.kind === 'trim' || event.kind === 'import') state.pages = event.pages
  }
  return spaces
}

function agrees(catalogue: Catalogue, events: readonly CatalogueEvent[]): boolean {
  const last = (events.at(-1)?.lsn ?? 100) + 2
  for (let lsn = 99; lsn <= last; lsn++) {
    const naive = fold(events, lsn)
    for (const id of [1, 2, 3]) {
      const wanted = naive.get(id)
      const got = catalogue.spaceAt(id, lsn as Lsn)
      if (got?.name !== wanted?.name) return false
      if (got !== undefined && (got.flags !== wanted!.flags || got.pages !== wanted!.pages)) return false
      for (const page of [0, 4, 64, 99, 383, 384, 1000]) {
        const trims = events.filter(
          e => e.kind === 'trim' && e.space === id && e.lsn <= lsn && page >= e.pages,
        )
        if (catalogue.trimLsn(id, page, lsn as Lsn) !== (trims.at(-1)?.lsn ?? 0)) return false
      }
    }
    const names = [...naive].filter(([, state]) => state.name !== undefined).map(([id]) => id)
    if (
      catalogue
        .list(lsn as Lsn)
        .map(s => s.space)
        .join() !== names.sort((a, b) => a - b).join()
    )
      return false
  }
  return true
}

t.test(
  'the catalogue is a fold over its events, also applied twice, stored, and cut at a snapshot',
  async t => {
    fc.assert(
      fc.property(history, fc.nat(80), fc.nat(80), (events, from, cut) => {
        const catalogue = new Catalogue()
        catalogue.applyAll(events)
        if (!agrees(catalogue, events)) return false
        // Redo that is sent again after a restart begins somewhere in the middle.
        catalogue.applyAll(events.slice(from))
        if (!agrees(catalogue, events)) return false
        const snapshotLsn = (100 + cut) as Lsn
        const restored = Catalogue.decode(catalogue.encode(snapshotLsn))
        restored.applyAll(
          decodeCatalogueEvents(encodeCatalogueEvents(events.filter(e => e.lsn > snapshotLsn))),
        )
        return agrees(restored, events)
      }),
      { numRuns: 200 },
    )
    t.pass()
  },
)

t.test('the map of time answers as a scan of all samples would, within its interval', async t => {
  const steps = fc.array(fc.tuple(fc.integer({ min: 1, max: 50 }), fc.integer({ min: 0, max: 400_000 })), {
    minLength: 1,
    maxLength: 80,
  })
  await fc.assert(
    fc.asyncProperty(
      steps,
      fc.array(fc.nat(12_000_000), { maxLength: 20 }),
      fc.integer({ min: 1, max: 5 }),
      async (list, times, cuts) => {
        let lsn = 1000
        let timeUs = 1_700_000_000_000_000
        const all = list.map(([l, us]) => {
          lsn += l
          timeUs += us
          return { lsn: lsn as Lsn, timeUs }
        })
        const map = new TimeMap()
        const layers: { key: string; lsnStart: Lsn; lsnEnd: Lsn; minTimeUs: number; maxTimeUs: number }[] = []
        const stored = new Map<string, Buffer>()
        let from = 1000 as Lsn
        all.forEach((sample, i) => {
          map.add(sample.lsn, sample.timeUs)
          if (i % Math.ceil(all.length / cuts) !== 0) return
          // A layer ends here.
          const samples = map.samplesIn(from, sample.lsn)
          stored.set(`${i}`, encodeTimeSamples(samples))
          const clocks = samples.map(s => s.timeUs)
          layers.push({
            key: `${i}`,
            lsnStart: from,
            lsnEnd: sample.lsn,
            minTimeUs: Math.min(...clocks),
            maxTimeUs: Math.max(...clocks),
          })
          map.forget(sample.lsn)
          from = sample.lsn
        })
        const load = async (key: string) => decodeTimeSamples(stored.get(key)!)
        for (const after of times) {
          const wanted = all[0]!.timeUs - 1000 + after
          const got = await map.lsnAt(wanted, layers, load)
          const exact = all.findLast(s => s.timeUs <= wanted)
          if (exact === undefined) {
            if (got !== undefined) return false
            continue
          }
          // Never later than asked, and less than 200 ms of what was seen by then is left out.
          if (got === undefined || got.timeUs > wanted || got.lsn > exact.lsn) return false
          if (exact.timeUs - got.timeUs >= 200_000) return false
        }
        return true
      },
    ),
    { numRuns: 200 },
  )
  t.pass()
})
