import t from 'tap'
import { Turns } from '../../../server/shared/turns.ts'

t.test(
  'one after the other, in the order asked for; a failure is told to who asked and stops nobody',
  async t => {
    const turns = new Turns()
    const told: string[] = []
    let release = () => {}
    const first = turns.run(async () => {
      await new Promise<void>(resolve => {
        release = resolve
      })
      told.push('first')
      return 1
    })
    const second = turns.run(async () => {
      told.push('second')
      throw new Error('it failed')
    })
    const third = turns.run(async () => {
      told.push('third')
      return 3
    })
    await new Promise(resolve => setImmediate(resolve))
    t.same(told, [], 'the first is not done')
    release()
    t.equal(await first, 1)
    await t.rejects(second, /it failed/)
    t.equal(await third, 3)
    t.same(told, ['first', 'second', 'third'])
  },
)

t.test('done waits for what was asked for by now, and fails for nobody', async t => {
  const turns = new Turns()
  await turns.done()
  let isDone = false
  const failing = turns.run(async () => {
    await new Promise(resolve => setImmediate(resolve))
    isDone = true
    throw new Error('it failed')
  })
  failing.catch(() => {})
  await turns.done()
  t.equal(isDone, true)
})
