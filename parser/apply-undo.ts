/**
 * The undo page records: UNDO_INIT makes an empty undo log page, UNDO_APPEND adds one undo record to it.
 * Follows trx0undo.cc (`trx_undo_page_init`) and log0recv.cc (`log_phys_t::undo_append`).
 */
import { copyInto, type Misfit } from './apply-index.ts'
import {
  FIL_PAGE_DATA,
  FIL_PAGE_DATA_END,
  FIL_PAGE_TYPE,
  FIL_PAGE_UNDO_LOG,
  read2,
  write2,
} from './page-format.ts'

/** Offsets in the page (trx0undo.h). */
export const TRX_UNDO_PAGE_HDR = FIL_PAGE_DATA
export const TRX_UNDO_PAGE_TYPE = TRX_UNDO_PAGE_HDR
export const TRX_UNDO_PAGE_START = TRX_UNDO_PAGE_HDR + 2
/** First free byte. */
export const TRX_UNDO_PAGE_FREE = TRX_UNDO_PAGE_HDR + 4
/** Previous and next undo page of the segment: page number (4), offset (2), twice. */
export const TRX_UNDO_PAGE_NODE = TRX_UNDO_PAGE_HDR + 6
export const TRX_UNDO_PAGE_HDR_SIZE = 18
/** The segment header, meaningful on the segment's first page only. */
export const TRX_UNDO_SEG_HDR = TRX_UNDO_PAGE_HDR + TRX_UNDO_PAGE_HDR_SIZE
export const TRX_UNDO_SEG_HDR_SIZE = 4 + 10 + 16

export function applyUndoInit(page: Uint8Array): void {
  write2(page, FIL_PAGE_TYPE, FIL_PAGE_UNDO_LOG)
  write2(page, TRX_UNDO_PAGE_TYPE, 0)
  write2(page, TRX_UNDO_PAGE_START, TRX_UNDO_PAGE_HDR + TRX_UNDO_PAGE_HDR_SIZE)
  write2(page, TRX_UNDO_PAGE_FREE, TRX_UNDO_PAGE_HDR + TRX_UNDO_PAGE_HDR_SIZE)
  page.fill(0xff, TRX_UNDO_PAGE_NODE, TRX_UNDO_PAGE_NODE + 4)
  page.fill(0, TRX_UNDO_PAGE_NODE + 4, TRX_UNDO_PAGE_NODE + 6)
  page.fill(0xff, TRX_UNDO_PAGE_NODE + 6, TRX_UNDO_PAGE_NODE + 10)
  page.fill(0, TRX_UNDO_PAGE_NODE + 10, TRX_UNDO_PAGE_NODE + 12)
  // The segment header stays: a page that is reused as the first of its segment keeps it.
  page.fill(0, TRX_UNDO_SEG_HDR + TRX_UNDO_SEG_HDR_SIZE, page.length - FIL_PAGE_DATA_END)
}

/** Appends the undo record buf[start, end), between a pointer to its end and one to its beginning. */
export function applyUndoAppend(page: Uint8Array, buf: Uint8Array, start: number, end: number): Misfit {
  const length = end - start
  const free = read2(page, TRX_UNDO_PAGE_FREE)
  if (free < TRX_UNDO_PAGE_HDR + TRX_UNDO_PAGE_HDR_SIZE)
    return 'undo page header: first free byte is impossible'
  if (free + length + 6 >= page.length - FIL_PAGE_DATA_END) return 'undo record does not fit'
  write2(page, TRX_UNDO_PAGE_FREE, free + 4 + length)
  write2(page, free, free + 4 + length)
  copyInto(page, free + 2, buf, start, end)
  write2(page, free + 2 + length, free)
  return undefined
}
