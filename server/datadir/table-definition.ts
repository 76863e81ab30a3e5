/**
 * What a table definition file (.frm) says of a table's shape, enough to tell whether it belongs to what InnoDB's
 * dictionary has: engine, columns, keys, partitions. Follows `init_from_binary_frm_image` and `create_key_infos`
 * (sql/table.cc), `create_handler_file` (sql/ha_partition.cc) for .par.
 */

export interface TableDefinition {
  /** Lower case: `innodb`, `aria`, …; of the partitions if it has any. */
  readonly engine: string
  readonly columns: readonly { readonly name: string; readonly typeCode: number; readonly bytes: number }[]
  readonly keys: readonly string[]
  /** The PARTITION BY clause; empty if there is none. */
  readonly partitioning: string
}

const FRM_HEADER_SIZE = 64
const FRM_FORMINFO_SIZE = 288
const EXTRA2_DEFAULT_PART_ENGINE = 1
const DB_TYPE_INNODB = 12
const DB_TYPE_PARTITION = 20
const FIELD_BYTES = 17
const KEY_BYTES = 8
const KEY_PART_BYTES = 9

/** @returns undefined for a view, or for what is no .frm of MariaDB 10 */
export function parseTableDefinition(frm: Buffer): TableDefinition | undefined {
  try {
    return parse(frm)
  } catch (error) {
    if (error instanceof RangeError) return undefined
    throw error
  }
}

/** @throws RangeError where the file is too short for what it says */
function parse(frm: Buffer): TableDefinition | undefined {
  if (frm.length < FRM_HEADER_SIZE + FRM_FORMINFO_SIZE || frm.readUInt16LE(0) !== 0x01fe) return undefined
  const extra2Bytes = frm.readUInt16LE(4)
  const forminfo = frm.readUInt32LE(FRM_HEADER_SIZE + extra2Bytes)
  const keyInfo = frm.readUInt16LE(6)
  const keyInfoBytes = frm.readUInt16LE(14) === 0xffff ? frm.readUInt32LE(47) : frm.readUInt16LE(14)
  const recordBytes = frm.readUInt16LE(16)

  let engine = frm[3] === DB_TYPE_INNODB ? 'innodb' : ''
  let partitioning = ''
  const extraBytes = frm.readUInt32LE(55)
  if (extraBytes > 0) {
    let at = keyInfo + keyInfoBytes + recordBytes
    const end = at + extraBytes
    at += 2 + frm.readUInt16LE(at)
    if (at + 2 < end) {
      const bytes = frm.readUInt16LE(at)
      engine = frm.toString('latin1', at + 2, at + 2 + bytes).toLowerCase()
      at += 2 + bytes
    }
    if (at + 5 < end) partitioning = frm.toString('utf8', at + 4, at + 4 + frm.readUInt32LE(at))
  }
  if (frm[3] === DB_TYPE_PARTITION || engine === 'partition')
    engine =
      frm[61] === DB_TYPE_INNODB
        ? 'innodb'
        : (extra2(frm, extra2Bytes, EXTRA2_DEFAULT_PART_ENGINE)?.toLowerCase() ?? '')

  const fieldCount = frm.readUInt16LE(forminfo + 258)
  const screenBytes = frm.readUInt16LE(forminfo + 260)
  const namesBytes = frm.readUInt16LE(forminfo + 268)
  const fields = forminfo + FRM_FORMINFO_SIZE + screenBytes
  const namesAt = fields + fieldCount * FIELD_BYTES
  const names = separated(frm.subarray(namesAt, namesAt + namesBytes))
  if (names.length !== fieldCount) return undefined
  const columns = names.map((name, i) => ({
    name,
    typeCode: frm.readUInt8(fields + i * FIELD_BYTES + 13),
    bytes: frm.readUInt16LE(fields + i * FIELD_BYTES + 3),
  }))
  return { engine, columns, keys: keyNames(frm, keyInfo), partitioning }
}

function keyNames(frm: Buffer, start: number): string[] {
  const first = frm.readUInt8(start)
  const keys = first & 0x80 ? (frm.readUInt8(start + 1) << 7) | (first & 0x7f) : first
  let at = start + 6
  for (let i = 0; i < keys; i++) at += KEY_BYTES + frm.readUInt8(at + 4) * KEY_PART_BYTES
  const end = frm.indexOf(0, at)
  return keys === 0 ? [] : separated(frm.subarray(at, end < 0 ? frm.length : end)).slice(0, keys)
}

/** Names as a "typelib": the separator, and then each name with the separator behind it. */
function separated(bytes: Buffer): string[] {
  const end = bytes.indexOf(0)
  const list = end < 0 ? bytes : bytes.subarray(0, end)
  if (list.length === 0) return []
  const separator = list[0]!
  const names: string[] = []
  for (let at = 1; at < list.length; ) {
    const to = list.indexOf(separator, at)
    if (to < 0) break
    names.push(list.toString('utf8', at, to))
    at = to + 1
  }
  return names
}

/** A value of the MariaDB segment: type (1), length (1, or 0 and then 2), value. */
function extra2(frm: Buffer, bytes: number, wanted: number): string | undefined {
  const end = FRM_HEADER_SIZE + bytes
  if (bytes <= 4 || frm[FRM_HEADER_SIZE] === 0x2f) return undefined
  for (let at = FRM_HEADER_SIZE; at + 3 < end; ) {
    const type = frm.readUInt8(at)
    let length = frm.readUInt8(at + 1)
    at += 2
    if (length === 0) {
      length = frm.readUInt16LE(at)
      at += 2
    }
    if (type === wanted) return frm.toString('utf8', at, at + length)
    at += length
  }
  return undefined
}

const PAR_WORD = 4

/** The partitions that a .par file names, as the files have them: `p0`, `p0#SP#s0`. @returns undefined if it is none */
export function parsePartitionNames(par: Buffer): string[] | undefined {
  if (par.length < 4 * PAR_WORD || par.readUInt32LE(0) * PAR_WORD > par.length) return undefined
  const count = par.readUInt32LE(2 * PAR_WORD)
  const at = 3 * PAR_WORD + Math.ceil(count / PAR_WORD) * PAR_WORD
  if (at + PAR_WORD > par.length) return undefined
  const names = par.toString('utf8', at + PAR_WORD, at + PAR_WORD + par.readUInt32LE(at)).split('\0')
  return names.slice(0, count)
}
