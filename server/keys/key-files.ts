/** Files with secrets: made whole or not at all, mode 0600, never over another file unless asked to. */
import { randomBytes } from 'node:crypto'
import { constants } from 'node:fs'
import { type FileHandle, link, mkdir, open, rename, rm } from 'node:fs/promises'
import { dirname } from 'node:path'
import { invalidError, type PalimpsestError } from '../shared/errors.ts'

export const PRIVATE = 0o600
export const PUBLIC = 0o644

export function existsAlready(file: string): PalimpsestError {
  return invalidError(`${file} exists already; it is not overwritten. Move it away, or choose another name`)
}

/**
 * Writes a file under a temporary name and gives it its own. @throws PalimpsestError of kind invalid if it is there
 * already and `replace` is not set
 */
export async function writeNew(file: string, text: string, mode: number, replace = false): Promise<void> {
  await mkdir(dirname(file), { recursive: true })
  const temporary = `${file}.${randomBytes(6).toString('hex')}.tmp`
  let handle: FileHandle | undefined
  try {
    handle = await open(temporary, constants.O_WRONLY | constants.O_CREAT | constants.O_EXCL, mode)
    // The umask may have taken something away; it must not have added anything.
    await handle.chmod(mode)
    await handle.writeFile(text)
    await handle.sync()
    await handle.close()
    handle = undefined
    if (replace) await rename(temporary, file)
    else await link(temporary, file)
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'EEXIST') throw existsAlready(file)
    throw error
  } finally {
    await handle?.close()
    await rm(temporary, { force: true })
  }
}
