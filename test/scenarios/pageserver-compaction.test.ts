/** Merging layers and making images changes no page at any LSN, nor what a restart finds. */
import t from 'tap'
import { chunksOf, goldenLog, goldenReplay, Rig, seeded, TIMELINE } from '../support/page-server-rig.ts'

t.test('every page at random LSNs before, during and after compactions', async t => {
  const log = goldenLog('16k')
  const random = seeded(7)
  // Layers of a quarter of a megabyte: the log makes some thirty of them.
  const rig = new Rig({ flushBytes: 256 << 10 })
  t.teardown(() => rig.destroy())
  await rig.start()
  await rig.create(log.begin, log.pageSize)
  await rig.import(goldenReplay('16k'), log.begin)
  for (const chunk of chunksOf(log, () => 250_000 * random())) {
    rig.wal.append(TIMELINE, chunk)
    // Otherwise what has come together is one range, and one layer.
    await rig.waitFor(rig.wal.end(TIMELINE))
  }

  const compareAt = async (parts: number[], when: string) => {
    const replay = goldenReplay('16k')
    for (const part of parts) {
      replay.advanceTo(log.begin + (log.end - log.begin) * part)
      const { compared, differences } = await rig.compare(replay)
      t.same(differences.slice(0, 5), [], `${compared} pages at LSN ${replay.lsn} ${when}`)
    }
  }
  await compareAt([0.15, 0.6, 1], 'while compactions run')
  await rig.checkpoint()
  await rig.server!.timelines.compacted()
  const { layers } = rig.server!.timelines.get(TIMELINE)
  t.ok(
    layers.some(layer => layer.level === 1 && layer.kind === 'delta'),
    'layers were merged',
  )
  t.ok(
    layers.some(layer => layer.level === 2),
    'images were made',
  )
  t.ok(layers.filter(layer => layer.level === 0).length <= 8, 'few layers of level 0 are left')
  await compareAt([0.1 + 0.2 * random(), 0.4 + 0.2 * random(), 0.7 + 0.2 * random(), 1], 'after compactions')
  await rig.stop()
  await rig.start()
  await compareAt([0.3 * random(), 0.5 + 0.5 * random(), 1], 'after a restart')
})
