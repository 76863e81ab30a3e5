// Runs the fuzzers of test/fuzz/ one after the other, each for so many seconds: npm run fuzz -- --seconds 60 [--seed N] [NAME...]
// A finding ends the run with exit code 1; the seed that found it was printed before.
import { spawnSync } from 'node:child_process'
import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { root, runMain, SetupError, say } from './lib/checkout.js'
import { ensureModules } from './lib/modules.js'
import { handOver } from './lib/node.js'

await runMain(async () => {
  await ensureModules()
  await handOver(fileURLToPath(import.meta.url), process.argv.slice(2))
  const { values, positionals } = parseArgs({
    options: { seconds: { type: 'string', default: '60' }, seed: { type: 'string' } },
    allowPositionals: true,
  })
  const folder = join(root, 'test/fuzz')
  const all = readdirSync(folder).filter(name => name.endsWith('-fuzz.ts'))
  const unknown = positionals.filter(name => !all.includes(`${name}-fuzz.ts`))
  if (unknown.length > 0)
    throw new SetupError(
      `there is no fuzzer "${unknown[0]}"; there are ${all.map(name => name.replace('-fuzz.ts', '')).join(', ')}`,
    )
  let failed = false
  for (const name of all) {
    const short = name.replace('-fuzz.ts', '')
    if (positionals.length > 0 && !positionals.includes(short)) continue
    // One that wants a running server is started by hand; its first lines say how.
    if (!readFileSync(join(folder, name), 'utf8').includes('values.seconds')) {
      say(`${short}: runs against a server of your own; see the first lines of test/fuzz/${name}`)
      continue
    }
    say(`${short}:`)
    const seed = values.seed === undefined ? [] : ['--seed', values.seed]
    const { status } = spawnSync(
      process.execPath,
      [join(folder, name), '--seconds', values.seconds, ...seed],
      {
        cwd: root,
        stdio: 'inherit',
      },
    )
    failed ||= status !== 0
  }
  return failed ? 1 : 0
})
