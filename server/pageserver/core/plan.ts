/**
 * What to compact and where images pay: pure decisions over the manifest's list of layers. Who carries them out is
 * server/pageserver/compactor.ts.
 *
 * A memtable is written out as one layer of level 0 that may have any page. A read looks into every one of them, so
 * their number is kept small: a run of the oldest is merged into layers of level 1, which have the same LSN range and
 * are cut by pages. Each new level 1 layer is then looked at once for pages that have become costly to read, and these
 * get an image. A page that does not change does not become costlier, so once is enough; `imagesDone` records it.
 *
 * Only layers that a compaction replaced are ever deleted. What is older than anyone wants to read is kept: there is no
 * retention policy yet, and none is guessed.
 */
import type { Lsn } from '../../../protocol/ids.ts'
import { compareAge, type MapLayer } from './layer-map.ts'

export interface PlanLayer extends MapLayer {
  readonly bytes: number
  readonly rawBytes: number
  /** Level 1: its pages have been considered for images. */
  readonly imagesDone: boolean
}

export interface PlanPolicy {
  /** Level 0 layers that may wait before a compaction begins. */
  readonly level0Max: number
  /** Level 0 layers, and their bytes, in one compaction: what bounds a unit of work. At least two layers are merged. */
  readonly compactLayersMax: number
  readonly compactBytesMax: number
  /** Size at which a level 1 layer is closed and the next one begun. */
  readonly layerBytes: number
  /** A page gets an image when reading it would apply this many bytes of redo, or entries, or open this many layers. */
  readonly imageRedoBytes: number
  readonly imageEntries: number
  readonly imageLayers: number
}

export const DEFAULT_PLAN_POLICY: PlanPolicy = {
  level0Max: 8,
  compactLayersMax: 16,
  compactBytesMax: 1 << 30,
  layerBytes: 64 << 20,
  imageRedoBytes: 32 << 10,
  imageEntries: 512,
  imageLayers: 6,
}

export interface CompactionPlan<L> {
  /** Oldest first; contiguous in age. */
  readonly inputs: readonly L[]
  readonly lsnStart: Lsn
  readonly lsnEnd: Lsn
}

/**
 * The next compaction, or undefined if there is nothing to do. Always the oldest layers of level 0, so that no layer
 * that stays lies within the LSN range of the result.
 */
export function planCompaction<L extends PlanLayer>(
  layers: readonly L[],
  policy: PlanPolicy,
): CompactionPlan<L> | undefined {
  const waiting = layers
    .filter(layer => layer.kind === 'delta' && layer.level === 0)
    .sort((a, b) => compareAge(b, a))
  if (waiting.length <= policy.level0Max) return undefined
  const inputs: L[] = []
  let bytes = 0
  for (const layer of waiting) {
    const full = inputs.length >= policy.compactLayersMax || bytes + layer.bytes > policy.compactBytesMax
    if (full && inputs.length >= 2) break
    inputs.push(layer)
    bytes += layer.bytes
  }
  if (inputs.length < 2) return undefined
  return {
    inputs,
    lsnStart: Math.min(...inputs.map(layer => layer.lsnStart)) as Lsn,
    lsnEnd: Math.max(...inputs.map(layer => layer.lsnEnd)) as Lsn,
  }
}

/** The next layer whose pages are to be considered for images: the oldest of level 1 that was not yet. */
export function planImages<L extends PlanLayer>(layers: readonly L[]): L | undefined {
  let oldest: L | undefined
  for (const layer of layers) {
    if (layer.kind !== 'delta' || layer.level === 0 || layer.imagesDone || layer.first === null) continue
    if (oldest === undefined || layer.lsnEnd < oldest.lsnEnd) oldest = layer
  }
  return oldest
}

/** What reading a page costs that has no newer image: sums over the delta layers down to its newest image or init. */
export interface PageCost {
  readonly redoBytes: number
  readonly entries: number
  readonly layers: number
}

export function deservesImage(cost: PageCost, policy: PlanPolicy): boolean {
  return (
    cost.redoBytes >= policy.imageRedoBytes ||
    cost.entries >= policy.imageEntries ||
    cost.layers >= policy.imageLayers
  )
}

/**
 * The list after a compaction: its inputs are gone, its outputs are there. Throws if an input is missing, which means
 * that something else replaced it meanwhile and the outputs must be given up.
 */
export function replaceLayers<L extends { readonly key: string }>(
  layers: readonly L[],
  inputs: readonly { readonly key: string }[],
  outputs: readonly L[],
): L[] {
  const gone = new Set(inputs.map(layer => layer.key))
  const kept = layers.filter(layer => !gone.has(layer.key))
  if (kept.length !== layers.length - gone.size)
    throw new Error('a layer that was compacted is no longer in the manifest; the result is given up')
  return [...kept, ...outputs]
}
