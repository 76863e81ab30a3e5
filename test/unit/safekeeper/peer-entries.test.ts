import t from 'tap'
import type { Lsn, WriterEpoch } from '../../../protocol/ids.ts'
import type { PeerEntry } from '../../../protocol/messages.ts'
import { logEntries } from '../../../server/safekeeper/peer-entries.ts'

const head: PeerEntry = {
  term: 3,
  kind: 'redo',
  dropped: false,
  timeline: undefined,
  epoch: 1 as WriterEpoch,
  beginLsn: 10 as Lsn,
  endLsn: 20 as Lsn,
  wallTimeUs: 5,
  payloadBytes: 0,
  payloadCrc: 7,
}

t.test('entries take their pieces of the bulk in turn, and their indexes from the first on', async t => {
  const bulk = Buffer.from('aaabb')
  const heads = [
    { ...head, payloadBytes: 3 },
    { ...head, kind: 'noop' as const },
    { ...head, payloadBytes: 2, dropped: true },
  ]
  const entries = logEntries(heads, 41, bulk)
  t.strictSame(
    entries.map(({ index, kind, dropped, payload }) => [index, kind, dropped, payload.toString()]),
    [
      [41, 'redo', false, 'aaa'],
      [42, 'noop', false, ''],
      [43, 'redo', true, 'bb'],
    ],
  )
  t.equal(entries[0]!.payload.buffer, bulk.buffer, 'not copied')
  const { payloadBytes: _, ...rest } = head
  t.strictSame({ ...rest, index: 42, kind: 'noop', payload: entries[1]!.payload }, entries[1])
})

t.test('nothing was sent', async t => {
  t.strictSame(logEntries([], 1, Buffer.alloc(0)), [])
})
