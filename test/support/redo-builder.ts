/** Writes redo the way InnoDB's mtr_t does, for tests: records, mini-transactions, and valid ones by the thousand. */
import fc from 'fast-check'
import { ExtendedSubtype, encodeVarint, RecordType } from '../../parser/record-decoder.ts'
import { crc32c } from '../../protocol/crc32c.ts'

export function varint(value: number): Uint8Array {
  const buf = new Uint8Array(5)
  return buf.subarray(0, encodeVarint(buf, 0, value))
}

/**
 * One record: `type` of RecordType, the page id (none: same_page), the payload after it. As `mtr_t::log_write`, the
 * length goes into the first byte if the record has at most 15 more bytes.
 */
export function record(
  type: number,
  id: { space: number; page: number } | null,
  ...payload: Uint8Array[]
): Uint8Array {
  const first = type | (id === null ? 0x80 : 0)
  const rest = Buffer.concat([...(id === null ? [] : [varint(id.space), varint(id.page)]), ...payload])
  if (rest.length > 0 && rest.length <= 15) return Buffer.concat([Uint8Array.of(first | rest.length), rest])
  // The length bytes count themselves: find the size that agrees with its own encoding.
  for (let lengthBytes = 1; lengthBytes <= 3; lengthBytes++) {
    const added = rest.length + lengthBytes - 15
    if (added < 0) continue
    const length = varint(added)
    if (length.length === lengthBytes) return Buffer.concat([Uint8Array.of(first), length, rest])
  }
  throw new Error(`a record of ${rest.length} bytes cannot be encoded`)
}

/** The records with terminator and checksum. */
export function mtr(records: readonly Uint8Array[], sequenceBit = 1): Uint8Array {
  return sealMtr(Buffer.concat(records), sequenceBit)
}

/** Any bytes as a mini-transaction's records, with terminator and right checksum. */
export function sealMtr(records: Uint8Array, sequenceBit = 1): Uint8Array {
  const out = new Uint8Array(records.length + 5)
  out.set(records)
  out[records.length] = sequenceBit
  new DataView(out.buffer).setUint32(records.length + 1, crc32c(records, 0, records.length))
  return out
}

const bytes = (min: number, max: number) => fc.uint8Array({ minLength: min, maxLength: max })

/** Page ids: mostly few, so that pages meet again; some anywhere in the 32 bits. */
export const pageId = fc.oneof(
  {
    weight: 8,
    arbitrary: fc.record({ space: fc.integer({ min: 0, max: 3 }), page: fc.integer({ min: 0, max: 9 }) }),
  },
  {
    weight: 1,
    arbitrary: fc.record({
      space: fc.integer({ min: 0, max: 0xfffffffe }),
      page: fc.integer({ min: 0, max: 0xfffffffe }),
    }),
  },
)

type Change =
  | { kind: 'write'; offset: number; data: Uint8Array }
  | { kind: 'memset'; offset: number; length: number; pattern: Uint8Array }
  | { kind: 'memmove'; offset: number; length: number; distance: number }
  | { kind: 'extended'; subtype: number; data: Uint8Array }
  | { kind: 'option'; data: Uint8Array }

const change: fc.Arbitrary<Change> = fc.oneof(
  fc.record({
    kind: fc.constant('write' as const),
    offset: fc.oneof(fc.integer({ min: 8, max: 300 }), fc.integer({ min: 8, max: 4000 })),
    data: fc.oneof(bytes(1, 20), bytes(1, 90)),
  }),
  fc.record({
    kind: fc.constant('memset' as const),
    offset: fc.integer({ min: 8, max: 3000 }),
    length: fc.integer({ min: 4, max: 900 }),
    pattern: bytes(1, 4),
  }),
  fc.record({
    kind: fc.constant('memmove' as const),
    offset: fc.integer({ min: 1000, max: 2000 }),
    length: fc.integer({ min: 1, max: 900 }),
    distance: fc.oneof(fc.integer({ min: -900, max: -1 }), fc.integer({ min: 1, max: 900 })),
  }),
  fc.record({
    kind: fc.constant('extended' as const),
    subtype: fc.integer({ min: 0, max: ExtendedSubtype.DELETE_ROW_FORMAT_DYNAMIC }),
    data: bytes(0, 40),
  }),
  fc.record({ kind: fc.constant('option' as const), data: fc.oneof(bytes(1, 3), bytes(5, 5)) }),
)

