/** A cell of one, made of what a survivor of a cell of three has: nothing it had is lost, at no moment does the folder take part in both. */
import t, { type Test } from 'tap'
import { crc32c } from '../../../protocol/crc32c.ts'
import type { Lsn, TimelineId, WriterEpoch } from '../../../protocol/ids.ts'
import { BACKUP_NOTE, backupNote } from '../../../server/safekeeper/backup-note.ts'
import { recoverCell } from '../../../server/safekeeper/cell-recover.ts'
import {
  type CellCommand,
  CellState,
  cellOrigin,
  encodeMembership,
} from '../../../server/safekeeper/cell-state.ts'
import type { LogIndex, Term } from '../../../server/safekeeper/core/types.ts'
import { commandDraft } from '../../../server/safekeeper/draft.ts'
import type { Driver } from '../../../server/safekeeper/driver.ts'
import { CellLog } from '../../../server/safekeeper/log/cell-log.ts'
import { EMPTY_CRC, type LogEntry, NO_PAYLOAD } from '../../../server/safekeeper/log/entry.ts'
import { CellNode } from '../../../server/safekeeper/node.ts'
import { NodeFiles } from '../../../server/safekeeper/node-files.ts'
import { lookAtSurvivor, newestOf, type Survivor } from '../../../server/safekeeper/survivor.ts'
import { PalimpsestError, retryError } from '../../../server/shared/errors.ts'
import { silentLog } from '../../../server/shared/log.ts'
import type { Disk } from '../../../server/shared/seams.ts'
import { dying } from '../../support/dying-disk.ts'
import { lsnBytes } from '../../support/lsn-bytes.ts'
import { MemoryDisk } from '../../support/memory-disk.ts'
import { seeded } from '../../support/seeded.ts'

const DIR = '/data'
const ID = 'ab'.repeat(16) as TimelineId
const OTHER = 'cd'.repeat(16) as TimelineId
const START = 10_000
const CHUNK = 700
const SEGMENT_BYTES = 64 * 1024
const OLD_CELL = '0a'.repeat(16)
const NEW_CELL = '0b'.repeat(16)
const NODE_IDS = ['a', 'b', 'c'].map(name => `${name}.00000000000000${name}${name}`)
const SELF = NODE_IDS[0]!
const SEED = NODE_IDS.map((nodeId, i) => ({ nodeId, address: `127.0.0.1:${i + 1}`, zone: 'z' }))
const like = (fields: object) => fields as Error

const clock = {
  wallTimeUs: () => 1_700_000_000_000_000,
  monotonicMs: () => performance.now() * 20,
  sleep: (ms: number) => new Promise<void>(resolve => setTimeout(resolve, ms / 20)),
}

interface FolderOptions {
  /** Entries of redo. */
  readonly chunks?: number
  /** A snapshot after so many entries. */
  readonly snapshotAt?: number
  readonly recovering?: boolean
  readonly term?: number
  /** Of the last entries, which a later leader made. */
  readonly lastTerm?: number
  readonly disk?: MemoryDisk
  readonly dir?: string
  readonly cellId?: string
}

