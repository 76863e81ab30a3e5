/**
 * How a timeline goes from the store.
 *
 *     1. a tombstone takes the manifest's place, as its next version: from here on the timeline does not exist, whoever
 *        still has it open is fenced, and only this can be gone on with
 *     2. its objects are deleted, 3. its entry in the index
 *
 * A crash before 1 leaves the timeline as it was. After 1, the next start finds the entry, and behind it the tombstone, and
 * goes on with 2. So it is the store itself that says what was to be deleted: nothing is ever removed because some list lacks
 * it, be it one that is older than the timeline (a cell that was restored from a backup).
 *
 * The tombstone stays, some hundred bytes for ever, for it knows the generation: whoever makes the timeline again under the
 * same id goes on counting from there. So no key is given out twice, and what is cached under a key is never another's.
 *
 * Making it again is a race with an owner that sleeps in step 2:
 *
 *     1. A lists what is to be deleted, 2. A looks whether its tombstone is the newest version, and deletes what it listed
 *     1. B commits a tombstone of its own, 2. deletes what A left, 3. puts objects, 4. commits their manifest
 *
 * If A's look comes before B's first step, A's list is older than B's objects; if it comes later, A stops.
 *
 * Stored as contents of the versioned object: `PLPSGONE`, then JSON.
 */
import { z } from 'zod'
import { corruptError, fencedError, retryError } from '../shared/errors.ts'
import type { ObjectStore } from '../shared/object-store.ts'
import { forEachAtMost } from './environment.ts'

const MAGIC = 'PLPSGONE'
/** Deleted at one time: a store in a network takes its time for each, and a timeline may have thousands. */
const DELETIONS_MAX = 16
/** What is put meanwhile (by an owner that does not know yet) is found by the next pass. */
const PASSES_MAX = 10

const tombstoneSchema = z.object({
  name: z.string().max(1000),
  /** Of the last owner: above that of all keys that were given out. */
  generation: z.number().int().min(0).max(Number.MAX_SAFE_INTEGER),
})

export type Tombstone = z.infer<typeof tombstoneSchema>

export function encodeTombstone({ name, generation }: Tombstone): Buffer {
  return Buffer.from(`${MAGIC}${JSON.stringify({ name, generation })}`, 'utf8')
}

/** Undefined if the contents are none; a `corrupt` error that names `where` if they are a damaged one. */
export function decodeTombstone(bytes: Buffer, where: string): Tombstone | undefined {
  if (bytes.toString('latin1', 0, MAGIC.length) !== MAGIC) return undefined
  try {
    return tombstoneSchema.parse(JSON.parse(bytes.toString('utf8', MAGIC.length)))
  } catch (error) {
    throw corruptError(
      `${where}: a tombstone that cannot be read: ${(error as Error).message}`,
      undefined,
      error,
    )
  }
}

export interface DeletedTimeline {
  /** Of all its objects. */
  readonly prefix: string
  readonly indexKey: string
  /** The one object under the prefix that stays. */
  readonly tombstoneKey: string
  /** Whether the tombstone is still the newest version of the manifest; asks the store. */
  isNewest(): Promise<boolean>
}

/**
 * Steps 2 and 3; to be repeated after an error. Throws `fenced` when the timeline has been made again meanwhile, `retry` when
 * the store cannot be reached.
 */
export async function removeObjects(store: ObjectStore, deleted: DeletedTimeline): Promise<void> {
  const { prefix, indexKey, tombstoneKey } = deleted
  for (let pass = 0; ; pass++) {
    const objects = await store.list(prefix)
    const left = objects.filter(({ key }) => key !== tombstoneKey)
    if (!(await deleted.isNewest()))
      throw fencedError(
        `${prefix} in ${store.description} is not deleted any further: the timeline was made again`,
      )
    if (left.length === 0) break
    if (pass === PASSES_MAX)
      throw retryError(
        `objects under ${prefix} are put into ${store.description} while they are being deleted`,
      )
    await forEachAtMost(DELETIONS_MAX, left, ({ key }) => store.delete(key))
  }
  await store.delete(indexKey)
}
