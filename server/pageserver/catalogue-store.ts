/**
 * How the catalogue survives a restart: a snapshot object now and then, and what came after from the layers.
 *
 *     save:  1. put the snapshot of everything up to LSN X, 2. commit a manifest that names it, 3. delete the one before
 *     load:  the snapshot, then the events of every layer that ends after X, oldest first
 *
 * A crash after 1 leaves an orphan, after 2 a snapshot too many that no manifest names: the next start removes both.
 * X must be covered by layers (at or below the durable LSN), or be the LSN of an import, whose events are in no layer.
 */
import type { Lsn } from '../../protocol/ids.ts'
import { corruptError } from '../shared/errors.ts'
import type { ObjectStore } from '../shared/object-store.ts'
import { Catalogue, type CatalogueEvent } from './core/catalogue.ts'
import type { LayerEntry, Manifest, ManifestStore } from './manifest.ts'
import { openSealedObject, sealObject } from './sealed-object.ts'

const MAGIC = 'PLPSCATL'
const FORMAT_VERSION = 1

/** Layers written since the last snapshot after which another one is worth its while. */
export const CATALOGUE_SNAPSHOT_LAYERS = 32

/** Whether a start would have to open so many layers for their events that a snapshot should be saved. */
export function catalogueSnapshotDue(manifest: Manifest): boolean {
  const since = manifest.catalogue?.lsn ?? -1
  let layers = 0
  // One could not have the events of what ends later: it is of the durable LSN.
  for (const { lsnEnd } of manifest.layers) if (lsnEnd > since && lsnEnd <= manifest.durableLsn) layers++
  return layers >= CATALOGUE_SNAPSHOT_LAYERS
}

/** All that the catalogue knows up to `lsn`, as the object that `loadCatalogue` reads. */
export function sealCatalogue(catalogue: Catalogue, lsn: Lsn): Buffer {
  return sealObject(MAGIC, FORMAT_VERSION, catalogue.encode(lsn))
}

/**
 * Saves all that the catalogue knows up to `lsn`. One after the other, or a snapshot from before an import ended could take
 * the place of the one after it.
 */
export function saveCatalogue(
  store: ObjectStore,
  manifests: ManifestStore,
  catalogue: Catalogue,
  lsn: Lsn,
): Promise<void> {
  return manifests.catalogueTurns.run(async () => {
    const key = manifests.objectKey(`catalogue-${lsn}`)
    const sealed = sealCatalogue(catalogue, lsn)
    await store.putIfAbsent(key, sealed)
    let replaced: string | undefined
    await manifests.update(current => {
      // Saved before up to a later LSN: that one stays.
      if (current.catalogue !== null && current.catalogue.lsn > lsn) {
        replaced = key
        return current
      }
      replaced = current.catalogue?.key
      return { ...current, catalogue: { key, bytes: sealed.length, lsn } }
    })
    // What cannot be deleted now is an orphan, which the next start removes.
    if (replaced !== undefined) await store.delete(replaced).catch(() => {})
  })
}

/** The catalogue as of the end of all layers. `readEvents` gives what a layer's catalogue section has. */
export async function loadCatalogue(
  store: ObjectStore,
  manifest: Manifest,
  readEvents: (layer: LayerEntry) => Promise<readonly CatalogueEvent[]>,
): Promise<Catalogue> {
  const snapshot = manifest.catalogue
  let catalogue = new Catalogue()
  if (snapshot !== null) {
    const where = `catalogue ${snapshot.key} in ${store.description}`
    const sealed = await store.get(snapshot.key)
    if (sealed === undefined)
      throw corruptError(`${where} is missing; restore it from a copy of the object store`)
    catalogue = openSealedObject(MAGIC, FORMAT_VERSION, sealed, where, Catalogue.decode)
  }
  const since = snapshot?.lsn ?? -1
  const later = manifest.layers.filter(layer => layer.lsnEnd > since).sort((a, b) => a.lsnEnd - b.lsnEnd)
  for (const layer of later) catalogue.applyAll(await readEvents(layer))
  return catalogue
}
