import { execFileSync } from 'node:child_process'
import t from 'tap'
import { CANARIES } from './canaries.ts'
import { runCoreSim } from './core-sim.ts'
import { REGRESSION_SEEDS } from './seeds.ts'

/** Seeds in which each canary must be caught. */
const CANARY_SEEDS = 400
const FIXED_SEEDS = 200

t.test('fixed seeds', async t => {
  let committed = 0
  let leaders = 0
  let reads = 0
  for (let seed = 1; seed <= FIXED_SEEDS; seed++) {
    try {
      const result = runCoreSim({ seed })
      committed += result.committed
      leaders += result.leaders
      reads += result.reads
    } catch (error) {
      t.fail(`seed ${seed}: ${error instanceof Error ? error.message : error}`)
    }
  }
  // Else the runs would prove nothing.
  t.ok(committed > 100 * FIXED_SEEDS, `${committed} entries committed`)
  t.ok(leaders > 3 * FIXED_SEEDS, `${leaders} leaders`)
  t.ok(reads > FIXED_SEEDS, `${reads} reads`)
})

t.test('seeds that failed once', async t => {
  for (const { seed, was } of REGRESSION_SEEDS) {
    t.doesNotThrow(() => runCoreSim({ seed }), `seed ${seed}: ${was}`)
  }
})

t.test('a seed that changes with the commit', async t => {
  let commit: string
  try {
    commit = execFileSync('git', ['rev-parse', 'HEAD'], {
      encoding: 'utf8',
      stdio: ['ignore', 'pipe', 'ignore'],
    })
  } catch {
    t.pass('not a checkout: no commit to take a seed from')
    return
  }
  const seed = Number.parseInt(commit.slice(0, 8), 16)
  for (let i = 0; i < 10; i++) {
    t.doesNotThrow(() => runCoreSim({ seed: seed + i }), `npm run sim -- --seed ${seed + i}`)
  }
})

t.test('the same seed gives the same run', async t => {
  t.same(runCoreSim({ seed: 7 }), runCoreSim({ seed: 7 }))
})

for (const [name, canary] of Object.entries(CANARIES)) {
  t.test(`canary ${name} is caught`, async t => {
    for (let seed = 1; seed <= CANARY_SEEDS; seed++) {
      try {
        runCoreSim({ seed, canary })
      } catch (error) {
        if (!(error instanceof Error) || error.name !== 'Violation') throw error
        t.pass(`seed ${seed}: ${error.message}`)
        return
      }
    }
    t.fail(`not caught in ${CANARY_SEEDS} seeds`)
  })
}