type PageRun = {
  id: { space: number; page: number }
  init: 'init' | 'free' | 'none'
  changes: Change[]
  repeatId: boolean
}

const pageRun: fc.Arbitrary<PageRun> = fc.record({
  id: pageId,
  init: fc.oneof(
    { weight: 6, arbitrary: fc.constant('none' as const) },
    { weight: 1, arbitrary: fc.constant('init' as const) },
    { weight: 1, arbitrary: fc.constant('free' as const) },
  ),
  changes: fc.array(change, { minLength: 1, maxLength: 6 }),
  repeatId: fc.boolean(),
})

/** Writes a run the way mtr_t does: relative offsets while they grow, the page id again where they do not. */
function writeRun(run: PageRun, out: Uint8Array[]): void {
  let last = -1
  if (run.init !== 'none') {
    out.push(record(run.init === 'init' ? RecordType.INIT_PAGE : RecordType.FREE_PAGE, run.id))
    if (run.init === 'free') return
    last = 24
  }
  for (const c of run.changes) {
    if (c.kind === 'extended' || c.kind === 'option') {
      const id = last < 0 || run.repeatId ? run.id : null
      if (c.kind === 'option') {
        out.push(
          record(
            RecordType.OPTION,
            id,
            c.data.length === 5 ? Uint8Array.of(0, ...c.data.subarray(1)) : c.data,
          ),
        )
        // An OPTION record leaves the offset alone; with the page id it resets it.
        if (id !== null) last = 0
        continue
      }
      out.push(record(RecordType.EXTENDED, id, Uint8Array.of(c.subtype), c.data))
      last = 24
      continue
    }
    const id = last >= 0 && c.offset >= last && !run.repeatId ? null : run.id
    const offset = varint(id === null ? c.offset - last : c.offset)
    if (c.kind === 'write') {
      out.push(record(RecordType.WRITE, id, offset, c.data))
      last = c.offset + c.data.length
    } else if (c.kind === 'memset') {
      out.push(record(RecordType.MEMSET, id, offset, varint(c.length), c.pattern))
      last = c.offset + c.length
    } else {
      const source = c.distance > 0 ? (c.distance - 1) << 1 : ((-c.distance - 1) << 1) | 1
      out.push(record(RecordType.MEMMOVE, id, offset, varint(c.length), varint(source)))
      last = c.offset + c.length
    }
  }
}

const text = new TextEncoder()
const name = fc.stringMatching(/^[a-z]{1,8}\/[a-z0-9]{1,12}$/).map(s => `./${s}.ibd`)

const space = fc.integer({ min: 1, max: 5000 })

const fileRecord: fc.Arbitrary<Uint8Array> = fc.oneof(
  fc
    .record({
      type: fc.constantFrom(RecordType.FILE_CREATE, RecordType.FILE_DELETE, RecordType.FILE_MODIFY),
      space,
      name,
    })
    .map(f => record(f.type, null, varint(f.space), varint(0), text.encode(f.name))),
  fc
    .record({ space, from: name, to: name })
    .map(f =>
      record(
        RecordType.FILE_RENAME,
        null,
        varint(f.space),
        varint(0),
        text.encode(f.from),
        Uint8Array.of(0),
        text.encode(f.to),
      ),
    ),
)

/** The records of one valid mini-transaction. */
export const mtrRecords: fc.Arbitrary<Uint8Array[]> = fc
  .record({
    files: fc.array(fileRecord, { maxLength: 2 }),
    runs: fc.array(pageRun, { minLength: 1, maxLength: 5 }),
    trim: fc.option(fc.record({ space: fc.integer({ min: 1, max: 3 }), page: fc.constant(640) }), {
      freq: 9,
    }),
  })
  .map(m => {
    const out = [...m.files]
    for (const run of m.runs) writeRun(run, out)
    if (m.trim !== null)
      out.push(record(RecordType.EXTENDED, m.trim, Uint8Array.of(ExtendedSubtype.TRIM_PAGES)))
    return out
  })

/** A whole valid mini-transaction. */
export const validMtr: fc.Arbitrary<Uint8Array> = fc
  .tuple(mtrRecords, fc.constantFrom(0, 1))
  .map(([records, bit]) => mtr(records, bit))
