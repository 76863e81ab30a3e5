/** What the packs of a log hold of each timeline, summed up: for the ratio per timeline, without reading packs. */
import type { TimelineId } from '../../../protocol/ids.ts'
import type { PackSummary } from './pack-codec.ts'

export interface PackedBytes {
  /** Redo that is held, uncompressed. */
  rawBytes: number
  storedBytes: number
  packs: number
}

export class PackLedger {
  readonly #timelines = new Map<TimelineId, PackedBytes>()

  add(summary: PackSummary): void {
    this.#count(summary, 1)
  }

  remove(summary: PackSummary): void {
    this.#count(summary, -1)
  }

  #count(summary: PackSummary, sign: 1 | -1): void {
    for (const { id, rawBytes, storedBytes } of summary.timelines) {
      const sum = this.#timelines.get(id) ?? { rawBytes: 0, storedBytes: 0, packs: 0 }
      sum.rawBytes += sign * rawBytes
      sum.storedBytes += sign * storedBytes
      sum.packs += sign
      if (sum.packs === 0) this.#timelines.delete(id)
      else this.#timelines.set(id, sum)
    }
  }

  of(timeline: TimelineId): Readonly<PackedBytes> {
    return this.#timelines.get(timeline) ?? { rawBytes: 0, storedBytes: 0, packs: 0 }
  }

  get timelines(): number {
    return this.#timelines.size
  }

  clear(): void {
    this.#timelines.clear()
  }
}
