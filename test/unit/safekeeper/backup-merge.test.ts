/** Which packs of a backup are merged: few are left, each byte is written a few times, and nothing is lost on the way. */
import t from 'tap'
import {
  type BackupManifest,
  type BackupPack,
  newManifest,
} from '../../../server/safekeeper/backup-manifest.ts'
import { chooseMerge, type Merge, PACK_BYTES, PACK_ENTRIES } from '../../../server/safekeeper/backup-merge.ts'
import type { LogIndex, Term } from '../../../server/safekeeper/core/types.ts'
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
