/**
 * The index-page records: creating a page's record heap, inserting a record, deleting one.
 *
 * These records say "insert after the record at offset p, sharing so many header and data bytes with it", so applying
 * them means maintaining heap, free list, record chain and page directory just as the server that wrote them did.
 * Each function checks everything before its first write and returns a reason when the page does not fit the record.
 * Follows page0cur.cc (`page_apply_insert_redundant`, `page_apply_insert_dynamic`, `page_apply_delete_redundant`,
 * `page_apply_delete_dynamic`, `page_dir_split_slot`, `page_dir_balance_slot`, `page_mem_free`) and page0page.cc
 * (`page_create_low`).
 *
 * A record's address is the offset of its first data byte; its header lies before it, lowest byte last:
 *   REDUNDANT: [field ends] [info 4 bit, n_owned 4 bit] [heap no 13 bit, n_fields 10 bit, short flag 1 bit] [next 2]
 *   COMPACT, DYNAMIC: [lengths, null bits] [info 4 bit, n_owned 4 bit] [heap no 13 bit, status 3 bit] [next 2, relative]
 */
import {
  FIL_PAGE_INDEX,
  FIL_PAGE_OFFSET,
  FIL_PAGE_RTREE,
  FIL_PAGE_TYPE,
  isIndexType,
  PAGE_DATA,
  PAGE_DIR,
  PAGE_DIRECTION_B,
  PAGE_FREE,
  PAGE_GARBAGE,
  PAGE_HEADER,
  PAGE_HEAP_TOP,
  PAGE_LAST_INSERT,
  PAGE_LEVEL,
  PAGE_N_DIR_SLOTS,
  PAGE_N_DIRECTION,
  PAGE_N_HEAP,
  PAGE_N_RECS,
  PAGE_NEW_INFIMUM,
  PAGE_NEW_SUPREMUM,
  PAGE_NEW_SUPREMUM_END,
  PAGE_OLD_INFIMUM,
  PAGE_OLD_SUPREMUM,
  PAGE_OLD_SUPREMUM_END,
  read2,
  read4,
  write2,
} from './page-format.ts'

/** Why a record cannot be applied to the page, or undefined when it was applied. */
export type Misfit = string | undefined

const REC_N_OLD_EXTRA_BYTES = 6
const REC_N_NEW_EXTRA_BYTES = 5
const REC_MAX_N_FIELDS = 1023
const REC_STATUS_NODE_PTR = 1
const REC_STATUS_INSTANT = 4
const PAGE_HEAP_NO_USER_LOW = 2
const PAGE_DIR_SLOT_MAX_N_OWNED = 8
const PAGE_DIR_SLOT_MIN_N_OWNED = 4
const PAGE_LEFT = 1
const PAGE_RIGHT = 2
const PAGE_NO_DIRECTION = 5
const RTREE_LOW_BYTE = FIL_PAGE_RTREE & 0xff

/** Where copying byte by byte stops being cheaper than making a view for a native copy. */
const COPY_NATIVE_FROM = 96

/** The header of a REDUNDANT record being inserted: built here, so that nothing is written before all checks passed. */
const oldHeader = new Uint8Array(REC_N_OLD_EXTRA_BYTES + REC_MAX_N_FIELDS * 2)

// biome-ignore format: laid out as the fields of the two records
const INFIMUM_SUPREMUM_OLD = Uint8Array.of(
  0x08, 0x01, 0x00, 0x00, 0x03, 0x00, 0x74, 0x69, 0x6e, 0x66, 0x69, 0x6d, 0x75, 0x6d, 0x00,
  0x09, 0x01, 0x00, 0x08, 0x03, 0x00, 0x00, 0x73, 0x75, 0x70, 0x72, 0x65, 0x6d, 0x75, 0x6d, 0x00,
)
// biome-ignore format: laid out as the fields of the two records
const INFIMUM_SUPREMUM_NEW = Uint8Array.of(
  0x01, 0x00, 0x02, 0x00, 0x0d, 0x69, 0x6e, 0x66, 0x69, 0x6d, 0x75, 0x6d, 0x00,
  0x01, 0x00, 0x0b, 0x00, 0x00, 0x73, 0x75, 0x70, 0x72, 0x65, 0x6d, 0x75, 0x6d,
)

