/** Damaged redo stops a timeline at its place; what came before stays readable. */
import t from 'tap'
import type { PalimpsestError } from '../../protocol/errors.ts'
import { chunksOf, goldenLog, goldenReplay, Rig, seeded, TIMELINE } from '../support/page-server-rig.ts'

t.test('one flipped bit in the redo', async t => {
  const log = goldenLog('16k')
  const random = seeded(5)
  const rig = new Rig({ flushBytes: 1 << 20 })
  t.teardown(() => rig.destroy())
  await rig.start()
  await rig.create(log.begin, log.pageSize)
  await rig.import(goldenReplay('16k'), log.begin)
  const replay = goldenReplay('16k')
  replay.advanceTo(log.begin + 3_000_000)
  for (const chunk of chunksOf(log, () => 150_000)) {
    const begin = rig.wal.end(TIMELINE)
    const bytes = Uint8Array.from(chunk)
    const damaged = begin <= replay.lsn && begin + chunk.length > replay.lsn
    // In the mini-transaction that begins where the oracle stands.
    if (damaged) bytes[replay.lsn - begin + 2]! ^= 1 << Math.floor(8 * random())
    rig.wal.append(TIMELINE, bytes)
    if (damaged) break
  }
  const waited = (await rig.waitFor(replay.lsn + 1, 20_000).catch(e => e)) as PalimpsestError
  t.match(waited, { kind: 'retry', message: /stopped at LSN/ })
  const status = await rig.show()
  t.equal(status.summary.state, 'stopped')
  t.equal(status.summary.ingestedLsn, replay.lsn, 'everything before the damage was taken in')
  t.match(status.lastError, new RegExp(`LSN ${replay.lsn}`))
  const { compared, differences } = await rig.compare(replay)
  t.same(differences.slice(0, 5), [], `${compared} pages at LSN ${replay.lsn}`)
  await rig.checkpoint()
  t.equal((await rig.show()).summary.durableLsn, replay.lsn, 'and it becomes durable')

  // It says the same after a restart, although its log now begins at the damage.
  await rig.stop()
  await rig.start()
  const after = await rig.show()
  t.equal(after.summary.state, 'stopped')
  t.equal(after.lastError, status.lastError)
  t.equal(after.summary.ingestedLsn, replay.lsn)
  t.same((await rig.compare(replay)).differences, [])
  const refused = (await rig.waitFor(replay.lsn + 1, 1000).catch(e => e)) as PalimpsestError
  t.match(refused, { kind: 'retry', message: /stopped at LSN/ })

  // Told to try again it stops again where the log is as damaged as before.
  await rig.stop()
  await rig.start({ retryStopped: true })
  await rig.waitFor(replay.lsn + 1, 20_000).catch(() => {})
  const again = await rig.show()
  t.equal(again.summary.ingestedLsn, replay.lsn)
  t.match(again.lastError, new RegExp(`LSN ${replay.lsn}`))
})
