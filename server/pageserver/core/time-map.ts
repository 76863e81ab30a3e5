/**
 * From wall clock to LSN and back.
 *
 * Whoever appends redo says when it saw it. Of these samples one is kept every 100 ms, and always the last before a
 * pause, so that "the state at 12:00" is right even if the last change was at 11:59:59.95 and the next at 13:00. Samples
 * are stored in the layer of their LSN range; the manifest has each layer's least and greatest time. In memory are only
 * those of redo that is in no layer yet.
 *
 * `lsnAt(t)` is the largest sampled LSN whose clock was at or before t. While clocks only go forward that is what one
 * expects. Where a clock was set back, some times happened twice; the later occurrence counts, because the search goes
 * from the newest sample back to the first that is not after t.
 */
import type { Lsn } from '../../../protocol/ids.ts'
import type { TimeSample } from '../time-samples.ts'

export type { TimeSample } from '../time-samples.ts'

const TIME_SAMPLE_INTERVAL_US = 100_000

/** A layer with time samples, as the manifest has it. */
export interface TimedLayer {
  readonly key: string
  readonly lsnStart: Lsn
  readonly lsnEnd: Lsn
  readonly minTimeUs: number
  /** 0 if the layer has no samples. */
  readonly maxTimeUs: number
}

export type LoadSamples = (layerKey: string) => Promise<readonly TimeSample[]>

export class TimeMap {
  /** Samples of redo that is in no layer yet, ascending by LSN. */
  #samples: TimeSample[] = []
  /** The newest one seen, as long as it is not clear whether it must be kept. */
  #latest: TimeSample | undefined
  #lastKept: TimeSample | undefined

  /** LSNs ascend; a repeated or smaller one is ignored (redo that is sent again after a reconnection). */
  add(lsn: Lsn, timeUs: number): void {
    const newest = this.#latest ?? this.#lastKept
    if (newest !== undefined && lsn <= newest.lsn) return
    const sample = { lsn, timeUs }
    if (this.#latest !== undefined && apart(this.#latest, sample)) this.#keep(this.#latest)
    if (this.#lastKept === undefined || apart(this.#lastKept, sample)) {
      this.#keep(sample)
      this.#latest = undefined
    } else this.#latest = sample
  }

  #keep(sample: TimeSample): void {
    this.#samples.push(sample)
    this.#lastKept = sample
  }

  /** The samples with lsnStart < LSN <= lsnEnd, for the layer of that range; its last one is always among them. */
  samplesIn(lsnStart: Lsn, lsnEnd: Lsn): TimeSample[] {
    if (this.#latest !== undefined && this.#latest.lsn <= lsnEnd) {
      this.#keep(this.#latest)
      this.#latest = undefined
    }
    return this.#samples.filter(sample => sample.lsn > lsnStart && sample.lsn <= lsnEnd)
  }

  /** Frees the samples up to `lsn`, which are in durable layers. */
  forget(lsn: Lsn): void {
    const first = this.#samples.findIndex(sample => sample.lsn > lsn)
    this.#samples = first < 0 ? [] : this.#samples.slice(first)
  }

  /** The sample whose LSN is the answer, or undefined if nothing was seen at or before `timeUs`. */
  async lsnAt(
    timeUs: number,
    layers: readonly TimedLayer[],
    load: LoadSamples,
  ): Promise<TimeSample | undefined> {
    if (this.#latest !== undefined && this.#latest.timeUs <= timeUs) return this.#latest
    const inMemory = this.#samples.findLast(sample => sample.timeUs <= timeUs)
    if (inMemory !== undefined) return inMemory
    for (const layer of newestFirst(layers)) {
      if (layer.minTimeUs > timeUs) continue
      const found = (await load(layer.key)).findLast(sample => sample.timeUs <= timeUs)
      if (found !== undefined) return found
    }
    return undefined
  }

  /**
   * The first sample at or after the LSN: by its time the LSN had been seen. For an LSN beyond all samples, the last
   * one; undefined if there is none at all.
   */
  async timeAt(lsn: Lsn, layers: readonly TimedLayer[], load: LoadSamples): Promise<TimeSample | undefined> {
    const timed = newestFirst(layers).reverse()
    // As they are now, with these layers: a flush meanwhile forgets samples that lie in a layer which is not among them.
    const samples = this.#samples
    const latest = this.#latest
    for (const layer of timed) {
      if (layer.lsnEnd < lsn) continue
      const found = (await load(layer.key)).find(sample => sample.lsn >= lsn)
      if (found !== undefined) return found
    }
    const inMemory = samples.find(sample => sample.lsn >= lsn) ?? latest ?? samples.at(-1)
    if (inMemory !== undefined) return inMemory
    const last = timed.at(-1)
    return last && (await load(last.key)).at(-1)
  }
}

function apart(a: TimeSample, b: TimeSample): boolean {
  return Math.abs(b.timeUs - a.timeUs) >= TIME_SAMPLE_INTERVAL_US
}

function newestFirst(layers: readonly TimedLayer[]): TimedLayer[] {
  return layers.filter(layer => layer.maxTimeUs > 0).sort((a, b) => b.lsnEnd - a.lsnEnd)
}
