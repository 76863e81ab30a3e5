/** How well a table definition fits a table in InnoDB's dictionary. */
import type { DictionaryTable } from './dictionary/dictionary.ts'
import type { TableDefinition } from './table-definition.ts'

/** Sums of these: the greater, the worse. */
export const Fit = {
  EXACT: 0,
  /** Another type or length of a column. */
  COLUMN: 1,
  /** From here on the server could not use the one with the other. */
  OTHER: 1000,
  INDEX: 1000,
  NO_PARTITIONS: 10_000,
  PARTITIONING: 100_000,
  COLUMNS: 1_000_000,
} as const

/** Type codes of .frm files and what InnoDB calls them: the newer temporal types, blobs by size, ENUM and SET. */
const TYPE_ALIASES = new Map([
  [17, 7],
  [18, 12],
  [19, 11],
  [14, 10],
  [249, 252],
  [250, 252],
  [251, 252],
  [247, 254],
  [248, 254],
])
const TYPE_VARCHAR = 15
const TYPE_STRING = 254

/** @param partitions of the table, as file names have them: `p0`, `p0#SP#s0` */
export function definitionFits(
  definition: TableDefinition,
  table: DictionaryTable,
  partitions: readonly string[],
): number {
  let fit: number = Fit.EXACT
  const named = new Set(definition.columns.map(column => column.name))
  // InnoDB adds these by itself: a document id for full-text indexes, the hash of a long unique key.
  const columns = table.columns.filter(
    ({ name }) => named.has(name) || !/^(FTS_DOC_ID$|DB_ROW_HASH_)/.test(name),
  )
  if (
    columns.length !== definition.columns.length ||
    columns.some((column, i) => column.name !== definition.columns[i]!.name)
  )
    fit += Fit.COLUMNS
  else
    columns.forEach((column, i) => {
      const other = definition.columns[i]!
      const type = TYPE_ALIASES.get(other.typeCode) ?? other.typeCode
      const hasLength = other.typeCode === TYPE_VARCHAR || other.typeCode === TYPE_STRING
      if (
        type !== (TYPE_ALIASES.get(column.typeCode) ?? column.typeCode) ||
        (hasLength && column.bytes !== other.bytes)
      )
        fit += Fit.COLUMN
    })
  const keys = new Set(definition.keys)
  const indexes = new Set(
    table.indexes.filter(name => keys.has(name) || !/^(GEN_CLUST_INDEX|FTS_DOC_ID_INDEX)$/.test(name)),
  )
  for (const name of keys) if (!indexes.has(name)) fit += Fit.INDEX
  for (const name of indexes) if (!keys.has(name)) fit += Fit.INDEX
  if ((definition.partitioning !== '') !== partitions.length > 0) fit += Fit.PARTITIONING
  else if (partitions.length > 0 && !namesPartitions(definition.partitioning, partitions))
    fit += Fit.NO_PARTITIONS
  return fit
}

/** Whether a PARTITION BY clause is about these partitions, as far as it says. */
function namesPartitions(clause: string, partitions: readonly string[]): boolean {
  const names = new Set(partitions.map(name => name.split(/#SP#/i)[0]!))
  if (/\bPARTITION\s+`/i.test(clause.replace(/PARTITION\s+BY/i, '')))
    return [...names].every(name => name.includes('@') || clause.includes(`\`${name}\``))
  const count = /\bPARTITIONS\s+(\d+)/i.exec(clause)
  return !count || Number(count[1]) === names.size
}
