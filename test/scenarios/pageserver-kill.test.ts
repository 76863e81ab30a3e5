/**
 * SIGKILL at any moment loses nothing that was acknowledged: the log keeper forgets what the page server called durable, so a
 * page server that had lied could not come back.
 */
import { setTimeout as delay } from 'node:timers/promises'
import t from 'tap'
import type { Lsn } from '../../protocol/ids.ts'
import { type FileGet, type FilePut, MessageType } from '../../protocol/messages.ts'
import { chunksOf, goldenLog, goldenReplay, Rig, seeded, TIMELINE } from '../support/page-server-rig.ts'

t.test('killed again and again while it takes in redo, flushes and compacts', async t => {
  const log = goldenLog('16k')
  const random = seeded(11)
  const rig = new Rig({ flushBytes: 128 << 10, ownProcess: true })
  t.teardown(() => rig.destroy())
  await rig.start()
  await rig.create(log.begin, log.pageSize)
  await rig.import(goldenReplay('16k'), log.begin)
  const chunks = chunksOf(log, () => 60_000 * random())
  const replay = goldenReplay('16k')
  let durable = 0
  let files = 0
  for (let round = 0; round < 12; round++) {
    const until = log.begin + ((log.end - log.begin) * (round + 1)) / 12
    const trimmed = rig.wal.trimmed(TIMELINE)
    while (rig.wal.end(TIMELINE) < until) {
      const next = chunks.next()
      if (next.done) break
      rig.wal.append(TIMELINE, next.value)
      await delay(2)
    }
    // In every third round it dies at its start, else somewhere between two flushes.
    for (let i = 0; round % 3 !== 0 && rig.wal.trimmed(TIMELINE) === trimmed && i < 300; i++) await delay(10)
    const killAt = delay(100 * random())
    try {
      const contents = Buffer.from(`contents of ${round}`)
      const put: FilePut = {
        type: MessageType.FilePut,
        timeline: TIMELINE,
        lsn: rig.wal.end(TIMELINE) as Lsn,
        mtimeMs: 1,
        offset: 0,
        totalBytes: contents.length,
        mode: 0o660,
        path: `zoo/t${round}.frm`,
      }
      await rig.connection.request(put, { bulk: contents })
      files = round + 1
      await killAt
    } catch (error) {
      t.comment(`round ${round}: ${(error as Error).message}`)
    }
    await rig.kill()
    await rig.start()
    const { summary } = await rig.show()
    t.ok(summary.durableLsn >= rig.wal.trimmed(TIMELINE), `durable ${summary.durableLsn}, nothing is missing`)
    t.ok(summary.durableLsn >= durable, 'durable never falls')
    durable = summary.durableLsn
  }
  for (const chunk of chunks) rig.wal.append(TIMELINE, chunk)
  await rig.waitFor(log.end)
  for (let i = 0; i < files; i++) {
    const get: FileGet = {
      type: MessageType.FileGet,
      timeline: TIMELINE,
      lsn: 0 as Lsn,
      path: `zoo/t${i}.frm`,
    }
    const replies = await rig.connection.requestAll(get)
    t.equal(Buffer.concat(replies.map(reply => reply.bulk)).toString(), `contents of ${i}`)
  }
  for (const part of [random(), 1]) {
    if (part === 1 || replay.lsn < log.begin + (log.end - log.begin) * part)
      replay.advanceTo(log.begin + (log.end - log.begin) * part)
    const { compared, differences } = await rig.compare(replay)
    t.same(differences.slice(0, 5), [], `${compared} pages at LSN ${replay.lsn}`)
  }
})
