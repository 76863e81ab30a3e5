/**
 * The object store in a directory of a local (or shared POSIX) file system.
 *
 * How an object comes into being, so that it is there in full or not at all, and has one creator:
 *
 *     1. its bytes go to a file of their own in `.tmp/`, which is synced
 *     2. link() gives that file the object's name; it fails if the name exists, so of two creators one loses
 *     3. the directory is synced, and the directories above it that were made for it
 *     4. the name in `.tmp/` is removed
 *
 * A crash before 2 leaves a file in `.tmp/`, removed when it is an hour old by whoever has the store open. A crash between 2
 * and 3 leaves an object or none; nobody was told that it exists. Whoever loses at step 2 syncs the directory too
 * before saying so, for the winner may not have come to its step 3.
 *
 * A sync that failed with an I/O error is not repeated as if nothing had happened: the system may have thrown away what it
 * could not write, and says so once. Nothing more is put until the process was started anew.
 */
import { constants } from 'node:fs'
import { copyFile, link, mkdir, open, readdir, readFile, stat, unlink } from 'node:fs/promises'
import { dirname, join, resolve } from 'node:path'
import { internalError, invalidError, type PalimpsestError, retryError } from './errors.ts'
import { DATA_DIRECTORY_MODE, DATA_FILE_MODE } from './file-modes.ts'
import {
  checkObjectKey,
  checkObjectPrefix,
  type ObjectInfo,
  type ObjectReader,
  type ObjectStore,
} from './object-store.ts'

const SCRATCH = '.tmp'
/** Older scratch files belong to nobody: no put takes that long. */
const SCRATCH_AGE_MS_MAX = 3_600_000

export interface LocalObjectStoreOptions {
  /** Age at which a scratch file belongs to nobody any more. */
  readonly scratchAgeMs?: number
  /** For tests: called before each step of a put, and may throw as a crash would. */
  readonly failpoint?: (step: 'write' | 'sync' | 'link' | 'sync-directory' | 'unlink', key: string) => void
}

export class LocalObjectStore implements ObjectStore {
  readonly description: string
  readonly #root: string
  readonly #failpoint: NonNullable<LocalObjectStoreOptions['failpoint']>
  #scratchNumber = 0
  /** A sync failed. */
  #broken: PalimpsestError | undefined
  readonly #scratchName: string
  /** Files that are put lie on another file system, as the first one has shown. */
  #isFar = false
  #sweep: NodeJS.Timeout | undefined
  /** Directories known to exist and to be durable. Only a hint: they are made again where they turn out to be gone. */
  readonly #directories = new Set<string>()

  private constructor(root: string, options: LocalObjectStoreOptions) {
    this.#root = root
    this.description = `directory ${root}`
    this.#failpoint = options.failpoint ?? (() => {})
    this.#scratchName = `${process.pid}-${Date.now().toString(36)}-${Math.random().toString(36).slice(2, 10)}`
  }

