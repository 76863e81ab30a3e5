/** `--data` of the servers: the folder is there and can be used, or one line says why not, before anything listens or is made. */
import { accessSync, constants, mkdirSync, statSync } from 'node:fs'
import { dirname, resolve } from 'node:path'
import { invalidError, type PalimpsestError } from '../shared/errors.ts'
import { DATA_DIRECTORY_MODE } from '../shared/file-modes.ts'

/** @throws PalimpsestError of kind invalid that names the folder and says what to do */
export function makeDataFolder(wanted: string): void {
  const path = resolve(wanted)
  // One after the other: on file systems where nothing can be made (/proc), `recursive` never comes back.
  const missing: string[] = []
  let at = path
  for (; ; at = dirname(at)) {
    try {
      if (!statSync(at).isDirectory()) throw unusable(path, `${at} is a file`, 'give a directory')
      break
    } catch (error) {
      const { code } = error as NodeJS.ErrnoException
      // What ENOTDIR is about is found further up.
      if (code !== 'ENOENT' && code !== 'ENOTDIR') throw explain(path, at, error, 'look into')
      missing.push(at)
    }
  }
  for (const each of missing.reverse())
    try {
      mkdirSync(each, { mode: DATA_DIRECTORY_MODE })
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw explain(path, each, error, 'make')
    }
  try {
    accessSync(path, constants.R_OK | constants.W_OK | constants.X_OK)
  } catch (error) {
    throw explain(path, path, error, 'read and write')
  }
}

function unusable(path: string, why: string, advice: string): PalimpsestError {
  return invalidError(`the data folder ${path} cannot be used: ${why}; ${advice}`)
}

function explain(path: string, at: string, error: unknown, doing: string): unknown {
  const { code } = error as NodeJS.ErrnoException
  switch (code) {
    case undefined:
      return error
    case 'EACCES':
    case 'EPERM':
      return unusable(
        path,
        `this user may not ${doing} ${at}`,
        'give another --data, or make it and give it to this user (chown)',
      )
    case 'EROFS':
      return unusable(path, 'the file system is read-only', 'give another --data, or mount it for writing')
    case 'ENOSPC':
    case 'EDQUOT':
      return unusable(path, 'no space is left on that disk', 'make room, or give another --data')
    case 'ENOENT':
      return unusable(path, `nothing can be made in ${dirname(at)}`, 'give a --data on a disk')
    default:
      return unusable(path, (error as Error).message, 'give another --data')
  }
}
