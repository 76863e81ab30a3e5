import t from 'tap'
import { ENTRY_WORDS, EntryFlag, EntryTable, EntryWord, PlainMtrScan } from '../../../parser/entry-table.ts'
import { MtrScanner, ScanResult } from '../../../parser/mtr-scanner.ts'
import { ExtendedSubtype, RecordCursor, RecordType } from '../../../parser/record-decoder.ts'
import type { Lsn } from '../../../protocol/ids.ts'
import { mtr, record, varint } from '../../support/redo-builder.ts'
import { loadVariety, PAGE_SIZE_NAMES } from '../../support/redo-fixtures.ts'

const page = { space: 200, page: 70_000 }
const word = (table: EntryTable, entry: number, which: number) => table.words[ENTRY_WORDS * entry + which]!
const write = (id: { space: number; page: number } | null, offset: number, ...data: number[]) =>
  record(RecordType.WRITE, id, varint(offset), Uint8Array.from(data))

t.test('recorded mini-transactions: nearly all are plain, and then cursor and quick loop agree', async t => {
  const scanner = new MtrScanner()
  const cursor = new RecordCursor()
  for (const size of PAGE_SIZE_NAMES) {
    const bytes = loadVariety(size)
    const table = new EntryTable()
    const plain = new PlainMtrScan(table, 65_536)
    let accepted = 0
    let mtrs = 0
    let wrong = 0
    for (
      let at = 0;
      scanner.scan(bytes, at, bytes.length, 0 as Lsn, null) === ScanResult.COMPLETE;
      at = scanner.mtrEnd
    ) {
      mtrs++
      const before = table.count
      const terminator = plain.scan(bytes, at, bytes.length)
      if (terminator < 0) {
        if (table.count !== before) wrong++
        continue
      }
      accepted++
      let records = 0
      cursor.reset(bytes, at, scanner.recordsEnd)
      while (cursor.next()) records++
      if (terminator !== scanner.recordsEnd || records !== plain.records) wrong++
      // Entries lie one after the other and cover the records.
      let end = at
      for (let e = before; e < table.count; e++) {
        if (word(table, e, EntryWord.START) !== end) wrong++
        end += word(table, e, EntryWord.LENGTH_FLAGS) >>> 2
      }
      if (end !== terminator) wrong++
    }
    t.equal(wrong, 0, size)
    t.ok(accepted > 0.5 * mtrs, `${size}: ${accepted} of ${mtrs} shapes are plain`)
  }
})

t.test('special or wrong: no verdict, nothing in the table', async t => {
  const cases: [string, Uint8Array[]][] = [
    [
      'file record',
      [
        record(RecordType.FILE_MODIFY, null, varint(7), varint(0), Buffer.from('./a/b.ibd')),
        write(page, 50, 1),
      ],
    ],
    ['checkpoint', [Buffer.from('fa00000000000000003039', 'hex')]],
    ['padding', [Buffer.from('f100', 'hex')]],
    [
      'TRIM_PAGES',
      [record(RecordType.EXTENDED, { space: 1, page: 640 }, Uint8Array.of(ExtendedSubtype.TRIM_PAGES))],
    ],
    ['size', [write({ space: 1, page: 0 }, 46, 0, 0, 1, 0)]],
    ['flags', [write({ space: 1, page: 0 }, 54, 0, 0, 0, 0x15)]],
    ['reserved type', [record(0x60, page, Uint8Array.of(1))]],
    ['write after FREE_PAGE', [record(RecordType.FREE_PAGE, page), write(null, 50, 1)]],
    ['write to byte 7', [write(page, 7, 1)]],
    ['write beyond the page', [write(page, 4095, 1, 2)]],
    ['MEMSET without pattern', [record(RecordType.MEMSET, page, varint(50), varint(9))]],
    [
      'MEMSET beyond the page',
      [record(RecordType.MEMSET, page, varint(4000), varint(200), Uint8Array.of(1))],
    ],
    [
      'MEMMOVE from byte 7',
      [record(RecordType.MEMMOVE, page, varint(50), varint(9), varint(((43 - 1) << 1) | 1))],
    ],
    ['INIT_PAGE with payload', [record(RecordType.INIT_PAGE, page, Uint8Array.of(1))]],
    ['nothing', []],
  ]
  for (const [name, records] of cases) {
    const table = new EntryTable()
    table.add(1, 2, 3, 4, 0)
    const bytes = mtr(
      [write(page, 60, 1), ...records].slice(name === 'nothing' || records[0]![0]! >= 0x80 ? 1 : 0),
    )
    t.equal(new PlainMtrScan(table, 4096).scan(bytes, 0, bytes.length), -1, name)
    t.equal(table.count, 1, `${name}: the table is as it was`)
  }
})

t.test('plain ones, to the byte, and only where the terminator is there', async t => {
  const bytes = mtr([
    record(RecordType.INIT_PAGE, page),
    write(null, 0, 1, 2),
    record(RecordType.MEMMOVE, null, varint(300), varint(200), varint(5)),
    write({ space: 200, page: 0 }, 58, 1),
    record(RecordType.FREE_PAGE, { space: 3, page: 4 }),
    record(RecordType.OPTION, null, new Uint8Array(5)),
    write({ space: 3, page: 5 }, 100, ...new Uint8Array(300)),
  ])
  const table = new EntryTable()
  const plain = new PlainMtrScan(table, 4096)
  const terminator = bytes.length - 5
  for (let end = 0; end <= terminator; end++) t.equal(plain.scan(bytes, 0, end), -1, `${end} bytes`)
  t.equal(plain.scan(bytes, 0, terminator + 1), terminator)
  t.equal(plain.records, 7)
  t.equal(table.count, 4)
  const first = [0, 1, 2, 3]
  t.same(
    first.map(e => word(table, e, EntryWord.PAGE)),
    [70_000, 0, 4, 5],
  )
  t.same(
    first.map(e => word(table, e, EntryWord.LENGTH_FLAGS) & 3),
    [EntryFlag.INIT_PAGE, 0, EntryFlag.FREE_PAGE, 0],
  )
  for (let i = 0; i < 2000; i++) plain.scan(bytes, 0, bytes.length)
  t.equal(table.count, 8004, 'the table grows')
  t.equal(word(table, 8003, EntryWord.PAGE), 5)
})
