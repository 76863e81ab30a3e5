import t from 'tap'
import { ApplyResult, optPageChecksum, PageApplier, recordName } from '../../../parser/apply-page.ts'
import { CorruptPageError } from '../../../parser/corrupt-page-error.ts'
import { CorruptRedoError } from '../../../parser/corrupt-redo-error.ts'
import {
  FIL_PAGE_TYPE,
  pageLsn,
  pageTypeName,
  read2,
  read4,
  writePageLsn,
} from '../../../parser/page-format.ts'
import { inspectPageObject } from '../../../parser/page-inspect.ts'
import type { IndexInspection } from '../../../parser/page-inspect-index.ts'
import { ExtendedSubtype, RecordType } from '../../../parser/record-decoder.ts'
import { parseSpaceFlags, type SpaceFormat } from '../../../parser/space-flags.ts'
import { toLsn } from '../../../protocol/ids.ts'
import {
  deleteDynamic,
  deleteRedundant,
  extended,
  freePage,
  type Id,
  initPage,
  insertDynamic,
  insertRedundant,
  memmove,
  memset,
  optionChecksum,
  record,
  write,
} from '../../support/redo-records.ts'

const FULL = parseSpaceFlags(0x15)
const OLD = parseSpaceFlags(0x21)
const ZIP = parseSpaceFlags(0x21 | (3 << 1))
const ID: Id = [5, 77]

/** Applies each list of bytes as one entry, at LSN 1000, 1001, …, and ends. */
function applied(entries: readonly number[][], format: SpaceFormat = FULL, id: Id = ID): Uint8Array {
  const page = new Uint8Array(format.physicalSize)
  const applier = new PageApplier()
  applier.begin(page, format, ...id)
  entries.forEach((bytes, i) => {
    applier.apply(Uint8Array.from(bytes), 0, bytes.length, toLsn(1000 + i))
  })
  applier.end()
  return page
}

t.test('INIT_PAGE and the writes, with relative offsets', async t => {
  const page = applied([
    [
      ...initPage(ID),
      ...write(undefined, 2, [1, 2, 3]),
      ...write(undefined, 0, [4]),
      ...memset(undefined, 10, 5, [9]),
      ...memset(undefined, 0, 7, [1, 2, 3]),
    ],
    [...write(ID, 100, [1, 2, 3, 4]), ...memmove(undefined, 0, 4, -4), ...memmove(undefined, 2, 3, 1)],
  ])
  t.equal(read4(page, 4), 77)
  t.equal(read4(page, 34), 5)
  t.equal(read4(page, 8), 0xffffffff)
  t.same(
    [...page.subarray(24, 32)],
    [0, 0, 1, 2, 3, 4, 0, 0],
    'after INIT_PAGE offsets count from the page type',
  )
  t.same([...page.subarray(40, 52)], [9, 9, 9, 9, 9, 1, 2, 3, 1, 2, 3, 1])
  t.same([...page.subarray(100, 114)], [1, 2, 3, 4, 1, 2, 3, 4, 0, 0, 0, 0, 0, 0])
  t.equal(pageLsn(page), 1001)
})

t.test('overlapping MEMMOVE goes as memmove does', async t => {
  const bytes = [1, 2, 3, 4, 5, 6]
  const up = applied([[...initPage(ID), ...write(ID, 100, bytes), ...memmove(ID, 102, 6, -2)]])
  t.same([...up.subarray(100, 108)], [1, 2, 1, 2, 3, 4, 5, 6])
  const down = applied([[...initPage(ID), ...write(ID, 100, bytes), ...memmove(ID, 98, 6, 2)]])
  t.same([...down.subarray(98, 106)], [1, 2, 3, 4, 5, 6, 5, 6])
})

