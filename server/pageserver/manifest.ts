/**
 * The manifest of a timeline: the one object that says which layers and other objects make up the timeline, up to which
 * LSN, and who owns it. docs/storage-format.md has its fields.
 *
 * It is a versioned object (server/shared/cas-object.ts). Whatever a manifest names was put into the store before it.
 * Its *generation* counts owners: whoever opens a timeline for writing first commits a manifest with the generation
 * plus one, after which every commit of an earlier owner loses and is told so (`fenced`). Keys of layers contain the
 * generation of their writer, so an object that no manifest names and whose generation is over belongs to nobody:
 *
 *     1. load manifest (generation g), 2. commit it with g + 1, 3. list the layers, 4. delete those that the manifest
 *     does not name and whose key has a generation <= g.
 *
 * An earlier owner that still puts layers after step 3 cannot commit them; they are found at the next start.
 */
import { zstdCompressSync, zstdDecompressSync } from 'node:zlib'
import { z } from 'zod'
import { checkTimelineName, LSN_MAX, type Lsn, type TimelineId, toTimelineId } from '../../protocol/ids.ts'
import { CasObject } from '../shared/cas-object.ts'
import { corruptError, fencedError, invalidError, PalimpsestError } from '../shared/errors.ts'
import { isObjectKey, type ObjectStore } from '../shared/object-store.ts'
import { Turns } from '../shared/turns.ts'
import { decodeTombstone, encodeTombstone, removeObjects, type Tombstone } from './deletion.ts'
import type { LayerSummary } from './layer-file-writer.ts'
import { LayerKind } from './layer-format.ts'

const MANIFEST_FORMAT_VERSION = 1
const MAGIC = 'PLPSMANI'
/** JSON beyond this is no manifest of ours: a hundred thousand layers have 30 MB. */
const JSON_BYTES_MAX = 256 << 20

const count = z.number().int().min(0).max(Number.MAX_SAFE_INTEGER)
const lsn = z
  .number()
  .int()
  .min(0)
  .max(LSN_MAX)
  .transform(value => value as Lsn)
const key = z.string().refine(isObjectKey, 'no object key')
const u32 = z.number().int().min(0).max(0xffffffff)
const pageId = z.object({ space: u32, page: u32 })

const layerSchema = z
  .object({
    key,
    kind: z.enum(['delta', 'image']),
    /** Delta, 0: a memtable as it was written out, of all pages; 1: compacted, cut by pages. Image, 1: import; 2: compaction. */
    level: z.number().int().min(0).max(15),
    /** Of a delta layer of level 1: its pages have been considered for images (core/plan.ts). */
    imagesDone: z.boolean(),
    lsnStart: lsn,
    lsnEnd: lsn,
    /** First and last page in it, both inclusive; null if it holds only catalogue events and time samples. */
    first: pageId.nullable(),
    last: pageId.nullable(),
    bytes: count,
    rawBytes: count,
    entries: count,
    pages: count,
    /** Wall clock of its time samples, µs since 1970; both 0 without. */
    minTimeUs: count,
    maxTimeUs: count,
  })
  .refine(
    layer => layer.lsnStart <= layer.lsnEnd && (layer.first === null) === (layer.last === null),
    'impossible range',
  )

const objectSchema = z.object({ key, bytes: count })

const manifestSchema = z.object({
  formatVersion: z.literal(MANIFEST_FORMAT_VERSION),
  timeline: z.string().transform(value => toTimelineId(value)),
  name: z.string().transform(value => checkTimelineName(value)),
  generation: count,
  innodbPageSize: z.union([4096, 8192, 16384, 32768, 65536].map(size => z.literal(size))),
  serverVersion: z.string().max(200),
  /** Where the timeline's own redo begins: the checkpoint of its first import, or where it branched off. */
  startLsn: lsn,
  /** Of a branch: what it is up to and including these LSNs, the nearest first (branches.ts). */
  ancestors: z
    .array(z.object({ timeline: z.string().transform(value => toTimelineId(value)), lsn }))
    .default([]),
  /** All redo up to here is in layers; the safekeeper may trim it. */
  durableLsn: lsn,
  /** Redo that is damaged at this LSN, where `durableLsn` ends: nothing more is taken in. */
  stopped: z
    .object({ lsn, message: z.string().max(4000) })
    .nullable()
    .default(null),
  /**
   * Cells that the safekeepers' was made of, one after the other (docs/consensus.md, "After a lost majority"), each when no more had been taken in
   * here than it had. null: it was never asked, nor anything taken in.
   */
  partings: z
    .array(z.string().regex(/^[0-9a-f]{32}$/))
    .nullable()
    .default([]),
  /** LSNs that cannot be read (core/gaps.ts). */
  gaps: z.array(
    z
      .object({ from: lsn, readableFrom: lsn, cause: z.enum(['unlogged']).optional() })
      .refine(gap => gap.from <= gap.readableFrom),
  ),
  layers: z.array(layerSchema),
  /** The catalogue as of this LSN; later events lie in the layers that end after it. */
  catalogue: objectSchema.extend({ lsn }).nullable(),
  /** Index of the captured files: a snapshot (perhaps) and what came after, oldest first. */
  files: z.array(objectSchema.extend({ kind: z.enum(['snapshot', 'delta']) })),
})

