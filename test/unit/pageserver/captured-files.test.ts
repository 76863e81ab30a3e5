import t from 'tap'
import { type Lsn, toTimelineId } from '../../../protocol/ids.ts'
import { CapturedFiles, checkFilePath, FILE_CHUNK_BYTES } from '../../../server/pageserver/captured-files.ts'
import { ManifestStore } from '../../../server/pageserver/manifest.ts'
import { MemoryObjectStore } from '../../support/memory-object-store.ts'

const timeline = toTimelineId('00112233445566778899aabbccddeeff')
const fresh = {
  timeline,
  name: 'test',
  innodbPageSize: 16384,
  serverVersion: '10.11.18',
  startLsn: 100 as Lsn,
}

async function put(
  files: CapturedFiles,
  path: string,
  lsn: number,
  content: Buffer,
  mode = 0o660,
): Promise<void> {
  const version = { path, lsn: lsn as Lsn, mode, mtimeMs: 1000, totalBytes: content.length }
  for (let offset = 0; ; ) {
    const piece = content.subarray(offset, offset + 100_000)
    if (await files.put(version, offset, piece)) return
    offset += piece.length
  }
}

async function contents(files: CapturedFiles, path: string, lsn: number): Promise<Buffer> {
  const pieces: Buffer[] = []
  for await (const piece of files.read(path, lsn as Lsn)) pieces.push(piece)
  return Buffer.concat(pieces)
}

const noise = (bytes: number, seed: number): Buffer => {
  const out = Buffer.alloc(bytes)
  let x = seed
  for (let i = 0; i < bytes; i++) {
    x = (Math.imul(x, 1103515245) + 12345) | 0
    out[i] = x >>> 16
  }
  return out
}

t.test('versions by LSN, deletions, empty files, and all of it again after a restart', async t => {
  const store = new MemoryObjectStore()
  const manifests = await ManifestStore.create(store, fresh)
  const files = new CapturedFiles(store, timeline)
  await put(files, 'db/t.frm', 100, Buffer.from('one'))
  await put(files, 'db/t.frm', 200, Buffer.from('two'))
  await put(files, 'db/empty', 150, Buffer.alloc(0))
  const big = noise(700_000, 1)
  await put(files, 'mysql/t.MAD', 160, big)
  files.remove('db/t.frm', 300 as Lsn)
  files.remove('never/there', 300 as Lsn)
  await files.save(manifests)
  t.equal(files.unsaved, 0)
  for (const state of [files, await CapturedFiles.load(store, manifests.current)]) {
    t.same(state.list(99 as Lsn), [])
    t.same(
      state.list(200 as Lsn).map(f => [f.path, f.lsn, f.totalBytes]),
      [
        ['db/empty', 150, 0],
        ['db/t.frm', 200, 3],
        ['mysql/t.MAD', 160, 700_000],
      ],
    )
    t.same(
      state.list(300 as Lsn).map(f => f.path),
      ['db/empty', 'mysql/t.MAD'],
    )
    t.equal((await contents(state, 'db/t.frm', 199)).toString(), 'one')
    t.equal((await contents(state, 'db/t.frm', 299)).toString(), 'two')
    t.ok((await contents(state, 'mysql/t.MAD', 300)).equals(big))
    t.equal((await contents(state, 'db/empty', 300)).length, 0)
    await t.rejects(contents(state, 'db/t.frm', 300), /no file db\/t.frm at LSN 300/)
  }
})

t.test('a log that grows costs its last chunk, and equal files are stored once', async t => {
  const store = new MemoryObjectStore()
  const files = new CapturedFiles(store, timeline)
  const log = noise(10 * FILE_CHUNK_BYTES + 5000, 7)
  await put(files, 'aria_log.00000001', 1, log.subarray(0, 9 * FILE_CHUNK_BYTES + 10))
  const before = store.objects.size
  t.equal(before, 10)
  await put(files, 'aria_log.00000001', 2, log)
  t.equal(store.objects.size, before + 2)
  await put(files, 'copy', 3, log)
  t.equal(store.objects.size, before + 2)
  await put(files, 'copy', 4, log)
  t.equal(files.get('copy', 9 as Lsn)?.lsn, 3, 'the same again makes no new version')
  t.ok((await contents(files, 'aria_log.00000001', 1)).equals(log.subarray(0, 9 * FILE_CHUNK_BYTES + 10)))
  t.ok((await contents(files, 'copy', 3)).equals(log))
})

