/** How far the log may be trimmed, by a state that may be behind it; and snapshots that rot. */
import t from 'tap'
import { CellState } from '../../../server/safekeeper/cell-state.ts'
import type { EntryId, LogIndex, Term } from '../../../server/safekeeper/core/types.ts'
import { NodeFiles } from '../../../server/safekeeper/node-files.ts'
import { Snapshots } from '../../../server/safekeeper/snapshots.ts'
import { silentLog } from '../../../server/shared/log.ts'
import { appendAndFlush, createLog, entriesOf, openLog, redo, T1 } from '../../support/cell-log-rig.ts'

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
  t.same(await files.listSnapshots(), [20, 30], 'one of the state as it is was taken instead')
  await log.close()
})
