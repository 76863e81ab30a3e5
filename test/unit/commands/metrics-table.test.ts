/** The table of metrics in docs/operations.md is the list of metrics that there are. */
import { readdirSync, readFileSync } from 'node:fs'
import t from 'tap'
import { dial } from '../../../protocol/dial.ts'
import { type Lsn, toTimelineId } from '../../../protocol/ids.ts'
import { MessageType, Role } from '../../../protocol/messages.ts'
import { AttachMetrics } from '../../../server/attach/metrics.ts'
import { Metrics } from '../../../server/shared/metrics.ts'
import { Cluster } from '../../support/cluster.ts'

interface Row {
  readonly kind: string
  readonly labels: readonly string[]
}

const documented = new Map<string, Row>()
const text = readFileSync(new URL('../../../docs/operations.md', import.meta.url), 'utf8')
for (const [, name, kind, labels] of text.matchAll(/^\| `(palimpsest_\w+)` \| (\w+) \|([^|]*)\|/gm))
  documented.set(name as string, {
    kind: kind as string,
    labels: (labels as string).split(', ').map(l => l.trim()),
  })

function sources(): string[] {
  const server = new URL('../../../server/', import.meta.url)
  return readdirSync(server, { recursive: true, encoding: 'utf8' })
    .filter(name => name.endsWith('.ts'))
    .map(name => readFileSync(new URL(name, server), 'utf8'))
}

/** Names and kinds from the comments of the text, and the labels that were seen. */
function scraped(metrics: string): Map<string, { kind: string; labels: Set<string> }> {
  const found = new Map<string, { kind: string; labels: Set<string> }>()
  for (const line of metrics.split('\n')) {
    const type = /^# TYPE (palimpsest_\w+) (\w+)$/.exec(line)
    if (type) found.set(type[1] as string, { kind: type[2] as string, labels: new Set() })
    const sample = /^(palimpsest_\w+?)(?:_bucket|_sum|_count)?\{(.*)\}/.exec(line)
    if (sample === null) continue
    const metric = found.get(sample[1] as string)
    for (const [, label] of (sample[2] as string).matchAll(/(\w+)="/g)) metric?.labels.add(label as string)
  }
  return found
}

t.test('the table and the metrics agree', async t => {
  const cluster = await Cluster.start(t, ['--admin-listen', '127.0.0.1:0', '--memory', '300M'])
  const admin = /"address":"([^"]+)","msg":"admin port open"/.exec(cluster.log)?.[1]
  t.ok(admin, 'the log says where the admin port is')
  const connection = await dial(cluster.address, Role.PAGESERVER)
  await connection.request({
    type: MessageType.TimelineCreate,
    timeline: toTimelineId('0123456789abcdef0123456789abcdef'),
    startLsn: 12288 as Lsn,
    innodbPageSize: 16384,
    name: 'prod',
    serverVersion: '10.11.18-MariaDB',
  })
  connection.close()
  const reply = await fetch(`http://${admin}/metrics`)
  const all = scraped(await reply.text())
  t.equal((await fetch(`http://${admin}/readyz`)).status, 200)

  const agent = await Metrics.create()
  new AttachMetrics(agent.part('attach'), 'prod')
  for (const [name, metric] of scraped(await agent.text())) all.set(name, metric)

  for (const name of all.keys()) t.ok(documented.has(name), `${name} is in the table`)
  // What this cluster does not have (a layer cache before a store that is no directory, say) is at least in the code.
  const code = sources().join('\n')
  for (const name of documented.keys())
    t.ok(all.has(name) || code.includes(`'${name.replace(/^palimpsest_[a-z0-9]+_/, '')}'`), `${name} exists`)
  for (const [name, { kind, labels }] of all) {
    t.equal(documented.get(name)?.kind, kind, `${name} is a ${kind}`)
    const known = documented.get(name)?.labels ?? []
    for (const label of labels)
      t.ok(label === 'le' || known.includes(label), `${name} has the label ${label}`)
  }
  t.ok(all.get('palimpsest_pageserver_ingested_lsn')?.labels.has('timeline'), 'the timeline is told of')
  for (const [, name] of text.matchAll(/`(palimpsest_[a-z_]+)/g)) {
    const base = (name as string).replace(/_(bucket|sum|count)$/, '')
    t.ok(documented.has(base), `${name} is a metric`)
  }
})
