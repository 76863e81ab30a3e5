import t from 'tap'
import { LOG_START_OFFSET, LogGeometry, parseLogFileHead } from '../../../parser/log-file.ts'
import {
  describeScanResult,
  MTR_SCAN_BYTES_MAX,
  MtrScanner,
  ScanResult,
} from '../../../parser/mtr-scanner.ts'
import { MTR_BYTES_MAX, RecordCursor, RecordType } from '../../../parser/record-decoder.ts'
import type { Lsn } from '../../../protocol/ids.ts'
import { mtr, record, sealMtr, varint } from '../../support/redo-builder.ts'
import { loadGoldenLog } from '../../support/redo-fixtures.ts'

const lsn = (value: number) => value as Lsn
const page = { space: 1, page: 4 }
const small = mtr([record(RecordType.WRITE, page, varint(50), Uint8Array.of(1, 0, 1, 2))])

t.test('a whole recorded log', async t => {
  const log = loadGoldenLog('4k')
  const scanner = new MtrScanner()
  const cursor = new RecordCursor(4096)
  const { firstLsn } = parseLogFileHead(log)
  const geometry = new LogGeometry(firstLsn, 1 << 30)
  const lsnAt = (offset: number) => lsn(firstLsn + offset - LOG_START_OFFSET)
  let mtrs = 0
  let records = 0
  let at = LOG_START_OFFSET
  while (scanner.scan(log, at, log.length, lsnAt(at), geometry) === ScanResult.COMPLETE) {
    mtrs++
    cursor.reset(log, scanner.recordsStart, scanner.recordsEnd)
    while (cursor.next()) records++
    at = scanner.mtrEnd
  }
  t.match({ mtrs, records, end: lsnAt(at) }, { mtrs: 291_774, records: 1_244_720, end: 69_329_526 })
  t.same(scanner.scanRange(log, LOG_START_OFFSET, at, firstLsn, geometry), {
    consumedBytes: at - LOG_START_OFFSET,
    mtrs,
    stop: ScanResult.COMPLETE,
  })
  t.equal(
    scanner.scan(log, at, log.length, lsn(at), geometry),
    at === log.length ? ScanResult.NEED_MORE : ScanResult.EMPTY,
  )
})

t.test('every cut of a mini-transaction needs more', async t => {
  const scanner = new MtrScanner()
  for (let end = 0; end < small.length; end++)
    t.equal(scanner.scan(small, 0, end, lsn(1), null), ScanResult.NEED_MORE, `${end} bytes`)
  t.equal(scanner.scan(small, 0, small.length, lsn(1), null), ScanResult.COMPLETE)
  t.match(scanner, { recordsStart: 0, recordsEnd: small.length - 5, mtrEnd: small.length })
})

t.test('what is no mini-transaction', async t => {
  const scanner = new MtrScanner()
  const scan = (bytes: Uint8Array) => scanner.scan(bytes, 0, bytes.length, lsn(1), null)
  t.equal(scan(new Uint8Array(100)), ScanResult.EMPTY)
  t.equal(scan(Uint8Array.of(1)), ScanResult.EMPTY)
  const flipped = Uint8Array.from(small)
  flipped[4]! ^= 1
  t.equal(scan(flipped), ScanResult.CHECKSUM)
  t.equal(
    scan(Uint8Array.of(0x30, 0xf8, 0, 0, 0, 0, 0, 0)),
    ScanResult.TOO_LONG,
    'a length that is no varint',
  )
  t.equal(scan(Uint8Array.of(0x30, 0xcf, 0xbf, 0x80, 0)), ScanResult.TOO_LONG, 'a record of 1 MiB')
  t.equal(scan(Uint8Array.of(0x30, 0xf0, 0xff, 0xff, 0xff, 0xff)), ScanResult.TOO_LONG)
  t.equal(scan(Uint8Array.of(0x30, 0xcf, 0xbf, 0x7f, 0)), ScanResult.NEED_MORE, 'a record just below')
  t.throws(() => scanner.scan(small, 0, small.length + 1, lsn(1), null), RangeError)
  for (const result of Object.values(ScanResult)) t.ok(describeScanResult(result).length > 0)
})

t.test(
  'the limit of 1 MiB counts as InnoDB counts, and whoever holds the maximum is never told to read on',
  async t => {
    const scanner = new MtrScanner()
    // Records of two bytes count as one each: the longest that can pass.
    const pairs = new Uint8Array(MTR_SCAN_BYTES_MAX)
    for (let i = 0; i < pairs.length; i += 2) {
      pairs[i] = 0x31
      pairs[i + 1] = 0x55
    }
    t.equal(scanner.scan(pairs, 0, pairs.length, lsn(1), null), ScanResult.TOO_LONG)
    t.equal(
      scanner.scan(sealMtr(pairs.subarray(0, 2 * MTR_BYTES_MAX - 2)), 0, 2 * MTR_BYTES_MAX + 3, lsn(1), null),
      ScanResult.COMPLETE,
    )
    const long = new Uint8Array(MTR_SCAN_BYTES_MAX).fill(0x3f)
    t.equal(scanner.scan(long, 0, long.length, lsn(1), null), ScanResult.TOO_LONG)
  },
)

t.test('the sequence bit is that of the LSN where the terminator lies', async t => {
  const capacity = 1000
  const geometry = new LogGeometry(lsn(20_000), LOG_START_OFFSET + capacity)
  const scanner = new MtrScanner()
  const at = (begin: number, bit: number) => {
    const bytes = Uint8Array.from(small)
    bytes[small.length - 5] = bit
    return scanner.scan(bytes, 0, bytes.length, lsn(begin), geometry)
  }
  const records = small.length - 5
  t.equal(at(20_000, 1), ScanResult.COMPLETE)
  t.equal(at(20_000, 0), ScanResult.SEQUENCE_BIT)
  t.equal(
    at(20_000 + capacity - records - 1, 1),
    ScanResult.COMPLETE,
    'terminator in the last byte of the ring',
  )
  t.equal(
    at(20_000 + capacity - records, 0),
    ScanResult.COMPLETE,
    'terminator in the first byte of the next lap',
  )
  t.equal(at(20_000 + capacity - records, 1), ScanResult.SEQUENCE_BIT)
  t.equal(at(20_000 + 2 * capacity, 1), ScanResult.COMPLETE)
})

t.test('scanRange says how far it came and why it stopped', async t => {
  const scanner = new MtrScanner()
  const three = Buffer.concat([small, small, small])
  t.same(scanner.scanRange(three, 0, three.length, lsn(9), null), {
    consumedBytes: three.length,
    mtrs: 3,
    stop: ScanResult.COMPLETE,
  })
  t.same(scanner.scanRange(three, 0, three.length - 1, lsn(9), null), {
    consumedBytes: 2 * small.length,
    mtrs: 2,
    stop: ScanResult.NEED_MORE,
  })
  const zeros = Buffer.concat([small, new Uint8Array(10)])
  t.same(scanner.scanRange(zeros, 0, zeros.length, lsn(9), null), {
    consumedBytes: small.length,
    mtrs: 1,
    stop: ScanResult.EMPTY,
  })
  t.same(scanner.scanRange(small, 3, 3, lsn(9), null), {
    consumedBytes: 0,
    mtrs: 0,
    stop: ScanResult.COMPLETE,
  })
})
