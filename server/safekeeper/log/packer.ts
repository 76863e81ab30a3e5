/**
 * Makes packs out of raw segments, and new packs out of packs of which a part is not needed any more. A job is plain data
 * and works on a disk by itself, so that it can run in a worker (pack-worker.ts) or, over a simulated disk, in place. What it
 * writes is a `.tmp` beside the log; the log puts it in its place (LogFiles.adopt).
 */
import { join } from 'node:path'
import type { Lsn, TimelineId } from '../../../protocol/ids.ts'
import { corruptError } from '../../shared/errors.ts'
import type { Disk, DiskFile } from '../../shared/seams.ts'
import type { LogIndex, Term } from '../core/types.ts'
import {
  decodeEntryHeader,
  ENTRY_HEADER_BYTES,
  entryBytes,
  entryOf,
  isPayloadRight,
  NO_PAYLOAD,
} from './entry.ts'
import { PackBuilder } from './pack-builder.ts'
import type { PackEntry, PackHeader } from './pack-codec.ts'
import { packEntries } from './pack-reader.ts'
import { SEGMENT_DATA_OFFSET } from './segment-file.ts'

/** Written and synced in such pieces, so that the log's own syncs do not wait behind one long one. */
const SYNC_BYTES = 4 * 1024 * 1024
const READ_BYTES = 4 * 1024 * 1024

export interface SegmentJob {
  readonly type: 'segment'
  readonly path: string
  readonly target: string
  readonly header: PackHeader
  /** Where its entries end. */
  readonly endOffset: number
  /** Ascending. */
  readonly voids: readonly number[]
  readonly level: number
}

export interface RepackJob {
  readonly type: 'repack'
  /** Packs that follow each other. */
  readonly paths: readonly string[]
  readonly target: string
  readonly header: PackHeader
  /** Redo of these timelines that ends at or below is dropped. */
  readonly dropTo: readonly (readonly [TimelineId, Lsn])[]
  readonly level: number
}

export type PackJob = SegmentJob | RepackJob

export interface PackResult {
  readonly rawBytes: number
  readonly packBytes: number
}

/** Runs jobs, one at a time. */
export interface PackRunner {
  run(job: PackJob): Promise<PackResult>
  close(): Promise<void>
}

/** In the caller's thread: for simulated disks. */
export function inlinePackRunner(disk: Disk): PackRunner {
  return { run: job => runPackJob(disk, job), close: async () => {} }
}

/** Throws corrupt if what it reads is not what was written. Leaves nothing behind when it fails. */
export async function runPackJob(disk: Disk, job: PackJob): Promise<PackResult> {
  await disk.remove(job.target)
  const target = await disk.open(job.target, 'create')
  try {
    const out = new PackOutput(target)
    const builder = new PackBuilder(job.header, { level: job.level })
    let rawBytes = 0
    const entries = job.type === 'segment' ? segmentEntries(disk, job) : repackedEntries(disk, job)
    for await (const entry of entries) {
      rawBytes += entry.payload.length
      builder.add(entry)
      await out.write(builder.take())
    }
    builder.finish()
    await out.write(builder.take())
    await target.datasync()
    await target.close()
    return { rawBytes, packBytes: out.written }
  } catch (error) {
    await target.close()
    await disk.remove(job.target)
    throw error
  }
}

class PackOutput {
  readonly #file: DiskFile
  #synced = 0
  written = 0

  constructor(file: DiskFile) {
    this.#file = file
  }

  async write(chunks: Uint8Array[]): Promise<void> {
    if (chunks.length === 0) return
    await this.#file.write(chunks, this.written)
    for (const chunk of chunks) this.written += chunk.length
    if (this.written - this.#synced < SYNC_BYTES) return
    await this.#file.datasync()
    this.#synced = this.written
  }
}

async function* segmentEntries(disk: Disk, job: SegmentJob): AsyncGenerator<PackEntry> {
  const file = await disk.open(job.path, 'read')
  try {
    const voids = new Set(job.voids)
    // In pieces; an entry that does not end in one begins the next. Payloads stay where they were read.
    let window: Buffer = Buffer.alloc(0)
    let windowAt = SEGMENT_DATA_OFFSET
    let at = SEGMENT_DATA_OFFSET
    const need = async (bytes: number) => {
      if (at + bytes <= windowAt + window.length) return
      window = Buffer.allocUnsafeSlow(Math.min(Math.max(READ_BYTES, bytes), job.endOffset - at))
      windowAt = at
      window = window.subarray(0, await file.read(window, at))
    }
    for (let index = job.header.firstIndex; index <= job.header.lastIndex; index++) {
      const damaged = (why: string): never => {
        throw corruptError(`log segment ${job.path} is damaged at offset ${at} (index ${index}): ${why}`)
      }
      await need(ENTRY_HEADER_BYTES)
      const header = decodeEntryHeader(window, at - windowAt)
      if (header === undefined || header.index !== index) return damaged('there is no valid entry header')
      if (at + entryBytes(header.payloadBytes) > job.endOffset) damaged('the entry there is too long')
      await need(ENTRY_HEADER_BYTES + header.payloadBytes)
      const begin = at - windowAt + ENTRY_HEADER_BYTES
      const end = begin + header.payloadBytes
      if (end > window.length || !isPayloadRight(header, window, begin, end))
        damaged('the entry there has a wrong payload CRC-32C')
      at += entryBytes(header.payloadBytes)
      yield { ...entryOf(header, window.subarray(begin, end)), isVoid: voids.has(index) }
    }
  } finally {
    await file.close()
  }
}

async function* repackedEntries(disk: Disk, job: RepackJob): AsyncGenerator<PackEntry> {
  const dropTo = new Map(job.dropTo)
  for (const path of job.paths) {
    const file = await disk.open(path, 'read')
    try {
      const source = {
        name: path,
        size: () => file.size(),
        read: (target: Uint8Array, position: number) => file.read(target, position),
      }
      for await (const entry of packEntries(source)) {
        const isDropped =
          entry.kind === 'redo' && (entry.isVoid || entry.endLsn <= (dropTo.get(entry.timeline!) ?? 0))
        yield isDropped ? { ...entry, payload: NO_PAYLOAD, dropped: true } : entry
      }
    } finally {
      await file.close()
    }
  }
}

/** Where a pack is written before it has its name. One job runs at a time, so one name suffices. */
export function packTarget(dir: string): string {
  return join(dir, 'pack.tmp')
}

export function jobHeader(
  units: readonly { firstIndex: LogIndex; lastIndex: LogIndex; prevTerm: Term }[],
  generation: number,
): PackHeader {
  const first = units[0]!
  return {
    firstIndex: first.firstIndex,
    lastIndex: units.at(-1)!.lastIndex,
    prevTerm: first.prevTerm,
    generation,
  }
}
