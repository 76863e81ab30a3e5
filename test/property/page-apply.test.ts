/** Redo applied to pages: against a model where the input is good, and against anything at all where it is not. */
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { zstdDecompressSync } from 'node:zlib'
import fc from 'fast-check'
import t from 'tap'
import { ApplyResult, PageApplier } from '../../parser/apply-page.ts'
import { CorruptPageError } from '../../parser/corrupt-page-error.ts'
import { CorruptRedoError } from '../../parser/corrupt-redo-error.ts'
import { MtrScanner, ScanResult } from '../../parser/mtr-scanner.ts'
import { decompressPage, UnsupportedCompressionError } from '../../parser/page-compression.ts'
import { stampChecksum, verifyPage } from '../../parser/page-format.ts'
import { inspectPage, inspectPageObject } from '../../parser/page-inspect.ts'
import type { IndexInspection } from '../../parser/page-inspect-index.ts'
import { ExtendedSubtype, RecordCursor } from '../../parser/record-decoder.ts'
import { parseSpaceFlags } from '../../parser/space-flags.ts'
import { type Lsn, toLsn } from '../../protocol/ids.ts'
import { readTarZst } from '../support/fixture-tar.ts'
import { NaiveReplay } from '../support/naive-replay.ts'
import {
  deleteDynamic,
  deleteRedundant,
  extended,
  type Id,
  initPage,
  insertDynamic,
  insertRedundant,
} from '../support/redo-records.ts'

const ID: Id = [9, 4]
const SMALL = parseSpaceFlags(0x13)
const GUARD = 64

/** A page in the middle of a larger buffer, so that a write beside it would show. */
function guarded(size: number): { page: Uint8Array; intact: () => boolean } {
  const all = new Uint8Array(new SharedArrayBuffer(size + 2 * GUARD)).fill(0xa5)
  const page = all.subarray(GUARD, GUARD + size).fill(0)
  const intact = (): boolean =>
    all.subarray(0, GUARD).every(b => b === 0xa5) && all.subarray(GUARD + size).every(b => b === 0xa5)
  return { page, intact }
}

/** What an error may be; everything else is a bug. */
const isExpected = (error: unknown): boolean =>
  error instanceof CorruptRedoError || error instanceof CorruptPageError

interface Step {
  readonly insert: boolean
  readonly position: number
  readonly data: number[]
}

const steps = fc.array(
  fc.record({
    insert: fc.boolean(),
    position: fc.nat(1000),
    data: fc.array(fc.nat(255), { minLength: 1, maxLength: 60 }),
  }),
  { minLength: 1, maxLength: 150, size: 'max' },
)

/** The page's records as a list, in chain order, each with what is needed to name it in a record. */
function runModel(comp: boolean, list: readonly Step[]): void {
  const { page, intact } = guarded(4096)
  const applier = new PageApplier()
  let lsn = 100
  const apply = (bytes: number[]): void => {
    applier.begin(page, SMALL, ...ID)
    applier.apply(Uint8Array.from(bytes), 0, bytes.length, toLsn(lsn++))
    applier.end()
  }
  const infimum = comp ? 99 : 101
  const heapTopAt = 40
  apply([
    ...initPage(ID),
    ...extended(
      ID,
      comp ? ExtendedSubtype.INIT_ROW_FORMAT_DYNAMIC : ExtendedSubtype.INIT_ROW_FORMAT_REDUNDANT,
    ),
  ])
  const model: { offset: number; data: number[] }[] = []
  for (const step of list) {
    const i = step.position % (model.length + 1)
    const prev = i === 0 ? infimum : model[i - 1]!.offset
    if (step.insert) {
      const heapTop = (page[heapTopAt]! << 8) | page[heapTopAt + 1]!
      // Stay clear of the directory, as the server does before it decides to insert.
      if (heapTop + step.data.length + 40 > 4096 - 12 - 2 * ((page[38]! << 8) | page[39]!)) continue
      apply(
        comp
          ? insertDynamic(ID, prev - infimum, [step.data.length], step.data)
          : insertRedundant(ID, prev - infimum, step.data),
      )
      model.splice(i, 0, { offset: heapTop + (comp ? 6 : 7), data: step.data })
    } else if (i < model.length) {
      apply(
        comp
          ? deleteDynamic(ID, prev - infimum, 1, model[i]!.data.length)
          : deleteRedundant(ID, prev - infimum),
      )
      model.splice(i, 1)
    }
  }
  stampChecksum(page, SMALL)
  const found = inspectPageObject(page, SMALL)
  if (found.problems.length) throw new Error(found.problems.join('; '))
  const chain = (found.detail as IndexInspection).chain.slice(1, -1)
  if (chain.map(r => r.offset).join() !== model.map(r => r.offset).join())
    throw new Error('chain differs from the model')
  for (const { offset, data } of model)
    if (Buffer.compare(page.subarray(offset, offset + data.length), Uint8Array.from(data)) !== 0)
      throw new Error(`record at ${offset} has other data`)
  if (!intact()) throw new Error('wrote outside of the page')
}

