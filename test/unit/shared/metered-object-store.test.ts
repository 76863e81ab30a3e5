import t from 'tap'
import { retryError } from '../../../server/shared/errors.ts'
import { MeteredObjectStore } from '../../../server/shared/metered-object-store.ts'
import { Metrics } from '../../../server/shared/metrics.ts'
import { MemoryObjectStore } from '../../support/memory-object-store.ts'

t.test('operations are counted by what became of them', async t => {
  const metrics = await Metrics.create()
  const inner = new MemoryObjectStore()
  const store = new MeteredObjectStore(inner, metrics.part('store'))
  t.equal(await store.putIfAbsent('a/b', Buffer.from('12345')), true)
  t.equal(await store.putIfAbsent('a/b', Buffer.from('123')), false)
  t.same(await store.get('a/b'), Buffer.from('12345'))
  t.equal(await store.get('a/c'), undefined)
  t.same(await store.getRange('a/b', 1, 2), Buffer.from('23'))
  inner.list = () => Promise.reject(retryError('away'))
  t.match(await store.list('').catch(e => e), { kind: 'retry' })
  const text = await metrics.text()
  for (const [labels, count] of [
    ['operation="put",outcome="ok"', 1],
    ['operation="put",outcome="conflict"', 1],
    ['operation="get",outcome="ok"', 1],
    ['operation="get",outcome="absent"', 1],
    ['operation="get_range",outcome="ok"', 1],
    ['operation="list",outcome="retry"', 1],
  ] as const)
    t.ok(text.includes(`palimpsest_store_operation_seconds_count{${labels}} ${count}\n`), labels)
  t.ok(text.includes('palimpsest_store_read_bytes_total 7\n'))
  t.ok(text.includes('palimpsest_store_written_bytes_total 5\n'))
})
