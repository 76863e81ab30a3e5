import t from 'tap'
import {
  LOG_FORMAT_10_8,
  LOG_START_OFFSET,
  LogGeometry,
  makeFileCheckpointMtr,
  makeLogFileHead,
  parseLogFileHead,
  UnsupportedLogFormatError,
} from '../../../parser/log-file.ts'
import { MtrScanner, ScanResult } from '../../../parser/mtr-scanner.ts'
import { crc32c } from '../../../protocol/crc32c.ts'
import type { Lsn } from '../../../protocol/ids.ts'
import { loadServerHead, PAGE_SIZE_NAMES } from '../../support/redo-fixtures.ts'

/** The clean shutdowns': block, checkpoint LSN (the end LSN is the same). */
const LAST_CHECKPOINT = { '4k': [0, 0x0421e266], '16k': [1, 0x049337f6], '64k': [1, 0x0482da8c] } as const

const lsn = (value: number) => value as Lsn

function sealHeader(head: Uint8Array): Uint8Array {
  new DataView(head.buffer).setUint32(508, crc32c(head, 0, 508))
  return head
}

function setCheckpoint(head: Uint8Array, block: 0 | 1, checkpoint: number, end: number): void {
  const view = new DataView(head.buffer)
  const at = block === 0 ? 0x1000 : 0x2000
  view.setBigUint64(at, BigInt(checkpoint))
  view.setBigUint64(at + 8, BigInt(end))
  view.setUint32(at + 60, crc32c(head, at, at + 60))
}

t.test('heads that a server wrote', async t => {
  for (const size of PAGE_SIZE_NAMES) {
    const head = parseLogFileHead(loadServerHead(size))
    t.match(head, { firstLsn: 12288, creator: 'MariaDB 10.11.18' }, size)
    const [block, checkpointLsn] = LAST_CHECKPOINT[size]
    t.same(head.checkpoint, { block, checkpointLsn, endLsn: checkpointLsn }, size)
  }
})

t.test('the newest valid checkpoint counts', async t => {
  const head = makeLogFileHead(lsn(20000), 'x')
  setCheckpoint(head, 0, 30000, 30100)
  t.match(parseLogFileHead(head).checkpoint, { block: 0, checkpointLsn: 30000, endLsn: 30100 })
  setCheckpoint(head, 1, 30000, 30200)
  t.match(parseLogFileHead(head).checkpoint, { block: 1, endLsn: 30200 }, 'the second on a tie')
  setCheckpoint(head, 1, 40000, 40000)
  t.match(parseLogFileHead(head).checkpoint, { block: 1, checkpointLsn: 40000 })
  head[0x2000 + 62]! ^= 1
  t.match(parseLogFileHead(head), {
    checkpoint: { block: 0 },
    checkpoints: [{ checkpointLsn: 30000 }, undefined],
  })
  setCheckpoint(head, 1, 19999, 40000)
  t.equal(parseLogFileHead(head).checkpoint.block, 0, 'not one before the first LSN')
  setCheckpoint(head, 1, 40000, 39999)
  t.equal(parseLogFileHead(head).checkpoint.block, 0, 'not one that ends before it begins')
  head[0x2000 + 20] = 1
  setCheckpoint(head, 1, 40000, 40000)
  t.equal(parseLogFileHead(head).checkpoint.block, 0, 'not one with unknown content')
  head[0x1000 + 1] = 1
  t.throws(() => parseLogFileHead(head), { name: 'CorruptRedoError', message: /no valid checkpoint/ })
})

t.test('damaged heads', async t => {
  t.throws(() => parseLogFileHead(new Uint8Array(100)), { name: 'CorruptRedoError', message: /too short/ })
  const torn = makeLogFileHead(lsn(20000), 'x')
  torn[9]! ^= 1
  t.throws(() => parseLogFileHead(torn), {
    name: 'CorruptRedoError',
    message: /checksum of the log file header/,
  })
  const early = makeLogFileHead(lsn(20000), 'x')
  new DataView(early.buffer).setBigUint64(8, 12287n)
  t.throws(() => parseLogFileHead(sealHeader(early)), {
    name: 'CorruptRedoError',
    message: /header is invalid/,
  })
  const late = makeLogFileHead(lsn(20000), 'x')
  new DataView(late.buffer).setBigUint64(8, 2n ** 53n)
  t.throws(() => parseLogFileHead(sealHeader(late)), { name: 'CorruptRedoError', message: /2\^53-1/ })
  const nonzero = makeLogFileHead(lsn(20000), 'x')
  nonzero[5] = 1
  t.throws(() => parseLogFileHead(sealHeader(nonzero)), {
    name: 'CorruptRedoError',
    message: /header is invalid/,
  })
  const random = new Uint8Array(LOG_START_OFFSET).map((_, i) => (i * 7919) >>> 3)
  t.throws(() => parseLogFileHead(random), { name: 'CorruptRedoError' })
})

