/** Damage that is found while a log is in use: what reads tell, where its entries come from, and what is on disk afterwards. */
import t from 'tap'
import { crc32c } from '../../../../protocol/crc32c.ts'
import type { CellLog } from '../../../../server/safekeeper/log/cell-log.ts'
import { entryBytes } from '../../../../server/safekeeper/log/entry.ts'
import type { EntrySource, Fetched } from '../../../../server/safekeeper/log/repair.ts'
import { retryError } from '../../../../server/shared/errors.ts'
import {
  appendAndFlush,
  createLog,
  entriesOf,
  LOG_DIR,
  type Made,
  noop,
  openLog,
  type Rig,
  redo,
  T1,
  T2,
} from '../../../support/cell-log-rig.ts'
import type { MemoryDisk } from '../../../support/memory-disk.ts'

const like = (shape: object) => shape as Error

/** What another node with this log would answer. */
function source(name: string, log: CellLog): EntrySource & { asked: number } {
  const made = {
    name,
    asked: 0,
    async fetch(first, last, bytesMax): Promise<Fetched> {
      made.asked++
      const entries = await log.readOwn(first, last, bytesMax)
      return {
        entries: entries.map(({ isVoid: _, ...entry }) => entry),
        isVoid: index =>
          index <= log.appliedIndex
            ? entries.some(entry => entry.index === index && entry.isVoid)
            : undefined,
      }
    },
  } as EntrySource & { asked: number }
  return made
}

/** Redo of two timelines and a little else, 25 KB: several segments. */
function someEntries(): Made[] {
  const entries: Made[] = []
  const ends = [100, 5000]
  for (let index = 1; index <= 160; index++) {
    if (index % 11 === 0) {
      entries.push(noop(index, 1 + Math.floor(index / 60)))
      continue
    }
    const which = index % 3 === 0 ? 1 : 0
    const bytes = 900 + ((index * 37) % 400)
    entries.push(redo(index, 1 + Math.floor(index / 60), which === 0 ? T1 : T2, ends[which]!, bytes))
    ends[which]! += bytes
  }
  return entries
}

async function filled(
  entries: readonly Made[],
  packs: 'off' | undefined,
  isVoid: (index: number) => boolean = () => false,
): Promise<Rig> {
  const made = await createLog(packs === undefined ? {} : { packs })
  for (let at = 0; at < entries.length; at += 8)
    await appendAndFlush(made.log, made.events, entries.slice(at, at + 8))
  for (const entry of entries) made.log.applied(entry, isVoid(entry.index))
  await made.log.settleApplied()
  await made.log.packed()
  return made
}

/** Opened again: nothing is in memory. */
async function reopened(rig: Rig, appliedTo: number): Promise<Rig> {
  await rig.log.close()
  return openLog(rig.disk, { appliedTo })
}

async function readTimeline(log: CellLog, from: number): Promise<number> {
  const cursor = log.timelineCursor(T1, from as never)
  for (;;) {
    const chunk = await cursor.next()
    if (chunk === undefined) return cursor.position
    chunk.release()
  }
}

const files = (disk: MemoryDisk, what: RegExp) =>
  disk.paths().filter(path => path.startsWith(LOG_DIR) && what.test(path))

async function settled(log: CellLog): Promise<void> {
  for (let i = 0; i < 2000 && log.stats().damagedFiles > 0; i++) await new Promise(r => setTimeout(r, 2))
}

t.test('every part of a pack: reads say retry, then it is whole again, for the next start too', async t => {
  const entries = someEntries()
  const other = await filled(entries, undefined, index => index === 25)
  for (const where of ['header', 'group', 'table', 'footer'] as const) {
    const rig = await reopened(await filled(entries, undefined, index => index === 25), 160)
    const peer = source('b', other.log)
    rig.log.repairFrom(
      () => [peer],
      () => true,
    )
    const [path] = files(rig.disk, /\.pack$/)
    const bytes = rig.disk.content(path!)
    const at = { header: 20, group: 200, table: bytes.length - 400, footer: bytes.length - 30 }[where]
    bytes[at]! ^= 4
    if (where === 'group' || where === 'table') {
      const read = readTimeline(rig.log, 100)
      await t.rejects(read, like({ kind: 'retry', message: /damaged at offset.*being repaired/ }), where)
    } else {
      rig.log.scrub({ bytesPerSecond: 1e9, everyMs: 5, random: () => 0 })
      for (let i = 0; i < 500 && rig.log.stats().damagesFound === 0; i++)
        await new Promise(r => setTimeout(r, 2))
    }
    await settled(rig.log)
    t.match(
      rig.log.stats(),
      { damagedFiles: 0, damagesFound: 1, damagesRepaired: 1, damageProblem: '' },
      where,
    )
    t.ok(peer.asked > 0)
    t.same(await entriesOf(rig.log, 1, 160), entries)
    t.equal(await readTimeline(rig.log, 100), await readTimeline(other.log, 100))
    const again = await reopened(rig, 160)
    t.same(await entriesOf(again.log, 1, 160), entries)
    t.equal(await readTimeline(again.log, 100), await readTimeline(other.log, 100))
    t.same(files(again.disk, /tmp$|damaged/), [])
    await again.log.close()
  }
  await other.log.close()
})

