/** Golden logs through the real page server: every page equals the oracle's, from memory, from layers, after a restart. */
import t from 'tap'
import { chunksOf, goldenLog, goldenReplay, Rig, seeded, TIMELINE } from '../support/page-server-rig.ts'
import { PAGE_SIZE_NAMES } from '../support/redo-fixtures.ts'

for (const size of PAGE_SIZE_NAMES)
  t.test(`golden log with ${size} pages`, async t => {
    const log = goldenLog(size)
    const { begin, end, pageSize } = log
    const random = seeded(begin)
    const rig = new Rig({ flushBytes: 20 << 20 })
    t.teardown(() => rig.destroy())
    await rig.start()
    await rig.create(begin, pageSize)
    await rig.import(goldenReplay(size), begin)

    const stops = [0.1, 0.35, 0.7, 1].map(part => begin + (end - begin) * part)
    // From a few bytes to more than a megabyte.
    const chunks = chunksOf(log, () => 2 ** (5 + 16 * random()))
    let replay = goldenReplay(size)
    for (const stop of stops) {
      replay.advanceTo(stop)
      while (rig.wal.end(TIMELINE) < replay.lsn) rig.wal.append(TIMELINE, chunks.next().value!)
      await rig.waitFor(replay.lsn)
      const { compared, differences } = await rig.compare(replay)
      t.same(differences.slice(0, 5), [], `${compared} pages at LSN ${replay.lsn}`)
    }

    await rig.checkpoint()
    await rig.stop()
    await rig.start()
    t.equal((await rig.show()).summary.durableLsn, end)
    replay = goldenReplay(size)
    for (const stop of [0.2, 0.5, 1]) {
      replay.advanceTo(begin + (end - begin) * stop)
      const { compared, differences } = await rig.compare(replay)
      t.same(differences.slice(0, 5), [], `${compared} pages at LSN ${replay.lsn} after a restart`)
    }
  })
