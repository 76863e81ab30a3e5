/**
 * Which transactions are unfinished in the pages of one LSN, and what a record was before they touched it: what
 * InnoDB's recovery makes of the dictionary when it rolls them back (trx0undo.cc, trx0rec.cc, trx0sys.h, trx0rseg.h).
 */
import { read2, read4 } from '../../../parser/page-format.ts'
import { BadDictionaryError, type Field, type RedundantRecord } from './redundant-page.ts'
import { type ReadPages, readUndoSegments, UndoState } from './undo-segments.ts'

const UPD_EXIST_REC = 12
const UPD_DEL_REC = 13
const DEL_MARK_REC = 14
const REC_INFO_DELETED = 0x20
const SQL_NULL = 0xffffffff
/** A chain of versions longer than this is none that one statement makes. */
const VERSIONS_MAX = 10_000

export class UndoVersions {
  readonly #read: ReadPages
  readonly #rsegSpaces: readonly number[]
  readonly #active: ReadonlySet<bigint>
  readonly #pages = new Map<string, Uint8Array>()

  private constructor(read: ReadPages, rsegSpaces: readonly number[], active: ReadonlySet<bigint>) {
    this.#read = read
    this.#rsegSpaces = rsegSpaces
    this.#active = active
  }

  static async open(read: ReadPages): Promise<UndoVersions> {
    const { rsegSpaces, segments } = await readUndoSegments(read)
    const active = new Set<bigint>()
    for (const { state, log, bytes } of segments)
      if ((state === UndoState.ACTIVE || state === UndoState.PREPARED) && log > 0)
        active.add(Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length).readBigUInt64BE(log))
    return new UndoVersions(read, rsegSpaces, active)
  }

  /** Transactions that recovery would roll back, or find prepared. */
  get active(): number {
    return this.#active.size
  }

  /**
   * The record as the last finished transaction left it; undefined if there was none.
   * @param trxField place of DB_TRX_ID among the fields; DB_ROLL_PTR follows it
   */
  async committed(record: RedundantRecord, trxField: number): Promise<RedundantRecord | undefined> {
    let { fields, deleted } = record
    for (let n = 0; n < VERSIONS_MAX; n++) {
      const trx = fields[trxField]
      const roll = fields[trxField + 1]
      if (trx?.length !== 6 || roll?.length !== 7)
        throw new BadDictionaryError('a record has no transaction id')
      if (!this.#active.has(BigInt(read6(trx)))) return deleted ? undefined : { fields, deleted }
      if (roll[0]! & 0x80) return undefined
      const older = await this.#older(fields, trxField, roll)
      fields = older.fields
      deleted = older.deleted
    }
    throw new BadDictionaryError('a record has too many versions')
  }

  async #older(fields: readonly Field[], trxField: number, roll: Uint8Array): Promise<RedundantRecord> {
    const space = this.#rsegSpaces[roll[0]! & 0x7f] ?? -1
    const number = read4(roll, 1)
    const offset = read2(roll, 5)
    if (space < 0) throw new BadDictionaryError(`rollback segment ${roll[0]! & 0x7f} does not exist`)
    const page = await this.#page(space, number)
    const end = read2(page, offset)
    const where = `undo record at ${offset} of page ${number} of tablespace ${space}`
    if (end <= offset + 4 || end > page.length) throw new BadDictionaryError(`${where} ends at ${end}`)
    const input = new UndoReader(page, offset + 2, end)
    const type = input.u8() & 15
    if (type !== UPD_EXIST_REC && type !== UPD_DEL_REC && type !== DEL_MARK_REC)
      throw new BadDictionaryError(`${where} is of type ${type}`)
    input.muchCompressed()
    input.muchCompressed()
    const info = input.u8()
    const trxId = Buffer.alloc(6)
    const [trxHigh, trxLow] = input.nextCompressed()
    trxId.writeUInt16BE(trxHigh & 0xffff, 0)
    trxId.writeUInt32BE(trxLow, 2)
    const rollPtr = Buffer.alloc(7)
    const [rollHigh, rollLow] = input.nextCompressed()
    rollPtr.writeUIntBE(rollHigh & 0xffffff, 0, 3)
    rollPtr.writeUInt32BE(rollLow, 3)
    for (let i = 0; i < trxField; i++) input.column()
    const previous: Field[] = [...fields]
    if (type !== DEL_MARK_REC) {
      for (let n = input.compressed(); n > 0; n--) {
        const field = input.compressed()
        const value = input.column()
        if (field >= previous.length) throw new BadDictionaryError(`${where} changes field ${field}`)
        previous[field] = value
      }
    }
    previous[trxField] = trxId
    previous[trxField + 1] = rollPtr
    return { fields: previous, deleted: (info & REC_INFO_DELETED) !== 0 }
  }

  async #page(space: number, number: number): Promise<Uint8Array> {
    const key = `${space}:${number}`
    let page = this.#pages.get(key)
    if (!page) {
      page = (await this.#read(space, [number]))[0]!
      this.#pages.set(key, page)
    }
    return page
  }
}

/** Compressed integers as in mach0data.inl. */
class UndoReader {
  readonly #page: Uint8Array
  readonly #end: number
  #at: number

  constructor(page: Uint8Array, start: number, end: number) {
    this.#page = page
    this.#at = start
    this.#end = end
  }

  #take(bytes: number): number {
    const at = this.#at
    this.#at += bytes
    if (this.#at > this.#end) throw new BadDictionaryError('an undo record is cut short')
    return at
  }

  u8(): number {
    return this.#page[this.#take(1)]!
  }

  compressed(): number {
    const first = this.#page[this.#take(1)]!
    if (first < 0x80) return first
    if (first < 0xc0) return ((first & 0x3f) << 8) | this.u8()
    if (first < 0xe0) return ((first & 0x1f) << 16) | read2(this.#page, this.#take(2))
    if (first < 0xf0) return ((first & 0x0f) << 24) | (this.u8() << 16) | read2(this.#page, this.#take(2))
    return read4(this.#page, this.#take(4))
  }

  muchCompressed(): void {
    if (this.#page[this.#at] === 0xff) {
      this.u8()
      this.compressed()
    }
    this.compressed()
  }

  /** `mach_u64_read_next_compressed`: high 32 bits compressed, low 32 bits plain. */
  nextCompressed(): [high: number, low: number] {
    return [this.compressed(), read4(this.#page, this.#take(4))]
  }

  column(): Field {
    const length = this.compressed()
    if (length === SQL_NULL) return null
    const at = this.#take(length)
    return this.#page.subarray(at, at + length)
  }
}

function read6(bytes: Uint8Array): number {
  return read2(bytes, 0) * 2 ** 32 + read4(bytes, 2)
}
