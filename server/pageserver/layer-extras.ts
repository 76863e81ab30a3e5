/** What a layer holds beside pages: events of the catalogue and samples of time. */
import { toPalimpsestError } from '../shared/errors.ts'
import type { CatalogueEvent } from './catalogue-codec.ts'
import type { PageServerEnvironment } from './environment.ts'
import type { LayerSet } from './layer-store.ts'
import type { LayerEntry } from './manifest.ts'
import type { TimeSample } from './time-samples.ts'

export interface LayerExtras {
  readonly events: readonly CatalogueEvent[]
  readonly samples: readonly TimeSample[]
}

/** Reads them in a worker, wherever the layer's file must come from. The set is to be released by the caller. */
export async function readLayerExtras(
  env: PageServerEnvironment,
  set: LayerSet,
  entry: LayerEntry,
): Promise<LayerExtras> {
  const place = set.add(entry)
  for (;;) {
    await set.fetch([place])
    try {
      return await env.background.run('layerExtras', { path: set.sources[place]!.path! })
    } catch (error) {
      const { kind, message } = toPalimpsestError(error)
      if (kind !== 'corrupt' || !set.renew([place], message)) throw error
    }
  }
}
