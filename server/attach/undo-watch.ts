/**
 * Notices that the set of undo tablespaces changed.
 *
 * innodb_undo_tablespaces may have another value at each start of the server. It then deletes the undo tablespaces and
 * makes new ones under the same names with new ids (srv_undo_tablespaces_reinit, srv0start.cc), and no FILE_ record tells:
 * recovery finds these files by their names. All their pages are in the redo log, so it is enough to tell the page
 * server that they exist.
 */
import { readdir, stat } from 'node:fs/promises'
import { join } from 'node:path'
import { explainSystemError, isMissing } from '../datadir/errors.ts'
import { isUndoName, type SpaceFile, scanTable } from '../datadir/scan.ts'

const LOOK_MS = 200

export class UndoWatch {
  readonly #datadir: string
  #settled: string | undefined
  #lookedAt = Number.NEGATIVE_INFINITY

  constructor(datadir: string) {
    this.#datadir = datadir
  }

  /** Looks at most every LOOK_MS. True if there are other files than when `settle` was last called. */
  async changed(): Promise<boolean> {
    const now = performance.now()
    if (now - this.#lookedAt < LOOK_MS) return false
    this.#lookedAt = now
    return (await this.#signature()) !== this.#settled
  }

  /** The undo tablespaces; undefined while one of them is still blank. Then `changed` goes on being true. */
  async settle(): Promise<SpaceFile[] | undefined> {
    const signature = await this.#signature()
    const found: SpaceFile[] = []
    for (const name of await this.#names()) {
      const file = await scanTable(this.#datadir, name, false)
      if (!file) return undefined
      found.push(file)
    }
    if ((await this.#signature()) !== signature) return undefined
    this.#settled = signature
    return found
  }

  /** What was settled has to be looked at once more. */
  unsettle(): void {
    this.#settled = undefined
  }

  async #names(): Promise<string[]> {
    try {
      return (await readdir(this.#datadir)).filter(isUndoName).sort()
    } catch (error) {
      throw explainSystemError(this.#datadir, error)
    }
  }

  async #signature(): Promise<string> {
    const parts: string[] = []
    for (const name of await this.#names())
      try {
        parts.push(`${name}:${(await stat(join(this.#datadir, name), { bigint: true })).ino}`)
      } catch (error) {
        if (!isMissing(error)) throw error
      }
    return parts.join(' ')
  }
}
