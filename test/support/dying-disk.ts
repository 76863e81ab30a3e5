/** A disk that is there up to some operation, for tests that cut a command short wherever that is possible. */
import type { Disk } from '../../server/shared/seams.ts'

/** Lets `left` operations through, then fails all: the process is killed there. */
export function dying(disk: Disk, left: number): { disk: Disk; count: () => number } {
  let done = 0
  const step = () => {
    if (++done > left) throw new Error('killed')
  }
  return {
    count: () => done,
    disk: {
      open: async (path, how) => {
        if (how === 'create') step()
        const file = await disk.open(path, how)
        return {
          ...file,
          write: async (buffers, position) => {
            step()
            await file.write(buffers, position)
          },
          datasync: async () => {
            step()
            await file.datasync()
          },
        }
      },
      readFile: path => disk.readFile(path),
      list: dir => disk.list(dir),
      exists: path => disk.exists(path),
      makeDir: dir => disk.makeDir(dir),
      rename: async (from, to) => {
        step()
        await disk.rename(from, to)
      },
      remove: async path => {
        step()
        await disk.remove(path)
      },
      syncDir: async dir => {
        step()
        await disk.syncDir(dir)
      },
    },
  }
}
