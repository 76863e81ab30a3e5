/** The safekeepers lost redo that the page server had taken in: it says so, and never goes on in another history. */
import t from 'tap'
import type { Lsn } from '../../protocol/ids.ts'
import {
  chunksOf,
  type GoldenLog,
  goldenLog,
  goldenReplay,
  Rig,
  TIMELINE,
} from '../support/page-server-rig.ts'

const log = goldenLog('16k')
const at = (part: number) => {
  const replay = goldenReplay('16k')
  replay.advanceTo(log.begin + (log.end - log.begin) * part)
  return replay
}

function feed(rig: Rig, from: number, to: number): void {
  const part: GoldenLog = { ...log, bytes: log.bytes.subarray(from - log.begin), begin: from, end: to }
  for (const chunk of chunksOf(part, () => 50_000)) rig.wal.append(TIMELINE, chunk)
}

async function started(t: { teardown(run: () => unknown): void }): Promise<Rig> {
  const rig = new Rig()
  t.teardown(() => rig.destroy())
  await rig.start()
  await rig.create(log.begin, log.pageSize)
  await rig.import(goldenReplay('16k'), log.begin)
  return rig
}

async function heard(rig: Rig, problem: RegExp): Promise<void> {
  for (let i = 0; i < 3000; i++) {
    if (problem.test((await rig.show()).lastError)) return
    await new Promise(resolve => setTimeout(resolve, 10))
  }
  throw new Error(`not within 30 s: ${problem}`)
}

async function stopped(rig: Rig): Promise<string> {
  for (let i = 0; i < 3000; i++) {
    const { summary, lastError } = await rig.show()
    if (summary.state === 'stopped') return lastError
    await new Promise(resolve => setTimeout(resolve, 10))
  }
  throw new Error('the timeline was not stopped within 30 s')
}

t.test('what it had in memory only is given up, and after a restart it goes on', async t => {
  const rig = await started(t)
  const early = at(0.1)
  feed(rig, log.begin, early.lsn)
  await rig.waitFor(early.lsn)
  await rig.checkpoint()
  const late = at(0.3)
  feed(rig, early.lsn, late.lsn)
  await rig.waitFor(late.lsn)
  const parted = rig.wal.part(TIMELINE, at(0.2).lsn)
  t.match(
    await stopped(rig),
    new RegExp(`log ended at LSN ${parted} then.*up to LSN ${late.lsn}.*restart the page server`),
  )
  // By then the log may have grown beyond where it was.
  feed(rig, parted, log.end)
  await rig.stop()
  await rig.start()
  await rig.waitFor(log.end)
  const { compared, differences } = await rig.compare(at(1))
  t.same(differences, [], `${compared} pages`)
})

t.test('what it had made durable stays as it was, and it takes in no more, also after a restart', async t => {
  const rig = await started(t)
  const late = at(0.3)
  feed(rig, log.begin, late.lsn)
  await rig.waitFor(late.lsn)
  await rig.checkpoint()
  await rig.stop()
  const parted = rig.wal.part(TIMELINE, at(0.2).lsn)
  feed(rig, parted, log.end)
  const text = new RegExp(
    `log ended at LSN ${parted} then.*stays readable up to LSN ${late.lsn}.*new timeline name`,
  )
  for (const when of ['at once', 'and again']) {
    await rig.start()
    t.match(await stopped(rig), text, when)
    t.equal((await rig.show()).summary.ingestedLsn, late.lsn)
    if (when === 'and again') {
      const { compared, differences } = await rig.compare(late)
      t.same(differences, [], `${compared} pages`)
    }
    await rig.stop()
  }
})

t.test('one that was not ahead goes on as if nothing had been', async t => {
  const rig = await started(t)
  const half = at(0.5)
  feed(rig, log.begin, half.lsn)
  await rig.waitFor(half.lsn)
  t.equal(rig.wal.part(TIMELINE, half.lsn), half.lsn)
  const more = at(0.6)
  feed(rig, half.lsn, more.lsn)
  await rig.waitFor(more.lsn)

  // A member of the old cell that came back, or one of another cell that was made of it.
  for (const [tells, text] of [
    [[], /not heard of that yet, or is of the old one/],
    [[{ lsn: half.lsn as Lsn, cellId: '2'.repeat(32) }], /is of another one, 2222/],
  ] as const) {
    rig.wal.tells = tells
    rig.wal.cut()
    await heard(rig, text)
  }
  feed(rig, more.lsn, log.end)
  await new Promise(resolve => setTimeout(resolve, 500))
  t.equal((await rig.show()).summary.ingestedLsn, more.lsn, 'nothing is read from it')
  rig.wal.tells = undefined
  await rig.waitFor(log.end)
  await rig.checkpoint()
  await rig.stop()
  await rig.start()
  rig.wal.cut()
  await rig.waitFor(log.end)
  t.equal((await rig.show()).summary.state, 'active')
  t.same((await rig.compare(at(1))).differences, [])
})
