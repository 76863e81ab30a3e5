/** A page server whose store is no directory: layers come from S3, local files are copies that may vanish. */
import { readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import t from 'tap'
import { chunksOf, goldenLog, goldenReplay, Rig, seeded, TIMELINE } from '../support/page-server-rig.ts'
import { type S3Fault, S3Service } from '../support/s3-service.ts'

const log = goldenLog('16k')

function copies(rig: Rig): string[] {
  const dir = join(rig.dir, 'pageserver', 'layer-cache', 'layers')
  return readdirSync(dir).map(name => join(dir, name))
}

function layerKeys(service: S3Service): string[] {
  return [...service.objects.keys()].filter(key => key.includes('/layers/'))
}

t.test(
  'import, redo, compaction; then with none of its local files, and with hardly room for any',
  async t => {
    const service = await S3Service.start(t)
    const rig = new Rig({ flushBytes: 256 << 10, s3: service.options(), cacheBytes: 512 << 10 })
    t.teardown(() => rig.destroy())
    await rig.start()
    await rig.create(log.begin, log.pageSize)
    await rig.import(goldenReplay('16k'), log.begin)
    const random = seeded(3)
    for (const chunk of chunksOf(log, () => 60_000 * random())) {
      rig.wal.append(TIMELINE, chunk)
      await delay(1)
    }
    await rig.waitFor(log.end)
    await rig.checkpoint()
    await rig.server!.timelines.compacted()
    t.ok(layerKeys(service).length > 3, `${layerKeys(service).length} layers are in the store`)
    const replay = goldenReplay('16k')
    for (const part of [0.3, 1]) {
      replay.advanceTo(log.begin + (log.end - log.begin) * part)
      const { compared, differences } = await rig.compare(replay)
      t.same(differences.slice(0, 5), [], `${compared} pages at LSN ${replay.lsn}`)
    }
    await rig.stop()
    const kept = copies(rig).reduce((sum, path) => sum + statSync(path).size, 0)
    t.ok(kept <= 512 << 10, `${kept} bytes of copies`)

    rig.loseLocalFiles()
    service.requests = []
    await rig.start()
    const { summary } = await rig.show()
    t.equal(summary.durableLsn, replay.lsn)
    const { compared, differences } = await rig.compare(replay)
    t.same(differences.slice(0, 5), [], `${compared} pages with an empty cache`)
    t.ok(service.requests.some(request => /^GET .*layers/.test(request)))
  },
)

t.test(
  'copies survive a restart; a damaged one is fetched again, and the reader notices nothing',
  async t => {
    const service = await S3Service.start(t)
    const rig = new Rig({ s3: service.options() })
    t.teardown(() => rig.destroy())
    await rig.start()
    await rig.create(log.begin, log.pageSize)
    const replay = goldenReplay('16k')
    await rig.import(replay, log.begin)
    await rig.stop()
    t.ok(copies(rig).length > 0, 'what was written is there already')
    service.requests = []
    await rig.start()
    t.same((await rig.compare(replay)).differences, [])
    t.same(
      service.requests.filter(request => /^GET .*layers/.test(request)),
      [],
      'nothing was fetched',
    )
    await rig.stop()

    for (const path of copies(rig)) {
      const bytes = readFileSync(path)
      bytes[bytes.length >> 1]! ^= 1
      writeFileSync(path, bytes)
    }
    await rig.start()
    t.same((await rig.compare(replay)).differences, [])
    t.ok(service.requests.some(request => /^GET .*layers/.test(request)))
    await rig.stop()

    // Removed by somebody while it runs, and before anything was read.
    await rig.start()
    for (const path of copies(rig)) rmSync(path)
    t.same((await rig.compare(replay)).differences, [])
    await rig.stop()

    // Cut short by a crash of the file system, say.
    for (const path of copies(rig)) writeFileSync(path, readFileSync(path).subarray(0, 1000))
    await rig.start()
    t.same((await rig.compare(replay)).differences, [])
    await rig.stop()

    // Damage in the object itself is damage: nothing is made up for it.
    rig.loseLocalFiles()
    for (const key of layerKeys(service)) {
      const object = service.objects.get(key)!
      object.bytes[object.bytes.length >> 1]! ^= 1
    }
    await rig.start()
    await t.rejects(rig.compare(replay), /does not match the CRC-32C/)
  },
)

t.test('a service that fails now and then is not noticed; one that is away is waited for', async t => {
  const service = await S3Service.start(t)
  const rig = new Rig({
    flushBytes: 256 << 10,
    s3: service.options({ attemptsMax: 8 }),
    cacheBytes: 512 << 10,
  })
  t.teardown(() => rig.destroy())
  await rig.start()
  await rig.create(log.begin, log.pageSize)
  await rig.import(goldenReplay('16k'), log.begin)
  const faults: S3Fault[] = ['lost', 'refused', 'internal', 'cut', 'conflict', 'slow']
  const random = seeded(9)
  const flaky: S3Service['fault'] = method => {
    const fault = random() < 0.2 ? faults[Math.floor(random() * faults.length)] : undefined
    return fault === 'cut' && method !== 'GET' ? 'lost' : fault
  }
  service.fault = flaky
  const chunks = [...chunksOf(log, () => 100_000)]
  const half = chunks.length >> 1
  for (const chunk of chunks.slice(0, half)) rig.wal.append(TIMELINE, chunk)
  await rig.waitFor(rig.wal.end(TIMELINE))
  await rig.checkpoint()
  service.fault = () => 'refused'
  for (const chunk of chunks.slice(half)) rig.wal.append(TIMELINE, chunk)
  await rig.waitFor(log.end)
  const before = (await rig.show()).summary.durableLsn
  await delay(1500)
  const show = await rig.show()
  t.equal(show.summary.durableLsn, before, 'nothing is called durable that is not')
  t.equal(show.summary.state, 'active')
  t.match(show.lastError, /cannot be reached/, 'and the status says why')
  service.fault = flaky
  await rig.checkpoint()
  const replay = goldenReplay('16k')
  replay.advanceTo(log.end)
  t.same((await rig.compare(replay)).differences.slice(0, 5), [])
  await rig.stop()
  rig.loseLocalFiles()
  await rig.start()
  t.same((await rig.compare(replay)).differences.slice(0, 5), [])
  t.ok((await rig.show()).summary.durableLsn >= replay.lsn)
})

t.test('killed again and again, without its local files', async t => {
  const service = await S3Service.start(t)
  const rig = new Rig({ flushBytes: 128 << 10, ownProcess: true, s3: service.options() })
  t.teardown(() => rig.destroy())
  const random = seeded(21)
  let turn = 0
  service.fault = () => (++turn % 11 === 0 ? 'lost' : undefined)
  await rig.start()
  await rig.create(log.begin, log.pageSize)
  await rig.import(goldenReplay('16k'), log.begin)
  const chunks = chunksOf(log, () => 60_000 * random())
  let durable = 0
  for (let round = 0; round < 5; round++) {
    const until = log.begin + ((log.end - log.begin) * (round + 1)) / 5
    const trimmed = rig.wal.trimmed(TIMELINE)
    while (rig.wal.end(TIMELINE) < until) {
      const next = chunks.next()
      if (next.done) break
      rig.wal.append(TIMELINE, next.value)
      await delay(2)
    }
    for (let i = 0; rig.wal.trimmed(TIMELINE) === trimmed && i < 300; i++) await delay(10)
    await delay(100 * random())
    await rig.kill()
    if (round % 2 === 0) rig.loseLocalFiles()
    await rig.start()
    const { summary } = await rig.show()
    t.ok(summary.durableLsn >= rig.wal.trimmed(TIMELINE), `durable ${summary.durableLsn}, nothing is missing`)
    t.ok(summary.durableLsn >= durable)
    durable = summary.durableLsn
  }
  for (const chunk of chunks) rig.wal.append(TIMELINE, chunk)
  await rig.waitFor(log.end)
  const replay = goldenReplay('16k')
  replay.advanceTo(log.end)
  const { compared, differences } = await rig.compare(replay)
  t.same(differences.slice(0, 5), [], `${compared} pages at LSN ${replay.lsn}`)
})

t.test('two page servers on one prefix: the older one is fenced', async t => {
  const service = await S3Service.start(t)
  // It has no room for copies: each read has to fetch.
  const one = new Rig({ flushBytes: 128 << 10, s3: service.options(), cacheBytes: 1 })
  const two = new Rig({ flushBytes: 256 << 10, s3: service.options() })
  t.teardown(() => one.destroy())
  t.teardown(() => two.destroy())
  await one.start()
  await one.create(log.begin, log.pageSize)
  await one.import(goldenReplay('16k'), log.begin)
  two.wal.create(TIMELINE, log.begin)
  const chunks = [...chunksOf(log, () => 100_000)]
  const third = Math.floor(chunks.length / 3)
  for (const [i, chunk] of chunks.entries()) {
    if (i === third) {
      await one.checkpoint()
      await two.start()
    }
    one.wal.append(TIMELINE, chunk)
    two.wal.append(TIMELINE, chunk)
    if (i < third) await one.waitFor(one.wal.end(TIMELINE))
  }
  await two.waitFor(log.end)
  await two.checkpoint()
  await one.checkpoint().catch(() => {})
  const fenced = await one.show()
  t.equal(fenced.summary.state, 'stopped')
  t.match(fenced.lastError, /another page server owns timeline/)
  t.ok(fenced.summary.durableLsn < log.end)
  t.equal((await two.show()).summary.state, 'active')
  await two.server!.timelines.compacted()
  const replay = goldenReplay('16k')
  replay.advanceTo(log.end)
  t.same((await two.compare(replay)).differences.slice(0, 5), [], 'and nothing of its goes amiss')
  // When the new owner has replaced layers that the old one still believes in, that is no damage. A compaction may have left
  // the old one's alone; so they are taken away here.
  const { manifest } = two.server!.timelines.get(TIMELINE)
  const replaced = manifest.current.layers.filter(layer => layer.kind === 'delta')
  const rest = manifest.current.layers.filter(layer => layer.kind === 'image')
  await manifest.update(current => ({ ...current, layers: rest }))
  for (const { key } of replaced) service.objects.delete(`p/${key}`)
  const early = goldenReplay('16k')
  early.advanceTo(log.begin + 1_000_000)
  await t.rejects(one.compare(early), /another page server owns timeline/)
})
