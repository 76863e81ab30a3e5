import t from 'tap'
import {
  CorruptRedoError,
  ExtendedSubtype,
  RecordCursor,
  RecordType,
} from '../../../parser/record-decoder.ts'
import { collectSpaceEvents, mayHoldSpaceEvent, type SpaceEvent } from '../../../parser/space-events.ts'
import type { Lsn } from '../../../protocol/ids.ts'
import { record, varint } from '../../support/redo-builder.ts'

const text = new TextEncoder()
const lsn = 777 as Lsn

function eventsOf(...records: Uint8Array[]): SpaceEvent[] {
  const bytes = Buffer.concat(records)
  const cursor = new RecordCursor()
  cursor.reset(bytes, 0, bytes.length)
  const events: SpaceEvent[] = []
  while (cursor.next()) {
    const before = events.length
    collectSpaceEvents(cursor, bytes, lsn, events)
    if (events.length > before && !mayHoldSpaceEvent(cursor))
      throw new Error('the cheap question missed an event')
  }
  return events
}

const file = (type: number, name: string | Uint8Array, space = 7) =>
  record(type, null, varint(space), varint(0), typeof name === 'string' ? text.encode(name) : name)

t.test('files', async t => {
  t.same(
    eventsOf(
      file(RecordType.FILE_CREATE, './test/t1.ibd'),
      file(RecordType.FILE_MODIFY, 'test/t@00e4.ibd', 8),
      file(RecordType.FILE_DELETE, './test/#sql-ib23.ibd', 9),
      file(RecordType.FILE_RENAME, './test/a#P#p0.ibd\0./other/b.ibd', 10),
      file(RecordType.FILE_CREATE, '/mnt/fast/test/t2.ibd', 11),
    ),
    [
      { kind: 'create', lsn, space: 7, name: 'test/t1.ibd', external: false },
      { kind: 'modify', lsn, space: 8, name: 'test/t@00e4.ibd', external: false },
      { kind: 'delete', lsn, space: 9, name: 'test/#sql-ib23.ibd', external: false },
      {
        kind: 'rename',
        lsn,
        space: 10,
        name: 'test/a#P#p0.ibd',
        external: false,
        newName: 'other/b.ibd',
        newExternal: false,
      },
      { kind: 'create', lsn, space: 11, name: '/mnt/fast/test/t2.ibd', external: true },
    ],
  )
})

t.test('names that could leave the datadir, or are not names, are corruption', async t => {
  const bad: (string | Uint8Array)[] = [
    '../test/t1.ibd',
    './../t1.ibd',
    'test/../t1.ibd',
    './t1.ibd',
    't1.ibd',
    'a/b/c.ibd',
    '//t1.ibd'.slice(1).replace('/', './/'),
    'test//t1.ibd',
    './/t1.ibd',
    './.ibd',
    'test/.ibd',
    '..\\test/t1.ibd',
    'test/t\n1.ibd',
    `test/${'x'.repeat(600)}.ibd`,
    `/${'x'.repeat(5000)}.ibd`,
    Uint8Array.of(0x61, 0x2f, 0xff, 0xfe, 0x2e, 0x69, 0x62, 0x64),
  ]
  for (const name of bad)
    t.throws(() => eventsOf(file(RecordType.FILE_CREATE, name)), CorruptRedoError, String(name).slice(0, 40))
  t.throws(() => eventsOf(file(RecordType.FILE_RENAME, './test/a.ibd\0../test/b.ibd')), CorruptRedoError)
})

t.test('names in shared memory', async t => {
  const bytes = file(RecordType.FILE_CREATE, './test/t1.ibd')
  const shared = new Uint8Array(new SharedArrayBuffer(bytes.length))
  shared.set(bytes)
  const cursor = new RecordCursor()
  cursor.reset(shared, 0, shared.length)
  cursor.next()
  const events: SpaceEvent[] = []
  collectSpaceEvents(cursor, shared, lsn, events)
  t.match(events, [{ kind: 'create', name: 'test/t1.ibd' }])
})

t.test('sizes and flags come from WRITEs to page 0 that hold the whole field', async t => {
  const size = Uint8Array.of(0, 0, 4, 0)
  const flags = Uint8Array.of(0x80, 0, 0, 0x15)
  const write = (id: { space: number; page: number } | null, offset: number, data: Uint8Array) =>
    record(RecordType.WRITE, id, varint(offset), data)
  const zero = { space: 3, page: 0 }
  t.same(eventsOf(write(zero, 46, size)), [{ kind: 'size', lsn, space: 3, pages: 1024 }])
  t.same(eventsOf(write(zero, 54, flags)), [{ kind: 'flags', lsn, space: 3, flags: 0x80000015 }])
  t.same(
    eventsOf(
      write(zero, 38, Buffer.concat([new Uint8Array(8), size, new Uint8Array(4), flags, new Uint8Array(50)])),
    ).map(e => e.kind),
    ['size', 'flags'],
    'in one long write',
  )
  t.same(
    eventsOf(record(RecordType.INIT_PAGE, zero), write(null, 46 - 24, size), write(null, 4, flags)).map(
      e => e.kind,
    ),
    ['size', 'flags'],
    'by relative offsets',
  )
  t.same(eventsOf(write({ space: 3, page: 1 }, 46, size)), [], 'not on other pages')
  t.same(eventsOf(write(zero, 47, size.subarray(1))), [], 'not in part')
  t.same(
    eventsOf(record(RecordType.MEMSET, zero, varint(46), varint(4), Uint8Array.of(0))),
    [],
    'as InnoDB: not by MEMSET',
  )
})

t.test('TRIM_PAGES and checkpoints', async t => {
  t.same(
    eventsOf(record(RecordType.EXTENDED, { space: 2, page: 640 }, Uint8Array.of(ExtendedSubtype.TRIM_PAGES))),
    [{ kind: 'trim', lsn, space: 2, pages: 640 }],
  )
  t.same(eventsOf(Buffer.from('fa00000000000000003039', 'hex')), [
    { kind: 'checkpoint', lsn, checkpointLsn: 12345 },
  ])
  t.same(eventsOf(Buffer.from('fa00000000000000000000', 'hex')), [], 'padding')
  t.same(eventsOf(Buffer.from('f40000000000'.slice(0, 10), 'hex')), [], 'padding of another length')
  t.throws(
    () => eventsOf(Buffer.from('fa0000ff00000000000000', 'hex')),
    CorruptRedoError,
    'an LSN beyond 2^53-1',
  )
})
