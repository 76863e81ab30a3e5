/**
 * Opens files of a datadir for somebody who may read more than the server: an agent that runs as root.
 *
 * The server's user, or whoever broke into the server, writes to the datadir. He can put a link to /etc/shadow where a
 * table is expected, before or after somebody looked, or a FIFO that lets nobody go who opens it. So what counts is asked
 * of the file that was opened, and of no path: it must be a regular file, and one that the server's user owns, whatever
 * links led there (a database on another disk, DATA DIRECTORY). A file of somebody else (root's `debian-10.11.flag`,
 * `mariadb_upgrade_info`) is taken where it lies in the datadir itself and has no other name.
 */
import { type BigIntStats, closeSync, constants, fstatSync, openSync, readlinkSync } from 'node:fs'
import { type FileHandle, lstat, open, realpath, stat } from 'node:fs/promises'
import { join } from 'node:path'
import { DatadirError, explainSystemError } from './errors.ts'

/** O_NONBLOCK: opening a FIFO must not wait for a writer. It changes nothing for regular files. */
const FLAGS = constants.O_RDONLY | constants.O_NONBLOCK | constants.O_NOCTTY
const ROOT_UID = 0n

/** Something stands where a file of the server's should, and was not read. */
export class ForeignFileError extends DatadirError {
  override name = 'ForeignFileError'
  /** A regular file, but somebody else's. */
  readonly isForeign: boolean

  constructor(path: string, message: string, isForeign = false) {
    super(path, message)
    this.isForeign = isForeign
  }
}

/** Whose files a datadir holds. Plain values, so that a thread can be given them. */
export interface ServerFiles {
  /** The datadir, without symbolic links. */
  readonly root: string
  /** User id of the server. */
  readonly owner: bigint
}

/**
 * The server's user is whom the datadir belongs to; if that is root, it may be a directory that root made for the
 * server, and then its system tablespace tells.
 * @throws DatadirError
 */
export async function serverFilesOf(datadir: string): Promise<ServerFiles> {
  try {
    const root = await realpath(datadir)
    const { uid } = await stat(root, { bigint: true })
    if (uid !== ROOT_UID) return { root, owner: uid }
    const system = await lstat(join(root, 'ibdata1'), { bigint: true }).catch(() => undefined)
    return { root, owner: system?.uid ?? ROOT_UID }
  } catch (error) {
    throw explainSystemError(datadir, error)
  }
}

/**
 * Opens a file for reading.
 * @param files whose it has to be; of anybody if nothing is said
 * @param follow whether it may be a symbolic link
 * @throws ForeignFileError if it is none of the server's, or a FIFO, a directory, …; what open(2) says otherwise
 */
export async function openServerFile(
  files: ServerFiles | undefined,
  path: string,
  follow = true,
): Promise<FileHandle> {
  const file = await open(path, follow ? FLAGS : FLAGS | constants.O_NOFOLLOW).catch(error => {
    throw explainOpen(path, error)
  })
  try {
    refuseForeign(path, await file.stat({ bigint: true }), file.fd, files)
    return file
  } catch (error) {
    await file.close()
    throw error
  }
}

/** The same at once, for a thread that does nothing else; symbolic links are not followed. @returns a file descriptor */
export function openServerFileSync(files: ServerFiles, path: string): number {
  let fd: number
  try {
    fd = openSync(path, FLAGS | constants.O_NOFOLLOW)
  } catch (error) {
    throw explainOpen(path, error)
  }
  try {
    refuseForeign(path, fstatSync(fd, { bigint: true }), fd, files)
    return fd
  } catch (error) {
    closeSync(fd)
    throw error
  }
}

function refuseForeign(path: string, info: BigIntStats, fd: number, files: ServerFiles | undefined): void {
  if (!info.isFile()) throw new ForeignFileError(path, 'is no regular file')
  if (files === undefined) return
  const { root, owner } = files
  // Who reads as the server's user reads nothing that the server could not.
  if (info.uid === owner || owner === ROOT_UID || process.geteuid?.() === Number(owner)) return
  if (info.nlink === 1n && placeOf(fd).startsWith(`${root}/`)) return
  throw new ForeignFileError(
    path,
    `is a link to a file of another user (${info.uid}; the datadir belongs to user ${owner}), which is not read: ` +
      'if it is a table of the server, give it to its user (chown)',
    true,
  )
}

/** Where an open file lies, as the kernel knows it; '' where that cannot be asked. */
function placeOf(fd: number): string {
  try {
    return readlinkSync(`/proc/self/fd/${fd}`)
  } catch {
    return ''
  }
}

/** What open(2) says of sockets, and of links in a circle or those that are not to be followed. */
function explainOpen(path: string, error: unknown): unknown {
  const { code } = error as NodeJS.ErrnoException
  if (code === 'ENXIO') return new ForeignFileError(path, 'is no regular file')
  if (code === 'ELOOP') return new ForeignFileError(path, 'is a symbolic link that is not followed')
  return error
}