export type LayerEntry = z.infer<typeof layerSchema>
export type Manifest = z.infer<typeof manifestSchema>
export type ManifestGap = Manifest['gaps'][number]

/** What a branch has from the beginning. */
export type InheritedParts = Pick<Manifest, 'ancestors' | 'catalogue' | 'files' | 'gaps'>

export interface NewTimeline {
  readonly timeline: TimelineId
  readonly name: string
  readonly innodbPageSize: number
  readonly serverVersion: string
  readonly startLsn: Lsn
}

/** Keys of a timeline's objects. */
export const timelineKeys = {
  /** One small object per timeline, so that they can be found without listing all layers. */
  index: (timeline: TimelineId) => `timeline-index/${timeline}`,
  all: (timeline: TimelineId) => `timelines/${timeline}/`,
  manifest: (timeline: TimelineId) => `timelines/${timeline}/manifest`,
  layers: (timeline: TimelineId) => `timelines/${timeline}/layers/`,
  objects: (timeline: TimelineId) => `timelines/${timeline}/objects/`,
  chunk: (timeline: TimelineId, sha256: string) =>
    `timelines/${timeline}/chunks/${sha256.slice(0, 2)}/${sha256}`,
} as const

/** The timeline whose object has this key. */
export function timelineOfKey(objectKey: string): TimelineId | undefined {
  const match = /^timelines\/([0-9a-f]{32})\//.exec(objectKey)
  return match === null ? undefined : toTimelineId(match[1]!)
}

/** What the manifest keeps of a finished layer. */
export function layerEntry(layerKey: string, level: number, summary: LayerSummary): LayerEntry {
  return {
    key: layerKey,
    kind: summary.kind === LayerKind.DELTA ? 'delta' : 'image',
    level,
    imagesDone: false,
    lsnStart: summary.lsnStart,
    lsnEnd: summary.lsnEnd,
    first: summary.first ?? null,
    last: summary.last ?? null,
    bytes: summary.bytes,
    rawBytes: summary.rawBytes,
    entries: summary.entries,
    pages: summary.pages,
    minTimeUs: summary.minTimeUs,
    maxTimeUs: summary.maxTimeUs,
  }
}

/** Zstandard over JSON after 12 bytes: magic, u32 length of the JSON. The CRC is that of the versioned object. */
export function encodeManifest(manifest: Manifest): Buffer {
  const json = Buffer.from(JSON.stringify(manifest), 'utf8')
  if (json.length > JSON_BYTES_MAX)
    throw new ImpossibleManifestError(
      `the manifest of timeline ${manifest.timeline} would have ${json.length} bytes of JSON, more than the ${JSON_BYTES_MAX} that can be read back`,
    )
  const head = Buffer.alloc(12)
  head.write(MAGIC, 0, 'latin1')
  head.writeUInt32LE(json.length, 8)
  return Buffer.concat([head, zstdCompressSync(json)])
}

