#!/usr/bin/env node
// The command line's first step. Plain JavaScript that an older Node.js can read: it hands over to the
// Node.js which the project brings along, or says in one line what is missing.
import { existsSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { root, runMain, SetupError } from '../scripts/lib/checkout.js'
import { keepCompiled } from '../scripts/lib/compile-cache.js'
import { endWithFront, handOver, nodeIsNewEnough } from '../scripts/lib/node.js'

await runMain(async () => {
  endWithFront()
  if (!nodeIsNewEnough()) await handOver(fileURLToPath(import.meta.url), process.argv.slice(2))
  if (!existsSync(join(root, 'node_modules'))) {
    throw new SetupError(`its dependencies are not installed yet; run "npm ci" in ${root}`)
  }
  keepCompiled()
  const { main } = await import('../server/cli.ts')
  return await main(process.argv.slice(2))
})
