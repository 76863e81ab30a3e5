/**
 * Owners of a timeline that die at any operation of the store, or go on although they were replaced: what is durable must
 * stay whole. The model of an owner: flush (layer, then manifest), compact (new layer, manifest, delete the old ones), save
 * files and catalogue; whatever fails is tried again, until it dies.
 */
import fc from 'fast-check'
import t from 'tap'
import { type Lsn, toTimelineId } from '../../protocol/ids.ts'
import { CapturedFiles } from '../../server/pageserver/captured-files.ts'
import { loadCatalogue, saveCatalogue } from '../../server/pageserver/catalogue-store.ts'
import type { Catalogue } from '../../server/pageserver/core/catalogue.ts'
import { replaceLayers } from '../../server/pageserver/core/plan.ts'
import { type LayerEntry, ManifestStore, timelineKeys } from '../../server/pageserver/manifest.ts'
import { PalimpsestError } from '../../server/shared/errors.ts'
import { MemoryObjectStore } from '../support/memory-object-store.ts'

const timeline = toTimelineId('00112233445566778899aabbccddeeff')
const fresh = {
  timeline,
  name: 'shop',
  innodbPageSize: 16384,
  serverVersion: '10.11.18',
  startLsn: 100 as Lsn,
}

class Died extends Error {}

const entry = (key: string, lsnStart: number, lsnEnd: number): LayerEntry => ({
  key,
  kind: 'delta',
  level: 0,
  imagesDone: false,
  lsnStart: lsnStart as Lsn,
  lsnEnd: lsnEnd as Lsn,
  first: { space: 0, page: 1 },
  last: { space: 7, page: 9 },
  bytes: 1,
  rawBytes: 1,
  entries: 1,
  pages: 1,
  minTimeUs: 0,
  maxTimeUs: 0,
})

type Step = 'flush' | 'compact' | 'files' | 'catalogue'

/** What was acknowledged: it must never be lost. */
interface Acknowledged {
  durableLsn: number
  files: Map<string, string>
}

class Owner {
  readonly store: MemoryObjectStore
  readonly manifests: ManifestStore
  readonly files: CapturedFiles
  readonly catalogue: Catalogue

  private constructor(
    store: MemoryObjectStore,
    manifests: ManifestStore,
    files: CapturedFiles,
    catalogue: Catalogue,
  ) {
    this.store = store
    this.manifests = manifests
    this.files = files
    this.catalogue = catalogue
  }

  static async start(store: MemoryObjectStore): Promise<Owner> {
    const manifests = (await ManifestStore.claim(store, timeline))!
    await manifests.removeOrphans()
    const files = await CapturedFiles.load(store, manifests.current)
    return new Owner(store, manifests, files, await loadCatalogue(store, manifests.current, async () => []))
  }

  async run(step: Step, acknowledged: Acknowledged): Promise<void> {
    const { store, manifests } = this
    if (step === 'flush') {
      const from = manifests.current.durableLsn
      const to = (from + 10) as Lsn
      const key = manifests.layerKey('delta', 0, from, to)
      await store.putIfAbsent(key, Buffer.from(`${from}-${to}`))
      const add = { ...entry(key, from, to) }
      await manifests.update(current => ({ ...current, durableLsn: to, layers: [...current.layers, add] }))
      acknowledged.durableLsn = Math.max(acknowledged.durableLsn, to)
    } else if (step === 'compact') {
      const inputs = manifests.current.layers.slice(0, 3)
      if (inputs.length < 2) return
      const from = inputs[0]!.lsnStart
      const to = inputs.at(-1)!.lsnEnd
      const key = manifests.layerKey('delta', 1, from, to)
      await store.putIfAbsent(key, Buffer.from(`${from}-${to}`))
      const output = { ...entry(key, from, to), level: 1 }
      await manifests.update(current => ({
        ...current,
        layers: replaceLayers(current.layers, inputs, [output]).sort((a, b) => a.lsnEnd - b.lsnEnd),
      }))
      for (const input of inputs) await store.delete(input.key)
    } else if (step === 'files') {
      const lsn = manifests.current.durableLsn
      const path = `db/t${lsn % 7}.frm`
      const content = Buffer.from(`at ${lsn} `.repeat(lsn % 3 === 0 ? 500 : 1))
      await this.files.put({ path, lsn, mode: 0o660, mtimeMs: 1, totalBytes: content.length }, 0, content)
      await this.files.save(manifests)
      acknowledged.files.set(`${path}@${lsn}`, content.toString())
    } else {
      this.catalogue.apply({
        kind: 'size',
        lsn: manifests.current.durableLsn,
        space: 1,
        pages: manifests.current.durableLsn,
      })
      await saveCatalogue(store, manifests, this.catalogue, manifests.current.durableLsn)
    }
  }
}

