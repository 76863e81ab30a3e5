/** Imports of pages that change while they are copied, and redo that was lost and is mended by another import. */
import t from 'tap'
import type { PalimpsestError } from '../../protocol/errors.ts'
import type { Lsn } from '../../protocol/ids.ts'
import { MessageType } from '../../protocol/messages.ts'
import type { NaiveReplay } from '../support/naive-replay.ts'
import {
  chunksOf,
  type GoldenLog,
  goldenLog,
  goldenReplay,
  Rig,
  seeded,
  TIMELINE,
} from '../support/page-server-rig.ts'

/** The part of a log from `from` on, which is a mini-transaction's beginning. */
function tail(log: GoldenLog, from: number): GoldenLog {
  return { ...log, bytes: log.bytes.subarray(from - log.begin), begin: from }
}

t.test('a fuzzy import, lost redo, and the import that mends it', async t => {
  const log = goldenLog('16k')
  const random = seeded(23)
  const at = (part: number): NaiveReplay => {
    const replay = goldenReplay('16k')
    replay.advanceTo(log.begin + (log.end - log.begin) * part)
    return replay
  }
  const equal = async (part: number, when: string) => {
    const { compared, differences } = await rig.compare(at(part))
    t.same(differences.slice(0, 5), [], `${compared} pages at ${part} of the log ${when}`)
  }
  const refused = async (lsn: number, kind: string, text: RegExp) => {
    const error = (await rig.pages(lsn, [[0, 0]]).catch(e => e)) as PalimpsestError
    t.match(error, { kind, message: text }, `LSN ${lsn} is refused`)
  }

  const rig = new Rig({ flushBytes: 512 << 10 })
  t.teardown(() => rig.destroy())
  await rig.start()
  await rig.create(log.begin, log.pageSize)
  const copied = at(0.1)
  await refused(log.begin, 'retry', /no import/)
  await rig.import(goldenReplay('16k'), copied.lsn, 'full', copied, () => random() < 0.5)
  await refused(0, 'retry', /once it has reached/)

  const lost = at(0.4)
  const found = at(0.55)
  const mended = at(0.7)
  for (const chunk of chunksOf({ ...log, end: lost.lsn }, () => 200_000 * random()))
    rig.wal.append(TIMELINE, chunk)
  await rig.waitFor(lost.lsn)
  await refused(copied.lsn - 100, 'invalid', new RegExp(`readable from LSN ${copied.lsn}`))
  await equal(0.1, 'where the import ended')
  await equal(0.3, 'later')

  rig.wal.skip(TIMELINE, found.lsn)
  for (const chunk of chunksOf(tail(log, found.lsn), () => 200_000 * random()))
    rig.wal.append(TIMELINE, chunk)
  await rig.waitFor(log.end)
  await refused(log.end, 'retry', /was lost/)
  await equal(0.4, 'before the gap')
  t.equal((await rig.show()).gaps.length, 1)

  await rig.import(found, mended.lsn, 'partial', mended, () => random() < 0.5)
  const check = async (when: string) => {
    await equal(0.4, `before the gap ${when}`)
    await refused(found.lsn + 100, 'invalid', new RegExp(`between LSN ${lost.lsn} and LSN ${mended.lsn}`))
    await equal(0.7, `where the second import ended ${when}`)
    await equal(0.9, `later ${when}`)
    await equal(1, `at the end ${when}`)
  }
  await check('now')
  await rig.checkpoint()
  await rig.server!.timelines.compacted()
  await check('after compactions')
  await rig.stop()
  await rig.start()
  await check('after a restart')
})

t.test(
  'content that the redo does not tell: nothing after it can be read until its import has ended',
  async t => {
    const log = goldenLog('16k')
    const rig = new Rig()
    t.teardown(() => rig.destroy())
    await rig.start()
    await rig.create(log.begin, log.pageSize)
    await rig.import(goldenReplay('16k'), log.begin)
    const before = goldenReplay('16k')
    before.advanceTo(log.begin + (log.end - log.begin) * 0.2)
    for (const chunk of chunksOf({ ...log, end: before.lsn }, () => 500_000)) rig.wal.append(TIMELINE, chunk)
    await rig.waitFor(before.lsn)
    const startLsn = before.lsn as Lsn
    const begin = async (): Promise<number> =>
      (
        await rig.connection.request({
          type: MessageType.ImportBegin,
          timeline: TIMELINE,
          startLsn,
          kind: 'partial',
        })
      ).message.session
    const abandoned = await begin()
    t.ok(abandoned)
    const after = goldenReplay('16k')
    after.advanceTo(log.begin + (log.end - log.begin) * 0.3)
    for (const chunk of chunksOf({ ...tail(log, startLsn), end: after.lsn }, () => 500_000))
      rig.wal.append(TIMELINE, chunk)
    await rig.waitFor(after.lsn)
    const refused = async (when: string) => {
      const error = (await rig.pages(0, [[0, 0]]).catch(e => e)) as PalimpsestError
      t.match(error, { kind: 'retry', message: /IMPORT TABLESPACE/ }, `the newest is refused ${when}`)
      const { differences } = await rig.compare(before)
      t.same(differences, [], `before it all can be read ${when}`)
    }
    await refused('now')
    await rig.stop()
    await rig.start()
    await refused('after a restart')
    const session = await begin()
    const spaces = Uint32Array.from([...before.spaces.keys()])
    await rig.connection.request({
      type: MessageType.ImportEnd,
      session,
      readableFromLsn: after.lsn as Lsn,
      spaces,
    })
    t.same((await rig.compare(after)).differences, [], 'and all of it once that has ended')
    t.same((await rig.show()).gaps, [{ fromLsn: startLsn - 1, toLsn: after.lsn }], 'the timeline remembers')
    const error = (await rig.pages(startLsn, [[0, 0]]).catch(e => e)) as PalimpsestError
    t.match(error, { kind: 'invalid', message: /content that is not in the redo/ }, 'its pages may be newer')
  },
)
