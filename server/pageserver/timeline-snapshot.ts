/**
 * What can be read of a timeline at one LSN: its memtables, its layers, and, where it is a branch, what its ancestor had up to
 * where they part. Made in one turn, so that it sees each range of redo, each flush and each compaction wholly or not at all.
 */
import { parseSpaceFlags } from '../../parser/space-flags.ts'
import type { Lsn } from '../../protocol/ids.ts'
import { PageStatus } from '../../protocol/messages-page.ts'
import { NO_WORD } from './arena.ts'
import type { Catalogue } from './core/catalogue.ts'
import type { LayerMap } from './core/layer-map.ts'
import type { LayerSet } from './layer-store.ts'
import type { LayerEntry } from './manifest.ts'
import type { Memtable } from './memtable.ts'
import type { ReadSnapshot } from './page-reader.ts'

/** With the layers as the manifest names them, at the same places as `layers`. */
export interface TimelineSnapshot extends ReadSnapshot {
  readonly entries: readonly LayerEntry[]
}

export interface SnapshotParts {
  readonly lsn: Lsn
  readonly catalogue: Catalogue
  /** Newest first; held until the release. */
  readonly memtables: readonly Memtable[]
  readonly map: LayerMap<LayerEntry>
  /** To be filled with the layers that requests name. */
  readonly set: LayerSet
  /** The ancestor's snapshot as of the LSN where the branch begins. */
  readonly inherited: { readonly snapshot: TimelineSnapshot; readonly lsn: Lsn } | undefined
}

export function takeSnapshot(parts: SnapshotParts): TimelineSnapshot {
  const { lsn, catalogue, memtables, map, set, inherited } = parts
  for (const memtable of memtables) memtable.acquire()
  const found: LayerEntry[] = []
  return {
    layers: set.sources,
    entries: set.entries,
    fetch: places => set.fetch(places),
    renew: (places, message) => set.renew(places, message),
    request: (space, page) => {
      const at = catalogue.spaceAt(space, lsn)
      if (at?.flags === undefined) return PageStatus.MISSING_SPACE
      if (page >= at.pages) return PageStatus.BEYOND_END
      const trimLsn = catalogue.trimLsn(space, page, lsn)
      const runs: number[] = []
      for (const memtable of memtables) {
        const run = memtable.newestRun(space, page)
        if (run !== NO_WORD) runs.push(run)
      }
      found.length = 0
      map.candidates(space, page, lsn, trimLsn, found)
      const layers = found.map(entry => set.add(entry))
      // What the ancestor has of the page is durable up to the branch: it lies in layers only, which may go on beyond.
      const before = inherited?.snapshot.request(space, page)
      if (inherited !== undefined && typeof before === 'object')
        for (const place of before.layers) {
          const { lsnEnd } = inherited.snapshot.layers[place]!
          layers.push(set.add(inherited.snapshot.entries[place]!, Math.min(lsnEnd, inherited.lsn) as Lsn))
        }
      const { flags } = at
      return { space, page, flags, trimLsn, runs, layers, bytes: parseSpaceFlags(flags).physicalSize }
    },
    release: () => {
      for (const memtable of memtables) memtable.release()
      inherited?.snapshot.release()
      set.release()
    },
  }
}
