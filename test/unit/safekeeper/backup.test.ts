/** The backup of a cell, on a disk and an object store in memory: what it holds, how it comes back, what is not given up before. */
import t from 'tap'
import { crc32c } from '../../../protocol/crc32c.ts'
import type { Lsn, TimelineId, WriterEpoch } from '../../../protocol/ids.ts'
import { backupNote } from '../../../server/safekeeper/backup-note.ts'
import { backupEntries, loadBackup } from '../../../server/safekeeper/backup-reader.ts'
import { restoreBackup, verifyBackup } from '../../../server/safekeeper/backup-restore.ts'
import { type CellState, cellOrigin } from '../../../server/safekeeper/cell-state.ts'
import type { Driver } from '../../../server/safekeeper/driver.ts'
import type { CellLog } from '../../../server/safekeeper/log/cell-log.ts'
import { packEntries, packSourceOf } from '../../../server/safekeeper/log/pack-reader.ts'
import { CellNode } from '../../../server/safekeeper/node.ts'
import { NodeFiles } from '../../../server/safekeeper/node-files.ts'
import { retryError } from '../../../server/shared/errors.ts'
import { silentLog } from '../../../server/shared/log.ts'
import type { ObjectStore } from '../../../server/shared/object-store.ts'
import type { Disk } from '../../../server/shared/seams.ts'
import { dying } from '../../support/dying-disk.ts'
import { lsnBytes } from '../../support/lsn-bytes.ts'
import { MemoryDisk } from '../../support/memory-disk.ts'
import { MemoryObjectStore } from '../../support/memory-object-store.ts'
import { seeded } from '../../support/seeded.ts'

const IDS = ['ab', 'cd', 'ef'].map(pair => pair.repeat(16) as TimelineId)
const START = 10_000
const SEGMENT_BYTES = 64 * 1024
const NEW_CELL = '12'.repeat(16)
const lsn = (n: number) => n as Lsn
const like = (fields: object) => fields as Error

/** Time that goes twenty times as fast. */
const SPEED = 20
function fastClock() {
  const nowMs = () => performance.now() * SPEED
  return {
    wallTimeUs: () => Math.round(nowMs() * 1000),
    monotonicMs: nowMs,
    sleep: (ms: number) => new Promise<void>(resolve => setTimeout(resolve, ms / SPEED)),
  }
}

const clock = fastClock()
let random = 0

async function boot(disk: Disk, store: ObjectStore | null | undefined, mergeAt = 16) {
  const node = await CellNode.start({
    dir: '/data',
    name: 'one',
    address: () => '127.0.0.1:1',
    zone: '',
    peers: new Map(),
    join: [],
    disk,
    clock,
    randomHex: bytes => (++random).toString(16).padStart(2 * bytes, '0'),
    random: () => 0.5,
    log: silentLog,
    segmentBytes: SEGMENT_BYTES,
    dial: {},
    timing: undefined,
    metrics: undefined,
    backup: store === undefined ? undefined : { store, intervalMs: 200, mergeAt },
    onFatal: error => {
      throw error
    },
  })
  await node.leaderKnown(10_000)
  return node
}

const close = (node: CellNode) => node.close(retryError('closing'))

class Writer {
  readonly node: CellNode
  readonly id: TimelineId
  epoch = 0 as WriterEpoch
  at = START

  constructor(node: CellNode, id: TimelineId) {
    this.node = node
    this.id = id
  }

  static async create(node: CellNode, id: TimelineId, name: string): Promise<Writer> {
    const writer = new Writer(node, id)
    await node.timelines.create(id, name, lsn(START))
    await writer.open()
    return writer
  }

  async open(): Promise<void> {
    const { epoch, endLsn } = await this.node.timelines.open(this.id, 'writer')
    this.epoch = epoch
    this.at = endLsn
  }

  async append(bytes: number): Promise<void> {
    const payload = lsnBytes(this.at, bytes)
    await this.node.timelines.append(
      this.id,
      this.epoch,
      lsn(this.at),
      this.at * 10,
      payload,
      crc32c(payload, 0, bytes),
    )
    this.at += bytes
  }
}

