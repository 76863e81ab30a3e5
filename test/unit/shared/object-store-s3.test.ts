import { existsSync, readFileSync, statSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { CasObject } from '../../../server/shared/cas-object.ts'
import { parseS3Url, S3ObjectStore } from '../../../server/shared/object-store-s3.ts'
import { objectStoreContract } from '../../contract/object-store.ts'
import { type S3Fault, S3Service, TRICKLE_MS } from '../../support/s3-service.ts'

/** What a rejection must look like; tap takes any object, its types want an Error. */
const like = (error: object) => error as Error

async function open(
  t: Parameters<typeof S3Service.start>[0],
  service: S3Service,
  more = {},
): Promise<S3ObjectStore> {
  const store = await S3ObjectStore.open(service.options(more))
  t.teardown(() => store.close())
  return store
}

objectStoreContract('S3, a service without faults', async t => open(t, await S3Service.start(t)))

// Every third request or so goes wrong, one way or another; all of these pass when it is repeated.
objectStoreContract('S3, a service full of faults', async t => {
  const service = await S3Service.start(t)
  const store = await open(t, service, { attemptsMax: 40 })
  const faults: S3Fault[] = ['lost', 'refused', 'slow', 'internal', 'conflict', 'cut', 'lost']
  let turn = 0
  service.fault = method => {
    turn++
    if (turn % 3 !== 0) return undefined
    const fault = faults[(turn / 3) % faults.length]!
    // What makes no sense for a request without contents.
    return fault === 'cut' && method !== 'GET' && method !== 'LIST' ? 'slow' : fault
  }
  return store
})

t.test('a success whose reply was lost is told apart from a defeat', async t => {
  const service = await S3Service.start(t)
  const store = await open(t, service)
  const once = (fault: S3Fault) => {
    let done = false
    service.fault = method => {
      if (done || method !== 'PUT') return undefined
      done = true
      return fault
    }
  }
  for (const fault of ['lost', 'slow', 'refused'] as const) {
    once(fault)
    t.equal(await store.putIfAbsent(`won-${fault}`, Buffer.from('mine')), true, fault)
  }
  // Somebody else's attempt comes between ours, which had no effect, and its repetition; with the same bytes.
  let first = true
  service.fault = (method, key) => {
    if (method !== 'PUT' || !first) return undefined
    first = false
    service.objects.set(key, {
      bytes: Buffer.from('mine'),
      metadata: { 'x-amz-meta-palimpsest-token': 'theirs' },
    })
    return 'refused'
  }
  t.equal(await store.putIfAbsent('contended', Buffer.from('mine')), false, 'equal bytes do not make it ours')
  const local = join(t.testdir(), 'local')
  writeFileSync(local, 'layer')
  once('lost')
  t.equal(await store.putFile('layer', local), true)
  t.notOk(existsSync(local))
})

t.test('a refusal is final, and said once', async t => {
  const service = await S3Service.start(t)
  const store = await open(t, service)
  service.fault = () => 'denied'
  service.requests = []
  await t.rejects(
    store.putIfAbsent('k', Buffer.from('v')),
    like({ kind: 'internal', message: /access denied.*s3:PutObject/ }),
  )
  await t.rejects(store.get('k'), like({ kind: 'internal' }))
  t.equal(service.requests.length, 2, 'nothing was repeated')
  service.fault = () => 'slow'
  service.requests = []
  await t.rejects(store.list(''), like({ kind: 'retry', message: /SlowDown.*6 attempts/ }))
  t.equal(service.requests.length, 6)
})

t.test('contents that were damaged at rest or on the way are not taken', async t => {
  const service = await S3Service.start(t)
  const store = await open(t, service, { attemptsMax: 3 })
  await store.putIfAbsent('k', Buffer.alloc(5000, 'x'))
  const copy = join(t.testdir(), 'copy')
  service.fault = method => (method === 'GET' ? 'damaged' : undefined)
  await t.rejects(store.get('k'), like({ kind: 'corrupt', message: /does not match the CRC-32C/ }))
  await t.rejects(store.getFile('k', copy), like({ kind: 'corrupt' }))
  t.notOk(existsSync(copy))
  let gets = 0
  service.fault = method => (method === 'GET' && gets++ === 0 ? 'damaged' : undefined)
  t.equal((await store.get('k'))?.length, 5000, 'what was damaged on the way comes whole the next time')
  gets = 0
  service.fault = method => (method === 'GET' ? (['refused', 'damaged'] as const)[gets++] : undefined)
  t.equal((await store.get('k'))?.length, 5000, 'also after an attempt that failed otherwise')
  service.fault = method => (method === 'GET' ? 'cut' : undefined)
  await t.rejects(store.getFile('k', copy), like({ kind: 'retry' }))
  t.notOk(existsSync(copy), 'half of a file is no file')
  service.fault = () => undefined
  t.equal(await store.getFile('k', copy), 5000)
})

t.test('half a listing is not taken for all of it', async t => {
  const service = await S3Service.start(t)
  const store = await open(t, service, { attemptsMax: 2 })
  for (let i = 0; i < 12; i++) await store.putIfAbsent(`k/${i}`, Buffer.from('x'))
  t.equal((await store.list('k/')).length, 12)
  service.forgetsTokens = true
  await t.rejects(store.list('k/'), like({ kind: 'retry', message: /where the next one begins/ }))
})

t.test('a service that ignores conditions is refused', async t => {
  const service = await S3Service.start(t)
  service.ignoresConditions = true
  await t.rejects(
    S3ObjectStore.open(service.options()),
    like({ kind: 'invalid', message: /ignores If-None-Match/ }),
  )
})

t.test('closing ends what is under way', async t => {
  const service = await S3Service.start(t)
  const store = await open(t, service, { backoffMs: 60_000 })
  service.fault = () => 'internal'
  const put = store.putIfAbsent('k', Buffer.from('v'))
  put.catch(() => {})
  while (service.requests.length < 2) await new Promise(next => setTimeout(next, 5))
  store.close()
  await t.rejects(put, like({ kind: 'retry', message: /being closed/ }))
})

t.test('a reply that moves is waited for, one that stands still is not', async t => {
  const service = await S3Service.start(t)
  // All of the contents take longer than any of the limits.
  const limitMs = Math.round(TRICKLE_MS / 2)
  const store = await open(t, service, {
    attemptsMax: 2,
    idleTimeoutMs: limitMs,
    replyTimeoutMs: limitMs,
  })
  const bytes = Buffer.alloc(100_000, 'slow ')
  await store.putIfAbsent('k', bytes)
  const copy = join(t.testdir(), 'copy')
  service.requests = []
  service.fault = method => (method === 'GET' ? 'trickle' : undefined)
  t.ok((await store.get('k'))?.equals(bytes))
  t.equal((await store.getRange('k', 10, 90_000))?.length, 90_000)
  t.equal(await store.getFile('k', copy), bytes.length)
  t.ok(readFileSync(copy).equals(bytes))
  t.equal(
    service.requests.filter(request => request.startsWith('GET')).length,
    3,
    'each at the first attempt',
  )
  service.fault = method => (method === 'GET' ? 'stall' : undefined)
  service.requests = []
  const attempts: (() => Promise<unknown>)[] = [
    () => store.get('k'),
    () => store.getRange('k', 10, 90_000),
    () => store.getFile('k', join(t.testdir(), 'none')),
  ]
  for (const attempt of attempts)
    await t.rejects(
      attempt(),
      like({ kind: 'retry', message: /(stands still|of inactivity).*2 attempts/ }),
      attempt.toString(),
    )
  t.equal(service.requests.filter(request => request.startsWith('GET')).length, 6, 'each was repeated')
  service.fault = () => undefined
  t.ok((await store.get('k'))?.equals(bytes))
})

t.test('a store opened to read sends nothing that writes', async t => {
  const service = await S3Service.start(t)
  const writer = await open(t, service)
  await writer.putIfAbsent('a/b', Buffer.from('v'))
  service.requests = []
  const dir = t.testdir()
  const store = await S3ObjectStore.openToRead(service.options())
  t.teardown(() => store.close())
  t.equal((await store.get('a/b'))?.toString(), 'v')
  t.equal(await store.head('a/b'), 1)
  t.equal((await store.getRange('a/b', 0, 1))?.toString(), 'v')
  t.same(await store.list('a/'), [{ key: 'a/b', bytes: 1 }])
  t.equal(await store.getFile('a/b', join(dir, 'copy')), 1)
  t.same(
    service.requests.filter(request => !/^(GET|HEAD|LIST) /.test(request)),
    [],
  )
  service.fault = () => 'denied'
  await t.rejects(
    store.get('a/b'),
    like({ kind: 'internal', message: /access denied.*allow s3:GetObject and s3:ListBucket here/ }),
  )
})

t.test('a file that was fetched is for nobody else to read, whatever the umask', async t => {
  const service = await S3Service.start(t)
  const store = await open(t, service)
  await store.putIfAbsent('k', Buffer.from('v'))
  const before = process.umask(0)
  t.teardown(() => process.umask(before))
  const copy = join(t.testdir(), 'copy')
  await store.getFile('k', copy)
  t.equal(statSync(copy).mode & 0o777, 0o640)
})

t.test('the page of a proxy or portal is no answer, whatever its status', async t => {
  const service = await S3Service.start(t)
  const store = await open(t, service, { attemptsMax: 3 })
  await store.putIfAbsent('k', Buffer.from('v'))
  const copy = join(t.testdir(), 'copy')
  for (const fault of ['portal', 'elsewhere'] as const) {
    service.fault = () => fault
    const attempts: (() => Promise<unknown>)[] = [
      () => store.putIfAbsent('new', Buffer.from('v')),
      () => store.get('k'),
      () => store.getRange('k', 0, 1),
      () => store.list(''),
    ]
    for (const attempt of attempts)
      await t.rejects(attempt(), like({ kind: 'retry' }), `${fault}: ${attempt}`)
    service.fault = method => (method === 'GET' ? fault : undefined)
    await t.rejects(store.getFile('k', copy), like({ kind: 'retry' }), fault)
    // It passes.
    let first = true
    service.fault = () => {
      const now = first ? fault : undefined
      first = false
      return now
    }
    t.equal((await store.get('k'))?.toString(), 'v')
    first = true
    t.equal((await store.list('')).length, fault === 'portal' ? 1 : 2)
    first = true
    t.equal(await store.putIfAbsent(fault, Buffer.from('v')), true)
  }
  t.equal(service.objects.has('p/new'), false)
})

t.test('clocks and credentials that are wrong for a while', async t => {
  const service = await S3Service.start(t)
  let accessKeyId = 'old'
  const credentials = async () => ({ accessKeyId, secretAccessKey: 's' })
  service.accessKey = 'old'
  const store = await open(t, service, { attemptsMax: 3, credentials })
  let skewed = 1
  service.fault = () => (skewed-- > 0 ? 'skewed' : undefined)
  t.equal(await store.putIfAbsent('a', Buffer.from('v')), true)
  skewed = Infinity
  await t.rejects(store.get('a'), like({ kind: 'retry', message: /set this machine's clock.*3 attempts/ }))
  service.fault = () => undefined
  // Rotated: what the process found at its start is no longer valid, and the new one lies where that was.
  service.accessKey = 'new'
  accessKeyId = 'new'
  t.equal((await store.get('a'))?.toString(), 'v')
  // Withdrawn: said clearly, and looked for anew once, not with every request.
  service.accessKey = 'other'
  service.requests = []
  for (let i = 0; i < 3; i++)
    await t.rejects(
      store.get('a'),
      like({ kind: 'internal', message: /credentials are no longer valid \(ExpiredToken\).*renew them/ }),
    )
  t.equal(service.requests.length, 3)
})

t.test('credentials do not belong into the address, and are not repeated', async t => {
  const wrong = S3ObjectStore.open({ bucket: 'bucket', prefix: '', endpoint: 'http://key:hush@127.0.0.1:1' })
  await t.rejects(wrong, like({ kind: 'invalid', message: /^(?!.*hush).*AWS_ACCESS_KEY_ID/ }))
})

t.test('compare-and-swap over lost replies, and objects that are listed and gone', async t => {
  const service = await S3Service.start(t)
  const one = new CasObject(await open(t, service), 'm', 'the object')
  const two = new CasObject(await open(t, service), 'm', 'the object')
  service.fault = method => (method === 'PUT' && service.requests.length % 2 === 0 ? 'lost' : undefined)
  for (let i = 0; i < 6; i++) await one.commit(Buffer.from(`contents ${i}`))
  let hide = 2
  service.fault = method => (method === 'GET' && hide-- > 0 ? 'absent' : undefined)
  t.same((await two.load())?.bytes.toString(), 'contents 5')
  service.fault = () => undefined
  await two.commit(Buffer.from('of the other'))
  await t.rejects(one.commit(Buffer.from('too late')), like({ kind: 'fenced' }))
})

t.test('addresses', t => {
  t.same(parseS3Url('s3://bucket'), { bucket: 'bucket', prefix: '' })
  t.same(parseS3Url('s3://bucket/'), { bucket: 'bucket', prefix: '' })
  t.same(parseS3Url('s3://bucket/a/b/'), { bucket: 'bucket', prefix: 'a/b' })
  for (const bad of [
    's3://',
    's3:///x',
    's3://b',
    's3://bucket/a//b',
    's3://bucket/../x',
    'http://bucket/x',
    's3://bucket/.x',
  ])
    t.throws(() => parseS3Url(bad), like({ kind: 'invalid' }), bad)
  t.end()
})
