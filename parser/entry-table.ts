/**
 * The entries of a chunk in the order of the log, and the quick way to find them in one mini-transaction.
 *
 * `PlainMtrScan` does in one loop over local variables what `RecordCursor` does record by record, for the records that
 * make up nearly all of a log. It accepts only what is plainly right. At anything else (file records, TRIM_PAGES, size
 * and flags in page 0, and whatever looks wrong) it gives up on the mini-transaction without a verdict,
 * and the caller takes the way through the cursor, which is the law. So this file can be slow-witted but must never be
 * lenient: test/fuzz/redo-fuzz.ts holds the two against each other.
 */
import { decodeVarint, ExtendedSubtype, MTR_BYTES_MAX, RecordType, varintBytes } from './record-decoder.ts'
import { FSP_FLAGS_OFFSET, FSP_SIZE_OFFSET } from './space-events.ts'

export const EntryFlag = {
  /** The entry begins with INIT_PAGE: it needs no older version of the page. */
  INIT_PAGE: 1,
  /** The entry begins with FREE_PAGE: the page has no defined content from here on. */
  FREE_PAGE: 2,
} as const

/** What a row of an EntryTable has, 32-bit words. */
export const ENTRY_WORDS = 4
export const EntryWord = {
  /** Position of the first record in the chunk. */
  START: 0,
  /** Length in bytes << 2 | EntryFlag, as ranges and layers have it in a varint. */
  LENGTH_FLAGS: 1,
  /** As the table is filled. */
  SPACE: 2,
  PAGE: 3,
  /** In the same place, once the mini-transaction is known to be whole: row of the page, end of the mini-transaction. */
  PAGE_ROW: 2,
  LSN: 3,
} as const

/** Rows of four words, one after the other; `count` of them are in use. */
export class EntryTable {
  count = 0
  capacity = 4096
  words = new Uint32Array(ENTRY_WORDS * 4096)

  /** Doubles the room; `words` is another array afterwards. */
  grow(): void {
    this.capacity *= 2
    const words = new Uint32Array(ENTRY_WORDS * this.capacity)
    words.set(this.words)
    this.words = words
  }

  /** Appends the entry of bytes [start, end) of the chunk. */
  add(start: number, end: number, space: number, page: number, flags: number): void {
    if (this.count === this.capacity) this.grow()
    const { words } = this
    const at = ENTRY_WORDS * this.count++
    words[at + EntryWord.START] = start
    words[at + EntryWord.LENGTH_FLAGS] = ((end - start) << 2) | flags
    words[at + EntryWord.SPACE] = space
    words[at + EntryWord.PAGE] = page
  }
}

const FIL_PAGE_TYPE = 24
const FIRST_WRITABLE_OFFSET = 8

export class PlainMtrScan {
  /** Records of the mini-transaction that `scan` accepted last. */
  records = 0
  readonly #table: EntryTable
  readonly #pageBytesMax: number

  constructor(table: EntryTable, pageBytesMax: number) {
    this.#table = table
    this.#pageBytesMax = pageBytesMax
  }

  /**
   * Appends the entries of the mini-transaction that begins at `buf[start]` to the table and returns the position of its
   * terminator; or -1, with the table as it was, where this way is too simple. Looks at nothing from `end` on. The
   * checksum is for the caller, who takes the entries back (`table.count`) if it is wrong.
   */
  scan(buf: Uint8Array, start: number, end: number): number {
    const table = this.#table
    const before = table.count
    const terminator = this.#scan(buf, start, Math.min(end, start + MTR_BYTES_MAX))
    if (terminator < 0) table.count = before
    return terminator
  }

