/** The backup of a cell, on a disk and an object store in memory: what it holds, how it comes back, what is not given up before. */
import t from 'tap'
import { crc32c } from '../../../protocol/crc32c.ts'
import { backupNote } from '../../../server/safekeeper/backup-note.ts'
import { loadBackup } from '../../../server/safekeeper/backup-reader.ts'
import { verifyBackup } from '../../../server/safekeeper/backup-restore.ts'
import { cellOrigin } from '../../../server/safekeeper/cell-state.ts'
import { packEntries, packSourceOf } from '../../../server/safekeeper/log/pack-reader.ts'
import { retryError } from '../../../server/shared/errors.ts'
import {
  backedUp,
  backedUpTo,
  boot,
  clock,
  close,
  IDS,
  like,
  lsn,
  NEW_CELL,
  partsOf,
  readAll,
  restore,
  START,
  stateOf,
  Writer,
} from '../../support/backed-up-cell.ts'
import { lsnBytes } from '../../support/lsn-bytes.ts'
import { MemoryDisk } from '../../support/memory-disk.ts'
import { MemoryObjectStore } from '../../support/memory-object-store.ts'
import { seeded } from '../../support/seeded.ts'

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
