import t from 'tap'
import { loadNodeId } from '../../../server/pageserver/node-id.ts'
import { MemoryObjectStore } from '../../support/memory-object-store.ts'

const like = (error: object) => error as Error

t.test('the name belongs to the store', async t => {
  const store = new MemoryObjectStore()
  const id = await loadNodeId(t.testdir(), store)
  t.match(id, /^pageserver-[0-9a-f]{16}$/)
  t.equal(
    await loadNodeId(t.testdir({ 'node-id': 'pageserver-0123456789abcdef\n' }), store),
    id,
    'another machine',
  )
  const other = new MemoryObjectStore()
  t.not(await loadNodeId(t.testdir(), other), id)
})

t.test('one that a data directory has from before goes on', async t => {
  const store = new MemoryObjectStore()
  t.equal(
    await loadNodeId(t.testdir({ 'node-id': 'pageserver-0123456789abcdef\n' }), store),
    'pageserver-0123456789abcdef',
  )
  t.equal(await loadNodeId(t.testdir(), store), 'pageserver-0123456789abcdef')
})

t.test('of two that start at once both have the same, whoever was first', async t => {
  const store = new MemoryObjectStore()
  const [one, two] = await Promise.all([loadNodeId(t.testdir(), store), loadNodeId(t.testdir(), store)])
  t.equal(one, two)
})

t.test('what is no name is refused', async t => {
  const store = new MemoryObjectStore()
  await store.putIfAbsent('pageserver-id', Buffer.from('../../etc'))
  await t.rejects(loadNodeId(t.testdir(), store), like({ kind: 'corrupt' }))
  await t.rejects(
    loadNodeId(t.testdir({ 'node-id': 'x' }), new MemoryObjectStore()),
    like({ kind: 'corrupt' }),
  )
})
