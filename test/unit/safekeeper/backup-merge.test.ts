/** Which packs of a backup are merged: few are left, each byte is written a few times, and nothing is lost on the way. */
import t from 'tap'
import {
  type BackupManifest,
  type BackupPack,
  newManifest,
} from '../../../server/safekeeper/backup-manifest.ts'
import { chooseMerge, type Merge, PACK_BYTES, PACK_ENTRIES } from '../../../server/safekeeper/backup-merge.ts'
import { backupEntries, loadBackup } from '../../../server/safekeeper/backup-reader.ts'
import { verifyBackup } from '../../../server/safekeeper/backup-restore.ts'
import type { LogIndex, Term } from '../../../server/safekeeper/core/types.ts'
import { retryError } from '../../../server/shared/errors.ts'
import {
  backedUp,
  backedUpTo,
  boot,
  clock,
  close,
  IDS,
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

const CELL = 'ab'.repeat(16)
const index = (n: number) => n as LogIndex
const EMPTY = newManifest(CELL, { index: index(0), term: 0 as Term, key: null })

function pack(first: number, entries: number, rawBytes: number, more: Partial<BackupPack> = {}): BackupPack {
  return {
    key: `cells/${CELL}/packs/${first}-${first + entries - 1}-${'0'.repeat(16)}.pack`,
    first: index(first),
    last: index(first + entries - 1),
    lastTerm: 3 as Term,
    bytes: 400 + Math.ceil(rawBytes / 3),
    rawBytes,
    crc: 0xdeadbeef,
    tellsVoids: true,
    ...more,
  }
}

/** What `Backup` makes of the manifest. */
function merged(manifest: BackupManifest, { at, packs }: Merge): BackupManifest {
  const [first, last] = [packs[0]!, packs.at(-1)!]
  const rawBytes = packs.reduce((sum, other) => sum + other.rawBytes, 0)
  const one = pack(first.first, last.last - first.first + 1, rawBytes, { lastTerm: last.lastTerm })
  return { ...manifest, packs: manifest.packs.toSpliced(at, packs.length, one) }
}

/** So many uploads, merged as they come. */
function uploads(count: number, of: () => { entries: number; rawBytes: number }) {
  let manifest = EMPTY
  let next = 1
  let packsMost = 0
  let written = 0
  let rewritten = 0
  for (let i = 0; i < count; i++) {
    const { entries, rawBytes } = of()
    manifest = { ...manifest, packs: [...manifest.packs, pack(next, entries, rawBytes)] }
    next += entries
    written += rawBytes
    const merge = chooseMerge(manifest)
    if (merge !== undefined) {
      rewritten += merge.packs.reduce((sum, other) => sum + other.rawBytes, 0)
      manifest = merged(manifest, merge)
      const [one] = manifest.packs.slice(merge.at)
      if (one!.rawBytes > PACK_BYTES || one!.last - one!.first >= PACK_ENTRIES) throw new Error('too large')
    }
    packsMost = Math.max(packsMost, manifest.packs.length)
  }
  return { manifest, packsMost, times: rewritten / written, last: next - 1 }
}

t.test('light load for long: the manifest stays small, each byte is written some times', t => {
  const random = seeded(1)
  const day = 8640
  const loads = {
    'a small transaction every 10 s, 30 days': {
      count: 30 * day,
      of: () => ({ entries: 2, rawBytes: 700 }),
      // Of the entries alone: half a pack a day.
      most: 45 + 30 * 2,
    },
    '5 KiB a second, 5 days': {
      count: 5 * day,
      of: () => ({ entries: 3 + Math.floor(random() * 20), rawBytes: Math.floor(random() * 100_000) }),
      most: 45 + (5 * day * 50_000) / (PACK_BYTES / 4),
    },
    'bursts between': {
      count: 2 * day,
      of: () =>
        random() < 0.02
          ? { entries: 2000, rawBytes: PACK_BYTES }
          : { entries: 2, rawBytes: Math.floor(random() * 3000) },
      // A burst parts what lies before it from what comes after.
      most: 45 + 2 * day * 0.02 * 40,
    },
  }
  for (const [name, { count, of, most }] of Object.entries(loads)) {
    const { manifest, packsMost, times, last } = uploads(count, of)
    t.ok(
      packsMost <= most,
      `${name}: at most ${packsMost} packs of ${count} uploads, ${manifest.packs.length} in the end`,
    )
    t.ok(times < 6, `${name}: each byte written ${times.toFixed(1)} times more`)
    t.equal(manifest.packs.at(-1)!.last, last)
    t.equal(manifest.packs[0]!.first, 1)
    t.ok(manifest.packs.every((one, i) => i === 0 || one.first === manifest.packs[i - 1]!.last + 1))
  }
  t.end()
})

t.test('what is not merged', t => {
  const small = (count: number, more: (i: number) => Partial<BackupPack> = () => ({})) => ({
    ...EMPTY,
    packs: Array.from({ length: count }, (_, i) => pack(1 + 2 * i, 2, 100, more(i))),
  })
  t.equal(chooseMerge(small(15)), undefined, 'few')
  t.match(chooseMerge(small(16)), { at: 0, packs: { length: 16 }, prevTerm: 0 })
  t.match(chooseMerge(small(500)), { at: 0, packs: { length: 64 } }, 'a backlog in steps')
  const bad = small(20).packs[3]!
  t.match(
    chooseMerge(small(20), other => other.key === bad.key),
    { at: 4, packs: { length: 16 }, prevTerm: 3 },
  )
  t.match(chooseMerge(small(20, i => ({ tellsVoids: i > 2 }))), { at: 3, packs: { length: 17 } })
  const base = { index: index(1), term: 1 as Term, key: 'state' }
  t.match(chooseMerge({ ...small(17), base }), { at: 1 }, 'not the pack in which the base lies')
  const moved = { ...small(17), base: { ...base, index: index(2) } }
  t.match(chooseMerge({ ...moved, packs: moved.packs.slice(1) }), { at: 0, prevTerm: 1 })
  const full = { ...EMPTY, packs: Array.from({ length: 99 }, (_, i) => pack(1 + i, 1, PACK_BYTES / 4)) }
  t.equal(chooseMerge(full), undefined, 'what is large enough')
  const levels = {
    ...EMPTY,
    packs: Array.from({ length: 48 }, (_, i) => pack(1 + i, 1, [10, 70_000, 1 << 21][i % 3]!)),
  }
  t.ok(chooseMerge(levels), 'of all levels in turn: merged all the same')
  t.end()
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