t.test('other formats are refused by name', async t => {
  const cases: [number, RegExp][] = [
    [0, /before 10\.2\.2/],
    [1, /MariaDB 10\.2 or MySQL 5\.7/],
    [0x80000001, /encrypted format of MariaDB 10\.2/],
    [103, /MariaDB 10\.3/],
    [104, /MariaDB 10\.4/],
    [0x80000068, /encrypted format of MariaDB 10\.4/],
    [0x50485953, /MariaDB 10\.5 to 10\.7/],
    [0xd0485953, /encrypted format of MariaDB 10\.5/],
    [0xd0687973, /encrypted format of MariaDB 10\.8/],
    [0xf09f979d, /encrypted format of MariaDB 10\.11/],
    [3, /MySQL 8\.0/],
    [6, /MySQL 8\.0/],
    [0x12345678, /unknown format 0x12345678/],
  ]
  for (const [format, message] of cases) {
    const head = makeLogFileHead(lsn(20000), 'Some Server 1.2')
    new DataView(head.buffer).setUint32(0, format)
    t.throws(
      () => parseLogFileHead(sealHeader(head)),
      { name: 'UnsupportedLogFormatError', message },
      message.source,
    )
  }
  const encrypted = makeLogFileHead(lsn(20000), 'MariaDB 10.8.3')
  encrypted[51] = 2
  try {
    parseLogFileHead(sealHeader(encrypted))
    t.fail('accepted')
  } catch (error) {
    t.ok(error instanceof UnsupportedLogFormatError)
    t.match(error, {
      format: LOG_FORMAT_10_8,
      message: /encrypted format of MariaDB 10\.8.*innodb_encrypt_log=OFF/,
    })
  }
})

t.test('the ring: places and sequence bits', async t => {
  const geometry = new LogGeometry(lsn(50_000), 4 << 20)
  const capacity = (4 << 20) - LOG_START_OFFSET
  t.equal(geometry.capacity, capacity)
  t.equal(geometry.fileOffset(lsn(50_000)), LOG_START_OFFSET)
  t.equal(geometry.fileOffset(lsn(50_000 + capacity - 1)), (4 << 20) - 1)
  t.equal(geometry.fileOffset(lsn(50_000 + capacity)), LOG_START_OFFSET)
  t.equal(geometry.bytesToWrap(lsn(50_000)), capacity)
  t.equal(geometry.bytesToWrap(lsn(50_000 + capacity - 1)), 1)
  t.equal(geometry.sequenceBit(50_000), 1)
  t.equal(geometry.sequenceBit(50_000 + capacity - 1), 1)
  t.equal(geometry.sequenceBit(50_000 + capacity), 0)
  t.equal(geometry.sequenceBit(50_000 + 2 * capacity), 1)
  // Near 2^53 a division in floating point would round up to the next lap.
  const far = Math.floor((Number.MAX_SAFE_INTEGER - 50_000) / capacity)
  t.equal(geometry.sequenceBit(50_000 + far * capacity - 1), far % 2 === 0 ? 0 : 1)
  t.equal(geometry.sequenceBit(50_000 + far * capacity), far % 2 === 0 ? 1 : 0)
  t.throws(() => new LogGeometry(lsn(50_000), LOG_START_OFFSET), { name: 'CorruptRedoError' })
})

t.test('a head made for any LSN reads back, and its one mini-transaction is right', async t => {
  for (const at of [12288, 12289, 1_418_515_093, Number.MAX_SAFE_INTEGER - 100]) {
    const head = makeLogFileHead(lsn(at), 'Backup palimpsest')
    t.equal(head.length, LOG_START_OFFSET + 16)
    const parsed = parseLogFileHead(head)
    t.match(parsed, {
      firstLsn: at,
      creator: 'Backup palimpsest',
      checkpoint: { checkpointLsn: at, endLsn: at },
    })
    const geometry = new LogGeometry(parsed.firstLsn, 96 << 20)
    const scanner = new MtrScanner()
    t.equal(scanner.scan(head, LOG_START_OFFSET, head.length, lsn(at), geometry), ScanResult.COMPLETE)
  }
  t.equal(
    Buffer.from(makeFileCheckpointMtr(lsn(0x1_0000_0002), 1))
      .toString('hex')
      .slice(0, 24),
    'fa0000000000010000000201',
  )
  t.throws(() => makeLogFileHead(lsn(12287), 'x'), RangeError)
  t.throws(() => makeLogFileHead(lsn(20000), 'x'.repeat(33)), RangeError)
  t.throws(() => makeLogFileHead(lsn(20000), 'tab\t'), RangeError)
})
