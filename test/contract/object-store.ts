/**
 * What every object store must do. A backend's test calls `objectStoreContract` with a way to make an empty store.
 */
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import root from 'tap'
import { PalimpsestError } from '../../server/shared/errors.ts'
import type { ObjectStore } from '../../server/shared/object-store.ts'

/** What a backend needs of a running test. */
export interface Test {
  testdir(): string
  teardown(cleanUp: () => void): void
}

/** Beside `t.testdir()`, which the backend may use. */
function scratch(t: Test): string {
  const dir = mkdtempSync(join(tmpdir(), 'palimpsest-store-'))
  t.teardown(() => rmSync(dir, { recursive: true }))
  return dir
}

/** Adds the suite to `parent`, which is the test file itself unless another test is given. */
export function objectStoreContract(
  name: string,
  make: (t: Test) => Promise<ObjectStore>,
  parent: Pick<typeof root, 'test'> = root,
): void {
  const t = parent
  const text = (bytes: Buffer | undefined) => bytes?.toString()

  t.test(`${name}: put, get, ranges, sizes, delete`, async t => {
    const store = await make(t)
    t.equal(await store.get('a/b/c'), undefined)
    t.equal(await store.head('a/b/c'), undefined)
    t.equal(await store.getRange('a/b/c', 0, 10), undefined)
    t.equal(await store.putIfAbsent('a/b/c', Buffer.from('0123456789')), true)
    t.equal(text(await store.get('a/b/c')), '0123456789')
    t.equal(await store.head('a/b/c'), 10)
    t.equal(text(await store.getRange('a/b/c', 3, 4)), '3456')
    t.equal(text(await store.getRange('a/b/c', 8, 100)), '89', 'a range ends where the object ends')
    t.equal(text(await store.getRange('a/b/c', 100, 5)), '')
    await store.delete('a/b/c')
    await store.delete('a/b/c')
    t.equal(await store.get('a/b/c'), undefined)
    t.equal(
      await store.putIfAbsent('a/b/c', new Uint8Array(0)),
      true,
      'a key may come again after a deletion',
    )
    t.equal((await store.get('a/b/c'))?.length, 0)
  })

  t.test(`${name}: what is there is not overwritten`, async t => {
    const store = await make(t)
    t.equal(await store.putIfAbsent('k', Buffer.from('first')), true)
    t.equal(await store.putIfAbsent('k', Buffer.from('second')), false)
    const local = join(scratch(t), 'local')
    writeFileSync(local, 'third')
    t.equal(await store.putFile('k', local), false)
    t.equal(readFileSync(local, 'utf8'), 'third', 'a file that was not taken stays')
    t.equal(text(await store.get('k')), 'first')
  })

  t.test(`${name}: of many that create the same key at once, one wins, and its bytes are there`, async t => {
    const store = await make(t)
    for (let round = 0; round < 10; round++) {
      const key = `round/${round}`
      const seen: (string | undefined)[] = []
      const outcomes = await Promise.all(
        Array.from({ length: 16 }, async (_, i) => {
          const won = await store.putIfAbsent(key, Buffer.from(`writer ${i} `.repeat(1000)))
          seen.push(text(await store.get(key)))
          return won
        }),
      )
      t.equal(outcomes.filter(won => won).length, 1)
      const expected = `writer ${outcomes.indexOf(true)} `.repeat(1000)
      t.ok(seen.every(found => found === expected))
    }
  })

  t.test(`${name}: a local file becomes an object`, async t => {
    const store = await make(t)
    const local = join(scratch(t), 'local')
    const bytes = Buffer.alloc(3_000_000, 'layer ')
    writeFileSync(local, bytes)
    t.equal(await store.putFile('some/layer', local), true)
    t.notOk(existsSync(local))
    t.ok((await store.get('some/layer'))?.equals(bytes))
    const path = store.localPath('some/layer')
    if (path !== undefined) t.ok(readFileSync(path).equals(bytes))
    const copy = join(scratch(t), 'copy')
    t.equal(await store.getFile('some/layer', copy), bytes.length)
    t.ok(readFileSync(copy).equals(bytes), 'and a local file again')
    await t.rejects(store.getFile('some/layer', copy), 'what is there is not overwritten')
    t.equal(await store.getFile('some/other', `${copy}2`), undefined)
    t.notOk(existsSync(`${copy}2`))
    await t.rejects(store.putFile('other', local), PalimpsestError, 'a file that does not exist')
    t.equal(await store.head('other'), undefined)
  })

  t.test(`${name}: lists what begins with a prefix, sorted`, async t => {
    const store = await make(t)
    for (const key of ['b/2', 'b/10', 'a', 'b/c/d', 'bb/1', 'b-1'])
      await store.putIfAbsent(key, Buffer.from(key))
    const keys = async (prefix: string) => (await store.list(prefix)).map(object => object.key)
    t.same(await keys('b/'), ['b/10', 'b/2', 'b/c/d'])
    t.same(await keys(''), ['a', 'b-1', 'b/10', 'b/2', 'b/c/d', 'bb/1'])
    t.same(await keys('nothing/'), [])
    t.same(
      (await store.list('b/')).map(object => object.bytes),
      [4, 3, 5],
    )
  })

  t.test(`${name}: keys that are none are refused everywhere`, async t => {
    const store = await make(t)
    const bad = [
      '',
      '/',
      '/a',
      'a/',
      'a//b',
      '..',
      'a/../b',
      './a',
      '.tmp/a',
      'a b',
      'ä',
      'a\0b',
      'x'.repeat(513),
    ]
    bad.push(`${'y'.repeat(129)}/z`)
    for (const key of bad) {
      const refused = { name: 'PalimpsestError', kind: 'invalid' } as unknown as Error
      await t.rejects(store.putIfAbsent(key, Buffer.from('x')), refused, JSON.stringify(key.slice(0, 20)))
      await t.rejects(store.get(key), refused)
      await t.rejects(store.getRange(key, 0, 1), refused)
      await t.rejects(store.delete(key), refused)
    }
    await t.rejects(store.list('a'), 'a prefix ends in a slash')
    await t.rejects(store.list('../'))
    t.same(await store.list(''), [])
  })
}
