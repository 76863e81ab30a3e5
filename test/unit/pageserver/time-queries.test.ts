/** Searches by time while compaction replaces layers under them. */
import t from 'tap'
import type { Lsn } from '../../../protocol/ids.ts'
import { TimeMap } from '../../../server/pageserver/core/time-map.ts'
import type { LayerEntry } from '../../../server/pageserver/manifest.ts'
import { lsnAtTime, timeAtLsn } from '../../../server/pageserver/time-queries.ts'
import type { Timeline } from '../../../server/pageserver/timeline.ts'

const second = 1_000_000
const samples = Array.from({ length: 8 }, (_, i) => ({
  lsn: (100 * (i + 1)) as Lsn,
  timeUs: (i + 1) * second,
}))

function layer(key: string, from: number, to: number): LayerEntry {
  const own = samples.slice(from, to)
  return {
    key,
    lsnStart: (100 * from) as Lsn,
    lsnEnd: (100 * to) as Lsn,
    minTimeUs: own[0]!.timeUs,
    maxTimeUs: own.at(-1)!.timeUs,
  } as LayerEntry
}

/** Level 0 layers that are merged into one while the first of them is read, as often as asked for. */
function timelineWith(merges: number) {
  let generation = 0
  const layersOf = () =>
    generation % 2 === 0
      ? [layer(`a${generation}`, 0, 4), layer(`b${generation}`, 4, 8)]
      : [layer(`merged${generation}`, 0, 8)]
  const timeline = {
    name: 'zoo',
    times: new TimeMap(),
    ancestor: undefined,
    ingestedLsn: 800,
    get layers() {
      return layersOf()
    },
    stack: {
      extras: async (entry: LayerEntry) => {
        const found = samples.filter(sample => sample.lsn > entry.lsnStart && sample.lsn <= entry.lsnEnd)
        if (generation < merges) generation++
        return { events: [], samples: found }
      },
    },
  }
  return timeline as unknown as Timeline
}

t.test('a layer that was replaced is not passed over', async t => {
  for (const merges of [0, 1, 2, 5]) {
    // Of two layers the older one has the answer.
    t.same(await timeAtLsn(timelineWith(merges), 150 as Lsn), samples[1], `${merges} merges`)
    t.same(await lsnAtTime(timelineWith(merges), 2.5 * second), samples[1])
    t.same(await lsnAtTime(timelineWith(merges), 7.5 * second), samples[6])
    t.same(await timeAtLsn(timelineWith(merges), 790 as Lsn), samples[7])
  }
  const restless = timelineWith(Number.POSITIVE_INFINITY)
  Object.assign(restless, { stack: { extras: async () => ({ events: [], samples: [] }) } })
  let asked = 0
  Object.defineProperty(restless, 'layers', { get: () => [layer(`always new ${asked++}`, 0, 8)] })
  await t.rejects(timeAtLsn(restless, 150 as Lsn), { kind: 'retry' } as unknown as Error)
})

t.test('samples that a flush takes out of memory during the search still count', async t => {
  const times = new TimeMap()
  for (const { lsn, timeUs } of samples.slice(4)) times.add(lsn, timeUs)
  const found = await times.timeAt(650 as Lsn, [layer('a', 0, 7)], async () => {
    times.forget(800 as Lsn)
    return samples.slice(0, 4)
  })
  t.same(found, samples[6])
})
