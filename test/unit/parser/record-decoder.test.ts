import t from 'tap'
import {
  CorruptRedoError,
  decodeVarint,
  ExtendedSubtype,
  encodeVarint,
  RecordCursor,
  RecordType,
  varintBytes,
} from '../../../parser/record-decoder.ts'
import { record, varint } from '../../support/redo-builder.ts'

const text = new TextEncoder()
const at = (space: number, page: number) => ({ space, page })

function records(...parts: Uint8Array[]): Uint8Array {
  return Buffer.concat(parts)
}

function walk(bytes: Uint8Array, pageBytesMax?: number): Record<string, unknown>[] {
  const cursor = new RecordCursor(pageBytesMax)
  cursor.reset(bytes, 0, bytes.length)
  const found = []
  while (cursor.next()) {
    const { type, samePage, space, page, recordStart, payloadStart, recordEnd } = cursor
    found.push({ type, samePage, space, page, recordStart, payloadStart, recordEnd })
  }
  return found
}

t.test('varints at the edges of their lengths', async t => {
  const edges: [number, string][] = [
    [0, '00'],
    [127, '7f'],
    [128, '8000'],
    [16511, 'bfff'],
    [16512, 'c00000'],
    [2113663, 'dfffff'],
    [2113664, 'e0000000'],
    [270549119, 'efffffff'],
    [270549120, 'f000000000'],
    [0xfffffffe, 'f0efdfbf7e'],
  ]
  for (const [value, hex] of edges) {
    t.equal(Buffer.from(varint(value)).toString('hex'), hex, `${value} encodes`)
    t.equal(varintBytes(varint(value)[0]!), hex.length / 2)
    t.equal(decodeVarint(Buffer.from(hex, 'hex'), 0), value, `${hex} decodes`)
  }
  const buf = new Uint8Array(5)
  t.equal(encodeVarint(buf, 0, 5), 1)
  for (const bad of ['f0efdfbf7f', 'f0efdfbf80', 'f0ffffffff', 'f100000000', 'f800000000', 'ff00000000'])
    t.equal(decodeVarint(Buffer.from(bad, 'hex'), 0), -1, `${bad} is refused`)
})

t.test('the examples of mtr0types.h', async t => {
  t.match(walk(Buffer.from('123456', 'hex')), [{ type: RecordType.INIT_PAGE, space: 0x34, page: 0x56 }])
  const bytes = Buffer.from('36405760123456b57f23345678', 'hex')
  const cursor = new RecordCursor()
  cursor.reset(bytes, 0, bytes.length)
  t.ok(cursor.next())
  t.match(cursor, {
    type: RecordType.WRITE,
    samePage: false,
    space: 0x40,
    page: 0x57,
    pageOffset: 0x60,
    pageLength: 3,
  })
  t.ok(cursor.next())
  t.match(cursor, {
    type: RecordType.WRITE,
    samePage: true,
    space: 0x40,
    page: 0x57,
    pageOffset: 0x7f + 0x60 + 3,
  })
  t.equal(cursor.dataStart, 9)
  t.notOk(cursor.next())
  t.notOk(cursor.next(), 'and stays at the end')
})

t.test('offsets count from where the record before ended, or from FIL_PAGE_TYPE', async t => {
  const bytes = records(
    record(RecordType.INIT_PAGE, at(5, 6)),
    record(RecordType.WRITE, null, varint(0), Uint8Array.of(1, 2)),
    record(RecordType.MEMSET, null, varint(10), varint(300), Uint8Array.of(7)),
    record(RecordType.EXTENDED, null, Uint8Array.of(ExtendedSubtype.UNDO_INIT)),
    record(RecordType.MEMMOVE, null, varint(100), varint(20), varint(2)),
    record(RecordType.WRITE, at(5, 6), varint(8), Uint8Array.of(1)),
  )
  const cursor = new RecordCursor()
  cursor.reset(bytes, 0, bytes.length)
  const places = []
  while (cursor.next())
    if (cursor.type >= RecordType.WRITE) places.push([cursor.pageOffset, cursor.pageLength])
  t.same(places, [
    [24, 2],
    [36, 300],
    [124, 20],
    [8, 1],
  ])
})

t.test('MEMMOVE encodes its source as a signed distance that is never 0', async t => {
  for (const [code, source] of [
    [0, 501],
    [2, 502],
    [1, 499],
    [3, 498],
    [199, 400],
  ] as const) {
    const bytes = record(RecordType.MEMMOVE, at(1, 4), varint(500), varint(20), varint(code))
    const cursor = new RecordCursor()
    cursor.reset(bytes, 0, bytes.length)
    t.ok(cursor.next())
    t.match(cursor, { pageOffset: 500, pageLength: 20, sourceOffset: source })
  }
})

