/** A page server whose object store is slow or fails at the worst moments. */
import { setTimeout as delay } from 'node:timers/promises'
import t, { type Test } from 'tap'
import type { Lsn, TimelineId } from '../../protocol/ids.ts'
import { MessageType } from '../../protocol/messages.ts'
import { ManifestStore } from '../../server/pageserver/manifest.ts'
import { retryError } from '../../server/shared/errors.ts'
import { MemoryObjectStore } from '../support/memory-object-store.ts'
import { chunksOf, goldenLog, goldenReplay, Rig, TIMELINE } from '../support/page-server-rig.ts'

const log = goldenLog('16k')

async function startRig(t: Test, store: MemoryObjectStore): Promise<Rig> {
  const rig = new Rig({ flushBytes: 256 << 10, store })
  t.teardown(() => rig.destroy())
  await rig.start()
  await rig.create(log.begin, log.pageSize)
  await rig.import(goldenReplay('16k'), log.begin)
  return rig
}

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

t.test('a deletion that the store did not carry out can be asked for again', async t => {
  const store = new MemoryObjectStore()
  const rig = await startRig(t, store)
  const remove = () => rig.connection.request({ type: MessageType.TimelineDelete, timeline: TIMELINE })
  let deletions = 0
  store.fault = (when, operation) => {
    if (when === 'before' && operation === 'delete' && deletions++ === 2) throw retryError('out of reach')
  }
  await t.rejects(remove(), { message: /out of reach/ })
  t.equal((await rig.show()).summary.state, 'deleting')
  await t.rejects(rig.pages(0, [[0, 0]]), { message: /is being deleted/ })
  await remove()
  t.same(
    [...store.objects.keys()].filter(key => key.includes(TIMELINE)),
    [],
  )
  await t.rejects(rig.show(), { message: /there is no timeline/ })
})

t.test('a creation whose reply from the store was lost is no obstacle to itself', async t => {
  const store = new MemoryObjectStore()
  const rig = new Rig({ store })
  t.teardown(() => rig.destroy())
  await rig.start()
  store.fault = (when, operation, key) => {
    if (when === 'after' && operation === 'put' && key.includes('/manifest/')) throw retryError('lost')
  }
  await t.rejects(rig.create(log.begin, log.pageSize), { message: /lost/ })
  store.fault = () => {}
  await rig.create(log.begin, log.pageSize)
  await t.rejects(rig.create(log.begin, 4096), { message: /exists as zoo/ })
  await rig.import(goldenReplay('16k'), log.begin)
  t.same((await rig.compare(goldenReplay('16k'))).differences, [])
})

t.test('it stops while the store is away, whatever waits for that', async t => {
  const store = new MemoryObjectStore()
  const rig = await startRig(t, store)
  const chunks = [...chunksOf(log, () => 300_000)].slice(0, 4)
  for (const chunk of chunks) rig.wal.append(TIMELINE, chunk)
  await rig.waitFor(rig.wal.end(TIMELINE))
  store.fault = () => {
    throw retryError('out of reach')
  }
  // A gap of the log, and a branch: both have to make durable first what is in memory.
  rig.wal.skip(TIMELINE, rig.wal.end(TIMELINE) + 1000)
  const branch = rig.connection.request(
    {
      type: MessageType.TimelineBranch,
      timeline: '11111111111111111111111111111111' as TimelineId,
      ancestor: TIMELINE,
      lsn: (log.begin + chunks[0]!.length) as Lsn,
      name: 'branch',
    },
    { deadlineMs: 120_000 },
  )
  branch.catch(() => {})
  await delay(200)
  await rig.stop()
  t.pass('it has stopped')
  store.fault = () => {}
})

t.test('a timeline that has another owner holds no memory that the rest needs', async t => {
  const store = new MemoryObjectStore()
  const rig = await startRig(t, store)
  const timeline = rig.server!.timelines.get(TIMELINE)
  const chunks = [...chunksOf(log, () => 300_000)].slice(0, 6)
  for (const chunk of chunks.slice(0, 3)) rig.wal.append(TIMELINE, chunk)
  await rig.waitFor(rig.wal.end(TIMELINE))
  await rig.checkpoint()
  const { durableLsn } = timeline
  await ManifestStore.claim(store, TIMELINE)
  for (const chunk of chunks.slice(3)) rig.wal.append(TIMELINE, chunk)
  while (timeline.state !== 'stopped') await delay(10)
  t.equal(timeline.arenaBytes, 0)
  t.notOk(timeline.flushing, 'nobody waits for its layers')
  for (let i = 0; i < 200 && timeline.env.arenas.freeCount < timeline.env.arenas.total; i++) await delay(10)
  t.equal(timeline.env.arenas.freeCount, timeline.env.arenas.total)
  await t.rejects(rig.pages(0, [[0, 0]]), { message: /another page server owns timeline zoo.*ask that one/ })
  const replay = goldenReplay('16k')
  replay.advanceTo(durableLsn)
  t.same((await rig.compare(replay)).differences.slice(0, 5), [], 'what lies in layers can still be read')
})

t.test('what another page server has opened meanwhile is not taken away from it', async t => {
  const store = new MemoryObjectStore()
  const rig = await startRig(t, store)
  await rig.stop()
  store.fault = (_when, operation, key) => {
    if (operation === 'list' && key.endsWith('/layers/')) throw retryError('out of reach')
  }
  await rig.start()
  const { timelines } = rig.server!
  t.equal(timelines.brokenCount, 1)
  store.fault = () => {}
  const other = (await ManifestStore.claim(store, TIMELINE))!
  await timelines.retryBroken()
  t.equal((await ManifestStore.read(store, TIMELINE))!.generation, other.current.generation)
  await t.rejects(rig.show(), { message: /another page server owns timeline zoo/ })
})
