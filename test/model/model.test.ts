import { join } from 'node:path'
import t from 'tap'
import { checkModel, MODEL_RUNS, missingTools } from './run.ts'

const missing = missingTools()

t.test('the quick part of the model', { skip: missing ?? false }, async t => {
  const dir = t.testdir()
  for (const [at, item] of MODEL_RUNS.entries()) {
    if (!item.isQuick) continue
    const result = await checkModel(join(import.meta.dirname, 'raft.pml'), item, join(dir, String(at)))
    t.equal(result.outcome, item.expect, `${item.name}: ${result.outcome} (${result.states} states)`)
  }
})