t.test('entries at or below the LSN of the page are skipped', async t => {
  const page = new Uint8Array(16384)
  const applier = new PageApplier()
  const apply = (bytes: number[], lsn: number): ApplyResult =>
    applier.apply(Uint8Array.from(bytes), 0, bytes.length, toLsn(lsn))
  applier.begin(page, FULL, ...ID)
  t.equal(apply([...initPage(ID), ...write(ID, 50, [1])], 100), ApplyResult.APPLIED)
  t.equal(apply(write(ID, 50, [2]), 200), ApplyResult.APPLIED)
  t.equal(apply(write(ID, 51, [7]), 200), ApplyResult.APPLIED, 'a second entry of the same mini-transaction')
  t.equal(applier.end(), true)
  t.equal(pageLsn(page), 200)
  applier.begin(page, FULL, ...ID)
  t.equal(apply(write(ID, 50, [3]), 100), ApplyResult.SKIPPED)
  t.equal(apply(write(ID, 50, [3]), 200), ApplyResult.SKIPPED)
  t.equal(applier.end(), false)
  t.same([...page.subarray(50, 52)], [2, 7])
  applier.begin(page, FULL, ...ID)
  apply(write(ID, 50, [4]), 300)
  t.throws(() => apply(write(ID, 50, [4]), 250), RangeError, 'entries must come in order')
})

t.test('freeing keeps bytes and LSN; the page may come back', async t => {
  const page = applied([[...initPage(ID), ...write(ID, 50, [1])]])
  const before = Uint8Array.from(page)
  const applier = new PageApplier()
  applier.begin(page, FULL, ...ID)
  t.equal(
    applier.apply(Uint8Array.from(freePage(ID)), 0, freePage(ID).length, toLsn(2000)),
    ApplyResult.FREED,
  )
  t.equal(applier.freed, true)
  t.equal(applier.end(), false)
  t.same(page, before)
  applier.begin(page, FULL, ...ID)
  t.equal(applier.freed, false)
  applier.apply(Uint8Array.from(freePage(ID)), 0, freePage(ID).length, toLsn(2000))
  applier.apply(Uint8Array.from(initPage(ID)), 0, initPage(ID).length, toLsn(3000))
  t.equal(applier.freed, false)
  applier.end()
  t.equal(page[50], 0)
  t.equal(pageLsn(page), 3000)
})

t.test('trailer LSN of older formats', async t => {
  t.equal(read4(applied([initPage(ID)], OLD), 16384 - 4), 1000)
  t.equal(read4(applied([initPage(ID)], ZIP), 4096 - 4), 0, 'a compressed frame has no trailer')
})

t.test('OPT_PAGE_CHECKSUM', async t => {
  const page = applied([[...initPage(ID), ...write(ID, 50, [1])]])
  const sum = optPageChecksum(page)
  t.doesNotThrow(() => applied([[...initPage(ID), ...write(ID, 50, [1]), ...optionChecksum(ID, sum)]]))
  t.throws(() => applied([[...initPage(ID), ...write(ID, 50, [2]), ...optionChecksum(ID, sum)]]), {
    name: 'CorruptPageError',
    message: /corrupt page 5:77 at LSN 1000: OPTION record: checksum is 0x/,
  })
  t.doesNotThrow(
    () => applied([[...initPage(ID), ...record(RecordType.OPTION, ID, [9, 1, 2, 3, 4])]]),
    'other options',
  )
  const lax = new PageApplier({ verifyChecksums: false })
  const bytes = [...initPage(ID), ...optionChecksum(ID, 1)]
  lax.begin(page, FULL, ...ID)
  t.equal(lax.apply(Uint8Array.from(bytes), 0, bytes.length, toLsn(5000)), ApplyResult.APPLIED)
})

