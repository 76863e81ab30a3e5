/** A disk that tells how long its syncs take, and what failed. */
import { DISK_SECONDS, type MetricsPart, NO_METRICS } from './metrics.ts'
import type { Disk, DiskFile } from './seams.ts'

/** The disk itself where nobody watches. */
export function meteredDisk(disk: Disk, part: MetricsPart): Disk {
  if (part === NO_METRICS) return disk
  const syncSeconds = part.histogram(
    'sync_seconds',
    'fdatasync of files, most of them of the log',
    DISK_SECONDS,
  )
  const errors = part.counter('disk_errors_total', 'operations on files that failed', ['code'])
  const failed = (error: unknown): never => {
    errors.add(1, (error as NodeJS.ErrnoException).code ?? 'unknown')
    throw error
  }
  const metered = (file: DiskFile): DiskFile => ({
    write: (buffers, position, pastCache) => file.write(buffers, position, pastCache).catch(failed),
    read: (target, position) => file.read(target, position).catch(failed),
    datasync: async () => {
      const since = performance.now()
      await file.datasync().catch(failed)
      syncSeconds.observe((performance.now() - since) / 1000)
    },
    size: () => file.size(),
    close: () => file.close(),
  })
  return {
    // That a file is not there, or is there already, may be what the caller wants to know: no error of the disk.
    open: async (path, how) => metered(await disk.open(path, how)),
    readFile: path => disk.readFile(path),
    list: dir => disk.list(dir),
    makeDir: dir => disk.makeDir(dir),
    exists: path => disk.exists(path),
    rename: (from, to) => disk.rename(from, to).catch(failed),
    remove: path => disk.remove(path).catch(failed),
    syncDir: dir => disk.syncDir(dir).catch(failed),
  }
}