/** What a member is made of; not for the outside. */
const partsOf = (node: CellNode) =>
  (node as unknown as { readonly member: { readonly log: CellLog; readonly driver: Driver } }).member
const stateOf = (node: CellNode): CellState => partsOf(node).driver.state

const backedUpTo = (node: CellNode): number => backupNote(stateOf(node))?.done ?? 0

/** Waits until all that is there now is backed up. */
async function backedUp(node: CellNode): Promise<void> {
  const target = stateOf(node).last.index
  for (let i = 0; i < 5000; i++) {
    if (backedUpTo(node) >= target) return
    await clock.sleep(10)
  }
  throw new Error(`backed up to ${backedUpTo(node)} instead of ${target}`)
}

async function readAll(node: CellNode, id: TimelineId, from: number): Promise<Buffer> {
  const reader = node.timelines.read(id, lsn(from))
  const pieces: Uint8Array[] = []
  for (;;) {
    const next = await reader.next()
    if (next === undefined) break
    pieces.push(Buffer.from(next.payload))
  }
  return Buffer.concat(pieces)
}

async function restore(store: ObjectStore, cellId: string): Promise<MemoryDisk> {
  const disk = new MemoryDisk()
  await restoreInto(disk, store, cellId)
  return disk
}

async function restoreInto(disk: Disk, store: ObjectStore, cellId: string): Promise<void> {
  await restoreBackup({
    store,
    cellId,
    newCellId: NEW_CELL,
    disk,
    clock,
    log: silentLog,
    dir: '/data',
    nodeId: 'one.00000000000000aa',
    address: '127.0.0.1:1',
    zone: '',
    segmentBytes: SEGMENT_BYTES,
  })
}

t.test('all that was backed up comes back: redo, epochs, names, deletions', async t => {
  const store = new MemoryObjectStore()
  const node = await boot(new MemoryDisk(), store)
  const writers = [
    await Writer.create(node, IDS[0]!, 'main'),
    await Writer.create(node, IDS[1]!, 'other'),
    await Writer.create(node, IDS[2]!, 'gone'),
  ]
  for (let i = 0; i < 60; i++) for (const writer of writers) await writer.append(100 + ((i * 977) % 5000))
  await node.timelines.delete(IDS[2]!)
  await node.timelines.rename(IDS[1]!, 'renamed')
  await node.timelines.trim(IDS[0]!, 'pages', lsn(START))
  await backedUp(node)
  await writers[0]!.append(1000)
  await writers[0]!.open()
  await backedUp(node)
  const { cellId } = node.status()
  const expected = await Promise.all([IDS[0]!, IDS[1]!].map(id => readAll(node, id, START)))
  await close(node)

  const summary = await verifyBackup(store, cellId)
  t.ok(summary.manifest.packs.length >= 2, 'several packs')
  const disk = await restore(store, cellId)
  const restored = await boot(disk, undefined)
  t.teardown(() => close(restored))
  t.equal(restored.status().cellId, NEW_CELL, 'a cell of its own')
  t.same(restored.status().members.length, 1, 'with one member')
  for (const [i, id] of [IDS[0]!, IDS[1]!].entries()) {
    const bytes = await readAll(restored, id, START)
    t.ok(bytes.equals(expected[i]!), `${bytes.length} bytes of redo`)
    t.ok(bytes.equals(lsnBytes(START, bytes.length)), 'as they were written')
  }
  t.equal(restored.timelines.get(IDS[1]!).name, 'renamed')
  t.throws(() => restored.timelines.get(IDS[2]!), like({ message: /deleted/ }), 'what was deleted stays so')
  t.equal(backupNote(stateOf(restored)), undefined, "the old cell's backup is not this one's")
  const writer = new Writer(restored, IDS[0]!)
  await writer.open()
  t.equal(writer.epoch, 1_000_003, 'epochs go on, beyond any that was given out after the backup')
  t.same(
    restored.timelines.partings(IDS[0]!),
    [{ lsn: START + expected[0]!.length, cellId: NEW_CELL }],
    'who had more is to notice',
  )
  t.match(cellOrigin(stateOf(restored)), { how: 'backup', from: cellId, to: NEW_CELL })
  t.equal(writer.at, START + expected[0]!.length)
  await writer.append(500)
})

