/**
 * One process per data directory.
 *
 * Node.js has no flock(2), so the lock is a file `LOCK` with the owner's process id and the moment at which that process
 * started. A lock whose process is gone, or whose id now belongs to a process that started at another moment, is stale.
 */
import { linkSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { invalidError } from './errors.ts'

/** Takes the directory (made if missing) for this process. Throws kind invalid if a living process has it. Gives the release. */
export function lockDirectory(directory: string): () => void {
  mkdirSync(directory, { recursive: true })
  const path = join(directory, 'LOCK')
  const draft = `${path}.${process.pid}`
  writeFileSync(draft, `${process.pid} ${startOf(process.pid) ?? ''}\n`)
  try {
    for (let attempt = 0; ; attempt++) {
      try {
        // link() fails where the name exists: of two processes that found a stale lock, one wins.
        linkSync(draft, path)
        return () => rmSync(path, { force: true })
      } catch (error) {
        if ((error as NodeJS.ErrnoException).code !== 'EEXIST' || attempt === 3) throw error
      }
      const owner = ownerOf(path)
      if (owner !== undefined)
        throw invalidError(`${directory} is in use by process ${owner}; stop it, or choose another directory`)
      rmSync(path, { force: true })
    }
  } finally {
    rmSync(draft, { force: true })
  }
}

/** The living process, other than this one, that has the directory; undefined if none has. Changes nothing. */
export function directoryOwner(directory: string): number | undefined {
  return ownerOf(join(directory, 'LOCK'))
}

/** The living process that the lock names. */
function ownerOf(path: string): number | undefined {
  let text: string
  try {
    text = readFileSync(path, 'utf8')
  } catch {
    return undefined
  }
  const [pidText = '', start = ''] = text.trim().split(' ')
  const pid = Number(pidText)
  if (!Number.isSafeInteger(pid) || pid <= 0 || pid === process.pid) return undefined
  try {
    process.kill(pid, 0)
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ESRCH') return undefined
  }
  const startNow = startOf(pid)
  return start !== '' && startNow !== undefined && startNow !== start ? undefined : pid
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
