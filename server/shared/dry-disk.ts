/** A disk on which nothing changes: what is there is read, what would be written, renamed or removed is not, and nobody is told. */
import type { Disk, DiskFile } from './seams.ts'

const NOWHERE: DiskFile = {
  write: async () => {},
  read: async () => 0,
  datasync: async () => {},
  size: async () => 0,
  close: async () => {},
}

/** For looks at folders with the very code that would put in order what it meets: it meets it again the next time. */
export function dryDisk(disk: Disk): Disk {
  return {
    open: async (path, how) => (how === 'read' ? disk.open(path, 'read') : NOWHERE),
    readFile: path => disk.readFile(path),
    list: dir => disk.list(dir),
    exists: path => disk.exists(path),
    makeDir: async () => {},
    rename: async () => {},
    remove: async () => {},
    syncDir: async () => {},
  }
}