t.test('UNDO_INIT and UNDO_APPEND', async t => {
  const page = applied([
    [...initPage(ID), ...write(ID, 60, [1, 2, 3]), ...extended(ID, ExtendedSubtype.UNDO_INIT)],
    extended(ID, ExtendedSubtype.UNDO_APPEND, [11, 0, 42, 9]),
    extended(ID, ExtendedSubtype.UNDO_APPEND, [14, 1, 42]),
  ])
  t.equal(pageTypeName(read2(page, FIL_PAGE_TYPE)), 'UNDO_LOG')
  const found = inspectPageObject(page, FULL).detail
  t.match(found, {
    kind: 'undo',
    start: 56,
    free: 71,
    records: [
      { offset: 56, bytes: 8, type: 'INSERT_REC', undoNo: '0', tableId: '42' },
      { offset: 64, bytes: 7, type: 'DEL_MARK_REC', undoNo: '1', tableId: '42' },
    ],
  })
  t.throws(() => applied([[...initPage(ID), ...extended(ID, ExtendedSubtype.UNDO_APPEND, [1, 2, 3])]]), {
    name: 'CorruptPageError',
    message: /UNDO_APPEND record: undo page header/,
  })
  t.throws(
    () =>
      applied([
        [...initPage(ID), ...extended(ID, ExtendedSubtype.UNDO_INIT)],
        extended(ID, ExtendedSubtype.UNDO_APPEND, new Array<number>(16330).fill(1)),
      ]),
    { message: /undo record does not fit/ },
  )
})

function chainOf(page: Uint8Array): IndexInspection {
  const found = inspectPageObject(page, FULL)
  // The page was never written: its checksum is the only thing that may be wrong.
  const problems = found.problems.filter(problem => !/checksum/.test(problem))
  if (problems.length) throw new Error(problems.join('; '))
  return found.detail as IndexInspection
}

t.test('DYNAMIC: insert, delete, reuse', async t => {
  const create = [...initPage(ID), ...extended(ID, ExtendedSubtype.INIT_ROW_FORMAT_DYNAMIC)]
  const page = applied([
    create,
    insertDynamic(ID, 0, [3], [97, 98, 99]),
    insertDynamic(ID, 126 - 99, [4], [100, 101, 102, 103]),
    deleteDynamic(ID, 0, 1, 3),
    insertDynamic(ID, 0, [2], [1, 2], 0),
  ])
  const index = chainOf(page)
  t.equal(index.records, 2)
  t.same(
    index.chain.map(r => [r.type, r.heapNo]),
    [
      ['infimum', 0],
      ['ordinary', 2],
      ['ordinary', 3],
      ['supremum', 1],
    ],
  )
  t.equal(index.free, 0)
  t.equal(index.garbageBytes, 9 - 8)
})

t.test('REDUNDANT: insert, delete, reuse', async t => {
  const create = [...initPage(ID), ...extended(ID, ExtendedSubtype.INIT_ROW_FORMAT_REDUNDANT)]
  const page = applied([
    create,
    insertRedundant(ID, 0, [97, 98, 99]),
    insertRedundant(ID, 132 - 101, [100, 101]),
    deleteRedundant(ID, 0),
    insertRedundant(ID, 0, [1, 2], true),
  ])
  const index = chainOf(page)
  t.equal(index.rowFormat, 'REDUNDANT')
  t.same(
    index.chain.map(r => [r.type, r.heapNo, r.fields]),
    [
      ['infimum', 0, 1],
      ['ordinary', 2, 1],
      ['ordinary', 3, 1],
      ['supremum', 1, 1],
    ],
  )
})

