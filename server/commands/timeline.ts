/** `palimpsest timeline list|show|delete`: the timelines of a cluster, as the page server and the safekeeper know them. */

import { createInterface } from 'node:readline/promises'
import Table from 'cli-table3'
import type { Command } from 'commander'
import { formatAddress } from '../../protocol/dial.ts'
import { LSN_MAX } from '../../protocol/ids.ts'
import { MessageType, Role, type TimelineStatus, type TimelineSummary } from '../../protocol/messages.ts'
import { formatBytes } from '../shared/format.ts'
import { listTimelines } from '../shared/timeline-list.ts'
import {
  addClientOptions,
  type ClientOptions,
  findTimeline,
  formatTime,
  printJson,
  UsageError,
  withConnection,
} from './common.ts'

export function registerTimeline(program: Command): void {
  const timeline = program.command('timeline').description('list, show or delete timelines')

  addClientOptions(timeline.command('list').description('all timelines, one a line')).action(
    async (options: ClientOptions) => {
      const timelines = await withConnection(options, Role.PAGESERVER, listTimelines)
      if (options.json) printJson(timelines)
      else if (timelines.length === 0)
        console.log('no timelines yet; "palimpsest attach" or "palimpsest import" makes one')
      else console.log(timelineTable(timelines))
    },
  )

  addClientOptions(
    timeline.command('show <name-or-id>').description('one timeline with all its LSNs'),
  ).action(async (nameOrId: string, options: ClientOptions) => {
    const status = await withConnection(options, Role.PAGESERVER, connection =>
      findTimeline(connection, nameOrId),
    )
    if (options.json) printJson(status)
    else console.log(describeTimeline(status))
  })

  addClientOptions(
    timeline
      .command('delete <name-or-id>')
      .description('delete a timeline with its redo, its layers and every version of its pages')
      .option('--yes', 'do not ask', false),
  ).action(async (nameOrId: string, options: ClientOptions & { yes: boolean }) => {
    const { summary } = await withConnection(options, Role.PAGESERVER, connection =>
      findTimeline(connection, nameOrId),
    )
    if (!options.yes) await confirmDeletion(summary)
    const timeline = summary.timeline
    // The redo goes first: a page server that still had the timeline would only follow an empty log, whereas a log
    // without its page server would be kept for a reader that never comes.
    await withConnection(options, Role.SAFEKEEPER, connection =>
      connection.request({ type: MessageType.WalDelete, timeline }),
    )
    await withConnection(options, Role.PAGESERVER, connection =>
      connection.request({ type: MessageType.TimelineDelete, timeline }),
    )
    if (options.json) printJson({ deleted: timeline, name: summary.name })
    else
      console.log(
        `deleted timeline ${summary.name} (${timeline}) at ${options.connect.map(formatAddress).join(', ')}`,
      )
  })
}

async function confirmDeletion(summary: TimelineSummary): Promise<void> {
  if (!process.stdin.isTTY)
    throw new UsageError(`add --yes to delete timeline ${summary.name}: nobody can be asked here`)
  const terminal = createInterface({ input: process.stdin, output: process.stderr })
  const answer = await terminal.question(
    `This deletes every version of every page of ${summary.name}, and cannot be undone. Type its name to go on: `,
  )
  terminal.close()
  if (answer.trim() !== summary.name) throw new UsageError('nothing was deleted: the name was not the same')
}

export function timelineTable(timelines: readonly TimelineSummary[]): string {
  const table = new Table({
    head: ['name', 'state', 'page', 'readable from', 'ingested', 'durable', 'newest change'],
    colAligns: ['left', 'left', 'right', 'right', 'right', 'right', 'left'],
    style: { head: [], border: [], compact: true },
  })
  for (const t of timelines)
    table.push([
      t.name,
      t.state,
      `${t.innodbPageSize / 1024}k`,
      readableFrom(t),
      t.ingestedLsn,
      t.durableLsn,
      t.lastWallTimeUs === 0 ? '-' : formatTime(t.lastWallTimeUs),
    ])
  return table.toString()
}

/** Before its first import has ended, a timeline can be read from nowhere on. */
function readableFrom(t: TimelineSummary): string {
  return t.readableFromLsn === LSN_MAX ? '-' : String(t.readableFromLsn)
}

function describeTimeline(status: TimelineStatus): string {
  const { summary } = status
  const lines: [string, string | number][] = [
    ['name', summary.name],
    ['id', summary.timeline],
    ['state', summary.state],
    ['server', status.serverVersion || 'unknown'],
    ['InnoDB page size', summary.innodbPageSize],
    ['imported at LSN', summary.startLsn],
    ['readable from LSN', readableFrom(summary)],
    ['ingested LSN', summary.ingestedLsn],
    ['durable LSN', summary.durableLsn],
    ['newest change', summary.lastWallTimeUs === 0 ? '-' : formatTime(summary.lastWallTimeUs)],
    ['tablespaces', status.spaces],
    ['other files', status.files],
    ['redo in memory', formatBytes(status.arenaBytes)],
    [
      'layers',
      `${status.deltaLayers} delta, ${status.imageLayers} image, ${formatBytes(status.layerBytes)} in the object store`,
    ],
  ]
  for (const gap of status.gaps) lines.push(['not readable', `LSNs between ${gap.fromLsn} and ${gap.toLsn}`])
  if (status.lastError) lines.push(['last error', status.lastError])
  return lines.map(([label, value]) => `${label.padEnd(18)} ${value}`).join('\n')
}
