/** A page server whose object store is slow or fails at the worst moments. */
import { readdirSync } from 'node:fs'
import { setTimeout as delay } from 'node:timers/promises'
import t, { type Test } from 'tap'
import { crc32c } from '../../protocol/crc32c.ts'
import type { Lsn, TimelineId } from '../../protocol/ids.ts'
import { MessageType } from '../../protocol/messages.ts'
import { ImportSessions } from '../../server/pageserver/import-session.ts'
import { type LayerEntry, ManifestStore } from '../../server/pageserver/manifest.ts'
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
    [...store.objects.keys()].filter(key => key.includes(TIMELINE) && !key.includes('/manifest/')),
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

t.test('a claim whose reply was lost does not take a timeline away from who claimed it next', async t => {
  const store = new MemoryObjectStore()
  const rig = await startRig(t, store)
  await rig.stop()
  store.fault = (when, operation, key) => {
    if (when === 'after' && operation === 'put' && key.includes('/manifest/')) throw retryError('lost')
  }
  await rig.start()
  store.fault = () => {}
  const { timelines } = rig.server!
  t.equal(timelines.brokenCount, 1)
  const other = (await ManifestStore.claim(store, TIMELINE))!
  await timelines.retryBroken()
  t.equal((await ManifestStore.read(store, TIMELINE))!.generation, other.current.generation)
  await other.update(current => current)
  t.notOk(other.fenced)
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
  t.match((await rig.show()).lastError, /could not be opened: another page server owns timeline zoo/)
  await t.rejects(rig.pages(0, [[0, 0]]), { message: /another page server owns timeline zoo/ })
})

t.test('a manifest that would contradict itself stops its timeline alone, and says so', async t => {
  const store = new MemoryObjectStore()
  const rig = await startRig(t, store)
  const chunks = [...chunksOf(log, () => 300_000)].slice(0, 6)
  for (const chunk of chunks.slice(0, 2)) rig.wal.append(TIMELINE, chunk)
  await rig.waitFor(rig.wal.end(TIMELINE))
  await rig.checkpoint()
  const timeline = rig.server!.timelines.get(TIMELINE)
  const { durableLsn } = timeline
  // A fault of ours: a key that was given out before.
  const [{ key }] = timeline.layers.filter(layer => layer.kind === 'delta') as [LayerEntry]
  timeline.manifest.layerKey = () => key
  const other = '11111111111111111111111111111111' as TimelineId
  rig.wal.create(other, log.begin)
  await rig.connection.request({
    type: MessageType.TimelineCreate,
    timeline: other,
    startLsn: log.begin as Lsn,
    innodbPageSize: log.pageSize,
    name: 'other',
    serverVersion: '',
  })
  for (const chunk of chunks.slice(2)) rig.wal.append(TIMELINE, chunk)
  for (const chunk of chunks) rig.wal.append(other, chunk)
  while (timeline.state !== 'stopped') await delay(10)
  const { lastError, summary } = await rig.show()
  t.equal(summary.state, 'stopped')
  t.match(lastError, /timelines\/0123456789abcdef0123456789abcdef\/manifest\/\d{12} in memory is not written/)
  t.match(lastError, /restart the page server/)
  t.equal(summary.durableLsn, durableLsn)
  t.equal(timeline.arenaBytes, 0, 'it holds no memory')
  await t.rejects(rig.pages(0, [[0, 0]]), { message: /cannot be made durable/ })
  const replay = goldenReplay('16k')
  replay.advanceTo(durableLsn)
  t.same((await rig.compare(replay)).differences.slice(0, 5), [], 'what lies in layers can still be read')

  await rig.waitFor(rig.wal.end(other), 60_000, other)
  await rig.connection.request({ type: MessageType.Checkpoint, timeline: other })
  t.same(readdirSync(rig.server!.env.scratchDir), [])
  await rig.stop()
  await rig.start()
  await rig.waitFor(rig.wal.end(TIMELINE))
  await rig.checkpoint()
  t.equal((await rig.show()).lastError, '')
})

t.test(
  'a deletion that a crash interrupted is gone on with, and ends before the next start is ready',
  async t => {
    const objects = new Map<string, Buffer>()
    let store = new MemoryObjectStore(objects)
    const rig = new Rig({ flushBytes: 256 << 10, openStore: () => store })
    t.teardown(() => rig.destroy())
    await rig.start()
    await rig.create(log.begin, log.pageSize)
    await rig.import(goldenReplay('16k'), log.begin)
    let deletions = 0
    const dead = store
    store.fault = (when, operation) => {
      if (when === 'before' && operation === 'delete' && deletions++ >= 2) throw retryError('died')
    }
    const remove = () => rig.connection.request({ type: MessageType.TimelineDelete, timeline: TIMELINE })
    await t.rejects(remove(), { message: /died/ })
    dead.fault = () => {
      throw retryError('died')
    }
    await rig.stop()
    const left = () =>
      [...objects.keys()].filter(key => key.includes(TIMELINE) && !key.includes('/manifest/'))
    t.not(left().length, 0)
    store = new MemoryObjectStore(objects)
    await rig.start()
    t.same(left(), [])
    t.equal(rig.server!.timelines.brokenCount, 0)
    t.match(await rig.show().catch(e => e), { kind: 'invalid', message: /no timeline/ })

    // Made again it lives, through any number of starts.
    await rig.create(log.begin, log.pageSize, 'again')
    await rig.import(goldenReplay('16k'), log.begin)
    for (let i = 0; i < 2; i++) {
      await rig.stop()
      store = new MemoryObjectStore(objects)
      await rig.start()
      t.same((await rig.compare(goldenReplay('16k'))).differences.slice(0, 5), [])
    }
  },
)

