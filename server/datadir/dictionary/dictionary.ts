/**
 * InnoDB's data dictionary at an LSN, as its recovery at that LSN would leave it: the rows of SYS_TABLES, SYS_COLUMNS and
 * SYS_INDEXES (dict0boot.cc), read from their clustered indexes, with the changes of unfinished transactions taken back.
 */
import { FIL_NULL, FIL_PAGE_DATA, FIL_PAGE_NEXT, read2, read4 } from '../../../parser/page-format.ts'
import { corruptError } from '../../shared/errors.ts'
import { fetchBatch, type PageSource } from '../page-fetcher.ts'
import {
  BadDictionaryError,
  childPage,
  type Field,
  pageLevel,
  type RedundantRecord,
  recordsOf,
} from './redundant-page.ts'
import { UndoVersions } from './undo-versions.ts'

export interface DictionaryColumn {
  readonly name: string
  /** The SQL type's code (DATA_MYSQL_TYPE_MASK of PRTYPE). */
  readonly typeCode: number
  readonly bytes: number
}

export interface DictionaryTable {
  /** As a file name without its extension: `db/t`, `db/t#P#p0`. */
  readonly name: string
  readonly id: number
  readonly space: number
  /** The transaction that last wrote the table's row. */
  readonly trxId: number
  /** In the order of the table; virtual ones among them. */
  readonly columns: readonly DictionaryColumn[]
  /** Names; those that are still being made are left out. */
  readonly indexes: readonly string[]
}

const DICT_HDR_PAGE = 7
const DICT_HDR_TABLES = FIL_PAGE_DATA + 32
const DICT_HDR_COLUMNS = FIL_PAGE_DATA + 40
const DICT_HDR_INDEXES = FIL_PAGE_DATA + 44
const LEVELS_MAX = 20
const DATA_MYSQL_TYPE_MASK = 255
/** First byte of the name of an index that is not complete. */
const TEMP_INDEX_PREFIX = 0xff

/** @throws PalimpsestError `corrupt` when the pages make no sense */
export async function readDictionary(source: PageSource): Promise<DictionaryTable[]> {
  const read = async (space: number, pages: readonly number[]): Promise<Uint8Array[]> => {
    const fetched = await fetchBatch(source, space, pages)
    return fetched.map(({ bytes, page }) => {
      if (!bytes) throw new BadDictionaryError(`page ${page} of tablespace ${space} does not exist`)
      return bytes
    })
  }
  try {
    const [header] = await read(0, [DICT_HDR_PAGE])
    const undo = await UndoVersions.open(read)
    const rows = async (rootAt: number, trxField: number): Promise<RedundantRecord[]> => {
      const result: RedundantRecord[] = []
      for await (const record of leaves(read, read4(header!, rootAt))) {
        const version = await undo.committed(record, trxField)
        if (version) result.push(version)
      }
      return result
    }
    return assemble(
      await rows(DICT_HDR_TABLES, 1),
      await rows(DICT_HDR_COLUMNS, 2),
      await rows(DICT_HDR_INDEXES, 2),
    )
  } catch (error) {
    if (!(error instanceof BadDictionaryError)) throw error
    throw corruptError(`InnoDB's dictionary at LSN ${source.lsn}: ${error.message}`, source.lsn, error)
  }
}

async function* leaves(
  read: (space: number, pages: readonly number[]) => Promise<Uint8Array[]>,
  root: number,
): AsyncGenerator<RedundantRecord> {
  let page = (await read(0, [root]))[0]!
  for (let depth = 0; pageLevel(page) > 0; depth++) {
    const [first] = recordsOf(page)
    if (!first || depth > LEVELS_MAX) throw new BadDictionaryError(`index at page ${root} has no leaves`)
    page = (await read(0, [childPage(first)]))[0]!
  }
  const seen = new Set<number>()
  for (;;) {
    yield* recordsOf(page)
    const next = read4(page, FIL_PAGE_NEXT)
    if (next === FIL_NULL) return
    if (seen.has(next)) throw new BadDictionaryError(`page ${next} comes twice`)
    seen.add(next)
    page = (await read(0, [next]))[0]!
  }
}

function assemble(
  tableRows: readonly RedundantRecord[],
  columnRows: readonly RedundantRecord[],
  indexRows: readonly RedundantRecord[],
): DictionaryTable[] {
  const columns = new Map<number, { position: number; virtual: boolean; column: DictionaryColumn }[]>()
  for (const { fields } of columnRows) {
    const position = number(fields, 1, 4)
    const entry = {
      // Virtual columns: their number among these in the upper half, their place in the table in the lower.
      position: position & 0xffff,
      virtual: position >= 0x10000,
      column: {
        name: text(fields, 4),
        typeCode: number(fields, 6, 4) & DATA_MYSQL_TYPE_MASK,
        bytes: number(fields, 7, 4),
      },
    }
    push(columns, number(fields, 0, 8), entry)
  }
  const indexes = new Map<number, string[]>()
  for (const { fields } of indexRows)
    if (fields[4]?.[0] !== TEMP_INDEX_PREFIX) push(indexes, number(fields, 0, 8), text(fields, 4))
  return tableRows.map(({ fields }) => {
    const id = number(fields, 3, 8)
    const all = columns.get(id) ?? []
    const stored = all.filter(c => !c.virtual).sort((a, b) => a.position - b.position)
    const ordered = stored.map(c => c.column)
    // Stored ones count themselves without the virtual ones, which know their place in the whole.
    for (const c of all.filter(c => c.virtual).sort((a, b) => a.position - b.position))
      ordered.splice(c.position, 0, c.column)
    return {
      name: text(fields, 0),
      id,
      trxId: number(fields, 1, 6),
      space: number(fields, 9, 4),
      columns: ordered,
      indexes: indexes.get(id) ?? [],
    }
  })
}

function push<K, V>(map: Map<K, V[]>, key: K, value: V): void {
  const list = map.get(key)
  if (list) list.push(value)
  else map.set(key, [value])
}

function number(fields: readonly Field[], i: number, bytes: 4 | 6 | 8): number {
  const field = fields[i]
  if (field?.length !== bytes) throw new BadDictionaryError(`field ${i} of a row is not ${bytes} bytes long`)
  if (bytes === 4) return read4(field, 0)
  return bytes === 6
    ? read2(field, 0) * 2 ** 32 + read4(field, 2)
    : read4(field, 0) * 2 ** 32 + read4(field, 4)
}

function text(fields: readonly Field[], i: number): string {
  const field = fields[i]
  if (!field) throw new BadDictionaryError(`field ${i} of a row is missing`)
  return Buffer.from(field).toString('utf8')
}
