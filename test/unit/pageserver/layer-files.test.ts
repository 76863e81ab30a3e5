import { copyFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { type Lsn, toTimelineId } from '../../../protocol/ids.ts'
import { DeltaLayerWriter } from '../../../server/pageserver/delta-layer.ts'
import { LayerFiles } from '../../../server/pageserver/layer-files.ts'

t.test('a reader that gives way to others can be used to the end of the task', async t => {
  const dir = t.testdir()
  const path = join(dir, 'layer')
  const writer = new DeltaLayerWriter(path, {
    timeline: toTimelineId('00'.repeat(16)),
    generation: 1,
    lsnStart: 0 as Lsn,
    lsnEnd: 100 as Lsn,
  })
  writer.beginPage(1, 1)
  writer.addEntry(50, 0, Buffer.from('entry'), 0, 5)
  writer.finish({ timeSamples: [{ lsn: 50 as Lsn, timeUs: 1 }] })
  const files = new LayerFiles(1 << 20)
  const first = files.open(path)
  for (let i = 0; i < 150; i++) {
    const copy = join(dir, `copy${i}`)
    copyFileSync(path, copy)
    files.open(copy)
  }
  const found: string[] = []
  first.forEachEntry(first.findPage(1, 1), 0, 100, (buf, start, end) =>
    found.push(buf.toString('latin1', start, end)),
  )
  t.same(found, ['entry'])
  t.equal(files.open(path), first, 'nothing is opened twice in one task')
  await new Promise(resolve => setImmediate(() => setImmediate(resolve)))
  t.throws(() => first.timeSamples(), 'it was evicted, and is closed afterwards')
  t.not(files.open(path), first, 'the next task opens the file anew')
})

t.test('a file that is not there is missing, which does not pass by itself', async t => {
  const path = join(t.testdir(), 'layer')
  t.throws(() => new LayerFiles(1 << 20).open(path), {
    kind: 'corrupt',
    message: `layer file ${path} is missing: restore it from a copy of the object store, unless another page server has opened the store and replaced it`,
  })
})

t.test('a file that has another layer in it is not read as if it were this one', async t => {
  const path = join(t.testdir(), 'layer')
  const writer = new DeltaLayerWriter(path, {
    timeline: toTimelineId('00'.repeat(16)),
    generation: 1,
    lsnStart: 100 as Lsn,
    lsnEnd: 200 as Lsn,
  })
  writer.beginPage(1, 1)
  writer.addEntry(150, 0, Buffer.from('entry'), 0, 5)
  writer.finish()
  const files = new LayerFiles(1 << 20)
  const find = (kind: 'delta' | 'image', lsnStart: number, lsnEnd: number) =>
    files.find({ kind, path, lsnStart: lsnStart as Lsn, lsnEnd: lsnEnd as Lsn }, 1, 1)
  t.equal(find('delta', 100, 200), 0)
  t.equal(find('delta', 100, 150), 0, 'of an ancestor, up to where a branch began')
  for (const other of [
    () => find('delta', 99, 200),
    () => find('delta', 100, 201),
    () => find('image', 100, 100),
  ])
    t.throws(other, { kind: 'corrupt', message: /layer file .*under this name/ })
})
