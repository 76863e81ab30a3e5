/** Messages that read pages: GetPages and its answer, a page's history, the list of tablespaces. */
import type { Codec } from './codec.ts'
import type { Lsn, TimelineId } from './ids.ts'
import { MessageType } from './message-types.ts'

const TWO32 = 0x1_0000_0000
export const PAGE_BYTES_MAX = 65536
/** Longest tablespace or file name, in bytes. */
export const SPACE_NAME_BYTES_MAX = 4096

/**
 * Several pages as they were at one LSN. The server waits until `notModifiedSinceLsn` is ingested, never for `lsn`:
 * the caller promises that none of the pages changed in (notModifiedSinceLsn, lsn]. → one or more Pages, which
 * together have the pages in the order asked
 *
 *     timeline | u64 lsn (0: the newest ingested) | u64 notModifiedSinceLsn | u32 flags (0) | u32 count
 *     count × { u32 space | u32 page }
 */
export interface GetPages {
  readonly type: typeof MessageType.GetPages
  readonly timeline: TimelineId
  readonly lsn: Lsn
  readonly notModifiedSinceLsn: Lsn
  /** No bits are defined yet; a server refuses those it does not know. */
  readonly flags: number
  /** Pairs: space id, page number. */
  readonly pages: Uint32Array
}

export const GetPagesCodec: Codec<GetPages> = {
  type: MessageType.GetPages,
  name: 'GetPages',
  bulk: 'none',
  encode(w, m) {
    w.timeline(m.timeline)
    w.u64(m.lsn)
    w.u64(m.notModifiedSinceLsn)
    w.u32(m.flags)
    w.u32(m.pages.length >>> 1)
    w.words(m.pages, m.pages.length & ~1)
  },
  decode(r) {
    const timeline = r.timeline()
    const lsn = r.lsn()
    const notModifiedSinceLsn = r.lsn('notModifiedSinceLsn')
    const flags = r.u32('flags')
    const count = r.count('pages', 8)
    return {
      type: MessageType.GetPages,
      timeline,
      lsn,
      notModifiedSinceLsn,
      flags,
      pages: r.words(count * 2, 'pages'),
    }
  },
}

/** What became of one page of GetPages. Only OK has bytes. */
export const PageStatus = {
  OK: 0,
  /** No tablespace of that id existed at the LSN. */
  MISSING_SPACE: 1,
  /** The tablespace existed and was shorter. */
  BEYOND_END: 2,
  /** The page's content is not known: its redo begins after an import that did not have it. */
  UNKNOWN: 3,
  /** The page's stored image or records are damaged; the server's log says where. */
  CORRUPT: 4,
} as const
export type PageStatus = (typeof PageStatus)[keyof typeof PageStatus]
const PAGE_STATUS_MAX = 4

const FLAG_FREED = 1
const SECTION_WORDS = 8

/**
 * The sections of a Pages message in one typed array, laid out as on the wire, so that neither end makes an object for
 * each page. A section has 32 bytes:
 *
 *     u32 space | u32 page | u64 pageLsn | u32 bytes | u32 crc | u16 status | u16 flags (1: the page is free) | u32 0
 */
export class PageSections {
  readonly count: number
  /** 8 words a section: space, page, pageLsn low and high, bytes, crc, status + flags · 65536, 0. */
  readonly words: Uint32Array

  constructor(count: number, words: Uint32Array = new Uint32Array(count * SECTION_WORDS)) {
    this.count = count
    this.words = words
  }

  set(
    i: number,
    space: number,
    page: number,
    status: PageStatus,
    pageLsn: Lsn,
    bytes: number,
    crc: number,
    freed: boolean,
  ): void {
    const w = this.words
    const at = i * SECTION_WORDS
    w[at] = space
    w[at + 1] = page
    w[at + 2] = pageLsn >>> 0
    w[at + 3] = Math.floor(pageLsn / TWO32)
    w[at + 4] = bytes
    w[at + 5] = crc
    w[at + 6] = status | (freed ? FLAG_FREED << 16 : 0)
    w[at + 7] = 0
  }

  space(i: number): number {
    return this.words[i * SECTION_WORDS]!
  }

  page(i: number): number {
    return this.words[i * SECTION_WORDS + 1]!
  }

  /** FIL_PAGE_LSN, which is the end LSN of the mini-transaction that last changed the page. */
  pageLsn(i: number): Lsn {
    return (this.words[i * SECTION_WORDS + 2]! + this.words[i * SECTION_WORDS + 3]! * TWO32) as Lsn
  }

