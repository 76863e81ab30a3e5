/** The text form of a page that was taken apart. See page-inspect.ts. */
import type { PageDetail, PageInspection } from './page-inspect.ts'
import type { IndexInspection } from './page-inspect-index.ts'
import type { ExtentsInspection, InodeInspection } from './page-inspect-space.ts'
import type { ListAddress, UndoInspection } from './page-inspect-undo.ts'

const orNone = (n: number | null): string => (n === null ? 'none' : String(n))
const place = (address: ListAddress | null): string =>
  address ? `${address.page}:${address.offset}` : 'none'

/** Columns, right-aligned, under their headings. */
function table(headings: readonly string[], rows: readonly (readonly (string | number)[])[]): string[] {
  const cells = [headings, ...rows.map(row => row.map(String))]
  const widths = headings.map((_, i) => Math.max(...cells.map(row => row[i]!.length)))
  return cells.map(row => `  ${row.map((cell, i) => cell.padStart(widths[i]!)).join('  ')}`)
}

function fields(pairs: readonly (readonly [string, string | number])[]): string[] {
  const width = Math.max(...pairs.map(([name]) => name.length))
  return pairs.map(([name, value]) => `  ${name.padEnd(width)}  ${value}`)
}

function indexText(d: IndexInspection): string[] {
  const segment = (s: IndexInspection['segmentLeaf']): string =>
    s ? `${s.space}:${s.page} at ${s.offset}` : 'none'
  const lines = [
    `index page, ROW_FORMAT=${d.rowFormat}`,
    ...fields([
      ['PAGE_INDEX_ID', d.indexId],
      ['PAGE_LEVEL', `${d.level}${d.level === 0 ? ' (leaf)' : ''}`],
      ['PAGE_N_RECS', d.records],
      ['PAGE_N_DIR_SLOTS', d.dirSlots],
      ['PAGE_HEAP_TOP', d.heapTop],
      ['PAGE_N_HEAP', d.heapRecords],
      ['PAGE_FREE', `${d.free} (${d.freeRecords} records)`],
      ['PAGE_GARBAGE', `${d.garbageBytes} bytes`],
      ['PAGE_LAST_INSERT', d.lastInsert],
      ['PAGE_DIRECTION', `${d.direction}, ${d.directionCount} in a row`],
      ['PAGE_MAX_TRX_ID', d.maxTrxId],
      ['PAGE_BTR_SEG_LEAF', segment(d.segmentLeaf)],
      ['PAGE_BTR_SEG_TOP', segment(d.segmentTop)],
    ]),
  ]
  if (d.instantFields !== null)
    lines.push(`  columns before the first instant ALTER TABLE: ${d.instantFields}`)
  if (d.rowFormat === 'COMPRESSED')
    return [...lines, '  records and directory are compressed and not decoded']
  lines.push(
    'records in chain order',
    ...table(
      ['offset', 'heap no', 'type', 'owned', 'flags', 'next'],
      d.chain.map(r => [
        r.offset,
        r.heapNo,
        r.type,
        r.owned,
        [r.deleted ? 'deleted' : '', r.minRec ? 'min' : ''].filter(Boolean).join(' ') || '-',
        r.next,
      ]),
    ),
    'directory',
    ...table(
      ['slot', 'offset', 'owned', 'counted'],
      d.slots.map(s => [s.slot, s.offset, s.owned, s.counted === null ? '?' : s.counted]),
    ),
  )
  return lines
}

function undoText(d: UndoInspection): string[] {
  const lines = [
    'undo log page',
    ...fields([
      ['TRX_UNDO_PAGE_START', d.start],
      ['TRX_UNDO_PAGE_FREE', d.free],
      ['previous page', place(d.previousPage)],
      ['next page', place(d.nextPage)],
    ]),
  ]
  if (d.segment)
    lines.push(
      `first page of its segment: ${d.segment.state}, last log at ${d.segment.lastLog}, ${d.segment.pages} pages`,
    )
  if (d.logs.length)
    lines.push(
      'undo logs, newest first',
      ...table(
        ['offset', 'trx id', 'trx no', 'needs purge', 'first record', 'xid', 'table'],
        d.logs.map(l => [
          l.offset,
          l.trxId,
          l.trxNo,
          l.needsPurge,
          l.firstRecord,
          l.hasXid ? 'yes' : 'no',
          l.tableId,
        ]),
      ),
    )
  if (d.records.length)
    lines.push(
      'undo records of the newest log',
      ...table(
        ['offset', 'bytes', 'type', 'undo no', 'table'],
        d.records.map(r => [r.offset, r.bytes, r.type, r.undoNo, r.tableId]),
      ),
    )
  return lines
}