t.test('pieces that arrive at once are taken in order; those out of order are refused', async t => {
  const files = new CapturedFiles(new MemoryObjectStore(), timeline)
  const content = noise(1_000_000, 3)
  const version = { path: 'f', lsn: 5 as Lsn, mode: 0o600, mtimeMs: 1, totalBytes: content.length }
  const sent = [0, 250_000, 500_000, 750_000].map(at =>
    files.put(version, at, content.subarray(at, at + 250_000)),
  )
  t.same(await Promise.all(sent), [false, false, false, true])
  t.ok((await contents(files, 'f', 5)).equals(content))
  await files.put({ ...version, lsn: 6 as Lsn }, 0, content.subarray(0, 10))
  await t.rejects(
    files.put({ ...version, lsn: 6 as Lsn }, 20, content.subarray(20, 30)),
    /byte 10 was expected/,
  )
  await t.rejects(files.put({ ...version, lsn: 6 as Lsn }, 10, content.subarray(10, 30)), /begin again/)
})

t.test('an index that has grown long is merged; a failed save loses nothing', async t => {
  const store = new MemoryObjectStore()
  const manifests = await ManifestStore.create(store, fresh)
  const files = new CapturedFiles(store, timeline)
  for (let i = 1; i <= 40; i++) {
    await put(files, `db/t${i % 7}.frm`, 100 + i, Buffer.from(`version ${i}`))
    if (i === 20) {
      store.fault = () => {
        throw new Error('disk on fire')
      }
      await t.rejects(files.save(manifests), /on fire/)
      store.fault = () => {}
    }
    await files.save(manifests)
  }
  t.ok(manifests.current.files.length < 20)
  const again = await CapturedFiles.load(store, manifests.current)
  t.same(again.list(1000 as Lsn), files.list(1000 as Lsn))
  for (let i = 1; i <= 40; i++)
    t.equal((await contents(again, `db/t${i % 7}.frm`, 100 + i)).toString(), `version ${i}`)
  const objects = [...store.objects.keys()].filter(key => key.includes('/objects/'))
  t.equal(objects.length, manifests.current.files.length, 'what was merged is gone')
})

t.test('damaged chunks and indexes are named', async t => {
  const store = new MemoryObjectStore()
  const manifests = await ManifestStore.create(store, fresh)
  const files = new CapturedFiles(store, timeline)
  await put(files, 'f', 100, noise(300_000, 9))
  await files.save(manifests)
  const chunk = [...store.objects.keys()].find(key => key.includes('/chunks/'))!
  const good = store.objects.get(chunk)!
  const bad = Buffer.from(good)
  bad[100] = bad[100]! ^ 1
  store.objects.set(chunk, bad)
  await t.rejects(contents(files, 'f', 100), new RegExp(`chunk ${chunk} of file f`))
  store.objects.delete(chunk)
  await t.rejects(contents(files, 'f', 100), /is missing/)
  const index = manifests.current.files[0]!.key
  const sealed = store.objects.get(index)!
  for (let at = 0; at < sealed.length; at++) {
    const damaged = Buffer.from(sealed)
    damaged[at] = damaged[at]! ^ 0x10
    store.objects.set(index, damaged)
    await t.rejects(CapturedFiles.load(store, manifests.current), new RegExp(index))
  }
})

t.test('paths that lead elsewhere are refused', async t => {
  for (const path of [
    '',
    '/etc/passwd',
    '..',
    '../x',
    'a/../b',
    'a//b',
    './a',
    'a/',
    'a\\b',
    'a\nb',
    'x'.repeat(1025),
  ])
    t.throws(() => checkFilePath(path), /no path of a file/)
  for (const path of ['aria_log_control', 'db@002d1/t#P#p0.frm', 'mysql/global_priv.MAD', '...'])
    t.equal(checkFilePath(path), path)
})