  /** Opens the store, making the directory if need be. Several processes may have the same one open. */
  static async open(directory: string, options: LocalObjectStoreOptions = {}): Promise<LocalObjectStore> {
    const root = resolve(directory)
    try {
      await mkdir(join(root, SCRATCH), { recursive: true, mode: DATA_DIRECTORY_MODE })
      await syncDirectory(root)
      await removeOldScratch(join(root, SCRATCH), options.scratchAgeMs)
    } catch (error) {
      throw storeError(`object store ${root} cannot be opened`, error)
    }
    const store = new LocalObjectStore(root, options)
    // What other processes left; of those that crash again and again each leaves some.
    store.#sweep = setInterval(() => {
      removeOldScratch(join(root, SCRATCH), options.scratchAgeMs).catch(() => {})
    }, options.scratchAgeMs ?? SCRATCH_AGE_MS_MAX)
    store.#sweep.unref()
    return store
  }

  /** Opens what is there and changes nothing, not even what was left in `.tmp/`. */
  static async openToRead(directory: string): Promise<ObjectReader> {
    const root = resolve(directory)
    try {
      await readdir(root)
    } catch (error) {
      const code = errorCode(error)
      if (code === 'ENOENT') throw invalidError(`there is no object store ${root}: no such directory`)
      if (code === 'ENOTDIR') throw invalidError(`${root} is a file, no object store: give its directory`)
      if (code === 'EACCES' || code === 'EPERM')
        throw invalidError(`object store ${root} may not be read by this user: ${(error as Error).message}`)
      throw storeError(`object store ${root} cannot be read`, error)
    }
    return new LocalObjectStore(root, {})
  }

  localPath(key: string): string {
    return join(this.#root, checkObjectKey(key))
  }

  async putIfAbsent(key: string, bytes: Uint8Array): Promise<boolean> {
    const target = this.localPath(key)
    if (this.#broken !== undefined) throw this.#broken
    const scratch = this.#scratch()
    try {
      this.#failpoint('write', key)
      const file = await open(scratch, 'wx', DATA_FILE_MODE)
      try {
        await file.writeFile(bytes)
        this.#failpoint('sync', key)
        await file.sync()
      } finally {
        await file.close()
      }
      return await this.#publish(key, scratch, target)
    } catch (error) {
      throw this.#putError(`putting ${key} into ${this.description} failed`, error)
    } finally {
      await unlink(scratch).catch(() => {})
    }
  }

  async putFile(key: string, localPath: string): Promise<boolean> {
    const target = this.localPath(key)
    if (this.#broken !== undefined) throw this.#broken
    try {
      const created =
        (await this.#putNear(key, localPath, target)) ?? (await this.#putFar(key, localPath, target))
      this.#failpoint('unlink', key)
      if (created) await unlink(localPath)
      return created
    } catch (error) {
      throw this.#putError(`putting ${localPath} as ${key} into ${this.description} failed`, error)
    }
  }

  /** Undefined if the file is on another file system. */
  async #putNear(key: string, localPath: string, target: string): Promise<boolean | undefined> {
    if (this.#isFar) return undefined
    this.#failpoint('sync', key)
    await syncFile(localPath)
    try {
      return await this.#publish(key, localPath, target)
    } catch (error) {
      if (errorCode(error) !== 'EXDEV') throw error
      this.#isFar = true
      return undefined
    }
  }

  /** What is linked must lie on this file system. */
  async #putFar(key: string, localPath: string, target: string): Promise<boolean> {
    const scratch = this.#scratch()
    try {
      this.#failpoint('write', key)
      await copyFile(localPath, scratch, constants.COPYFILE_EXCL)
      this.#failpoint('sync', key)
      await syncFile(scratch)
      return await this.#publish(key, scratch, target)
    } finally {
      await unlink(scratch).catch(() => {})
    }
  }

  #putError(what: string, error: unknown): PalimpsestError {
    const known = storeError(what, error)
    if (errorCode(error) !== 'EIO') return known
    this.#broken ??= internalError(
      `${known.message}; look after the disk, then restart this server: until then nothing more is stored`,
      error,
    )
    return this.#broken
  }

  /** Steps 2 and 3. */
  async #publish(key: string, finished: string, target: string): Promise<boolean> {
    const directory = dirname(target)
    if (!this.#directories.has(directory)) await this.#makeDirectory(directory)
    this.#failpoint('link', key)
    let created = true
    try {
      await link(finished, target)
    } catch (error) {
      if (errorCode(error) === 'ENOENT') {
        // The directory was removed by somebody else since we last looked.
        await this.#makeDirectory(directory)
        await link(finished, target)
      } else if (errorCode(error) === 'EEXIST') created = false
      else throw error
    }
    this.#failpoint('sync-directory', key)
    await syncDirectory(directory)
    return created
  }

  async #makeDirectory(directory: string): Promise<void> {
    await mkdir(directory, { recursive: true, mode: DATA_DIRECTORY_MODE })
    for (let parent = dirname(directory); parent.length >= this.#root.length; parent = dirname(parent))
      await syncDirectory(parent)
    this.#directories.add(directory)
  }

  #scratch(): string {
    return join(this.#root, SCRATCH, `${this.#scratchName}-${this.#scratchNumber++}`)
  }

  async getFile(key: string, localPath: string): Promise<number | undefined> {
    const path = this.localPath(key)
    try {
      await copyFile(path, localPath, constants.COPYFILE_EXCL | constants.COPYFILE_FICLONE)
    } catch (error) {
      if (isAbsent(error) && (await this.head(key)) === undefined) return undefined
      throw storeError(`copying ${key} from ${this.description} to ${localPath} failed`, error)
    }
    try {
      await syncFile(localPath)
      return (await stat(localPath)).size
    } catch (error) {
      await unlink(localPath).catch(() => {})
      throw storeError(`copying ${key} from ${this.description} to ${localPath} failed`, error)
    }
  }

  async get(key: string): Promise<Buffer | undefined> {
    const path = this.localPath(key)
    try {
      return await readFile(path)
    } catch (error) {
      if (isAbsent(error)) return undefined
      throw storeError(`reading ${key} from ${this.description} failed`, error)
    }
  }

  async getRange(key: string, offset: number, length: number): Promise<Buffer | undefined> {
    const path = this.localPath(key)
    if (!Number.isSafeInteger(offset) || offset < 0 || !Number.isSafeInteger(length) || length < 0)
      throw internalError(`range ${offset}+${length} of ${key}`)
    try {
      await using file = await open(path, 'r')
      const size = (await file.stat()).size
      const wanted = Math.max(0, Math.min(length, size - offset))
      const buf = Buffer.allocUnsafeSlow(wanted)
      let got = 0
      while (got < wanted) {
        const { bytesRead } = await file.read(buf, got, wanted - got, offset + got)
        if (bytesRead === 0) break
        got += bytesRead
      }
      return buf.subarray(0, got)
    } catch (error) {
      if (isAbsent(error)) return undefined
      throw storeError(`reading ${key} from ${this.description} failed`, error)
    }
  }

  async head(key: string): Promise<number | undefined> {
    const path = this.localPath(key)
    try {
      const found = await stat(path)
      return found.isFile() ? found.size : undefined
    } catch (error) {
      if (isAbsent(error)) return undefined
      throw storeError(`looking for ${key} in ${this.description} failed`, error)
    }
  }

  async list(prefix: string): Promise<ObjectInfo[]> {
    const from = checkObjectPrefix(prefix)
    const found: ObjectInfo[] = []
    const visit = async (relative: string): Promise<void> => {
      let entries: import('node:fs').Dirent[]
      try {
        entries = await readdir(join(this.#root, relative), { withFileTypes: true })
      } catch (error) {
        if (isAbsent(error)) return
        throw storeError(`listing ${prefix} in ${this.description} failed`, error)
      }
      for (const entry of entries) {
        if (entry.name.startsWith('.')) continue
        const key = relative + entry.name
        if (entry.isDirectory()) await visit(`${key}/`)
        else if (entry.isFile()) {
          const bytes = await this.head(key)
          // Deleted meanwhile: then it is not there.
          if (bytes !== undefined) found.push({ key, bytes })
        }
      }
    }
    await visit(from)
    return found.sort((a, b) => (a.key < b.key ? -1 : a.key > b.key ? 1 : 0))
  }

  async delete(key: string): Promise<void> {
    const path = this.localPath(key)
    try {
      await unlink(path)
    } catch (error) {
      if (!isAbsent(error)) throw storeError(`deleting ${key} from ${this.description} failed`, error)
    }
  }

  close(): void {
    clearInterval(this.#sweep)
  }
}

/** Syncs a file that was copied or is about to become an object, and takes away what `DATA_FILE_MODE` does not allow. */
async function syncFile(path: string): Promise<void> {
  const file = await open(path, 'r+')
  try {
    const { mode } = await file.stat()
    if ((mode & 0o777 & ~DATA_FILE_MODE) !== 0)
      await file.chmod(mode & DATA_FILE_MODE).catch(error => {
        // Of a file system without modes, such as a share: who may read there says how it is mounted.
        if (errorCode(error) !== 'EPERM' && errorCode(error) !== 'ENOTSUP') throw error
      })
    await file.sync()
  } finally {
    await file.close()
  }
}

async function syncDirectory(path: string): Promise<void> {
  const directory = await open(path, 'r')
  try {
    await directory.sync()
  } finally {
    await directory.close()
  }
}

async function removeOldScratch(directory: string, ageMs = SCRATCH_AGE_MS_MAX): Promise<void> {
  for (const name of await readdir(directory)) {
    const path = join(directory, name)
    try {
      if (Date.now() - (await stat(path)).mtimeMs > ageMs) await unlink(path)
    } catch (error) {
      if (!isAbsent(error)) throw error
    }
  }
}

function errorCode(error: unknown): string | undefined {
  return (error as NodeJS.ErrnoException).code
}

function isAbsent(error: unknown): boolean {
  return errorCode(error) === 'ENOENT' || errorCode(error) === 'ENOTDIR'
}

/** Full disks and the like pass; what does not is internal. Our own errors stay what they are. */
function storeError(what: string, error: unknown): PalimpsestError {
  const code = errorCode(error)
  const text = `${what}: ${(error as Error).message}`
  if (code === 'ENOSPC' || code === 'EDQUOT') return retryError(`${text}; make room on the disk`, error)
  if (code === 'EMFILE' || code === 'ENFILE' || code === 'EAGAIN') return retryError(text, error)
  if (code === 'EACCES' || code === 'EPERM' || code === 'EROFS')
    return internalError(`${text}; give the process the right to write there`, error)
  return internalError(text, error)
}
