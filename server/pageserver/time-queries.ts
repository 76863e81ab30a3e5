/** From wall clock to LSN and back, over a timeline's layers and what is still in memory. */
import type { Lsn } from '../../protocol/ids.ts'
import { invalidError, retryError } from '../shared/errors.ts'
import type { LoadSamples } from './core/time-map.ts'
import type { TimeSample } from './time-samples.ts'
import type { Timeline } from './timeline.ts'

/** A search is short, and a compaction takes seconds. */
const SEARCHES_MAX = 20

/** The newest sample at or before the moment. Throws `invalid`, naming the oldest, when all are later. */
export async function lsnAtTime(timeline: Timeline, timeUs: number): Promise<TimeSample> {
  const found = await search(timeline, load => timeline.times.lsnAt(timeUs, timeline.layers, load))
  if (found !== undefined) return found
  if (timeline.ancestor !== undefined) {
    const { timeline: ancestor, lsn } = timeline.ancestor
    const before = await lsnAtTime(ancestor, timeUs)
    // The moment is before the branch's own redo: at most where it began.
    return before.lsn <= lsn ? before : { lsn, timeUs: before.timeUs }
  }
  const first = await search(timeline, load => timeline.times.timeAt(0 as Lsn, timeline.layers, load))
  throw invalidError(
    first === undefined
      ? `timeline ${timeline.name} has no redo with a time yet`
      : `timeline ${timeline.name} begins later: its first redo was seen at ${isoTime(first.timeUs)}, LSN ${first.lsn}`,
  )
}

/** The first sample at or after the LSN. */
export async function timeAtLsn(timeline: Timeline, lsn: Lsn): Promise<TimeSample> {
  const { ancestor } = timeline
  if (ancestor !== undefined && (lsn <= ancestor.lsn || timeline.ingestedLsn === ancestor.lsn))
    return timeAtLsn(ancestor.timeline, lsn < ancestor.lsn ? lsn : ancestor.lsn)
  const found = await search(timeline, load => timeline.times.timeAt(lsn, timeline.layers, load))
  if (found !== undefined) return found
  throw invalidError(`timeline ${timeline.name} has no redo with a time yet`)
}

/** Runs the search again, over the layers as they are then, when a compaction replaced one that it came to. */
async function search<T>(timeline: Timeline, run: (load: LoadSamples) => Promise<T>): Promise<T> {
  for (let attempt = 0; attempt < SEARCHES_MAX; attempt++) {
    try {
      return await run(async key => {
        const entry = timeline.layers.find(layer => layer.key === key)
        if (entry === undefined) throw new LayerReplaced()
        return (await timeline.stack.extras(entry)).samples
      })
    } catch (error) {
      if (!(error instanceof LayerReplaced)) throw error
    }
  }
  throw retryError(
    `the layers of timeline ${timeline.name} are replaced faster than they can be searched; try again`,
  )
}

class LayerReplaced extends Error {}

function isoTime(timeUs: number): string {
  return new Date(timeUs / 1000).toISOString()
}
