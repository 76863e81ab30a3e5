/** `palimpsest status` over TLS: until when the certificates are valid, and a warning while there is time. */
import t from 'tap'
import { Cluster } from '../support/cluster.ts'
import { Pki } from '../support/pki.ts'

t.test('certificates of all safekeepers and the page server', async t => {
  const pki = await Pki.make(t)
  await pki.writeNode('node', ['localhost', '127.0.0.1'], 10)
  const files = [
    '--tls-cert',
    pki.path('node.pem'),
    '--tls-key',
    pki.path('node.key'),
    '--tls-ca',
    pki.caFile,
  ]
  const cluster = await Cluster.start(t, [...files, '--memory', '256M'])
  const client = ['--tls-ca', pki.caFile]
  const { safekeepers, pageServers, attention } = await cluster.cliJson('status', ...client)
  const [first] = pageServers as { address: string; certificateExpires: string }[]
  t.match(first, { address: cluster.address, certificateExpires: /^\d{4}-.*Z$/ })
  const { certificateExpires } = first!
  t.match(safekeepers, [
    { name: 'sk1', certificateExpires },
    { name: 'sk2', certificateExpires },
    { name: 'sk3', certificateExpires },
  ])
  const days = (Date.parse(certificateExpires) - Date.now()) / 86_400_000
  t.ok(days > 9 && days <= 10, certificateExpires)
  const warning = `certificate of safekeeper sk1, safekeeper sk2, safekeeper sk3, page server ${cluster.address}: expires in 9 d, ${certificateExpires}; renew it`
  t.match(attention, [warning])
  const { stdout, code } = await cluster.cli('status', ...client)
  t.equal(code, 0)
  t.match(stdout, /certificate\n(?:sk\d .* 9 d\n){3}/)
  t.ok(stdout.includes(warning))
  t.ok(
    stdout.split('\n').every(line => line.length <= 80 || line.startsWith('certificate of')),
    'fits a terminal',
  )
})