t.test('raw segments: the oldest, one in the middle, the one that is written', async t => {
  const entries = someEntries()
  const other = await filled(entries, undefined)
  for (const which of [0, 1, -1]) {
    // Without packs at first, so that all segments are there.
    const raw = await filled(entries, 'off')
    await raw.log.close()
    const rig = await openLog(raw.disk, {
      appliedTo: 160,
      packPolicy: { quietBytesPerSecond: 0, rawBytesMax: 1e12, rowsMax: 1e12 } as never,
    })
    rig.log.repairFrom(
      () => [source('b', other.log)],
      () => true,
    )
    const path = files(rig.disk, /[0-9]{20}\.seg$/).at(which)!
    rig.disk.content(path)[4096 + 1500]! ^= 1
    const read = entriesOf(rig.log, 1, 160)
    t.same(await read, entries, 'who cannot wait gets it from the other')
    await settled(rig.log)
    t.match(rig.log.stats(), { damagedFiles: 0, damagesFound: 1, damagesRepaired: 1 })
    t.same(files(rig.disk, /damaged|spare/).length <= 3, true)
    const next = noop(161, 9)
    await appendAndFlush(rig.log, rig.events, [next])
    const again = await reopened(rig, 160)
    t.same(await entriesOf(again.log, 1, 161), [...entries, next])
    await again.log.close()
  }
  await other.log.close()
})

