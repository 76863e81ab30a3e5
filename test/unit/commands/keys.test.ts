/** `palimpsest keys` as a person runs it: what it writes, with which mode, and that it overwrites nothing. */
import { X509Certificate } from 'node:crypto'
import { mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { ApiKeys } from '../../../server/shared/api-keys.ts'
import { nodesOf } from '../../../server/shared/node-names.ts'
import { TokenKeys } from '../../../server/shared/tokens.ts'
import { type CliResult, palimpsest } from '../../support/cluster.ts'

function workspace(t: Test) {
  const dir = mkdtempSync(join(tmpdir(), 'pal-keys-'))
  t.teardown(() => rmSync(dir, { recursive: true, force: true }))
  const path = (name: string) => join(dir, name)
  return {
    path,
    text: (name: string) => readFileSync(path(name), 'utf8'),
    mode: (name: string) => (statSync(path(name)).mode & 0o777).toString(8),
    run: async (...args: string[]): Promise<CliResult> => await palimpsest(['keys', ...args]),
  }
}

t.test('a CA and certificates of nodes', async t => {
  const { path, text, mode, run } = workspace(t)
  const ok = async (...args: string[]) => {
    const { code, stderr } = await run(...args)
    t.equal(code, 0, stderr)
  }
  await ok('ca', '--out', path('keys'), '--valid', '10d')
  await ok('node', 'sk1', '--ca', path('keys'), '--host', 'sk1.example,10.0.0.1,fd00::1', '--days', '3')
  t.same([mode('keys/ca.key'), mode('keys/sk1.key')], ['600', '600'])
  const ca = new X509Certificate(text('keys/ca.pem'))
  const node = new X509Certificate(text('keys/sk1.pem'))
  t.ok(ca.ca)
  t.notOk(node.ca)
  t.ok(node.verify(ca.publicKey))
  t.ok(node.checkIssued(ca))
  t.ok(node.checkHost('sk1.example'))
  t.notOk(node.checkHost('sk2.example'))
  t.ok(node.checkIP('10.0.0.1') && node.checkIP('fd00::1'))
  t.same(nodesOf(node), ['sk1.example', 'sk1'])
  await ok('node', 'all', '--ca', path('keys'), '--node', 'a,b')
  t.same(nodesOf(new X509Certificate(text('keys/all.pem'))), ['localhost', 'a', 'b', 'all'])
  t.equal(Math.round((node.validToDate.getTime() - Date.now()) / 86_400_000), 3)

  rmSync(path('keys/sk1.key'))
  t.match(await run('node', 'sk1', '--ca', path('keys')), { code: 1, stderr: /sk1\.pem exists already/ })
  t.throws(() => text('keys/sk1.key'), { code: 'ENOENT' } as unknown as Error, 'both or none')
  await ok('node', 'sk1', '--ca', path('keys'), '--renew')
  const before = text('keys/sk1.pem')
  const again = await run('node', 'sk1', '--ca', path('keys'))
  t.equal(again.code, 1)
  t.match(again.stderr, /sk1\.key exists already; it is not overwritten/)
  t.equal((await run('ca', '--out', path('keys'))).code, 1)
  t.equal(text('keys/sk1.pem'), before)
  await ok('node', 'sk1', '--ca', path('keys'), '--renew')
  t.not(text('keys/sk1.pem'), before)
  t.equal(mode('keys/sk1.key'), '600')
  const renewed = new X509Certificate(text('keys/sk1.pem'))
  t.equal(renewed.subjectAltName, node.subjectAltName, 'for the same names')
  await ok('node', 'all', '--ca', path('keys'), '--renew')
  t.same(nodesOf(new X509Certificate(text('keys/all.pem'))), ['localhost', 'a', 'b', 'all'])
  await ok('node', 'sk1', '--ca', path('keys'), '--renew', '--host', 'sk2.example')
  t.same(nodesOf(new X509Certificate(text('keys/sk1.pem'))), ['sk2.example', 'sk1'])
  const bad = await run('node', 'a', '--ca', path('keys'), '--host', 'a b')
  t.equal(bad.code, 2)
  t.match((await run('node', 'x', '--ca', path('nowhere'))).stderr, /cannot read .*ca\.pem: ENOENT/)
})

t.test('token keys and tokens', async t => {
  const { path, text, mode, run } = workspace(t)
  const made = JSON.parse((await run('token-key', '--out', path('keys'), '--json')).stdout) as {
    keyId: string
  }
  t.equal(mode('keys/token.key'), '600')
  const token = await run('token', 'me', '--key', path('keys/token.key'), '--scope', 'admin', '--hours', '1')
  const keys = new TokenKeys(text('keys/token-keys.json'), 'token-keys.json')
  t.same(keys.keyIds, [made.keyId])
  const principal = await keys.verify(token.stdout.trim())
  const half = JSON.parse(
    (
      await run(
        'token',
        'me',
        '--key',
        path('keys/token.key'),
        '--scope',
        'admin',
        '--valid',
        '30m',
        '--json',
      )
    ).stdout,
  ) as { expires: string }
  t.equal(Math.ceil((Date.parse(half.expires) - Date.now()) / 60_000), 30)
  t.equal(principal.name, 'me')
  const id = 'ab'.repeat(16)
  const args = [
    'token',
    'agent',
    '--key',
    path('keys/token.key'),
    '--scope',
    `write:${id}`,
    '--scope',
    'read:*',
  ]
  t.equal((await run(...args, '--out', path('agent.token'))).code, 0)
  t.equal(mode('agent.token'), '600')
  t.same((await keys.verify(text('agent.token').trim())).scopes, [`write:${id}`, 'read:*'])
  t.equal((await run(...args, '--out', path('agent.token'))).code, 1)

  // A second key beside the first, so that tokens can be changed over.
  t.match((await run('token-key', '--out', path('keys'))).stderr, /token\.key exists already/)
  writeFileSync(path('keys/token.key.old'), text('keys/token.key'))
  rmSync(path('keys/token.key'))
  t.equal((await run('token-key', '--out', path('keys'))).code, 0)
  const both = new TokenKeys(text('keys/token-keys.json'), 'token-keys.json')
  t.equal(both.keyIds.length, 2)
  t.ok(await both.verify(token.stdout.trim()))

  for (const bad of [
    ['token', 'me', '--key', path('keys/token.key'), '--scope', 'root'],
    ['token', 'me', '--key', path('keys/token.key'), '--scope', 'read:prod'],
    ['token', 'me', '--key', path('keys/token.key')],
    ['token', '-x-', '--key', path('keys/token.key'), '--scope', 'admin'],
    ['token', 'me', '--key', path('keys/token.key'), '--scope', 'admin', '--days', '1', '--hours', '1'],
    ['token', 'me', '--key', path('keys/token.key'), '--scope', 'admin', '--valid', '1d', '--days', '1'],
    ['token', 'me', '--key', path('keys/token.key'), '--scope', 'admin', '--valid', '12'],
    ['token', 'me', '--key', path('keys/token.key'), '--scope', 'admin', '--valid', '0h'],
  ])
    t.equal((await run(...bad)).code, 2, bad.slice(4).join(' '))
})

t.test('API keys', async t => {
  const { path, text, mode, run } = workspace(t)
  const first = await run('api-key', 'grafana', '--file', path('api-keys'), '--scope', 'read:*')
  t.match(first.stdout, /^plk_[\w-]{43}\n$/)
  t.equal(
    (await run('api-key', 'ops', '--file', path('api-keys'), '--scope', 'admin', '--out', path('ops'))).code,
    0,
  )
  t.same([mode('api-keys'), mode('ops')], ['600', '600'])
  const keys = new ApiKeys(text('api-keys'), 'api-keys')
  t.equal(keys.find(first.stdout.trim())?.name, 'grafana')
  t.same(keys.find(text('ops').trim())?.scopes, ['admin'])
  t.notMatch(text('api-keys'), first.stdout.trim(), 'the key itself is not in it')
  const twice = await run('api-key', 'ops', '--file', path('api-keys'), '--scope', 'peer:sk1')
  t.match([twice.code, twice.stdout, twice.stderr], [1, '', /there is already a key "ops"/])
})
