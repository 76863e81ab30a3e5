/** A writer says again what is in the log already, and the disk that it is compared with gives back something else. */
import { closeSync, openSync, readdirSync, writeSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { Connection } from '../../protocol/connection.ts'
import type { Lsn, TimelineId } from '../../protocol/ids.ts'
import { MessageType } from '../../protocol/messages.ts'
import { askLeader } from '../../server/shared/cell-client.ts'
import { nodeDisk } from '../../server/shared/node-seams.ts'
import { TestCell } from '../support/cell.ts'
import { seeded } from '../support/seeded.ts'

const ID = '6b'.repeat(16) as TimelineId
const START = 8192 as Lsn
const BYTES = 20_000
const CHUNKS = 60

/** Does not compress, so that a place in a pack is in somebody's payload. */
function chunk(i: number): Buffer {
  const random = seeded(i + 1)
  return Buffer.from(Array.from({ length: BYTES }, () => Math.floor(random() * 256)))
}
const stats = (cell: TestCell, name: string) => cell.nodes.get(name)!.safekeeper.node.logStats!

/** Its index. */
function newestSnapshot(dir: string): number {
  const names = readdirSync(dir).map(file => /^snapshot-(\d+)\.json$/.exec(file)?.[1] ?? '0')
  return Math.max(...names.map(Number))
}

async function until(what: string, met: () => boolean): Promise<void> {
  for (let i = 0; i < 3000; i++) {
    if (met()) return
    await new Promise(resolve => setTimeout(resolve, 20))
  }
  throw new Error(`not within 60 s: ${what}`)
}

/** The leader of a cell whose packs are damaged there, and that has nothing in memory; a writer that was let in. */
async function damagedLeader(t: Parameters<typeof TestCell.start>[0], nodes: number) {
  const cell = await TestCell.start(t, { nodes, segmentBytes: 256 * 1024, disk: () => nodeDisk })
  await askLeader(cell.list, { type: MessageType.WalCreate, timeline: ID, startLsn: START, name: 'main' })
  const opened = await askLeader(cell.list, { type: MessageType.WalOpen, timeline: ID, writer: 'w' })
  const append = (epoch: typeof opened.message.epoch, i: number, payload: Buffer = chunk(i)) => ({
    message: {
      ...{ type: MessageType.WalAppend, timeline: ID, epoch, wallTimeUs: 1 },
      beginLsn: (START + i * BYTES) as Lsn,
    } as const,
    bulk: payload,
  })
  for (let i = 0; i < CHUNKS; i++) {
    const { message, bulk } = append(opened.message.epoch, i)
    await askLeader(cell.list, message, { request: { bulk } })
  }
  for (const name of [...cell.nodes.keys()]) {
    // Its start reads the log from its newest snapshot on, which puts that into memory; the redo that is said again lies below.
    await until(
      `${name} has packed, and has a snapshot`,
      () => stats(cell, name).packs >= 2 && newestSnapshot(join(cell.dir, name)) > CHUNKS / 3,
    )
    await cell.stop(name)
    await cell.startNode(name)
    await cell.leader()
  }
  const { name } = await cell.leader()
  const again = await askLeader(cell.list, { type: MessageType.WalOpen, timeline: ID, writer: 'w' })
  const dir = join(cell.dir, name, 'log')
  for (const file of readdirSync(dir).filter(file => file.endsWith('.pack'))) {
    const fd = openSync(join(dir, file), 'r+')
    writeSync(fd, Buffer.from('rot'), 0, 3, 5000)
    closeSync(fd)
  }
  const connection = await Connection.connect(cell.addresses.get(name)!)
  t.teardown(() => connection.close())
  const say = (i: number, payload?: Buffer) => {
    const { message, bulk } = append(again.message.epoch, i, payload)
    return connection.request(message, { bulk })
  }
  return { cell, name, say }
}

t.test('others have it: the writer is answered at once', { timeout: 120_000 }, async t => {
  const { cell, name, say } = await damagedLeader(t, 3)
  const { message } = await say(0)
  t.equal(stats(cell, name).damagesFound + stats(cell, name).damagedFiles > 0, true, 'it was damaged')
  t.ok(message.committedLsn >= START + BYTES)
  await t.rejects(say(1, Buffer.alloc(BYTES, 0xee)), {
    kind: 'invalid',
    message: /differs/,
  } as unknown as Error)
  await until('it is repaired', () => stats(cell, name).damagedFiles === 0)
})

t.test('nobody has it: the writer waits, and the node tells why', { timeout: 120_000 }, async t => {
  const { cell, name, say } = await damagedLeader(t, 1)
  const refused = { kind: 'retry', message: /cannot be compared with: .*damaged at offset/ }
  await t.rejects(say(0), refused as unknown as Error)
  await until('it is counted', () => stats(cell, name).damagedFiles > 0)
  await until('it is told', () => cell.nodes.get(name)!.safekeeper.node.status().lastError !== '')
  await t.rejects(say(0), refused as unknown as Error)
  // The log's end is well: redo is taken.
  await say(CHUNKS)
})
