import { execFileSync } from 'node:child_process'
import t from 'tap'
import { type NodeSimResult, runNodeSim } from './node-sim.ts'
import { NODE_REGRESSION_SEEDS } from './seeds.ts'
import { NODE_CANARIES } from './sim-cell.ts'

/** Seeds in which each canary must be caught. */
const CANARY_SEEDS = 10
const FIXED_SEEDS = [1, 12]

t.test('fixed seeds', async t => {
  const results: NodeSimResult[] = []
  for (const seed of FIXED_SEEDS) results.push(await runNodeSim({ seed }))
  const sum = (figure: (result: NodeSimResult) => number) =>
    results.reduce((all, result) => all + figure(result), 0)
  // Else the runs would prove nothing.
  const acks = sum(result => result.acks)
  t.ok(acks > 50 * results.length, `${acks} appends acknowledged`)
  const chunks = sum(result => result.chunksRead)
  t.ok(chunks > acks, `${chunks} chunks read`)
  const checks = sum(result => result.durabilityChecks)
  t.ok(checks > results.length, `${checks} times looked at durable images`)
  const leaders = sum(result => result.leaders)
  t.ok(leaders > results.length, `${leaders} leaders`)
})

t.test('seeds that failed once', async t => {
  for (const { seed, was } of NODE_REGRESSION_SEEDS) {
    await t.resolves(runNodeSim({ seed }), `seed ${seed}: ${was}`)
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
  await t.resolves(runNodeSim({ seed }), `npm run sim -- --level node --seed ${seed}`)
})

for (const canary of NODE_CANARIES) {
  t.test(`canary ${canary} is caught`, async t => {
    for (let seed = 1; seed <= CANARY_SEEDS; seed++) {
      try {
        await runNodeSim({ seed, canary })
      } catch (error) {
        if (!(error instanceof Error) || error.name !== 'Violation') throw error
        t.pass(`seed ${seed}: ${error.message}`)
        return
      }
    }
    t.fail(`not caught in ${CANARY_SEEDS} seeds`)
  })
}
