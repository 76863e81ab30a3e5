/** Tables for people: columns without lines around them, as narrow as what is in them. Programs take --json. */
import Table from 'cli-table3'

export interface Column {
  readonly head: string
  readonly align?: 'left' | 'right'
}

export type Cell = string | number | undefined

/** What stands where there is nothing. */
const NOTHING = '-'
/** What the first terminal had; words in the last column go on in the next line beyond it. */
const COLUMNS_DEFAULT = 80
const GAP = '  '
const LAST_COLUMN_LEAST = 20

/** Columns that say nothing in any row are left out, except the first one. */
export function plainTable(columns: readonly Column[], rows: readonly (readonly Cell[])[]): string {
  const texts = rows.map(row => row.map(cell => (cell === undefined || cell === '' ? NOTHING : String(cell))))
  const kept = columns
    .map((column, i) => ({ column, i }))
    .filter(({ i }) => i === 0 || rows.length === 0 || texts.some(row => row[i] !== NOTHING))
  const last = kept.at(-1)!
  const width = ({ column, i }: (typeof kept)[number]) =>
    Math.max(column.head.length, ...texts.map(row => row[i]!.length))
  const others = kept.slice(0, -1).reduce((sum, each) => sum + width(each) + GAP.length, 0)
  const room = Math.max(LAST_COLUMN_LEAST, (process.stdout.columns || COLUMNS_DEFAULT) - others)
  const wraps = last.column.align !== 'right' && width(last) > room
  const table = new Table({
    head: kept.map(({ column }) => column.head),
    colAligns: kept.map(({ column }) => column.align ?? 'left'),
    ...(wraps ? { wordWrap: true, colWidths: [...kept.slice(0, -1).map(() => null), room] } : {}),
    style: { head: [], border: [], compact: true, 'padding-left': 0, 'padding-right': 0 },
    chars: { ...NO_LINES, middle: GAP },
  })
  for (const row of texts) table.push(kept.map(({ i }) => row[i]!))
  return table
    .toString()
    .split('\n')
    .map(line => line.trimEnd())
    .filter(line => line !== '')
    .join('\n')
}

const NO_LINES = Object.fromEntries(
  [
    'top',
    'top-mid',
    'top-left',
    'top-right',
    'bottom',
    'bottom-mid',
    'bottom-left',
    'bottom-right',
    'left',
    'left-mid',
    'mid',
    'mid-mid',
    'right',
    'right-mid',
  ].map(name => [name, '']),
)
