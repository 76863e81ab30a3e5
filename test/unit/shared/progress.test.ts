import t from 'tap'
import { Progress } from '../../../server/shared/progress.ts'

function collect(mode: 'lines' | 'json' | 'silent') {
  const out: string[] = []
  const clock = { ms: 0 }
  return { out, clock, progress: new Progress({ mode, write: text => out.push(text), now: () => clock.ms }) }
}

t.test('lines: now and then, with rate and remaining time', async t => {
  const { out, clock, progress } = collect('lines')
  const task = await progress.task('pages', 100 << 20)
  clock.ms = 1000
  task.update(10 << 20)
  t.strictSame(out, [], 'not at every step')
  clock.ms = 4000
  task.update(40 << 20)
  clock.ms = 10_000
  task.update(100 << 20)
  task.finish()
  t.strictSame(out, [
    'pages: 40.0 MiB of 100 MiB (40 %), 10.0 MiB/s, 6 s left\n',
    'pages: 100 MiB of 100 MiB (100 %), 10.0 MiB/s, 0 s left\n',
    'pages: 100 MiB in 10 s, 10.0 MiB/s\n',
  ])
})

t.test('json: one object a line', async t => {
  const { out, clock, progress } = collect('json')
  const task = await progress.task('pages', 1000)
  clock.ms = 5000
  task.update(500)
  progress.message('half', { lsn: 5 })
  progress.event('following', { lsn: 6 })
  t.match(
    out.map(line => JSON.parse(line)),
    [
      {
        event: 'progress',
        task: 'pages',
        doneBytes: 500,
        totalBytes: 1000,
        bytesPerSecond: 100,
        secondsLeft: 5,
      },
      { event: 'message', message: 'half', lsn: 5 },
      { event: 'following', lsn: 6 },
    ],
  )
})

t.test('silent', async t => {
  const { out, progress } = collect('silent')
  progress.message('nothing')
  const task = await progress.task('x', 1)
  task.finish()
  t.strictSame(out, [])
})