/** Copies buf[from, to) into the page at `at`; the caller has checked that it fits. */
export function copyInto(page: Uint8Array, at: number, buf: Uint8Array, from: number, to: number): void {
  if (to - from >= COPY_NATIVE_FROM) page.set(buf.subarray(from, to), at)
  else for (let i = from; i < to; i++) page[at++] = buf[i]!
}

/** Copies within the page towards a place that does not overlap the source. */
function copyWithinPage(page: Uint8Array, at: number, from: number, length: number): void {
  if (length >= COPY_NATIVE_FROM) page.copyWithin(at, from, from + length)
  else for (let i = 0; i < length; i++) page[at + i] = page[from + i]!
}

/** INIT_ROW_FORMAT_REDUNDANT and INIT_ROW_FORMAT_DYNAMIC: an empty record heap. */
export function applyPageCreate(page: Uint8Array, comp: boolean): void {
  const size = page.length
  write2(page, FIL_PAGE_TYPE, FIL_PAGE_INDEX)
  page.fill(0, PAGE_HEADER, PAGE_HEADER + 26)
  page[PAGE_N_DIR_SLOTS + 1] = 2
  page[PAGE_DIRECTION_B] = PAGE_NO_DIRECTION
  write2(page, PAGE_N_HEAP, PAGE_HEAP_NO_USER_LOW | (comp ? 0x8000 : 0))
  const end = comp ? PAGE_NEW_SUPREMUM_END : PAGE_OLD_SUPREMUM_END
  page[PAGE_HEAP_TOP + 1] = end
  page.set(comp ? INFIMUM_SUPREMUM_NEW : INFIMUM_SUPREMUM_OLD, PAGE_DATA)
  page.fill(0, end, size - PAGE_DIR)
  page[size - PAGE_DIR - 3] = comp ? PAGE_NEW_SUPREMUM : PAGE_OLD_SUPREMUM
  page[size - PAGE_DIR - 1] = comp ? PAGE_NEW_INFIMUM : PAGE_OLD_INFIMUM
}

const slotAt = (size: number, n: number): number => size - PAGE_DIR - 2 - 2 * n

const oldShort = (page: Uint8Array, rec: number): number => page[rec - 3]! & 1
const oldFields = (page: Uint8Array, rec: number): number => (read2(page, rec - 4) & 0x7fe) >> 1
const oldExtra = (page: Uint8Array, rec: number): number =>
  REC_N_OLD_EXTRA_BYTES + (oldShort(page, rec) ? oldFields(page, rec) : oldFields(page, rec) * 2)

/** Bytes of a REDUNDANT record's data: where its last field ends. */
function oldDataSize(page: Uint8Array, rec: number): number {
  const n = oldFields(page, rec)
  if (n === 0) return 0
  return oldShort(page, rec)
    ? page[rec - REC_N_OLD_EXTRA_BYTES - n]! & 0x7f
    : read2(page, rec - REC_N_OLD_EXTRA_BYTES - 2 * n) & 0x3fff
}

/** Successor of a record, as an offset; 0 at the end of a list. */
function nextOf(page: Uint8Array, rec: number, comp: boolean): number {
  const next = read2(page, rec - 2)
  return comp && next !== 0 ? (rec + next) & 0xffff : next
}

function setOwned(page: Uint8Array, rec: number, owned: number, comp: boolean): void {
  const at = rec - (comp ? REC_N_NEW_EXTRA_BYTES : REC_N_OLD_EXTRA_BYTES)
  page[at] = (page[at]! & 0xf0) | owned
}

/** PAGE_LAST_INSERT, PAGE_DIRECTION_B and PAGE_N_DIRECTION tell InnoDB whether inserts come in order. */
function noteDirection(page: Uint8Array, lastInsert: number, prev: number, next: number): void {
  if (page[FIL_PAGE_TYPE + 1] === RTREE_LOW_BYTE) return
  const rest = page[PAGE_DIRECTION_B]! & 0xf8
  const direction = page[PAGE_DIRECTION_B]! & 7
  if (lastInsert !== 0 && lastInsert === prev && direction !== PAGE_LEFT) {
    page[PAGE_DIRECTION_B] = rest | PAGE_RIGHT
  } else if (lastInsert !== 0 && lastInsert === next && direction !== PAGE_RIGHT) {
    page[PAGE_DIRECTION_B] = rest | PAGE_LEFT
  } else {
    page[PAGE_DIRECTION_B] = rest | PAGE_NO_DIRECTION
    write2(page, PAGE_N_DIRECTION, 0)
    return
  }
  write2(page, PAGE_N_DIRECTION, read2(page, PAGE_N_DIRECTION) + 1)
}

