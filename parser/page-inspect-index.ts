/** B-tree and R-tree pages taken apart: header, record chain, directory, free list. See page-inspect.ts. */
import {
  FIL_PAGE_TYPE,
  FIL_PAGE_TYPE_INSTANT,
  PAGE_BTR_SEG_LEAF,
  PAGE_BTR_SEG_TOP,
  PAGE_DIR,
  PAGE_DIRECTION_B,
  PAGE_FREE,
  PAGE_GARBAGE,
  PAGE_HEAP_TOP,
  PAGE_INDEX_ID,
  PAGE_INSTANT,
  PAGE_LAST_INSERT,
  PAGE_LEVEL,
  PAGE_MAX_TRX_ID,
  PAGE_N_DIR_SLOTS,
  PAGE_N_DIRECTION,
  PAGE_N_HEAP,
  PAGE_N_RECS,
  PAGE_NEW_INFIMUM,
  PAGE_NEW_SUPREMUM,
  PAGE_OLD_INFIMUM,
  PAGE_OLD_SUPREMUM,
  read2,
  read4,
  read8,
} from './page-format.ts'
import type { SpaceFormat } from './space-flags.ts'

/** A record as its header shows it; what its columns are is in the data dictionary, not in the page. */
export interface RecordInspection {
  /** Offset of the first data byte. */
  readonly offset: number
  readonly heapNo: number
  /** infimum, supremum, ordinary, node pointer, instant (metadata or with a record header of its own). */
  readonly type: string
  /** Records that its directory slot counts, itself included; 0 if it has no slot. */
  readonly owned: number
  readonly deleted: boolean
  /** The leftmost record of a level above the leaves. */
  readonly minRec: boolean
  /** Offset of the next record, 0 at the end. */
  readonly next: number
  /** Header bytes before `offset` can be known for REDUNDANT only. */
  readonly fields: number | null
}

export interface SlotInspection {
  readonly slot: number
  /** Offset of the record that it points to. */
  readonly offset: number
  readonly owned: number
  /** Records counted in the chain since the previous slot's. */
  readonly counted: number | null
}

/** A file segment header: where the segment's inode is. */
export interface SegmentAddress {
  readonly space: number
  readonly page: number
  readonly offset: number
}

export interface IndexInspection {
  readonly kind: 'index'
  readonly rowFormat: 'REDUNDANT' | 'COMPACT or DYNAMIC' | 'COMPRESSED'
  readonly dirSlots: number
  readonly heapTop: number
  readonly heapRecords: number
  readonly free: number
  readonly garbageBytes: number
  readonly lastInsert: number
  readonly direction: string
  readonly directionCount: number
  readonly records: number
  readonly maxTrxId: string
  readonly level: number
  readonly indexId: string
  /** Columns before the first instant ALTER TABLE, on the root of such a table. */
  readonly instantFields: number | null
  readonly segmentLeaf: SegmentAddress | null
  readonly segmentTop: SegmentAddress | null
  /** In chain order, infimum and supremum included; empty for COMPRESSED. */
  readonly chain: readonly RecordInspection[]
  readonly slots: readonly SlotInspection[]
  readonly freeRecords: number
}

const DIRECTIONS: Readonly<Record<number, string>> = {
  0: 'none yet',
  1: 'left',
  2: 'right',
  3: 'same record',
  4: 'same page',
  5: 'no direction',
}
const STATUS = ['ordinary', 'node pointer', 'infimum', 'supremum', 'instant']

function segment(page: Uint8Array, at: number): SegmentAddress | null {
  const address = { space: read4(page, at), page: read4(page, at + 4), offset: read2(page, at + 8) }
  return address.page === 0 && address.offset === 0 ? null : address
}

function inspectRecord(page: Uint8Array, offset: number, comp: boolean, level: number): RecordInspection {
  const bits = page[offset - (comp ? 5 : 6)] ?? 0
  const next = read2(page, offset - 2)
  const heapNo = read2(page, offset - (comp ? 4 : 5)) >> 3
  const oldType =
    heapNo === 0 ? 'infimum' : heapNo === 1 ? 'supremum' : level === 0 ? 'ordinary' : 'node pointer'
  const status = page[offset - 3]! & 7
  return {
    offset,
    heapNo,
    type: comp ? (STATUS[status] ?? `status ${status}`) : oldType,
    owned: bits & 15,
    deleted: (bits & 0x20) !== 0,
    minRec: (bits & 0x10) !== 0,
    next: comp && next !== 0 ? (offset + next) & 0xffff : next,
    fields: comp ? null : (read2(page, offset - 4) & 0x7fe) >> 1,
  }
}

