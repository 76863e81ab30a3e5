/**
 * Generational fuzzing of everything that reads redo: scanner, decoder, index, space events, page appliers.
 *
 *     node test/fuzz/redo-fuzz.ts [--seconds N] [--seed N]
 *
 * It walks a recorded log, keeps the pages up to date as it goes, and at every step takes the mini-transaction at hand,
 * damages its records in ways that keep them plausible, gives it a right checksum again (so that the inner checks are
 * reached, not just the outer one), and has it indexed and applied to copies of the real pages. Whatever happens must be
 * one of: the index equals the reference and the changes apply; a CorruptRedoError; a CorruptPageError. Anything else is
 * a finding: another exception, a write outside the page, an index that differs, a case that takes seconds.
 *
 * A run is determined by its seed. Seeds worth keeping are in test/fixtures/fuzz/redo-seeds.json, and
 * test/property/redo-fuzz.test.ts runs them briefly.
 */
import { parseArgs } from 'node:util'
import { PageApplier } from '../../parser/apply-page.ts'
import { ChunkIndexer } from '../../parser/chunk-index.ts'
import { CorruptPageError } from '../../parser/corrupt-page-error.ts'
import { CorruptRedoError } from '../../parser/corrupt-redo-error.ts'
import { LOG_START_OFFSET, parseLogFileHead } from '../../parser/log-file.ts'
import { MtrScanner, ScanResult } from '../../parser/mtr-scanner.ts'
import { encodeVarint, RecordCursor } from '../../parser/record-decoder.ts'
import { parseSpaceFlags } from '../../parser/space-flags.ts'
import type { Lsn } from '../../protocol/ids.ts'
import { ChunkIndexView } from '../support/chunk-index-view.ts'
import { firstDifference } from '../support/compare-index.ts'
import { sealMtr } from '../support/redo-builder.ts'
import { loadGoldenLog } from '../support/redo-fixtures.ts'
import { referenceIndex } from '../support/reference-index.ts'

export interface FuzzCounters {
  cases: number
  /** Damaged mini-transactions that were refused as redo. */
  refused: number
  /** Well-formed redo that was refused by the page it was to change. */
  misfits: number
  /** Damaged mini-transactions that went all the way. */
  applied: number
}

/** Mulberry32: small, seedable, good enough to choose damage by. */
function makeRandom(seed: number): (below: number) => number {
  let state = seed | 0
  return below => {
    state = (state + 0x6d2b79f5) | 0
    let z = Math.imul(state ^ (state >>> 15), 1 | state)
    z = (z + Math.imul(z ^ (z >>> 7), 61 | z)) ^ z
    return ((z ^ (z >>> 14)) >>> 0) % below
  }
}

const INTERESTING = [0, 1, 2, 0x0f, 0x10, 0x7f, 0x80, 0xbf, 0xc0, 0xdf, 0xe0, 0xef, 0xf0, 0xf8, 0xff]
const PAGE_BYTES = 4096
const GUARD_BYTES = 256
const GUARD = 0xa5
const CASE_MS_MAX = 5000

/** One record, taken apart so that its parts can be damaged and put together again. */
interface LooseRecord {
  first: number
  /** Page id and payload: everything the length counts, but for the length bytes. */
  rest: Uint8Array
}

function assemble(records: readonly LooseRecord[]): Uint8Array {
  const parts: Uint8Array[] = []
  for (const { first, rest } of records) {
    if (rest.length >= 1 && rest.length <= 15) {
      parts.push(Uint8Array.of((first & 0xf0) | rest.length), rest)
      continue
    }
    for (let lengthBytes = 1; lengthBytes <= 3; lengthBytes++) {
      const length = new Uint8Array(5)
      const added = Math.max(0, rest.length + lengthBytes - 15)
      if (encodeVarint(length, 0, added) !== lengthBytes) continue
      parts.push(Uint8Array.of(first & 0xf0), length.subarray(0, lengthBytes), rest)
      break
    }
  }
  return Buffer.concat(parts)
}