/** An owner reached nine records: a new slot takes over the lower half. */
function splitSlot(page: Uint8Array, slot: number, comp: boolean): Misfit {
  const total = PAGE_DIR_SLOT_MAX_N_OWNED + 1
  const heapTop = read2(page, PAGE_HEAP_TOP)
  let rec = read2(page, slot + 2)
  if (rec < PAGE_NEW_INFIMUM || rec > heapTop) return 'a directory slot points outside the record heap'
  const lowest = comp ? PAGE_NEW_SUPREMUM : PAGE_OLD_SUPREMUM
  for (let i = total >> 1; i > 0; i--) {
    rec = nextOf(page, rec, comp)
    if (rec < lowest || rec > heapTop) return 'the record chain leaves the record heap'
  }
  const slots = read2(page, PAGE_N_DIR_SLOTS)
  const last = slotAt(page.length, slots)
  if (slot < last) return 'a directory slot lies below the directory'
  page.copyWithin(last, last + 2, slot + 2)
  write2(page, PAGE_N_DIR_SLOTS, slots + 1)
  write2(page, slot, rec)
  setOwned(page, rec, total >> 1, comp)
  setOwned(page, read2(page, slot - 2), total - (total >> 1), comp)
  return undefined
}

/** An owner fell to three records: it takes one from the next slot, or the two become one. */
function balanceSlot(page: Uint8Array, n: number, comp: boolean): Misfit {
  const slots = read2(page, PAGE_N_DIR_SLOTS)
  // The last slot, the supremum's, may own as few as it likes.
  if (n + 1 >= slots) return undefined
  const slot = slotAt(page.length, n)
  const above = read2(page, slot - 2)
  const rec = read2(page, slot)
  const lowest = PAGE_DATA + REC_N_OLD_EXTRA_BYTES
  if (above < lowest || above >= page.length || rec < lowest || rec >= page.length)
    return 'a directory slot points outside the page'
  const owned = page[above - (comp ? REC_N_NEW_EXTRA_BYTES : REC_N_OLD_EXTRA_BYTES)]! & 15
  if (owned <= PAGE_DIR_SLOT_MIN_N_OWNED) {
    setOwned(page, rec, 0, comp)
    setOwned(page, above, owned + PAGE_DIR_SLOT_MIN_N_OWNED - 1, comp)
    const last = slotAt(page.length, slots - 1)
    page.copyWithin(last + 2, last, slot)
    write2(page, last, 0)
    write2(page, PAGE_N_DIR_SLOTS, slots - 1)
    return undefined
  }
  const next = nextOf(page, rec, comp)
  if (next < (comp ? PAGE_NEW_SUPREMUM : PAGE_OLD_SUPREMUM) || next > read2(page, PAGE_HEAP_TOP))
    return 'the record chain leaves the record heap'
  setOwned(page, rec, 0, comp)
  setOwned(page, next, PAGE_DIR_SLOT_MIN_N_OWNED, comp)
  setOwned(page, above, owned - 1, comp)
  write2(page, slot, next)
  return undefined
}

/** Puts a deleted record on the free list, or lowers the heap if it was the topmost; its bytes become zero. */
function freeRecord(page: Uint8Array, rec: number, dataSize: number, extraSize: number, comp: boolean): void {
  const free = read2(page, PAGE_FREE)
  const heapRecords = (read2(page, PAGE_N_HEAP) - 1) & 0xffff
  const heapNo = read2(page, rec - (comp ? 4 : 5)) >> 3
  const topmost = heapRecords === (comp ? heapNo | 0x8000 : heapNo)
  const end = rec + dataSize
  let from = rec
  if (topmost) {
    const savings = read2(page, PAGE_HEAP_TOP) - end
    write2(page, PAGE_HEAP_TOP, rec - extraSize)
    write2(page, PAGE_N_HEAP, heapRecords)
    if (savings) write2(page, PAGE_GARBAGE, read2(page, PAGE_GARBAGE) - savings)
    from = rec - extraSize
  } else {
    write2(page, PAGE_FREE, rec)
    write2(page, PAGE_GARBAGE, read2(page, PAGE_GARBAGE) + extraSize + dataSize)
    write2(page, rec - 2, free === 0 ? 0 : comp ? free - rec : free)
  }
  write2(page, PAGE_LAST_INSERT, 0)
  write2(page, PAGE_N_RECS, read2(page, PAGE_N_RECS) - 1)
  page.fill(0, from, end)
}

