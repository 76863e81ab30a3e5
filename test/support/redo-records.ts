/** Page records for tests, encoded as InnoDB's writer does (mtr0log.h). */
import { ExtendedSubtype, encodeVarint, RecordType } from '../../parser/record-decoder.ts'

export function varint(value: number): number[] {
  const buf = new Uint8Array(5)
  return [...buf.subarray(0, encodeVarint(buf, 0, value))]
}

/** A record with its length. `id` is [space, page], or undefined for the page of the record before. */
export function record(
  type: number,
  id: readonly [number, number] | undefined,
  payload: readonly number[],
): number[] {
  const rest = [...(id ? [...varint(id[0]), ...varint(id[1])] : []), ...payload]
  const first = type | (id ? 0 : 0x80)
  if (rest.length >= 1 && rest.length <= 15) return [first | rest.length, ...rest]
  for (let lengthBytes = 1; lengthBytes <= 3; lengthBytes++) {
    const length = varint(rest.length + lengthBytes - 15)
    if (length.length === lengthBytes) return [first, ...length, ...rest]
  }
  throw new Error('record too long')
}

export type Id = readonly [number, number]

export const initPage = (id: Id): number[] => record(RecordType.INIT_PAGE, id, [])
export const freePage = (id: Id): number[] => record(RecordType.FREE_PAGE, id, [])
export const write = (id: Id | undefined, offset: number, bytes: readonly number[]): number[] =>
  record(RecordType.WRITE, id, [...varint(offset), ...bytes])
export const memset = (
  id: Id | undefined,
  offset: number,
  length: number,
  pattern: readonly number[],
): number[] => record(RecordType.MEMSET, id, [...varint(offset), ...varint(length), ...pattern])
/** `distance`: source minus target. */
export const memmove = (id: Id | undefined, offset: number, length: number, distance: number): number[] =>
  record(RecordType.MEMMOVE, id, [
    ...varint(offset),
    ...varint(length),
    ...varint(distance > 0 ? (distance - 1) << 1 : ((-distance - 1) << 1) | 1),
  ])
export const extended = (id: Id | undefined, subtype: number, payload: readonly number[] = []): number[] =>
  record(RecordType.EXTENDED, id, [subtype, ...payload])
export const optionChecksum = (id: Id, sum: number): number[] =>
  record(RecordType.OPTION, id, [0, sum >>> 24, (sum >>> 16) & 255, (sum >>> 8) & 255, sum & 255])

/** An insert into a COMPACT or DYNAMIC page that shares nothing with its predecessor. */
export function insertDynamic(
  id: Id | undefined,
  prev: number,
  header: readonly number[],
  data: readonly number[],
  reuseShift?: number,
): number[] {
  const subtype =
    reuseShift === undefined ? ExtendedSubtype.INSERT_HEAP_DYNAMIC : ExtendedSubtype.INSERT_REUSE_DYNAMIC
  return extended(id, subtype, [
    ...varint(prev),
    ...(reuseShift === undefined ? [] : varint(reuseShift < 0 ? (-reuseShift << 1) | 1 : reuseShift << 1)),
    ...varint(header.length << 3),
    ...varint(0),
    ...varint(0),
    ...header,
    ...data,
  ])
}

/** An insert into a REDUNDANT page of a record of one field, sharing nothing with its predecessor. */
export function insertRedundant(
  id: Id | undefined,
  prev: number,
  data: readonly number[],
  reuse = false,
): number[] {
  return extended(
    id,
    reuse ? ExtendedSubtype.INSERT_REUSE_REDUNDANT : ExtendedSubtype.INSERT_HEAP_REDUNDANT,
    [
      ...varint(prev),
      // One field (stored as 0), with one-byte field ends.
      ...varint(1 << 2),
      ...varint(0),
      ...varint(0),
      data.length,
      ...data,
    ],
  )
}

export const deleteDynamic = (
  id: Id | undefined,
  prev: number,
  headerSize: number,
  dataSize: number,
): number[] =>
  extended(id, ExtendedSubtype.DELETE_ROW_FORMAT_DYNAMIC, [
    ...varint(prev),
    ...varint(headerSize),
    ...varint(dataSize),
  ])
export const deleteRedundant = (id: Id | undefined, prev: number): number[] =>
  extended(id, ExtendedSubtype.DELETE_ROW_FORMAT_REDUNDANT, varint(prev))
