/**
 * Where the files of layers are, for those who read and write them. The object store holds the layers; workers read files.
 * Where the store is a directory, its own files are read in place; otherwise a local cache holds copies (layer-cache.ts).
 */
import { unlink } from 'node:fs/promises'
import type { Lsn } from '../../protocol/ids.ts'
import { corruptError, internalError, type PalimpsestError } from '../shared/errors.ts'
import type { ObjectStore } from '../shared/object-store.ts'
import type { LayerSource } from './layer-files.ts'
import type { LayerEntry } from './manifest.ts'

/** A layer as the manifest names it. */
export type NamedLayer = Pick<LayerEntry, 'key' | 'bytes'>

/** A layer's file that stays until it is released. Compared by identity. */
export interface LayerFile {
  readonly path: string
}

export interface LayerStore {
  /** The file, held, if it is here; else it is to be fetched. */
  take(layer: NamedLayer): LayerFile | undefined
  /**
   * The file, held, wherever it must come from. Several callers at once cause one download.
   *
   * @throws PalimpsestError: `refresh` when the store has no such object; `corrupt` when its contents are damaged; `retry`
   *   when the store cannot be reached or the disk is full
   */
  fetch(layer: NamedLayer): Promise<LayerFile>
  release(file: LayerFile): void
  /**
   * Puts a finished file into the store, under a key that is nobody else's; it is gone from `path` then, and durable. After
   * an error the file is still there, and the same call may be made again.
   */
  put(key: string, path: string): Promise<void>
  /** Deletes the object, and what is here of it. Nobody may hold it. */
  delete(key: string): Promise<void>
  /**
   * The file at `path`, which was the layer's, turned out to be damaged. True if it was a copy, which is thrown away then: it
   * is worth fetching the layer again. False if there is no better one.
   */
  renew(layer: NamedLayer, path: string): boolean
  /** Throws away the copies of objects that do not exist any more, by key. */
  forgetAll(isGone: (key: string) => boolean): void
  close(): Promise<void>
}

/** The layers of a store whose objects are files. */
export class LayersInPlace implements LayerStore {
  readonly #store: ObjectStore

  constructor(store: ObjectStore) {
    this.#store = store
  }

  take(layer: NamedLayer): LayerFile {
    const path = this.#store.localPath(layer.key)
    if (path === undefined)
      throw internalError(`layer ${layer.key} has no file in ${this.#store.description}`)
    return { path }
  }

  fetch(layer: NamedLayer): Promise<LayerFile> {
    return Promise.resolve(this.take(layer))
  }

  release(): void {}

  async put(key: string, path: string): Promise<void> {
    await putLayer(this.#store, key, path)
  }

  delete(key: string): Promise<void> {
    return this.#store.delete(key)
  }

  renew(): boolean {
    return false
  }

  forgetAll(): void {}

  close(): Promise<void> {
    return Promise.resolve()
  }
}

/** A layer's key is never given out twice: an object that is there already is an earlier attempt of ours. */
export async function putLayer(store: ObjectStore, key: string, path: string): Promise<void> {
  if (!(await store.putFile(key, path))) await unlink(path)
}

/**
 * The layers that one reader or one piece of work names, held until it is done. Those that are not here yet have no path;
 * a worker that turns out to need one says so, and it is fetched.
 */
export class LayerSet {
  /** What tasks are told; a place in it stands for the layer. */
  readonly sources: LayerSource[] = []
  readonly entries: LayerEntry[] = []
  readonly #store: LayerStore
  readonly #explain: (error: unknown, layer: LayerEntry) => Promise<PalimpsestError>
  readonly #places = new Map<LayerEntry, number>()
  readonly #held: LayerFile[] = []
  /** Copies that were thrown away, by the place of their layer. */
  readonly #renewed = new Map<number, string[]>()
  readonly #done = Promise.withResolvers<void>()
  #released = false

  /** @param explain what to tell a reader whose layer could not be fetched */
  constructor(store: LayerStore, explain: (error: unknown, layer: LayerEntry) => Promise<PalimpsestError>) {
    this.#store = store
    this.#explain = explain
  }

  /** Resolves when it has been released. */
  get done(): Promise<void> {
    return this.#done.promise
  }

  /** The layer's place. With `upToLsn`, what comes after that LSN in it is left out. */
  add(entry: LayerEntry, upToLsn: Lsn = entry.lsnEnd): number {
    const known = this.#places.get(entry)
    if (known !== undefined) return known
    const file = this.#store.take(entry)
    if (file !== undefined) this.#held.push(file)
    const { kind, lsnStart } = entry
    const lsnEnd = entry.lsnEnd < upToLsn ? entry.lsnEnd : upToLsn
    const place = this.sources.push({ kind, path: file?.path, lsnStart, lsnEnd }) - 1
    this.entries.push(entry)
    this.#places.set(entry, place)
    return place
  }

  /** Has these layers brought here, side by side. */
  async fetch(places: Iterable<number>): Promise<void> {
    const wanted = [...new Set(places)]
    const outcomes = await Promise.allSettled(wanted.map(place => this.#fetchOne(place)))
    for (const [i, outcome] of outcomes.entries())
      if (outcome.status === 'rejected') throw await this.#explain(outcome.reason, this.entries[wanted[i]!]!)
  }

  async fetchAll(): Promise<void> {
    await this.fetch(this.sources.keys())
  }

  async #fetchOne(place: number): Promise<void> {
    if (this.sources[place]!.path !== undefined) return
    const file = await this.#store.fetch(this.entries[place]!)
    this.#held.push(file)
    this.sources[place] = { ...this.sources[place]!, path: file.path }
  }

  /**
   * After an error about damage: throws away the copies of those of these layers whose files it names. True if any is to be
   * fetched again.
   */
  renew(places: Iterable<number>, message: string): boolean {
    let any = false
    for (const place of places) {
      // Others who read the set at the same time may have found out before.
      any ||= this.#renewed.get(place)?.some(path => isNamed(path, message)) ?? false
      const source = this.sources[place]!
      if (source.path === undefined || !isNamed(source.path, message)) continue
      if (!this.#store.renew(this.entries[place]!, source.path)) continue
      this.#renewed.set(place, [...(this.#renewed.get(place) ?? []), source.path])
      this.sources[place] = { ...source, path: undefined }
      any = true
    }
    return any
  }

  release(): void {
    if (this.#released) return
    this.#released = true
    for (const file of this.#held) this.#store.release(file)
    this.#done.resolve()
  }
}

/** Names of copies end in a number, of which another's may be the beginning. */
function isNamed(path: string, message: string): boolean {
  for (let at = message.indexOf(path); at >= 0; at = message.indexOf(path, at + 1))
    if (!/^[0-9]/.test(message.slice(at + path.length, at + path.length + 1))) return true
  return false
}

export function missingLayer(key: string, store: ObjectStore): PalimpsestError {
  return corruptError(
    `layer ${key} is missing in ${store.description}, although the manifest names it; restore it from a copy of the object store`,
  )
}
