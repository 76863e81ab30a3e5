/** Undo log pages and rollback segment headers taken apart. See page-inspect.ts; follows trx0undo.h, trx0rec.h, trx0rseg.h. */
import {
  TRX_UNDO_PAGE_FREE,
  TRX_UNDO_PAGE_HDR,
  TRX_UNDO_PAGE_HDR_SIZE,
  TRX_UNDO_PAGE_NODE,
  TRX_UNDO_PAGE_START,
  TRX_UNDO_SEG_HDR,
  TRX_UNDO_SEG_HDR_SIZE,
} from './apply-undo.ts'
import { FIL_NULL, FIL_PAGE_DATA, read2, read4, read8 } from './page-format.ts'
import type { SpaceFormat } from './space-flags.ts'

/** A place in a tablespace; null for none. */
export interface ListAddress {
  readonly page: number
  readonly offset: number
}

export function listAddress(page: Uint8Array, at: number): ListAddress | null {
  const n = read4(page, at)
  return n === FIL_NULL ? null : { page: n, offset: read2(page, at + 4) }
}

/** One transaction's undo log, as its header on the segment's first page shows it. */
export interface UndoLogInspection {
  readonly offset: number
  readonly trxId: string
  /** Commit order; "0" while the transaction is not committed. */
  readonly trxNo: string
  readonly needsPurge: number
  readonly firstRecord: number
  readonly hasXid: boolean
  readonly dictTransaction: boolean
  readonly tableId: string
  readonly nextLog: number
  readonly previousLog: number
}

export interface UndoRecordInspection {
  readonly offset: number
  readonly bytes: number
  readonly type: string
  readonly undoNo: string
  readonly tableId: string
}

export interface UndoInspection {
  readonly kind: 'undo'
  /** Where the newest log's records begin on this page, and the first free byte. */
  readonly start: number
  readonly free: number
  readonly previousPage: ListAddress | null
  readonly nextPage: ListAddress | null
  /** On the first page of a segment only. */
  readonly segment: { readonly state: string; readonly lastLog: number; readonly pages: number } | null
  readonly logs: readonly UndoLogInspection[]
  readonly records: readonly UndoRecordInspection[]
}

export interface RollbackSegmentInspection {
  readonly kind: 'rollback segment'
  readonly format: number
  readonly historyPages: number
  readonly historyLogs: number
  readonly undoSegments: readonly { readonly slot: number; readonly page: number }[]
  readonly maxTrxId: string
}

const STATES: Readonly<Record<number, string>> = {
  1: 'active',
  2: 'cached',
  3: 'to free',
  4: 'to purge',
  5: 'prepared',
}
const RECORD_TYPES: Readonly<Record<number, string>> = {
  9: 'RENAME_TABLE',
  10: 'INSERT_METADATA',
  11: 'INSERT_REC',
  12: 'UPD_EXIST_REC',
  13: 'UPD_DEL_REC',
  14: 'DEL_MARK_REC',
  15: 'EMPTY',
}

/** InnoDB's compressed integers (mach0data.inl): value and bytes taken. */
function compressed(page: Uint8Array, at: number): [value: number, bytes: number] {
  const first = page[at] ?? 0
  if (first < 0x80) return [first, 1]
  if (first < 0xc0) return [read2(page, at) & 0x3fff, 2]
  if (first < 0xe0) return [read4(page, at - 1) & 0x1fffff, 3]
  if (first < 0xf0) return [read4(page, at) & 0x0fffffff, 4]
  return [read4(page, at + 1), 5]
}

function muchCompressed(page: Uint8Array, at: number): [value: bigint, bytes: number] {
  if (page[at] !== 0xff) {
    const [value, bytes] = compressed(page, at)
    return [BigInt(value), bytes]
  }
  const [high, highBytes] = compressed(page, at + 1)
  const [low, lowBytes] = compressed(page, at + 1 + highBytes)
  return [(BigInt(high) << 32n) | BigInt(low), 1 + highBytes + lowBytes]
}

