/**
 * Makes test/fixtures/redo/ from recorded logs:
 *
 *     node test/support/make-redo-fixtures.ts NAME=PATH-TO-IB_LOGFILE0 ...
 *
 * NAME-head.zst is the file's head as the server wrote it. NAME-variety.zst holds mini-transactions from the whole log, the smallest one of each shape: a shape is the set of
 * record types, subtypes, page id lengths and orders of magnitude of record lengths in it. They are put one after the
 * other, for tests and fuzzers that parse bytes and do not apply them.
 */
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { constants, zstdCompressSync } from 'node:zlib'
import { LOG_START_OFFSET } from '../../parser/log-file.ts'
import { MtrScanner, ScanResult } from '../../parser/mtr-scanner.ts'
import { RecordCursor, RecordType } from '../../parser/record-decoder.ts'
import type { Lsn } from '../../protocol/ids.ts'

const VARIETY_BYTES_MAX = 512 * 1024

for (const argument of process.argv.slice(2)) {
  const [name, path] = argument.split('=')
  if (name === undefined || path === undefined) throw new Error('usage: make-redo-fixtures.ts NAME=PATH ...')
  const log = readFileSync(path)
  const scanner = new MtrScanner()
  const cursor = new RecordCursor()
  const smallest = new Map<string, { bytes: Uint8Array; records: Set<string> }>()
  let at = LOG_START_OFFSET
  while (scanner.scan(log, at, log.length, 0 as Lsn, null) === ScanResult.COMPLETE) {
    const records = new Set<string>()
    cursor.reset(log, at, scanner.recordsEnd)
    while (cursor.next()) {
      const extended = cursor.type === RecordType.EXTENDED || cursor.type === RecordType.OPTION
      const idBytes = cursor.samePage ? 0 : cursor.payloadStart - cursor.recordStart
      const magnitude = Math.floor(Math.log2(cursor.recordEnd - cursor.recordStart) / 3)
      records.add(
        `${cursor.type}.${extended ? cursor.subtype : ''}.${idBytes}.${magnitude}.${cursor.page === 0}`,
      )
    }
    const shape = [...records].sort().join(' ')
    const known = smallest.get(shape)
    const bytes = log.subarray(at, scanner.mtrEnd)
    if (known === undefined || bytes.length < known.bytes.length) smallest.set(shape, { bytes, records })
    at = scanner.mtrEnd
  }
  // First what brings a kind of record not chosen yet, then the rest, each from small to large.
  const candidates = [...smallest.values()].sort((a, b) => a.bytes.length - b.bytes.length)
  const seen = new Set<string>()
  const fresh = candidates.filter(({ records }) => {
    const before = seen.size
    for (const record of records) seen.add(record)
    return seen.size > before
  })
  const chosen: Uint8Array[] = []
  let chosenBytes = 0
  for (const { bytes } of new Set([...fresh, ...candidates])) {
    if (chosenBytes + bytes.length > VARIETY_BYTES_MAX) continue
    chosen.push(bytes)
    chosenBytes += bytes.length
  }
  const compress = (bytes: Uint8Array) =>
    zstdCompressSync(bytes, { params: { [constants.ZSTD_c_compressionLevel]: 19 } })
  mkdirSync('test/fixtures/redo', { recursive: true })
  writeFileSync(`test/fixtures/redo/${name}-head.zst`, compress(log.subarray(0, LOG_START_OFFSET)))
  writeFileSync(`test/fixtures/redo/${name}-variety.zst`, compress(Buffer.concat(chosen)))
  process.stdout.write(
    `${name}: ${chosen.length} mini-transactions of ${candidates.length} shapes, ${chosenBytes} bytes\n`,
  )
}
