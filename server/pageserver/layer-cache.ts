/**
 * Copies of layers on the local disk, for a store whose objects are not files. Nothing in it is the truth: it can be emptied
 * at any time when the page server is down, and at worst a layer is fetched again.
 *
 *     DIR/partial/N            under way; removed at start
 *     DIR/layers/KEY~N         whole. The key's slashes are tildes; N makes each copy's name its own
 *
 * A copy gets its final name only when it is whole: one that was fetched when the store has verified its CRC, one that was
 * written here when the store has the object. The latter is not synced, so a crash of the machine may leave it torn: its size
 * is compared with the manifest's, and every part of a layer has a CRC of its own, which is verified when it is read.
 * A copy that turns out to be damaged is thrown away and fetched again (`renew`), once; then the object itself is damaged.
 *
 * A key stands for the same bytes for ever (deletion.ts), unless somebody puts an older copy of the store in its place. So
 * copies that no manifest names are thrown away when the page server has opened its timelines (`forgetAll`): they would only
 * take room, or be taken for what a key that is given out again stands for.
 *
 * The least recently used copies go when there are more than `bytesMax`. What is held stays, so a moment's readers may need
 * more than that. A copy is emptied before its name is removed, since a worker may still have it open; no task reads it
 * then, and a later copy of the layer has another name.
 */
import { mkdirSync, readdirSync, rmSync, statSync } from 'node:fs'
import { link, rename, truncate, unlink } from 'node:fs/promises'
import { join } from 'node:path'
import { corruptError, refreshError, toPalimpsestError } from '../shared/errors.ts'
import { DATA_DIRECTORY_MODE } from '../shared/file-modes.ts'
import type { Log } from '../shared/log.ts'
import type { ObjectStore } from '../shared/object-store.ts'
import { removeScratch } from './environment.ts'
import { type LayerFile, type LayerStore, type NamedLayer, putLayer } from './layer-store.ts'

/** More side by side would gain nothing on any usual network. */
const DOWNLOADS_MAX = 8

interface Copy extends LayerFile {
  readonly key: string
  readonly path: string
  readonly bytes: number
  holds: number
  /** Not to be found any more; removed when nobody holds it. */
  gone: boolean
}

export interface LayerCacheOptions {
  readonly dir: string
  readonly bytesMax: number
  readonly log: Log
}

export class LayerCache implements LayerStore {
  readonly #store: ObjectStore
  readonly #log: Log
  readonly #layersDir: string
  readonly #partialDir: string
  readonly #bytesMax: number
  /** By key, the least recently used first. */
  readonly #copies = new Map<string, Copy>()
  readonly #downloads = new Map<string, Promise<void>>()
  readonly #queue: (() => void)[] = []
  #running = 0
  #number = 0
  /** Copies that were thrown away for damage: a second time would not help. */
  readonly #renewed = new Set<string>()
  readonly #removals = new Set<Promise<void>>()
  bytes = 0
  hits = 0
  fetches = 0
  fetchedBytes = 0
  evictions = 0