function damage(
  records: LooseRecord[],
  pool: readonly LooseRecord[],
  random: (below: number) => number,
): Uint8Array {
  for (let times = 1 + random(3); times > 0 && records.length > 0; times--) {
    const at = random(records.length)
    const record = records[at]!
    const rest = Uint8Array.from(record.rest)
    const where = random(Math.max(1, Math.min(rest.length, random(2) ? 12 : rest.length)))
    switch (random(11)) {
      case 0:
        rest[where]! ^= 1 << random(8)
        records[at] = { ...record, rest }
        break
      case 1:
      case 2:
        rest[where] = INTERESTING[random(INTERESTING.length)]!
        records[at] = { ...record, rest }
        break
      case 3:
        records[at] = { first: (record.first & 0x8f) | (random(8) << 4), rest }
        break
      case 4:
        records[at] = { first: record.first ^ 0x80, rest }
        break
      case 5:
        records.splice(at, 1)
        break
      case 6:
        records.splice(at, 0, record)
        break
      case 7:
        records[at] = records[random(records.length)]!
        break
      case 8:
        if (pool.length > 0) records.splice(at, 0, pool[random(pool.length)]!)
        break
      case 9:
        records[at] = { ...record, rest: rest.subarray(0, random(rest.length + 1)) }
        break
      default: {
        const extra = new Uint8Array(1 + random(6)).map(() =>
          random(2) ? random(256) : INTERESTING[random(15)]!,
        )
        records[at] = {
          ...record,
          rest: Buffer.concat([rest.subarray(0, where), extra, rest.subarray(where)]),
        }
      }
    }
  }
  const bytes = Uint8Array.from(assemble(records))
  // Now and then damage the length bytes themselves, or cut.
  if (bytes.length > 0 && random(8) === 0)
    bytes[random(bytes.length)] = INTERESTING[random(INTERESTING.length)]!
  return random(20) === 0 ? bytes.subarray(0, random(bytes.length + 1)) : bytes
}

/** Pages of 4 KiB between guards that must stay as they are. */
class GuardedPage {
  readonly slab = new Uint8Array(PAGE_BYTES + 2 * GUARD_BYTES).fill(GUARD)
  readonly page = this.slab.subarray(GUARD_BYTES, GUARD_BYTES + PAGE_BYTES)

  intact(): boolean {
    for (let i = 0; i < GUARD_BYTES; i++)
      if (this.slab[i] !== GUARD || this.slab[GUARD_BYTES + PAGE_BYTES + i] !== GUARD) return false
    return true
  }
}

