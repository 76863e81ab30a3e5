/** Who looks after a simulated cell: hands the lead over, adds, replaces and removes members. */
import type { Connection } from '../../protocol/connection.ts'
import { formatAddress } from '../../protocol/dial.ts'
import type { PalimpsestError } from '../../protocol/errors.ts'
import { MessageType } from '../../protocol/messages.ts'
import { Asker } from './node-clients.ts'
import type { SimCell } from './sim-cell.ts'
import type { SimRandom } from './world.ts'

export class SimOperator {
  private readonly cell: SimCell

  constructor(cell: SimCell) {
    this.cell = cell
  }

  transfer(random: SimRandom): void {
    const leader = this.cell.leader()
    if (leader === undefined) return
    const name = random.pick([...this.cell.hosts.keys()])
    leader.node!.members.transfer(name).catch(() => {})
  }

  async changeMembers(random: SimRandom): Promise<void> {
    if (this.cell.changing || this.cell.damaged !== undefined) return
    const leader = this.cell.leader()
    const membership = leader?.node?.members.membership
    if (membership === undefined || membership.outgoing !== undefined) return
    const names = membership.voters.map(id => id.slice(0, id.lastIndexOf('.')))
    const [spare] = this.cell.outside
    const asker = new Asker(this.cell, 'operator', random)
    let request: Parameters<Connection['request']>[0]
    let out: string | undefined
    if (spare !== undefined && random.chance(0.7)) {
      const address = formatAddress(this.cell.hosts.get(spare)!.address)
      out = random.chance(0.5) ? random.pick(names) : undefined
      request =
        out === undefined
          ? { type: MessageType.MemberAdd, name: spare, address }
          : { type: MessageType.MemberReplace, old: out, name: spare, address }
    } else {
      if (names.length <= 3) return
      out = random.pick(names)
      request = { type: MessageType.MemberRemove, name: out }
    }
    this.cell.changing = true
    this.cell.trace?.(`${this.cell.world.nowMs.toFixed(1)} operator: ${JSON.stringify(request)}`)
    if (spare !== undefined && request.type !== MessageType.MemberRemove) this.cell.outside.delete(spare)
    const done = await asker
      .insist(connection => connection.request(request, { deadlineMs: 20_000 }))
      .catch((error: PalimpsestError) => {
        // Removed, the answer lost, and whoever leads now does not remember that it was a member.
        if (request.type === MessageType.MemberRemove && error.message.includes('has no member')) return true
        throw error
      })
    this.cell.trace?.(
      `${this.cell.world.nowMs.toFixed(1)} operator: ${done === undefined ? 'gave up' : 'done'}`,
    )
    this.cell.changing = false
    if (out === undefined || done === undefined) return
    // It is taken away, and comes back as a spare with a new disk.
    this.cell.outside.add(out)
    const host = this.cell.hosts.get(out)!
    if (!host.isDown) host.crash()
    host.wipe({ peers: new Map(), join: [...this.cell.first.values()] })
  }
}