/** Finds the directory slot of an owner record, from the last slot upwards; the first, infimum's, does not count. */
function findSlot(page: Uint8Array, owner: number, last: number): number {
  const first = page.length - PAGE_DIR - 2
  const high = owner >>> 8
  const low = owner & 0xff
  for (let slot = last; slot < first; slot += 2)
    if (page[slot + 1] === low && page[slot] === high) return slot
  return -1
}

/**
 * INSERT_HEAP_REDUNDANT, INSERT_REUSE_REDUNDANT.
 * @param prevOffset the predecessor, relative to the infimum
 * @param encodedHeader number of fields, short flag, info bits
 * @param headerShared header bytes in common with the predecessor
 * @param dataShared data bytes in common with the predecessor
 * @param start where the literal header and data bytes begin in buf; they end at `end`
 */
export function applyInsertRedundant(
  page: Uint8Array,
  pageNo: number,
  reuse: boolean,
  prevOffset: number,
  encodedHeader: number,
  headerShared: number,
  dataShared: number,
  buf: Uint8Array,
  start: number,
  end: number,
): Misfit {
  const size = page.length
  const slots = read2(page, PAGE_N_DIR_SLOTS)
  const heapRecords = read2(page, PAGE_N_HEAP)
  const misfit = checkIndexPage(page, pageNo, PAGE_OLD_SUPREMUM)
  if (misfit) return misfit
  if (
    slots < 2 ||
    heapRecords < slots ||
    heapRecords < PAGE_HEAP_NO_USER_LOW ||
    heapRecords >= size / REC_N_OLD_EXTRA_BYTES
  )
    return 'page header: number of heap records or directory slots is impossible'
  const lastSlot = slotAt(size, slots - 1)
  const heapBottom = PAGE_OLD_SUPREMUM_END
  const heapTop = read2(page, PAGE_HEAP_TOP)
  if (heapBottom > heapTop || heapTop > lastSlot) return 'page header: heap top is impossible'
  if (read2(page, lastSlot) !== PAGE_OLD_SUPREMUM || read2(page, slotAt(size, 0)) !== PAGE_OLD_INFIMUM)
    return 'page directory: first and last slot are not infimum and supremum'

  const prev = PAGE_OLD_INFIMUM + prevOffset
  if (prevOffset !== 0 && (heapBottom + REC_N_OLD_EXTRA_BYTES + 1 > prev || prev > heapTop))
    return 'predecessor is outside the record heap'
  const prevFields = oldFields(page, prev)
  if (prevFields === 0 || prevFields > REC_MAX_N_FIELDS)
    return 'predecessor has an impossible number of fields'
  if (prevOffset !== 0 && prev - oldExtra(page, prev) < heapBottom)
    return 'predecessor begins before the record heap'
  if (headerShared !== 0 && prev - headerShared < heapBottom)
    return 'shared header begins before the record heap'
  if (prev + oldDataSize(page, prev) > heapTop) return 'predecessor ends behind the record heap'
  const next = read2(page, prev - 2)
  if (next !== PAGE_OLD_SUPREMUM && (heapBottom + REC_N_OLD_EXTRA_BYTES > next || next > heapTop))
    return 'successor is outside the record heap'

  const short = (encodedHeader >> 2) & 1
  const fields = (encodedHeader >> 3) + 1
  if (fields > REC_MAX_N_FIELDS) return 'record has too many fields'
  const extraSize = REC_N_OLD_EXTRA_BYTES + (short ? fields : fields * 2)
  const headerCopied = headerShared + REC_N_OLD_EXTRA_BYTES
  if (headerCopied > extraSize) return 'shared header is longer than the header'
  const headerLiteral = extraSize - headerCopied
  if (headerLiteral > end - start) return 'literal header is cut short'

  let owner = next
  let owned = 0
  for (let left = PAGE_DIR_SLOT_MAX_N_OWNED; ; left--) {
    owned = page[owner - REC_N_OLD_EXTRA_BYTES]! & 15
    if (owned !== 0) break
    owner = read2(page, owner - 2)
    if (owner !== PAGE_OLD_SUPREMUM && (heapBottom + REC_N_OLD_EXTRA_BYTES > owner || owner > heapTop))
      return 'the record chain leaves the record heap'
    if (left === 0) return 'the record chain has no owner within reach; it may be cyclic'
  }
  if (owned > PAGE_DIR_SLOT_MAX_N_OWNED) return 'a record owns too many others'
  const slot = findSlot(page, owner, lastSlot)
  if (slot < 0) return 'no directory slot points to the owner of the place'

  const header = oldHeader
  for (let i = 0; i < headerLiteral; i++) header[i] = buf[start + i]!
  for (let i = 0; i < headerCopied; i++) header[headerLiteral + i] = page[prev - headerCopied + i]!
  header[extraSize - 6] = (encodedHeader & 3) << 4
  // n_fields spreads over the low three bits of one byte and the high seven of the next, the short flag below.
  header[extraSize - 4] = (header[extraSize - 4]! & 0xf8) | (fields >> 7)
  header[extraSize - 3] = ((fields << 1) & 0xfe) | short
  const dataSize = short
    ? header[extraSize - REC_N_OLD_EXTRA_BYTES - fields]! & 0x7f
    : read2(header, extraSize - REC_N_OLD_EXTRA_BYTES - 2 * fields) & 0x3fff
  if (dataShared > dataSize) return 'shared data is longer than the record'
  if (headerLiteral + dataSize - dataShared !== end - start) return 'literal data has the wrong length'

  let at: number
  let heapNo: number
  if (reuse) {
    const free = read2(page, PAGE_FREE)
    if (heapBottom + REC_N_OLD_EXTRA_BYTES > free || free > heapTop)
      return 'free list points outside the record heap'
    const freeExtra = oldExtra(page, free)
    const freeData = oldDataSize(page, free)
    if (free - freeExtra < heapBottom || free + freeData > heapTop)
      return 'free record leaves the record heap'
    if (extraSize + dataSize > freeExtra + freeData) return 'record is larger than the free one'
    const garbage = read2(page, PAGE_GARBAGE)
    if (garbage < freeExtra + freeData) return 'free record is larger than all free space'
    const nextFree = read2(page, free - 2)
    if (nextFree !== 0 && (nextFree < heapBottom + REC_N_OLD_EXTRA_BYTES + 1 || heapTop < nextFree))
      return 'free list leaves the record heap'
    at = free - freeExtra
    heapNo = read2(page, free - 5) >> 3
    write2(page, PAGE_GARBAGE, garbage - extraSize - dataSize)
    write2(page, PAGE_FREE, nextFree)
  } else {
    if (heapTop + extraSize + dataSize > lastSlot) return 'record does not fit'
    heapNo = heapRecords
    write2(page, PAGE_N_HEAP, heapRecords + 1)
    write2(page, PAGE_HEAP_TOP, heapTop + extraSize + dataSize)
    at = heapTop
  }
  header[extraSize - 5] = heapNo >> 5
  header[extraSize - 4] = (header[extraSize - 4]! & 7) | ((heapNo << 3) & 0xf8)

  const lastInsert = read2(page, PAGE_LAST_INSERT)
  for (let i = 0; i < extraSize; i++) page[at + i] = header[i]!
  at += extraSize
  write2(page, PAGE_LAST_INSERT, at)
  write2(page, prev - 2, at)
  copyWithinPage(page, at, prev, dataShared)
  copyInto(page, at + dataShared, buf, start + headerLiteral, end)
  setOwned(page, owner, owned + 1, false)
  noteDirection(page, lastInsert, prev, next)
  write2(page, PAGE_N_RECS, read2(page, PAGE_N_RECS) + 1)
  return owned === PAGE_DIR_SLOT_MAX_N_OWNED ? splitSlot(page, slot, false) : undefined
}

