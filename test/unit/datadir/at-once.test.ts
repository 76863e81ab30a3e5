// Work on several lists side by side, and what becomes of it when something fails.
import { setTimeout as sleep } from 'node:timers/promises'
import t from 'tap'
import { atOnce } from '../../../server/datadir/at-once.ts'

t.test('each list has its own number of items at a time', async t => {
  const now = { a: 0, b: 0 }
  const most = { a: 0, b: 0 }
  const done: string[] = []
  const items = (name: string, count: number) => Array.from({ length: count }, (_, i) => `${name}${i}`)
  await atOnce(
    [
      { items: items('a', 5), count: 2 },
      { items: items('b', 9), count: 3 },
    ],
    undefined,
    async item => {
      const list = item[0] as 'a' | 'b'
      most[list] = Math.max(most[list], ++now[list])
      await sleep(1)
      now[list]--
      done.push(item)
    },
  )
  t.strictSame(most, { a: 2, b: 3 })
  t.strictSame(done.sort(), [...items('a', 5), ...items('b', 9)].sort())
})

t.test('a failure stops what is under way, however long that would go on', async t => {
  const begun: string[] = []
  const ended: string[] = []
  const failed = atOnce(
    [
      { items: ['long', 'later'], count: 1 },
      { items: ['bad', 'never'], count: 1 },
    ],
    undefined,
    async (item, signal) => {
      begun.push(item)
      try {
        if (item === 'bad') throw new Error('the disk is full')
        for (;;) {
          await sleep(1)
          signal.throwIfAborted()
        }
      } finally {
        ended.push(item)
      }
    },
  )
  await t.rejects(failed, { message: 'the disk is full' })
  t.strictSame(begun, ['long', 'bad'], 'nothing new was begun')
  t.strictSame(ended.sort(), ['bad', 'long'], 'and all of it has ended')
})

t.test('stopped from outside', async t => {
  const outer = new AbortController()
  const work = atOnce([{ items: [1], count: 1 }], outer.signal, async (_item, signal) => {
    for (;;) {
      await sleep(1)
      signal.throwIfAborted()
    }
  })
  outer.abort(new Error('stopped by signal'))
  await t.rejects(work, { message: 'stopped by signal' })
})
