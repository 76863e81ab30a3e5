/** `palimpsest status`: every timeline with the safekeeper's and the page server's LSNs side by side, and what wants attention. */

import type { Command } from 'commander'
import {
  MessageType,
  Role,
  type TimelineStatus,
  type WalListItem,
  type WalStateReply,
} from '../../protocol/messages.ts'
import { openClientSecurity } from '../shared/client-security.ts'
import type { Expiring } from '../shared/expiry.ts'
import { formatBytes, formatRoughly } from '../shared/format.ts'
import { listTimelines } from '../shared/timeline-list.ts'
import { type CellView, cellComplaints, cellJson, cellTable, collectCell } from './cell-status.ts'
import {
  addClientOptions,
  type ClientOptions,
  describeError,
  findTimeline,
  printJson,
  withConnection,
  withoutType,
} from './common.ts'
import { type Credential, expiryComplaints } from './expiry-complaints.ts'
import { plainTable } from './table.ts'

type RedoItem = WalListItem & { readonly state: Omit<WalStateReply, 'type'> }
type Pages = Omit<TimelineStatus, 'type'>

interface TimelineRow {
  pages: Pages | undefined
  redo: RedoItem | undefined
}

interface PagesView {
  readonly address: string
  readonly certificateExpiresAtMs: number | undefined
  readonly timelines: readonly Pages[]
}

const RENEW_CERTIFICATE =
  'renew it ("palimpsest keys node NAME --renew", or at your own CA): a server takes new files by itself'

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
      PagesView | undefined,
      RedoItem[] | undefined,
    ]
    // The other parts' complaint says it, and more.
    const isLeaderless = cell?.cell.cellId !== '' && cell?.cell.leader === ''
    const told = isLeaderless ? failures.filter(failure => failure !== reasonOf(parts[2])) : failures
    const own: readonly Expiring[] = openClientSecurity(options)?.expiring ?? []
    const rows = join(pages?.timelines, redo)
    const attention = [
      ...new Set(told.map(describeError)),
      ...(cell === undefined ? [] : cellComplaints(cell)),
      ...expiryComplaints([...certificates(cell, pages), ...own.map(ownCredential)]),
      ...rows.flatMap(row => complaints(row, pages !== undefined && redo !== undefined)),
    ]
    if (failures.length > 0) process.exitCode = 1
    if (options.json) {
      printJson(report(cell, pages, own, rows, attention))
      return
    }
    const blocks = [
      ...(cell === undefined ? [] : [cellTable(cell)]),
      ...(rows.length > 0 ? [statusTable(rows)] : []),
      ...(rows.length === 0 && failures.length === 0
        ? ['no timelines yet; "palimpsest attach" or "palimpsest import" makes one']
        : []),
      ...(attention.length > 0 ? [attention.join('\n')] : []),
    ]
    console.log(blocks.join('\n\n'))
  })
}

function reasonOf(part: PromiseSettledResult<unknown>): unknown {
  return part.status === 'rejected' ? part.reason : undefined
}

function ownCredential({ kind, file, beganAtMs, expiresAtMs }: Expiring): Credential {
  return { what: `your own ${kind}`, whose: file, beganAtMs, expiresAtMs, renew: 'get a new one' }
}

/** For programs. */
function report(
  cell: CellView | undefined,
  pages: PagesView | undefined,
  own: readonly Expiring[],
  timelines: readonly TimelineRow[],
  attention: readonly string[],
): object {
  return {
    cell: cell && cellJson(cell.cell),
    safekeepers: (cell?.nodes ?? []).map(({ name, status, certificateExpiresAtMs }) => ({
      name,
      certificateExpires: isoTime(certificateExpiresAtMs),
      status: status && cellJson(status),
    })),
    pageServers:
      pages === undefined
        ? []
        : [{ address: pages.address, certificateExpires: isoTime(pages.certificateExpiresAtMs) }],
    credentials: own.map(({ kind, file, expiresAtMs }) => ({ kind, file, expires: isoTime(expiresAtMs) })),
    timelines,
    attention,
  }
}

/** Moments in JSON are as `keys` prints them. */
function isoTime(ms: number | undefined): string | undefined {
  return ms === undefined ? undefined : new Date(ms).toISOString()
}

/** What the servers showed. */
function certificates(cell: CellView | undefined, pages: PagesView | undefined): Credential[] {
  const all: Credential[] = []
  for (const { name, certificateExpiresAtMs: expiresAtMs } of cell?.nodes ?? [])
    if (expiresAtMs !== undefined)
      all.push({ what: 'certificate of', whose: `safekeeper ${name}`, expiresAtMs, renew: RENEW_CERTIFICATE })
  const expiresAtMs = pages?.certificateExpiresAtMs
  if (expiresAtMs !== undefined)
    all.push({
      what: 'certificate of',
      whose: `page server ${pages!.address}`,
      expiresAtMs,
      renew: RENEW_CERTIFICATE,
    })
  return all
}

function pagesOf(options: ClientOptions): Promise<PagesView> {
  return withConnection(options, Role.PAGESERVER, async connection => {
    const { address, certificateExpiresAtMs } = connection
    const all = await listTimelines(connection)
    const timelines = await Promise.all(all.map(t => findTimeline(connection, t.timeline)))
    return { address, certificateExpiresAtMs, timelines: timelines.map(withoutType) }
  })
}

function redoOf(options: ClientOptions): Promise<RedoItem[]> {
  return withConnection(options, Role.SAFEKEEPER, async connection => {
    const items: WalListItem[] = []
    for await (const { message } of connection.stream({ type: MessageType.WalList }))
      items.push(...message.timelines)
    return Promise.all(
      items.map(async item => ({
        ...item,
        state: withoutType(
          (await connection.request({ type: MessageType.WalState, timeline: item.timeline })).message,
        ),
      })),
    )
  })
}

function join(pages: readonly Pages[] | undefined, redo: readonly RedoItem[] | undefined): TimelineRow[] {
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

export function statusTable(rows: readonly TimelineRow[], nowMs = Date.now()): string {
  const columns = [
    { head: 'timeline' },
    { head: 'state' },
    { head: 'committed', align: 'right' },
    { head: 'behind', align: 'right' },
    { head: 'not durable', align: 'right' },
    { head: 'newest change', align: 'right' },
    { head: 'layers', align: 'right' },
  ] as const
  return plainTable(
    columns,
    rows.map(({ pages, redo }) => {
      const summary = pages?.summary
      const committed = redo?.state.committedLsn
      return [
        summary?.name ?? redo?.name ?? '?',
        summary?.state,
        committed,
        summary && committed !== undefined
          ? formatBytes(Math.max(0, committed - summary.ingestedLsn))
          : undefined,
        summary && formatBytes(Math.max(0, summary.ingestedLsn - summary.durableLsn)),
        summary?.lastWallTimeUs ? `${formatRoughly(nowMs - summary.lastWallTimeUs / 1000)} ago` : undefined,
        pages && formatBytes(pages.layerBytes),
      ]
    }),
  )
}
