import { readFileSync } from 'node:fs'
import t from 'tap'
import { fuzzRedo } from '../fuzz/redo-fuzz.ts'

const { casesEach, seeds } = JSON.parse(
  readFileSync(new URL('../fixtures/fuzz/redo-seeds.json', import.meta.url), 'utf8'),
) as { casesEach: number; seeds: number[] }

t.test(
  'damaged redo with right checksums: an error or a right result (test/fuzz/redo-fuzz.ts runs longer)',
  async t => {
    for (const seed of seeds) {
      const counters = fuzzRedo(seed, ({ cases }) => cases >= casesEach)
      t.ok(counters.cases >= casesEach, `seed ${seed}: ${JSON.stringify(counters)}`)
      // If the damage were refused at the door, or did nothing, the run would prove little.
      t.ok(
        counters.refused > casesEach / 10 &&
          counters.misfits > casesEach / 50 &&
          counters.applied > casesEach / 10,
      )
    }
  },
)
