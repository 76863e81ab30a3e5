/** What a page server makes durable when it is stopped. */
import t from 'tap'
import {
  chunksOf,
  type GoldenLog,
  goldenLog,
  goldenReplay,
  Rig,
  TIMELINE,
} from '../support/page-server-rig.ts'

t.test('what is in memory only, with and without safekeepers that have it', async t => {
  const log = goldenLog('16k')
  const at = (part: number): number => {
    const replay = goldenReplay('16k')
    replay.advanceTo(log.begin + (log.end - log.begin) * part)
    return replay.lsn
  }
  const rig = new Rig()
  t.teardown(() => rig.destroy())
  const feed = async (from: number, end: number) => {
    const part: GoldenLog = { ...log, bytes: log.bytes.subarray(from - log.begin), begin: from, end }
    for (const chunk of chunksOf(part, () => 50_000)) rig.wal.append(TIMELINE, chunk)
    await rig.waitFor(end)
  }
  await rig.start()
  await rig.create(log.begin, log.pageSize)
  await rig.import(goldenReplay('16k'), log.begin)
  const [first, second] = [at(0.1), at(0.2)]
  await feed(log.begin, first)
  await rig.stop()
  await rig.start()
  t.equal(
    (await rig.show()).summary.durableLsn,
    first,
    'as a rule it is made durable, so the next start is quick',
  )

  await feed(first, second)
  await rig.loseSafekeepers()
  while ((await rig.show()).lastError === '') await new Promise(resolve => setTimeout(resolve, 20))
  await rig.stop()
  await rig.start()
  const { summary } = await rig.show()
  t.equal(summary.durableLsn, first, 'nobody is there who has it: another log may go on before it')
  await rig.waitFor(second)
  t.equal((await rig.show()).summary.ingestedLsn, second, 'it comes again')
})
