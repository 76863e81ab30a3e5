/** `palimpsest bench NAME`: runs one of the benchmarks of bench/. */
import type { Command } from 'commander'
import { UsageError } from './common.ts'

export function registerBench(program: Command): void {
  program
    .command('bench')
    .argument('[name]', 'which one; without a name, they are listed')
    .argument('[options...]', 'options of that benchmark; "bench NAME --help" lists them')
    .description(
      'run a benchmark: it prints a ratio against its reference in the same run, and JSON with --json',
    )
    .passThroughOptions()
    .allowUnknownOption()
    .action(async (name: string | undefined, args: string[]) => {
      // Loaded only now: benchmarks need packages that an installation without development tools leaves out.
      const { benchmarks } = await import('../../bench/index.ts')
      const { runBenchmark } = await import('../../bench/harness.ts')
      if (name === undefined) {
        for (const [each, load] of Object.entries(benchmarks))
          console.log(`${each.padEnd(14)} ${(await load()).summary}`)
        return
      }
      const load = benchmarks[name]
      if (load === undefined)
        throw new UsageError(
          `there is no benchmark "${name}"; there are ${Object.keys(benchmarks).join(', ')}`,
        )
      process.exitCode = await runBenchmark(await load(), args)
    })
}
