import { join } from 'node:path'
import t from 'tap'
import { MTR_SCAN_BYTES_MAX } from '../../../parser/mtr-scanner.ts'
import { type Lsn, toTimelineId } from '../../../protocol/ids.ts'
import { DeltaLayerWriter } from '../../../server/pageserver/delta-layer.ts'
import { LayerReader } from '../../../server/pageserver/layer-reader.ts'

t.test('the longest mini-transaction that is taken in fits into a layer', async t => {
  // A layer that could never be written would keep its redo in memory for ever.
  const path = join(t.testdir(), 'layer')
  const writer = new DeltaLayerWriter(path, {
    timeline: toTimelineId('00112233445566778899aabbccddeeff'),
    generation: 1,
    lsnStart: 1000 as Lsn,
    lsnEnd: 9_000_000 as Lsn,
  })
  const long = Buffer.alloc(MTR_SCAN_BYTES_MAX)
  for (let i = 0; i < long.length; i += 4) long.writeUInt32LE((i * 2654435761) >>> 0, i)
  writer.beginPage(5, 7)
  writer.addEntry(2000, 1, Buffer.from('short'), 0, 5)
  writer.addEntry(5_000_000, 1, long, 0, long.length)
  writer.addEntry(5_000_100, 0, Buffer.from('short'), 0, 5)
  writer.finish()
  const reader = LayerReader.open(path)
  t.teardown(() => reader.close())
  const found: [number, number][] = []
  reader.forEachEntry(reader.findPage(5, 7), 0, 9_000_000, (buf, start, end, lsn) => {
    found.push([lsn, end - start])
    if (end - start === long.length) t.ok(buf.subarray(start, end).equals(long))
  })
  t.same(found, [
    [2000, 5],
    [5_000_000, long.length],
    [5_000_100, 5],
  ])
})
