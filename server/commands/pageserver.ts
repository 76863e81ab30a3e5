/** `palimpsest pageserver`: follows a safekeeper, keeps every version of every page, serves them. */
import { availableParallelism } from 'node:os'
import { type Command, InvalidArgumentError, Option } from 'commander'
import type { Address } from '../../protocol/dial.ts'
import { startPageServer } from '../pageserver/index.ts'
import { MEMORY_BYTES_MIN } from '../pageserver/memory-plan.ts'
import { addressesArgument, integerArgument, sizeArgument } from './common.ts'
import { addServeOptions, type ServeOptions, serve } from './serve.ts'
import { addStoreOptions, openStore, type StoreOptions } from './store-options.ts'

export interface PageServerOptions {
  memory: number
  workers: number
  cacheSize: number
  retryStopped: boolean
}

function memoryArgument(text: string): number {
  const bytes = sizeArgument(text)
  if (bytes < MEMORY_BYTES_MIN)
    throw new InvalidArgumentError(
      `"${text}" is less than a page server needs, ${MEMORY_BYTES_MIN / 2 ** 20}M.`,
    )
  return bytes
}

export function addPageServerOptions(command: Command): Command {
  return addStoreOptions(command)
    .addOption(
      new Option('--memory <SIZE>', 'memory for redo, pages and indexes')
        .argParser(memoryArgument)
        .default(2 ** 30, '1G'),
    )
    .addOption(
      new Option('--workers <N>', 'threads that parse redo and rebuild pages')
        .argParser(integerArgument(1, 256))
        .default(availableParallelism(), 'one per core'),
    )
    .addOption(
      new Option(
        '--cache-size <SIZE>',
        'disk for copies of layers in DATA, where the store is not a directory',
      )
        .argParser(sizeArgument)
        .default(10 * 2 ** 30, '10G'),
    )
    .option(
      '--retry-stopped',
      'let timelines that damaged redo stopped try it again, after the log was repaired',
      false,
    )
}

export function registerPageServer(program: Command): void {
  addPageServerOptions(
    addServeOptions(
      program
        .command('pageserver')
        .description('run a page server: it turns redo into pages at any LSN and serves them')
        .requiredOption('--safekeepers <HOST:PORT[,…]>', 'where the redo comes from', addressesArgument)
        .addHelpText('after', '\nPrints "ready HOST:PORT" once usable. SIGTERM or Ctrl-C stops it cleanly.'),
    ),
  ).action((options: ServeOptions & PageServerOptions & StoreOptions & { safekeepers: Address[] }) =>
    serve('pageserver', options, async (listener, log, parts, watch, security) => {
      const loaded = watch.readiness.pending('pageserver', 'its manifests are not all loaded yet')
      parts.push(
        await startPageServer({
          dataDir: options.data,
          store: await openStore(options),
          cacheBytes: options.cacheSize,
          retryStopped: options.retryStopped,
          safekeepers: options.safekeepers,
          security,
          listener,
          memoryBytes: options.memory,
          workers: options.workers,
          log,
          metrics: watch,
        }),
      )
      loaded()
    }),
  )
}