t.test('a store that fails, loses replies and gives back nonsense', async t => {
  const store = new MemoryObjectStore()
  const random = seeded(5)
  store.fault = when => {
    if (random() > 0.06) return
    throw retryError(when === 'before' ? 'simulated: the store is away' : 'simulated: the reply is lost')
  }
  const node = await boot(new MemoryDisk(), store)
  t.teardown(() => close(node))
  const writer = await Writer.create(node, IDS[0]!, 'main')
  for (let i = 0; i < 12; i++) {
    for (let k = 0; k < 10; k++) await writer.append(300 + ((i * 7919 + k) % 4000))
    await backedUp(node)
  }
  store.fault = () => {}
  await writer.append(10)
  await backedUp(node)
  const { cellId } = node.status()
  const { manifest } = await verifyBackup(store, cellId)
  const named = new Set(manifest.packs.map(pack => pack.key))
  const stored = [...store.objects.keys()].filter(key => key.includes('/packs/'))
  t.same(
    stored.filter(key => !named.has(key)),
    [],
    'nothing is left of attempts that failed',
  )
  const restored = await boot(await restore(store, cellId), undefined)
  const bytes = await readAll(restored, IDS[0]!, START)
  t.ok(bytes.equals(lsnBytes(START, writer.at - START)), `${bytes.length} bytes`)
  await close(restored)
})

t.test('redo is not given up before the backup has it', async t => {
  const store = new MemoryObjectStore()
  const disk = new MemoryDisk()
  let node = await boot(disk, store)
  t.teardown(() => close(node))
  const writer = await Writer.create(node, IDS[0]!, 'main')
  await writer.append(100)
  await backedUp(node)
  store.fault = (when, operation) => {
    if (when === 'before' && operation === 'put') throw retryError('simulated: the store is away')
  }
  await node.timelines.trim(IDS[0]!, 'pages', lsn(writer.at))
  for (let i = 0; i < 200; i++) {
    await writer.append(5000)
    await node.timelines.trim(IDS[0]!, 'pages', lsn(writer.at))
  }
  // What is in memory would be backed up from there.
  await close(node)
  node = await boot(disk, store)
  const { log } = partsOf(node)
  // Time enough to pack what was written, and to drop what nobody but the backup needs.
  for (let i = 0; i < 1000 && log.stats().rawSegments > 2; i++) await clock.sleep(100)
  t.ok(log.stats().packs > 0, 'segments were packed')
  for (let i = 0; i < 10; i++) {
    await clock.sleep(1000)
    await log.packed()
  }
  const begin = node.status().beginIndex
  t.ok(begin <= backedUpTo(node) + 1, `the log begins at ${begin}`)
  store.fault = () => {}
  await backedUp(node)
  const { packs } = await loadBackup(store, node.status().cellId)
  let redoBytes = 0
  for (const { key } of packs)
    for await (const entry of packEntries(packSourceOf(key, store.objects.get(key)!)))
      if (!entry.dropped) redoBytes += entry.kind === 'redo' ? entry.payload.length : 0
  t.equal(redoBytes, writer.at - START, 'all of it came into the backup')
})

t.test('a backup is begun anew where the log no longer reaches back to its end', async t => {
  const disk = new MemoryDisk()
  const store = new MemoryObjectStore()
  const node = await boot(disk, store)
  const writer = await Writer.create(node, IDS[0]!, 'main')
  await writer.append(1000)
  await backedUp(node)
  await close(node)
  const none = await boot(disk, null)
  for (let i = 0; i < 200 && backupNote(stateOf(none)) !== undefined; i++) await clock.sleep(10)
  t.equal(backupNote(stateOf(none)), undefined, 'store null: the cell has no backup any more')
  await close(none)
  const again = await boot(disk, store)
  t.teardown(() => close(again))
  const later = new Writer(again, IDS[0]!)
  await later.open()
  await later.append(1000)
  await backedUp(again)
  const restored = await boot(await restore(store, again.status().cellId), undefined)
  const bytes = await readAll(restored, IDS[0]!, START)
  t.ok(bytes.equals(lsnBytes(START, 2000)))
  await close(restored)
})

