/** What every message's encoder and decoder look like, and the checks that several of them share. */
import type { ByteReader, ByteWriter } from './cursor.ts'
import { InvalidIdError, type Lsn } from './ids.ts'
import type { MessageType } from './message-types.ts'

export interface AnyMessage {
  readonly type: MessageType
}

/**
 * none: the frame must not have a bulk. plain: one checksum over the whole. sectioned: the head lists the sections
 * with a checksum each.
 */
export type BulkKind = 'none' | 'plain' | 'sectioned'

/** One section of a sectioned bulk: its place in the bulk and the CRC-32C that the head gives for it. */
export type SectionVisitor = (offset: number, bytes: number, crc: number) => void

export interface Codec<M extends AnyMessage> {
  readonly type: M['type']
  readonly name: string
  readonly bulk: BulkKind
  encode(w: ByteWriter, message: M): void
  /** Reads the fields; the caller checks that nothing is left over. Throws MalformedError. */
  decode(r: ByteReader): M
  /** Only for sectioned messages. */
  sections?(message: M, visit: SectionVisitor): void
}

/** Longest message of an error or a status, in bytes of UTF-8. */
export const TEXT_BYTES_MAX = 4096
export const PATH_BYTES_MAX = 1024

/** The same check for a field that may be empty. */
export function orEmpty(check: (text: string) => unknown): (text: string) => void {
  return text => {
    if (text !== '') check(text)
  }
}

/** A stretch of the log has at least one LSN in it. */
export function checkStretch(r: ByteReader, { fromLsn, toLsn }: { fromLsn: Lsn; toLsn: Lsn }): void {
  if (toLsn <= fromLsn) r.fail(`toLsn ${toLsn} is not above fromLsn ${fromLsn}`)
}

const PRINTABLE_NAME = /^[\x21-\x7e]{1,128}$/

/** The name that a writer or consumer of a log gives itself: 1 to 128 printable ASCII characters without spaces. */
export function checkPeerName(text: string): string {
  if (!PRINTABLE_NAME.test(text))
    throw new InvalidIdError(
      `name ${JSON.stringify(text)} is not 1 to 128 printable ASCII characters without spaces`,
    )
  return text
}

/**
 * A path of a file below the datadir: relative, `/` between components, none of them empty, `.` or `..`, no control
 * characters and no backslash. Checked at both ends, since the receiver will make a file of that name.
 */
export function checkRelativePath(text: string): string {
  const fail = (why: string): never => {
    throw new InvalidIdError(`file path ${JSON.stringify(text)} ${why}`)
  }
  if (text.length === 0 || Buffer.byteLength(text) > PATH_BYTES_MAX)
    fail(`is empty or longer than ${PATH_BYTES_MAX} bytes`)
  for (let i = 0; i < text.length; i++) {
    const c = text.charCodeAt(i)
    if (c < 0x20 || c === 0x7f || c === 0x5c) fail('contains a control character or a backslash')
  }
  for (const component of text.split('/')) {
    if (component === '' || component === '.' || component === '..')
      fail('has an empty, "." or ".." component; it must be relative to the datadir')
  }
  return text
}
