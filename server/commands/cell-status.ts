/** The safekeepers of a cell as `palimpsest status` shows them: every node asked for itself, and what wants attention. */
import { dial, parseAddress } from '../../protocol/dial.ts'
import { type CellStatusReply, MessageType, Role } from '../../protocol/messages.ts'
import { openClientSecurity } from '../shared/client-security.ts'
import { formatBytes, formatRoughly } from '../shared/format.ts'
import { type ClientOptions, withoutType } from './common.ts'
import { leaderStatus, nameOf } from './leader-status.ts'
import { plainTable } from './table.ts'

const ASK_MS = 3000

export interface CellView {
  /** As the leader sees it, or whoever answered. */
  readonly cell: CellStatusReply
  /** Each member's own answer; undefined: none. */
  readonly nodes: readonly NodeView[]
}

export interface NodeView {
  readonly name: string
  readonly status: CellStatusReply | undefined
  /** Until when its certificate is valid, milliseconds since 1970; undefined: it has none, or was not reached. */
  readonly certificateExpiresAtMs?: number | undefined
}

export async function collectCell(options: ClientOptions): Promise<CellView> {
  const cell = await leaderStatus(options)
  const how = { security: openClientSecurity(options), deadlineMs: ASK_MS }
  const nodes = await Promise.all(
    cell.members.map(async member => {
      const name = nameOf(member.nodeId)
      // It has answered already, by whatever address it was asked.
      const known = member.nodeId === cell.nodeId ? cell : undefined
      try {
        const connection = await dial([parseAddress(member.address)], Role.SAFEKEEPER, how)
        try {
          const { certificateExpiresAtMs } = connection
          const { message } = await connection.request({ type: MessageType.CellStatus })
          return message.nodeId === member.nodeId
            ? { name, status: message, certificateExpiresAtMs }
            : { name, status: known }
        } finally {
          connection.close()
        }
      } catch {
        return { name, status: known }
      }
    }),
  )
  return { cell, nodes }
}

export function cellComplaints({ cell, nodes }: CellView): string[] {
  const lines: string[] = []
  const voters = cell.members.filter(member => member.kind === 'voter')
  const quorum = Math.floor(voters.length / 2) + 1
  if (cell.cellId === '') return [`${nameOf(cell.nodeId)} is in no cell yet`]
  if (!cell.members.some(member => member.nodeId === cell.nodeId))
    return [
      `${nameOf(cell.nodeId)} is no member of the cell any more: stop it, and give --connect addresses of members`,
    ]
  // One that was asked and knows of none may stand alone with that: its lastError tells why.
  const isLeaderless =
    cell.leader === '' && nodes.every(({ status }) => status === undefined || status.leader === '')
  if (isLeaderless)
    lines.push('the safekeepers have no leader: redo is not taken until a quorum of them is up')
  const down = nodes.filter(node => node.status === undefined).map(node => node.name)
  const recovering = nodes.filter(node => node.status?.role === 'recovering').map(node => node.name)
  const noVote = new Set([...down, ...recovering])
  const left = voters.filter(voter => !noVote.has(nameOf(voter.nodeId))).length
  if (down.length > 0) {
    const what =
      left < quorum
        ? 'no quorum is left. Bring one back with its disk; if the disks are lost, see "palimpsest member recover"'
        : left === quorum
          ? 'not one more may be lost'
          : `${left - quorum} more may be lost`
    lines.push(`no answer from safekeeper ${down.join(', ')}: ${what}`)
  }
  if (recovering.length > 0) {
    const what = `safekeeper ${recovering.join(', ')}: part of the log was damaged`
    // Who recovers has no vote, and whom it could recover from needs votes to become leader: nobody gets out of this alone.
    if (left < quorum && down.length === 0 && isLeaderless)
      lines.push(
        `${what} on so many that no quorum may vote, and they do not get it back by themselves: see "palimpsest member recover"`,
      )
    else lines.push(`${what}; it is fetched from the others, and there is no vote until then`)
  }
  for (const { name, status } of nodes) {
    if (status?.writable === false)
      lines.push(`safekeeper ${name}: ${status.lastError || 'its disk is full'}`)
    else if (status !== undefined && status.lastError !== '')
      lines.push(`safekeeper ${name}: ${status.lastError}`)
  }
  if (cell.members.some(member => member.kind === 'outgoing'))
    lines.push('a change of the members is under way')
  const zones = new Map<string, number>()
  for (const { zone } of voters) zones.set(zone, (zones.get(zone) ?? 0) + 1)
  if (voters.length > 1)
    // With an even number, half of them are enough to stop the other half.
    for (const [zone, count] of zones)
      if (zone !== '' && voters.length - count < quorum)
        lines.push(
          `${count} of ${voters.length} safekeepers stand in zone ${zone}: if it is lost, so is the quorum`,
        )
  return lines
}

/** A node's status for programs: with the names by which the commands know the nodes. */
export function cellJson(status: CellStatusReply): object {
  return {
    name: nameOf(status.nodeId),
    ...withoutType(status),
    members: status.members.map(member => ({ name: nameOf(member.nodeId), ...member })),
  }
}

export function cellTable({ cell, nodes }: CellView, nowMs = Date.now()): string {
  const columns = [
    { head: 'safekeeper' },
    { head: 'role' },
    { head: 'term', align: 'right' },
    { head: 'committed', align: 'right' },
    { head: 'behind', align: 'right' },
    { head: 'disk', align: 'right' },
    { head: 'saved', align: 'right' },
    { head: 'certificate', align: 'right' },
    { head: 'zone' },
  ] as const
  const rows = cell.members.map((member, i) => {
    const { name, status, certificateExpiresAtMs } = nodes[i]!
    const left = certificateExpiresAtMs === undefined ? undefined : certificateExpiresAtMs - nowMs
    if (status === undefined) return [name, 'no answer', ...Array<undefined>(columns.length - 3), member.zone]
    return [
      name,
      status.role,
      status.term,
      status.commitIndex,
      Math.max(0, cell.lastIndex - status.flushedIndex),
      formatBytes(status.diskBytes),
      // Packs whose redo is needed no more still have their tables: that says nothing about compression.
      status.storedBytes < status.rawBytes
        ? `${Math.round((1 - status.storedBytes / status.rawBytes) * 100)} %`
        : undefined,
      left === undefined ? undefined : left <= 0 ? 'expired' : formatRoughly(left),
      status.zone,
    ]
  })
  return plainTable(columns, rows)
}