t.test('damage to any byte of a pack is found, and named', async t => {
  const store = new MemoryObjectStore()
  const node = await boot(new MemoryDisk(), store)
  const writer = await Writer.create(node, IDS[0]!, 'main')
  for (let i = 0; i < 20; i++) await writer.append(777)
  await backedUp(node)
  const { cellId } = node.status()
  await close(node)
  const { manifest } = await verifyBackup(store, cellId)
  const { key } = manifest.packs[0]!
  const good = Buffer.from(store.objects.get(key)!)
  for (let at = 0; at < good.length; at += Math.max(1, Math.floor(good.length / 50))) {
    const bad = Buffer.from(good)
    bad[at]! ^= 0x10
    store.objects.set(key, bad)
    await t.rejects(verifyBackup(store, cellId), like({ kind: 'corrupt', message: new RegExp(key) }))
  }
  store.objects.delete(key)
  await t.rejects(restore(store, cellId), like({ kind: 'corrupt', message: /missing/ }))
  await t.rejects(loadBackup(store, '99'.repeat(16)), like({ kind: 'invalid', message: /no backup of cell/ }))
})

t.test('a manifest that arrives late names nothing that was removed', async t => {
  const store = new MemoryObjectStore()
  const node = await boot(new MemoryDisk(), store)
  t.teardown(() => close(node))
  const writer = await Writer.create(node, IDS[0]!, 'main')
  await writer.append(1000)
  await backedUp(node)
  // The next manifest's put is given up by who made it, and carried out by the service when the pack that it names is removed.
  const put = store.putIfAbsent.bind(store)
  let late: (() => void) | undefined
  let given = 0
  store.putIfAbsent = async (key, bytes) => {
    if (!key.includes('/manifest/') || given > 0) return put(key, bytes)
    given++
    const copy = Buffer.from(bytes)
    late = () => {
      if (!store.objects.has(key)) store.objects.set(key, copy)
    }
    throw retryError('simulated: no answer')
  }
  let removed = 0
  store.fault = (when, operation, key) => {
    if (when !== 'after' || operation !== 'delete' || !key.includes('/packs/')) return
    removed++
    late?.()
  }
  await writer.append(2000)
  await backedUp(node)
  t.equal(given, 1)
  t.equal(removed, 1, 'the pack of the attempt whose outcome was not known')
  const { cellId } = node.status()
  await verifyBackup(store, cellId)
  const restored = await boot(await restore(store, cellId), undefined)
  const bytes = await readAll(restored, IDS[0]!, START)
  t.equal(bytes.length, 3000)
  await close(restored)
})

t.test('what attempts have left behind is removed, and nothing else', async t => {
  const store = new MemoryObjectStore()
  const disk = new MemoryDisk()
  let node = await boot(disk, store)
  const writer = await Writer.create(node, IDS[0]!, 'main')
  await writer.append(1000)
  await backedUp(node)
  const { cellId } = node.status()
  await close(node)
  const strays = [
    `cells/${cellId}/packs/5-9-${'0'.repeat(16)}.pack`,
    `cells/${cellId}/states/3-${'0'.repeat(16)}.json`,
  ]
  const others = [`cells/${'77'.repeat(16)}/packs/1-2-ab.pack`, `cells/${cellId}/notes/mine`, 'tl/layer']
  for (const key of [...strays, ...others]) store.objects.set(key, Buffer.from('x'))
  node = await boot(disk, store)
  t.teardown(() => close(node))
  for (let i = 0; i < 500 && strays.some(key => store.objects.has(key)); i++) await clock.sleep(10)
  t.same(
    strays.filter(key => store.objects.has(key)),
    [],
  )
  t.same(
    others.filter(key => !store.objects.has(key)),
    [],
  )
  await verifyBackup(store, cellId)
})

