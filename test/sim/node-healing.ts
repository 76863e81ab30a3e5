/**
 * The end of a simulated run: all faults end, and the cell must come to rest, take more appends for each timeline, give back everything
 * that was acknowledged and is needed from every member, and finish a backup that verifies.
 */
import { verifyBackup } from '../../server/safekeeper/backup-restore.ts'
import type { MemoryObjectStore } from '../support/memory-object-store.ts'
import { Violation } from './core-checker.ts'
import type { ModelTimeline } from './node-checker.ts'
import { readThrough } from './node-clients.ts'
import type { SimCell } from './sim-cell.ts'

/**
 * A node that has lost an old snapshot keeps the file until no redo below the next one is needed: by then consumers must have gone on, and
 * while all heals they stand still.
 */
function isOldSnapshot({ host, what }: NonNullable<SimCell['damaged']>): boolean {
  const index = (path: string) => Number(/\/snapshot-(\d+)\.json$/.exec(path)?.[1])
  return host.disk.paths().some(path => index(path) > index(what?.path ?? ''))
}

/** Until all must be well again. */
const HEAL_MS = 120_000

export interface HealingOptions {
  /** Lets the world go on until then, or `isOver`, which it returns. Throws the first violation. */
  readonly until: (ms: number, isOver: () => boolean) => Promise<boolean>
  /** Makes another cell from the backup, and compares. */
  readonly restore: () => Promise<void>
}

export class Healing {
  private readonly cell: SimCell
  private readonly options: HealingOptions

  constructor(cell: SimCell, options: HealingOptions) {
    this.cell = cell
    this.options = options
  }

  async heal(): Promise<void> {
    const { world, network, checker } = this.cell
    this.cell.isHealing = true
    this.cell.trace?.(`${world.nowMs.toFixed(1)} healing`)
    network.unblockAll()
    if (this.cell.store !== undefined) this.cell.store.failing = 0
    for (const host of this.cell.hosts.values()) {
      host.disk.capacity = Number.POSITIVE_INFINITY
      Object.assign(host.faults, { slowness: 1, crashIn: 0, failSyncIn: 0 })
      host.start()
    }
    const timelines = () => [...checker.timelines.values()].filter(timeline => timeline.isAlive)
    const untilMs = world.nowMs + HEAL_MS
    let why = ''
    const before = new Map(timelines().map(timeline => [timeline, timeline.acks]))
    const isWell = () => {
      why = this.whyNotWell()
      if (why !== '') return false
      const stuck = timelines().find(timeline => timeline.acks <= (before.get(timeline) ?? 0))
      if (stuck !== undefined) why = `nothing more is acknowledged of ${stuck.name}`
      return why === ''
    }
    if (!(await this.options.until(untilMs, isWell)))
      throw new Violation(`not well ${HEAL_MS / 1000} s after all faults ended: ${why}`)
    this.cell.isOver = true
    // Writers end what they are at.
    const quiet = () => this.whyNotWell() === '' && this.isEven()
    const restMs = world.nowMs + 12_000
    await this.options.until(restMs, () => false)
    if (!(await this.options.until(world.nowMs + HEAL_MS, quiet)))
      throw new Violation('the nodes did not come to have the same')
    let done = false
    this.cell.go('last reading', async () => {
      await this.readAll(timelines())
      done = true
    })
    if (!(await this.options.until(world.nowMs + HEAL_MS, () => done)))
      throw new Violation('the last reading did not end')
    if (this.cell.store !== undefined) await this.checkBackup(this.cell.store.inner)
    if (this.cell.violation !== undefined) throw this.cell.violation
  }

  /** Empty if the cell is as it should be. */
  private whyNotWell(): string {
    const leader = this.cell.leader()
    if (leader === undefined) return 'no leader'
    const { membership } = leader.node!.members
    if (membership.outgoing !== undefined) return 'a change of members is under way'
    if (this.cell.changing) return 'the operator waits'
    const { damaged } = this.cell
    if (damaged !== undefined && !isOldSnapshot(damaged))
      return `${damaged.host.name} has not got back what it lost`
    for (const id of membership.voters) {
      const host = this.cell.up().find(up => up.nodeId === id)
      if (host === undefined) return `member ${id} is not there`
      const { role } = host.node!.driver
      if (role !== 'follower' && role !== 'leader') return `member ${id} is ${role}`
      if (host.node!.status().leader !== leader.nodeId) return `member ${id} does not follow ${leader.nodeId}`
      const { unready } = host.node!
      if (unready !== undefined) return `member ${id} says: ${unready}`
    }
    return ''
  }

  private isEven(): boolean {
    const { commitIndex, state } = this.cell.leader()!.node!.driver
    return (
      state.last.index === commitIndex &&
      this.cell.members().every(host => host.node!.driver.state.last.index >= commitIndex)
    )
  }

  /** Everything that was acknowledged and is needed, from every member. */
  private async readAll(timelines: readonly ModelTimeline[]): Promise<void> {
    const { checker } = this.cell
    for (const host of this.cell.members())
      for (const timeline of timelines) {
        const from = Math.max(timeline.neededFrom, timeline.startLsn)
        const by = `the last reader at ${host.name}`
        const connection = await this.cell.dial('last', host.address, false)
        try {
          const end = await readThrough(this.cell, connection, timeline, from, by)
          checker.demand(end >= timeline.ackedEnd, () => {
            return `${by}: ${timeline.name} ends at ${end}, but ${timeline.ackedEnd} was acknowledged`
          })
        } catch (error) {
          throw new Violation(`${by} cannot read ${timeline.name} from ${from}: ${(error as Error).message}`)
        } finally {
          connection.close()
        }
      }
  }

  private async checkBackup(store: MemoryObjectStore): Promise<void> {
    const { node } = this.cell.leader()!
    const { cellId } = node!.status()
    const applied = () =>
      this.cell.leader()?.node?.driver.state.notes.get('backup') as { done?: number } | undefined
    const goal = node!.driver.commitIndex
    if (
      !(await this.options.until(this.cell.world.nowMs + HEAL_MS, () => (applied()?.done ?? 0) >= goal - 4))
    )
      throw new Violation(`the backup stays at ${JSON.stringify(applied())}, the log at ${goal}`)
    const { manifest } = await verifyBackup(store, cellId)
    const end = manifest.packs.at(-1)?.last ?? manifest.base.index
    let done = false
    this.cell.go('last restore', async () => {
      await this.options.restore()
      done = true
    })
    if (!(await this.options.until(this.cell.world.nowMs + HEAL_MS, () => done)))
      throw new Violation('the last restore did not end')
    if (end < (applied()?.done ?? 0))
      throw new Violation(`the backup ends at ${end}, the cell notes ${applied()?.done}`)
  }
}
