/** One chaos run: everything started, faults one after the other from a seeded schedule, and all that has to hold checked. */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { formatBytes } from '../../server/shared/format.ts'
import { SeededRandom } from '../support/workloads/random.ts'
import { BANK, BankSide } from './bank-side.ts'
import { ChaosCell } from './cell.ts'
import { type Fault, type FaultName, roundOf, type Stage } from './faults.ts'
import { Keys } from './keys.ts'
import { disagreements } from './logs-agree.ts'
import { loopback, namespaces } from './network.ts'
import { SyntheticWriter } from './synthetic.ts'

/** Two more than members, so that one can be replaced by another. */
const SLOTS = 5
const DISK_BYTES = 3 * 1024 ** 3
const HOLD_BYTES = 256 << 20
const SETTLE_MS = 120_000

export interface ChaosOptions {
  readonly seed: number
  /** Faults go on for so long. Ignored with `schedule`. */
  readonly minutes: number
  readonly faults: readonly FaultName[]
  /** These, once, instead of a random schedule. */
  readonly schedule?: readonly Fault[]
  /** In namespaces of this process's own, each node behind its own link. */
  readonly isolated: boolean
  /** Of the synthetic writer; 0: as fast as it goes. */
  readonly bytesPerSecond: number
  /** Keep folder and logs even if all was well. */
  readonly keep: boolean
  say(text: string): void
}

export interface ChaosResult {
  readonly ok: boolean
  readonly summary: string
  readonly wrong: readonly string[]
  readonly history: readonly string[]
  /** Kept if something was wrong. */
  readonly dir: string
  readonly leaderlessMs: readonly number[]
}

export async function runChaos(options: ChaosOptions): Promise<ChaosResult> {
  const dir = mkdtempSync(join(process.env['PALIMPSEST_TEST_TMP'] ?? tmpdir(), 'pal-chaos-'))
  const run = new ChaosRun(options, dir)
  const wrong = await run.all()
  const ok = wrong.length === 0
  const summary = run.summary(ok)
  if (!ok) writeFileSync(join(dir, 'history.txt'), [...run.history, '', ...wrong, summary, ''].join('\n'))
  else if (!options.keep) rmSync(dir, { recursive: true, force: true })
  const { history, leaderlessMs } = run
  return { ok, summary, wrong, history, dir, leaderlessMs }
}

class ChaosRun {
  readonly history: string[] = []
  readonly leaderlessMs: number[] = []
  private readonly options: ChaosOptions
  private readonly dir: string
  private readonly random: SeededRandom
  private readonly begun = performance.now()
  private readonly counts = new Map<FaultName, number>()
  private readonly died: string[] = []
  private cell: ChaosCell | undefined
  private synthetic: SyntheticWriter | undefined
  private bank: BankSide | undefined
  private longestGap = { ms: 0, during: 'no fault' }
  private transfers = 0

  constructor(options: ChaosOptions, dir: string) {
    this.options = options
    this.dir = dir
    this.random = new SeededRandom(options.seed)
  }

  private say(text: string): void {
    const line = `${((performance.now() - this.begun) / 1000).toFixed(1).padStart(7)} s  ${text}`
    this.history.push(line)
    this.options.say(line)
  }

  /** @returns what is wrong */
  async all(): Promise<string[]> {
    const wrong: string[] = []
    try {
      const stage = await this.start()
      for await (const fault of this.schedule()) await this.inflict(fault, stage)
      wrong.push(...(await this.finish(stage)))
    } catch (error) {
      const why = error instanceof Error ? error.message : String(error)
      this.say(`FAILED: ${why}`)
      wrong.push(why)
    }
    wrong.push(...this.died)
    this.synthetic?.close()
    this.transfers = this.bank?.transfers ?? 0
    const ends = [this.bank?.remove(), this.cell?.kill9()]
    for (const end of await Promise.allSettled(ends))
      if (end.status === 'rejected') wrong.push(String(end.reason))
    if (wrong.length === 0)
      for (const { disk } of this.cell?.nodes.values() ?? [])
        await disk?.unmount().catch(error => wrong.push(String(error)))
    return wrong
  }