function walkRecords(
  page: Uint8Array,
  start: number,
  free: number,
  problems: string[],
): UndoRecordInspection[] {
  const records: UndoRecordInspection[] = []
  for (let offset = start; offset < free; ) {
    const next = read2(page, offset)
    if (next <= offset + 4 || next > free) {
      problems.push(`undo record at ${offset} claims to end at ${next}`)
      break
    }
    if (read2(page, next - 2) !== offset)
      problems.push(`undo record at ${offset}: its end does not point back`)
    const code = page[offset + 2]! & 15
    const [undoNo, bytes] = muchCompressed(page, offset + 3)
    const [tableId] = muchCompressed(page, offset + 3 + bytes)
    records.push({
      offset,
      bytes: next - offset,
      type: RECORD_TYPES[code] ?? `type ${code}`,
      undoNo: undoNo.toString(),
      tableId: tableId.toString(),
    })
    offset = next
  }
  return records
}

function walkLogs(page: Uint8Array, last: number, problems: string[]): UndoLogInspection[] {
  const logs: UndoLogInspection[] = []
  const lowest = TRX_UNDO_SEG_HDR + TRX_UNDO_SEG_HDR_SIZE
  const seen = new Set<number>()
  for (let at = last; at !== 0; ) {
    if (at < lowest || at + 46 > page.length || seen.has(at)) {
      problems.push(`undo log headers: lead to ${at}`)
      break
    }
    seen.add(at)
    const log = {
      offset: at,
      trxId: read8(page, at).toString(),
      trxNo: read8(page, at + 8).toString(),
      needsPurge: read2(page, at + 16),
      firstRecord: read2(page, at + 18),
      hasXid: page[at + 20] !== 0,
      dictTransaction: page[at + 21] !== 0,
      tableId: read8(page, at + 22).toString(),
      nextLog: read2(page, at + 30),
      previousLog: read2(page, at + 32),
    }
    logs.push(log)
    at = log.previousLog
  }
  return logs
}

export function inspectUndo(page: Uint8Array, problems: string[]): UndoInspection {
  const start = read2(page, TRX_UNDO_PAGE_START)
  const free = read2(page, TRX_UNDO_PAGE_FREE)
  const previousPage = listAddress(page, TRX_UNDO_PAGE_NODE)
  const state = read2(page, TRX_UNDO_SEG_HDR)
  const lastLog = read2(page, TRX_UNDO_SEG_HDR + 2)
  const lowest = TRX_UNDO_PAGE_HDR + TRX_UNDO_PAGE_HDR_SIZE
  const sane = start >= lowest && start <= free && free <= page.length - 8
  if (!sane) problems.push(`undo page header: records from ${start} to ${free} are impossible`)
  // Other pages of the segment have old bytes in place of the segment header; the first has no predecessor.
  const first = previousPage === null && lastLog !== 0
  return {
    kind: 'undo',
    start,
    free,
    previousPage,
    nextPage: listAddress(page, TRX_UNDO_PAGE_NODE + 6),
    segment: first
      ? { state: STATES[state] ?? `state ${state}`, lastLog, pages: read4(page, TRX_UNDO_SEG_HDR + 14) }
      : null,
    logs: first ? walkLogs(page, lastLog, problems) : [],
    records: sane ? walkRecords(page, start, free, problems) : [],
  }
}

export function inspectRollbackSegment(page: Uint8Array, format: SpaceFormat): RollbackSegmentInspection {
  const at = FIL_PAGE_DATA
  const slots = at + 8 + 16 + 10
  const count = format.logicalSize / 16
  const undoSegments = []
  for (let slot = 0; slot < count; slot++) {
    const n = read4(page, slots + slot * 4)
    if (n !== FIL_NULL) undoSegments.push({ slot, page: n })
  }
  return {
    kind: 'rollback segment',
    format: read4(page, at),
    historyPages: read4(page, at + 4),
    historyLogs: read4(page, at + 8),
    undoSegments,
    maxTrxId: read8(page, slots + count * 4).toString(),
  }
}
