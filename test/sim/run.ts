/**
 * The body of `npm run sim` (scripts/sim.js): runs simulations until one fails, and tells the seed to run again.
 */
import { parseArgs } from 'node:util'
import { CANARIES } from './canaries.ts'
import { runCoreSim } from './core-sim.ts'

const HELP = `npm run sim -- [OPTIONS]

Simulates the consensus core with faults of all kinds, one run for each seed, until one fails.

  --seeds N       how many seeds, from 1 on (default 1000)
  --seed S        only this one
  --canary NAME   with a deliberate mistake: ${Object.keys(CANARIES).join(', ')}
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
      seeds: { type: 'string', default: '1000' },
      seed: { type: 'string' },
      canary: { type: 'string' },
      trace: { type: 'boolean', default: false },
      help: { type: 'boolean', short: 'h', default: false },
    },
  })
  const name = values.canary
  if (name !== undefined && !(name in CANARIES)) {
    throw new TypeError(`--canary must be one of ${Object.keys(CANARIES).join(', ')}, not ${name}`)
  }
  return {
    help: values.help,
    trace: values.trace,
    name,
    canary: name === undefined ? undefined : CANARIES[name],
    first: wholeNumber('seed', values.seed ?? '1'),
    count: values.seed === undefined ? wholeNumber('seeds', values.seeds) : 1,
  }
}

/** Returns the exit code: 0 nothing found, 1 a violation, 2 wrong usage. */
export function main(args: string[]): number {
  let options: ReturnType<typeof readOptions>
  try {
    options = readOptions(args)
  } catch (error) {
    if (!(error instanceof TypeError)) throw error
    console.error(error.message)
    return 2
  }
  const { help, first, count, canary, name, trace } = options
  if (help) {
    process.stdout.write(HELP)
    return 0
  }
  const startedMs = performance.now()
  const sums = { events: 0, committed: 0, simulatedMs: 0, leaders: 0 }
  for (let seed = first; seed < first + count; seed++) {
    try {
      const result = runCoreSim({ seed, canary, trace: trace ? line => console.log(line) : undefined })
      sums.events += result.events
      sums.committed += result.committed
      sums.simulatedMs += result.simulatedMs
      sums.leaders += result.leaders
    } catch (error) {
      const known = error instanceof Error ? error : new Error(String(error))
      console.log(`seed ${seed}: ${trace ? known.stack : `${known.name}: ${known.message}`}`)
      const also = name === undefined ? '' : ` --canary ${name}`
      console.log(`run it again with: npm run sim -- --seed ${seed}${also} --trace`)
      return 1
    }
  }
  const seconds = (performance.now() - startedMs) / 1000
  const minutes = Math.round(sums.simulatedMs / 60_000)
  console.log(
    `${count} seeds, ${minutes} simulated minutes, ${sums.events} events, ${sums.leaders} leaders, ` +
      `${sums.committed} entries committed, in ${seconds.toFixed(1)} s: no violation`,
  )
  return 0
}
