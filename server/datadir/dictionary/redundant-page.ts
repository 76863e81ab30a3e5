/**
 * Records of ROW_FORMAT=REDUNDANT pages, which InnoDB's own dictionary tables have (rem0rec.h, page0page.h).
 *
 * Before a record's origin, backwards: next record (2 bytes), n_fields (10 bits) and the flag for one-byte offsets, heap
 * number (13 bits), info bits and n_owned (one byte), and then the ends of the fields, one or two bytes each.
 */
import { FIL_PAGE_DATA, read2, read4 } from '../../../parser/page-format.ts'

const PAGE_LEVEL = FIL_PAGE_DATA + 26
const PAGE_OLD_INFIMUM = 101
const PAGE_OLD_SUPREMUM = 116
const REC_INFO_DELETED = 0x20
const RECORDS_MAX = 32768

/** A field's bytes; null for SQL NULL. */
export type Field = Uint8Array | null

export interface RedundantRecord {
  readonly fields: readonly Field[]
  readonly deleted: boolean
}

export class BadDictionaryError extends Error {
  override name = 'BadDictionaryError'
}

export function pageLevel(page: Uint8Array): number {
  return read2(page, PAGE_LEVEL)
}

/** The user records of a page in key order, delete-marked ones included. @throws BadDictionaryError */
export function* recordsOf(page: Uint8Array): Generator<RedundantRecord> {
  let at = read2(page, PAGE_OLD_INFIMUM - 2)
  for (let n = 0; at !== PAGE_OLD_SUPREMUM; n++) {
    if (n > RECORDS_MAX || at < PAGE_OLD_SUPREMUM + 6 || at >= page.length - 8)
      throw new BadDictionaryError(`the list of records leads to offset ${at}`)
    yield recordAt(page, at)
    at = read2(page, at - 2)
  }
}

function recordAt(page: Uint8Array, origin: number): RedundantRecord {
  const fieldCount = (read2(page, origin - 4) & 0x7fe) >>> 1
  const oneByte = (page[origin - 3]! & 1) === 1
  const fields: Field[] = []
  let start = 0
  for (let i = 0; i < fieldCount; i++) {
    let end: number
    let isNull: boolean
    if (oneByte) {
      const entry = page[origin - 6 - (i + 1)]!
      end = entry & 0x7f
      isNull = (entry & 0x80) !== 0
    } else {
      const entry = read2(page, origin - 6 - 2 * (i + 1))
      end = entry & 0x3fff
      isNull = (entry & 0x8000) !== 0
    }
    if (end < start || origin + end > page.length)
      throw new BadDictionaryError(`field ${i} of the record at ${origin} ends at ${end}`)
    fields.push(isNull ? null : page.subarray(origin + start, origin + end))
    start = end
  }
  return { fields, deleted: (page[origin - 6]! & REC_INFO_DELETED) !== 0 }
}

/** Of a node pointer: the page below, its last field. */
export function childPage(record: RedundantRecord): number {
  const field = record.fields.at(-1)
  if (field?.length !== 4) throw new BadDictionaryError('a node pointer has no page number')
  return read4(field, 0)
}
