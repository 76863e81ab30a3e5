import t from 'tap'
import {
  DISK_SECONDS,
  firstFew,
  Metrics,
  metricName,
  NO_METRICS,
  SERIES_MAX,
  TIMELINES_MAX,
} from '../../../server/shared/metrics.ts'

t.test('names keep the rules', async t => {
  t.equal(metricName('pageserver', 'lag_bytes', 'gauge'), 'palimpsest_pageserver_lag_bytes')
  t.equal(metricName('listener', 'requests_total', 'counter'), 'palimpsest_listener_requests_total')
  for (const [name, kind] of [
    ['lag', 'gauge'],
    ['lag_bytes_total', 'gauge'],
    ['lag_bytes', 'counter'],
    ['lag_furlongs', 'gauge'],
    ['lagBytes', 'gauge'],
    ['_bytes', 'gauge'],
    ['total', 'counter'],
  ] as const)
    t.throws(() => metricName('pageserver', name, kind), /is named <part>_<what>_<unit>/, `${kind} ${name}`)
  t.throws(() => metricName('page-server', 'lag_bytes', 'gauge'))
})

t.test('counted, observed and sampled', async t => {
  const metrics = await Metrics.create()
  const part = metrics.part('safekeeper')
  const elections = part.counter('elections_total', 'elections')
  const appends = part.counter('requests_total', 'appends', ['outcome'])
  const sync = part.histogram('sync_seconds', 'fdatasync', DISK_SECONDS)
  let committed = 7
  part.sampledGauge('committed_lsn', 'committed', ['timeline'], put => put(committed, 'prod'))
  part.sampledGauge('unknown_bytes', 'not known now', [], () => {})
  part.sampledCounter('read_bytes_total', 'read', [], put => put(committed))
  elections.add(1)
  appends.add(2, 'ok')
  appends.add(1, 'fenced')
  sync.observe(0.0002)
  const lines = (await metrics.text()).split('\n')
  for (const line of [
    'palimpsest_safekeeper_elections_total 1',
    'palimpsest_safekeeper_requests_total{outcome="ok"} 2',
    'palimpsest_safekeeper_requests_total{outcome="fenced"} 1',
    'palimpsest_safekeeper_sync_seconds_bucket{le="0.0001"} 0',
    'palimpsest_safekeeper_sync_seconds_bucket{le="0.00025"} 1',
    'palimpsest_safekeeper_sync_seconds_count 1',
    'palimpsest_safekeeper_committed_lsn{timeline="prod"} 7',
    'palimpsest_safekeeper_read_bytes_total 7',
    'palimpsest_process_dropped_series_total 0',
    '# TYPE palimpsest_safekeeper_committed_lsn gauge',
  ])
    t.ok(lines.includes(line), line)
  t.notOk(
    lines.some(line => line.startsWith('palimpsest_safekeeper_unknown_bytes ')),
    'what is not known is left out',
  )
  committed = 9
  const later = (await metrics.text()).split('\n')
  t.ok(later.includes('palimpsest_safekeeper_committed_lsn{timeline="prod"} 9'))
  t.ok(later.includes('palimpsest_safekeeper_read_bytes_total 9'))
  t.equal(metrics.descriptions.length, 7)
})

t.test('two of one process do not meet', async t => {
  const [a, b] = [await Metrics.create(), await Metrics.create()]
  a.part('x').counter('requests_total', 'r').add(1)
  b.part('x').counter('requests_total', 'r').add(5)
  t.match(await a.text(), 'palimpsest_x_requests_total 1')
  t.throws(() => a.part('x').counter('requests_total', 'r'), /is there already/)
})

t.test('several of a kind in one process share metrics, with a label that tells them apart', async t => {
  const metrics = await Metrics.create()
  for (const [node, lsn] of [
    ['a', 5],
    ['b', 6],
  ] as const) {
    const part = metrics.part('safekeeper', { node })
    part.counter('elections_total', 'elections').add(lsn)
    part.counter('requests_total', 'requests', ['type']).add(1, 'x')
    part.histogram('sync_seconds', 'fdatasync', [1]).observe(0.5)
    part.sampledGauge('committed_lsn', 'committed', ['timeline'], put => put(lsn, 'prod'))
  }
  const lines = (await metrics.text()).split('\n')
  for (const line of [
    'palimpsest_safekeeper_elections_total{node="a"} 5',
    'palimpsest_safekeeper_elections_total{node="b"} 6',
    'palimpsest_safekeeper_requests_total{type="x",node="b"} 1',
    'palimpsest_safekeeper_sync_seconds_count{node="a"} 1',
    'palimpsest_safekeeper_committed_lsn{timeline="prod",node="a"} 5',
    'palimpsest_safekeeper_committed_lsn{timeline="prod",node="b"} 6',
  ])
    t.ok(lines.includes(line), line)
  t.throws(() => metrics.part('safekeeper').counter('elections_total', 'e'), /is there already/)
  t.throws(
    () => metrics.part('safekeeper', { zone: 'x' }).counter('elections_total', 'e'),
    /is there already/,
  )
})

t.test('the number of series is bounded', async t => {
  const metrics = await Metrics.create()
  const part = metrics.part('x')
  const counter = part.counter('requests_total', 'r', ['who'])
  for (let i = 0; i < SERIES_MAX + 10; i++) counter.add(1, `client ${i}`)
  counter.add(1, 'client 0')
  part.sampledGauge('lag_bytes', 'l', ['who'], put => {
    for (let i = 0; i < SERIES_MAX + 5; i++) put(i, `t${i}`)
  })
  const lines = (await metrics.text()).split('\n')
  t.equal(lines.filter(line => line.startsWith('palimpsest_x_requests_total{')).length, SERIES_MAX)
  t.equal(lines.filter(line => line.startsWith('palimpsest_x_lag_bytes{')).length, SERIES_MAX)
  t.ok(lines.includes('palimpsest_x_requests_total{who="client 0"} 2'))
  t.match(await metrics.text(), /palimpsest_process_dropped_series_total \d\d/)
  t.equal([...firstFew(Array(TIMELINES_MAX * 3).keys())].length, TIMELINES_MAX)
})

t.test('without metrics nothing happens', async () => {
  NO_METRICS.counter('c', '').add(1)
  NO_METRICS.histogram('h', '', []).observe(1)
  NO_METRICS.sampledGauge('g', '', [], () => {
    throw new Error('never asked')
  })
})
