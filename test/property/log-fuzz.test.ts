import { readFileSync } from 'node:fs'
import t from 'tap'
import { fuzzLog } from '../fuzz/log-fuzz.ts'

const { casesEach, seeds } = JSON.parse(
  readFileSync(new URL('../fixtures/fuzz/log-seeds.json', import.meta.url), 'utf8'),
) as { casesEach: number; seeds: number[] }

t.test(
  'damaged segments and packs with right CRCs: an error or a right result (test/fuzz/log-fuzz.ts runs longer)',
  { timeout: 120_000 },
  async t => {
    for (const seed of seeds) {
      const counters = await fuzzLog(seed, ({ cases }) => cases >= casesEach)
      t.ok(counters.cases >= casesEach, `seed ${seed}: ${JSON.stringify(counters)}`)
      // If everything were refused, or nothing, the run would prove little.
      t.ok(counters.refused > casesEach / 5 && counters.read > casesEach / 20)
    }
  },
)
