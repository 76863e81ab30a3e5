// Everything over TLS with tokens, from the command line: a server attached to, its keys and certificates changed while it
// runs, exported, verified; and those who may not, told so.
import { rmSync, writeFileSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import { connect } from 'node:tls'
import t from 'tap'
import { Cluster, palimpsest } from '../support/cluster.ts'
import { MariadbServer, mariadbSkip } from '../support/mariadb.ts'
import { Pki } from '../support/pki.ts'

const MINE = 'cafe'.repeat(8)
const OTHER = 'beef'.repeat(8)

t.test('attach, export and verify over TLS with tokens', { skip: mariadbSkip() }, async t => {
  const pki = await Pki.make(t)
  const [before, after] = [
    pki.apiKey('attach-1', [`write:${MINE}`]),
    pki.apiKey('attach-2', [`write:${MINE}`]),
  ]
  writeFileSync(pki.path('api-keys'), before.line + after.line)
  const agentToken = pki.path('agent.token')
  writeFileSync(agentToken, before.key, { mode: 0o600 })
  const { tlsCert, tlsKey, tokenKeys } = pki.serverFiles as Record<string, string>
  const certificate = ['--tls-cert', tlsCert as string, '--tls-key', tlsKey as string]
  const client = (tokenFile: string) => ['--tls-ca', pki.caFile, ...certificate, '--token-file', tokenFile]

  const server = await MariadbServer.create(t)
  const cluster = await Cluster.start(t, [
    ...certificate,
    ...[
      '--tls-client-ca',
      pki.caFile,
      '--token-keys',
      tokenKeys as string,
      '--api-keys',
      pki.path('api-keys'),
    ],
    // What its page server shows to its safekeeper.
    ...['--tls-ca', pki.caFile, '--token-file'],
    await pki.tokenFile(['pageserver', 'peer:sk1', 'peer:sk2', 'peer:sk3'], { name: 'ps' }),
  ])
  const attach = (id: string, ...more: string[]) => ['--id', id, ...client(agentToken), ...more]

  const refused = await cluster.cli(
    'attach',
    '--datadir',
    server.datadir,
    '--timeline',
    'prod',
    ...attach(OTHER),
  )
  t.equal(refused.code, 1)
  t.match(
    refused.stderr,
    /the token of "attach-1" \(write:(cafe)+\) does not allow WalCreate of timeline (beef)+/,
  )

  const agent = cluster.attach(t, server.datadir, 'prod', ...attach(MINE))
  await agent.saw('following')
  await server.sql('CREATE DATABASE d')
  await server.sql("CREATE TABLE d.t SELECT seq AS id, REPEAT('x', 100) AS v FROM d.seq_1_to_2000")

  // A new certificate: by itself, and with SIGHUP.
  const serial = () =>
    new Promise<string>((resolve, reject) => {
      const [host, port] = cluster.address.split(':') as [string, string]
      const socket = connect({ host, port: Number(port), rejectUnauthorized: false }, () => {
        resolve(socket.getPeerX509Certificate()?.serialNumber ?? '')
        socket.destroy()
      }).on('error', reject)
    })
  for (const how of ['file', 'SIGHUP'] as const) {
    const old = await serial()
    await pki.writeNode('node')
    if (how === 'SIGHUP') cluster.signal('SIGHUP')
    while ((await serial()) === old) await sleep(50)
    t.pass(`a new certificate by ${how}`)
  }
  await server.sql('INSERT INTO d.t SELECT id + 2000, v FROM d.t')

  // The agent's key is withdrawn; it goes on with the next one.
  writeFileSync(agentToken, after.key)
  writeFileSync(pki.path('api-keys'), after.line)
  cluster.signal('SIGHUP')
  while (!/the key of \\"attach-1\\" was withdrawn/.test(cluster.log)) await sleep(50)
  await server.sql('UPDATE d.t SET v = REVERSE(v)')
  const rows = await server.sql('CHECKSUM TABLE d.t')
  await server.stop()

  const reader = client(await pki.tokenFile([`read:${MINE}`], { name: 'reader' }))
  const verify = await cluster.cli('verify', '--timeline', 'prod', '--datadir', server.datadir, ...reader)
  t.match(verify.stdout, /compared [1-9]\d* pages, 0 differ\n$/, verify.stderr)
  await agent.stop()

  const out = `${server.datadir}-restored`
  t.teardown(() => rmSync(out, { recursive: true, force: true }))
  const exported = await cluster.cli('export', '--timeline', 'prod', '--out', out, ...reader)
  t.equal(exported.code, 0, exported.stderr)
  const restored = await MariadbServer.open(t, out)
  t.strictSame(await restored.sql('CHECKSUM TABLE d.t'), rows)

  // Those who may not.
  const stranger = client(await pki.tokenFile([`read:${OTHER}`], { name: 'stranger' }))
  t.match((await cluster.cli('timeline', 'list', ...stranger)).stdout, /no timelines yet/)
  const [there, absent] = await Promise.all(
    [MINE, 'feed'.repeat(8)].map(id => cluster.cli('timeline', 'show', id, ...stranger)),
  )
  t.match(there!.stderr, /"stranger" .* does not allow TimelineShow/)
  t.equal(there!.stderr.replaceAll(MINE, 'X'), absent!.stderr.replaceAll('feed'.repeat(8), 'X'))
  const [named, nowhere] = await Promise.all(
    ['prod', 'nowhere'].map(name => cluster.cli('timeline', 'show', name, ...stranger)),
  )
  t.equal(named!.stderr.replaceAll('prod', 'X'), nowhere!.stderr.replaceAll('nowhere', 'X'))
  const deletion = await cluster.cli('timeline', 'delete', 'prod', '--yes', ...client(agentToken))
  t.match(deletion.stderr, /"attach-2" .* does not allow WalDelete/)
  const admin = await pki.tokenFile(['admin'])
  const noCertificate = [
    'status',
    '--connect',
    cluster.address,
    '--tls-ca',
    pki.caFile,
    '--token-file',
    admin,
  ]
  t.match((await palimpsest(noCertificate)).stderr, /the server wants a client certificate/)
  t.equal((await cluster.cli('timeline', 'delete', 'prod', '--yes', ...client(admin))).code, 0)
})
