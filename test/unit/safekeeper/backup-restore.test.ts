/** A restore: into which folders it goes, and what is there when it is cut short. */
import t from 'tap'
import { NodeFiles } from '../../../server/safekeeper/node-files.ts'
import type { Disk } from '../../../server/shared/seams.ts'
import {
  backedUp,
  boot,
  close,
  IDS,
  like,
  readAll,
  restoreInto,
  SEGMENT_BYTES,
  START,
  Writer,
} from '../../support/backed-up-cell.ts'
import { dying } from '../../support/dying-disk.ts'
import { lsnBytes } from '../../support/lsn-bytes.ts'
import { MemoryDisk } from '../../support/memory-disk.ts'
import { MemoryObjectStore } from '../../support/memory-object-store.ts'
import { seeded } from '../../support/seeded.ts'

t.test('a restore goes into an empty folder, and no other', async t => {
  const store = new MemoryObjectStore()
  const node = await boot(new MemoryDisk(), store)
  const writer = await Writer.create(node, IDS[0]!, 'main')
  await writer.append(1000)
  await backedUp(node)
  const { cellId } = node.status()
  await close(node)
  const file = async (disk: Disk, path: string): Promise<void> => {
    await disk.makeDir(path.slice(0, path.lastIndexOf('/')))
    const made = await disk.open(path, 'create')
    await made.write([Buffer.from('x')], 0)
    await made.close()
  }
  const refused = async (names: readonly string[], message: RegExp) => {
    const disk = new MemoryDisk()
    for (const name of names) await file(disk, `/data/${name}`)
    const before = disk.paths().sort()
    await t.rejects(restoreInto(disk, store, cellId), like({ kind: 'invalid', message }))
    t.same(disk.paths().sort(), before, 'nothing was changed')
  }
  await refused(['ibdata1'], /\/data is not empty: it holds ibdata1; give an empty folder/)
  await refused(['log/1.seg', 'LOCK'], /not empty: it holds log;/)
  await refused(['f', 'e', 'd', 'c', 'b', 'a', 'lost+found/1'], /it holds a, b, c, d, e and 1 more;/)
  const disk = new MemoryDisk()
  await disk.makeDir('/data/lost+found')
  await file(disk, '/data/LOCK')
  await restoreInto(disk, store, cellId)
  await t.rejects(
    restoreInto(disk, store, cellId),
    like({
      kind: 'invalid',
      message: /is the folder of safekeeper one\.00000000000000aa already, of cell 12/,
    }),
  )
})

t.test('a restore that is cut short anywhere starts nothing, and can be repeated', async t => {
  const store = new MemoryObjectStore()
  const node = await boot(new MemoryDisk(), store)
  const writer = await Writer.create(node, IDS[0]!, 'main')
  for (let i = 0; i < 4; i++) await writer.append(18_000)
  await backedUp(node)
  const { cellId } = node.status()
  await close(node)
  const seen = { unfinished: 0, whole: 0 }
  const random = seeded(3)
  for (let left = 0; ; left += 2 + Math.floor(random() * 12)) {
    const whole = new MemoryDisk()
    const { disk, count } = dying(whole, left)
    const error = await restoreInto(disk, store, cellId).catch((error: Error) => error)
    if (error === undefined) {
      t.ok(count() <= left)
      break
    }
    const after = whole.crash([() => 0, () => 1, random][left % 3]!)
    const found = await new NodeFiles(after, '/data').loadNode('backup restore')
    if (found !== undefined && found.unfinished === undefined) seen.whole++
    else {
      if (found !== undefined) {
        seen.unfinished++
        await t.rejects(
          boot(after, undefined),
          like({ message: /backup restore" was begun .* run it again/ }),
        )
      }
      await restoreInto(after, store, cellId)
    }
    if (random() > 0.4 && seen.whole === 0) continue
    const restored = await boot(after, undefined)
    const bytes = await readAll(restored, IDS[0]!, START)
    t.ok(bytes.equals(lsnBytes(START, 72_000)), `cut after ${left} operations: all is there`)
    await close(restored)
  }
  t.ok(seen.unfinished > 2, JSON.stringify(seen))
  const full = new MemoryDisk()
  // From the very beginning, and in the midst of the log.
  for (const capacity of [SEGMENT_BYTES / 2, 2.5 * SEGMENT_BYTES, 4.5 * SEGMENT_BYTES]) {
    full.capacity = capacity
    await t.rejects(restoreInto(full, store, cellId), like({ kind: 'retry', message: /ENOSPC.* make room/ }))
  }
  full.capacity = Number.POSITIVE_INFINITY
  await restoreInto(full, store, cellId)
})
