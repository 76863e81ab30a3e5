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
import { cellComplaints, cellTable, collectCell } from './cell-status.ts'
import { addClientOptions, type ClientOptions, findTimeline, printJson, withConnection } from './common.ts'

interface TimelineRow {
  pages: TimelineStatus | undefined
  redo: (WalListItem & { state: WalStateReply }) | undefined
}

export function registerStatus(program: Command): void {
  addClientOptions(
    program
      .command('status')
      .description(
        'safekeepers and timelines: how far redo is committed, ingested and durable, and what wants attention',
      ),
  ).action(async (options: ClientOptions) => {
    const cell = await collectCell(options)
    const rows = await collect(options)
    const attention = [...cellComplaints(cell), ...rows.flatMap(complaints)]
    if (options.json) {
      printJson({ cell: cell.cell, safekeepers: cell.nodes, timelines: rows, attention })
      return
    }
    console.log(cellTable(cell))
    if (rows.length === 0)
      console.log('no timelines yet; "palimpsest attach" or "palimpsest import" makes one')
    else console.log(statusTable(rows))
    for (const line of attention) console.log(line)
  })
}

async function collect(options: ClientOptions): Promise<TimelineRow[]> {
  const pages = await withConnection(options, Role.PAGESERVER, async connection =>
    Promise.all((await listTimelines(connection)).map(t => findTimeline(connection, t.timeline))),
  )
  const redo = await withConnection(options, Role.SAFEKEEPER, async connection => {
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
  const ids = new Set([...pages.map(p => p.summary.timeline), ...redo.map(r => r.timeline)])
  return [...ids].map(id => ({
    pages: pages.find(p => p.summary.timeline === id),
    redo: redo.find(r => r.timeline === id),
  }))
}

function complaints({ pages, redo }: TimelineRow): string[] {
  const name = pages?.summary.name ?? redo?.name ?? '?'
  const lines: string[] = []
  if (!pages) lines.push(`${name}: the safekeeper has its redo, but the page server does not know it`)
  if (!redo) lines.push(`${name}: the page server has it, but the safekeeper keeps no redo for it`)
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