function extentsText(d: ExtentsInspection): string[] {
  const lines: string[] = []
  const h = d.header
  if (h)
    lines.push(
      'tablespace header',
      ...fields([
        ['FSP_SPACE_ID', h.spaceId],
        ['FSP_SIZE', `${h.size} pages`],
        ['FSP_FREE_LIMIT', h.freeLimit],
        ['FSP_SPACE_FLAGS', `0x${h.flags.toString(16)}: ${h.flagsText}`],
        ['FSP_FRAG_N_USED', h.fragmentPagesUsed],
        ['FSP_FREE', `${h.freeExtents} extents`],
        ['FSP_FREE_FRAG', `${h.freeFragments} extents`],
        ['FSP_FULL_FRAG', `${h.fullFragments} extents`],
        ['FSP_SEG_ID', h.nextSegmentId],
        ['FSP_SEG_INODES_FULL', `${h.inodePagesFull} pages`],
        ['FSP_SEG_INODES_FREE', `${h.inodePagesFree} pages`],
      ]),
    )
  lines.push(
    'extents',
    ...table(
      ['first page', 'state', 'segment', 'used pages'],
      d.extents.map(e => [e.page, e.state, e.segmentId, e.usedPages]),
    ),
  )
  return lines
}

function inodesText(d: InodeInspection): string[] {
  return [
    `segment inodes; previous page ${place(d.previous)}, next page ${place(d.next)}`,
    ...table(
      ['offset', 'segment', 'used in not full', 'free', 'not full', 'full', 'fragment pages'],
      d.segments.map(s => [
        s.offset,
        s.id,
        s.notFullPagesUsed,
        s.freeExtents,
        s.notFullExtents,
        s.fullExtents,
        s.fragmentPages.length ? s.fragmentPages.join(' ') : '-',
      ]),
    ),
  ]
}

function detailText(detail: PageDetail): string[] {
  switch (detail.kind) {
    case 'index':
      return indexText(detail)
    case 'undo':
      return undoText(detail)
    case 'extents':
      return extentsText(detail)
    case 'inodes':
      return inodesText(detail)
    case 'rollback segment':
      return [
        `rollback segment header: ${detail.historyLogs} logs in the history, ${detail.historyPages} pages; greatest trx id ${detail.maxTrxId}`,
        ...table(
          ['slot', 'undo segment page'],
          detail.undoSegments.map(s => [s.slot, s.page]),
        ),
      ]
    case 'trx_sys':
      return [
        `transaction system: trx id store ${detail.trxIdStore}`,
        ...detail.doublewrite.map(area => `  doublewrite block: pages ${area.start} to ${area.end - 1}`),
        ...table(
          ['slot', 'space', 'rollback segment page'],
          detail.rollbackSegments.map(s => [s.slot, s.space, s.page]),
        ),
      ]
    case 'dictionary header':
      return [
        'data dictionary header',
        ...fields([
          ['greatest row id', detail.rowId],
          ['greatest table id', detail.tableId],
          ['greatest index id', detail.indexId],
          ['greatest tablespace id', detail.maxSpaceId],
          ...Object.entries(detail.roots).map(([name, page]) => [`root of ${name}`, page] as const),
        ]),
      ]
    case 'blob':
      return [`BLOB part of ${detail.partLength} bytes, next part on page ${orNone(detail.nextPage)}`]
    case 'change buffer bitmap':
      return [`change buffer bitmap: ${detail.nonZeroBytes} bytes are not zero`]
  }
}

export function inspectionText(p: PageInspection): string {
  const lines = [
    `page ${p.space}:${p.page}, ${p.sizeBytes} bytes, ${p.typeName}`,
    ...fields([
      ['FIL_PAGE_TYPE', `${p.type} (${p.typeName})`],
      ['FIL_PAGE_LSN', p.lsn],
      ['FIL_PAGE_PREV', orNone(p.prev)],
      ['FIL_PAGE_NEXT', orNone(p.next)],
      ['bytes 26 to 33', p.field26],
      ['checksum', p.checksum],
      ...(p.pageCompressed ? [['page_compressed', 'yes'] as const] : []),
    ]),
    ...(p.detail ? detailText(p.detail) : []),
    ...(p.problems.length ? ['problems', ...p.problems.map(problem => `  ${problem}`)] : []),
  ]
  return `${lines.join('\n')}\n`
}
