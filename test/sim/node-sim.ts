/**
 * Simulation of whole safekeepers: the production node (bootstrap, driver, log with recovery and packs, peers, members, backup, and
 * the services for clients, through the wire's codec) over simulated disks, clocks, network and object store. One seed, one run: a
 * safety phase with faults everywhere, then all is healed and progress is demanded. node-checker.ts tells what must hold.
 *
 * At any moment at most one node has lost or damaged what it had acknowledged, and no membership is changed meanwhile; so each run
 * can be won. Damage must be gone again by the end, without a restart where it was made without one.
 */
import { decompressInPlace } from '../../server/shared/zstd.ts'
import { Violation } from './core-checker.ts'
import { SimBackup } from './node-backup.ts'
import { read } from './node-clients.ts'
import { SimFaults } from './node-faults.ts'
import { Healing } from './node-healing.ts'
import { SimOperator } from './node-operator.ts'
import { SimTimelines } from './node-timelines.ts'
import { SimCell, type SimCellOptions } from './sim-cell.ts'
import type { SimRandom } from './world.ts'

export interface NodeSimOptions extends SimCellOptions {
  /** Of the safety phase. */
  readonly safetyMs?: number | undefined
}

export interface NodeSimResult {
  readonly seed: number
  readonly events: number
  readonly simulatedMs: number
  readonly leaders: number
  readonly acks: number
  readonly chunksRead: number
  readonly durabilityChecks: number
  readonly starts: number
  readonly damages: number
  readonly repaired: number
  readonly restores: number
}

const SAFETY_MS = 12_000
const EVENTS_WAITING_MAX = 200_000

const settled = () => new Promise<void>(resolve => setImmediate(resolve))

class NodeSim {
  private readonly options: NodeSimOptions
  private readonly cell: SimCell
  private readonly timelines: SimTimelines
  private readonly faults: SimFaults
  private readonly operator: SimOperator
  private readonly backup: SimBackup
  private readonly repaired = new Map<object, number>()

  constructor(options: NodeSimOptions) {
    this.options = options
    this.cell = new SimCell(options)
    this.timelines = new SimTimelines(this.cell)
    this.faults = new SimFaults(this.cell)
    this.operator = new SimOperator(this.cell)
    this.backup = new SimBackup(this.cell)
  }

  async run(): Promise<NodeSimResult> {
    const onRejection = (reason: unknown) => {
      const error = reason instanceof Error ? reason : new Error(String(reason))
      this.cell.fail(new Violation(`a promise was rejected and nobody looked: ${error.stack}`))
    }
    process.on('unhandledRejection', onRejection)
    try {
      await this.play()
    } finally {
      await settled()
      process.off('unhandledRejection', onRejection)
      // What is left over never runs.
      for (const host of this.cell.hosts.values()) if (host.life !== undefined) host.life.alive = false
      this.cell.life.alive = false
    }
    const { checker, world } = this.cell
    return {
      seed: this.options.seed,
      events: world.events,
      simulatedMs: Math.round(world.nowMs),
      leaders: checker.leaders,
      acks: checker.acks,
      chunksRead: checker.chunksRead,
      durabilityChecks: checker.durabilityChecks,
      starts: [...this.cell.hosts.values()].reduce((sum, host) => sum + host.starts, 0),
      damages: this.faults.damages,
      repaired: [...this.repaired.values()].reduce((sum, count) => sum + count, 0),
      restores: this.backup.restores,
    }
  }

  private async play(): Promise<void> {
    const { cell, timelines, faults, operator, backup } = this
    const { random } = cell
    for (const host of cell.hosts.values()) cell.world.after(random.between(0, 300), () => host.start())
    for (let n = random.int(1, 3); n > 0; n--) cell.go(`timeline ${n}`, r => timelines.make(r))
    cell.go('more timelines', r => timelines.goOn(r))
    for (let n = 1; n <= 2; n++) cell.go(`reader ${n}`, r => read(cell, `reader ${n}`, r))
    const plan = cell.fork('faults')
    const often = plan.pick([1, 2, 4])
    this.plan('crash', 900 * often, r => faults.crash(r))
    this.plan('crash at an operation', 700 * often, r => faults.crashAtOperation(r))
    this.plan('stop', 4000 * often, r => void cell.somebody(r)?.stop())
    this.plan('failing sync', 3000 * often, r => faults.failSync(r))
    this.plan('full disk', 4000 * often, r => faults.fill(r))
    this.plan('partition', 1500 * often, r => faults.partition(r))
    this.plan('reset', 500 * often, r => faults.reset(r))
    this.plan('slow disk', 1500 * often, r => faults.slow(r))
    this.plan('clock', 1000, r => faults.stepClock(r))
    this.plan('damage', 900 * often, r => faults.damage(r))
    this.plan('restore', 5000, () => void backup.restore().catch(error => cell.fail(error as Error)))
    this.plan('transfer', 2500, r => operator.transfer(r))
    this.plan('members', 3000, r => void operator.changeMembers(r).catch(error => cell.fail(error as Error)))
    await this.until(this.options.safetyMs ?? SAFETY_MS, () => false)
    const until = (ms: number, isOver: () => boolean) => this.until(ms, isOver)
    await new Healing(cell, { until, restore: () => backup.restore() }).heal()
  }

  private plan(name: string, meanMs: number, run: (random: SimRandom) => void): void {
    const { cell } = this
    const random = cell.fork(name)
    const again = () => {
      if (cell.isHealing) return
      run(random)
      cell.world.after(random.between(0, 2 * meanMs), again)
    }
    cell.world.after(500 + random.between(0, 2 * meanMs), again)
  }

  /** Lets the world go on until then. Throws the first violation. */
  private async until(ms: number, isOver: () => boolean): Promise<boolean> {
    const { world } = this.cell
    while (world.nowMs < ms) {
      world.runUntil(ms, () => true)
      await settled()
      this.look()
      if (this.cell.violation !== undefined) throw this.cell.violation
      if (isOver()) return true
    }
    return false
  }

  private look(): void {
    const { cell } = this
    cell.checker.look()
    if (cell.world.waiting > EVENTS_WAITING_MAX) cell.fail(new Violation(`${cell.world.waiting} events wait`))
    for (const host of cell.hosts.values())
      if (cell.world.nowMs > host.mustEndBeforeMs)
        cell.fail(new Violation(`${host.name} goes on 2 s after a sync of its log or vote failed`))
    if (cell.world.events % 256 === 0) {
      void this.faults.lookAtDamage()
      for (const { node } of cell.up()) {
        const stats = node!.logStats
        if (stats !== undefined) this.repaired.set(node!, stats.damagesRepaired + stats.smallFilesRepaired)
      }
    }
    if (cell.world.events % 512 === 0 && cell.store !== undefined) void this.backup.look(cell.store.inner)
  }
}

export function runNodeSim(options: NodeSimOptions): Promise<NodeSimResult> {
  decompressInPlace()
  return new NodeSim(options).run()
}