  /** Bytes of the page in the bulk: its physical size, or 0 unless the status is OK. */
  bytes(i: number): number {
    return this.words[i * SECTION_WORDS + 4]!
  }

  crc(i: number): number {
    return this.words[i * SECTION_WORDS + 5]!
  }

  status(i: number): PageStatus {
    return (this.words[i * SECTION_WORDS + 6]! & 0xffff) as PageStatus
  }

  /** InnoDB freed the page (FREE_PAGE) and nothing has used it since. */
  freed(i: number): boolean {
    return ((this.words[i * SECTION_WORDS + 6]! >>> 16) & FLAG_FREED) !== 0
  }
}

/**
 * Pages as they were at `lsn`. The bulk has the pages with bytes, one after the other in the order of the sections.
 *
 *     u64 lsn | u32 0 | u32 count | count × section (32 bytes, see PageSections)      bulk, sectioned: pages
 */
export interface Pages {
  readonly type: typeof MessageType.Pages
  /** The LSN asked for; the newest ingested one if that was 0. */
  readonly lsn: Lsn
  readonly sections: PageSections
}

export const PagesCodec: Codec<Pages> = {
  type: MessageType.Pages,
  name: 'Pages',
  bulk: 'sectioned',
  encode(w, m) {
    w.u64(m.lsn)
    w.u32(0)
    w.u32(m.sections.count)
    w.words(m.sections.words, m.sections.count * SECTION_WORDS)
  },
  decode(r) {
    const lsn = r.lsn()
    r.zeros(4)
    const count = r.count('sections', SECTION_WORDS * 4)
    const sections = new PageSections(count, r.words(count * SECTION_WORDS, 'sections'))
    const w = sections.words
    for (let at = 0; at < w.length; at += SECTION_WORDS) {
      const bytes = w[at + 4]!
      const status = w[at + 6]! & 0xffff
      if (w[at + 3]! > 0x1f_ffff) r.fail(`pageLsn of section ${at / SECTION_WORDS} exceeds 2^53-1`)
      if (status > PAGE_STATUS_MAX || w[at + 6]! >>> 16 > FLAG_FREED || w[at + 7] !== 0)
        r.fail(`status, flags or reserved field of section ${at / SECTION_WORDS} are unknown`)
      if (bytes > PAGE_BYTES_MAX || (bytes & 7) !== 0 || (bytes !== 0) !== (status === PageStatus.OK))
        r.fail(`section ${at / SECTION_WORDS} has ${bytes} bytes at status ${status}`)
    }
    return { type: MessageType.Pages, lsn, sections }
  },
  sections(m, visit) {
    let offset = 0
    for (let i = 0; i < m.sections.count; i++) {
      const bytes = m.sections.bytes(i)
      if (bytes !== 0) visit(offset, bytes, m.sections.crc(i))
      offset += bytes
    }
  },
}

/**
 * The changes of one page in (fromLsn, toLsn], newest first, at most `limit`. → one or more PageHistoryReply
 *
 *     timeline | u32 space | u32 page | u64 fromLsn | u64 toLsn (0: the newest ingested) | u32 limit
 */
export interface PageHistory {
  readonly type: typeof MessageType.PageHistory
  readonly timeline: TimelineId
  readonly space: number
  readonly page: number
  readonly fromLsn: Lsn
  readonly toLsn: Lsn
  readonly limit: number
}

export const PageHistoryCodec: Codec<PageHistory> = {
  type: MessageType.PageHistory,
  name: 'PageHistory',
  bulk: 'none',
  encode(w, m) {
    w.timeline(m.timeline)
    w.u32(m.space)
    w.u32(m.page)
    w.u64(m.fromLsn)
    w.u64(m.toLsn)
    w.u32(m.limit)
  },
  decode: r => ({
    type: MessageType.PageHistory,
    timeline: r.timeline(),
    space: r.u32('space'),
    page: r.u32('page'),
    fromLsn: r.lsn('fromLsn'),
    toLsn: r.lsn('toLsn'),
    limit: r.u32('limit'),
  }),
}

/** In the order of their numbers on the wire, which begin with 0. */
export const HISTORY_KINDS = ['records', 'image', 'trim'] as const
/** records: redo of one mini-transaction. image: the page as imported. trim: all before was made void (TRIM_PAGES). */
export type HistoryKind = (typeof HISTORY_KINDS)[number]