t.test('inserts and deletes keep chain, directory and data, COMPACT and DYNAMIC', async () => {
  fc.assert(
    fc.property(steps, list => runModel(true, list)),
    { numRuns: 300 },
  )
})

t.test('inserts and deletes keep chain, directory and data, REDUNDANT', async () => {
  fc.assert(
    fc.property(steps, list => runModel(false, list)),
    { numRuns: 300 },
  )
})

/** Real entries with the pages that they apply to, from the recorded 64k log. */
interface Sample {
  readonly id: Id
  readonly before: Uint8Array
  readonly entry: Uint8Array
  readonly lsn: Lsn
}

const FORMAT_64K = parseSpaceFlags(0x17)

function samples(): Sample[] {
  const golden = join(import.meta.dirname, '../fixtures/golden')
  const replay = new NaiveReplay()
  for (const [name, content] of readTarZst(join(golden, 'zoo-64k.base.tar.zst')))
    replay.addFile(name, content)
  const log = zstdDecompressSync(readFileSync(join(golden, 'zoo-64k.redo.zst')))
  replay.useRedo(log)
  const scanner = new MtrScanner()
  const cursor = new RecordCursor()
  const result: Sample[] = []
  for (let target = 100_000; target < 3_000_000; target += 23_456) {
    const reached = replay.advanceTo(target)
    if (
      scanner.scan(log, 0x3000 + reached - replay.firstLsn, log.length, reached, null) !== ScanResult.COMPLETE
    )
      break
    cursor.reset(log, scanner.recordsStart, scanner.recordsEnd)
    let end = 0
    if (!cursor.next()) continue
    const start = cursor.recordStart
    const id: Id = [cursor.space, cursor.page]
    do end = cursor.recordEnd
    while (cursor.next() && cursor.samePage)
    const before = replay.page(...id)
    const lsn = toLsn(reached + scanner.mtrEnd - scanner.recordsStart)
    if (before) result.push({ id, before: Uint8Array.from(before), entry: log.slice(start, end), lsn })
  }
  return result
}

const real = samples()

t.test('damaged entries and damaged pages: a clear error or a page, never more', async t => {
  t.ok(real.length > 50, `${real.length} samples`)
  const applier = new PageApplier()
  const { page, intact } = guarded(65536)
  const flips = fc.array(fc.record({ at: fc.nat(), bit: fc.nat(7) }), { maxLength: 6 })
  fc.assert(
    fc.property(fc.nat(real.length - 1), flips, flips, (n, inEntry, inPage) => {
      const sample = real[n]!
      const entry = Uint8Array.from(sample.entry)
      page.set(sample.before)
      for (const { at, bit } of inEntry) entry[at % entry.length]! ^= 1 << bit
      // The header and the first records decide; flipping far out in the data shows nothing.
      for (const { at, bit } of inPage) page[24 + (at % 400)]! ^= 1 << bit
      applier.begin(page, FORMAT_64K, ...sample.id)
      try {
        applier.apply(entry, 0, entry.length, sample.lsn)
        applier.end()
      } catch (error) {
        if (!isExpected(error)) throw error
      }
      if (!intact()) throw new Error('wrote outside of the page')
    }),
    { numRuns: 3000 },
  )
})

