import type { Lsn } from '../protocol/ids.ts'

/**
 * Redo that no InnoDB of the supported versions can have written, or that was damaged since. Never skipped: whoever
 * ingests the log stops at this place.
 *
 * `offset` is in bytes from the start of the buffer that was being read. `lsn` is the LSN at which the damaged
 * mini-transaction begins; a reader that knows only bytes leaves it out, and its caller adds it with `withLsn`.
 */
export class CorruptRedoError extends Error {
  override name = 'CorruptRedoError'
  readonly reason: string
  readonly offset: number
  readonly lsn: Lsn | undefined

  constructor(reason: string, offset: number, lsn?: Lsn) {
    super(
      lsn === undefined
        ? `corrupt redo log: ${reason} (byte ${offset} of the buffer)`
        : `corrupt redo log at LSN ${lsn}: ${reason} (byte ${offset} of the buffer)`,
    )
    this.reason = reason
    this.offset = offset
    this.lsn = lsn
  }

  /** The same finding, now with the LSN of the mini-transaction it lies in. */
  withLsn(lsn: Lsn): CorruptRedoError {
    return new CorruptRedoError(this.reason, this.offset, lsn)
  }
}
