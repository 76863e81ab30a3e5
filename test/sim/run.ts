/**
 * The body of `npm run sim` (scripts/sim.js): runs simulations until one fails, and tells the seed to run again.
 */
import { parseArgs } from 'node:util'
import { CANARIES } from './canaries.ts'
import { runCoreSim } from './core-sim.ts'
import { runNodeSim } from './node-sim.ts'
import { NODE_CANARIES, type NodeCanaryName } from './sim-cell.ts'

const HELP = `npm run sim -- [OPTIONS]

Simulates the consensus core, or whole safekeepers, with faults of all kinds, one run for each seed, until one fails.

  --level LEVEL   core: the rules of consensus alone (the default);
                  node: the production code of safekeepers over simulated disks, network, clocks and object store
  --seeds N       how many seeds (default 1000; 20 at level node)
  --from S        the first of them (default 1)
  --seed S        only this one
  --canary NAME   with a deliberate mistake; core: ${Object.keys(CANARIES).join(', ')}; node: ${NODE_CANARIES.join(', ')}
  --trace         print every event; use it with --seed
  --help          this text
`

function wholeNumber(name: string, text: string): number {
  const number = Number(text)
  if (Number.isSafeInteger(number) && number >= 0) return number
  throw new TypeError(`--${name} must be a whole number, not ${text}`)
}

function readOptions(args: string[]) {
  const { values } = parseArgs({
    args,
    options: {
      level: { type: 'string', default: 'core' },
      seeds: { type: 'string' },
      from: { type: 'string', default: '1' },
      seed: { type: 'string' },
      canary: { type: 'string' },
      trace: { type: 'boolean', default: false },
      help: { type: 'boolean', short: 'h', default: false },
    },
  })
  const { level, canary: name } = values
  if (level !== 'core' && level !== 'node') throw new TypeError(`--level must be core or node, not ${level}`)
  const names: readonly string[] = level === 'core' ? Object.keys(CANARIES) : NODE_CANARIES
  if (name !== undefined && !names.includes(name)) {
    throw new TypeError(`--canary must be one of ${names.join(', ')} at level ${level}, not ${name}`)
  }
  return {
    help: values.help,
    trace: values.trace,
    name,
    level,
    first: values.seed === undefined ? wholeNumber('from', values.from) : wholeNumber('seed', values.seed),
    count:
      values.seed === undefined
        ? wholeNumber('seeds', values.seeds ?? (level === 'core' ? '1000' : '20'))
        : 1,
  }
}

type Options = ReturnType<typeof readOptions>

/** Figures of one run, by what they count. */
type Figures = Readonly<Record<string, number>>

async function runSeed(seed: number, { level, name, trace: wantsTrace }: Options): Promise<Figures> {
  const trace = wantsTrace ? (line: string) => console.log(line) : undefined
  if (level === 'core') {
    const canary = name === undefined ? undefined : CANARIES[name]
    const { events, simulatedMs, leaders, committed } = runCoreSim({ seed, canary, trace })
    return { simulatedMs, events, leaders, 'entries committed': committed }
  }
  const canary = name as NodeCanaryName | undefined
  const { events, simulatedMs, leaders, acks, chunksRead, starts, damages, repaired, restores } =
    await runNodeSim({
      seed,
      canary,
      trace,
    })
  return {
    simulatedMs,
    events,
    starts,
    leaders,
    'appends acknowledged': acks,
    'chunks read': chunksRead,
    'bits turned': damages,
    'files repaired': repaired,
    'restores from the backup': restores,
  }
}

/** Returns the exit code: 0 nothing found, 1 a violation, 2 wrong usage. */
export async function main(args: string[]): Promise<number> {
  let options: Options
  try {
    options = readOptions(args)
  } catch (error) {
    if (!(error instanceof TypeError)) throw error
    console.error(error.message)
    return 2
  }
  const { help, first, count, name, trace, level } = options
  if (help) {
    process.stdout.write(HELP)
    return 0
  }
  const startedMs = performance.now()
  const sums = new Map<string, number>()
  for (let seed = first; seed < first + count; seed++) {
    try {
      for (const [what, figure] of Object.entries(await runSeed(seed, options)))
        sums.set(what, (sums.get(what) ?? 0) + figure)
    } catch (error) {
      const known = error instanceof Error ? error : new Error(String(error))
      console.log(`seed ${seed}: ${trace ? known.stack : `${known.name}: ${known.message}`}`)
      const also = `${level === 'core' ? '' : ` --level ${level}`}${name === undefined ? '' : ` --canary ${name}`}`
      console.log(`run it again with: npm run sim --${also} --seed ${seed} --trace`)
      return 1
    }
  }
  const seconds = (performance.now() - startedMs) / 1000
  const { simulatedMs = 0, ...counts } = Object.fromEntries(sums)
  const figures = Object.entries(counts).map(([what, figure]) => `${figure} ${what}`)
  console.log(
    `${count} seeds, ${Math.round(simulatedMs / 60_000)} simulated minutes, ${figures.join(', ')}, ` +
      `in ${seconds.toFixed(1)} s: no violation`,
  )
  return 0
}
