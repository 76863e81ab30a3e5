// npm run chaos: real processes, real faults, nothing acknowledged may be missing. See --help.
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { root, runMain, say } from './lib/checkout.js'
import { ensureModules } from './lib/modules.js'
import { handOver } from './lib/node.js'

await runMain(async () => {
  ensureModules({ forTests: true })
  await handOver(fileURLToPath(import.meta.url), process.argv.slice(2))
  const { setupMariadb } = await import('./setup-mariadb.js')
  const found = await setupMariadb({ profile: 'test' })
  if (!found.ok) say(`MariaDB is missing: ${found.reason}`)
  const { main } = await import(join(root, 'test', 'chaos', 'run.ts'))
  return main(process.argv.slice(2))
})
