/** When segments are packed. */
import t from 'tap'
import type { Lsn } from '../../../../protocol/ids.ts'
import type { LogIndex } from '../../../../server/safekeeper/core/types.ts'
import { PACK_WHEN_QUIET, type PackPolicy, Quiet } from '../../../../server/safekeeper/log/pack-policy.ts'
import { createLog, redo, SEGMENT_BYTES, T1 } from '../../../support/cell-log-rig.ts'

t.test('quiet is little traffic over five seconds', async t => {
  let ms = 1000
  let bytes = 5e9
  const quiet = new Quiet(
    PACK_WHEN_QUIET,
    () => ms,
    () => bytes,
  )
  t.notOk(quiet.isQuiet, 'nothing is known yet')
  ms += 4999
  t.notOk(quiet.isQuiet)
  ms += 1
  t.ok(quiet.isQuiet)
  bytes += 250e6
  ms += 4000
  t.ok(quiet.isQuiet, 'what it was when it was last looked at')
  ms += 1000
  t.notOk(quiet.isQuiet, '50 MB/s')
  bytes += 15e6 * 60
  ms += 60_000
  t.ok(quiet.isQuiet, '15 MB/s')
  const always = new Quiet(
    { ...PACK_WHEN_QUIET, quietBytesPerSecond: Number.POSITIVE_INFINITY },
    () => ms,
    () => bytes,
  )
  t.ok(always.isQuiet)
})

t.test(
  'segments are not packed while there is traffic, then one after the other, and at once when they are many',
  async t => {
    let ms = 0
    const clock = { wallTimeUs: () => 0, monotonicMs: () => ms, sleep: async () => {} }
    const packPolicy: PackPolicy = {
      quietBytesPerSecond: 1000,
      rawBytesMax: 40 * SEGMENT_BYTES,
      rowsMax: 1e6,
    }
    const { log, events } = await createLog({ clock, packPolicy })
    const stay = () => log.trim({ keepFrom: 1 as LogIndex, neededFrom: () => 0 as Lsn })
    let lsn = 1000
    const write = async (entries: number) => {
      for (let i = 0; i < entries; i++) {
        const entry = redo(log.lastIndex + 1, 1, T1, lsn, 10_000)
        lsn += 10_000
        const flushed = events.flushed(entry.index)
        log.append([entry])
        await flushed
        log.applied(entry)
      }
    }
    await write(40)
    t.match(log.stats(), { packs: 0, rawSegments: 14 }, 'nothing is known of the traffic yet')
    ms += 6000
    await stay()
    t.equal(log.stats().packs, 0, 'too much of it')
    ms += 4000
    await stay()
    t.equal(log.stats().packs, 0, 'not yet looked at again')
    ms += 1000
    await stay()
    for (let i = 0; i < 10_000 && log.stats().rawSegments > 1; i++) await new Promise(setImmediate)
    t.match(log.stats(), { rawSegments: 1 }, 'quiet')
    const { packs } = log.stats()
    t.equal(packs, 13)
    // Reading counts as well.
    ms += 5000
    const cursor = log.timelineCursor(T1, 1000 as Lsn)
    for (let chunk = await cursor.next(); chunk !== undefined; chunk = await cursor.next()) chunk.release()
    cursor.close()
    await stay()
    await write(30)
    t.equal(log.stats().packs, packs)
    await write(120)
    for (let i = 0; i < 10_000 && log.stats().packs === packs; i++) await new Promise(setImmediate)
    t.ok(log.stats().packs > packs, 'too many')
    t.ok(log.stats().rawSegments >= 40)
    await log.packed()
    t.equal(log.stats().rawSegments, 1, 'whoever waits for it gets it')
    await log.close()
  },
)
