/** The safekeepers of a cell as `palimpsest status` shows them: every node asked for itself, and what wants attention. */
import Table from 'cli-table3'
import { parseAddress } from '../../protocol/dial.ts'
import { type CellStatusReply, MessageType } from '../../protocol/messages.ts'
import { askLeader } from '../shared/cell-client.ts'
import { openClientSecurity } from '../shared/client-security.ts'
import { formatBytes } from '../shared/format.ts'
import type { ClientOptions } from './common.ts'
import { leaderStatus, nameOf } from './leader-status.ts'

const ASK_MS = 3000

export interface CellView {
  /** As the leader sees it, or whoever answered. */
  readonly cell: CellStatusReply
  /** Each member's own answer; undefined: none. */
  readonly nodes: readonly { readonly name: string; readonly status: CellStatusReply | undefined }[]
}

export async function collectCell(options: ClientOptions): Promise<CellView> {
  const cell = await leaderStatus(options)
  const dial = { security: openClientSecurity(options), deadlineMs: ASK_MS }
  const nodes = await Promise.all(
    cell.members.map(async member => {
      const name = nameOf(member.nodeId)
      if (member.nodeId === cell.nodeId) return { name, status: cell }
      try {
        const address = [parseAddress(member.address)]
        const request = { deadlineMs: ASK_MS }
        const { message } = await askLeader(address, { type: MessageType.CellStatus }, { dial, request })
        return { name, status: message.nodeId === member.nodeId ? message : undefined }
      } catch {
        return { name, status: undefined }
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
  if (cell.leader === '')
    lines.push('the safekeepers have no leader: redo is not taken until a quorum of them is up')
  const down = nodes.filter(node => node.status === undefined).map(node => node.name)
  if (down.length > 0) {
    const left = voters.length - voters.filter(voter => down.includes(nameOf(voter.nodeId))).length
    const what =
      left < quorum
        ? 'no quorum is left. Bring one back with its disk; if the disks are lost, see "palimpsest backup restore"'
        : left === quorum
          ? 'not one more may be lost'
          : `${left - quorum} more may be lost`
    lines.push(`no answer from safekeeper ${down.join(', ')}: ${what}`)
  }
  for (const { name, status } of nodes) {
    if (status?.writable === false)
      lines.push(`safekeeper ${name}: ${status.lastError || 'its disk is full'}`)
    else if (status !== undefined && status.lastError !== '')
      lines.push(`safekeeper ${name}: ${status.lastError}`)
    if (status?.role === 'recovering')
      lines.push(`safekeeper ${name} fetches what was damaged on its disk from the others`)
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

export function cellTable({ cell, nodes }: CellView): string {
  const table = new Table({
    head: ['safekeeper', 'role', 'term', 'committed', 'flushed', 'behind', 'disk', 'packed', 'zone'],
    colAligns: ['left', 'left', 'right', 'right', 'right', 'right', 'right', 'right', 'left'],
    style: { head: [], border: [], compact: true },
  })
  cell.members.forEach((member, i) => {
    const { name, status } = nodes[i]!
    if (status === undefined)
      table.push([name, 'no answer', '-', '-', '-', '-', '-', '-', member.zone || '-'])
    else
      table.push([
        name,
        status.role,
        status.term,
        status.commitIndex,
        status.flushedIndex,
        Math.max(0, cell.lastIndex - status.flushedIndex),
        formatBytes(status.diskBytes),
        status.rawBytes > 0 ? `${Math.round((1 - status.storedBytes / status.rawBytes) * 100)} % less` : '-',
        status.zone || '-',
      ])
  })
  return table.toString()
}
