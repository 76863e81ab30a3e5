/**
 * Notices in the redo that a tablespace is to be encrypted: CREATE or ALTER TABLE … ENCRYPTED=YES, innodb_encrypt_tables.
 *
 * Redo is not encrypted with the pages, so it could be followed as if nothing had happened. But files can then no longer be
 * read (a repair, a restart of the agent, verify), and an export would hold in plain text what its owner wanted encrypted.
 *
 * The first sign is always the encryption information in page 0 (fil_space_crypt_t::write_page0, fil0crypt.cc): two
 * records of one mini-transaction, the magic (6 bytes) and then type (1), 16, IV (16), minimal key version (4), key id (4),
 * encryption (1). Searching for the magic costs next to nothing. It is written once, so a tablespace that has the
 * information already, but is not encrypted (ENCRYPTED=NO), is kept in mind for others to look at.
 */
import { MTR_TRAILER_BYTES, MtrScanner, ScanResult } from '../../parser/mtr-scanner.ts'
import { RecordCursor, RecordType } from '../../parser/record-decoder.ts'
import type { Lsn } from '../../protocol/ids.ts'
import { invalidError, type PalimpsestError } from '../shared/errors.ts'

const MAGIC = Buffer.from([0x73, 0x0e, 0x0c, 0x52, 0x45, 0x74])
const INFORMATION_BYTES = 27
const TYPE_UNENCRYPTED = 0

export interface EncryptionBegun {
  readonly space: number
  /** Offset in the chunk of the mini-transaction that says so. */
  readonly at: number
}

export class EncryptionWatch {
  readonly #scanner = new MtrScanner()
  readonly #cursor = new RecordCursor()
  /** Tablespaces that could be encrypted without another word in the log. */
  readonly prepared = new Set<number>()

  /** @param bytes whole mini-transactions; @returns the first tablespace that is to be encrypted */
  inspect(bytes: Uint8Array, beginLsn: Lsn): EncryptionBegun | undefined {
    const buffer = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length)
    let start = 0
    for (let hit = buffer.indexOf(MAGIC); hit >= 0; hit = buffer.indexOf(MAGIC, hit + 1)) {
      if (hit < start) continue
      // Which mini-transaction is it in?
      let end = start
      while (end <= hit) {
        start = end
        const lsn = (beginLsn + start) as Lsn
        if (this.#scanner.scan(bytes, start, bytes.length, lsn, null) !== ScanResult.COMPLETE)
          return undefined
        end = this.#scanner.mtrEnd
      }
      const space = this.#encrypted(bytes, start, end, hit)
      if (space !== undefined) return { space, at: start }
      start = end
    }
    return undefined
  }

  #encrypted(bytes: Uint8Array, start: number, end: number, magicAt: number): number | undefined {
    const cursor = this.#cursor
    cursor.reset(bytes, start, end - MTR_TRAILER_BYTES)
    let space: number | undefined
    let offset = -1
    while (cursor.next()) {
      if (cursor.type !== RecordType.WRITE || cursor.page !== 0) continue
      const { dataStart, pageOffset, pageLength } = cursor
      if (magicAt >= dataStart && magicAt + MAGIC.length <= dataStart + pageLength) {
        space = cursor.space
        offset = pageOffset + (magicAt - dataStart) + MAGIC.length
        // Both in one record.
        if (pageOffset + pageLength < offset + INFORMATION_BYTES) continue
      }
      if (space === undefined || cursor.space !== space) continue
      const at = dataStart + (offset - pageOffset)
      if (at < dataStart || at + INFORMATION_BYTES > dataStart + pageLength) continue
      if (bytes[at] !== TYPE_UNENCRYPTED) return space
      this.prepared.add(space)
      return undefined
    }
    return undefined
  }
}

/** Says which tablespace it is, and what to do. */
export function encryptionError(space: number, name: string, lsn: Lsn): PalimpsestError {
  return invalidError(
    `tablespace ${space} (${name}) is encrypted from LSN ${lsn} on (ENCRYPTED=YES or innodb_encrypt_tables), which is not supported: ` +
      'its files could not be read any more, and an export would hold it unencrypted. The timeline can be read up to there. ' +
      'To go on, switch encryption off, wait until INFORMATION_SCHEMA.INNODB_TABLESPACES_ENCRYPTION shows MIN_KEY_VERSION 0, and attach with a new timeline',
    lsn,
  )
}
