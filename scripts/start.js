// npm start: sets up what is missing, then plays the show (scripts/show/main.ts) on the project's own Node.js.
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { root, runMain, say } from './lib/checkout.js'
import { ensureModules } from './lib/modules.js'
import { handOver } from './lib/node.js'
import { setupMariadb } from './setup-mariadb.js'

const args = process.argv.slice(2)

const help = `npm start [-- OPTIONS]

Sets up what is missing, brings up a development cluster, and shows Palimpsest at work on a private MariaDB server.

  --once         stop everything at the end; exit code 0 if every page was right, else 1
  --recorded     play the recorded log even where MariaDB is installed
  --seconds N    how long the workload runs (default 10)
  --help         this text
`

await runMain(async () => {
  if (args.includes('--help') || args.includes('-h')) {
    process.stdout.write(help)
    return 0
  }
  await ensureModules()
  await handOver(fileURLToPath(import.meta.url), args)
  if (!args.includes('--recorded')) {
    const found = await setupMariadb({ profile: 'start' })
    if (!found.ok) {
      say(`No MariaDB to show this on: ${found.reason}`)
      say('So here is the same with a recorded log.')
      args.push('--recorded')
    }
  }
  const { show } = await import(join(root, 'scripts', 'show', 'main.ts'))
  return await show(args)
})