/** The folder of `a`, of a cell of three, as a member leaves it that is killed. Gives the disk and where the redo ends. */
async function folder(
  options: FolderOptions = {},
): Promise<{ disk: MemoryDisk; endLsn: number; lastIndex: number }> {
  const {
    chunks = 20,
    snapshotAt,
    recovering = false,
    term = 7,
    disk = new MemoryDisk(),
    dir = DIR,
  } = options
  const files = new NodeFiles(disk, dir)
  await disk.makeDir(`${dir}/log`)
  const seed = SEED
  await CellLog.create(
    { disk, dir: `${dir}/log`, segmentBytes: SEGMENT_BYTES },
    { index: 0 as LogIndex, term: 0 as Term },
  )
  await files.createVote()
  await files.saveVote({ term: term as Term, votedFor: NODE_IDS[1]! })
  await files.saveNode({ version: 1, nodeId: SELF, cellId: options.cellId ?? OLD_CELL, seed, recovering })
  const { log } = await CellLog.open({
    disk,
    clock,
    dir: `${dir}/log`,
    log: silentLog,
    packs: 'off',
    segmentBytes: SEGMENT_BYTES,
    reserveBytes: 16 * 1024,
    appliedTo: 0 as LogIndex,
    onFatal: error => {
      throw error
    },
  })
  const state = new CellState({ voters: NODE_IDS, learners: [] })
  for (const { nodeId, address, zone } of seed) state.nodes.set(nodeId, { address, zone })
  let index = 0
  const add = async (entry: Omit<LogEntry, 'index' | 'term' | 'dropped'>, entryTerm = 3) => {
    index++
    const whole = { ...entry, index: index as LogIndex, term: entryTerm as Term, dropped: false }
    log.append([whole])
    while (log.flushed.index < index) await clock.sleep(1)
    log.applied(whole, state.apply(whole).void)
    if (index === snapshotAt) {
      await log.settleApplied()
      await files.saveSnapshot(index as LogIndex, state.encode())
    }
  }
  const command = (what: CellCommand) => add(commandDraft(what))
  const cells = {
    timeline: undefined,
    epoch: 0 as WriterEpoch,
    beginLsn: 0 as Lsn,
    endLsn: 0 as Lsn,
    wallTimeUs: 0,
  }
  await add({ ...cells, kind: 'noop', payload: NO_PAYLOAD, payloadCrc: EMPTY_CRC })
  await command({ do: 'create', timeline: ID, name: 'main', startLsn: START as Lsn })
  await command({ do: 'create', timeline: OTHER, name: 'other', startLsn: START as Lsn })
  await command({ do: 'open', timeline: ID, writer: 'w1' })
  await command({ do: 'note', key: BACKUP_NOTE, value: { store: 'x', done: 4, intent: null } })
  let at = START
  for (let i = 0; i < chunks; i++) {
    const payload = lsnBytes(at, CHUNK)
    await add(
      {
        kind: 'redo',
        timeline: ID,
        epoch: 1 as WriterEpoch,
        beginLsn: at as Lsn,
        endLsn: (at + CHUNK) as Lsn,
        wallTimeUs: at * 10,
        payload,
        payloadCrc: crc32c(payload, 0, CHUNK),
      },
      i >= chunks / 2 ? (options.lastTerm ?? 5) : 3,
    )
    at += CHUNK
  }
  // A change of members that nobody may ever have committed: the end of the log is what it is.
  const payload = encodeMembership({ voters: NODE_IDS.slice(0, 2), outgoing: NODE_IDS, learners: [] })
  await add(
    { ...cells, kind: 'membership', payload, payloadCrc: crc32c(payload, 0, payload.length) },
    options.lastTerm ?? 5,
  )
  await log.close()
  await files.close()
  return { disk, endLsn: at, lastIndex: index }
}

const recover = (disk: Disk, dir = DIR) =>
  recoverCell({ disk, clock, dir, newCellId: NEW_CELL, segmentBytes: SEGMENT_BYTES })

async function boot(disk: Disk): Promise<CellNode> {
  return CellNode.start({
    dir: DIR,
    name: 'a',
    address: () => '127.0.0.1:1',
    zone: 'z',
    peers: new Map(NODE_IDS.map((id, i) => [id[0]!, { host: '127.0.0.1', port: i + 1 }])),
    join: [],
    disk,
    clock,
    randomHex: bytes => 'ef'.repeat(bytes),
    random: () => 0.5,
    log: silentLog,
    segmentBytes: SEGMENT_BYTES,
    dial: {},
    connect: async () => {
      throw retryError('nobody is there')
    },
    timing: undefined,
    metrics: undefined,
    onFatal: error => {
      throw error
    },
  })
}

const close = (node: CellNode) => node.close(retryError('closing'))

async function readAll(node: CellNode): Promise<Buffer> {
  const reader = node.timelines.read(ID, START as Lsn)
  const pieces: Buffer[] = []
  for (let next = await reader.next(); next !== undefined; next = await reader.next()) {
    pieces.push(Buffer.from(next.payload))
    next.release()
  }
  return Buffer.concat(pieces)
}

