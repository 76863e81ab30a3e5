/** A cell of one node that is backed up, on a disk and an object store in memory, in fast time; and what a backup is made into. */
import { crc32c } from '../../protocol/crc32c.ts'
import type { Lsn, TimelineId, WriterEpoch } from '../../protocol/ids.ts'
import { backupNote } from '../../server/safekeeper/backup-note.ts'
import { restoreBackup } from '../../server/safekeeper/backup-restore.ts'
import type { CellState } from '../../server/safekeeper/cell-state.ts'
import type { Driver } from '../../server/safekeeper/driver.ts'
import type { CellLog } from '../../server/safekeeper/log/cell-log.ts'
import { CellNode } from '../../server/safekeeper/node.ts'
import { retryError } from '../../server/shared/errors.ts'
import { silentLog } from '../../server/shared/log.ts'
import type { ObjectStore } from '../../server/shared/object-store.ts'
import type { Disk } from '../../server/shared/seams.ts'
import { lsnBytes } from './lsn-bytes.ts'
import { MemoryDisk } from './memory-disk.ts'

export const IDS = ['ab', 'cd', 'ef'].map(pair => pair.repeat(16) as TimelineId)
export const START = 10_000
export const SEGMENT_BYTES = 64 * 1024
export const NEW_CELL = '12'.repeat(16)
export const lsn = (n: number) => n as Lsn
export const like = (fields: object) => fields as Error

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

export const clock = fastClock()
let random = 0

export async function boot(disk: Disk, store: ObjectStore | null | undefined, mergeAt = 16) {
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

export const close = (node: CellNode) => node.close(retryError('closing'))

export class Writer {
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
export const partsOf = (node: CellNode) =>
  (node as unknown as { readonly member: { readonly log: CellLog; readonly driver: Driver } }).member
export const stateOf = (node: CellNode): CellState => partsOf(node).driver.state

export const backedUpTo = (node: CellNode): number => backupNote(stateOf(node))?.done ?? 0

/** Waits until all that is there now is backed up. */
export async function backedUp(node: CellNode): Promise<void> {
  const target = stateOf(node).last.index
  for (let i = 0; i < 5000; i++) {
    if (backedUpTo(node) >= target) return
    await clock.sleep(10)
  }
  throw new Error(`backed up to ${backedUpTo(node)} instead of ${target}`)
}

export async function readAll(node: CellNode, id: TimelineId, from: number): Promise<Buffer> {
  const reader = node.timelines.read(id, lsn(from))
  const pieces: Uint8Array[] = []
  for (;;) {
    const next = await reader.next()
    if (next === undefined) break
    pieces.push(Buffer.from(next.payload))
  }
  return Buffer.concat(pieces)
}

export async function restore(store: ObjectStore, cellId: string): Promise<MemoryDisk> {
  const disk = new MemoryDisk()
  await restoreInto(disk, store, cellId)
  return disk
}

export async function restoreInto(disk: Disk, store: ObjectStore, cellId: string): Promise<void> {
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
