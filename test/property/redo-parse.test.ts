/** Whatever the bytes: no crash, no hang, no unbounded memory; and valid redo always comes out right. */
import fc from 'fast-check'
import t from 'tap'
import { ChunkIndexer } from '../../parser/chunk-index.ts'
import { CorruptRedoError } from '../../parser/corrupt-redo-error.ts'
import {
  LogGeometry,
  makeLogFileHead,
  parseLogFileHead,
  UnsupportedLogFormatError,
} from '../../parser/log-file.ts'
import { MtrScanner, ScanResult } from '../../parser/mtr-scanner.ts'
import { decodeVarint, RecordCursor, varintBytes } from '../../parser/record-decoder.ts'
import type { Lsn } from '../../protocol/ids.ts'
import { firstDifference } from '../support/compare-index.ts'
import { sealMtr, validMtr, varint } from '../support/redo-builder.ts'
import { referenceIndex } from '../support/reference-index.ts'

const lsn = (value: number) => value as Lsn
const indexer = new ChunkIndexer()
const scanner = new MtrScanner()
const log = fc.array(validMtr, { minLength: 1, maxLength: 8 })

t.test('varints come back', async () => {
  fc.assert(
    fc.property(fc.integer({ min: 0, max: 0xfffffffe }), value => {
      const bytes = varint(value)
      return varintBytes(bytes[0]!) === bytes.length && decodeVarint(bytes, 0) === value
    }),
    { numRuns: 3000 },
  )
})

t.test('valid redo: the index equals the reference', async () => {
  fc.assert(
    fc.property(log, fc.integer({ min: 0, max: 2 ** 40 }), fc.nat(20), (mtrs, begin, lead) => {
      const bytes = Buffer.concat([new Uint8Array(lead), ...mtrs])
      const result = indexer.index(bytes, lead, bytes.length, lsn(begin))
      const difference = firstDifference(
        indexer,
        result,
        referenceIndex(bytes, lead, bytes.length, begin),
        begin,
        lead,
      )
      if (difference !== undefined) throw new Error(difference)
    }),
    { numRuns: 1500 },
  )
})

t.test('every entry can be walked on its own', async () => {
  const cursor = new RecordCursor()
  fc.assert(
    fc.property(log, mtrs => {
      const bytes = Buffer.concat(mtrs)
      for (const [id, entries] of referenceIndex(bytes, 0, bytes.length, 0).pages)
        for (const { offset, length } of entries) {
          cursor.reset(bytes, offset, offset + length)
          let end = offset
          while (cursor.next()) {
            if (`${cursor.space}:${cursor.page}` !== id || cursor.recordStart !== end) return false
            end = cursor.recordEnd
          }
          if (end !== offset + length) return false
        }
      return true
    }),
    { numRuns: 500 },
  )
})

t.test('every split of the bytes: the scanner goes on where it stopped', async () => {
  fc.assert(
    fc.property(log, mtrs => {
      const bytes = Buffer.concat(mtrs)
      const ends = new Set<number>([0])
      let at = 0
      for (const mtr of mtrs) {
        at += mtr.length
        ends.add(at)
      }
      for (let cut = 0; cut <= bytes.length; cut++) {
        const first = scanner.scanRange(bytes, 0, cut, lsn(9), null)
        if (!ends.has(first.consumedBytes)) return false
        if (first.stop !== (first.consumedBytes === cut ? ScanResult.COMPLETE : ScanResult.NEED_MORE))
          return false
        const rest = scanner.scanRange(bytes, first.consumedBytes, bytes.length, lsn(9), null)
        if (rest.stop !== ScanResult.COMPLETE || first.mtrs + rest.mtrs !== mtrs.length) return false
      }
      return true
    }),
    { numRuns: 100 },
  )
})