/** It leads alone, has everything, and takes more. */
async function checkRecovered(t: Test, disk: Disk, endLsn: number, parted = 1): Promise<void> {
  const node = await boot(disk)
  try {
    t.ok(await node.leaderKnown(60_000), 'it leads')
    const status = node.status()
    t.equal(status.cellId, NEW_CELL)
    t.same(
      status.members.map(({ nodeId }) => nodeId),
      [SELF],
    )
    const bytes = await readAll(node)
    t.ok(bytes.equals(lsnBytes(START, endLsn - START)), `${bytes.length} bytes of redo, as they were written`)
    const { state } = (node as unknown as { member: { driver: Driver } }).member.driver
    t.equal(backupNote(state), undefined, "the old cell's backup is not this one's")
    t.match(cellOrigin(state), { how: 'survivor', from: OLD_CELL, to: NEW_CELL })
    t.same([...state.nodes.keys()], [SELF])
    const { partings } = state.timelines.get(ID)!
    t.ok(partings.length >= parted && partings.every(({ lsn }) => lsn === endLsn), 'where it parted')
    const payload = lsnBytes(endLsn, 100)
    const append = (epoch: number) =>
      node.timelines.append(ID, epoch as WriterEpoch, endLsn as Lsn, 1, payload, crc32c(payload, 0, 100))
    for (const epoch of [1, 2, 3])
      await t.rejects(append(epoch), like({ kind: 'fenced', message: /newer writer, member-recover/ }))
    const { epoch, endLsn: end } = await node.timelines.open(ID, 'w2')
    t.equal(end, endLsn)
    await append(epoch)
  } finally {
    await close(node)
  }
}

t.test('a survivor is looked at, and nothing in its folder changes', async t => {
  const { disk, endLsn, lastIndex } = await folder({ snapshotAt: 9 })
  const before = new Map(disk.paths().map(path => [path, Buffer.from(disk.content(path))]))
  await disk.makeDir(`${DIR}/log`)
  const survivor = await lookAtSurvivor(disk, DIR)
  t.match(survivor, {
    nodeId: SELF,
    cellId: OLD_CELL,
    unfinished: false,
    recovering: false,
    term: 7,
    last: { index: lastIndex, term: 5 },
    knownCommitted: 9,
    part: 'voter',
    others: SEED.slice(1),
  })
  t.match(
    survivor.timelines.find(({ timeline }) => timeline === ID),
    {
      name: 'main',
      committedLsn: START + 4 * CHUNK,
      endLsn,
      epoch: 1,
      writer: 'w1',
      lastWallTimeUs: (endLsn - CHUNK) * 10,
    },
  )
  t.ok(survivor.holds({ index: 10 as LogIndex, term: 3 as Term }))
  t.notOk(survivor.holds({ index: 10 as LogIndex, term: 4 as Term }))
  const early = await folder()
  t.equal(
    (await lookAtSurvivor(early.disk, DIR)).knownCommitted,
    4,
    'what the log says of the backup is known, too',
  )
  t.same(disk.paths(), [...before.keys()])
  for (const [path, bytes] of before) t.ok(bytes.equals(disk.content(path)), path)
})

t.test('a cell of its own, with and without a snapshot', async t => {
  for (const snapshotAt of [undefined, 9]) {
    const { disk, endLsn, lastIndex } = await folder(snapshotAt === undefined ? {} : { snapshotAt })
    t.match(await recover(disk), {
      nodeId: SELF,
      oldCellId: OLD_CELL,
      last: { index: lastIndex, term: 5 },
      term: 8,
      timelines: 2,
    })
    await checkRecovered(t, disk, endLsn)
    await t.rejects(recover(disk), like({ kind: 'invalid', message: /only member of its cell already/ }))
  }
})