t.test('a pack whose table is lost is repaired from the backup: void entries stay void', async t => {
  const store = new MemoryObjectStore()
  const disk = new MemoryDisk()
  let node = await boot(disk, store)
  const writer = await Writer.create(node, IDS[0]!, 'main')
  await writer.append(2000)
  const old = writer.epoch
  await writer.open()
  // What a leader that did not look would have written: redo of an older epoch, where the log goes on.
  const payload = Buffer.alloc(777, 0xee)
  const draft = { kind: 'redo', timeline: IDS[0]!, epoch: old, beginLsn: lsn(writer.at) } as const
  const applied = await partsOf(node).driver.propose({
    ...draft,
    endLsn: lsn(writer.at + 777),
    wallTimeUs: 1,
    payload,
    payloadCrc: crc32c(payload, 0, 777),
  })
  t.equal(applied.void, true)
  for (let i = 0; i < 60; i++) await writer.append(3000)
  await backedUp(node)
  for (let i = 0; i < 1000 && partsOf(node).log.stats().packs === 0; i++) await clock.sleep(100)
  await close(node)
  const paths = disk.paths().filter(path => path.endsWith('.pack'))
  t.ok(paths.length > 0)
  const bytes = disk.content(paths[0]!)
  node = await boot(disk, store)
  // In the table, which lies before summary and footer.
  const table = Number(bytes.readBigUInt64LE(bytes.length - 64 + 8))
  bytes[table + 10]! ^= 4
  for (let i = 0; i < 1000 && partsOf(node).log.stats().damagesRepaired === 0; i++) {
    await readAll(node, IDS[0]!, START).catch(() => {})
    await clock.sleep(50)
  }
  t.match(partsOf(node).log.stats(), { damagedFiles: 0, damagesRepaired: 1, damageProblem: '' })
  const all = await readAll(node, IDS[0]!, START)
  t.ok(all.equals(lsnBytes(START, writer.at - START)), `${all.length} bytes, none of them void`)
  await close(node)
  node = await boot(disk, store)
  t.teardown(() => close(node))
  t.ok((await readAll(node, IDS[0]!, START)).equals(all), 'after a start too')
})

t.test('small packs are merged, also while somebody reads and the store fails', async t => {
  const store = new MemoryObjectStore()
  const random = seeded(9)
  const node = await boot(new MemoryDisk(), store, 3)
  t.teardown(() => close(node))
  const writer = await Writer.create(node, IDS[0]!, 'main')
  const { cellId } = node.status()
  const upload = async (count: number) => {
    for (let i = 0; i < count; i++) {
      await writer.append(100 + Math.floor(random() * 900))
      await backedUp(node)
    }
  }
  await upload(2)
  // A reader who is slow: by the time that he goes on, the packs that he knows of are gone.
  const manifest = await loadBackup(store, cellId)
  const keys = manifest.packs.map(({ key }) => key)
  const reading = backupEntries(store, manifest)
  const read = [(await reading.next()).value!.index]
  await upload(12)
  t.ok(
    keys.every(key => !store.objects.has(key)),
    'what was merged is removed',
  )
  for await (const entry of reading) read.push(entry.index)
  t.same(
    read,
    Array.from({ length: manifest.packs.at(-1)!.last }, (_, i) => i + 1),
    'he read on in what they were merged into',
  )
  store.fault = when => {
    if (random() > 0.08) return
    throw retryError(when === 'before' ? 'simulated: the store is away' : 'simulated: the reply is lost')
  }
  await upload(40)
  store.fault = () => {}
  await upload(3)
  const summary = await verifyBackup(store, cellId)
  t.ok(summary.manifest.packs.length <= 12, `${summary.manifest.packs.length} packs of 57 uploads`)
  t.equal(summary.rawBytes >= writer.at - START, true)
  const stored = [...store.objects.keys()].filter(key => key.includes('/packs/'))
  t.ok(stored.length <= summary.manifest.packs.length + 12, `${stored.length} in the store`)
  const restored = await boot(await restore(store, cellId), undefined)
  const bytes = await readAll(restored, IDS[0]!, START)
  t.ok(bytes.equals(lsnBytes(START, writer.at - START)), `${bytes.length} bytes`)
  await close(restored)
})

