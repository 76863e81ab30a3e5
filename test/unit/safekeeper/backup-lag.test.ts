import t from 'tap'
import { BackupLag } from '../../../server/safekeeper/backup-lag.ts'

t.test('what is behind, against a list of all entries', async t => {
  const lag = new BackupLag()
  const all: number[] = []
  let done = 0
  for (let index = 1; index <= 20_000; index++) {
    const bytes = (index * 7919) % 20_000
    all.push(bytes)
    lag.applied(index, bytes)
    if (index % 1500 !== 0) continue
    done = index - (index % 400)
    lag.backedUp(done)
    const behind = all.slice(done).reduce((sum, n) => sum + n, 0)
    t.ok(lag.bytes >= behind && lag.bytes <= behind + 300_000, `${lag.bytes} of ${behind}`)
  }
  lag.backedUp(20_000)
  t.equal(lag.bytes, 0, 'nothing, once all of it is backed up')
  lag.applied(20_001, 5)
  lag.backedUp(19_000)
  t.equal(lag.bytes, 5)
})

t.test('a backup that fails for long takes no memory', async t => {
  const lag = new BackupLag()
  for (let index = 1; index <= 200_000; index++) lag.applied(index, 300_000)
  const { marks } = lag as unknown as { readonly marks: readonly unknown[] }
  t.ok(marks.length <= 1024)
  t.equal(lag.bytes, 200_000 * 300_000)
  lag.backedUp(200_000)
  t.equal(lag.bytes, 0)
})
