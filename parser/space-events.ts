/**
 * What the redo log says about tablespaces as wholes: files created, deleted, renamed and touched, undo tablespaces
 * truncated, sizes and flags changed.
 *
 * Follows log0recv.cc (`log_parse_file`, `fil_name_process`, and in `parse_tail` TRIM_PAGES and `parse_page0`) and
 * fil0fil.cc (`mtr_t::log_file_op`). File names come from outside and are checked here, once: what leaves this file
 * can be joined to a directory.
 */
import type { Lsn } from '../protocol/ids.ts'
import { CorruptRedoError } from './corrupt-redo-error.ts'
import { readLsn64 } from './log-file.ts'
import { ExtendedSubtype, type RecordCursor, RecordType } from './record-decoder.ts'

/** A tablespace file's name as it stands in the log. */
export interface SpaceFileName {
  /**
   * `db/table.ibd` in InnoDB's file-name encoding, without a leading `./`: two components, neither `.` nor `..`. If
   * `external`, the absolute path as the server wrote it, which is never to be opened on the word of the log.
   */
  readonly name: string
  /** A table with a DATA DIRECTORY of its own, or a datadir given as an absolute path. */
  readonly external: boolean
}

interface EventBase {
  /** End of the mini-transaction that holds it. */
  readonly lsn: Lsn
}
/** A file came into being (`create`), is named as one being changed (`modify`), or is gone (`delete`). */
export interface FileEvent extends EventBase, SpaceFileName {
  readonly kind: 'create' | 'modify' | 'delete'
  readonly space: number
}
export interface RenameEvent extends EventBase, SpaceFileName {
  readonly kind: 'rename'
  readonly space: number
  readonly newName: string
  readonly newExternal: boolean
}
/** The file now ends at `pages` pages; whatever the log says of any page of it at earlier LSNs is void. */
export interface TrimEvent extends EventBase {
  readonly kind: 'trim'
  readonly space: number
  readonly pages: number
}
/** FSP_SIZE in page 0 was written: the tablespace has this many pages. */
export interface SizeEvent extends EventBase {
  readonly kind: 'size'
  readonly space: number
  readonly pages: number
}
/** FSP_SPACE_FLAGS in page 0 was written. */
export interface FlagsEvent extends EventBase {
  readonly kind: 'flags'
  readonly space: number
  readonly flags: number
}
/** The server made a checkpoint: every change up to `checkpointLsn` is in its data files. */
export interface CheckpointEvent extends EventBase {
  readonly kind: 'checkpoint'
  readonly checkpointLsn: Lsn
}
export type SpaceEvent = FileEvent | RenameEvent | TrimEvent | SizeEvent | FlagsEvent | CheckpointEvent

/** FSP_HEADER_OFFSET + FSP_SIZE and + FSP_SPACE_FLAGS (fsp0types.h): 4 bytes each, in page 0. */
export const FSP_SIZE_OFFSET = 38 + 8
export const FSP_FLAGS_OFFSET = 38 + 16

/** `FN_REFLEN`: names beyond this cannot be opened by a server. */
const NAME_BYTES_MAX = 512
const EXTERNAL_NAME_BYTES_MAX = 4000

const utf8 = new TextDecoder('utf-8', { fatal: true })

/**
 * Whether `collectSpaceEvents` would find anything in the record the cursor is at. The cheap question, for hot loops:
 * almost every record is a page record that neither trims nor writes to page 0.
 */
export function mayHoldSpaceEvent(cursor: RecordCursor): boolean {
  const type = cursor.type
  return (
    type >= RecordType.FILE_CREATE ||
    (type === RecordType.WRITE && cursor.page === 0) ||
    (type === RecordType.EXTENDED && cursor.subtype === ExtendedSubtype.TRIM_PAGES)
  )
}

/**
 * Appends to `events` what the record at the cursor means for the tablespace catalogue; nothing for most records.
 * `buf` is the buffer the cursor walks; `lsn` the end of its mini-transaction. Throws `CorruptRedoError` for names that
 * are not what InnoDB writes.
 *
 * InnoDB logs FSP_SIZE and FSP_SPACE_FLAGS always as a WRITE of all four bytes (`mtr_t::FORCED`), alone or within a
 * longer one; like its recovery we look at no other record.
 */