export interface HistoryEntry {
  /** End LSN of the mini-transaction, or FIL_PAGE_LSN of the image. */
  readonly lsn: Lsn
  readonly kind: HistoryKind
  /** Bytes of the records, or of the image. */
  readonly bytes: number
  /** How many records of each type. Type: first byte's type bits, plus 256 × subtype for EXTENDED and OPTION. */
  readonly recordTypes: readonly { readonly recordType: number; readonly count: number }[]
}

/**
 *     u32 count | count × { u64 lsn | u8 kind | u32 bytes | u32 types | types × { u16 recordType | u32 count } }
 *     u8 complete (0: there are older changes beyond the limit)
 */
export interface PageHistoryReply {
  readonly type: typeof MessageType.PageHistoryReply
  readonly entries: readonly HistoryEntry[]
  readonly complete: boolean
}

export const PageHistoryReplyCodec: Codec<PageHistoryReply> = {
  type: MessageType.PageHistoryReply,
  name: 'PageHistoryReply',
  bulk: 'none',
  encode(w, m) {
    w.u32(m.entries.length)
    for (const e of m.entries) {
      w.u64(e.lsn)
      w.u8(HISTORY_KINDS.indexOf(e.kind))
      w.u32(e.bytes)
      w.u32(e.recordTypes.length)
      for (const t of e.recordTypes) {
        w.u16(t.recordType)
        w.u32(t.count)
      }
    }
    w.bool(m.complete)
  },
  decode(r) {
    const entries = Array.from({ length: r.count('entries', 17) }, (): HistoryEntry => {
      const lsn = r.lsn()
      const number = r.u8('kind')
      const kind = HISTORY_KINDS[number] ?? r.fail(`history kind ${number} is unknown`)
      const bytes = r.u32('bytes')
      const recordTypes = Array.from({ length: r.count('record types', 6) }, () => ({
        recordType: r.u16('recordType'),
        count: r.u32('count'),
      }))
      return { lsn, kind, bytes, recordTypes }
    })
    return { type: MessageType.PageHistoryReply, entries, complete: r.bool('complete') }
  },
}

/** The tablespaces that existed at `lsn` (0: the newest ingested): `timeline | u64 lsn`. → one or more SpaceListReply */
export interface SpaceList {
  readonly type: typeof MessageType.SpaceList
  readonly timeline: TimelineId
  readonly lsn: Lsn
}

export const SpaceListCodec: Codec<SpaceList> = {
  type: MessageType.SpaceList,
  name: 'SpaceList',
  bulk: 'none',
  encode(w, m) {
    w.timeline(m.timeline)
    w.u64(m.lsn)
  },
  decode: r => ({ type: MessageType.SpaceList, timeline: r.timeline(), lsn: r.lsn() }),
}

export interface SpaceItem {
  readonly space: number
  /** FSP_SPACE_FLAGS. */
  readonly flags: number
  /** Size in pages. */
  readonly pages: number
  /** The file lies outside the datadir (DATA DIRECTORY). */
  readonly external: boolean
  /** The file's path as in the redo log's file records, e.g. `./test/t1.ibd`. Whoever makes files of it checks it. */
  readonly name: string
}

/** `u64 lsn | u32 count | count × { u32 space | u32 flags | u32 pages | u8 external | string name }`. */
export interface SpaceListReply {
  readonly type: typeof MessageType.SpaceListReply
  readonly lsn: Lsn
  readonly spaces: readonly SpaceItem[]
}

export const SpaceListReplyCodec: Codec<SpaceListReply> = {
  type: MessageType.SpaceListReply,
  name: 'SpaceListReply',
  bulk: 'none',
  encode(w, m) {
    w.u64(m.lsn)
    w.u32(m.spaces.length)
    for (const s of m.spaces) {
      w.u32(s.space)
      w.u32(s.flags)
      w.u32(s.pages)
      w.bool(s.external)
      w.string(s.name, 'name', SPACE_NAME_BYTES_MAX)
    }
  },
  decode: r => ({
    type: MessageType.SpaceListReply,
    lsn: r.lsn(),
    spaces: Array.from({ length: r.count('spaces', 15) }, () => ({
      space: r.u32('space'),
      flags: r.u32('flags'),
      pages: r.u32('pages'),
      external: r.bool('external'),
      name: r.string('name', SPACE_NAME_BYTES_MAX),
    })),
  }),
}