  private async start(): Promise<Stage> {
    const { seed, faults, isolated, bytesPerSecond } = this.options
    const { dir, random, leaderlessMs } = this
    this.say(`seed ${seed}, faults ${faults.join(',')}, in ${dir}`)
    const onDied = (why: string) => {
      this.say(`DIED: ${why}`)
      this.died.push(why)
    }
    const network = isolated ? await namespaces(SLOTS) : await loopback(SLOTS)
    const hosts = network.slots.map(slot => slot.address.host)
    const keys = await Keys.make(join(dir, 'keys'), hosts, `write:${BANK}`)
    const diskBytes = faults.includes('disk') ? DISK_BYTES : undefined
    const cell = await ChaosCell.start({ dir, network, keys, diskBytes, onDied })
    this.cell = cell
    this.say('three safekeepers run')
    const bank = await BankSide.start({ dir, network, keys, cell, seed, onDied })
    this.bank = bank
    this.say('the bank is open, and attached')
    const synthetic = await SyntheticWriter.open({
      safekeepers: cell.addresses,
      dial: { security: keys.admin },
      seed,
      holdBytesMax: HOLD_BYTES,
      bytesPerSecond,
    })
    this.synthetic = synthetic
    synthetic.start()
    await synthetic.progress()
    return { cell, network, keys, synthetic, bank, random, leaderlessMs, say: text => this.say(`  ${text}`) }
  }

  /** All kinds in random order, again and again, until the time is up. */
  private *schedule(): Generator<Fault> {
    if (this.options.schedule !== undefined) {
      yield* this.options.schedule
      return
    }
    const until = performance.now() + this.options.minutes * 60_000
    for (;;) {
      const round = roundOf(this.options.faults)
      while (round.length > 0) {
        if (performance.now() > until) return
        yield round.splice(this.random.below(round.length), 1)[0]!
      }
    }
  }

  private async inflict(fault: Fault, stage: Stage): Promise<void> {
    const { synthetic, cell } = stage
    this.say(fault.text)
    synthetic.longestGapMs = 0
    await fault.run(stage)
    this.counts.set(fault.name, (this.counts.get(fault.name) ?? 0) + 1)
    await synthetic.progress()
    await cell.whole(SETTLE_MS)
    // Before this process is busy with comparing.
    const waitedMs = synthetic.longestGapMs
    if (waitedMs > this.longestGap.ms) this.longestGap = { ms: waitedMs, during: fault.text }
    await synthetic.compare(cell.running, SETTLE_MS)
    if (this.died.length > 0) throw new Error('a process ended that nobody had ended')
    this.say(
      `  healed; ${formatBytes(synthetic.ackedBytes)} acknowledged and right on all nodes; longest wait ${Math.round(waitedMs)} ms`,
    )
    await sleep(this.random.below(1500))
  }

  private async finish({ cell, synthetic, bank }: Stage): Promise<string[]> {
    await synthetic.stop()
    await cell.whole(SETTLE_MS)
    await synthetic.compare(cell.running, SETTLE_MS)
    this.say(`all ${formatBytes(synthetic.ackedBytes)} that were acknowledged are on every node`)
    const wrong = (await bank?.finish()) ?? []
    this.say(`the bank's ${bank?.transfers} transfers were looked for in an export, its pages compared`)
    const { committed } = await cell.whole(SETTLE_MS)
    await cell.stop()
    wrong.push(...(await disagreements([...cell.nodes.values()], committed)))
    this.say(`the logs of ${[...cell.nodes.keys()].join(', ')} were compared up to entry ${committed}`)
    return wrong
  }

  summary(ok: boolean): string {
    const { counts, leaderlessMs, longestGap, synthetic, options } = this
    const total = [...counts.values()].reduce((sum, count) => sum + count, 0)
    const kinds = [...counts].map(([name, count]) => `${name} ${count}`).join(', ')
    const sorted = leaderlessMs.toSorted((a, b) => a - b)
    const leaderless =
      sorted.length === 0
        ? 'no leader was killed'
        : `without a leader after kill -9: median ${Math.round(median(sorted))} ms, maximum ${Math.round(sorted.at(-1)!)} ms of ${sorted.length}`
    return (
      `chaos: ${ok ? 'OK' : 'FAILED'}, seed ${options.seed}, ${((performance.now() - this.begun) / 60_000).toFixed(1)} min, ` +
      `${total} faults (${kinds}), ${formatBytes(synthetic?.ackedBytes ?? 0)} acknowledged, ${this.transfers} transfers; ${leaderless}; ` +
      `longest wait for an acknowledgement ${Math.round(longestGap.ms)} ms (${longestGap.during})`
    )
  }
}

function median(sorted: readonly number[]): number {
  const middle = sorted.length >> 1
  return sorted.length % 2 === 1 ? sorted[middle]! : (sorted[middle - 1]! + sorted[middle]!) / 2
}