/** What holds at every moment for whoever starts next. */
async function check(store: MemoryObjectStore, acknowledged: Acknowledged): Promise<string | undefined> {
  const manifest = (await ManifestStore.read(store, timeline))!
  if (manifest.durableLsn < acknowledged.durableLsn)
    return `LSN ${acknowledged.durableLsn} was acknowledged and is lost`
  let at = manifest.startLsn as number
  for (const layer of manifest.layers) {
    const bytes = store.objects.get(layer.key)
    if (bytes === undefined) return `layer ${layer.key} is missing`
    if (layer.lsnStart !== at || bytes.toString() !== `${layer.lsnStart}-${layer.lsnEnd}`)
      return 'a gap in the layers'
    at = layer.lsnEnd
  }
  if (at !== manifest.durableLsn) return 'layers end before the durable LSN'
  const files = await CapturedFiles.load(store, manifest)
  for (const [name, content] of acknowledged.files) {
    const [path, lsn] = name.split('@') as [string, string]
    let found = ''
    for await (const piece of files.read(path, Number(lsn) as Lsn)) found += piece.toString()
    if (found !== content) return `file ${name} is lost`
  }
  await loadCatalogue(store, manifest, async () => [])
  return undefined
}

const steps = fc.array(fc.constantFrom<Step>('flush', 'flush', 'flush', 'compact', 'files', 'catalogue'), {
  minLength: 1,
  maxLength: 15,
})

t.test('owners that die at any operation of the store lose nothing that was acknowledged', async t => {
  await fc.assert(
    fc.asyncProperty(
      fc.array(fc.tuple(steps, fc.nat(60), fc.boolean()), { minLength: 1, maxLength: 8 }),
      async lives => {
        const store = new MemoryObjectStore()
        await ManifestStore.create(store, fresh)
        const acknowledged: Acknowledged = { durableLsn: 100, files: new Map() }
        for (const [life, diesAt, replyLost] of lives) {
          let operations = 0
          let dead = false
          store.fault = when => {
            if (dead) throw new Died()
            if (when === (replyLost ? 'after' : 'before') && operations++ === diesAt) {
              dead = true
              throw new Died()
            }
          }
          try {
            const owner = await Owner.start(store)
            for (const step of life) await owner.run(step, acknowledged)
          } catch (error) {
            if (!dead) throw error
          }
          store.fault = () => {}
          const problem = await check(store, acknowledged)
          if (problem !== undefined) throw new Error(problem)
        }
        // After one quiet start nothing is left that no manifest names.
        const last = await Owner.start(store)
        const { current } = last.manifests
        const named = new Set(
          [...current.layers, ...current.files, current.catalogue].map(object => object?.key),
        )
        for (const prefix of [timelineKeys.layers(timeline), timelineKeys.objects(timeline)])
          for (const { key } of await store.list(prefix))
            if (!named.has(key)) throw new Error(`${key} is left over`)
        return true
      },
    ),
    { numRuns: 150 },
  )
  t.pass()
})

t.test('an owner that was replaced goes on in vain, and harms nothing', async t => {
  await fc.assert(
    fc.asyncProperty(steps, steps, fc.nat(15), async (first, second, replacedAfter) => {
      const store = new MemoryObjectStore()
      await ManifestStore.create(store, fresh)
      const acknowledged: Acknowledged = { durableLsn: 100, files: new Map() }
      const old = await Owner.start(store)
      for (const step of first.slice(0, replacedAfter)) await old.run(step, acknowledged)
      const next = await Owner.start(store)
      // Both go on, the old one with what it believed to be left to do.
      const rest = first.slice(replacedAfter)
      for (let i = 0; i < Math.max(rest.length, second.length); i++) {
        if (i < rest.length)
          try {
            await old.run(rest[i]!, { durableLsn: 0, files: new Map() })
            if (rest[i] === 'flush') throw new Error('a replaced owner made a layer durable')
          } catch (error) {
            if (!(error instanceof PalimpsestError) || error.kind !== 'fenced') throw error
          }
        if (i < second.length) await next.run(second[i]!, acknowledged)
        const problem = await check(store, acknowledged)
        if (problem !== undefined) throw new Error(problem)
      }
      return true
    }),
    { numRuns: 100 },
  )
  t.pass()
})
