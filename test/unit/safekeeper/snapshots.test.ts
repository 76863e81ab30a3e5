/** How far the log may be trimmed, by a state that may be behind it; and snapshots that rot. */
import t from 'tap'
import { CellState } from '../../../server/safekeeper/cell-state.ts'
import type { EntryId, LogIndex, Term } from '../../../server/safekeeper/core/types.ts'
import { NodeFiles } from '../../../server/safekeeper/node-files.ts'
import { openNodeLog } from '../../../server/safekeeper/node-log.ts'
import { Snapshots } from '../../../server/safekeeper/snapshots.ts'
import { silentLog } from '../../../server/shared/log.ts'
import { nodeClock } from '../../../server/shared/node-seams.ts'
import {
  appendAndFlush,
  createLog,
  entriesOf,
  LOG_DIR,
  openLog,
  redo,
  SEGMENT_BYTES,
  T1,
} from '../../support/cell-log-rig.ts'

const like = (shape: object) => shape as Error

t.test('a node that starts does not give up redo of timelines that its state does not know yet', async t => {
  const first = await createLog()
  const entries = Array.from({ length: 120 }, (_, i) => redo(i + 1, 1, T1, 100 + i * 1000, 1000))
  for (let at = 0; at < entries.length; at += 8)
    await appendAndFlush(first.log, first.events, entries.slice(at, at + 8))
  for (const entry of entries) first.log.applied(entry)
  await first.log.packed()
  await first.log.close()
  const { log, disk } = await openLog(first.disk)
  t.ok(log.stats().packs > 0)
  // No leader yet: nothing is committed as far as it knows, nothing applied.
  const state = new CellState({ voters: ['a.0000000000000001'], learners: [] })
  const snapshots = new Snapshots(new NodeFiles(disk, '/data'), log, [], silentLog)
  for (let round = 0; round < 3; round++) {
    await snapshots.trim(state, 0 as LogIndex)
    await log.packed()
  }
  t.same(await entriesOf(log, 1, 120), entries)
  await log.close()
})

t.test('snapshots that rot are given up; the oldest is not replaced by one that is too new', async t => {
  const { log, disk, events } = await createLog({ packs: 'off' })
  await appendAndFlush(
    log,
    events,
    Array.from({ length: 30 }, (_, i) => redo(i + 1, 2, T1, 100 + i, 1)),
  )
  const files = new NodeFiles(disk, '/data')
  const at = (index: number) =>
    new CellState(
      { voters: ['a.0000000000000001'], learners: [] },
      { index: index as LogIndex, term: 2 as Term },
    )
  const kept: EntryId[] = []
  for (const index of [5, 10, 20]) {
    await files.saveSnapshot(index as LogIndex, at(index).encode())
    kept.push(at(index).last)
  }
  const snapshots = new Snapshots(files, log, kept, silentLog)
  t.same(await snapshots.check(at(30)), [])
  disk.content('/data/snapshot-10.json')[7]! ^= 1
  t.same(await snapshots.check(at(30)), ['snapshot-10.json'])
  t.equal((await snapshots.toSend()).last.index, 5)
  disk.content('/data/snapshot-5.json')[7]! ^= 1
  t.same(await snapshots.check(at(30)), ['snapshot-5.json'])
  await t.rejects(snapshots.toSend(), like({ kind: 'retry', message: /damaged on this disk/ }))
  t.same(await files.listSnapshots(), [5, 20, 30], 'one of the state as it is was taken instead')
  await log.close()
  // What was damaged stays: a node that starts must not take the next one for the oldest.
  for (let start = 0; start < 2; start++) {
    const found = await openNodeLog({
      files,
      logger: silentLog,
      open: {
        disk,
        clock: nodeClock,
        dir: LOG_DIR,
        log: silentLog,
        segmentBytes: SEGMENT_BYTES,
        reserveBytes: 0,
        packs: 'off',
        onFatal: error => t.fail(error),
      },
      first: () => at(0),
      self: 'b.0000000000000002',
      isRecovering: false,
      recover: () => Promise.reject(new Error('no reason')),
    })
    t.same([found.kept.map(({ index }) => index), found.lostOldest], [[20, 30], 5])
    const again = new Snapshots(files, found.log, found.kept, silentLog)
    again.lostOldest = found.lostOldest
    await t.rejects(again.toSend(), like({ kind: 'retry' }))
    // The log has no timeline that needs anything: the next one may be sent.
    if (start === 1) {
      await again.trim(at(30), 30 as LogIndex)
      t.equal((await again.toSend()).last.index, 30)
      t.same(await files.listSnapshots(), [30])
    }
    await found.log.close()
  }
})
