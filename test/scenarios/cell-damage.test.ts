/** Disks of running nodes that give back something else than was written: readers go on, and the disks are made whole from elsewhere. */
import { closeSync, openSync, readdirSync, readSync, statSync, writeSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { nodeDisk } from '../../server/shared/node-seams.ts'
import { TestCell } from '../support/cell.ts'
import { newWriter, readFrom, until, write } from '../support/cell-writer.ts'
import { MemoryObjectStore } from '../support/memory-object-store.ts'

const SEGMENT_BYTES = 256 * 1024

function turnBits(cell: TestCell, name: string, which: RegExp): number {
  const dir = join(cell.dir, name, 'log')
  const files = readdirSync(dir).filter(file => which.test(file))
  for (const [i, file] of files.entries()) {
    const path = join(dir, file)
    const at = i % 2 === 0 ? 300 : statSync(path).size - 200
    const fd = openSync(path, 'r+')
    const byte = Buffer.alloc(1)
    readSync(fd, byte, 0, 1, at)
    byte[0]! ^= 0x10
    writeSync(fd, byte, 0, 1, at)
    closeSync(fd)
  }
  return files.length
}

const stats = (cell: TestCell, name: string) => cell.nodes.get(name)!.safekeeper.node.logStats!

t.test(
  'a leader whose packs have rotted brings a new disk up to date all the same',
  { timeout: 200_000 },
  async t => {
    const cell = await TestCell.start(t, { segmentBytes: SEGMENT_BYTES, disk: () => nodeDisk })
    const writer = await newWriter(t, cell)
    await write(writer, 1_000_000)
    const leader = (await cell.leader()).name
    const lost = [...cell.nodes.keys()].find(name => name !== leader)!
    await cell.stop(lost)
    cell.wipe(lost)
    await write(writer, 2_000_000)
    await until('the leader has packed', () => stats(cell, leader).packs >= 5)
    const damaged = turnBits(cell, leader, /^[0-9]{20}\.pack$/)
    t.ok(damaged >= 5)
    await cell.startNode(lost)
    await until('it has everything', async () => (await readFrom(cell, lost)) >= writer.flushedLsn)
    for (const name of cell.nodes.keys())
      await until(`${name} is read`, async () => (await readFrom(cell, name)) >= writer.flushedLsn)
    await until('the leader is whole', () => stats(cell, leader).damagedFiles === 0)
    const { damagesFound, damagesRepaired } = stats(cell, leader)
    t.equal(damagesFound, damagesRepaired)
    t.ok(damagesRepaired > 0, `${damagesRepaired} of ${damaged} packs were read, and repaired`)
    t.equal((await cell.leader()).name, leader, 'it leads on')
    await write(writer, 100_000)
    await cell.stop(leader)
    await cell.startNode(leader)
    await until('after a start too', async () => (await readFrom(cell, leader)) >= writer.flushedLsn)
  },
)

t.test('a node that is alone is repaired from its backup', { timeout: 100_000 }, async t => {
  const store = new MemoryObjectStore()
  const cell = await TestCell.start(t, {
    nodes: 1,
    segmentBytes: SEGMENT_BYTES,
    disk: () => nodeDisk,
    backup: { store, intervalMs: 100 },
  })
  const writer = await newWriter(t, cell)
  await write(writer, 1_000_000)
  await until('it has packed', () => stats(cell, 'a').packs >= 2)
  await until('it is backed up', () => (cell.nodes.get('a')!.safekeeper.node.backupLagBytes ?? 1) === 0)
  // In the middle of the groups; the tables tell which entries are void, and the backup does not.
  const dir = join(cell.dir, 'a', 'log')
  for (const file of readdirSync(dir).filter(name => name.endsWith('.pack'))) {
    const fd = openSync(join(dir, file), 'r+')
    writeSync(fd, Buffer.from('rot'), 0, 3, 500)
    closeSync(fd)
  }
  await t.rejects(readFrom(cell, 'a'), { kind: 'retry', message: /being repaired/ } as unknown as Error)
  await until('it is read', async () => (await readFrom(cell, 'a')) >= writer.flushedLsn)
  t.match(stats(cell, 'a'), { damagedFiles: 0, damageProblem: '' })
})
