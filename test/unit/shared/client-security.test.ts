import { rmSync, writeFileSync } from 'node:fs'
import t from 'tap'
import { openClientSecurity } from '../../../server/shared/client-security.ts'
import { Pki } from '../../support/pki.ts'

const like = (fields: object) => fields as Error

t.test('a token file in the midst of being replaced leaves the token before, which is said once', async t => {
  const pki = await Pki.make(t)
  const tokenFile = await pki.tokenFile(['admin'])
  const told: string[] = []
  const security = openClientSecurity({ tokenFile }, problem => told.push(problem))
  const first = security?.token?.()
  const next = await pki.token(['admin'], { name: 'next' })
  // An empty file, half a token, none.
  for (const [i, text] of [
    '',
    next.slice(0, -20),
    next.slice(0, next.lastIndexOf('.')),
    undefined,
  ].entries()) {
    if (text === undefined) rmSync(tokenFile)
    else writeFileSync(tokenFile, text)
    for (let attempt = 0; attempt < 3; attempt++) t.equal(security?.token?.(), first, `${text}`)
    t.equal(told.length, i + 1, 'once each')
    t.match(told[i], /token.* stays in use/)
    if (text) t.notOk(told[i]?.includes(text), 'never the token itself')
  }
  writeFileSync(tokenFile, `${next}\n`, { mode: 0o600 })
  t.equal(security?.token?.(), next)
  t.equal(told.length, 4)
})

t.test('what was never a token is refused', async t => {
  const directory = t.testdir()
  const key = Pki.make(t).then(pki => pki.apiKey('a', ['admin']))
  const tokenFile = `${directory}/token`
  for (const text of [
    '',
    'a.b.c',
    'plk_short',
    `${(await key).key}x`,
    `${(await key).key} ${(await key).key}`,
  ]) {
    writeFileSync(tokenFile, text, { mode: 0o600 })
    t.throws(
      () => openClientSecurity({ tokenFile }),
      like({ kind: 'invalid', message: /does not hold one token/ }),
    )
  }
  writeFileSync(tokenFile, (await key).key)
  t.equal(openClientSecurity({ tokenFile })?.token?.(), (await key).key)
  t.same(openClientSecurity({ tokenFile })?.expiring, [], 'API keys do not expire')
})

t.test(
  'a certificate and its key are taken together or not at all; a CA that names nobody is none',
  async t => {
    const pki = await Pki.make(t)
    const told: string[] = []
    const files = { tlsCa: pki.caFile, ...pki.clientCertificate }
    const security = openClientSecurity(files, problem => told.push(problem))
    const first = security?.tls?.()
    await pki.writeNode('other')
    const { readFileSync } = await import('node:fs')
    writeFileSync(pki.path('node.key'), readFileSync(pki.path('other.key')))
    t.equal(security?.tls?.(), first)
    t.equal(told.length, 1)
    writeFileSync(pki.path('node.pem'), readFileSync(pki.path('other.pem')))
    const second = security?.tls?.()
    t.not(second, first)
    writeFileSync(pki.caFile, '')
    t.equal(security?.tls?.(), second)
    t.match(told, [/key.* stays in use/, /TLS cannot be set up.* stays in use/])
    t.throws(() => openClientSecurity({ tlsCa: pki.caFile }), like({ kind: 'invalid' }))
  },
)

t.test('when things expire', async t => {
  const pki = await Pki.make(t)
  const expiresAtMs = Math.floor(Date.now() / 1000) * 1000 + 60_000
  const tokenFile = await pki.tokenFile(['admin'], { expiresAtMs })
  const security = pki.client(tokenFile, pki.clientCertificate)
  t.match(security?.expiring, [
    { kind: 'certificate', file: pki.path('node.pem') },
    { kind: 'token', file: tokenFile, expiresAtMs },
  ])
})

t.test('the one timeline that a token may write to', async t => {
  const pki = await Pki.make(t)
  const id = 'ab'.repeat(16)
  const of = async (...scopes: string[]) =>
    openClientSecurity({ tokenFile: await pki.tokenFile(scopes) })?.onlyTimeline
  t.equal(await of(`write:${id}`), id)
  t.equal(await of(`write:${id}`, 'read:*'), id)
  for (const scopes of [
    ['write:*'],
    [`write:${id}`, 'admin'],
    [`write:${id}`, `write:${'cd'.repeat(16)}`],
    [`read:${id}`],
  ])
    t.equal(await of(...scopes), undefined, scopes.join(' '))
  const { key } = await pki.apiKey('a', [`write:${id}`])
  writeFileSync(pki.path('api'), key, { mode: 0o600 })
  t.equal(
    openClientSecurity({ tokenFile: pki.path('api') })?.onlyTimeline,
    undefined,
    'an API key does not say',
  )
})
