// Writers that each have so many appends on their way and send the next when one is acknowledged.
import { readFileSync } from 'node:fs'
import { build, type Histogram } from 'hdr-histogram-js'

/** Something that appends durably: acknowledged means that it is on disk where it has to be. */
export interface AppendTarget {
  readonly name: string
  /** Its processes, whose processor time is measured. */
  readonly pids: readonly number[]
  /** The payload must not be changed until the promise resolves. Rejects if the append failed. */
  append(writer: number, payload: Uint8Array): Promise<void>
  close(): Promise<void>
}

export interface Load {
  readonly writers: number
  readonly appendBytes: number
  /** Appends on their way for each writer. */
  readonly depth: number
  readonly seconds: number
}

export interface Measured {
  readonly appendsPerSecond: number
  readonly megabytesPerSecond: number
  readonly latencyUsP50: number
  readonly latencyUsP95: number
  readonly latencyUsP99: number
  /** Processor time of all processes for an append, where the machine tells (Linux). */
  readonly cpuUsPerAppend?: number | undefined
}

/** Long enough for compilers at run time, ours and the client's. */
const WARM_UP_SECONDS = 2.5
/** Different stretches of it are what writers send. */
const POOL_BYTES = 8 << 20

let pool: Buffer | undefined

/**
 * Bytes that compress about as redo of sysbench's tables does: rows of random digits between headers that repeat. The same
 * in each run.
 */
export function payloads(): Buffer {
  if (pool !== undefined) return pool
  pool = Buffer.alloc(POOL_BYTES)
  let state = 0x9e3779b9
  for (let at = 0; at < POOL_BYTES; ) {
    at += pool.write('\x80\x00\x04record of table sbtest1\x00\x00\x1f', at, 'latin1')
    for (let i = 0; i < 96 && at < POOL_BYTES; i++) {
      state ^= state << 13
      state ^= state >>> 17
      state ^= state << 5
      // Every twelfth byte is a separator, as in sysbench's strings.
      pool[at++] = i % 12 === 11 ? 0x2d : 0x30 + ((state >>> 8) % 10)
    }
  }
  return pool
}

export function histogram(): Histogram {
  return build({
    lowestDiscernibleValue: 1,
    highestTrackableValue: 60_000_000,
    numberOfSignificantValueDigits: 3,
  })
}

export function measured(
  latencies: Histogram,
  appends: number,
  appendBytes: number,
  seconds: number,
): Measured {
  const appendsPerSecond = seconds > 0 ? appends / seconds : 0
  return {
    appendsPerSecond,
    megabytesPerSecond: (appendsPerSecond * appendBytes) / 1e6,
    latencyUsP50: latencies.getValueAtPercentile(50),
    latencyUsP95: latencies.getValueAtPercentile(95),
    latencyUsP99: latencies.getValueAtPercentile(99),
  }
}

export async function drive(target: AppendTarget, load: Load): Promise<Measured> {
  const { writers, appendBytes, depth, seconds } = load
  const bytes = payloads()
  const latencies = histogram()
  const from = performance.now() + WARM_UP_SECONDS * 1000
  const until = from + seconds * 1000
  let appends = 0
  let next = 0
  // Of the whole run, warm-up included: what is on its way when it ends would be half counted.
  let all = 0
  const cpuBefore = cpuMs(target.pids)
  const lane = async (writer: number): Promise<void> => {
    for (;;) {
      const sent = performance.now()
      if (sent >= until) return
      if (next + appendBytes > POOL_BYTES) next = 0
      const payload = bytes.subarray(next, next + appendBytes)
      next += appendBytes
      await target.append(writer, payload)
      all++
      const now = performance.now()
      if (now < from || now > until) continue
      latencies.recordValue(Math.max(1, Math.round((now - sent) * 1000)))
      appends++
    }
  }
  await Promise.all(Array.from({ length: writers * depth }, (_, i) => lane(i % writers)))
  const cpu = cpuMs(target.pids)
  return {
    ...measured(latencies, appends, appendBytes, seconds),
    ...(cpu !== undefined && cpuBefore !== undefined && { cpuUsPerAppend: ((cpu - cpuBefore) * 1000) / all }),
  }
}

/** Processor time of processes until now, with their threads. A tick of Linux's clock is 10 ms. */
export function cpuMs(pids: readonly number[]): number | undefined {
  try {
    let ticks = 0
    for (const pid of pids) {
      const stat = readFileSync(`/proc/${pid}/stat`, 'latin1')
      const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ')
      ticks += Number(fields[11]) + Number(fields[12])
    }
    return ticks * 10
  } catch {
    return undefined
  }
}