function checkIndexPage(page: Uint8Array, pageNo: number, supremum: number): Misfit {
  if (!isIndexType(read2(page, FIL_PAGE_TYPE))) return 'page is not an index page'
  if (read4(page, FIL_PAGE_OFFSET) !== pageNo) return 'page carries another page number'
  if (read2(page, supremum - 2) !== 0) return 'supremum has a successor'
  return undefined
}

/**
 * INSERT_HEAP_DYNAMIC, INSERT_REUSE_DYNAMIC.
 * @param prevOffset the predecessor, relative to the infimum
 * @param shift reuse only: how far the record's start lies from the free record's; bit 0 is the sign
 * @param encodedHeader literal header bytes << 3, instant flag, info bits
 * @param headerShared header bytes in common with the predecessor
 * @param dataShared data bytes in common with the predecessor
 * @param start where the literal header and data bytes begin in buf; they end at `end`
 */
export function applyInsertDynamic(
  page: Uint8Array,
  pageNo: number,
  reuse: boolean,
  prevOffset: number,
  shift: number,
  encodedHeader: number,
  headerShared: number,
  dataShared: number,
  buf: Uint8Array,
  start: number,
  end: number,
): Misfit {
  const size = page.length
  const slots = read2(page, PAGE_N_DIR_SLOTS)
  const heapField = read2(page, PAGE_N_HEAP)
  const heapRecords = heapField & 0x7fff
  const misfit = checkIndexPage(page, pageNo, PAGE_NEW_SUPREMUM)
  if (misfit) return misfit
  if (
    slots < 2 ||
    heapField < (PAGE_HEAP_NO_USER_LOW | 0x8000) ||
    heapRecords >= size / REC_N_NEW_EXTRA_BYTES ||
    heapRecords < slots
  )
    return 'page header: number of heap records or directory slots is impossible'
  const leaf = read2(page, PAGE_LEVEL) === 0
  const headerLiteral = encodedHeader >> 3
  if (encodedHeader & REC_STATUS_INSTANT && !leaf) return 'instant record on a page above the leaves'
  if (headerLiteral > end - start) return 'literal header is cut short'
  const lastSlot = slotAt(size, slots - 1)
  const heapBottom = PAGE_NEW_SUPREMUM_END
  const heapTop = read2(page, PAGE_HEAP_TOP)
  if (heapBottom > heapTop || heapTop > lastSlot) return 'page header: heap top is impossible'
  if (read2(page, lastSlot) !== PAGE_NEW_SUPREMUM || read2(page, slotAt(size, 0)) !== PAGE_NEW_INFIMUM)
    return 'page directory: first and last slot are not infimum and supremum'

  const prev = PAGE_NEW_INFIMUM + prevOffset
  if (prevOffset !== 0 && (heapBottom + REC_N_NEW_EXTRA_BYTES > prev || prev > heapTop))
    return 'predecessor is outside the record heap'
  const next = (prev + read2(page, prev - 2)) & 0xffff
  if (next !== PAGE_NEW_SUPREMUM && (heapBottom + REC_N_NEW_EXTRA_BYTES > next || next > heapTop))
    return 'successor is outside the record heap'
  // The server that wrote the record guarantees these two; hostile input does not.
  if (prev - REC_N_NEW_EXTRA_BYTES - headerShared < 0) return 'shared header begins before the page'
  if (prev + dataShared > size) return 'shared data ends behind the page'

  let owner = next
  let owned = 0
  for (let left = PAGE_DIR_SLOT_MAX_N_OWNED; ; left--) {
    owned = page[owner - REC_N_NEW_EXTRA_BYTES]! & 15
    if (owned !== 0) break
    owner = (owner + read2(page, owner - 2)) & 0xffff
    if (owner !== PAGE_NEW_SUPREMUM && (heapBottom + REC_N_NEW_EXTRA_BYTES > owner || owner > heapTop))
      return 'the record chain leaves the record heap'
    if (left === 0) return 'the record chain has no owner within reach; it may be cyclic'
  }
  if (owned > PAGE_DIR_SLOT_MAX_N_OWNED) return 'a record owns too many others'
  const slot = findSlot(page, owner, lastSlot)
  if (slot < 0) return 'no directory slot points to the owner of the place'

  const extraSize = REC_N_NEW_EXTRA_BYTES + headerShared + headerLiteral
  const dataSize = dataShared + (end - start) - headerLiteral
  let at: number
  let heapNo: number
  if (reuse) {
    const free = read2(page, PAGE_FREE)
    if (heapBottom + REC_N_NEW_EXTRA_BYTES > free || free > heapTop)
      return 'free list points outside the record heap'
    at = free - extraSize + (shift & 1 ? -(shift >> 1) : shift >> 1)
    if (heapBottom > at || at + extraSize + dataSize > heapTop) return 'record leaves the record heap'
    const garbage = read2(page, PAGE_GARBAGE)
    if (garbage < extraSize + dataSize) return 'record is larger than all free space'
    let nextFree = read2(page, free - 2)
    if (nextFree !== 0) {
      nextFree = (nextFree + free) & 0xffff
      if (nextFree < heapBottom + REC_N_NEW_EXTRA_BYTES || heapTop < nextFree)
        return 'free list leaves the record heap'
    }
    heapNo = read2(page, free - 4) >> 3
    write2(page, PAGE_FREE, nextFree)
    write2(page, PAGE_GARBAGE, garbage - extraSize - dataSize)
  } else {
    if (heapTop + extraSize + dataSize > lastSlot) return 'record does not fit'
    heapNo = heapRecords
    write2(page, PAGE_N_HEAP, heapField + 1)
    write2(page, PAGE_HEAP_TOP, heapTop + extraSize + dataSize)
    at = heapTop
  }

  for (let i = 0; i < headerLiteral; i++) page[at++] = buf[start + i]!
  const sharedFrom = prev - REC_N_NEW_EXTRA_BYTES - headerShared
  for (let i = 0; i < headerShared; i++) page[at++] = page[sharedFrom + i]!
  page[at] = (encodedHeader & 3) << 4
  page[at + 1] = heapNo >> 5
  page[at + 2] = ((heapNo & 31) << 3) | (leaf ? encodedHeader & REC_STATUS_INSTANT : REC_STATUS_NODE_PTR)
  at += REC_N_NEW_EXTRA_BYTES
  write2(page, at - 2, next - at)
  const lastInsert = read2(page, PAGE_LAST_INSERT)
  write2(page, PAGE_LAST_INSERT, at)
  write2(page, prev - 2, at - prev)
  copyWithinPage(page, at, prev, dataShared)
  copyInto(page, at + dataShared, buf, start + headerLiteral, end)
  setOwned(page, owner, owned + 1, true)
  noteDirection(page, lastInsert, prev, next)
  write2(page, PAGE_N_RECS, read2(page, PAGE_N_RECS) + 1)
  return owned === PAGE_DIR_SLOT_MAX_N_OWNED ? splitSlot(page, slot, true) : undefined
}

