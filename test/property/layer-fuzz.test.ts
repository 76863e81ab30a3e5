import { readFileSync } from 'node:fs'
import t from 'tap'
import { fuzzLayers } from '../fuzz/layer-fuzz.ts'

const { casesEach, seeds } = JSON.parse(
  readFileSync(new URL('../fixtures/fuzz/layer-seeds.json', import.meta.url), 'utf8'),
) as { casesEach: number; seeds: number[] }

t.test(
  'damaged layers with right CRCs: an error or a right result (test/fuzz/layer-fuzz.ts runs longer)',
  async t => {
    for (const seed of seeds) {
      const counters = fuzzLayers(seed, ({ cases }) => cases >= casesEach)
      t.ok(counters.cases >= casesEach, `seed ${seed}: ${JSON.stringify(counters)}`)
      // If everything were refused at the door, or nothing, the run would prove little.
      t.ok(
        counters.refusedRead > casesEach / 20 &&
          counters.refusedOpen > casesEach / 20 &&
          counters.read > casesEach / 20,
      )
    }
  },
)
