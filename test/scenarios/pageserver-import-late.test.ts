/** Redo that comes, is flushed and compacted, before the import that it applies to has ended. */
import t, { type Test } from 'tap'
import type { NaiveReplay } from '../support/naive-replay.ts'
import {
  chunksOf,
  goldenLog,
  goldenReplay,
  Rig,
  TIMELINE,
  withoutPageChecksums,
} from '../support/page-server-rig.ts'

const log = withoutPageChecksums(goldenLog('16k'))

function at(part: number): NaiveReplay {
  const replay = goldenReplay('16k')
  replay.advanceTo(log.begin + (log.end - log.begin) * part)
  return replay
}

async function startRig(t: Test): Promise<Rig> {
  const rig = new Rig({ flushBytes: 128 << 10 })
  t.teardown(() => rig.destroy())
  await rig.start()
  await rig.create(log.begin, log.pageSize)
  return rig
}

async function feed(rig: Rig, from: number, to: number): Promise<void> {
  for (const chunk of chunksOf(
    { ...log, bytes: log.bytes.subarray(from - log.begin), begin: from, end: to },
    () => 100_000,
  )) {
    rig.wal.append(TIMELINE, chunk)
    await rig.waitFor(rig.wal.end(TIMELINE))
  }
  await rig.checkpoint()
  await rig.server!.timelines.compacted()
}

const images = (rig: Rig): number =>
  rig.server!.timelines.get(TIMELINE).layers.filter(({ kind, level }) => kind === 'image' && level > 1).length

async function equal(t: Test, rig: Rig, parts: number[], when: string): Promise<void> {
  for (const part of parts) {
    const { compared, differences } = await rig.compare(at(part))
    t.same(differences.slice(0, 5), [], `${compared} pages at ${part} of the log ${when}`)
  }
}

t.test('the first import ends after its redo was compacted', async t => {
  const rig = await startRig(t)
  await feed(rig, log.begin, log.end)
  t.equal(images(rig), 0, 'no images yet')
  await rig.import(goldenReplay('16k'), at(0.2).lsn)
  await equal(t, rig, [0.2, 0.6, 1], 'now')
  await rig.server!.timelines.compacted()
  t.ok(images(rig) > 0, 'images are made once it has ended')
  await equal(t, rig, [0.2, 0.6, 1], 'after compactions')
})

t.test('so does the import that mends a gap', async t => {
  const rig = await startRig(t)
  const [lost, found] = [at(0.1), at(0.3)]
  await rig.import(goldenReplay('16k'), log.begin)
  await feed(rig, log.begin, lost.lsn)
  rig.wal.skip(TIMELINE, found.lsn)
  await feed(rig, found.lsn, log.end)
  await rig.import(found, found.lsn, 'partial')
  await equal(t, rig, [0.1, 0.3, 0.6, 1], 'now')
  await rig.server!.timelines.compacted()
  t.ok(images(rig) > 0)
  await equal(t, rig, [0.1, 0.3, 0.6, 1], 'after compactions')
})