/**
 * Takes the record after `prev` out of chain and directory.
 * @param rec the record to delete, `next` its successor
 */
function unlinkAndFree(
  page: Uint8Array,
  prev: number,
  rec: number,
  next: number,
  extraSize: number,
  dataSize: number,
  lastSlot: number,
  comp: boolean,
): Misfit {
  const supremum = comp ? PAGE_NEW_SUPREMUM : PAGE_OLD_SUPREMUM
  const lowest = comp
    ? PAGE_NEW_SUPREMUM_END + REC_N_NEW_EXTRA_BYTES
    : PAGE_OLD_SUPREMUM_END + REC_N_OLD_EXTRA_BYTES
  const ownedAt = comp ? REC_N_NEW_EXTRA_BYTES : REC_N_OLD_EXTRA_BYTES
  let owner = rec
  let owned = 0
  for (let left = read2(page, PAGE_N_RECS); ; left--) {
    owned = page[owner - ownedAt]! & 15
    if (owned !== 0) break
    owner = comp ? (owner + read2(page, owner - 2)) & 0xffff : read2(page, owner - 2)
    if (owner !== supremum && (owner < lowest || lastSlot < owner))
      return 'the record chain leaves the record heap'
    if (left === 0) return 'the record chain has no owner; it may be cyclic'
  }
  owned--
  const slot = findSlot(page, owner, lastSlot)
  if (slot < 0) return 'no directory slot points to the owner of the record'
  if (rec === owner) {
    owner = prev
    write2(page, slot, prev)
  }
  write2(page, prev - 2, comp ? next - prev : next)
  setOwned(page, owner, owned, comp)
  freeRecord(page, rec, dataSize, extraSize, comp)
  if (owned >= PAGE_DIR_SLOT_MIN_N_OWNED) return undefined
  return balanceSlot(page, (slotAt(page.length, 0) - slot) >> 1, comp)
}