t.test(
  'truncated or with one bit flipped, a log is an error or a shorter log, never another log',
  async () => {
    fc.assert(
      fc.property(log, fc.nat(), fc.boolean(), (mtrs, where, truncate) => {
        const whole = Buffer.concat(mtrs)
        const bytes = truncate ? whole.subarray(0, where % whole.length) : Buffer.from(whole)
        const bit = where % (8 * whole.length)
        if (!truncate) bytes[bit >> 3]! ^= 1 << (bit & 7)
        const { consumedBytes, stop } = scanner.scanRange(bytes, 0, bytes.length, lsn(1), null)
        // The terminator's own lowest bit is the sequence bit, which no checksum covers and downstream readers ignore.
        const terminators = new Set<number>()
        let at = 0
        for (const mtr of mtrs) {
          at += mtr.length
          terminators.add(at - 5)
        }
        if (!truncate && terminators.has(bit >> 3) && (bit & 7) === 0) return stop === ScanResult.COMPLETE
        if (!whole.subarray(0, consumedBytes).equals(bytes.subarray(0, consumedBytes))) return false
        if (consumedBytes === bytes.length) return truncate
        try {
          indexer.index(bytes, 0, bytes.length, lsn(1))
          return false
        } catch (error) {
          return (
            error instanceof CorruptRedoError &&
            error.lsn === 1 + consumedBytes &&
            error.offset >= consumedBytes
          )
        }
      }),
      { numRuns: 4000 },
    )
  },
)

t.test('any bytes under a right checksum are indexed or refused', async () => {
  // Bytes that look like short records, and bytes that look like anything.
  const recordish = fc
    .array(fc.tuple(fc.integer({ min: 2, max: 255 }), fc.uint8Array({ maxLength: 18 })), { maxLength: 12 })
    .map(parts =>
      Buffer.concat(
        parts.map(([first, rest]) => {
          const length = Math.min(rest.length, 15)
          return Buffer.concat(
            [[(first & 0xf0) | length], rest.subarray(0, length)].map(p => Uint8Array.from(p)),
          )
        }),
      ),
    )
  fc.assert(
    fc.property(fc.oneof(recordish, fc.uint8Array({ maxLength: 200 })), records => {
      const bytes = sealMtr(records)
      try {
        const result = indexer.index(bytes, 0, bytes.length, lsn(1))
        const reference = referenceIndex(bytes, 0, bytes.length, 1)
        return firstDifference(indexer, result, reference, 1, 0) === undefined
      } catch (error) {
        return error instanceof CorruptRedoError
      }
    }),
    { numRuns: 10_000 },
  )
})

t.test('a ring: the log ends where it was last written, whatever lies behind', async () => {
  fc.assert(
    fc.property(log, log, fc.integer({ min: 12_288, max: 1 << 20 }), (written, stale, first) => {
      const bytes = Buffer.concat(written)
      // A ring a little longer than what was written, so that the stale lap shows behind it.
      const old = Buffer.concat(stale)
      const geometry = new LogGeometry(lsn(first), 0x3000 + bytes.length + old.length)
      const begin = first + geometry.capacity
      const ring = Buffer.concat([bytes, old])
      // Sequence bits as the server would have written them: this lap's, then the last one's.
      let at = 0
      for (const mtr of [...written, ...stale]) {
        at += mtr.length
        ring[at - 5] = at <= bytes.length ? geometry.sequenceBit(begin) : geometry.sequenceBit(first)
      }
      const scan = scanner.scanRange(ring, 0, ring.length, lsn(begin), geometry)
      return scan.consumedBytes === bytes.length && scan.stop === ScanResult.SEQUENCE_BIT
    }),
    { numRuns: 500 },
  )
})

t.test('log file heads: any damage is an error or harmless', async () => {
  const good = makeLogFileHead(lsn(123_456), 'MariaDB')
  fc.assert(
    fc.property(
      fc.array(
        fc.tuple(
          fc.oneof(fc.nat(600), fc.integer({ min: 0x1000, max: 0x1080 }), fc.nat(0x3000)),
          fc.nat(255),
        ),
        { maxLength: 4 },
      ),
      changes => {
        const head = Uint8Array.from(good)
        for (const [at, value] of changes) head[at] = value
        try {
          return parseLogFileHead(head).checkpoint.checkpointLsn === 123_456
        } catch (error) {
          return error instanceof CorruptRedoError || error instanceof UnsupportedLogFormatError
        }
      },
    ),
    { numRuns: 5000 },
  )
})
