// npm run sim: the seeded simulations, on the project's own Node.js. See --help.
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { root, runMain } from './lib/checkout.js'
import { ensureModules } from './lib/modules.js'
import { handOver } from './lib/node.js'

await runMain(async () => {
  ensureModules({ forTests: true })
  await handOver(fileURLToPath(import.meta.url), process.argv.slice(2))
  const { main } = await import(join(root, 'test', 'sim', 'run.ts'))
  return main(process.argv.slice(2))
})
