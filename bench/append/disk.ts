// What the disk can do at all: one loop that writes a batch and syncs it, nothing else. In two ways: into new space, as a log
// that is kept must, where the file system has its own records to sync; and again over the same space, as a log can that
// recycles its segments, where nothing but the data has to reach the disk.
import {
  closeSync,
  existsSync,
  fdatasyncSync,
  fsyncSync,
  ftruncateSync,
  openSync,
  rmSync,
  writeSync,
  writevSync,
} from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { isMainThread, parentPort, Worker, workerData } from 'node:worker_threads'
import { histogram, type Measured, measured, payloads } from './closed-loop.ts'

/** Then it begins anew. */
const FILE_BYTES = 512 << 20
const WARM_UP_MS = 200

export type Space = 'new' | 'again'

interface LoopTask {
  readonly space: Space
  readonly file: string
  readonly appendBytes: number
  /** Appends to one sync. */
  readonly group: number
  readonly seconds: number
}

/** Runs in a thread of its own: the calls are synchronous, as they are fastest. */
function loop({ file, space, appendBytes, group, seconds }: LoopTask): Measured {
  const again = space === 'again'
  if (again && !existsSync(file)) fill(file)
  const fd = openSync(file, again ? 'r+' : 'w')
  try {
    const bytes = payloads()
    const latencies = histogram()
    const from = performance.now() + WARM_UP_MS
    const until = from + seconds * 1000
    const batchBytes = appendBytes * group
    let position = 0
    let next = 0
    let appends = 0
    let last = from
    for (;;) {
      const sent = performance.now()
      if (sent >= until) break
      if (position + batchBytes > FILE_BYTES) {
        position = 0
        if (!again) ftruncateSync(fd, 0)
      }
      const batch = Array.from({ length: group }, () => {
        if (next + appendBytes > bytes.length) next = 0
        next += appendBytes
        return bytes.subarray(next - appendBytes, next)
      })
      const written = writevSync(fd, batch, position)
      if (written !== batchBytes) throw new Error(`wrote ${written} of ${batchBytes} bytes to ${file}`)
      fdatasyncSync(fd)
      position += batchBytes
      const now = performance.now()
      if (sent < from) continue
      latencies.recordValueWithCount(Math.max(1, Math.round((now - sent) * 1000)), group)
      appends += group
      last = now
    }
    return measured(latencies, appends, appendBytes, (last - from) / 1000)
  } finally {
    closeSync(fd)
    if (!again) rmSync(file, { force: true })
  }
}

function fill(file: string): void {
  const fd = openSync(file, 'wx')
  const zeros = Buffer.alloc(1 << 20)
  for (let at = 0; at < FILE_BYTES; at += zeros.length) writeSync(fd, zeros, 0, zeros.length, at)
  fsyncSync(fd)
  closeSync(fd)
}

/** So many loops at once, each with a file of its own. @returns the slowest: what all of them together have reached */
async function loops(dir: string, files: number, task: Omit<LoopTask, 'file'>): Promise<Measured> {
  const all = await Promise.all(
    Array.from(
      { length: files },
      (_, i) =>
        new Promise<Measured>((resolve, reject) => {
          const data: LoopTask = { ...task, file: join(dir, `disk-${task.space}-${i}`) }
          const worker = new Worker(fileURLToPath(import.meta.url), { workerData: data })
          worker.once('message', resolve)
          worker.once('error', reject)
        }),
    ),
  )
  return all.reduce((slowest, one) => (one.megabytesPerSecond < slowest.megabytesPerSecond ? one : slowest))
}

/** The best of groups of 1, 2, 4, … up to as many appends as writers can have on their way at once. */
export async function bestGroup(
  dir: string,
  space: Space,
  files: number,
  appendBytes: number,
  inFlight: number,
  seconds: number,
): Promise<Measured & { group: number }> {
  let best: (Measured & { group: number }) | undefined
  const groups = [...groupSizes(inFlight)].filter(group => appendBytes * group <= FILE_BYTES)
  for (const group of groups) {
    const one = await loops(dir, files, {
      space,
      appendBytes,
      group,
      seconds: Math.max(0.5, seconds / groups.length),
    })
    if (best === undefined || one.megabytesPerSecond > best.megabytesPerSecond) best = { ...one, group }
  }
  return best!
}

export function oneEach(dir: string, appendBytes: number, seconds: number): Promise<Measured> {
  return loops(dir, 1, { space: 'again', appendBytes, group: 1, seconds })
}

function* groupSizes(most: number): Iterable<number> {
  for (let group = 1; group < most; group *= 2) yield group
  yield most
}

if (!isMainThread && parentPort !== null && (workerData as LoopTask | null)?.appendBytes !== undefined)
  parentPort.postMessage(loop(workerData as LoopTask))
