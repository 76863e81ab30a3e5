/** A cell's log over a disk in memory, with small segments, and entries to fill it with. */
import { crc32c } from '../../protocol/crc32c.ts'
import type { Lsn, TimelineId, WriterEpoch } from '../../protocol/ids.ts'
import type { EntryId, LogIndex, Term } from '../../server/safekeeper/core/types.ts'
import {
  CellLog,
  type CellLogOptions,
  type LogEntry,
  type LogStart,
} from '../../server/safekeeper/log/cell-log.ts'
import { silentLog } from '../../server/shared/log.ts'
import type { Disk } from '../../server/shared/seams.ts'
import { MemoryDisk } from './memory-disk.ts'

export const SEGMENT_BYTES = 40 * 1024
export const LOG_DIR = '/data/log'
export const T1 = '11'.repeat(16) as TimelineId
export const T2 = '22'.repeat(16) as TimelineId

export type Made = LogEntry

/** Bytes that follow from a seed; a third of them are zero, as redo compresses too. */
export function chunk(seed: number, bytes: number): Buffer {
  const out = Buffer.allocUnsafe(bytes)
  let state = (seed * 2654435761) >>> 0
  for (let i = 0; i < bytes; i++) {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0
    out[i] = i % 3 === 0 ? 0 : state >>> 24
  }
  return out
}

export function redo(index: number, term: number, timeline: TimelineId, lsn: number, bytes: number): Made {
  const payload = chunk(index * 13 + term, bytes)
  return {
    index: index as LogIndex,
    term: term as Term,
    kind: 'redo',
    timeline,
    epoch: 3 as WriterEpoch,
    beginLsn: lsn as Lsn,
    endLsn: (lsn + bytes) as Lsn,
    wallTimeUs: 1_790_000_000_000_000 + index * 1000,
    payload,
    payloadCrc: crc32c(payload, 0, bytes),
    dropped: false,
  }
}

export function gap(index: number, term: number, timeline: TimelineId, from: number, to: number): Made {
  return {
    ...noop(index, term),
    kind: 'gap',
    timeline,
    beginLsn: from as Lsn,
    endLsn: to as Lsn,
    epoch: 3 as WriterEpoch,
  }
}

export function noop(index: number, term: number): Made {
  return {
    index: index as LogIndex,
    term: term as Term,
    kind: 'noop',
    timeline: undefined,
    epoch: 0 as WriterEpoch,
    beginLsn: 0 as Lsn,
    endLsn: 0 as Lsn,
    wallTimeUs: 0,
    payload: Buffer.alloc(0),
    payloadCrc: 0,
    dropped: false,
  }
}

export class LogEvents {
  readonly all: EntryId[] = []
  readonly writable: boolean[] = []
  readonly fatal: Error[] = []
  readonly writableAgain: Promise<void>
  readonly fatalSeen: Promise<void>
  private waiters: { index: number; resolve: () => void }[] = []
  private onWritableAgain!: () => void
  private onFatalSeen!: () => void

  constructor() {
    this.writableAgain = new Promise(resolve => {
      this.onWritableAgain = resolve
    })
    this.fatalSeen = new Promise(resolve => {
      this.onFatalSeen = resolve
    })
  }

  attach(log: CellLog): void {
    log.onFlushed = id => {
      this.all.push(id)
      const due = this.waiters.filter(waiter => waiter.index <= id.index)
      this.waiters = this.waiters.filter(waiter => waiter.index > id.index)
      for (const { resolve } of due) resolve()
    }
    log.onWritable = writable => {
      this.writable.push(writable)
      if (writable) this.onWritableAgain()
    }
  }

  fail(error: Error): void {
    this.fatal.push(error)
    this.onFatalSeen()
  }

  flushed(index: number): Promise<void> {
    return new Promise(resolve => this.waiters.push({ index, resolve }))
  }

  /** Until nothing is under way. */
  async quiet(log: CellLog): Promise<void> {
    while (log.queuedBytes > 0 || log.flushed.index < log.lastIndex) await new Promise(setImmediate)
  }
}

export interface Rig {
  readonly disk: MemoryDisk
  readonly log: CellLog
  readonly events: LogEvents
  readonly start: LogStart
}

export async function createLog(
  options: Partial<CellLogOptions> = {},
  disk = new MemoryDisk(),
): Promise<Rig> {
  await CellLog.create({ disk, dir: LOG_DIR, segmentBytes: SEGMENT_BYTES }, { index: 0, term: 0 } as EntryId)
  return openLog(disk, options)
}

export async function openLog(
  disk: MemoryDisk,
  options: Partial<Omit<CellLogOptions, 'appliedTo'>> & { appliedTo?: number } = {},
): Promise<Rig> {
  const events = new LogEvents()
  const { log, start } = await CellLog.open({
    disk: disk as Disk,
    clock: {
      wallTimeUs: () => 0,
      monotonicMs: () => performance.now(),
      sleep: ms => new Promise(resolve => setTimeout(resolve, Math.min(ms, 5)).unref()),
    },
    dir: LOG_DIR,
    log: silentLog,
    segmentBytes: SEGMENT_BYTES,
    reserveBytes: 64 * 1024,
    onFatal: error => events.fail(error),
    ...options,
    appliedTo: (options.appliedTo ?? 0) as LogIndex,
  })
  events.attach(log)
  return { disk, log, events, start }
}

export async function appendAndFlush(
  log: CellLog,
  events: LogEvents,
  entries: readonly Made[],
): Promise<void> {
  const done = events.flushed(entries.at(-1)!.index)
  log.append(entries)
  await done
}

/** Entries [from, to] in small reads, with payloads as Buffers, for comparing. */
export async function entriesOf(log: CellLog, from: number, to: number, bytesMax = 5000): Promise<Made[]> {
  const out: Made[] = []
  while (from <= to) {
    const entries = await log.read(from as LogIndex, to as LogIndex, bytesMax)
    if (entries.length === 0) break
    for (const entry of entries) out.push({ ...entry, payload: Buffer.from(entry.payload) })
    from = entries.at(-1)!.index + 1
  }
  return out
}