/** Follows the chain from infimum; stops where it ends, leaves the page, or comes back to itself. */
function walkChain(
  page: Uint8Array,
  comp: boolean,
  heapTop: number,
  level: number,
  problems: string[],
): RecordInspection[] {
  const supremum = comp ? PAGE_NEW_SUPREMUM : PAGE_OLD_SUPREMUM
  const chain: RecordInspection[] = []
  const seen = new Set<number>()
  for (let offset = comp ? PAGE_NEW_INFIMUM : PAGE_OLD_INFIMUM; ; ) {
    if (seen.has(offset)) {
      problems.push(`record chain: comes back to the record at ${offset}`)
      return chain
    }
    seen.add(offset)
    const record = inspectRecord(page, offset, comp, level)
    chain.push(record)
    if (offset === supremum) return chain
    if (record.next === 0) {
      problems.push(`record chain: ends at ${offset} without reaching supremum`)
      return chain
    }
    if (record.next !== supremum && (record.next < supremum || record.next > heapTop)) {
      problems.push(`record chain: the record at ${offset} points to ${record.next}, outside the heap`)
      return chain
    }
    offset = record.next
  }
}

function checkSlots(
  page: Uint8Array,
  chain: readonly RecordInspection[],
  count: number,
  problems: string[],
): SlotInspection[] {
  const slots: SlotInspection[] = []
  const position = new Map(chain.map((record, i) => [record.offset, i]))
  let previous = -1
  for (let slot = 0; slot < count; slot++) {
    const at = page.length - PAGE_DIR - 2 - 2 * slot
    if (at < PAGE_BTR_SEG_TOP) {
      problems.push(`directory: ${count} slots do not fit the page`)
      break
    }
    const offset = read2(page, at)
    const i = position.get(offset)
    const owned = i === undefined ? 0 : chain[i]!.owned
    const counted = i === undefined ? null : i - previous
    slots.push({ slot, offset, owned, counted })
    if (i === undefined)
      problems.push(`directory: slot ${slot} points to ${offset}, which is not in the record chain`)
    else {
      if (counted !== owned)
        problems.push(`directory: slot ${slot} owns ${owned} records, the chain has ${counted}`)
      previous = i
    }
  }
  return slots
}

function countFree(page: Uint8Array, comp: boolean, heapTop: number, problems: string[]): number {
  const seen = new Set<number>()
  for (let offset = read2(page, PAGE_FREE); offset !== 0; ) {
    if (seen.has(offset)) {
      problems.push(`free list: comes back to ${offset}`)
      break
    }
    if (offset > heapTop || offset < PAGE_NEW_SUPREMUM) {
      problems.push(`free list: leads to ${offset}, outside the heap`)
      break
    }
    seen.add(offset)
    const next = read2(page, offset - 2)
    offset = comp && next !== 0 ? (offset + next) & 0xffff : next
  }
  return seen.size
}

export function inspectIndex(page: Uint8Array, format: SpaceFormat, problems: string[]): IndexInspection {
  const heap = read2(page, PAGE_N_HEAP)
  const comp = (heap & 0x8000) !== 0
  const level = read2(page, PAGE_LEVEL)
  const heapTop = read2(page, PAGE_HEAP_TOP)
  const dirSlots = read2(page, PAGE_N_DIR_SLOTS)
  const records = read2(page, PAGE_N_RECS)
  const direction = page[PAGE_DIRECTION_B]! & 7
  const instant = read2(page, FIL_PAGE_TYPE) === FIL_PAGE_TYPE_INSTANT
  const chain = format.zip ? [] : walkChain(page, comp, heapTop, level, problems)
  if (!format.zip && chain.at(-1)?.type === 'supremum' && chain.length - 2 !== records)
    problems.push(`page header: ${records} records, the chain has ${chain.length - 2}`)
  return {
    kind: 'index',
    rowFormat: format.zip ? 'COMPRESSED' : comp ? 'COMPACT or DYNAMIC' : 'REDUNDANT',
    dirSlots,
    heapTop,
    heapRecords: heap & 0x7fff,
    free: read2(page, PAGE_FREE),
    garbageBytes: read2(page, PAGE_GARBAGE),
    lastInsert: read2(page, PAGE_LAST_INSERT),
    direction: DIRECTIONS[direction] ?? `direction ${direction}`,
    directionCount: read2(page, PAGE_N_DIRECTION),
    records,
    maxTrxId: read8(page, PAGE_MAX_TRX_ID).toString(),
    level,
    indexId: read8(page, PAGE_INDEX_ID).toString(),
    instantFields: instant ? (read2(page, PAGE_INSTANT) >> 3) & 0x3ff : null,
    segmentLeaf: segment(page, PAGE_BTR_SEG_LEAF),
    segmentTop: segment(page, PAGE_BTR_SEG_TOP),
    chain,
    slots: format.zip ? [] : checkSlots(page, chain, dirSlots, problems),
    freeRecords: format.zip ? 0 : countFree(page, comp, heapTop, problems),
  }
}
