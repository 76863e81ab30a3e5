import t from 'tap'
import { humanBytes, humanSeconds, Progress } from '../../../server/shared/progress.ts'

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

t.test('numbers for people', async t => {
  t.strictSame([0, 1023, 1536, 5 << 20, 300 << 20].map(humanBytes), [
    '0 B',
    '1023 B',
    '1.5 KiB',
    '5.0 MiB',
    '300 MiB',
  ])
  t.strictSame([3, 75, 7300, Number.POSITIVE_INFINITY].map(humanSeconds), [
    '3 s',
    '1 min 15 s',
    '2 h 1 min',
    '?',
  ])
})