  #scan(buf: Uint8Array, start: number, limit: number): number {
    const table = this.#table
    const pageBytesMax = this.#pageBytesMax
    let records = 0
    let pos = start
    // The entry under construction, and its page; last: as RecordCursor's #lastOffset, -1 after FREE_PAGE.
    let open = false
    let entryStart = 0
    let flags = 0
    let space = 0
    let page = 0
    let last = 0
    for (;;) {
      if (pos >= limit) return -1
      const recordStart = pos
      const first = buf[pos++]!
      if (first <= 1) break
      let recordEnd = pos + (first & 0x0f)
      if (recordEnd === pos) {
        if (pos + 3 > limit) return -1
        const b = buf[pos]!
        if (b < 0x80) {
          recordEnd = pos + 15 + b
          pos++
        } else if (b < 0xc0) {
          recordEnd = pos + 15 + 128 + (((b & 0x3f) << 8) | buf[pos + 1]!)
          pos += 2
        } else return -1
      }
      // Two bytes at least must follow a page id, so that no look below goes beyond the chunk.
      if (recordEnd > limit || recordEnd - recordStart > pageBytesMax) return -1
      const type = first & 0x70
      if (first >= 0x80) {
        if (!open || type <= RecordType.INIT_PAGE) return -1
      } else {
        last = 0
        let nextSpace = buf[pos]!
        if (nextSpace < 0x80) pos++
        else {
          const bytes = varintBytes(nextSpace)
          if (bytes > 5 || pos + bytes >= recordEnd) return -1
          nextSpace = decodeVarint(buf, pos)
          if (nextSpace < 0) return -1
          pos += bytes
        }
        if (pos >= recordEnd) return -1
        let nextPage = buf[pos]!
        if (nextPage < 0x80) pos++
        else {
          const bytes = varintBytes(nextPage)
          if (bytes > 5 || pos + bytes > recordEnd) return -1
          nextPage = decodeVarint(buf, pos)
          if (nextPage < 0) return -1
          pos += bytes
        }
        if (!open || nextPage !== page || nextSpace !== space || type <= RecordType.INIT_PAGE) {
          if (open) table.add(entryStart, recordStart, space, page, flags)
          flags =
            type === RecordType.INIT_PAGE
              ? EntryFlag.INIT_PAGE
              : type === RecordType.FREE_PAGE
                ? EntryFlag.FREE_PAGE
                : 0
          entryStart = recordStart
          open = true
          space = nextSpace
          page = nextPage
        }
      }

      if (type === RecordType.EXTENDED) {
        if (pos >= recordEnd || last < 0 || buf[pos]! >= ExtendedSubtype.TRIM_PAGES) return -1
        last = FIL_PAGE_TYPE
      } else if (type === RecordType.WRITE || type === RecordType.MEMSET || type === RecordType.MEMMOVE) {
        if (pos >= recordEnd || last < 0) return -1
        let offset = buf[pos++]!
        if (offset >= 0x80) {
          if (offset >= 0xc0 || pos >= recordEnd) return -1
          offset = 128 + (((offset & 0x3f) << 8) | buf[pos++]!)
        }
        offset += last
        if (pos >= recordEnd || offset < FIRST_WRITABLE_OFFSET) return -1
        let length: number
        if (type === RecordType.WRITE) {
          length = recordEnd - pos
          // A tablespace's size or flags: an event.
          if (page === 0 && offset <= FSP_FLAGS_OFFSET && offset + length >= FSP_SIZE_OFFSET + 4) return -1
        } else {
          length = buf[pos++]!
          if (length >= 0x80) {
            if (length >= 0xc0 || pos >= recordEnd) return -1
            length = 128 + (((length & 0x3f) << 8) | buf[pos++]!)
          }
          if (pos >= recordEnd) return -1
          if (type === RecordType.MEMSET) {
            if (recordEnd - pos > length) return -1
          } else {
            let code = buf[pos++]!
            if (code >= 0x80) {
              if (code >= 0xc0 || pos >= recordEnd) return -1
              code = 128 + (((code & 0x3f) << 8) | buf[pos++]!)
            }
            if (pos !== recordEnd) return -1
            const source = code & 1 ? offset - (code >>> 1) - 1 : offset + (code >>> 1) + 1
            if (source < FIRST_WRITABLE_OFFSET || source + length > pageBytesMax) return -1
          }
        }
        last = offset + length
        if (offset >= pageBytesMax || last > pageBytesMax) return -1
      } else if (type === RecordType.INIT_PAGE) {
        if (pos !== recordEnd) return -1
        last = FIL_PAGE_TYPE
      } else if (type === RecordType.FREE_PAGE) {
        if (pos !== recordEnd) return -1
        last = -1
      } else if (type !== RecordType.OPTION) return -1
      records++
      pos = recordEnd
    }
    if (!open) return -1
    table.add(entryStart, pos - 1, space, page, flags)
    this.records = records
    return pos - 1
  }
}