t.test('what does not fit is refused, and named', async t => {
  const create = [...initPage(ID), ...extended(ID, ExtendedSubtype.INIT_ROW_FORMAT_DYNAMIC)]
  const cases: [
    string,
    number[][],
    typeof CorruptPageError | typeof CorruptRedoError,
    RegExp,
    SpaceFormat?,
    Id?,
  ][] = [
    ['another page', [write([5, 78], 50, [1])], CorruptRedoError, /page 5:77: WRITE record names page 5:78/],
    [
      'never initialised',
      [write(ID, 50, [1])],
      CorruptPageError,
      /corrupt page 5:77 at LSN 1000.*never written/,
    ],
    [
      'beyond the page',
      [[...initPage(ID), ...write(ID, 16383, [1, 2])]],
      CorruptRedoError,
      /2 bytes at offset 16383/,
    ],
    [
      'beyond a compressed frame',
      [[...initPage(ID), ...write(ID, 4095, [1, 2])]],
      CorruptRedoError,
      /offset 4095/,
      ZIP,
    ],
    [
      'MEMMOVE source',
      [[...initPage(ID), ...memmove(ID, 100, 10, 16280)]],
      CorruptRedoError,
      /copies from offset 16380/,
    ],
    [
      'MEMSET',
      [[...initPage(ID), ...memset(ID, 16380, 5, [1])]],
      CorruptRedoError,
      /5 bytes at offset 16380/,
    ],
    [
      'EXTENDED on page 2',
      [[...initPage([5, 2]), ...extended([5, 2], 1)]],
      CorruptRedoError,
      /not allowed/,
      FULL,
      [5, 2],
    ],
    [
      'EXTENDED on a compressed frame',
      [create],
      CorruptRedoError,
      /INIT_ROW_FORMAT_DYNAMIC record is not allowed/,
      ZIP,
    ],
    ['a file record', [record(RecordType.FILE_MODIFY & 0x7f, ID, [1])], CorruptRedoError, /./],
    [
      'a wrong length',
      [[...initPage(ID), ...extended(ID, 1, [0])]],
      CorruptRedoError,
      /INIT_ROW_FORMAT_DYNAMIC record is malformed/,
    ],
    [
      'a long delete',
      [create, extended(ID, 8, [0, 0])],
      CorruptRedoError,
      /DELETE_ROW_FORMAT_REDUNDANT record is malformed/,
    ],
    ['TRIM_PAGES', [[...initPage(ID), ...extended(ID, 10)]], CorruptRedoError, /TRIM_PAGES/],
    [
      'insert into no index page',
      [[...initPage(ID), ...insertDynamic(ID, 0, [1], [1])]],
      CorruptPageError,
      /not an index page/,
    ],
    [
      'delete from an empty page',
      [create, deleteDynamic(ID, 0, 0, 1)],
      CorruptPageError,
      /page has no records/,
    ],
    [
      'predecessor outside',
      [create, insertDynamic(ID, 9000, [1], [1])],
      CorruptPageError,
      /predecessor is outside/,
    ],
    [
      'other row format',
      [create, insertRedundant(ID, 0, [1])],
      CorruptPageError,
      /INSERT_HEAP_REDUNDANT record: /,
    ],
    [
      'too long',
      [create, insertDynamic(ID, 0, [1], new Array<number>(16300).fill(1))],
      CorruptPageError,
      /record does not fit/,
    ],
    ['reuse without garbage', [create, insertDynamic(ID, 0, [1], [1], 0)], CorruptPageError, /free list/],
  ]
  for (const [name, entries, kind, message, format, id] of cases)
    t.throws(() => applied(entries, format ?? FULL, id ?? ID), { name: kind.name, message }, name)
  t.throws(() => new PageApplier().begin(new Uint8Array(100), FULL, 1, 1), RangeError)
})

t.test('a cut-off record is told with page, LSN and offset', async t => {
  const bytes = write(ID, 50, [1, 2, 3])
  const page = new Uint8Array(16384)
  writePageLsn(page, toLsn(5))
  const applier = new PageApplier()
  applier.begin(page, FULL, ...ID)
  t.throws(() => applier.apply(Uint8Array.from(bytes), 0, bytes.length - 1, toLsn(4321)), {
    name: 'CorruptRedoError',
    lsn: 4321,
    offset: 0,
    message: /LSN 4321: page 5:77: /,
  })
})

t.test('names of records', async t => {
  t.equal(recordName(RecordType.MEMMOVE, -1), 'MEMMOVE')
  t.equal(recordName(RecordType.EXTENDED, 9), 'DELETE_ROW_FORMAT_DYNAMIC')
  t.equal(recordName(RecordType.EXTENDED, 99), 'EXTENDED subtype 99')
  t.equal(recordName(0x60, -1), 'record type 0x60')
})
