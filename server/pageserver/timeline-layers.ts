/** The layers of one timeline at run time: where a page may be, who reads them, and when those that were replaced may go. */
import type { TimelineId } from '../../protocol/ids.ts'
import { fencedError, type PalimpsestError, retryError, toPalimpsestError } from '../shared/errors.ts'
import type { Log } from '../shared/log.ts'
import { LayerMap } from './core/layer-map.ts'
import type { PageServerEnvironment } from './environment.ts'
import { type LayerExtras, readLayerExtras } from './layer-extras.ts'
import { LayerSet, missingLayer } from './layer-store.ts'
import { type LayerEntry, ManifestStore, timelineOfKey } from './manifest.ts'

export interface TimelineLayersOptions {
  readonly env: PageServerEnvironment
  readonly log: Log
  readonly manifest: ManifestStore
  /** The manifest lists other layers than before. */
  readonly onChanged: () => void
  /** A layer shows that another page server owns the timeline. */
  readonly onFenced: (error: PalimpsestError) => void
}

export class TimelineLayers {
  readonly #o: TimelineLayersOptions
  readonly #id: TimelineId
  #map: LayerMap<LayerEntry>
  /** Readers under way. */
  readonly #readers = new Set<Promise<void>>()

  constructor(options: TimelineLayersOptions) {
    this.#o = options
    const { current } = options.manifest
    this.#id = current.timeline
    this.#map = new LayerMap(current.layers)
  }

  get map(): LayerMap<LayerEntry> {
    return this.#map
  }

  /** The manifest lists other layers than before: readers that begin from now on see these. */
  changed(): void {
    this.#map = new LayerMap(this.#o.manifest.current.layers)
    this.#o.onChanged()
  }

  /** Layers to work with. It is for the caller to see that they are not deleted meanwhile. */
  set(): LayerSet {
    return new LayerSet(this.#o.env.layers, (error, layer) => this.#cannotFetch(error, layer))
  }

  /** Layers that `readersGone` waits for. */
  guarded(): LayerSet {
    const set = this.set()
    this.#readers.add(set.done)
    void set.done.then(() => this.#readers.delete(set.done))
    return set
  }

  /** What a layer holds beside pages. It must be one that the manifest names at this moment. */
  async extras(entry: LayerEntry): Promise<LayerExtras> {
    const set = this.guarded()
    try {
      return await readLayerExtras(this.#o.env, set, entry)
    } finally {
      set.release()
    }
  }

  /** Resolves when nobody reads any more what could be read at the time of the call. */
  async readersGone(): Promise<void> {
    await Promise.all(this.#readers)
  }

  /** Deletes layers that no manifest names any more, once nobody reads them. What is left over, the next start removes. */
  async retire(layers: readonly LayerEntry[]): Promise<void> {
    if (layers.length === 0) return
    await this.readersGone()
    for (const { key } of layers)
      try {
        await this.#o.env.layers.delete(key)
      } catch (error) {
        this.#o.log.warn(
          { err: error, layer: key },
          'a layer that is not needed any more could not be deleted',
        )
      }
  }

  /** A layer that is not in the store is either lost, or another page server has replaced it. */
  async #cannotFetch(error: unknown, layer: LayerEntry): Promise<PalimpsestError> {
    const known = toPalimpsestError(error)
    if (known.kind !== 'refresh') return known
    const { env, manifest } = this.#o
    const { name } = manifest.current
    const owner = timelineOfKey(layer.key)
    try {
      const now = owner && (await ManifestStore.read(env.store, owner))
      if (now?.layers.some(other => other.key === layer.key)) return missingLayer(layer.key, env.store)
    } catch (failure) {
      return toPalimpsestError(failure)
    }
    if (owner === this.#id)
      this.#o.onFenced(
        fencedError(`another page server owns timeline ${name}: it has replaced layer ${layer.key}`),
      )
    return retryError(`${known.message}: another page server owns timeline ${name}; ask that one`)
  }
}
