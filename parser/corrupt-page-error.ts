import { formatPageId, type Lsn, type PageId } from '../protocol/ids.ts'

/**
 * A page and its redo do not belong together: the page is not what it was when the record was written, or its checksum
 * after a mini-transaction is not the one that the log gives. The redo itself is well-formed, so the page's base or an
 * earlier record is lost or damaged; the way on is to fetch the page from another copy, or to import it anew.
 */
export class CorruptPageError extends Error {
  override name = 'CorruptPageError'
  /** Undefined where only a name could be given: a page too damaged to know its tablespace. */
  readonly page: PageId | undefined
  /** End LSN of the mini-transaction that did not fit; undefined where a page alone is damaged. */
  readonly lsn: Lsn | undefined
  readonly reason: string

  /** `page`: its id, or failing that words that identify it. */
  constructor(page: PageId | string, lsn: Lsn | undefined, reason: string) {
    const name = typeof page === 'string' ? page : formatPageId(page)
    super(`corrupt page ${name}${lsn === undefined ? '' : ` at LSN ${lsn}`}: ${reason}`)
    this.page = typeof page === 'string' ? undefined : page
    this.lsn = lsn
    this.reason = reason
  }
}
