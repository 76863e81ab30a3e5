/**
 * What a cell's backup holds: an object that is replaced by compare-and-swap (shared/cas-object.ts) and names the state
 * at which the backup begins and the packs of the log that follow. docs/backup.md has the layout and the reasons.
 */
import { z } from 'zod'
import { CasObject, type CasVersion, loadCas } from '../shared/cas-object.ts'
import { corruptError } from '../shared/errors.ts'
import { isObjectKey, type ObjectReader, type ObjectStore } from '../shared/object-store.ts'
import type { EntryId, LogIndex, Term } from './core/types.ts'

const VERSION = 1
const PREFIX = 'cells/'

const index = z
  .int()
  .min(0)
  .transform(value => value as LogIndex)
const term = z
  .int()
  .min(0)
  .transform(value => value as Term)
const key = z.string().refine(isObjectKey, 'no object key')

const packSchema = z
  .object({
    key,
    first: index,
    last: index,
    lastTerm: term,
    bytes: z.int().min(0),
    /** Of the redo in it, before compression. */
    rawBytes: z.int().min(0),
    crc: z.int().min(0).max(0xffffffff),
    /** Whether its table tells which entries are void; those of earlier releases do not. */
    tellsVoids: z.boolean().default(false),
  })
  .refine(pack => pack.first >= 1 && pack.first <= pack.last, 'impossible range')

const manifestSchema = z
  .object({
    version: z.literal(VERSION),
    cellId: z.string().regex(/^[0-9a-f]{32}$/),
    /** The backup begins after this entry; `key` has the state there, null for index 0. */
    base: z.object({ index, term, key: key.nullable() }),
    packs: z.array(packSchema),
    /** Wall clock of the last commit, microseconds since 1970. */
    atUs: z.int().min(0),
  })
  .refine(manifest => {
    let next: number = manifest.base.index + 1
    for (const [i, pack] of manifest.packs.entries()) {
      // The base may have moved into the first pack.
      if (i === 0 ? pack.first > next || pack.last < next : pack.first !== next) return false
      next = pack.last + 1
    }
    return true
  }, 'the packs do not follow each other')

export type BackupPack = Readonly<z.output<typeof packSchema>>
export type BackupManifest = Readonly<z.output<typeof manifestSchema>>

export const backupKeys = {
  cell: (cellId: string) => `${PREFIX}${cellId}/`,
  manifest: (cellId: string) => `${PREFIX}${cellId}/manifest`,
  /** Of the objects that a manifest names. */
  folders: (cellId: string) => [`${PREFIX}${cellId}/packs/`, `${PREFIX}${cellId}/states/`],
  pack: (cellId: string, first: number, last: number, unique: string) =>
    `${PREFIX}${cellId}/packs/${first}-${last}-${unique}.pack`,
  state: (cellId: string, at: number, unique: string) => `${PREFIX}${cellId}/states/${at}-${unique}.json`,
} as const

/** The last entry that the backup holds. */
export function backupEnd(manifest: BackupManifest): EntryId {
  const last = manifest.packs.at(-1)
  return last === undefined ? manifest.base : { index: last.last, term: last.lastTerm }
}

export function newManifest(cellId: string, base: BackupManifest['base']): BackupManifest {
  return { version: VERSION, cellId, base, packs: [], atUs: 0 }
}

/** The manifest of one cell in a store. */
export class BackupManifestObject {
  readonly #cas: CasObject
  readonly #store: ObjectStore
  readonly #cellId: string

  constructor(store: ObjectStore, cellId: string) {
    this.#cas = new CasObject(store, backupKeys.manifest(cellId), whatOf(cellId))
    this.#store = store
    this.#cellId = cellId
  }

  /** Undefined if there is no backup yet. Throws kind corrupt for what is no manifest of this cell. */
  async load(): Promise<BackupManifest | undefined> {
    return decodeManifest(this.#store, this.#cellId, await this.#cas.load())
  }

  /** In place of the one that was loaded or committed last. Throws kind fenced if another was faster: load again. */
  async commit(manifest: BackupManifest): Promise<void> {
    await this.#cas.commit(Buffer.from(JSON.stringify(manifest)))
  }
}

/** The same for whoever only reads. */
export async function loadManifest(store: ObjectReader, cellId: string): Promise<BackupManifest | undefined> {
  return decodeManifest(store, cellId, await loadCas(store, backupKeys.manifest(cellId), whatOf(cellId)))
}

function whatOf(cellId: string): string {
  return `the backup of cell ${cellId}`
}

function decodeManifest(
  store: ObjectReader,
  cellId: string,
  version: CasVersion | undefined,
): BackupManifest | undefined {
  if (version === undefined) return undefined
  const where = `manifest ${version.number} of the backup of cell ${cellId} in ${store.description}`
  let json: unknown
  try {
    json = JSON.parse(version.bytes.toString('utf8'))
  } catch (error) {
    throw corruptError(`${where}: ${(error as Error).message}`, undefined, error)
  }
  const parsed = manifestSchema.safeParse(json)
  if (!parsed.success) throw corruptError(`${where}: ${z.prettifyError(parsed.error)}`)
  if (parsed.data.cellId !== cellId) throw corruptError(`${where}: it is of cell ${parsed.data.cellId}`)
  return parsed.data
}

/** Cells that have a backup in the store. */
export async function listBackups(store: ObjectReader): Promise<string[]> {
  const ids = new Set<string>()
  for (const { key: found } of await store.list(PREFIX)) {
    const match = /^cells\/([0-9a-f]{32})\/manifest\//.exec(found)
    if (match !== null) ids.add(match[1]!)
  }
  return [...ids].sort()
}
