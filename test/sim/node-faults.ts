/**
 * What befalls the machines of a simulated cell and the network between them. At most one node at a time has lost or damaged what it had
 * acknowledged, and no members change meanwhile.
 */
import { flipBit } from './damage.ts'
import type { SimCell } from './sim-cell.ts'
import type { SimRandom } from './world.ts'

export class SimFaults {
  private readonly cell: SimCell
  /** Bits that were turned. */
  damages = 0

  constructor(cell: SimCell) {
    this.cell = cell
  }

  crash(random: SimRandom): void {
    if (random.chance(0.08)) for (const host of this.cell.up()) host.crash()
    else this.cell.somebody(random)?.crash()
  }

  crashAtOperation(random: SimRandom): void {
    const host = this.cell.somebody(random)
    if (host !== undefined) host.faults.crashIn = random.int(1, 40)
  }

  failSync(random: SimRandom): void {
    const host = this.cell.somebody(random)
    if (host !== undefined) host.faults.failSyncIn = random.int(1, 10)
  }

  fill(random: SimRandom): void {
    const host = this.cell.somebody(random)
    if (host === undefined) return
    host.disk.capacity = host.disk.used + random.int(0, 200_000)
    this.cell.world.after(random.between(200, 3000), () => {
      host.disk.capacity = Number.POSITIVE_INFINITY
    })
  }

  partition(random: SimRandom): void {
    const { network } = this.cell
    network.unblockAll()
    if (random.chance(0.4)) return
    const names = [...this.cell.hosts.keys()]
    if (random.chance(0.6)) {
      const side = new Set(names.filter(() => random.chance(0.4)))
      const how = random.pick(['both', 'out', 'in'])
      for (const a of side)
        for (const b of names) {
          if (side.has(b)) continue
          if (how !== 'in') network.block(a, b)
          if (how !== 'out') network.block(b, a)
        }
    } else for (let n = random.int(1, 3); n > 0; n--) network.block(random.pick(names), random.pick(names))
    this.cell.world.after(random.between(100, 4000), () => network.unblockAll())
  }

  reset(random: SimRandom): void {
    const name = random.pick([...this.cell.hosts.keys()])
    const chance = random.pick([0.2, 1])
    this.cell.network.reset(link => (link.client === name || link.server === name) && random.chance(chance))
  }

  slow(random: SimRandom): void {
    const host = this.cell.somebody(random)
    if (host === undefined) return
    host.faults.slowness = random.pick([3, 20, 200])
    this.cell.world.after(random.between(100, 2000), () => {
      host.faults.slowness = 1
    })
  }

  stepClock(random: SimRandom): void {
    const host = random.pick([...this.cell.hosts.values()])
    host.wall.stepUs = Math.round(random.between(-1e12, 1e12))
  }

  /** A disk is lost, or a bit of it turns over, at rest or under a node that runs; only where the others make up for it. */
  damage(random: SimRandom): void {
    if (this.cell.damaged !== undefined || this.cell.changing || this.cell.lies) return
    const leader = this.cell.leader()
    const membership = leader?.node?.members.membership
    if (membership === undefined || membership.outgoing !== undefined || membership.voters.length < 3) return
    const members = [...this.cell.hosts.values()].filter(
      host => host.nodeId !== undefined && membership.voters.includes(host.nodeId),
    )
    // Another incarnation may have got in without our knowing which.
    if (members.length < membership.voters.length) return
    const host = random.pick(members)
    const isRunning = random.chance(0.5)
    if (!isRunning) host.crash()
    if (!isRunning && random.chance(0.4)) {
      this.cell.trace?.(`${this.cell.world.nowMs.toFixed(1)} ${host.name} loses its disk`)
      this.cell.damaged = { host, what: undefined, looking: false }
      this.cell.checker.forgotten.add(host.nodeId!)
      host.wipe()
      return
    }
    const what = flipBit(host.disk, random)
    this.cell.trace?.(
      `${this.cell.world.nowMs.toFixed(1)} ${host.name}: ${what?.what ?? 'nothing to damage'}`,
    )
    if (what === undefined) return
    this.damages++
    this.cell.damaged = { host, what, looking: false }
    this.cell.checker.forgotten.add(host.nodeId!)
  }

  /** Whether what was damaged has everything again. */
  async lookAtDamage(): Promise<void> {
    const { damaged } = this.cell
    if (damaged === undefined || damaged.looking) return
    const { host, what } = damaged
    const leader = this.cell.leader()
    if (leader === undefined || host.node === undefined) return
    const { membership } = leader.node!.members
    if (membership.outgoing !== undefined || !membership.voters.includes(host.nodeId!)) return
    const status = host.node.status()
    if (status.role === 'waiting' || status.role === 'recovering') return
    if (status.flushedIndex < leader.node!.driver.commitIndex || status.term !== leader.node!.driver.term)
      return
    if (what !== undefined) {
      damaged.looking = true
      const isMended = await what.isMended(host.disk)
      damaged.looking = false
      if (!isMended || this.cell.damaged !== damaged) return
    }
    this.cell.trace?.(`${this.cell.world.nowMs.toFixed(1)} ${host.name} is whole again`)
    this.cell.checker.forgotten.delete(host.nodeId!)
    this.cell.damaged = undefined
  }
}
