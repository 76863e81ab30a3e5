/**
 * Whether a server runs on a datadir: mariadbd holds a lock on ibdata1 (`os_file_lock`, os0file.cc), and Linux lists
 * locks with their owners. Where that list says nothing (other systems, other machines, other containers), nobody is told.
 */
import { readFile, stat } from 'node:fs/promises'
import { join } from 'node:path'
import { DatadirError } from './errors.ts'

/** Lines like `1: POSIX  ADVISORY  WRITE 1234 08:01:131077 0 EOF`. */
const LOCK = /^\d+: +POSIX +\S+ +WRITE +(\d+) +([0-9a-f]+):([0-9a-f]+):(\d+) /gm

/** @throws DatadirError that says what to do instead */
export async function refuseRunningServer(datadir: string, advice: string): Promise<void> {
  const path = join(datadir, 'ibdata1')
  let locks: string
  let dev: number
  let ino: bigint
  try {
    locks = await readFile('/proc/locks', 'utf8')
    const info = await stat(path, { bigint: true })
    dev = Number(info.dev)
    ino = info.ino
  } catch {
    return
  }
  // `makedev` of glibc, as far as 32 bits go.
  const major = (dev >>> 8) & 0xfff
  const minor = (dev & 0xff) | ((dev >>> 12) & 0xfff00)
  for (const [, pid, lockMajor, lockMinor, inode] of locks.matchAll(LOCK))
    if (
      BigInt(inode!) === ino &&
      Number.parseInt(lockMajor!, 16) === major &&
      Number.parseInt(lockMinor!, 16) === minor
    )
      throw new DatadirError(datadir, `a server (process ${pid}) runs on this datadir; ${advice}`)
}