t.test('an import that is given up leaves nothing, here or in the store', async t => {
  const store = new MemoryObjectStore()
  const rig = await startRig(t, store)
  const { timelines, env } = rig.server!
  const timeline = timelines.get(TIMELINE)
  const layers = () => [...store.objects.keys()].filter(key => key.includes('/layers/'))
  const before = layers()
  const replay = goldenReplay('16k')
  const space = [...replay.spaces.values()][0]!
  const bulk = replay.writtenPage(space.id, 0)!
  const sessions = new ImportSessions()
  const attempt = async (crc: number) => {
    const { id: session } = await sessions.begin(timeline, log.begin as Lsn, 'full', {})
    const announced = { space: space.id, flags: space.format!.flags, pages: 10, external: false }
    await sessions
      .get(session)
      .addSpace({ type: MessageType.ImportSpace, session, ...announced, name: space.name })
    const content = { space: space.id, pageBytes: bulk.length, pages: Uint32Array.of(0, crc) }
    await sessions.get(session).addPages({ type: MessageType.ImportPages, session, ...content }, bulk)
    const end = { readableFromLsn: log.begin as Lsn, spaces: Uint32Array.of(space.id) }
    await sessions.end({ type: MessageType.ImportEnd, session, ...end })
  }
  await t.rejects(attempt(1), { message: /does not match the CRC-32C/ })
  t.same(readdirSync(env.scratchDir), [], 'not even the spool of what was damaged')
  store.fault = (when, operation, key) => {
    if (when === 'before' && operation === 'put' && key.includes('-catalogue-')) throw retryError('no')
  }
  await t.rejects(attempt(crc32c(bulk, 0, bulk.length)), { message: /no/ })
  store.fault = () => {}
  t.equal(layers().length, before.length + 1, 'its layer was stored')
  await sessions.abortAll()
  t.same(layers(), before)
})

t.test('a timeline that cannot be opened is seen, keeps its name, and can be deleted', async t => {
  const store = new MemoryObjectStore()
  const rig = await startRig(t, store)
  const other = '11111111111111111111111111111111' as TimelineId
  const unreadable = '22222222222222222222222222222222' as TimelineId
  const create = (timeline: TimelineId, name: string) => {
    rig.wal.create(timeline, log.begin)
    const startLsn = log.begin as Lsn
    const kind = { innodbPageSize: log.pageSize, serverVersion: '' }
    return rig.connection.request({ type: MessageType.TimelineCreate, timeline, startLsn, name, ...kind })
  }
  await create(other, 'other')
  await create(unreadable, 'unreadable')
  await rig.stop()
  for (const key of store.objects.keys()) {
    if (key.includes(TIMELINE) && key.includes('-catalogue-')) store.objects.delete(key)
    if (key.includes(`${unreadable}/manifest/`)) store.objects.get(key)!.fill(0x20)
  }
  await rig.start()
  const listed = (await rig.connection.requestAll({ type: MessageType.TimelineList })).flatMap(
    ({ message }) => message.timelines,
  )
  t.same(listed.map(({ name, state }) => `${name} ${state}`).sort(), [
    'other importing',
    'unreadable stopped',
    'zoo stopped',
  ])
  const show = (name: string) =>
    rig.connection.request({ type: MessageType.TimelineShow, timeline: undefined, name })
  const { summary, lastError } = (await show('zoo')).message
  t.equal(summary.timeline, TIMELINE)
  t.match(lastError, /could not be opened: catalogue .*-catalogue-\d+ in memory is missing; restore it/)
  t.match(
    (await show('unreadable')).message.lastError,
    /manifest\/\d{12} in memory: this is no versioned object/,
  )
  await t.rejects(create('33333333333333333333333333333333' as TimelineId, 'zoo'), {
    message: /there is a timeline named zoo already/,
  })
  await t.rejects(rig.pages(0, [[0, 0]]), { kind: 'corrupt', message: /is missing/ })
  const remove = (timeline: TimelineId) =>
    rig.connection.request({ type: MessageType.TimelineDelete, timeline })
  await t.rejects(remove(TIMELINE), {
    message: /timeline 2{32} may be a branch of zoo, which is therefore not deleted: .*no versioned object/,
  })
  // Whoever looks after the store puts its manifest right.
  for (const key of store.objects.keys()) if (key.includes(unreadable)) store.objects.delete(key)
  await remove(TIMELINE)
  t.same(
    [...store.objects.keys()].filter(key => key.includes(TIMELINE) && !key.includes('/manifest/')),
    [],
  )
  await t.rejects(show('zoo'), { message: /there is no timeline/ })
  await create(TIMELINE, 'zoo')
})

t.test('an ancestor is not deleted while the store has a branch of which nobody was told', async t => {
  const store = new MemoryObjectStore()
  const rig = await startRig(t, store)
  const branch = '11111111111111111111111111111111' as TimelineId
  rig.wal.create(branch, log.begin)
  const request = { timeline: branch, ancestor: TIMELINE, lsn: log.begin as Lsn, name: 'branch' }
  const make = () => rig.connection.request({ type: MessageType.TimelineBranch, ...request })
  store.fault = (when, operation, key) => {
    if (when === 'after' && operation === 'put' && key.includes(`${branch}/manifest/`))
      throw retryError('lost')
  }
  await t.rejects(make(), { message: /lost/ })
  store.fault = () => {}
  await t.rejects(rig.connection.request({ type: MessageType.TimelineDelete, timeline: TIMELINE }), {
    kind: 'invalid',
    message: /has branches \(branch\)/,
  })
  await make()
  t.same((await rig.compare(goldenReplay('16k'), branch)).differences.slice(0, 5), [])
})