export function collectSpaceEvents(
  cursor: RecordCursor,
  buf: Uint8Array,
  lsn: Lsn,
  events: SpaceEvent[],
): void {
  const { type, space } = cursor
  switch (type) {
    case RecordType.WRITE: {
      if (cursor.page !== 0) return
      const from = cursor.pageOffset
      const to = from + cursor.pageLength
      if (from <= FSP_SIZE_OFFSET && to >= FSP_SIZE_OFFSET + 4)
        events.push({ kind: 'size', lsn, space, pages: u32(buf, cursor.dataStart + FSP_SIZE_OFFSET - from) })
      if (from <= FSP_FLAGS_OFFSET && to >= FSP_FLAGS_OFFSET + 4)
        events.push({
          kind: 'flags',
          lsn,
          space,
          flags: u32(buf, cursor.dataStart + FSP_FLAGS_OFFSET - from),
        })
      return
    }
    case RecordType.EXTENDED:
      if (cursor.subtype === ExtendedSubtype.TRIM_PAGES)
        events.push({ kind: 'trim', lsn, space, pages: cursor.page })
      return
    case RecordType.FILE_CREATE:
    case RecordType.FILE_MODIFY:
    case RecordType.FILE_DELETE: {
      const kind =
        type === RecordType.FILE_CREATE ? 'create' : type === RecordType.FILE_MODIFY ? 'modify' : 'delete'
      const { name, external } = readName(cursor, buf, cursor.payloadStart, cursor.recordEnd)
      events.push({ kind, lsn, space, name, external })
      return
    }
    case RecordType.FILE_RENAME: {
      // The cursor has made sure that there is exactly one NUL.
      const nul = buf.indexOf(0, cursor.payloadStart)
      const { name, external } = readName(cursor, buf, cursor.payloadStart, nul)
      const target = readName(cursor, buf, nul + 1, cursor.recordEnd)
      events.push({
        kind: 'rename',
        lsn,
        space,
        name,
        external,
        newName: target.name,
        newExternal: target.external,
      })
      return
    }
    case RecordType.FILE_CHECKPOINT: {
      if (cursor.recordEnd - cursor.payloadStart !== 8) return
      const checkpointLsn = readLsn64(buf, cursor.payloadStart)
      if (checkpointLsn < 0) throw new CorruptRedoError('a checkpoint LSN beyond 2^53-1', cursor.recordStart)
      // Eight NULs are padding.
      if (checkpointLsn > 0) events.push({ kind: 'checkpoint', lsn, checkpointLsn: checkpointLsn as Lsn })
    }
  }
}

function u32(buf: Uint8Array, at: number): number {
  return ((buf[at]! << 24) | (buf[at + 1]! << 16) | (buf[at + 2]! << 8) | buf[at + 3]!) >>> 0
}

function readName(cursor: RecordCursor, buf: Uint8Array, start: number, end: number): SpaceFileName {
  const checked = checkSpaceFileName(buf, start, end)
  if (typeof checked === 'string') throw new CorruptRedoError(checked, cursor.recordStart)
  return checked
}

/** The name in `buf[start, end)`, or why it is refused. */
export function checkSpaceFileName(buf: Uint8Array, start: number, end: number): SpaceFileName | string {
  const external = buf[start] === 0x2f
  const bytes = end - start
  if (bytes > (external ? EXTERNAL_NAME_BYTES_MAX : NAME_BYTES_MAX)) return `a file name of ${bytes} bytes`
  for (let i = start; i < end; i++) {
    const c = buf[i]!
    if (c < 0x20 || c === 0x7f || c === 0x5c) return 'a control character or backslash in a file name'
  }
  let name: string
  try {
    // A copy, because TextDecoder takes no view of shared memory.
    const copy = new Uint8Array(bytes)
    copy.set(buf.subarray(start, end))
    name = utf8.decode(copy)
  } catch {
    return 'a file name that is not UTF-8'
  }
  if (!name.endsWith('.ibd')) return 'a file name that does not end in .ibd'
  if (external) return { name, external }
  if (name.startsWith('./')) name = name.slice(2)
  const parts = name.split('/')
  if (parts.length !== 2) return `a relative file name of ${parts.length} components instead of two`
  const [directory, file] = parts
  if (directory === '' || directory === '.' || directory === '..' || file === '.ibd')
    return 'a relative file name that is not db/table.ibd'
  return { name, external }
}
