import t from 'tap'
import { WorkerPool } from '../../../server/shared/worker-pool.ts'

const pool = new WorkerPool<typeof import('../../support/pool-tasks.ts')>({
  filename: new URL('../../support/pool-tasks.ts', import.meta.url).href,
  threads: 2,
  queueMax: 4,
})
t.teardown(() => pool.close())

t.test('tasks by name, with their types', async t => {
  t.equal(await pool.run('double', { value: 21 }), 42)
})

t.test('an error keeps its kind and LSN', async t => {
  t.match(await pool.run('fail', { kind: 'corrupt' }).catch(e => e), {
    kind: 'corrupt',
    lsn: 77,
    message: 'as asked',
  })
  t.match(await pool.run('fail', { kind: 'surprise' }).catch(e => e), {
    kind: 'internal',
    message: 'as asked',
  })
})

t.test('the queue is bounded', async t => {
  const results = await Promise.allSettled(Array.from({ length: 40 }, () => pool.run('sleep', { ms: 20 })))
  const refused = results.filter(result => result.status === 'rejected')
  t.ok(refused.length > 0 && refused.length < 40)
  t.ok(refused.every(result => (result as PromiseRejectedResult).reason.kind === 'retry'))
})

t.test('a thread that dies costs its tasks, and no more', async t => {
  t.match(await pool.run('die', {}).catch(e => e), { kind: 'retry' })
  t.equal(await pool.run('double', { value: 2 }), 4)
})

t.test('gathered tasks stay on the first threads while these have room; others go elsewhere', async t => {
  const gathering = new WorkerPool<typeof import('../../support/pool-tasks.ts')>({
    filename: new URL('../../support/pool-tasks.ts', import.meta.url).href,
    threads: 2,
    gathered: { tasks: ['gatheredThread'], threads: 1 },
  })
  t.teardown(() => gathering.close())
  // Both threads are there once each has done something.
  let threads = new Set<number>()
  while (threads.size < 2)
    threads = new Set(
      await Promise.all(Array.from({ length: 4 }, () => gathering.run('anyThread', { ms: 10 }))),
    )
  const gatheredOn = await gathering.run('gatheredThread', { ms: 0 })
  for (let i = 0; i < 20; i++) {
    const two = [gathering.run('gatheredThread', { ms: 1 }), gathering.run('gatheredThread', { ms: 0 })]
    const other = gathering.run('anyThread', { ms: 0 })
    t.same(await Promise.all(two), [gatheredOn, gatheredOn])
    t.not(await other, gatheredOn)
  }
  const many = await Promise.all(Array.from({ length: 4 }, () => gathering.run('gatheredThread', { ms: 5 })))
  t.equal(new Set(many).size, 2, 'without room there they go elsewhere')
})
