/**
 * The directory that an export writes to. Often it is root who exports, and to a place that others can write to: /tmp,
 * somebody's home, a directory that belongs to the server's user already. These must not be able to plant a link in the way
 * (a database "mysql" that leads to /etc). So
 *
 *   1. the directory is made for its owner alone or, if it is there, taken: nobody else may write to it from then on,
 *   2. and only then is looked whether it is empty;
 *   3. it is held open, and all of its files are reached through that handle, so that it does not matter who renames it, or
 *      one of the directories above.
 */
import { constants, existsSync } from 'node:fs'
import { type FileHandle, lstat, mkdir, open, readdir, rm, rmdir, stat } from 'node:fs/promises'
import { dirname, join, resolve } from 'node:path'
import { DatadirError, explainSystemError, isMissing } from './errors.ts'

const DIRECTORY_MODE = 0o700
/** Group and others may write. */
const SHARED = 0o022
const PERMISSIONS = 0o7777

interface Permissions {
  readonly uid: number
  readonly gid: number
  readonly mode: number
}

export class OutDirectory {
  /** As it was asked for, absolute. */
  readonly path: string
  /** The way to its files. */
  readonly inside: string
  readonly #handle: FileHandle
  /** What it was like, if it was there. */
  readonly #before: Permissions | undefined

  private constructor(path: string, handle: FileHandle, before: Permissions | undefined) {
    this.path = path
    this.#handle = handle
    this.#before = before
    const byHandle = `/proc/self/fd/${handle.fd}`
    this.inside = existsSync(byHandle) ? byHandle : path
  }

  /**
   * Makes the directory, or takes one that is empty.
   * @throws DatadirError, with everything as it was
   */
  static async claim(wanted: string): Promise<OutDirectory> {
    const path = resolve(wanted)
    await refuseWithinDatadir(path)
    const isNew = await makeDirectory(path)
    const handle = await openDirectory(path, isNew)
    const info = await handle.stat()
    const out = new OutDirectory(path, handle, isNew ? undefined : info)
    try {
      if (!isNew) await out.#refuseUsed()
      await out.#take(info)
      await out.#refuseUsed()
      return out
    } catch (error) {
      await out.#giveBack().catch(() => {})
      await handle.close()
      throw explainSystemError(path, error)
    }
  }

  async #refuseUsed(): Promise<void> {
    if ((await readdir(this.inside)).length > 0)
      throw new DatadirError(
        this.path,
        'is not empty; give a directory that does not exist yet, or an empty one',
      )
  }

  async #take({ uid, mode }: Permissions): Promise<void> {
    const self = process.geteuid?.() ?? uid
    if (uid !== self) {
      // With root_squash and the like, what root makes is not root's.
      if (self !== 0 || this.#before === undefined)
        throw new DatadirError(
          this.path,
          `belongs to another user (${uid}), who could change what is written there; give a directory that does not exist yet, or run this as that user`,
        )
      await this.#handle.chown(self, this.#before.gid)
    }
    if ((mode & SHARED) !== 0) await this.#handle.chmod(mode & PERMISSIONS & ~SHARED)
  }

  /** Leaves it as it was, if it was there, or not at all. */
  async #giveBack(): Promise<void> {
    if (this.#before === undefined) return await rmdir(this.path)
    const { uid, gid, mode } = this.#before
    const now = await this.#handle.stat()
    if (now.uid !== uid) await this.#handle.chown(uid, gid)
    if (now.mode !== mode) await this.#handle.chmod(mode & PERMISSIONS)
  }

  async sync(): Promise<void> {
    await this.#handle.sync()
    const above = await open(dirname(this.path), 'r')
    await above.sync().finally(() => above.close())
  }

  /** What was written stays. */
  async close(): Promise<void> {
    await this.#handle.close()
  }

  /** Removes what was written. */
  async discard(): Promise<void> {
    try {
      for (const name of await readdir(this.inside))
        await rm(join(this.inside, name), { recursive: true, force: true })
      await this.#giveBack()
    } finally {
      await this.#handle.close()
    }
  }
}

/** A directory in the datadir is a database to the server, and its tables would be there twice. */
async function refuseWithinDatadir(path: string): Promise<void> {
  for (let at = dirname(path); at !== dirname(at); at = dirname(at))
    if (
      await lstat(join(at, 'ibdata1')).then(
        () => true,
        () => false,
      )
    )
      throw new DatadirError(path, `lies within the datadir ${at}; give a directory elsewhere`)
}

async function openDirectory(path: string, isNew: boolean): Promise<FileHandle> {
  try {
    const link = await lstat(path)
    const isOurs = link.uid === 0 || link.uid === process.geteuid?.()
    if (link.isSymbolicLink() && (isNew || !isOurs))
      throw new DatadirError(
        path,
        `is a symbolic link of another user (${link.uid}), which is not followed; give another directory`,
      )
    return await open(path, constants.O_RDONLY | constants.O_DIRECTORY | (isNew ? constants.O_NOFOLLOW : 0))
  } catch (error) {
    throw explainSystemError(path, error)
  }
}

/**
 * Not with `recursive`: on file systems where nothing can be made (/proc), that never comes back.
 * @returns whether it was not there before
 */
async function makeDirectory(path: string): Promise<boolean> {
  const missing: string[] = []
  for (let at = path; ; at = dirname(at)) {
    const exists = await stat(at).then(
      () => true,
      error => {
        if (isMissing(error)) return false
        throw explainSystemError(at, error)
      },
    )
    if (exists) break
    missing.push(at)
  }
  for (const directory of missing.reverse())
    try {
      await mkdir(directory, { mode: DIRECTORY_MODE })
    } catch (error) {
      const { code } = error as NodeJS.ErrnoException
      // Somebody else was quicker.
      if (code === 'EEXIST' && directory !== path) continue
      throw cannotMake(directory, error)
    }
  return missing.length > 0
}

function cannotMake(path: string, error: unknown): Error {
  const { code } = error as NodeJS.ErrnoException
  if (code === 'EEXIST')
    return new DatadirError(path, 'cannot be made: there is a link to nothing; give another directory')
  if (code === 'ENOENT') return new DatadirError(path, 'cannot be made there; give a directory on a disk')
  if (code === 'EACCES' || code === 'EPERM' || code === 'EROFS')
    return new DatadirError(
      path,
      'may not be made there; choose another place, or run this as a user that may write to it',
    )
  return explainSystemError(path, error)
}
