/**
 * Space that is given up when the disk is full, so that what must go on (no-ops, memberships, votes, cuts, deletions) finds
 * some. It is a file of zeros; to give it up is to remove it.
 */
import { join } from 'node:path'
import type { Disk } from '../../shared/seams.ts'
import { writeZeros } from './segment-file.ts'

export const RESERVE_NAME = 'reserve'
const PROBE_BYTES_MAX = 16 * 1024 * 1024

export function isNoSpace(error: unknown): boolean {
  const code = (error as NodeJS.ErrnoException | undefined)?.code
  return code === 'ENOSPC' || code === 'EDQUOT'
}

export class Reserve {
  readonly #disk: Disk
  readonly #dir: string
  readonly #bytes: number
  #held = false

  constructor(disk: Disk, dir: string, bytes: number) {
    this.#disk = disk
    this.#dir = dir
    this.#bytes = bytes
  }

  get wanted(): boolean {
    return this.#bytes > 0
  }

  /** Takes the space if it is not held. Throws what the disk says. */
  async hold(): Promise<void> {
    if (this.#held) return
    const path = join(this.#dir, RESERVE_NAME)
    if (await this.#disk.exists(path)) {
      const file = await this.#disk.open(path, 'read')
      const size = await file.size().finally(() => file.close())
      if (size === this.#bytes) {
        this.#held = true
        return
      }
      await this.#disk.remove(path)
    }
    const temporary = join(this.#dir, 'reserve.tmp')
    await writeZeros(this.#disk, temporary, this.#bytes, true)
    await this.#disk.rename(temporary, path)
    await this.#disk.syncDir(this.#dir)
    this.#held = true
  }

  /** Gives it up. False if there was nothing to give. */
  async release(): Promise<boolean> {
    if (!this.#held) return false
    this.#held = false
    await this.#disk.remove(join(this.#dir, RESERVE_NAME))
    await this.#disk.syncDir(this.#dir)
    return true
  }

  /** Whether there is room for the reserve and a good deal more: less would soon be full again. */
  async regained(): Promise<boolean> {
    try {
      await this.hold()
      const probe = join(this.#dir, 'probe.tmp')
      await writeZeros(this.#disk, probe, Math.min(PROBE_BYTES_MAX, this.#bytes * 2), true)
      await this.#disk.remove(probe)
      return true
    } catch (error) {
      if (isNoSpace(error)) return false
      throw error
    }
  }
}
