/** From wall clock to LSN and back, over a timeline's layers and what is still in memory. */
import type { Lsn } from '../../protocol/ids.ts'
import { invalidError } from '../shared/errors.ts'
import type { TimeSample } from './time-samples.ts'
import type { Timeline } from './timeline.ts'

/** The newest sample at or before the moment. Throws `invalid`, naming the oldest, when all are later. */
export async function lsnAtTime(timeline: Timeline, timeUs: number): Promise<TimeSample> {
  const found = await timeline.times.lsnAt(timeUs, timeline.layers, key => samplesOf(timeline, key))
  if (found !== undefined) return found
  if (timeline.ancestor !== undefined) {
    const { timeline: ancestor, lsn } = timeline.ancestor
    const before = await lsnAtTime(ancestor, timeUs)
    // The moment is before the branch's own redo: at most where it began.
    return before.lsn <= lsn ? before : { lsn, timeUs: before.timeUs }
  }
  const first = await timeline.times.timeAt(0 as Lsn, timeline.layers, key => samplesOf(timeline, key))
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
  const found = await timeline.times.timeAt(lsn, timeline.layers, key => samplesOf(timeline, key))
  if (found !== undefined) return found
  throw invalidError(`timeline ${timeline.name} has no redo with a time yet`)
}

async function samplesOf(timeline: Timeline, key: string): Promise<readonly TimeSample[]> {
  const entry = timeline.layers.find(layer => layer.key === key)
  // Replaced by a compaction since the search began: the caller asks again.
  if (entry === undefined) return []
  return (await timeline.env.background.run('layerExtras', { path: timeline.source(entry).path })).samples
}

function isoTime(timeUs: number): string {
  return new Date(timeUs / 1000).toISOString()
}
