import { setTimeout as delay } from 'node:timers/promises'
import t from 'tap'
import { forEachAtMost } from '../../../server/pageserver/environment.ts'

t.test('so many at a time, and each of them once', async t => {
  let running = 0
  let most = 0
  const done: number[] = []
  await forEachAtMost(3, Array(20).keys(), async item => {
    most = Math.max(most, ++running)
    await delay(item % 4)
    running--
    done.push(item)
  })
  t.equal(most, 3)
  t.same(
    done.sort((a, b) => a - b),
    [...Array(20).keys()],
  )
  await forEachAtMost(3, [], () => Promise.reject(new Error('there is nothing to do')))
})

t.test('after a failure nothing more is begun, and what is under way ends first', async t => {
  const begun: number[] = []
  let ended = 0
  const all = forEachAtMost(2, Array(10).keys(), async item => {
    begun.push(item)
    if (item === 1) throw new Error('no')
    await delay(20)
    ended++
  })
  await t.rejects(all, /no/)
  t.same(begun, [0, 1])
  t.equal(ended, 1)
})
