/**
 * The identities that everything else speaks of: log sequence numbers, timelines, pages.
 *
 * An LSN is InnoDB's: the byte offset of a position in the redo log since the instance was created.
 * On the wire it has 64 bits; in memory it is a number, which is exact up to 2^53 - 1 (nine petabytes of redo).
 * Decoding refuses what exceeds that; it never rounds.
 */
declare const lsnBrand: unique symbol
declare const timelineBrand: unique symbol
declare const epochBrand: unique symbol

export type Lsn = number & { readonly [lsnBrand]: true }
/** 32 lower-case hexadecimal digits: 128 random bits. */
export type TimelineId = string & { readonly [timelineBrand]: true }
/** Number of the writer that may append to a timeline; grows by one with each new writer. */
export type WriterEpoch = number & { readonly [epochBrand]: true }

export const LSN_ZERO = 0 as Lsn
export const LSN_MAX = Number.MAX_SAFE_INTEGER as Lsn

/** Largest tablespace id that InnoDB gives out to a persistent tablespace (`SRV_SPACE_ID_UPPER_BOUND`, fil0fil.h). */
export const SPACE_ID_MAX = 0xfffffff0

/** A value that came from outside and is not what it claims to be. The message names the value and the field. */
export class InvalidIdError extends Error {
  override name = 'InvalidIdError'
}

export function toLsn(value: number | bigint, what = 'LSN'): Lsn {
  if (typeof value === 'bigint') {
    if (value < 0n || value > BigInt(LSN_MAX))
      throw new InvalidIdError(`${what} ${value} is outside 0..2^53-1`)
    return Number(value) as Lsn
  }
  if (!Number.isSafeInteger(value) || value < 0)
    throw new InvalidIdError(`${what} ${value} is not a whole number in 0..2^53-1`)
  return value as Lsn
}

/** Parses what a person typed: decimal digits only. */
export function parseLsn(text: string, what = 'LSN'): Lsn {
  if (!/^[0-9]{1,19}$/.test(text)) throw new InvalidIdError(`${what} "${text}" is not a decimal number`)
  return toLsn(BigInt(text), what)
}

export function addLsn(lsn: Lsn, bytes: number): Lsn {
  return toLsn(lsn + bytes)
}

const TIMELINE_ID = /^[0-9a-f]{32}$/

export function toTimelineId(text: string): TimelineId {
  if (!TIMELINE_ID.test(text)) throw new InvalidIdError(`timeline id "${text}" is not 32 hexadecimal digits`)
  return text as TimelineId
}

const TIMELINE_NAME = /^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$/

/** A timeline's name: 1 to 63 of letters, digits, `_`, `.`, `-`, beginning with a letter or digit. */
export function checkTimelineName(text: string): string {
  if (!TIMELINE_NAME.test(text) || TIMELINE_ID.test(text))
    throw new InvalidIdError(
      `timeline name "${text}" must be 1 to 63 letters, digits, "_", "." or "-", and not look like a timeline id`,
    )
  return text
}

export function toWriterEpoch(value: number): WriterEpoch {
  if (!Number.isSafeInteger(value) || value < 0)
    throw new InvalidIdError(`writer epoch ${value} is not a whole number`)
  return value as WriterEpoch
}

/** Which page: tablespace id and page number, both unsigned 32-bit. */
export interface PageId {
  readonly space: number
  readonly page: number
}

export function formatPageId(id: PageId): string {
  return `${id.space}:${id.page}`
}