/** Throws `corrupt` for what is no manifest of this version; `where` names it in the message. */
export function decodeManifest(bytes: Buffer, where: string): Manifest {
  if (bytes.length < 12 || bytes.toString('latin1', 0, 8) !== MAGIC)
    throw corruptError(`${where}: this is no manifest`)
  const length = bytes.readUInt32LE(8)
  if (length > JSON_BYTES_MAX) throw corruptError(`${where}: ${length} bytes of JSON are too many`)
  let value: unknown
  try {
    const json = zstdDecompressSync(bytes.subarray(12), { maxOutputLength: Math.max(1, length) })
    if (json.length !== length) throw new Error(`${json.length} bytes of JSON instead of ${length}`)
    value = JSON.parse(json.toString('utf8'))
  } catch (error) {
    throw corruptError(`${where}: ${(error as Error).message}`, undefined, error)
  }
  const version = (value as { formatVersion?: unknown } | null)?.formatVersion
  if (version !== MANIFEST_FORMAT_VERSION)
    throw corruptError(
      `${where}: format version ${String(version)}; this software reads version ${MANIFEST_FORMAT_VERSION}`,
    )
  const parsed = manifestSchema.safeParse(value)
  if (parsed.success) return parsed.data
  const issue = parsed.error.issues[0]
  throw corruptError(`${where}: field ${issue?.path.join('.')}: ${issue?.message}`)
}

/** Timelines that the store holds, by id. */
export async function listTimelines(store: ObjectStore): Promise<TimelineId[]> {
  const prefix = 'timeline-index/'
  const ids: TimelineId[] = []
  for (const { key: found } of await store.list(prefix)) {
    const id = found.slice(prefix.length)
    if (/^[0-9a-f]{32}$/.test(id)) ids.push(toTimelineId(id))
  }
  return ids
}

/** An update that would break what a manifest promises. To try it again is in vain. */
export class ImpossibleManifestError extends PalimpsestError {
  constructor(message: string) {
    super('internal', message)
  }
}

/** The manifest of a timeline that this process owns. Commits are made one after the other, in the order of calls. */
export class ManifestStore {
  readonly #store: ObjectStore
  readonly #cas: CasObject
  #current: Manifest
  readonly #updates = new Turns()
  /** What updates fail with once the timeline is being deleted. */
  #closed: PalimpsestError | undefined
  /** Its newest version is a tombstone. */
  #isTombstone = false
  /** For catalogue-store.ts: snapshots are saved one after the other. */
  readonly catalogueTurns = new Turns()
  #fenced: PalimpsestError | undefined
  /** Told once, whoever's commit it was that lost. */
  onFenced: (error: PalimpsestError) => void = () => {}
  #objectNumber = 0

  private constructor(store: ObjectStore, cas: CasObject, manifest: Manifest) {
    this.#store = store
    this.#cas = cas
    this.#current = manifest
  }

  /**
   * Makes a new timeline, owned by the caller. The index entry comes first: one without a manifest is a creation that
   * was never acknowledged, and is ignored.
   *
   * @param inherit what a branch begins with; it may put objects, whose keys are to have this generation
   */
  static async create(
    store: ObjectStore,
    fresh: NewTimeline,
    inherit?: (generation: number) => Promise<InheritedParts>,
  ): Promise<ManifestStore> {
    const { timeline } = fresh
    const cas = manifestObject(store, timeline)
    const found = await loadVersion(store, cas, timeline)
    if (found?.manifest !== undefined)
      throw invalidError(`timeline ${timeline} exists already in ${store.description}`)
    let generation = 1
    if (found !== undefined) {
      // Deleted once. Whoever still deletes is to know that what comes now is not meant.
      const { name, generation: last } = found.tombstone
      await cas.commit(encodeTombstone({ name, generation: last + 1 }))
      await removeObjectsOf(store, cas, timeline)
      generation = last + 2
    }
    const manifest = manifestSchema.parse({
      formatVersion: MANIFEST_FORMAT_VERSION,
      ...fresh,
      generation,
      durableLsn: fresh.startLsn,
      stopped: null,
      partings: null,
      layers: [],
      ...((await inherit?.(generation)) ?? { ancestors: [], catalogue: null, files: [], gaps: [] }),
    } satisfies Record<keyof Manifest, unknown>)
    await store.putIfAbsent(timelineKeys.index(timeline), Buffer.from(`${fresh.name}\n`))
    await cas.commit(encodeManifest(manifest))
    return new ManifestStore(store, cas, manifest)
  }

