import { createHmac, generateKeyPairSync } from 'node:crypto'
import { SignJWT } from 'jose'
import t from 'tap'
import { ApiKeys, apiKeyLine, isApiKey, makeApiKey } from '../../../server/shared/api-keys.ts'
import {
  makeSigningKey,
  parseKeySet,
  publicJwk,
  readSigningKey,
  signToken,
  TOKEN_TYPE,
  TokenKeys,
} from '../../../server/shared/tokens.ts'

const like = (fields: object) => fields as Error
const key = readSigningKey(makeSigningKey(), 'key')
const jwk = await publicJwk(key)
const keys = new TokenKeys(JSON.stringify({ keys: [jwk] }), 'keys.json')
const inAnHour = Date.now() + 3600_000

t.test('a token signed is a token known', async t => {
  const token = await signToken(key, { name: 'me', scopes: ['admin', 'peer:a'], expiresAtMs: inAnHour })
  const principal = await keys.verify(token)
  t.equal(principal.name, 'me')
  t.same(principal.scopes, ['admin', 'peer:a'])
  t.ok(keys.vouchesFor(principal))
  t.ok(principal.expiresAtMs! >= inAnHour - 1000 && principal.expiresAtMs! <= inAnHour + 31_000)
  const others = new TokenKeys(
    JSON.stringify({ keys: [await publicJwk(readSigningKey(makeSigningKey(), 'other'))] }),
    'others.json',
  )
  t.notOk(others.vouchesFor(principal))
  await t.rejects(
    others.verify(token),
    like({ kind: 'invalid', message: /a key that this server does not know/ }),
  )
  await t.rejects(
    keys.verify(token, new Date(inAnHour + 60_000)),
    like({ kind: 'invalid', message: /it expired at .*; get a new one/ }),
  )
  t.ok(await keys.verify(token, new Date(inAnHour + 20_000)), 'a little difference of clocks is forgiven')
})

t.test('what is no token of ours', async t => {
  const claims = { scope: 'admin' }
  const header = { alg: 'EdDSA', typ: TOKEN_TYPE, kid: jwk.kid }
  const make = (head = header) =>
    new SignJWT(claims).setProtectedHeader(head).setAudience('palimpsest').setSubject('me')
  const good = await make().setExpirationTime('1h').sign(key)
  t.ok(await keys.verify(good))
  const part = (value: object) => Buffer.from(JSON.stringify(value)).toString('base64url')
  const [, payload, signature] = good.split('.') as [string, string, string]
  const hmacHead = `${part({ ...header, alg: 'HS256' })}.${payload}`
  const bad: Record<string, string> = {
    'no expiry': await make().sign(key),
    'for somebody else': await make().setAudience('other').setExpirationTime('1h').sign(key),
    'another type': await make({ ...header, typ: 'JWT' })
      .setExpirationTime('1h')
      .sign(key),
    'no subject': await new SignJWT(claims)
      .setProtectedHeader(header)
      .setAudience('palimpsest')
      .setExpirationTime('1h')
      .sign(key),
    'an odd subject': await make().setSubject('a\nb').setExpirationTime('1h').sign(key),
    'an unknown scope': await new SignJWT({ scope: 'root' })
      .setProtectedHeader(header)
      .setAudience('palimpsest')
      .setSubject('me')
      .setExpirationTime('1h')
      .sign(key),
    'not signed': `${part({ ...header, alg: 'none' })}.${payload}.`,
    // The public key as an HMAC secret: the classic confusion of algorithms.
    'HMAC with the public key': `${hmacHead}.${createHmac('sha256', jwk['x'] as string)
      .update(hmacHead)
      .digest('base64url')}`,
    'another scope, the old signature': `${part(header)}.${part({ ...claims, scope: 'peer:a', aud: 'palimpsest', sub: 'me', exp: 9e9 })}.${signature}`,
    'a flipped bit': `${good.slice(0, -4)}${good.at(-4) === 'A' ? 'B' : 'A'}${good.slice(-3)}`,
    empty: '..',
    text: 'hello',
  }
  for (const [what, token] of Object.entries(bad)) {
    const error = await keys.verify(token).then(
      () => undefined,
      error => error,
    )
    t.match(error, { kind: 'invalid' }, what)
    t.notOk(error?.message.includes(payload), `${what}: the error does not repeat the token`)
  }
})

t.test('key sets: what a server refuses to load', async t => {
  const set = (value: unknown) => JSON.stringify(value)
  const rsa = generateKeyPairSync('rsa', { modulusLength: 2048 }).publicKey.export({ format: 'jwk' })
  for (const [text, message] of [
    ['{', /is not JSON/],
    ['[]', /is not a JSON Web Key Set/],
    ['null', /is not a JSON Web Key Set/],
    [set({ keys: [] }), /is not a JSON Web Key Set/],
    [set({ keys: [{ ...rsa, kid: 'a' }] }), /key 1 is not an Ed25519 key/],
    [set({ keys: [jwk, jwk] }), /key 2 has no "kid", or one that another key has/],
    [set({ keys: [{ ...jwk, d: 'secret' }] }), /is a private key/],
    [set({ keys: [{ ...jwk, x: 'short' }] }), /cannot be used/],
  ] as const)
    t.throws(() => parseKeySet(text, 'keys.json'), like({ kind: 'invalid', message }))
  t.throws(() => readSigningKey('none', 'f'), like({ kind: 'invalid' }))
  const ec = generateKeyPairSync('ec', { namedCurve: 'P-256' }).privateKey
  t.throws(
    () => readSigningKey(ec.export({ type: 'pkcs8', format: 'pem' }) as string, 'f'),
    like({ message: /tokens are signed with Ed25519/ }),
  )
})

t.test('API keys', async t => {
  const one = makeApiKey()
  const two = makeApiKey()
  t.ok(isApiKey(one))
  t.notSame(one, two)
  const file = `# keys\n${apiKeyLine('one', ['admin'], one)}\n  two read:*,pageserver ${apiKeyLine('x', ['peer:a'], two).split(' ')[2]}`
  const known = new ApiKeys(file, 'api-keys')
  t.equal(known.size, 2)
  t.equal(known.find(one)?.name, 'one')
  t.same(known.find(two)?.scopes, ['read:*', 'pageserver'])
  t.equal(known.find(makeApiKey()), undefined)
  t.equal(known.find(''), undefined)
  const principal = known.find(one)!
  t.ok(known.vouchesFor(principal))
  t.notOk(new ApiKeys('', 'empty').vouchesFor(principal))
  t.notOk(new ApiKeys(apiKeyLine('one', ['peer:a'], one), 'changed').vouchesFor(principal), 'other scopes')
  t.notOk(new ApiKeys(apiKeyLine('one', ['admin'], two), 'changed').vouchesFor(principal), 'another key')
  for (const bad of [
    'one admin',
    'one admin 12',
    `one root ${'0'.repeat(64)}`,
    `one admin ${'0'.repeat(64)} more`,
    `- admin ${'0'.repeat(64)}`,
    `one admin ${'0'.repeat(64)}\none peer:a ${'1'.repeat(64)}`,
  ])
    t.throws(() => new ApiKeys(bad, 'api-keys'), like({ kind: 'invalid', message: /^api-keys, line [12]: / }))
})