/** Runs until `until` says so. Throws an Error that names seed and case at the first finding. */
export function fuzzRedo(seed: number, until: (counters: FuzzCounters) => boolean): FuzzCounters {
  const random = makeRandom(seed)
  const counters: FuzzCounters = { cases: 0, refused: 0, misfits: 0, applied: 0 }
  const log = loadGoldenLog('4k')
  const { firstLsn } = parseLogFileHead(log)
  const format = parseSpaceFlags(0x13) // full_crc32, 4 KiB
  const indexer = new ChunkIndexer({ pageBytesMax: PAGE_BYTES })
  const realIndexer = new ChunkIndexer()
  const scanner = new MtrScanner()
  const cursor = new RecordCursor()
  const law = new RecordCursor(PAGE_BYTES)
  const applier = new PageApplier({ verifyChecksums: false })
  const pages = new Map<string, Uint8Array>()
  const pool: LooseRecord[] = []
  const scratch = new GuardedPage()

  const finding = (what: string, bytes: Uint8Array, cause?: unknown): Error =>
    new Error(
      `seed ${seed}, case ${counters.cases}: ${what}; mini-transaction ${Buffer.from(bytes).toString('hex')}`,
      {
        cause,
      },
    )

  const tryOne = (bytes: Uint8Array, begin: Lsn): void => {
    counters.cases++
    const startedAt = performance.now()
    try {
      const result = indexer.index(bytes, 0, bytes.length, begin)
      const reference = referenceIndex(bytes, 0, bytes.length, begin)
      const difference = firstDifference(indexer, result, reference, begin, 0)
      if (difference !== undefined) throw finding(`index differs: ${difference}`, bytes)
      // The quick way accepts nothing that the cursor, the law, refuses.
      law.reset(bytes, 0, bytes.length - 5)
      let records = 0
      while (law.next()) records++
      if (records !== result.records) throw finding(`the cursor counts ${records} records`, bytes)
      for (const event of result.events)
        if ('name' in event && !event.external && /(^|\/)\.\.(\/|$)|^\//.test(event.name))
          throw finding(`a file name that leaves the datadir: ${event.name}`, bytes)
    } catch (error) {
      if (!(error instanceof CorruptRedoError)) throw finding('not a CorruptRedoError', bytes, error)
      if (error.lsn === undefined) throw finding('accepted by the index, refused by the cursor', bytes, error)
      if (error.lsn !== begin || !(error.offset >= 0 && error.offset <= bytes.length))
        throw finding(`an error at LSN ${error.lsn}, offset ${error.offset}`, bytes, error)
      counters.refused++
      return
    }
    const view = new ChunkIndexView(indexer)
    let fits = true
    for (let p = 0; p < view.pageCount; p++) {
      const space = view.pageSpace[p]!
      const page = view.pageNumber[p]!
      scratch.page.set(pages.get(`${space}:${page}`) ?? new Uint8Array(PAGE_BYTES))
      try {
        applier.begin(scratch.page, format, space, page)
        view.forEachEntry(p, (offset, length, lsn) => {
          applier.apply(bytes, offset, offset + length, (begin + lsn) as Lsn)
        })
        applier.end()
      } catch (error) {
        if (!(error instanceof CorruptRedoError || error instanceof CorruptPageError))
          throw finding(`applying to page ${space}:${page}`, bytes, error)
        fits = false
      }
      if (!scratch.intact()) throw finding(`a write outside page ${space}:${page}`, bytes)
    }
    if (fits) counters.applied++
    else counters.misfits++
    const ms = performance.now() - startedAt
    if (ms > CASE_MS_MAX) throw finding(`took ${ms} ms`, bytes)
  }

  while (!until(counters)) {
    let at = LOG_START_OFFSET
    pages.clear()
    // Somewhere in the log's first part the walk begins again, elsewhere for each seed.
    const stop = log.length - random(log.length >> 1)
    while (at < stop && scanner.scan(log, at, log.length, firstLsn, null) === ScanResult.COMPLETE) {
      const begin = (firstLsn + at - LOG_START_OFFSET) as Lsn
      const end = scanner.mtrEnd
      if (random(8) === 0) {
        const records: LooseRecord[] = []
        cursor.reset(log, at, scanner.recordsEnd)
        while (cursor.next() && records.length < 64) {
          const rest = lengthBytesEnd(log, cursor.recordStart)
          const loose = { first: log[cursor.recordStart]!, rest: log.slice(rest, cursor.recordEnd) }
          records.push(loose)
          if (pool.length < 512) pool.push(loose)
          else if (random(16) === 0) pool[random(pool.length)] = loose
        }
        for (let n = 0; n < 4; n++) tryOne(sealMtr(damage([...records], pool, random)), begin)
        if (until(counters)) return counters
      }
      advance(log, at, end, begin)
      at = end
    }
  }
  return counters

  /** Brings the real pages up to the end of this mini-transaction. Pages of the base, not in the log, stay out. */
  function advance(bytes: Uint8Array, start: number, end: number, begin: Lsn): void {
    realIndexer.index(bytes, start, end, begin)
    const view = new ChunkIndexView(realIndexer)
    for (let p = 0; p < view.pageCount; p++) {
      const id = `${view.pageSpace[p]}:${view.pageNumber[p]}`
      let page = pages.get(id)
      if (page === undefined) {
        if (view.pageFlags[p] === 0 || pages.size > 20_000) continue
        page = new Uint8Array(PAGE_BYTES)
      }
      try {
        applier.begin(page, format, view.pageSpace[p]!, view.pageNumber[p]!)
        view.forEachEntry(p, (offset, length, lsn) => {
          applier.apply(bytes, start + offset, start + offset + length, (begin + lsn) as Lsn)
        })
        applier.end()
        pages.set(id, page)
      } catch {
        // A ROW_FORMAT=COMPRESSED page, whose format is not told here: such pages take no part.
        pages.delete(id)
      }
    }
  }
}

/** Position after the length bytes of the record at `start`. */
function lengthBytesEnd(buf: Uint8Array, start: number): number {
  if (buf[start]! & 0x0f) return start + 1
  const first = buf[start + 1]!
  return start + 2 + (first < 0x80 ? 0 : first < 0xc0 ? 1 : 2)
}

if (import.meta.main) {
  const { values } = parseArgs({ options: { seconds: { type: 'string' }, seed: { type: 'string' } } })
  const until = performance.now() + 1000 * Number(values.seconds ?? 60)
  let seed = Number(values.seed ?? Date.now() % 0x7fffffff)
  process.stdout.write(`fuzzing for ${values.seconds ?? 60} s from seed ${seed}\n`)
  const total: FuzzCounters = { cases: 0, refused: 0, misfits: 0, applied: 0 }
  while (performance.now() < until) {
    const c = fuzzRedo(seed++, ({ cases }) => cases >= 50_000 || performance.now() >= until)
    for (const key of Object.keys(total) as (keyof FuzzCounters)[]) total[key] += c[key]
    process.stdout.write(`seed ${seed - 1} done; in all ${JSON.stringify(total)}\n`)
  }
}
