// npm run model: the formal model, on the project's own Node.js. See --help.
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { root, runMain } from './lib/checkout.js'
import { ensureModules } from './lib/modules.js'
import { handOver } from './lib/node.js'

await runMain(async () => {
  ensureModules({ forTests: true })
  await handOver(fileURLToPath(import.meta.url), process.argv.slice(2))
  const { main } = await import(join(root, 'test', 'model', 'run.ts'))
  return await main(process.argv.slice(2))
})
