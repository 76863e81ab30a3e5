/** A small file system for each node, which can be filled without filling the machine's. */
import { appendFileSync, mkdirSync, rmSync, statfsSync } from 'node:fs'
import { join } from 'node:path'
import { command } from './process.ts'

const FILLER = 'filler'

export class SmallDisk {
  readonly dir: string

  private constructor(dir: string) {
    this.dir = dir
  }

  /** An ext4 image of `bytes`, mounted at `dir`, in the mount namespace of this process. */
  static async mount(dir: string, bytes: number): Promise<SmallDisk> {
    const image = `${dir}.img`
    mkdirSync(dir, { recursive: true })
    await command('truncate', '-s', String(bytes), image)
    await command('mkfs.ext4', '-q', '-m', '0', image)
    await command('mount', '-o', 'loop,discard', image, dir)
    return new SmallDisk(dir)
  }

  async unmount(): Promise<void> {
    await command('umount', this.dir)
    rmSync(`${this.dir}.img`, { force: true })
  }

  /** Takes the last byte. */
  async fill(): Promise<void> {
    const { bavail, bsize } = statfsSync(this.dir)
    const file = join(this.dir, FILLER)
    // What the node writes meanwhile may leave less than was there a moment ago.
    await command('fallocate', '-l', String(Math.max(bsize, bavail * bsize - (8 << 20))), file).catch(
      () => {},
    )
    for (const bytes of [1 << 20, 1 << 12])
      try {
        for (;;) appendFileSync(file, Buffer.alloc(bytes))
      } catch (error) {
        if ((error as NodeJS.ErrnoException).code !== 'ENOSPC') throw error
      }
  }

  free(): void {
    rmSync(join(this.dir, FILLER), { force: true })
  }
}
