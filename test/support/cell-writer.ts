/** A timeline in a TestCell, whose redo tells its LSN: written by one writer, read from any node. */
import { Connection } from '../../protocol/connection.ts'
import type { Lsn, TimelineId } from '../../protocol/ids.ts'
import { MessageType } from '../../protocol/messages.ts'
import { askLeader } from '../../server/shared/cell-client.ts'
import type { PalimpsestError } from '../../server/shared/errors.ts'
import { silentLog } from '../../server/shared/log.ts'
import { WalWriter } from '../../server/shared/log-client.ts'
import type { TestCell } from './cell.ts'
import { lsnBytes } from './lsn-bytes.ts'

export const ID = '5a'.repeat(16) as TimelineId
export const START = 8192 as Lsn

/** Makes the timeline, and a writer of it. */
export async function newWriter(
  t: { teardown(run: () => unknown): void },
  cell: TestCell,
): Promise<WalWriter> {
  await askLeader(cell.list, { type: MessageType.WalCreate, timeline: ID, startLsn: START, name: 'main' })
  const writer = await WalWriter.open({
    safekeepers: [...cell.addresses.values()],
    timeline: ID,
    name: 'test',
    log: silentLog,
    windowBytesMax: 512 * 1024,
  })
  t.teardown(() => writer.close())
  return writer
}

/** Appends so much, or a little more; committed when it resolves. */
export async function write(writer: WalWriter, bytes: number): Promise<void> {
  const until = writer.endLsn + bytes
  for (let i = 0; writer.endLsn < until; i++)
    await writer.append(writer.endLsn, lsnBytes(writer.endLsn, 1000 + ((i * 7919) % 20_000)))
  await writer.durable()
}

/** Appends without end. `stop` resolves when all is committed. */
export function busyWriter(writer: WalWriter) {
  let stopped = false
  const done = (async () => {
    for (let i = 0; !stopped; i++) {
      const at = writer.endLsn
      await writer.append(at, lsnBytes(at, 1 + ((i * 7919) % 20_000)))
      if (i % 20 === 0) await writer.durable()
    }
    await writer.durable()
  })()
  done.catch(() => {})
  return {
    stop: () => {
      stopped = true
      return done
    },
    /** Resolves when more was committed than at present. */
    progress: () => writer.durable((writer.flushedLsn + 1) as Lsn),
  }
}

/** Reads all of the timeline from one node, checks every byte, and gives the end. */
export async function readFrom(cell: TestCell, name: string): Promise<number> {
  const connection = await Connection.connect(cell.addresses.get(name)!)
  let at: number = START
  try {
    const request = { type: MessageType.WalRead, timeline: ID, fromLsn: START, follow: false } as const
    for await (const { message, bulk } of connection.stream(request)) {
      if (message.type !== MessageType.WalData) continue
      if (message.beginLsn !== at || !lsnBytes(at, bulk.length).equals(bulk))
        throw new Error(`wrong bytes at LSN ${at} of ${name}`)
      at += bulk.length
    }
  } finally {
    connection.close()
  }
  return at
}

/** Waits for it; an error of kind retry is a no. */
export async function until(what: string, met: () => Promise<boolean> | boolean): Promise<void> {
  for (let i = 0; i < 3000; i++) {
    try {
      if (await met()) return
    } catch (error) {
      if ((error as PalimpsestError).kind !== 'retry') throw error
    }
    await new Promise(resolve => setTimeout(resolve, 20))
  }
  throw new Error(`not within 60 s: ${what}`)
}

/** All nodes have applied all that was acknowledged. */
export async function caughtUp(cell: TestCell, writer: WalWriter): Promise<void> {
  for (const name of cell.nodes.keys())
    await until(`${name} has all of it`, async () => (await readFrom(cell, name)) >= writer.flushedLsn)
}