t.test('cut off at any request of a merge: all stays there, and nothing is left behind', async t => {
  const seen = new Set<string>()
  for (let left = 0; ; left++) {
    const store = new MemoryObjectStore()
    const disk = new MemoryDisk()
    let node = await boot(disk, store, 3)
    const writer = await Writer.create(node, IDS[0]!, 'main')
    await writer.append(300)
    await backedUp(node)
    await writer.append(300)
    await backedUp(node)
    const { cellId } = node.status()
    // The third upload, the merge of all three, a fourth with the removal; then the leader is gone, at one request or the next.
    let requests = 0
    store.fault = (when, operation, key) => {
      if (when === 'after') return
      if (++requests <= left) return
      if (requests === left + 1) seen.add(`${operation} ${key.split('/')[2] ?? key}`)
      throw retryError('simulated: this leader is gone')
    }
    await writer.append(300)
    for (let i = 0; i < 100 && requests <= left && backedUpTo(node) < stateOf(node).last.index; i++)
      await clock.sleep(20)
    await clock.sleep(600)
    await writer.append(300)
    for (let i = 0; i < 100 && requests <= left; i++) await clock.sleep(20)
    const isOver = requests <= left
    await close(node)
    store.fault = () => {}
    node = await boot(disk, store, 100)
    const later = new Writer(node, IDS[0]!)
    await later.open()
    await later.append(300)
    await backedUp(node)
    const { manifest } = await verifyBackup(store, cellId)
    await close(node)
    t.same(
      [...store.objects.keys()].filter(key => key.includes('/packs/')).sort(),
      manifest.packs.map(({ key }) => key).sort(),
      `cut after ${left} requests: what is named is there, and nothing else`,
    )
    if (left % 4 === 0 || isOver) {
      const restored = await boot(await restore(store, cellId), undefined)
      t.ok((await readAll(restored, IDS[0]!, START)).equals(lsnBytes(START, later.at - START)))
      await close(restored)
    }
    if (isOver) break
  }
  for (const request of ['put packs', 'get packs', 'put manifest', 'list manifest', 'delete packs'])
    t.ok(seen.has(request), `cut at: ${request}`)
})

t.test('a damaged pack is not merged, but told, and the backup goes on', async t => {
  const store = new MemoryObjectStore()
  const node = await boot(new MemoryDisk(), store, 4)
  t.teardown(() => close(node))
  const writer = await Writer.create(node, IDS[0]!, 'main')
  await writer.append(500)
  await backedUp(node)
  const { cellId } = node.status()
  const { key } = (await loadBackup(store, cellId)).packs[0]!
  const good = store.objects.get(key)!
  const bad = Buffer.from(good)
  bad[bad.length >> 1]! ^= 1
  store.objects.set(key, bad)
  for (let i = 0; i < 20; i++) {
    await writer.append(500)
    await backedUp(node)
  }
  t.match(node.backupProblem, new RegExp(`the backup is damaged: ${key} `))
  const { packs } = await loadBackup(store, cellId)
  t.equal(packs[0]!.key, key)
  t.ok(packs.length < 12, `what follows it was merged: ${packs.length} packs`)
  // Somebody has put it back from a copy.
  store.objects.set(key, good)
  await verifyBackup(store, cellId)
})