  /** For `ManifestClaim`: commits `found`, which `cas` has loaded, under the next generation. */
  static async take(store: ObjectStore, cas: CasObject, found: Manifest): Promise<ManifestStore> {
    const manifest = { ...found, generation: found.generation + 1 }
    await cas.commit(encodeManifest(manifest))
    return new ManifestStore(store, cas, manifest)
  }

  /** Opens a timeline and makes the caller its owner: see `ManifestClaim`, which can be tried again. */
  static claim(store: ObjectStore, timeline: TimelineId): Promise<ManifestStore | undefined> {
    return new ManifestClaim(store, timeline).take()
  }

  /** Reads a timeline's manifest without claiming it. Undefined if there is none, or not any more. */
  static async read(store: ObjectStore, timeline: TimelineId): Promise<Manifest | undefined> {
    return (await loadVersion(store, manifestObject(store, timeline), timeline))?.manifest
  }

  /** As committed last. Not to be changed. */
  get current(): Manifest {
    return this.#current
  }

  get fenced(): boolean {
    return this.#fenced !== undefined
  }

  /** A key for a new layer: never given out before, by whatever owner. */
  layerKey(kind: 'delta' | 'image', level: number, lsnStart: Lsn, lsnEnd: Lsn): string {
    const range = kind === 'image' ? `${lsnStart}` : `${lsnStart}-${lsnEnd}`
    return `${timelineKeys.layers(this.#current.timeline)}${this.#stamp()}-${kind}${level}-${range}`
  }

  /** The same for any other object of the timeline. */
  objectKey(what: string): string {
    return `${timelineKeys.objects(this.#current.timeline)}${this.#stamp()}-${what}`
  }

  #stamp(): string {
    return `g${this.#current.generation}-${this.#objectNumber++}`
  }

  /**
   * Commits what `change` makes of the current manifest. What the result names must be in the store by then. Throws
   * `fenced` once another process owns the timeline, and ImpossibleManifestError, before anything was written, if the result
   * contradicts the current one; after any other error the update did not take effect here and may be tried again.
   */
  update(change: (current: Manifest) => Manifest): Promise<Manifest> {
    return this.#updates.run(async () => {
      if (this.#closed !== undefined) throw this.#closed
      if (this.#fenced !== undefined) throw this.#fenced
      const next = change(this.#current)
      this.#check(next)
      await this.#commit(encodeManifest(next))
      this.#current = next
      return next
    })
  }

  async #commit(contents: Buffer): Promise<void> {
    try {
      await this.#cas.commit(contents)
    } catch (error) {
      if (error instanceof PalimpsestError && error.kind === 'fenced') {
        this.#fenced = error
        this.onFenced(error)
      }
      throw error
    }
  }

  /** What no change may do, whatever else it does. */
  #check(next: Manifest): void {
    const now = this.#current
    const refuse = (why: string): never => {
      throw new ImpossibleManifestError(
        `${this.#cas.key(this.#cas.number + 1)} in ${this.#store.description} is not written: ${why}`,
      )
    }
    if (
      next.timeline !== now.timeline ||
      next.generation !== now.generation ||
      next.startLsn !== now.startLsn
    )
      refuse('an update must not change what identifies the timeline')
    if (next.durableLsn < now.durableLsn)
      refuse(`the durable LSN would fall from ${now.durableLsn} to ${next.durableLsn}`)
    // A safekeeper forgets what is durable: between two layers nothing may be missing that no gap tells of.
    if (
      next.durableLsn > now.durableLsn &&
      !next.layers.some(layer => layer.lsnStart === now.durableLsn && layer.lsnEnd === next.durableLsn) &&
      !next.gaps.some(gap => gap.from === now.durableLsn && !now.gaps.includes(gap))
    )
      refuse(
        `LSN ${next.durableLsn} cannot be durable, since no layer has the redo from LSN ${now.durableLsn} on`,
      )
    const keys = new Set<string>()
    for (const layer of next.layers) {
      if (keys.has(layer.key)) refuse(`it would have layer ${layer.key} twice`)
      keys.add(layer.key)
    }
  }

  /**
   * Deletes objects of earlier generations that the manifest does not name. To be called once after `claim`. Returns
   * the keys.
   */
  async removeOrphans(): Promise<string[]> {
    const { timeline, generation, layers, files, catalogue } = this.#current
    const named = new Set(
      [...layers, ...files, ...(catalogue === null ? [] : [catalogue])].map(object => object.key),
    )
    const removed: string[] = []
    for (const prefix of [timelineKeys.layers(timeline), timelineKeys.objects(timeline)])
      for (const { key: found } of await this.#store.list(prefix)) {
        const stamp = /^g([0-9]{1,15})-/.exec(found.slice(prefix.length))
        if (named.has(found) || stamp === null || Number(stamp[1]) >= generation) continue
        await this.#store.delete(found)
        removed.push(found)
      }
    return removed
  }

  /**
   * Removes the timeline from the store (deletion.ts). What fails after the tombstone was committed can be asked for again,
   * and is gone on with at the next start.
   */
  async deleteTimeline(): Promise<void> {
    const { timeline, name, generation } = this.#current
    await this.#updates.run(async () => {
      if (this.#fenced !== undefined) throw this.#fenced
      if (this.#isTombstone) return
      // A version that came later would be what is left of it.
      this.#closed = invalidError(`timeline ${name} is being deleted`)
      await this.#commit(encodeTombstone({ name, generation }))
      this.#isTombstone = true
    })
    await removeObjectsOf(this.#store, this.#cas, timeline)
  }
}

