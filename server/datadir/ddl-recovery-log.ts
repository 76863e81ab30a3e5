/**
 * A ddl_recovery.log that has the server finish a schema change when it starts, before anybody connects: renames and
 * deletions of tables within InnoDB (sql/ddl_log.cc; the format is the same in 10.6 to 11.x).
 *
 * Blocks of 4096 bytes, little-endian. Block 0: magic (4), block size (2), place of the names in a block (2), 0. Every
 * other block is an entry: type (1), action (1), phase (1), 0, next entry (4), flags (2), XID (8), UUID (16), id (8), and
 * from the place of the names on eight strings, each length (2), bytes, 0: handler, db, name, from handler, from db, from
 * name, tmp name, extra name. An entry of type 1 leads to the first action to carry out, each action (type 2) to the next.
 */

export interface DdlAction {
  readonly kind: 'delete' | 'rename'
  /** `db/table` as a file name without extension. */
  readonly name: string
  /** The new name, of a rename. */
  readonly newName?: string
}

const MAGIC = Buffer.from([0xfe, 0xfe, 0x0b, 0x02])
const BLOCK_BYTES = 4096
const NAMES_AT = 56
const EXECUTE = 1
const ACTION = 2
const ACTION_DELETE = 1
const ACTION_RENAME = 2
const HANDLER = 'InnoDB'

/** @param actions in the order in which they are to be done; each stands alone, so that one that fails stops no other */
export function makeDdlRecoveryLog(actions: readonly DdlAction[]): Buffer {
  const log = Buffer.alloc((1 + 2 * actions.length) * BLOCK_BYTES)
  MAGIC.copy(log, 0)
  log.writeUInt16LE(BLOCK_BYTES, 4)
  log.writeUInt16LE(NAMES_AT, 6)
  actions.forEach((action, i) => {
    const execute = log.subarray((1 + 2 * i) * BLOCK_BYTES, (2 + 2 * i) * BLOCK_BYTES)
    execute[0] = EXECUTE
    execute.writeUInt32LE(2 + 2 * i, 4)
    writeNames(execute, [])
    const entry = log.subarray((2 + 2 * i) * BLOCK_BYTES, (3 + 2 * i) * BLOCK_BYTES)
    entry[0] = ACTION
    entry[1] = action.kind === 'delete' ? ACTION_DELETE : ACTION_RENAME
    const from = `./${action.name}`
    writeNames(
      entry,
      action.kind === 'delete' ? [HANDLER, '', from] : [HANDLER, '', `./${action.newName}`, '', '', from],
    )
  })
  return log
}

function writeNames(block: Buffer, names: readonly string[]): void {
  let at = NAMES_AT
  for (let i = 0; i < 8; i++) {
    const bytes = Buffer.from(names[i] ?? '')
    block.writeUInt16LE(bytes.length, at)
    bytes.copy(block, at + 2)
    at += 3 + bytes.length
  }
}
