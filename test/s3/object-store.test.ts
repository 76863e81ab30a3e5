/** The S3 store against a real service: the contract, and what the contract cannot see. */
import { existsSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { S3ObjectStore, type S3StoreOptions } from '../../server/shared/object-store-s3.ts'
import { objectStoreContract } from '../contract/object-store.ts'
import { Radosgw, radosgwSkip } from '../support/radosgw.ts'

const skip = radosgwSkip()
/** What a rejection must look like; tap takes any object, its types want an Error. */
const like = (error: object) => error as Error

t.test('Ceph radosgw', { skip }, async t => {
  const since = performance.now()
  const ceph = await Radosgw.start(t)
  await ceph.bucket('palimpsest')
  t.comment(`Ceph was up after ${((performance.now() - since) / 1000).toFixed(1)} s`)
  let prefixes = 0
  const options = (more: Partial<S3StoreOptions> = {}): S3StoreOptions => ({
    bucket: 'palimpsest',
    prefix: `test/${prefixes++}`,
    endpoint: ceph.endpoint,
    pathStyle: true,
    credentials: ceph.credentials,
    backoffMs: 10,
    ...more,
  })

  objectStoreContract(
    'radosgw',
    async t => {
      const store = await S3ObjectStore.open(options())
      t.teardown(() => store.close())
      return store
    },
    t,
  )

  await t.test('a listing of more than one page', async t => {
    const store = await S3ObjectStore.open(options())
    t.teardown(() => store.close())
    const keys = Array.from({ length: 1203 }, (_, i) => `many/${String(i).padStart(5, '0')}`)
    for (let at = 0; at < keys.length; at += 40)
      await Promise.all(keys.slice(at, at + 40).map(key => store.putIfAbsent(key, Buffer.from(key))))
    t.same(
      (await store.list('many/')).map(object => object.key),
      keys,
    )
  })

  await t.test('a large file goes up in parts and comes back', async t => {
    const settings = options({ multipartBytes: 6 << 20, partBytes: 5 << 20 })
    const store = await S3ObjectStore.open(settings)
    t.teardown(() => store.close())
    const dir = t.testdir()
    const bytes = Buffer.alloc(12_345_678)
    for (let i = 0; i < bytes.length; i += 4)
      bytes.writeUInt32LE((i * 2654435761) >>> 0, Math.min(i, bytes.length - 4))
    writeFileSync(join(dir, 'up'), bytes)
    t.equal(await store.putFile('large', join(dir, 'up')), true)
    t.notOk(existsSync(join(dir, 'up')))
    t.equal(await store.head('large'), bytes.length)
    t.equal(await store.getFile('large', join(dir, 'down')), bytes.length)
    t.ok(readFileSync(join(dir, 'down')).equals(bytes))
    t.ok((await store.getRange('large', 5_242_870, 20))?.equals(bytes.subarray(5_242_870, 5_242_890)))
    writeFileSync(join(dir, 'again'), bytes)
    t.equal(await store.putFile('large', join(dir, 'again')), false)
    t.ok(existsSync(join(dir, 'again')))
  })

  await t.test('each way of guarding uploads', async t => {
    for (const checksums of ['md5', 'none'] as const) {
      const store = await S3ObjectStore.open(options({ checksums }))
      t.equal(await store.putIfAbsent('k', Buffer.from(checksums)), true)
      t.equal((await store.get('k'))?.toString(), checksums)
      store.close()
    }
  })

  await t.test('what is wrong with the configuration is said', async t => {
    const opened = (more: Partial<S3StoreOptions>) => S3ObjectStore.open(options({ attemptsMax: 2, ...more }))
    await t.rejects(
      opened({ bucket: 'missing' }),
      like({ kind: 'internal', message: /bucket does not exist/ }),
    )
    await t.rejects(
      opened({ credentials: { accessKeyId: KEY, secretAccessKey: 'wrong' } }),
      like({
        kind: 'internal',
        message: /access denied/,
      }),
    )
    await t.rejects(
      opened({ endpoint: 'http://127.0.0.1:1' }),
      like({
        kind: 'retry',
        message: /cannot be reached: .*ECONNREFUSED/,
      }),
    )
    await t.rejects(opened({ endpoint: 'somewhere' }), like({ kind: 'invalid' }))
  })

  await t.test('a service that does not answer is given up in time, and found again', async t => {
    const store = await S3ObjectStore.open(options({ attemptsMax: 2, idleTimeoutMs: 300 }))
    t.teardown(() => store.close())
    ceph.pause()
    t.teardown(() => ceph.resume())
    await t.rejects(store.putIfAbsent('k', Buffer.from('v')), like({ kind: 'retry' }))
    await t.rejects(store.get('k'), like({ kind: 'retry' }))
    ceph.resume()
    // The puts that nobody answered may have come through.
    await store.putIfAbsent('k', Buffer.from('v'))
    t.equal((await store.get('k'))?.toString(), 'v')
  })
})

const KEY = 'PALIMPSESTTEST'