  constructor(store: ObjectStore, options: LayerCacheOptions) {
    this.#store = store
    this.#log = options.log
    this.#bytesMax = options.bytesMax
    this.#layersDir = join(options.dir, 'layers')
    this.#partialDir = join(options.dir, 'partial')
    try {
      rmSync(this.#partialDir, { recursive: true, force: true })
      mkdirSync(this.#partialDir, { recursive: true, mode: DATA_DIRECTORY_MODE })
      mkdirSync(this.#layersDir, { recursive: true, mode: DATA_DIRECTORY_MODE })
      this.#scan()
    } catch (error) {
      throw toPalimpsestError(error, `the layer cache in ${options.dir} cannot be used`)
    }
    this.#trim()
  }

  get bytesMax(): number {
    return this.#bytesMax
  }

  get copies(): number {
    return this.#copies.size
  }

  /** What an earlier process has left; of two copies of a layer the newer one counts. */
  #scan(): void {
    const found: { name: string; key: string; number: number; bytes: number; usedMs: number }[] = []
    for (const name of readdirSync(this.#layersDir)) {
      const match = /^(.+)~([0-9]{1,15})$/.exec(name)
      const { size, mtimeMs } = statSync(join(this.#layersDir, name))
      if (match === null || size === 0) rmSync(join(this.#layersDir, name), { recursive: true })
      else
        found.push({
          name,
          key: match[1]!.replaceAll('~', '/'),
          number: Number(match[2]),
          bytes: size,
          usedMs: mtimeMs,
        })
    }
    found.sort((a, b) => a.usedMs - b.usedMs || a.number - b.number)
    for (const { name, key, number, bytes } of found) {
      this.#number = Math.max(this.#number, number + 1)
      this.#add({ key, path: join(this.#layersDir, name), bytes, holds: 0, gone: false })
    }
  }

  #add(copy: Copy): void {
    const older = this.#copies.get(copy.key)
    if (older !== undefined) this.#discard(older)
    this.#copies.set(copy.key, copy)
    this.bytes += copy.bytes
  }

  take(layer: NamedLayer): LayerFile | undefined {
    const copy = this.#copies.get(layer.key)
    if (copy === undefined) return undefined
    if (copy.bytes !== layer.bytes) {
      this.#log.warn(
        { layer: layer.key, bytes: copy.bytes, expected: layer.bytes },
        'a cached layer has the wrong size and is thrown away',
      )
      this.#discard(copy)
      return undefined
    }
    this.hits++
    return this.#hold(copy)
  }

  #hold(copy: Copy): Copy {
    copy.holds++
    // The most recently used is the last.
    this.#copies.delete(copy.key)
    this.#copies.set(copy.key, copy)
    return copy
  }

  async fetch(layer: NamedLayer): Promise<LayerFile> {
    for (;;) {
      const here = this.take(layer)
      if (here !== undefined) return here
      let download = this.#downloads.get(layer.key)
      if (download === undefined) {
        download = this.#download(layer).finally(() => this.#downloads.delete(layer.key))
        this.#downloads.set(layer.key, download)
      }
      await download
    }
  }

  async #download(layer: NamedLayer): Promise<void> {
    if (this.#running >= DOWNLOADS_MAX) await new Promise<void>(resolve => this.#queue.push(resolve))
    else this.#running++
    try {
      this.#trim(layer.bytes)
      await Promise.all(this.#removals)
      const partial = this.#partial()
      const since = performance.now()
      const bytes = await this.#store.getFile(layer.key, partial)
      if (bytes === undefined)
        throw refreshError(`layer ${layer.key} is not in ${this.#store.description} any more`)
      if (bytes !== layer.bytes) {
        await unlink(partial)
        throw corruptError(
          `layer ${layer.key} in ${this.#store.description} has ${bytes} bytes, the manifest says ${layer.bytes}; restore it from a copy of the object store`,
        )
      }
      let copy: Copy
      try {
        copy = await this.#adopt(layer.key, partial, bytes)
      } catch (error) {
        await removeScratch(partial)
        throw error
      }
      this.fetches++
      this.fetchedBytes += bytes
      this.#log.debug({ layer: layer.key, bytes, ms: Math.round(performance.now() - since) }, 'layer fetched')
      // Until those who wait for it have taken it.
      copy.holds++
      setImmediate(() => this.release(copy))
    } finally {
      const next = this.#queue.shift()
      if (next === undefined) this.#running--
      else next()
    }
  }

  #partial(): string {
    return join(this.#partialDir, String(this.#number++))
  }

  async #adopt(key: string, partial: string, bytes: number): Promise<Copy> {
    const path = join(this.#layersDir, `${key.replaceAll('/', '~')}~${this.#number++}`)
    try {
      await rename(partial, path)
    } catch (error) {
      throw toPalimpsestError(error, `caching layer ${key} as ${path} failed`)
    }
    const copy: Copy = { key, path, bytes, holds: 0, gone: false }
    this.#add(copy)
    return copy
  }

  release(file: LayerFile): void {
    const copy = file as Copy
    copy.holds--
    if (copy.holds > 0) return
    if (copy.gone) this.#remove(copy)
    else this.#trim()
  }

  async put(key: string, path: string): Promise<void> {
    // Of an older copy of the store.
    this.forget(key)
    // A second name, since the store takes the first one away.
    const partial = this.#partial()
    const { size } = statSync(path)
    let linked = true
    try {
      await link(path, partial)
    } catch (error) {
      // Then it is fetched when it is wanted.
      linked = false
      this.#log.debug({ err: error, layer: key }, 'a new layer could not be cached')
    }
    try {
      await putLayer(this.#store, key, path)
    } catch (error) {
      if (linked) await removeScratch(partial)
      throw error
    }
    // From here on the layer is stored, whatever becomes of the copy.
    if (!linked) return
    try {
      await this.#adopt(key, partial, size)
    } catch (error) {
      await removeScratch(partial)
      this.#log.warn({ err: error, layer: key }, 'a new layer could not be cached')
    }
    this.#trim()
  }

  async delete(key: string): Promise<void> {
    await this.#store.delete(key)
    this.forget(key)
  }

  /** Removes the copy of an object that nobody names any more. */
  forget(key: string): void {
    const copy = this.#copies.get(key)
    if (copy !== undefined) this.#discard(copy)
    this.#renewed.delete(key)
  }

  forgetAll(isGone: (key: string) => boolean): void {
    for (const key of [...this.#copies.keys(), ...this.#renewed]) if (isGone(key)) this.forget(key)
  }

  renew(layer: NamedLayer, path: string): boolean {
    const copy = this.#copies.get(layer.key)
    // Another reader has found out before, and there is a newer copy, or none.
    if (copy?.path !== path) return true
    if (this.#renewed.has(layer.key)) return false
    this.#renewed.add(layer.key)
    this.#log.warn({ layer: layer.key }, 'a cached layer is damaged; it is fetched again')
    this.#discard(copy)
    return true
  }

  /** Makes room for `more` bytes, as far as copies are not held. */
  #trim(more = 0): void {
    if (this.bytes + more <= this.#bytesMax) return
    for (const copy of this.#copies.values()) {
      if (this.bytes + more <= this.#bytesMax) return
      if (copy.holds > 0) continue
      this.evictions++
      this.#discard(copy)
    }
  }

  #discard(copy: Copy): void {
    this.#copies.delete(copy.key)
    this.bytes -= copy.bytes
    copy.gone = true
    if (copy.holds === 0) this.#remove(copy)
  }

  #remove(copy: Copy): void {
    const removal = truncate(copy.path, 0)
      .then(() => unlink(copy.path))
      .catch(error => this.#log.warn({ err: error, file: copy.path }, 'a cached layer could not be removed'))
    this.#removals.add(removal)
    void removal.then(() => this.#removals.delete(removal))
  }

  /** Waits for what is being removed; downloads end by themselves, or when the store is closed. */
  async close(): Promise<void> {
    await Promise.allSettled(this.#downloads.values())
    await Promise.all(this.#removals)
  }
}
