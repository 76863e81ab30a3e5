/** `palimpsest timeline create|list|show|branch|rename|consumers|delete`: the timelines of a cluster, as the page server and the safekeeper know them. */

import { randomBytes } from 'node:crypto'
import { createInterface } from 'node:readline/promises'
import type { Command } from 'commander'
import type { Connection } from '../../protocol/connection.ts'
import { formatAddress } from '../../protocol/dial.ts'
import { LSN_MAX, type Lsn, type TimelineId, toTimelineId } from '../../protocol/ids.ts'
import {
  type BranchOf,
  MessageType,
  Role,
  type TimelineStatus,
  type TimelineSummary,
} from '../../protocol/messages.ts'
import { withoutRandomId } from '../attach/timeline-link.ts'
import { resolveMoment } from '../datadir/at-lsn.ts'
import { openClientSecurity } from '../shared/client-security.ts'
import { invalidError } from '../shared/errors.ts'
import { formatBytes, formatSecond, formatTime } from '../shared/format.ts'
import { listTimelines } from '../shared/timeline-list.ts'
import {
  addClientOptions,
  type ClientOptions,
  findTimeline,
  lsnArgument,
  momentOf,
  printJson,
  TIME_HELP,
  timeArgument,
  timelineNameArgument,
  UsageError,
  withConnection,
  withoutType,
} from './common.ts'
import { newTimelineOption } from './datadir-common.ts'
import { InterruptedError } from './interruption.ts'
import { plainTable } from './table.ts'
import { registerTimelineCreate } from './timeline-create.ts'

/** A branch may have to wait for redo to be ingested and written out. */
const BRANCH_MS = 60_000

