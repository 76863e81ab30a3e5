/**
 * Reading the files that prove who somebody is, or say whom to believe. A private key or a token that everybody on the machine
 * can read proves nothing, and a file of CAs or public keys that everybody can write lets everybody in; both are refused, as
 * OpenSSH does. The group may have rights: that is how secret stores hand out what belongs to root.
 */
import { closeSync, fstatSync, openSync, readFileSync } from 'node:fs'
import { invalidError } from './errors.ts'

/** Bundles of CAs have some hundred kilobytes. */
const FILE_BYTES_MAX = 4 * 1024 * 1024
const OTHERS_READ_OR_WRITE = 0o006
const OTHERS_WRITE = 0o002

/** A private key, a token. @throws PalimpsestError of kind invalid that names the file and says what to do */
export function readSecret(file: string, what: string): Buffer {
  return read(file, what, OTHERS_READ_OR_WRITE)
}

/** Certificates, public keys, hashes: anybody may read them. @throws PalimpsestError as `readSecret` */
export function readPublic(file: string, what: string): Buffer {
  return read(file, what, OTHERS_WRITE)
}

function read(file: string, what: string, forbidden: number): Buffer {
  let fd: number | undefined
  try {
    fd = openSync(file, 'r')
    // Of what was opened, whatever the name stands for by now.
    const stats = fstatSync(fd)
    const { size, mode } = stats
    if (size > FILE_BYTES_MAX)
      throw invalidError(`the ${what} ${file} has ${size} bytes: that is something else`)
    // A pipe is whoever's who opened it: `--token-file <(pass show …)`.
    if (stats.isFile() && (mode & forbidden) !== 0) {
      const may = (mode & forbidden & OTHERS_WRITE) !== 0 ? 'change' : 'read'
      const octal = (mode & 0o777).toString(8).padStart(4, '0')
      throw invalidError(
        `everybody on this machine may ${may} the ${what} ${file} (mode ${octal}): chmod o-rwx ${file}`,
      )
    }
    return readFileSync(fd)
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException
    if (code === undefined) throw error
    throw invalidError(`cannot read the ${what} ${file}: ${code}`)
  } finally {
    if (fd !== undefined) closeSync(fd)
  }
}
