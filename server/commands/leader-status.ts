/** Who leads the cell, as the commands find it out: any safekeeper that was named may be asked first. */
import { type Address, parseAddress } from '../../protocol/dial.ts'
import { type CellStatusReply, MessageType } from '../../protocol/messages.ts'
import { askLeader } from '../shared/cell-client.ts'
import { openClientSecurity } from '../shared/client-security.ts'
import type { ClientOptions } from './common.ts'

/** A node's name, without what tells one disk under that name from another. */
export function nameOf(nodeId: string): string {
  return nodeId.slice(0, nodeId.lastIndexOf('.'))
}

/** A node that has not answered by then is left out, where others may know more. */
const ASK_MS = 3000

/** The status of the node that leads; of any that answers if none does. */
export async function leaderStatus(options: ClientOptions): Promise<CellStatusReply> {
  const security = openClientSecurity(options)
  const ask = (addresses: readonly Address[], deadlineMs?: number) =>
    askLeader(
      addresses,
      { type: MessageType.CellStatus },
      { dial: { security, deadlineMs }, request: { deadlineMs } },
    ).then(({ message }) => message)
  const leaderOf = async (status: CellStatusReply) => {
    if (status.role === 'leader' || status.leaderAddress === '') return status
    return ask([parseAddress(status.leaderAddress)], ASK_MS).catch(() => status)
  }
  const first = await leaderOf(await ask(options.connect))
  if (first.role === 'leader') return first
  // That one may be cut off, or have been taken out of the cell without having heard of it: others know better.
  const all = await Promise.all(
    options.connect.map(address => ask([address], ASK_MS).then(leaderOf, () => undefined)),
  )
  const known = all.filter(status => status !== undefined)
  return (
    known.filter(({ role }) => role === 'leader').sort((a, b) => b.term - a.term)[0] ??
    known.find(({ leader }) => leader !== '') ??
    first
  )
}
