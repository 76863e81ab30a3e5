/** A real MariaDB whose pages lie in a real S3 service, by way of the command line. */
import { readdirSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { Cluster } from '../support/cluster.ts'
import { MariadbServer, mariadbSkip } from '../support/mariadb.ts'
import { Radosgw, radosgwSkip } from '../support/radosgw.ts'
import { BankWorkload } from '../support/workloads/bank.ts'

const skip = mariadbSkip() || radosgwSkip()

t.test('import, attach, kill -9, an empty cache, verify, export; then a second owner', { skip }, async t => {
  const ceph = await Radosgw.start(t)
  await ceph.bucket('palimpsest')
  Object.assign(process.env, ceph.environment)
  const store = ['--store', 's3://palimpsest/prod', '--s3-endpoint', ceph.endpoint, '--s3-path-style']
  const server = await MariadbServer.create(t)
  const cluster = await Cluster.start(t, [...store, '--cache-size', '64M'])
  const bank = new BankWorkload(server)
  await bank.setup()

  const agent = cluster.attach(t, server.datadir, 'prod')
  await agent.saw('following')
  await bank.run(400)
  // At any moment, redo and layers under way.
  bank.start()
  while (bank.journal.length < 800) await new Promise(next => setTimeout(next, 5))
  await cluster.kill9()
  const local = join(cluster.dataDir, 'pageserver')
  t.ok(readdirSync(join(local, 'layer-cache', 'layers')).length > 0, 'there were copies')
  rmSync(local, { recursive: true })
  await cluster.restart()
  await agent.saw(/trying again/)
  await bank.stop()
  await bank.run(200)
  await server.stop()

  const verified = await cluster.cli('verify', '--timeline', 'prod', '--datadir', server.datadir)
  t.match(verified.stdout, /compared \d+ pages, 0 differ\n$/, verified.stderr)
  await agent.stop()
  t.comment(verified.stdout.trim().split('\n').at(-1))

  // Once more with nothing of it here, and everything durable in S3 alone.
  await cluster.stop()
  rmSync(local, { recursive: true })
  await cluster.restart()
  const out = join(t.testdir(), 'out')
  await cluster.cliJson('export', '--timeline', 'prod', '--out', out)
  const copy = await MariadbServer.open(t, out)
  t.strictSame(await bank.verify(copy, Number.POSITIVE_INFINITY), [])
  await copy.remove()

  // A second page server on the same prefix: from then on the first one may not write.
  const second = await Cluster.pageserver(t, cluster, store)
  const again = await second.cli('verify', '--timeline', 'prod', '--datadir', server.datadir)
  t.match(again.stdout, /compared \d+ pages, 0 differ\n$/, again.stderr)
  await server.start()
  const late = cluster.attach(t, server.datadir, 'prod')
  t.equal(await late.exited, 1, 'files that changed could not be captured there any more')
  t.match(late.stderr, /another process; this one no longer owns it and must stop/)
  await server.stop()
  t.match((await cluster.cli('status')).stdout, /another page server owns timeline prod/)
  t.notMatch((await second.cli('timeline', 'list')).stdout, /stopped/)
})