t.test('undamaged entries apply', async t => {
  const applier = new PageApplier()
  const applied = real.filter(({ id, before, entry, lsn }) => {
    applier.begin(Uint8Array.from(before), FORMAT_64K, ...id)
    return applier.apply(entry, 0, entry.length, lsn) === ApplyResult.APPLIED
  })
  t.equal(applied.length, real.length)
})

t.test('random bytes as entries', async () => {
  const applier = new PageApplier()
  const { page, intact } = guarded(4096)
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 200, size: 'max' }), bytes => {
      const entry = Uint8Array.from([...initPage(ID), ...bytes])
      page.fill(0)
      applier.begin(page, SMALL, ...ID)
      try {
        applier.apply(entry, 0, entry.length, toLsn(1))
      } catch (error) {
        if (!isExpected(error)) throw error
      }
      if (!intact()) throw new Error('wrote outside of the page')
    }),
    { numRuns: 5000 },
  )
})

t.test('random EXTENDED payloads on an index page', async () => {
  const applier = new PageApplier()
  const { page, intact } = guarded(4096)
  const payload = fc.tuple(fc.nat(9), fc.array(fc.nat(255), { maxLength: 40, size: 'max' }))
  fc.assert(
    fc.property(fc.boolean(), fc.array(payload, { maxLength: 8 }), (comp, list) => {
      page.fill(0)
      applier.begin(page, SMALL, ...ID)
      const create = comp
        ? ExtendedSubtype.INIT_ROW_FORMAT_DYNAMIC
        : ExtendedSubtype.INIT_ROW_FORMAT_REDUNDANT
      const entry = Uint8Array.from([
        ...initPage(ID),
        ...extended(ID, create),
        ...list.flatMap(([subtype, bytes]) => extended(ID, subtype, bytes)),
      ])
      try {
        applier.apply(entry, 0, entry.length, toLsn(1))
      } catch (error) {
        if (!isExpected(error)) throw error
      }
      if (!intact()) throw new Error('wrote outside of the page')
    }),
    { numRuns: 5000 },
  )
})

t.test('verifying, decompressing and inspecting take any page', async () => {
  const types = [0, 2, 3, 5, 6, 7, 8, 9, 10, 11, 18, 17854, 17855, 34354, 37401, 0x8004, 0xffff]
  const formats = [0x13, 0x33, 0x53, 0x21 | (3 << 6), 0x21 | (3 << 6) | (1 << 16), 0x21 | (2 << 1)].map(
    parseSpaceFlags,
  )
  fc.assert(
    fc.property(
      fc.constantFrom(...types),
      fc.constantFrom(...formats),
      fc.uint8Array({ minLength: 300, maxLength: 300 }),
      fc.nat(255),
      (type, format, head, filler) => {
        const page = new Uint8Array(format.physicalSize).fill(filler)
        page.set(head)
        page.set([type >> 8, type & 255], 24)
        verifyPage(page, format)
        inspectPage(page, format)
        JSON.stringify(inspectPageObject(page, format))
        try {
          decompressPage(page, format, 't')
        } catch (error) {
          if (!isExpected(error) && !(error instanceof UnsupportedCompressionError)) throw error
        }
      },
    ),
    { numRuns: 3000 },
  )
})

t.test('real pages with flipped bits can still be inspected', async () => {
  fc.assert(
    fc.property(
      fc.nat(real.length - 1),
      fc.array(fc.record({ at: fc.nat(65535), bit: fc.nat(7) }), { minLength: 1, maxLength: 10 }),
      (n, flips) => {
        const page = Uint8Array.from(real[n]!.before)
        for (const { at, bit } of flips) page[at]! ^= 1 << bit
        inspectPage(page, FORMAT_64K)
      },
    ),
    { numRuns: 200 },
  )
})
