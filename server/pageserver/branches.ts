/**
 * Branches: a timeline that is its ancestor up to and including an LSN, and goes its own way from there.
 *
 * A branch copies no pages. What lies at or before its LSN is read from the ancestor's layers (Timeline.readAt and
 * Timeline.snapshot); of its own it has a manifest, and the list of tablespaces and of captured files as of the LSN, whose
 * contents stay the ancestor's objects. The ancestor's layers up to there must be durable first, so that its memtables
 * never concern the branch; nothing else depends on how large the database is. An ancestor cannot be deleted.
 *
 *     1. the ancestor has ingested the LSN, 2. and made it durable, 3. catalogue and files of the branch are stored,
 *     4. its manifest, which names them and the ancestors
 *
 * A crash before 4 leaves two small objects of a timeline that does not exist; creating it again makes others.
 */
import { randomBytes } from 'node:crypto'
import type { TimelineBranch } from '../../protocol/messages-branch.ts'
import type { ObjectStore } from '../shared/object-store.ts'
import { sealCatalogue } from './catalogue-store.ts'
import { type InheritedParts, ManifestStore, timelineKeys } from './manifest.ts'
import type { Timeline } from './timeline.ts'

/** The new timeline's manifest, durable. Throws `retry` if the ancestor does not reach the LSN soon. */
export async function createBranch(
  store: ObjectStore,
  named: Timeline,
  request: TimelineBranch,
): Promise<ManifestStore> {
  await named.waitForLsn(request.lsn)
  const { timeline: ancestor, lsn } = named.readAt(request.lsn)
  if (ancestor.durableLsn < lsn) await ancestor.checkpoint()
  const { innodbPageSize, serverVersion, ancestors } = ancestor.manifest.current
  const { timeline, name } = request
  const inherit = async (generation: number): Promise<InheritedParts> => {
    const put = async (what: string, bytes: Buffer) => {
      const random = randomBytes(8).toString('hex')
      const key = `${timelineKeys.objects(timeline)}g${generation}-${random}-${what}`
      await store.putIfAbsent(key, bytes)
      return { key, bytes: bytes.length }
    }
    const catalogue = await put(`catalogue-${lsn}`, sealCatalogue(ancestor.catalogue, lsn))
    const files = await put('files-snapshot', ancestor.files.sealUpTo(lsn))
    return {
      ancestors: [{ timeline: ancestor.id, lsn }, ...ancestors],
      catalogue: { ...catalogue, lsn },
      files: [{ ...files, kind: 'snapshot' }],
      gaps: [{ from: lsn, readableFrom: lsn }],
    }
  }
  const fresh = { timeline, name, innodbPageSize, serverVersion, startLsn: lsn }
  return ManifestStore.create(store, fresh, inherit)
}
