import t from 'tap'
import { planMemory } from '../../../server/pageserver/memory-plan.ts'

const MIB = 1 << 20

for (const memory of [256, 384, 512, 1024, 4096, 16_384, 131_072])
  for (const threads of [1, 2, 4])
    t.test(`${memory} MiB and ${threads} threads`, async t => {
      const plan = planMemory(memory * MIB, threads)
      const shared =
        plan.arenaBytesTotal + plan.cacheBytes + plan.layerBytesPerThread * (threads + plan.backgroundThreads)
      t.ok(shared <= memory * MIB, `${shared / MIB} MiB are given out`)
      t.ok(plan.arenaBytesTotal >= 6 * plan.arenaBytes)
      t.ok(plan.arenaBytesTotal < 2 ** 32, 'offsets in it have 32 bits')
      t.ok(plan.flushBytes * 2 < plan.arenaBytesTotal, 'one memtable fills while another is written')
    })

t.test('too little', async t => {
  t.throws(() => planMemory(100 * MIB, 2), { kind: 'invalid', message: /at least 256 MiB/ })
})
