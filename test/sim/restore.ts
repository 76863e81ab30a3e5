/**
 * A cell made again from its backup, in the midst of a run: what was acknowledged, and lies below the entry that the cell has noted
 * as backed up, must be there, and nothing that no writer has sent.
 */
import { crc32c } from '../../protocol/crc32c.ts'
import type { Lsn } from '../../protocol/ids.ts'
import { restoreBackup } from '../../server/safekeeper/backup-restore.ts'
import { silentLog } from '../../server/shared/log.ts'
import { MemoryDisk } from '../support/memory-disk.ts'
import { MemoryObjectStore } from '../support/memory-object-store.ts'
import type { NodeChecker } from './node-checker.ts'
import { Life, SimClock } from './sim-disk.ts'
import { DATA_DIR, type HostUser, SEGMENT_BYTES, SimHost } from './sim-host.ts'
import type { World } from './world.ts'

const LEADING_MS = 20_000
const LOOK_MS = 20

export interface RestoreWorld {
  readonly world: World
  readonly checker: NodeChecker
  readonly trace: HostUser['trace']
}

/** `noted`: the last entry that the cell, at this moment, says is in the backup. Returns how many chunks were read. */
export async function restoreAndCompare(
  to: RestoreWorld,
  store: MemoryObjectStore,
  cellId: string,
  noted: number,
): Promise<number> {
  const { world, checker } = to
  // As of this moment: the cell lives on meanwhile, and moves the beginning of its backup.
  const copy = new MemoryObjectStore(new Map(store.objects))
  const expected = [...checker.timelines.values()].map(timeline => ({
    timeline,
    end: timeline.ackedUpTo(noted),
    // Consumers have gone on since the entry at which the backup ends, and its beginning with them.
    claimed: timeline.consumers.size === 0 ? 0 : timeline.neededFrom,
    made: timeline.madeAt > 0 && timeline.madeAt <= noted,
    gone: timeline.deletedAt > 0 && timeline.deletedAt <= noted,
  }))
  const life = new Life(world)
  const disk = new MemoryDisk()
  const address = { host: '10.0.1.1', port: 7000 }
  const nodeId = 'restored.00000000000000aa'
  await restoreBackup({
    store: copy,
    cellId,
    newCellId: 'ee'.repeat(16),
    disk,
    clock: new SimClock(world, life, 1, { stepUs: 0 }),
    log: silentLog,
    dir: DATA_DIR,
    nodeId,
    address: `${address.host}:${address.port}`,
    zone: '',
    segmentBytes: SEGMENT_BYTES,
  })
  let failure: Error | undefined
  const user: HostUser = {
    world,
    store: undefined,
    lies: false,
    canary: undefined,
    trace: to.trace && (line => to.trace?.(`restored: ${line}`)),
    connect: () => Promise.reject(new Error('a cell of one dials nobody')),
    ended: (_, own) => {
      failure = own
    },
    answered: () => {},
  }
  const host = new SimHost(user, 'restored', address, { peers: new Map(), join: [] })
  host.disk = disk
  host.start()
  try {
    const untilMs = world.nowMs + LEADING_MS
    while (host.node?.leading === undefined) {
      if (failure !== undefined) throw failure
      if (world.nowMs > untilMs) throw new Error(`the restored cell has no leader after ${LEADING_MS} ms`)
      await life.sleep(LOOK_MS)
    }
    const { driver, timelines } = host.node
    let chunks = 0
    for (const { timeline, end, claimed, made, gone } of expected) {
      const { id, name } = timeline
      const has = driver.state.timelines.get(id)
      if (gone)
        checker.demand(has === undefined, () => `${name} was deleted, and is back in the restored cell`)
      if (has === undefined) {
        checker.demand(!made || timeline.deleting, () => `${name} was made, and is not in the restored cell`)
        continue
      }
      checker.demand(
        has.endLsn >= end,
        () =>
          `${name} ends at ${has.endLsn} in the restored cell, but ${end} was acknowledged and noted (${noted}) as backed up`,
      )
      const from = Math.max(driver.state.beginLsn(has), has.startLsn, claimed) as Lsn
      if (from >= has.endLsn) continue
      const reader = timelines.read(id, from)
      let at: number = from
      for (let chunk = await reader.next(); chunk !== undefined; chunk = await reader.next()) {
        const { beginLsn, endLsn, payload, kind } = chunk
        checker.demand(beginLsn === at, () => `the restored cell has ${beginLsn} of ${name} after ${at}`)
        at = endLsn
        if (kind === 'redo')
          checker.seen(
            timeline,
            { begin: beginLsn, end: endLsn, crc: crc32c(payload, 0, payload.length) },
            'the restored cell',
          )
        chunk.release()
        chunks++
      }
      checker.demand(at >= end, () => `the redo of ${name} ends at ${at} in the restored cell, below ${end}`)
    }
    return chunks
  } finally {
    host.crash()
    life.alive = false
  }
}
