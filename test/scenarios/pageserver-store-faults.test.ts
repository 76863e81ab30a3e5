/** A page server whose object store is slow or fails at the worst moments. */
import { setTimeout as delay } from 'node:timers/promises'
import t from 'tap'
import { ManifestStore } from '../../server/pageserver/manifest.ts'
import { retryError } from '../../server/shared/errors.ts'
import { MemoryObjectStore } from '../support/memory-object-store.ts'
import { chunksOf, goldenLog, goldenReplay, Rig, TIMELINE } from '../support/page-server-rig.ts'

const log = goldenLog('16k')

t.test('a layer that could not be stored is not passed over by the next one when it stops', async t => {
  const store = new MemoryObjectStore()
  const rig = new Rig({ flushBytes: 256 << 10, store })
  t.teardown(() => rig.destroy())
  await rig.start()
  await rig.create(log.begin, log.pageSize)
  await rig.import(goldenReplay('16k'), log.begin)
  let refused = ''
  store.fault = (when, operation, key) => {
    if (when !== 'before' || operation !== 'put' || !key.includes('-delta0-')) return
    if (refused === '') refused = key
    if (key === refused) throw retryError('out of reach')
  }
  const chunks = [...chunksOf(log, () => 300_000)].slice(0, 4)
  for (const chunk of chunks) rig.wal.append(TIMELINE, chunk)
  await rig.waitFor(rig.wal.end(TIMELINE))
  const timeline = rig.server!.timelines.get(TIMELINE)
  const begin = (key: string): number => Number(/-delta0-(\d+)-/.exec(key)?.[1] ?? 0)
  while (![...store.objects.keys()].some(key => begin(key) > begin(refused))) await delay(10)
  await timeline.close()
  const manifest = (await ManifestStore.read(store, TIMELINE))!
  t.ok(manifest.durableLsn <= begin(refused), 'nothing after the missing layer is called durable')
  store.fault = () => {}
  await rig.stop()
  await rig.start()
  await rig.waitFor(rig.wal.end(TIMELINE))
  const replay = goldenReplay('16k')
  replay.advanceTo(rig.wal.end(TIMELINE))
  t.same((await rig.compare(replay)).differences.slice(0, 5), [])
})
