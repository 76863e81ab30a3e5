import t from 'tap'
import { ArenaMemory, ArenaPool, arenasMax } from '../../../server/pageserver/arena.ts'

t.test('bottom and top never meet', async t => {
  const memory = ArenaMemory.allocate(3 << 16, 1 << 16)
  memory.reset(1)
  let bottom = 0
  let top = memory.start(1) + (1 << 16)
  for (let i = 0; ; i++) {
    if (i % 2 === 0) {
      if (!memory.take(1, 1000)) break
      bottom += 1000
    } else {
      const at = memory.takeTop(1, 777)
      if (at < 0) break
      t.ok(at % 8 === 0 && at + 777 <= top && at >= memory.start(1) + bottom)
      top = at
    }
  }
  t.ok(memory.freeBytes(1) < 1000)
  t.equal(memory.takeTop(1, 1 << 16), -1, 'what does not fit takes nothing')
  const free = memory.freeBytes(1)
  t.equal(memory.take(1, free + 1), false)
  t.equal(memory.freeBytes(1), free)
})

t.test('arenas are counted, and an index may use the reserve', async t => {
  const pool = new ArenaPool(ArenaMemory.allocate(4 << 16, 1 << 16))
  const taken = [pool.acquire(false), pool.acquire(false), pool.acquire(false)]
  t.ok(taken.every(arena => arena >= 0))
  t.equal(pool.acquire(false), -1, 'the last one is for indexes')
  const last = pool.acquire(true)
  t.ok(last >= 0)
  t.equal(pool.acquire(true), -1)
  pool.retain(last)
  let freed = false
  const waiting = pool.freed().then(() => {
    freed = true
  })
  pool.release(last)
  await Promise.resolve()
  t.equal(freed, false, 'one reference is left')
  pool.release(last)
  await waiting
  t.equal(pool.freeCount, 1)
  t.throws(() => pool.release(last), /released but free/)
})

t.test('there are no arenas beyond what Buffer.copy reaches', async t => {
  t.throws(() => ArenaMemory.allocate(5 * 2 ** 30, 1 << 24), RangeError)
  t.ok(arenasMax(1 << 24) * (1 << 24) > 4_000_000_000)
})
