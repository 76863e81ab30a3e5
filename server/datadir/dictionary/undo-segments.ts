/** The undo segments in the pages of one LSN, as recovery finds them (trx0sys.h, trx0rseg.h, trx0undo.h). */
import { FIL_NULL, FIL_PAGE_DATA, read2, read4 } from '../../../parser/page-format.ts'

const TRX_SYS_PAGE = 5
const TRX_SYS_RSEGS = FIL_PAGE_DATA + 18
const RSEGS = 128
const TRX_RSEG_UNDO_SLOTS = FIL_PAGE_DATA + 34
const TRX_UNDO_STATE = FIL_PAGE_DATA + 18
const TRX_UNDO_LAST_LOG = TRX_UNDO_STATE + 2

export const UndoState = { ACTIVE: 1, PREPARED: 5 } as const

/** Reads pages of one tablespace at the LSN, in the order asked for. */
export type ReadPages = (space: number, pages: readonly number[]) => Promise<Uint8Array[]>

/** The header page of an undo segment. */
export interface UndoSegment {
  readonly space: number
  readonly page: number
  readonly bytes: Uint8Array
  readonly state: number
  /** Offset of the newest undo log's header; 0 if what stands there is none. */
  readonly log: number
}

export interface UndoSegments {
  /** Tablespace of each rollback segment; -1 where there is none. */
  readonly rsegSpaces: readonly number[]
  readonly segments: readonly UndoSegment[]
}

export async function readUndoSegments(read: ReadPages): Promise<UndoSegments> {
  const [trxSys] = await read(0, [TRX_SYS_PAGE])
  const rsegSpaces: number[] = []
  const headers = new Map<number, number[]>()
  for (let slot = 0; slot < RSEGS; slot++) {
    const at = TRX_SYS_RSEGS + slot * 8
    const space = read4(trxSys!, at)
    const page = read4(trxSys!, at + 4)
    rsegSpaces.push(page === FIL_NULL ? -1 : space)
    if (page !== FIL_NULL) headers.set(space, [...(headers.get(space) ?? []), page])
  }
  const segments: UndoSegment[] = []
  for (const [space, pages] of headers) {
    const numbers: number[] = []
    for (const page of await read(space, pages)) {
      const slots = page.length / 16
      for (let slot = 0; slot < slots; slot++) {
        const first = read4(page, TRX_RSEG_UNDO_SLOTS + slot * 4)
        if (first !== FIL_NULL) numbers.push(first)
      }
    }
    if (numbers.length === 0) continue
    for (const [i, bytes] of (await read(space, numbers)).entries()) {
      const log = read2(bytes, TRX_UNDO_LAST_LOG)
      segments.push({
        space,
        page: numbers[i]!,
        bytes,
        state: read2(bytes, TRX_UNDO_STATE),
        log: log + 8 <= bytes.length ? log : 0,
      })
    }
  }
  return { rsegSpaces, segments }
}

const TRX_UNDO_XID_EXISTS = 20
const TRX_UNDO_XA_TRID_LEN = 50
const TRX_UNDO_XA_BQUAL_LEN = 54
const TRX_UNDO_XA_XID = 58
const INTERNAL_XID_PREFIX = Buffer.from('MySQLXid')
/** Prefix, server id (4 or 8 bytes), number. */
const INTERNAL_XID_BYTES = [20, 24]

/**
 * Whether the segment's transaction is between its first and its second phase of a commit to InnoDB and the binary log,
 * and would be rolled back if the binary log were not there: the server itself calls it by an XID of its own making
 * (`XID::get_my_xid`, sql/handler.h). What XA PREPARE left is another matter, and stays prepared.
 */
export function isInternallyPrepared({ bytes, state, log }: UndoSegment): boolean {
  if (state !== UndoState.PREPARED || log === 0 || bytes[log + TRX_UNDO_XID_EXISTS] !== 1) return false
  const at = log + TRX_UNDO_XA_XID
  const length = read4(bytes, log + TRX_UNDO_XA_TRID_LEN)
  if (!INTERNAL_XID_BYTES.includes(length) || read4(bytes, log + TRX_UNDO_XA_BQUAL_LEN) !== 0) return false
  if (at + length > bytes.length) return false
  if (INTERNAL_XID_PREFIX.compare(bytes, at, at + INTERNAL_XID_PREFIX.length) !== 0) return false
  return bytes.subarray(at + length - 8, at + length).some(byte => byte !== 0)
}

/**
 * Takes a prepared transaction back to being unfinished, so that recovery rolls it back; it is what InnoDB itself writes
 * when it begins to (`trx_undo_set_state_at_prepare`, trx0undo.cc). The page needs a new checksum then.
 */
export function unprepare(page: Uint8Array): void {
  page[TRX_UNDO_STATE] = 0
  page[TRX_UNDO_STATE + 1] = UndoState.ACTIVE
}