t.test(
  'killed at each operation of the disk, power lost: the old member, the new cell, or to be run again',
  async t => {
    const random = seeded(11)
    const seen = { old: 0, again: 0, done: 0 }
    for (let left = 0; ; left++) {
      const { disk: whole, endLsn } = await folder({ chunks: 6, snapshotAt: 8 })
      const { disk, count } = dying(whole, left)
      const error = await recover(disk).then(
        () => undefined,
        (error: Error) => error,
      )
      if (error === undefined) {
        t.ok(count() <= left)
        break
      }
      for (const choose of [() => 0, () => 1, random]) {
        const after = whole.crash(choose)
        const files = new NodeFiles(after, DIR)
        const found = await files.loadNode('member recover')
        if (found!.cellId === NEW_CELL) {
          seen.done++
          t.equal(found!.unfinished, undefined)
        } else {
          t.equal(found!.cellId, OLD_CELL)
          if (found!.unfinished === undefined) {
            seen.old++
            const { others, part } = await lookAtSurvivor(after, DIR)
            t.same([others.length, part], [2, 'voter'], 'the member that it was')
          } else {
            seen.again++
            await t.rejects(
              boot(after),
              like({ kind: 'invalid', message: /member recover" was begun .* run it again/ }),
            )
          }
          await recover(after)
        }
        if (left % 6 === 0 || (choose === random && left % 2 === 0)) await checkRecovered(t, after, endLsn)
      }
    }
    t.ok(seen.old > 3 && seen.again > 10, JSON.stringify(seen))
  },
)

t.test('a vote that cannot be read is no obstacle, a damaged log is', async t => {
  const voteless = await folder()
  for (const place of [0, 4096]) voteless.disk.flip(`${DIR}/vote.json`, place + 5, 1)
  t.equal((await lookAtSurvivor(voteless.disk, DIR)).term, undefined)
  t.equal((await recover(voteless.disk)).term, 6, 'above that of the log')
  await checkRecovered(t, voteless.disk, voteless.endLsn)

  const { disk } = await folder()
  const segment = disk.paths().find(path => path.endsWith('.seg') && !path.includes('spare'))!
  disk.flip(segment, 4096 + 3000, 1)
  const before = disk.crash(() => 1)
  const what = like({ kind: 'corrupt', message: /\.seg.*another survivor.*ddrescue.*backup restore/s })
  await t.rejects(lookAtSurvivor(disk, DIR), what)
  await t.rejects(recover(disk), what)
  t.ok(before.content(`${DIR}/node.json`).equals(disk.content(`${DIR}/node.json`)))
  t.notOk(
    disk.paths().some(path => path.includes('damaged')),
    'nothing was set aside',
  )
})

t.test('folders that are none, and a full disk', async t => {
  const empty = new MemoryDisk()
  await t.rejects(recover(empty), like({ kind: 'invalid', message: /no node.json/ }))
  const waiting = new NodeFiles(empty, DIR)
  await waiting.saveNode({ version: 1, nodeId: SELF, cellId: '', seed: [], recovering: false })
  await t.rejects(lookAtSurvivor(empty, DIR), like({ kind: 'invalid', message: /never came into a cell/ }))
  const { disk } = await folder()
  await disk.remove(`${DIR}/log`)
  await t.rejects(recover(disk), like({ kind: 'corrupt', message: /log is gone/ }))

  const full = await folder()
  full.disk.capacity = 0
  await t.rejects(recover(full.disk))
  full.disk.capacity = Number.POSITIVE_INFINITY
  await recover(full.disk)
  await checkRecovered(t, full.disk, full.endLsn)
})

t.test('of several survivors the newest log counts: term, then index', async t => {
  const disk = new MemoryDisk()
  const at = async (dir: string, options: FolderOptions): Promise<Survivor> => {
    await folder({ ...options, disk, dir })
    return lookAtSurvivor(disk, dir)
  }
  const long = await at('/long', { chunks: 9, lastTerm: 4 })
  const late = await at('/late', { chunks: 4, lastTerm: 6 })
  const same = await at('/same', { chunks: 4, lastTerm: 6, recovering: true })
  t.equal(newestOf([long, late]).dir, '/late')
  t.equal(newestOf([same, late, long]).dir, '/late', 'of equals the one that lost nothing')
  const stranger = await at('/stranger', { cellId: NEW_CELL })
  t.throws(() => newestOf([long, stranger]), new PalimpsestError('invalid', ''))
})