t.test('lengths beyond 15 bytes', async t => {
  for (const size of [
    10, 11, 12, 13, 14, 15, 100, 136, 137, 138, 139, 140, 141, 142, 143, 144, 3000, 16500, 16520, 60000,
  ]) {
    const bytes = record(RecordType.WRITE, at(1, 4), varint(50), new Uint8Array(size))
    t.match(walk(bytes), [{ type: RecordType.WRITE, recordEnd: bytes.length }], `${size} bytes of data`)
  }
})

t.test('file records, FILE_CHECKPOINT and padding', async t => {
  t.match(
    walk(
      records(
        record(RecordType.FILE_CREATE, null, varint(70000), varint(0), text.encode('./a/b.ibd')),
        record(RecordType.FILE_RENAME, null, varint(9), varint(0), text.encode('./a/b.ibd\0./a/c.ibd')),
        record(RecordType.WRITE, at(9, 0), varint(46), new Uint8Array(4)),
      ),
    ),
    [
      { type: RecordType.FILE_CREATE, space: 70000, page: 0, samePage: false },
      { type: RecordType.FILE_RENAME, space: 9 },
      { type: RecordType.WRITE },
    ],
  )
  t.match(walk(Buffer.from('fa00000000000000003039', 'hex')), [
    { type: RecordType.FILE_CHECKPOINT, payloadStart: 3 },
  ])
  for (let bytes = 1; bytes <= 15; bytes++)
    t.match(walk(Buffer.concat([Uint8Array.of(0xf0 | bytes), new Uint8Array(bytes)])), [
      { type: RecordType.FILE_CHECKPOINT },
    ])
})

t.test('the same cursor serves one range after the other, each without memory of the last', async t => {
  const cursor = new RecordCursor()
  const first = record(RecordType.INIT_PAGE, at(1, 1))
  cursor.reset(first, 0, first.length)
  while (cursor.next());
  const orphan = record(RecordType.WRITE, null, varint(50), Uint8Array.of(1))
  cursor.reset(orphan, 0, orphan.length)
  t.throws(
    () => cursor.next(),
    CorruptRedoError,
    'a same-page record without a page before it is a bad file record',
  )
  t.throws(() => cursor.reset(first, 0, first.length + 1), RangeError)
  t.throws(() => cursor.reset(first, -1, 1), RangeError)
})