function checkDelete(page: Uint8Array, pageNo: number, supremum: number, comp: boolean): Misfit {
  const misfit = checkIndexPage(page, pageNo, supremum)
  if (misfit) return misfit
  const slots = read2(page, PAGE_N_DIR_SLOTS)
  if (read2(page, PAGE_N_RECS) === 0) return 'page has no records'
  if (slots < 2 || slotAt(page.length, slots - 1) < PAGE_DATA)
    return 'page header: number of directory slots is impossible'
  if ((page[PAGE_N_HEAP]! & 0x80) !== (comp ? 0x80 : 0)) return 'page is of another row format'
  return undefined
}

/**
 * DELETE_ROW_FORMAT_REDUNDANT: deletes the successor of the record at `prevOffset` from the infimum.
 */
export function applyDeleteRedundant(page: Uint8Array, pageNo: number, prevOffset: number): Misfit {
  const misfit = checkDelete(page, pageNo, PAGE_OLD_SUPREMUM, false)
  if (misfit) return misfit
  const lastSlot = slotAt(page.length, read2(page, PAGE_N_DIR_SLOTS) - 1)
  const prev = PAGE_OLD_INFIMUM + prevOffset
  if (prev > lastSlot) return 'predecessor is outside the record heap'
  const rec = read2(page, prev - 2)
  if (rec < PAGE_OLD_SUPREMUM_END + REC_N_OLD_EXTRA_BYTES || lastSlot < rec)
    return 'record is outside the record heap'
  const extraSize = oldExtra(page, rec)
  const dataSize = oldDataSize(page, rec)
  if (rec < PAGE_OLD_SUPREMUM_END + extraSize || lastSlot < rec + dataSize)
    return 'record leaves the record heap'
  const next = read2(page, rec - 2)
  if (next !== PAGE_OLD_SUPREMUM && (next < PAGE_OLD_SUPREMUM_END + REC_N_OLD_EXTRA_BYTES || lastSlot < next))
    return 'successor is outside the record heap'
  return unlinkAndFree(page, prev, rec, next, extraSize, dataSize, lastSlot, false)
}

