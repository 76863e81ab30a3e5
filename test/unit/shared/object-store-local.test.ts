import { chmodSync, existsSync, mkdirSync, readdirSync, statSync, utimesSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import t from 'tap'
import { LocalObjectStore } from '../../../server/shared/object-store-local.ts'
import { objectStoreContract } from '../../contract/object-store.ts'
import { MemoryObjectStore } from '../../support/memory-object-store.ts'

objectStoreContract('directory', async t => LocalObjectStore.open(join(t.testdir(), 'store')))
objectStoreContract('memory (the stand-in that other tests use)', async () => new MemoryObjectStore())

t.test('a crash at any step leaves the whole object or none, and the put can be repeated', async t => {
  for (const by of ['bytes', 'file'] as const)
    for (const step of ['write', 'sync', 'link', 'sync-directory', 'unlink'] as const) {
      const dir = t.testdir()
      let armed = true
      const dying = await LocalObjectStore.open(join(dir, 'store'), {
        failpoint: at => {
          if (armed && at === step) throw new Error(`died at ${step}`)
        },
      })
      const local = join(dir, 'local')
      writeFileSync(local, 'whole')
      const put = (store: LocalObjectStore) =>
        by === 'bytes' ? store.putIfAbsent('x/y', Buffer.from('whole')) : store.putFile('x/y', local)
      const reached = by === 'bytes' ? step !== 'unlink' : step !== 'write'
      if (reached) await t.rejects(put(dying), /died at/, `${by}, ${step}`)
      else await put(dying)
      armed = false
      const after = await LocalObjectStore.open(join(dir, 'store'))
      const found = (await after.get('x/y'))?.toString()
      t.ok(found === undefined || found === 'whole', `${by}, ${step}: ${found}`)
      if (found === undefined) t.equal(await put(after), true)
      t.equal((await after.get('x/y'))?.toString(), 'whole')
      t.same(
        (await after.list('')).map(object => object.key),
        ['x/y'],
      )
    }
})

t.test('scratch files that belong to nobody are removed, those of other processes are not', async t => {
  const dir = join(t.testdir(), 'store')
  mkdirSync(join(dir, '.tmp'), { recursive: true })
  writeFileSync(join(dir, '.tmp', 'old'), 'x')
  writeFileSync(join(dir, '.tmp', 'young'), 'x')
  const twoHoursAgo = Date.now() / 1000 - 7200
  utimesSync(join(dir, '.tmp', 'old'), twoHoursAgo, twoHoursAgo)
  const store = await LocalObjectStore.open(dir)
  t.same(readdirSync(join(dir, '.tmp')), ['young'])
  await store.putIfAbsent('k', Buffer.from('v'))
  t.same(readdirSync(join(dir, '.tmp')), ['young'])
  t.same(
    (await store.list('')).map(object => object.key),
    ['k'],
  )
})

t.test('scratch files of processes that died are removed while the store is open, too', async t => {
  const dir = join(t.testdir(), 'store')
  const store = await LocalObjectStore.open(dir, { scratchAgeMs: 20 })
  writeFileSync(join(dir, '.tmp', 'of-another'), 'x')
  while (readdirSync(join(dir, '.tmp')).length > 0) await delay(10)
  store.close()
})

t.test('a put that fails leaves no scratch file', async t => {
  const dir = t.testdir()
  const store = await LocalObjectStore.open(join(dir, 'store'), {
    failpoint: step => {
      if (step === 'link') throw new Error('no')
    },
  })
  const local = join(dir, 'local')
  writeFileSync(local, 'whole')
  await t.rejects(store.putIfAbsent('k', Buffer.from('v')), /no/)
  await t.rejects(store.putFile('k', local), /no/)
  t.same(readdirSync(join(dir, 'store', '.tmp')), [])
  t.ok(existsSync(local), "the file is still its owner's")
})

t.test('a store that cannot be opened says which and why', async t => {
  const file = join(t.testdir({ file: 'not a directory' }), 'file')
  await t.rejects(
    LocalObjectStore.open(join(file, 'store')),
    new RegExp(`object store .*${'store'} cannot be opened`),
  )
  t.notOk(existsSync(join(file, 'store')))
})

t.test('after a sync that failed nothing more is put, as if the next one could make up for it', async t => {
  let step = ''
  const dir = t.testdir()
  const store = await LocalObjectStore.open(dir, {
    failpoint: at => {
      if (at === step) throw Object.assign(new Error('EIO: i/o error, fsync'), { code: 'EIO' })
    },
  })
  t.equal(await store.putIfAbsent('a', Buffer.from('a')), true)
  step = 'sync-directory'
  await t.rejects(store.putIfAbsent('b', Buffer.from('b')), {
    kind: 'internal',
    message: /restart/,
  } as object as Error)
  step = ''
  await t.rejects(store.putIfAbsent('c', Buffer.from('c')), {
    kind: 'internal',
    message: /restart/,
  } as object as Error)
  t.same((await store.get('a'))?.toString(), 'a', 'what is there can be read')
  const again = await LocalObjectStore.open(dir)
  t.equal(await again.putIfAbsent('c', Buffer.from('c')), true)
})

t.test('opened to read: nothing is made, nothing is removed', async t => {
  const dir = t.testdir({ file: 'x', empty: {}, store: { a: { b: 'v' }, '.tmp': { old: 'x' } } })
  const twoHoursAgo = Date.now() / 1000 - 7200
  utimesSync(join(dir, 'store', '.tmp', 'old'), twoHoursAgo, twoHoursAgo)
  const store = await LocalObjectStore.openToRead(join(dir, 'store'))
  t.equal((await store.get('a/b'))?.toString(), 'v')
  t.same(await store.list(''), [{ key: 'a/b', bytes: 1 }])
  t.same(readdirSync(join(dir, 'store', '.tmp')), ['old'])
  const empty = await LocalObjectStore.openToRead(join(dir, 'empty'))
  t.same(await empty.list(''), [])
  t.same(readdirSync(join(dir, 'empty')), [])
  const like = (fields: object) => fields as Error
  await t.rejects(
    LocalObjectStore.openToRead(join(dir, 'none')),
    like({ kind: 'invalid', message: /no object store .*none: no such directory/ }),
  )
  t.notOk(existsSync(join(dir, 'none')))
  await t.rejects(
    LocalObjectStore.openToRead(join(dir, 'file')),
    like({ kind: 'invalid', message: /file is a file/ }),
  )
})

t.test('nobody but owner and group may read what is stored, whatever the umask', async t => {
  const before = process.umask(0)
  t.teardown(() => process.umask(before))
  const dir = t.testdir({ near: 'x', copied: 'x' })
  const modeOf = (...path: string[]) => statSync(join(dir, ...path)).mode & 0o777
  const store = await LocalObjectStore.open(join(dir, 'store'))
  await store.putIfAbsent('a/b/bytes', Buffer.from('v'))
  chmodSync(join(dir, 'near'), 0o666)
  await store.putFile('a/near', join(dir, 'near'))
  for (const path of ['.', '.tmp', 'a', 'a/b']) t.equal(modeOf('store', path), 0o750, path)
  for (const path of ['a/b/bytes', 'a/near']) t.equal(modeOf('store', path), 0o640, path)
  // As an earlier release has stored it.
  chmodSync(join(dir, 'store', 'a', 'near'), 0o644)
  await store.getFile('a/near', join(dir, 'fetched'))
  t.equal(modeOf('fetched'), 0o640)
  // And what the umask takes away stays away.
  process.umask(0o077)
  await store.putIfAbsent('c/private', Buffer.from('v'))
  t.equal(modeOf('store', 'c'), 0o700)
  t.equal(modeOf('store', 'c', 'private'), 0o600)
  store.close()
})