export function registerTimeline(program: Command): void {
  const timeline = program
    .command('timeline')
    .description('create, list, show, branch, rename or delete timelines; who needs their log')

  registerTimelineCreate(timeline)

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
    const [status, ancestry] = await withConnection(options, Role.PAGESERVER, async connection => {
      const found = await findTimeline(connection, nameOrId)
      return [found, await ancestryOf(connection, found.summary.timeline)] as const
    })
    if (options.json) printJson({ ...withoutType(status), ...ancestry })
    else console.log(describeTimeline(status, ancestry))
  })

  addClientOptions(
    timeline
      .command('branch')
      .argument('<new-name>', 'its name', timelineNameArgument)
      .description(
        'make a timeline that is another one up to a moment, and its own from there; copies no page',
      )
      .requiredOption('--from <NAME>', 'timeline to branch, by name or id')
      .option('--lsn <N>', 'the moment as an LSN (default: the newest that is ingested)', lsnArgument)
      .option('--time <ISO>', `the moment as a time, ${TIME_HELP}`, timeArgument)
      .addOption(newTimelineOption()),
  ).action(async (name: string, options: ClientOptions & BranchOptions) => {
    const moment = momentOf(options)
    const branch = await withConnection(options, Role.PAGESERVER, async pageServer => {
      const status = await findTimeline(pageServer, options.from)
      const { lsn: wanted } = await resolveMoment(pageServer, status, moment, console.error)
      const ancestor = await ownerAt(pageServer, status.summary.timeline, wanted)
      // A token for the timeline itself is none for its branches.
      const only = openClientSecurity(options)?.onlyTimeline
      const chosen = options.id ?? (only === status.summary.timeline ? undefined : only)
      const timeline = chosen ?? toTimelineId(randomBytes(16).toString('hex'))
      // The log first: only it knows where a chunk ends, and a page server must find a log to follow.
      const lsn = await withConnection(options, Role.SAFEKEEPER, async safekeeper => {
        const request = { type: MessageType.WalBranch, timeline, ancestor, lsn: wanted, name } as const
        const { message } = await safekeeper.request(request).catch(error => {
          throw chosen === undefined ? withoutRandomId(error, timeline, name) : error
        })
        return message.lsn
      })
      await pageServer.request(
        { type: MessageType.TimelineBranch, timeline, ancestor, lsn, name },
        { deadlineMs: BRANCH_MS },
      )
      return { timeline, name, from: status.summary.name, lsn }
    })
    if (options.json) printJson(branch)
    else console.log(`${branch.name} (${branch.timeline}) is ${branch.from} as of LSN ${branch.lsn}`)
  })

  addClientOptions(
    timeline
      .command('rename')
      .argument('<name-or-id>')
      .argument('<new-name>', 'the name to give', timelineNameArgument)
      .description('give a timeline another name'),
  ).action(async (nameOrId: string, name: string, options: ClientOptions) => {
    const summary = await withConnection(options, Role.PAGESERVER, async pageServer => {
      const found = (await findTimeline(pageServer, nameOrId)).summary
      const request = { timeline: found.timeline, name }
      // The log first, since it is asked by name before the page server is; both take the same request again.
      await withConnection(options, Role.SAFEKEEPER, safekeeper =>
        safekeeper.request({ type: MessageType.WalRename, ...request }),
      )
      await pageServer.request({ type: MessageType.TimelineRename, ...request })
      return found
    })
    if (options.json) printJson({ timeline: summary.timeline, name, formerName: summary.name })
    else console.log(`${summary.name} is now called ${name}`)
  })

  addClientOptions(
    timeline
      .command('consumers <name-or-id>')
      .description('who needs the log of a timeline, and from where: it is kept for the slowest')
      .option('--drop <CONSUMER>', 'forget one that will not come back'),
  ).action(async (nameOrId: string, options: ClientOptions & { drop?: string }) => {
    const { summary } = await withConnection(options, Role.PAGESERVER, connection =>
      findTimeline(connection, nameOrId),
    )
    const { timeline } = summary
    const { consumers } = await withConnection(options, Role.SAFEKEEPER, async connection => {
      const state = (await connection.request({ type: MessageType.WalState, timeline })).message
      if (options.drop === undefined) return state
      if (!state.consumers.some(({ consumer }) => consumer === options.drop))
        throw invalidError(`the log of ${summary.name} has no consumer ${options.drop}`)
      await connection.request({ type: MessageType.WalConsumerDrop, timeline, consumer: options.drop })
      return (await connection.request({ type: MessageType.WalState, timeline })).message
    })
    if (options.json) return printJson(consumers)
    if (consumers.length === 0)
      return console.log(`nobody has asked for the log of ${summary.name} to be kept`)
    for (const { consumer, durableLsn } of consumers)
      console.log(`${consumer} needs the log of ${summary.name} from LSN ${durableLsn} on`)
  })

  addClientOptions(
    timeline
      .command('delete <name-or-id>')
      .description('delete a timeline with its redo, its layers and every version of its pages')
      .option('--yes', 'do not ask', false),
  ).action(async (nameOrId: string, options: ClientOptions & { yes: boolean }) => {
    const summary = await withConnection(options, Role.PAGESERVER, async connection => {
      const found = (await findTimeline(connection, nameOrId)).summary
      const { branches } = await ancestryOf(connection, found.timeline)
      if (branches.length > 0)
        throw invalidError(`${found.name} has branches (${branches.join(', ')}): delete these first`)
      return found
    })
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
  const { promise, resolve, reject } = Promise.withResolvers<string>()
  // The terminal's Ctrl-C comes here as long as it asks; Ctrl-D closes it.
  terminal.once('SIGINT', () => reject(new InterruptedError('SIGINT', 'nothing was deleted')))
  terminal.once('close', () => resolve(''))
  const question = `This deletes every version of every page of ${summary.name}, and cannot be undone. Type its name to go on: `
  terminal.question(question).then(resolve, reject)
  const answer = await promise.finally(() => {
    terminal.close()
    process.stderr.write('\n')
  })
  if (answer.trim() !== summary.name) throw new UsageError('nothing was deleted: the name was not the same')
}

export function timelineTable(timelines: readonly TimelineSummary[]): string {
  return plainTable(
    [
      { head: 'name' },
      { head: 'state' },
      { head: 'page', align: 'right' },
      { head: 'readable from', align: 'right' },
      { head: 'ingested', align: 'right' },
      { head: 'newest change' },
    ],
    timelines.map(t => [
      t.name,
      t.state,
      `${t.innodbPageSize / 1024}k`,
      readableFrom(t),
      t.ingestedLsn,
      t.lastWallTimeUs === 0 ? undefined : formatSecond(t.lastWallTimeUs),
    ]),
  )
}

/** Before its first import has ended, a timeline can be read from nowhere on. */
function readableFrom(t: TimelineSummary): string {
  return t.readableFromLsn === LSN_MAX ? '-' : String(t.readableFromLsn)
}

interface BranchOptions {
  from: string
  id?: TimelineId
  lsn?: Lsn
  time?: number
}

/** What a timeline branched off from, and what branched off from it, by name. */
interface Ancestry {
  readonly ancestor: { readonly name: string; readonly lsn: Lsn } | undefined
  readonly branches: readonly string[]
}

async function branchesOf(pageServer: Connection): Promise<BranchOf[]> {
  const replies = await pageServer.requestAll({ type: MessageType.TimelineBranches })
  return replies.flatMap(({ message }) => message.branches)
}

/** The timeline, or the ancestor whose own redo reaches to the LSN. */
async function ownerAt(pageServer: Connection, timeline: TimelineId, lsn: Lsn): Promise<TimelineId> {
  const all = await branchesOf(pageServer)
  let owner = timeline
  for (;;) {
    const branch = all.find(other => other.timeline === owner)
    if (branch === undefined || lsn > branch.lsn) return owner
    owner = branch.ancestor
  }
}

async function ancestryOf(pageServer: Connection, timeline: TimelineId): Promise<Ancestry> {
  const all = await branchesOf(pageServer)
  const own = all.find(branch => branch.timeline === timeline)
  const below = all.filter(branch => branch.ancestor === timeline)
  if (own === undefined && below.length === 0) return { ancestor: undefined, branches: [] }
  const names = new Map((await listTimelines(pageServer)).map(t => [t.timeline, t.name]))
  const nameOf = (id: TimelineId) => names.get(id) ?? id
  return {
    ancestor: own && { name: nameOf(own.ancestor), lsn: own.lsn },
    branches: below.map(branch => nameOf(branch.timeline)).sort(),
  }
}

function describeTimeline(status: TimelineStatus, { ancestor, branches }: Ancestry): string {
  const { summary } = status
  const lines: [string, string | number][] = [
    ['name', summary.name],
    ['id', summary.timeline],
    ['state', summary.state],
    ['server', status.serverVersion || 'unknown'],
    ['InnoDB page size', summary.innodbPageSize],
    ancestor === undefined
      ? ['imported at LSN', summary.startLsn]
      : ['branched off', `${ancestor.name} at LSN ${ancestor.lsn}`],
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
  if (branches.length > 0) lines.push(['branches', branches.join(', ')])
  for (const gap of status.gaps) lines.push(['not readable', `LSNs between ${gap.fromLsn} and ${gap.toLsn}`])
  if (status.lastError) lines.push(['last error', status.lastError])
  return lines.map(([label, value]) => `${label.padEnd(18)} ${value}`).join('\n')
}
