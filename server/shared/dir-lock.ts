/**
 * One process per data directory: an exclusive lock of the kernel's on its file `LOCK`, which ends with the process however
 * that ends. There are no stale locks, so nobody ever has to judge whether one is, and take it away.
 *
 * Node.js has no flock(2). But a lock of that kind belongs to the open file, not to the process: whoever inherits the
 * descriptor can take it for us. So the program `flock` (util-linux, BusyBox) is run with our descriptor, and the lock stays
 * when it has gone. macOS takes the lock in open(2) itself.
 *
 *     1. open LOCK, made if missing. 2. lock it, or fail: another process has it. 3. Is this file still the one named LOCK?
 *     If not, somebody released it meanwhile, who removes the name before he lets go of the file: again from 1.
 *     4. write who we are into it, for people.
 *
 * Weighed. A file with a process id, taken over when that process is gone: two that find it so at the same moment can both
 * remove it, the second the first one's; files of unique names that are claimed and then compared would mend that, but in
 * another container (another pid namespace) the ids of living processes mean nothing. An abstract Unix socket ends with
 * its process, too, but is seen only within one network namespace. A helper process that holds the lock outlives us for a
 * moment. node:sqlite locks files by fcntl(2), and is experimental. The lock of an inode holds across containers on one
 * machine, and on NFS across machines.
 *
 * LOCK holds `PID START flock`: process, and when it began. Without the last word an older version wrote it, which locked
 * nothing: then the living process that it names is the owner.
 */
import { spawnSync } from 'node:child_process'
import {
  closeSync,
  constants,
  fstatSync,
  ftruncateSync,
  mkdirSync,
  openSync,
  readFileSync,
  rmSync,
  statSync,
  writeSync,
} from 'node:fs'
import { join } from 'node:path'
import { internalError, invalidError, type PalimpsestError } from './errors.ts'
import { DATA_DIRECTORY_MODE, DATA_FILE_MODE } from './file-modes.ts'

/** The names of a file that others release come and go only so often. */
const ATTEMPTS_MAX = 100
/** Of macOS and the BSDs, fcntl.h: open(2) takes the lock as well. */
const O_EXLOCK = 0x20
const LOCKS_IN_OPEN = process.platform === 'darwin' || process.platform === 'freebsd'
/** Exit code of `flock -n` where another has the lock. */
const CONFLICT = 1
const LOCKED = 'flock'

/**
 * Takes the directory (made if missing) for this process. Throws kind invalid if another, or another part of this one, has
 * it, and internal if files cannot be locked here. Gives the release.
 */
export function lockDirectory(directory: string): () => void {
  mkdirSync(directory, { recursive: true, mode: DATA_DIRECTORY_MODE })
  const path = join(directory, 'LOCK')
  for (let attempt = 0; attempt < ATTEMPTS_MAX; attempt++) {
    const fd = openLocked(directory, path)
    try {
      if (!isNamed(fd, path)) {
        closeSync(fd)
        continue
      }
      const owner = livingOwner(path)
      if (owner !== undefined && !owner.isLocked) throw inUse(directory, owner.pid)
      ftruncateSync(fd)
      writeSync(fd, `${process.pid} ${startOf(process.pid) ?? '?'} ${LOCKED}\n`, 0)
    } catch (error) {
      closeSync(fd)
      throw error
    }
    return once(() => {
      // In this order: whoever opened it by this name, and locks it when we let go, sees that the name is gone.
      rmSync(path, { force: true })
      closeSync(fd)
    })
  }
  throw internalError(`${path} is removed as often as it is made: is something cleaning ${directory} up?`)
}

/** The living process that has the directory, as its lock file says; undefined if none has. Changes nothing. */
export function directoryOwner(directory: string): number | undefined {
  return livingOwner(join(directory, 'LOCK'))?.pid
}

function inUse(directory: string, pid: number | undefined): PalimpsestError {
  const whom = pid === undefined ? 'another process' : pid === process.pid ? 'this process' : `process ${pid}`
  return invalidError(`${directory} is in use by ${whom}; stop it, or choose another directory`)
}

/** A descriptor of LOCK, on which we have the lock. */
function openLocked(directory: string, path: string): number {
  const flags = constants.O_RDWR | constants.O_CREAT
  if (LOCKS_IN_OPEN)
    try {
      return openSync(path, flags | O_EXLOCK | constants.O_NONBLOCK, DATA_FILE_MODE)
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'EAGAIN') throw error
      throw inUse(directory, readOwner(path)?.pid)
    }
  const fd = openSync(path, flags, DATA_FILE_MODE)
  const { status, error, stderr } = spawnSync('flock', ['-x', '-n', '3'], {
    stdio: ['ignore', 'ignore', 'pipe', fd],
    encoding: 'utf8',
  })
  if (status === 0) return fd
  const holder = status === CONFLICT ? readOwner(path)?.pid : undefined
  closeSync(fd)
  if (status === CONFLICT) throw inUse(directory, holder)
  if ((error as NodeJS.ErrnoException | undefined)?.code === 'ENOENT')
    throw internalError(
      `${directory} cannot be locked: there is no program "flock" here; install util-linux (or BusyBox)`,
    )
  throw internalError(
    `${path} cannot be locked: ${stderr?.trim() || error?.message || `flock ended with ${status}`}`,
    error,
  )
}

function isNamed(fd: number, path: string): boolean {
  const mine = fstatSync(fd)
  const named = statSync(path, { throwIfNoEntry: false })
  return named !== undefined && named.ino === mine.ino && named.dev === mine.dev
}

interface Owner {
  readonly pid: number
  readonly start: string
  /** It locked the file: once the lock is free, it is gone, whatever goes by its id now. */
  readonly isLocked: boolean
}

function readOwner(path: string): Owner | undefined {
  let text: string
  try {
    text = readFileSync(path, 'utf8')
  } catch {
    return undefined
  }
  const [pidText = '', start = '', how] = text.trim().split(' ')
  const pid = Number(pidText)
  return Number.isSafeInteger(pid) && pid > 0 ? { pid, start, isLocked: how === LOCKED } : undefined
}

/** The process that the file names, if it lives and is not this one. */
function livingOwner(path: string): Owner | undefined {
  const owner = readOwner(path)
  if (owner === undefined || owner.pid === process.pid) return undefined
  try {
    process.kill(owner.pid, 0)
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ESRCH') return undefined
  }
  // Another process may go by that id now.
  const now = startOf(owner.pid)
  return /^[0-9]+$/.test(owner.start) && now !== undefined && now !== owner.start ? undefined : owner
}

/** When a process started, in the kernel's ticks since boot (field 22 of /proc/PID/stat); undefined where there is no /proc. */
function startOf(pid: number): string | undefined {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, 'utf8')
    return stat.slice(stat.lastIndexOf(')') + 2).split(' ')[19]
  } catch {
    return undefined
  }
}

function once(run: () => void): () => void {
  let isDone = false
  return () => {
    if (isDone) return
    isDone = true
    run()
  }
}
