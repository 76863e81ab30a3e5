/** `palimpsest status`: every timeline with the safekeeper's and the page server's LSNs side by side, and what wants attention. */

import Table from 'cli-table3'
import type { Command } from 'commander'
import {
  MessageType,
  Role,
  type TimelineStatus,
  type WalListItem,
  type WalStateReply,
} from '../../protocol/messages.ts'
import { formatBytes, formatTime } from '../shared/format.ts'
import { listTimelines } from '../shared/timeline-list.ts'
import { type CellView, cellComplaints, cellTable, collectCell } from './cell-status.ts'
import {
  addClientOptions,
  type ClientOptions,
  describeError,
  findTimeline,
  printJson,
  withConnection,
} from './common.ts'

type RedoItem = WalListItem & { readonly state: WalStateReply }

interface TimelineRow {
  pages: TimelineStatus | undefined
  redo: RedoItem | undefined
}

export function registerStatus(program: Command): void {
  addClientOptions(
    program
      .command('status')
      .description(
        'safekeepers and timelines: how far redo is committed, ingested and durable, and what wants attention',
      ),
  ).action(async (options: ClientOptions) => {
    // What is left must be seen when a part is down: that is when somebody looks.
    const parts = await Promise.allSettled([collectCell(options), pagesOf(options), redoOf(options)])
    const failures = parts.filter(part => part.status === 'rejected').map(part => part.reason as unknown)
    if (failures.length === parts.length) throw failures[0]
    const [cell, pages, redo] = parts.map(part => (part.status === 'fulfilled' ? part.value : undefined)) as [
      CellView | undefined,
      TimelineStatus[] | undefined,
      RedoItem[] | undefined,
    ]
    const rows = join(pages, redo)
    const attention = [
      ...new Set(failures.map(describeError)),
      ...(cell === undefined ? [] : cellComplaints(cell)),
      ...rows.flatMap(row => complaints(row, pages !== undefined && redo !== undefined)),
    ]
    if (failures.length > 0) process.exitCode = 1
    if (options.json) {
      printJson({ cell: cell?.cell, safekeepers: cell?.nodes ?? [], timelines: rows, attention })
      return
    }
    if (cell !== undefined) console.log(cellTable(cell))
    if (rows.length > 0) console.log(statusTable(rows))
    else if (failures.length === 0)
      console.log('no timelines yet; "palimpsest attach" or "palimpsest import" makes one')
    for (const line of attention) console.log(line)
  })
}

function pagesOf(options: ClientOptions): Promise<TimelineStatus[]> {
  return withConnection(options, Role.PAGESERVER, async connection =>
    Promise.all((await listTimelines(connection)).map(t => findTimeline(connection, t.timeline))),
  )
}

function redoOf(options: ClientOptions): Promise<RedoItem[]> {
  return withConnection(options, Role.SAFEKEEPER, async connection => {
    const items: WalListItem[] = []
    for await (const { message } of connection.stream({ type: MessageType.WalList }))
      items.push(...message.timelines)
    return Promise.all(
      items.map(async item => ({
        ...item,
        state: (await connection.request({ type: MessageType.WalState, timeline: item.timeline })).message,
      })),
    )
  })
}

function join(
  pages: readonly TimelineStatus[] | undefined,
  redo: readonly RedoItem[] | undefined,
): TimelineRow[] {
  const ids = new Set([...(pages ?? []).map(p => p.summary.timeline), ...(redo ?? []).map(r => r.timeline)])
  return [...ids].map(id => ({
    pages: pages?.find(p => p.summary.timeline === id),
    redo: redo?.find(r => r.timeline === id),
  }))
}

/** `bothSay`: page server and safekeepers have both been asked. */
function complaints({ pages, redo }: TimelineRow, bothSay: boolean): string[] {
  const name = pages?.summary.name ?? redo?.name ?? '?'
  const lines: string[] = []
  if (!pages && bothSay)
    lines.push(`${name}: the safekeeper has its redo, but the page server does not know it`)
  if (!redo && bothSay) lines.push(`${name}: the page server has it, but the safekeeper keeps no redo for it`)
  if (pages?.lastError) lines.push(`${name}: ${pages.lastError}`)
  for (const gap of pages?.gaps ?? [])
    lines.push(
      `${name}: LSNs between ${gap.fromLsn} and ${gap.toLsn} cannot be read (the ring overtook the agent there)`,
    )
  return lines
}

function statusTable(rows: readonly TimelineRow[]): string {
  const table = new Table({
    head: [
      'timeline',
      'state',
      'committed',
      'ingested',
      'durable',
      'behind',
      'newest change',
      'redo held',
      'layers',
    ],
    colAligns: ['left', 'left', 'right', 'right', 'right', 'right', 'left', 'right', 'right'],
    style: { head: [], border: [], compact: true },
  })
  for (const { pages, redo } of rows) {
    const summary = pages?.summary
    const committed = redo?.state.committedLsn
    table.push([
      summary?.name ?? redo?.name ?? '?',
      summary?.state ?? '-',
      committed ?? '-',
      summary?.ingestedLsn ?? '-',
      summary?.durableLsn ?? '-',
      summary && committed !== undefined ? formatBytes(Math.max(0, committed - summary.ingestedLsn)) : '-',
      summary?.lastWallTimeUs ? formatTime(summary.lastWallTimeUs) : '-',
      redo ? formatBytes(redo.state.bytesHeld) : '-',
      pages ? `${pages.deltaLayers + pages.imageLayers}, ${formatBytes(pages.layerBytes)}` : '-',
    ])
  }
  return table.toString()
}