/**
 * An attempt to own a timeline. It remembers what it has committed: after an error of any kind it can be tried again, and
 * takes nothing away from another process that has claimed the timeline meanwhile.
 */
export class ManifestClaim {
  readonly #store: ObjectStore
  readonly #timeline: TimelineId
  readonly #cas: CasObject
  #found: Manifest | undefined
  #owned: ManifestStore | undefined

  constructor(store: ObjectStore, timeline: TimelineId) {
    this.#store = store
    this.#timeline = timeline
    this.#cas = manifestObject(store, timeline)
  }

  /** The manifest, as far as an attempt came to read it. */
  get found(): Manifest | undefined {
    return this.#owned?.current ?? this.#found
  }

  /**
   * Makes the caller the timeline's owner: earlier ones are fenced. Undefined if there is no such timeline; of one whose
   * deletion was interrupted nothing is left then. Throws `fenced` if another process did the same after this attempt began.
   */
  async take(): Promise<ManifestStore | undefined> {
    const store = this.#store
    if (this.#owned !== undefined) {
      const { name, generation } = this.#owned.current
      if ((await ManifestStore.read(store, this.#timeline))?.generation !== generation)
        throw fencedError(`another page server owns timeline ${name}; ask that one`)
      return this.#owned
    }
    if (this.#found === undefined) {
      const found = await loadVersion(store, this.#cas, this.#timeline)
      if (found?.tombstone !== undefined) await removeObjectsOf(store, this.#cas, this.#timeline)
      if (found?.manifest === undefined) return undefined
      this.#found = found.manifest
    }
    this.#owned = await ManifestStore.take(store, this.#cas, this.#found)
    return this.#owned
  }
}

function manifestObject(store: ObjectStore, timeline: TimelineId): CasObject {
  return new CasObject(store, timelineKeys.manifest(timeline), `the manifest of timeline ${timeline}`)
}

type ManifestVersion =
  | { readonly manifest: Manifest; readonly tombstone?: undefined }
  | { readonly manifest?: undefined; readonly tombstone: Tombstone }

/** The newest version; undefined if there never was one. */
async function loadVersion(
  store: ObjectStore,
  cas: CasObject,
  timeline: TimelineId,
): Promise<ManifestVersion | undefined> {
  const version = await cas.load()
  if (version === undefined) return undefined
  const where = `manifest ${cas.key(version.number)} in ${store.description}`
  const tombstone = decodeTombstone(version.bytes, where)
  if (tombstone !== undefined) return { tombstone }
  const manifest = decodeManifest(version.bytes, where)
  if (manifest.timeline !== timeline) throw corruptError(`${where} is of timeline ${manifest.timeline}`)
  return { manifest }
}

/** `cas` has the timeline's tombstone as its version. */
function removeObjectsOf(store: ObjectStore, cas: CasObject, timeline: TimelineId): Promise<void> {
  return removeObjects(store, {
    prefix: timelineKeys.all(timeline),
    indexKey: timelineKeys.index(timeline),
    tombstoneKey: cas.key(cas.number),
    isNewest: async () => (await manifestObject(store, timeline).load())?.number === cas.number,
  })
}