/**
 * DELETE_ROW_FORMAT_DYNAMIC: deletes the successor of the record at `prevOffset` from the infimum.
 * @param headerSize header bytes without the fixed five
 * @param dataSize data bytes
 */
export function applyDeleteDynamic(
  page: Uint8Array,
  pageNo: number,
  prevOffset: number,
  headerSize: number,
  dataSize: number,
): Misfit {
  const misfit = checkDelete(page, pageNo, PAGE_NEW_SUPREMUM, true)
  if (misfit) return misfit
  const lastSlot = slotAt(page.length, read2(page, PAGE_N_DIR_SLOTS) - 1)
  const prev = PAGE_NEW_INFIMUM + prevOffset
  if (prev > lastSlot) return 'predecessor is outside the record heap'
  const rec = (prev + read2(page, prev - 2)) & 0xffff
  if (rec < PAGE_NEW_SUPREMUM_END + REC_N_NEW_EXTRA_BYTES || lastSlot < rec)
    return 'record is outside the record heap'
  const extraSize = REC_N_NEW_EXTRA_BYTES + headerSize
  if (rec < PAGE_NEW_SUPREMUM_END + extraSize || lastSlot < rec + dataSize)
    return 'record leaves the record heap'
  const next = (rec + read2(page, rec - 2)) & 0xffff
  if (next !== PAGE_NEW_SUPREMUM && (next < PAGE_NEW_SUPREMUM_END + REC_N_NEW_EXTRA_BYTES || lastSlot < next))
    return 'successor is outside the record heap'
  return unlinkAndFree(page, prev, rec, next, extraSize, dataSize, lastSlot, true)
}