t.test('what InnoDB refuses is refused', async t => {
  const init = record(RecordType.INIT_PAGE, at(1, 1))
  const free = record(RecordType.FREE_PAGE, at(1, 1))
  const write = (offset: number, ...data: number[]) =>
    record(RecordType.WRITE, at(1, 1), varint(offset), Uint8Array.from(data))
  const file = (type: number, name: string, space = 7, page = 0) =>
    record(type, null, varint(space), varint(page), text.encode(name))
  const cases: [string, Uint8Array, RegExp][] = [
    ['reserved type', record(0x60, at(1, 1), Uint8Array.of(1)), /reserved type/],
    [
      'reserved type among file records',
      record(0xe0, null, varint(1), varint(0), text.encode('x')),
      /reserved type/,
    ],
    [
      'INIT_PAGE with payload',
      record(RecordType.INIT_PAGE, at(1, 1), Uint8Array.of(1)),
      /INIT_PAGE record with a payload/,
    ],
    [
      'FREE_PAGE with payload',
      record(RecordType.FREE_PAGE, at(1, 1), Uint8Array.of(1)),
      /FREE_PAGE record with a payload/,
    ],
    ['same-page INIT_PAGE', records(init, Uint8Array.of(0x91, 0)), /without a page id/],
    ['same-page FREE_PAGE', records(init, Uint8Array.of(0x81, 0)), /without a page id/],
    [
      'write after FREE_PAGE',
      records(free, record(RecordType.WRITE, null, varint(50), Uint8Array.of(1))),
      /freed/,
    ],
    [
      'insert after FREE_PAGE',
      records(free, record(RecordType.EXTENDED, null, Uint8Array.of(4, 5, 6))),
      /freed/,
    ],
    ['write before byte 8', write(7, 1), /offset 7/],
    ['write beyond 64 KiB', write(65535, 1, 2), /beyond the page/],
    ['write at 64 KiB', write(65536, 1), /outside the page/],
    ['write without data', record(RecordType.WRITE, at(1, 1), varint(50)), /malformed offset/],
    ['write without offset', record(RecordType.WRITE, at(1, 1)), /without an offset/],
    [
      'offset of 4 bytes',
      record(RecordType.WRITE, at(1, 1), Uint8Array.of(0xe0, 0, 0, 0, 1)),
      /malformed offset/,
    ],
    [
      'MEMSET without pattern',
      record(RecordType.MEMSET, at(1, 1), varint(50), varint(9)),
      /without a pattern/,
    ],
    [
      'MEMSET with too much',
      record(RecordType.MEMSET, at(1, 1), varint(50), varint(1), Uint8Array.of(1, 2)),
      /pattern is longer/,
    ],
    [
      'MEMSET beyond',
      record(RecordType.MEMSET, at(1, 1), varint(50), varint(65500), Uint8Array.of(1)),
      /beyond the page/,
    ],
    [
      'MEMMOVE without source',
      record(RecordType.MEMMOVE, at(1, 1), varint(50), varint(9)),
      /malformed source/,
    ],
    [
      'MEMMOVE with more',
      record(RecordType.MEMMOVE, at(1, 1), varint(50), varint(9), Uint8Array.of(0, 0)),
      /malformed source/,
    ],
    [
      'MEMMOVE from byte 7',
      record(RecordType.MEMMOVE, at(1, 1), varint(50), varint(9), varint(((43 - 1) << 1) | 1)),
      /from offset 7/,
    ],
    [
      'MEMMOVE from beyond',
      record(RecordType.MEMMOVE, at(1, 1), varint(50), varint(65480), varint(20)),
      /outside the page/,
    ],
    ['EXTENDED without subtype', record(RecordType.EXTENDED, at(1, 1)), /without a subtype/],
    [
      'EXTENDED of subtype 11',
      record(RecordType.EXTENDED, at(1, 1), Uint8Array.of(11)),
      /unknown subtype 11/,
    ],
    ['TRIM_PAGES with more', record(RecordType.EXTENDED, at(1, 640), Uint8Array.of(10, 0)), /TRIM_PAGES/],
    [
      'same-page TRIM_PAGES',
      records(init, record(RecordType.EXTENDED, null, Uint8Array.of(10))),
      /TRIM_PAGES/,
    ],
    [
      'same page as TRIM_PAGES',
      records(
        record(RecordType.EXTENDED, at(1, 640), Uint8Array.of(10)),
        record(RecordType.OPTION, null, Uint8Array.of(0)),
      ),
      /TRIM_PAGES/,
    ],
    ['page id cut off', Uint8Array.of(0x31, 5), /page id/],
    ['page number cut off', Uint8Array.of(0x32, 5, 0x80), /page number/],
    ['page number of 6 bytes', Uint8Array.of(0x37, 5, 0xf8, 0, 0, 0, 0, 0), /page number/],
    ['tablespace id 2^32-1', Uint8Array.of(0x37, 0xf0, 0xef, 0xdf, 0xbf, 0x7f, 1, 1), /more than 32 bits/],
    ['page number 2^32-1', Uint8Array.of(0x37, 1, 0xf0, 0xef, 0xdf, 0xbf, 0x7f, 1), /more than 32 bits/],
    ['record beyond the end', Uint8Array.of(0x3f, 1, 1), /beyond its mini-transaction/],
    ['length cut off', Uint8Array.of(0x30), /cut off/],
    ['length of reserved form', Uint8Array.of(0x30, 0xf8, 0, 0, 0, 0, 0, 0), /no varint/],
    ['length of 1 MiB', Uint8Array.of(0x30, 0xcf, 0xbf, 0x80), /more than 1 MiB/],
    ['terminator inside', Uint8Array.of(0), /end-of-mini-transaction/],
    ['file record of unknown type', file(0xc0, './a/b.ibd'), /unknown type 0xc0/],
    ['file record for space 0', file(RecordType.FILE_MODIFY, './a/b.ibd', 0), /system tablespace/],
    ['file record with page', file(RecordType.FILE_MODIFY, './a/b.ibd', 5, 1), /page number/],
    ['file record without name', file(RecordType.FILE_MODIFY, ''), /without a name/],
    ['name that is not .ibd', file(RecordType.FILE_CREATE, './a/b.frm'), /end in .ibd/],
    ['rename with one name', file(RecordType.FILE_RENAME, './a/b.ibd'), /wrong number of names/],
    ['rename with three', file(RecordType.FILE_RENAME, './a/b.ibd\0./a/c.ibd\0./a/d.ibd'), /NUL/],
    ['create with two', file(RecordType.FILE_CREATE, './a/b.ibd\0./a/c.ibd'), /wrong number of names/],
    ['checkpoint of a space', Buffer.from('fa01000000000000003039', 'hex'), /tablespace id/],
    [
      'checkpoint not at the end',
      Buffer.concat([Buffer.from('fa00000000000000003039', 'hex'), init]),
      /not the last/,
    ],
    ['padding that is not NUL', Buffer.from('f500000000ff', 'hex'), /not NUL/],
    ['short padding not at the end', Buffer.concat([Buffer.from('f100', 'hex'), init]), /not the last/],
  ]
  for (const [name, bytes, message] of cases)
    t.throws(() => walk(bytes), { name: 'CorruptRedoError', message }, name)
})

t.test('a known page size narrows what fits', async t => {
  const bytes = record(RecordType.WRITE, at(1, 1), varint(4095), Uint8Array.of(1, 2))
  t.equal(walk(bytes).length, 1)
  t.throws(() => walk(bytes, 4096), CorruptRedoError)
  t.throws(() => walk(record(RecordType.OPTION, at(1, 1), new Uint8Array(4096)), 4096), /longer than a page/)
})