t.test('nobody has it: corrupt, and the file stays; somebody is away: retry, until it is back', async t => {
  const entries = someEntries()
  const other = await filled(entries, undefined)
  const rig = await reopened(await filled(entries, undefined), 160)
  let sources: EntrySource[] = []
  rig.log.repairFrom(
    () => sources,
    () => true,
  )
  const [path] = files(rig.disk, /\.pack$/)
  const before = Buffer.from(rig.disk.content(path!))
  rig.disk.content(path!)[200]! ^= 4
  await t.rejects(
    entriesOf(rig.log, 1, 160),
    like({ kind: 'corrupt', message: /damaged at offset/ }),
    'alone',
  )
  const nothing = { name: 'c', fetch: async () => ({ entries: [], isVoid: () => undefined }) }
  sources = [nothing]
  await t.rejects(
    entriesOf(rig.log, 1, 160),
    like({ kind: 'corrupt', message: /could not be fetched \(c: it does not have them\)/ }),
  )
  for (let i = 0; i < 500 && rig.log.stats().damageProblem === ''; i++)
    await new Promise(r => setTimeout(r, 2))
  t.match(rig.log.stats(), { damagedFiles: 1, damagesRepaired: 0, damageProblem: /could not be fetched/ })
  await t.rejects(readTimeline(rig.log, 100), like({ kind: 'corrupt' }))
  const away = { name: 'd', fetch: () => Promise.reject(retryError('no connection')) }
  sources = [nothing, away]
  await t.rejects(entriesOf(rig.log, 1, 160), like({ kind: 'retry', message: /d: no connection/ }))
  // One that lies is not believed.
  const lying = source('e', other.log)
  const fetch = lying.fetch.bind(lying)
  const lies: ((entry: Made) => Made)[] = [
    (entry: Made) => ({ ...entry, term: 7 as Made['term'] }),
    (entry: Made) => ({ ...entry, payload: Buffer.concat([entry.payload, Buffer.alloc(1)]) }),
    (entry: Made) => ({ ...entry, payload: Buffer.from(entry.payload).reverse() }),
    (entry: Made) => ({ ...entry, index: (entry.index + 1) as Made['index'] }),
    (entry: Made) => ({ ...entry, payload: Buffer.alloc(0), dropped: true }),
  ]
  for (const lie of lies) {
    lying.fetch = async (first, last, bytesMax) => {
      const fetched = await fetch(first, last, bytesMax)
      return { ...fetched, entries: fetched.entries.map(lie) }
    }
    sources = [lying]
    await t.rejects(entriesOf(rig.log, 1, 160), like({ kind: 'corrupt', message: /\(e: / }))
  }
  t.equal(Buffer.compare(rig.disk.content(path!).subarray(0, 150), before.subarray(0, 150)), 0)
  sources = [away, source('b', other.log)]
  await settled(rig.log)
  t.match(rig.log.stats(), { damagedFiles: 0, damagesRepaired: 1, damageProblem: '' })
  t.same(await entriesOf(rig.log, 1, 160), entries)
  await rig.log.close()
  await other.log.close()
})

t.test('the packer meets damage, and goes on when it is repaired', async t => {
  const entries = someEntries()
  const other = await filled(entries, undefined)
  const raw = await filled(entries, 'off')
  await raw.log.close()
  const path = files(raw.disk, /[0-9]{20}\.seg$/)[1]!
  const rig = await openLog(raw.disk, {
    appliedTo: 160,
    packPolicy: { quietBytesPerSecond: 0, rawBytesMax: 1e12, rowsMax: 1e12 } as never,
  })
  rig.log.repairFrom(
    () => [source('b', other.log)],
    () => true,
  )
  rig.disk.content(path)[4096 + 3000]! ^= 1
  await rig.log.packed()
  await settled(rig.log)
  await rig.log.packed()
  t.match(rig.log.stats(), { damagesFound: 1, damagesRepaired: 1, rawSegments: 1, packError: '' })
  t.same(await entriesOf(rig.log, 1, 160), entries)
  await rig.log.close()
  await other.log.close()
})

t.test('a pack that does not read back either: its file is closed once, and it is made again', async t => {
  const entries = someEntries()
  const other = await filled(entries, undefined)
  const made = await filled(entries, undefined)
  await made.log.close()
  const { disk } = made
  const open = disk.open.bind(disk)
  const closed: string[] = []
  disk.open = async (path, how) => {
    const file = await open(path, how)
    let isOpen = true
    const close = async () => {
      if (!isOpen) closed.push(path)
      isOpen = false
    }
    return { ...file, close }
  }
  const rig = await openLog(disk, { appliedTo: 160 })
  const [path] = files(disk, /\.pack$/)
  disk.content(path!)[200]! ^= 4
  let spoilt = 0
  disk.hook = (operation, name) => {
    if (operation === 'datasync' && name.endsWith('repair.tmp') && spoilt++ === 0)
      disk.content(name)[200]! ^= 4
  }
  rig.log.repairFrom(
    () => [source('b', other.log)],
    () => true,
  )
  t.same(await entriesOf(rig.log, 1, 160), entries)
  for (let i = 0; i < 1000 && rig.log.stats().damageProblem === ''; i++)
    await new Promise(r => setTimeout(r, 1))
  t.match(rig.log.stats(), { damageProblem: /does not read back either; is this disk failing/ })
  await t.rejects(readTimeline(rig.log, 100), like({ kind: 'retry' }), 'somebody has it: nobody gives up')
  await settled(rig.log)
  t.ok(spoilt > 1)
  t.match(rig.log.stats(), { damagedFiles: 0, damagesFound: 1, damagesRepaired: 1 })
  t.same(closed, [], 'a file number that was given out again is not closed')
  await rig.log.close()
  await other.log.close()
})

t.test('reads that fail keep no file open but one', async t => {
  const made = await filled(someEntries(), undefined)
  await made.log.close()
  const { disk } = made
  const open = disk.open.bind(disk)
  let opened = 0
  let isBad = false
  disk.open = async (path, how) => {
    opened++
    const file = await open(path, how)
    return {
      ...file,
      read: (target, position) =>
        isBad
          ? Promise.reject(Object.assign(new Error('EIO'), { code: 'EIO' }))
          : file.read(target, position),
      close: async () => {
        opened--
      },
    }
  }
  const { log } = await openLog(disk, { appliedTo: 160 })
  const before = opened
  isBad = true
  for (let i = 0; i < 5; i++) await t.rejects(entriesOf(log, 1, 160), like({ message: 'EIO' }))
  t.ok(opened - before <= 1, `${opened - before} were opened for one file`)
  isBad = false
  await log.close()
  t.equal(opened, 0)
})

t.test('void entries that a node tells another of, packed while they are read', async t => {
  const entries = someEntries()
  const made = await filled(entries, 'off', index => index === 5)
  await made.log.close()
  const { log, disk, events } = await openLog(made.disk, {
    appliedTo: 160,
    packPolicy: { quietBytesPerSecond: 0, rawBytesMax: 1e12, rowsMax: 1e12 } as never,
  })
  // A read that begins before the segment is packed, and ends when the list of void entries has been cut down.
  const open = disk.open.bind(disk)
  const { promise: goOn, resolve } = Promise.withResolvers<void>()
  disk.open = async (path, how) => {
    const file = await open(path, how)
    if (how !== 'read' || !path.endsWith('.seg')) return file
    disk.open = open
    return {
      ...file,
      read: async (target, position) => {
        const got = await file.read(target, position)
        await goOn
        return got
      },
    }
  }
  const read = log.readOwn(1 as never, 10 as never, 1e6)
  await new Promise(setImmediate)
  await log.packed()
  const next = redo(161, 9, T1, 1e6, 10)
  await appendAndFlush(log, events, [next])
  log.applied(next, true)
  await log.settleApplied()
  resolve()
  t.same(
    (await read).filter(({ isVoid }) => isVoid).map(({ index }) => index),
    [5],
  )
  await log.close()
})

t.test('packing on a full disk comes to an end', async t => {
  const made = await filled(someEntries(), 'off')
  await made.log.close()
  let jobs = 0
  const { log } = await openLog(made.disk, {
    appliedTo: 160,
    packs: {
      run: async () => {
        if (++jobs > 50) return new Promise(() => {})
        await new Promise(setImmediate)
        throw Object.assign(new Error('ENOSPC'), { code: 'ENOSPC' })
      },
      close: async () => {},
    } as never,
  })
  await log.packed()
  t.ok(jobs <= 2, `${jobs} jobs`)
  t.match(log.stats(), { packError: 'ENOSPC' })
  await log.close()
})

t.test(
  'a log that nobody else has: damage is counted and told, and repaired once somebody has it',
  async t => {
    const entries = someEntries()
    const other = await filled(entries, undefined)
    const rig = await reopened(await filled(entries, undefined), 160)
    const [path] = files(rig.disk, /\.pack$/)
    rig.disk.content(path!)[200]! ^= 4
    rig.log.scrub({ bytesPerSecond: 1e9, everyMs: 5, random: () => 0 })
    for (let i = 0; i < 1000 && rig.log.stats().damageProblem === ''; i++)
      await new Promise(r => setTimeout(r, 2))
    t.match(rig.log.stats(), {
      damagedFiles: 1,
      damagesFound: 1,
      damageProblem: /pack is damaged: this node has neither other members nor a backup/,
    })
    await t.rejects(readTimeline(rig.log, 100), like({ kind: 'corrupt', message: /damaged at offset/ }))
    rig.log.repairFrom(
      () => [source('b', other.log)],
      () => true,
    )
    await settled(rig.log)
    t.match(rig.log.stats(), { damagedFiles: 0, damagesFound: 1, damagesRepaired: 1, damageProblem: '' })
    t.same(await entriesOf(rig.log, 1, 160), entries)
    await rig.log.close()
    await other.log.close()
  },
)

t.test('another one with the same index and term is not taken where this disk knows better', async t => {
  const entries = someEntries()
  const other = await filled(entries, undefined)
  const forge = (entry: Made): Made => {
    if (entry.kind !== 'redo') return entry
    const payload = Buffer.from(entry.payload).reverse()
    return { ...entry, payload, payloadCrc: crc32c(payload, 0, payload.length) }
  }
  const moved = (entry: Made): Made =>
    entry.kind === 'redo' ? { ...entry, epoch: (entry.epoch + 1) as Made['epoch'] } : entry
  for (const packs of ['off', undefined] as const)
    for (const lie of [forge, moved]) {
      const made = await filled(entries, packs)
      await made.log.close()
      const rig = await openLog(made.disk, {
        appliedTo: 160,
        packPolicy: { quietBytesPerSecond: 0, rawBytesMax: 1e12, rowsMax: 1e12 } as never,
      })
      const [path] = files(rig.disk, packs === 'off' ? /[0-9]{20}\.seg$/ : /\.pack$/)
      rig.disk.content(path!)[packs === 'off' ? 4096 + 1500 : 200]! ^= 1
      const lying = source('liar', other.log)
      const fetch = lying.fetch.bind(lying)
      lying.fetch = async (first, last, bytesMax) => {
        const fetched = await fetch(first, last, bytesMax)
        return { ...fetched, entries: fetched.entries.map(lie) }
      }
      rig.log.repairFrom(
        () => [lying],
        () => true,
      )
      await t.rejects(
        entriesOf(rig.log, 1, 160),
        like({ kind: 'corrupt', message: /not the one that was lost: (epoch|payloadCrc) is/ }),
      )
      rig.log.repairFrom(
        () => [lying, source('b', other.log)],
        () => true,
      )
      t.same(await entriesOf(rig.log, 1, 160), entries)
      await settled(rig.log)
      t.match(rig.log.stats(), { damagedFiles: 0, damagesRepaired: 1 })
      t.same(await entriesOf(rig.log, 1, 160), entries)
      await rig.log.close()
    }
  await other.log.close()
})

t.test('a void entry that the others have dropped is lacked by nobody', async t => {
  const entries = someEntries()
  const isVoid = (index: number) => index === 25
  const other = await filled(entries, undefined, isVoid)
  const rig = await reopened(await filled(entries, undefined, isVoid), 160)
  const peer = source('b', other.log)
  const fetch = peer.fetch.bind(peer)
  peer.fetch = async (first, last, bytesMax) => {
    const { entries, isVoid } = await fetch(first, last, bytesMax)
    const drop = (entry: Made): Made => ({ ...entry, payload: Buffer.alloc(0), dropped: true })
    return { entries: entries.map(entry => (entry.index === 25 ? drop(entry) : entry)), isVoid }
  }
  rig.log.repairFrom(
    () => [peer],
    () => true,
  )
  rig.disk.content(files(rig.disk, /\.pack$/)[0]!)[200]! ^= 4
  await readTimeline(rig.log, 100).catch(() => {})
  await settled(rig.log)
  t.match(rig.log.stats(), { damagedFiles: 0, damageProblem: '' })
  t.equal(await readTimeline(rig.log, 100), await readTimeline(other.log, 100))
  await rig.log.close()
  await other.log.close()
})

t.test('three disks, each damaged at another place of one stretch: each gives what it has', async t => {
  const entries = someEntries()
  /** With damage in the payloads of these entries of the first segment. */
  const damagedAt = async (...indexes: number[]) => {
    const made = await filled(entries, 'off')
    await made.log.close()
    const rig = await openLog(made.disk, {
      appliedTo: 160,
      packPolicy: { quietBytesPerSecond: 0, rawBytesMax: 1e12, rowsMax: 1e12 } as never,
    })
    const content = rig.disk.content(files(rig.disk, /[0-9]{20}\.seg$/)[0]!)
    for (const index of indexes) {
      const before = entries.slice(0, index - 1).reduce((sum, e) => sum + entryBytes(e.payload.length), 0)
      content[4096 + before + 104 + 10]! ^= 1
    }
    return rig
  }
  const a = await damagedAt(2, 3, 4, 5)
  const b = await damagedAt(4)
  const c = await damagedAt(2)
  a.log.repairFrom(
    () => [source('b', b.log), source('c', c.log)],
    () => true,
  )
  t.same(await entriesOf(a.log, 1, 160), entries)
  await settled(a.log)
  t.match(a.log.stats(), { damagedFiles: 0, damagesRepaired: 1 })
  await a.log.close()
  // Where nobody has an entry, that is found out, though each of them has others to ask.
  const d = await damagedAt(4)
  b.log.repairFrom(
    () => [source('d', d.log)],
    () => true,
  )
  d.log.repairFrom(
    () => [source('b', b.log)],
    () => true,
  )
  for (const { log } of [b, d]) {
    await entriesOf(log, 1, 160).catch(() => {})
    for (let i = 0; i < 2500 && !log.stats().damageProblem.includes('damaged there, too'); i++)
      await new Promise(r => setTimeout(r, 2))
    t.match(log.stats(), { damagedFiles: 1, damageProblem: /could not be fetched .*damaged there, too/ })
    await t.rejects(entriesOf(log, 1, 160), like({ kind: 'corrupt' }))
  }
  for (const { log } of [b, c, d]) await log.close()
})

t.test('whoever was asked rests when the repair is over', async t => {
  const entries = someEntries()
  const other = await filled(entries, undefined)
  const rig = await reopened(await filled(entries, undefined), 160)
  const peer = source('b', other.log)
  let rests = 0
  const resting: EntrySource = {
    name: 'b',
    fetch: (first, last) => peer.fetch(first, last, 1),
    rest: () => {
      rests++
    },
  }
  rig.log.repairFrom(
    () => [resting],
    () => true,
  )
  rig.disk.content(files(rig.disk, /\.pack$/)[0]!)[200]! ^= 4
  await t.rejects(readTimeline(rig.log, 100), like({ kind: 'retry' }))
  await settled(rig.log)
  await new Promise(setImmediate)
  t.ok(peer.asked > 3, `asked ${peer.asked} times`)
  t.equal(rests, 1)
  await rig.log.close()
  await other.log.close()
})
