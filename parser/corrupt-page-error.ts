import { formatPageId, type Lsn, type PageId } from '../protocol/ids.ts'

/**
 * A page and its redo do not belong together: the page is not what it was when the record was written, or its checksum
 * after a mini-transaction is not the one that the log gives. The redo itself is well-formed, so the page's base or an
 * earlier record is lost or damaged; the way on is to fetch the page from another copy, or to import it anew.
 */
export class CorruptPageError extends Error {
  override name = 'CorruptPageError'
  readonly page: PageId
  /** End LSN of the mini-transaction that did not fit; undefined where a page alone is damaged. */
  readonly lsn: Lsn | undefined
  readonly reason: string

  constructor(page: PageId, lsn: Lsn | undefined, reason: string) {
    super(`corrupt page ${formatPageId(page)}${lsn === undefined ? '' : ` at LSN ${lsn}`}: ${reason}`)
    this.page = page
    this.lsn = lsn
    this.reason = reason
  }
}
