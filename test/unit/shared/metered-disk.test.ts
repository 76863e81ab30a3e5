import t from 'tap'
import { meteredDisk } from '../../../server/shared/metered-disk.ts'
import { Metrics, NO_METRICS } from '../../../server/shared/metrics.ts'
import type { Disk, DiskFile } from '../../../server/shared/seams.ts'

const file: DiskFile = {
  write: async () => {
    throw Object.assign(new Error('full'), { code: 'ENOSPC' })
  },
  read: async () => 3,
  datasync: async () => {},
  size: async () => 3,
  close: async () => {},
}

const disk = {
  open: async (path: string) => {
    if (path === 'absent') throw Object.assign(new Error('absent'), { code: 'ENOENT' })
    return file
  },
} as unknown as Disk

t.test('syncs are timed, errors counted and passed on', async t => {
  const metrics = await Metrics.create()
  const metered = meteredDisk(disk, metrics.part('safekeeper', { node: 'a' }))
  t.match(await metered.open('absent', 'read').catch(e => e), { code: 'ENOENT' })
  const opened = await metered.open('log', 'write')
  t.equal(await opened.read(Buffer.alloc(3), 0), 3)
  await opened.datasync()
  t.match(await opened.write([], 0).catch(e => e), { code: 'ENOSPC' })
  const text = await metrics.text()
  t.ok(text.includes('palimpsest_safekeeper_sync_seconds_count{node="a"} 1\n'))
  t.ok(text.includes('palimpsest_safekeeper_disk_errors_total{code="ENOSPC",node="a"} 1\n'))
  t.notMatch(text, 'ENOENT')
  t.equal(meteredDisk(disk, NO_METRICS), disk)
})