t.test('a restore goes into an empty folder, and no other', async t => {
  const store = new MemoryObjectStore()
  const node = await boot(new MemoryDisk(), store)
  const writer = await Writer.create(node, IDS[0]!, 'main')
  await writer.append(1000)
  await backedUp(node)
  const { cellId } = node.status()
  await close(node)
  const file = async (disk: Disk, path: string): Promise<void> => {
    await disk.makeDir(path.slice(0, path.lastIndexOf('/')))
    const made = await disk.open(path, 'create')
    await made.write([Buffer.from('x')], 0)
    await made.close()
  }
  const refused = async (names: readonly string[], message: RegExp) => {
    const disk = new MemoryDisk()
    for (const name of names) await file(disk, `/data/${name}`)
    const before = disk.paths().sort()
    await t.rejects(restoreInto(disk, store, cellId), like({ kind: 'invalid', message }))
    t.same(disk.paths().sort(), before, 'nothing was changed')
  }
  await refused(['ibdata1'], /\/data is not empty: it holds ibdata1; give an empty folder/)
  await refused(['log/1.seg', 'LOCK'], /not empty: it holds log;/)
  await refused(['f', 'e', 'd', 'c', 'b', 'a', 'lost+found/1'], /it holds a, b, c, d, e and 1 more;/)
  const disk = new MemoryDisk()
  await disk.makeDir('/data/lost+found')
  await file(disk, '/data/LOCK')
  await restoreInto(disk, store, cellId)
  await t.rejects(
    restoreInto(disk, store, cellId),
    like({
      kind: 'invalid',
      message: /is the folder of safekeeper one\.00000000000000aa already, of cell 12/,
    }),
  )
})

t.test('a restore that is cut short anywhere starts nothing, and can be repeated', async t => {
  const store = new MemoryObjectStore()
  const node = await boot(new MemoryDisk(), store)
  const writer = await Writer.create(node, IDS[0]!, 'main')
  for (let i = 0; i < 4; i++) await writer.append(18_000)
  await backedUp(node)
  const { cellId } = node.status()
  await close(node)
  const seen = { unfinished: 0, whole: 0 }
  const random = seeded(3)
  for (let left = 0; ; left += 2 + Math.floor(random() * 12)) {
    const whole = new MemoryDisk()
    const { disk, count } = dying(whole, left)
    const error = await restoreInto(disk, store, cellId).catch((error: Error) => error)
    if (error === undefined) {
      t.ok(count() <= left)
      break
    }
    const after = whole.crash([() => 0, () => 1, random][left % 3]!)
    const found = await new NodeFiles(after, '/data').loadNode('backup restore')
    if (found !== undefined && found.unfinished === undefined) seen.whole++
    else {
      if (found !== undefined) {
        seen.unfinished++
        await t.rejects(
          boot(after, undefined),
          like({ message: /backup restore" was begun .* run it again/ }),
        )
      }
      await restoreInto(after, store, cellId)
    }
    if (random() > 0.4 && seen.whole === 0) continue
    const restored = await boot(after, undefined)
    const bytes = await readAll(restored, IDS[0]!, START)
    t.ok(bytes.equals(lsnBytes(START, 72_000)), `cut after ${left} operations: all is there`)
    await close(restored)
  }
  t.ok(seen.unfinished > 2, JSON.stringify(seen))
  const full = new MemoryDisk()
  // From the very beginning, and in the midst of the log.
  for (const capacity of [SEGMENT_BYTES / 2, 2.5 * SEGMENT_BYTES, 4.5 * SEGMENT_BYTES]) {
    full.capacity = capacity
    await t.rejects(restoreInto(full, store, cellId), like({ kind: 'retry', message: /ENOSPC.* make room/ }))
  }
  full.capacity = Number.POSITIVE_INFINITY
  await restoreInto(full, store, cellId)
})

t.test('a cell in which nothing happens becomes quiet', async t => {
  const store = new MemoryObjectStore()
  const disk = new MemoryDisk()
  for (const round of ['at first', 'after a start']) {
    const node = await boot(disk, store)
    const writer = new Writer(node, IDS[0]!)
    if (round === 'at first') await Writer.create(node, IDS[0]!, 'main')
    await writer.open()
    await writer.append(3000)
    await backedUp(node)
    const { lastIndex } = node.status()
    const puts = [...store.objects.keys()].sort()
    // Many intervals.
    await clock.sleep(200 * 25)
    t.equal(node.status().lastIndex, lastIndex, `${round}: no entry is written`)
    t.same([...store.objects.keys()].sort(), puts, `${round}: and none backed up`)
    t.equal(node.backupLagBytes, 0)
    await writer.append(10)
    await backedUp(node)
    t.equal(node.status().lastIndex, lastIndex + 2, `${round}: an upload costs one entry`)
    await close(node)
  }
})
