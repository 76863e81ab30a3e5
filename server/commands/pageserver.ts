/** `palimpsest pageserver`: follows a safekeeper, keeps every version of every page, serves them. */
import { availableParallelism } from 'node:os'
import { join } from 'node:path'
import type { Command } from 'commander'
import type { Address } from '../../protocol/dial.ts'
import { startPageServer } from '../pageserver/index.ts'
import { openObjectStore } from '../shared/object-store-open.ts'
import { addressesArgument, integerArgument, sizeArgument } from './common.ts'
import { addServeOptions, outgoingSecurity, type ServeOptions, serve } from './serve.ts'
import { addStoreOptions, type StoreOptions, s3Options } from './store-options.ts'

export interface PageServerOptions {
  memory: number
  workers: number
}

interface OwnOptions {
  safekeepers: Address[]
  store?: string
  cacheSize: number
  retryStopped: boolean
}

export function addPageServerOptions(command: Command): Command {
  return command
    .option('--memory <SIZE>', 'memory for redo, pages and indexes', sizeArgument, 2 ** 30)
    .option(
      '--workers <N>',
      'threads that parse redo and rebuild pages (default: one per core)',
      integerArgument(1, 256),
      availableParallelism(),
    )
}

export function registerPageServer(program: Command): void {
  addPageServerOptions(
    addServeOptions(
      addStoreOptions(
        program
          .command('pageserver')
          .description('run a page server: it turns redo into pages at any LSN and serves them')
          .requiredOption('--safekeepers <HOST:PORT[,…]>', 'where the redo comes from', addressesArgument)
          .option(
            '--store <DIR|s3://BUCKET/PREFIX>',
            'object store, where layers are kept (default: the directory DATA/store)',
          )
          .option(
            '--cache-size <SIZE>',
            'disk for copies of layers in DATA, where the store is not a directory',
            sizeArgument,
            10 * 2 ** 30,
          )
          .option(
            '--retry-stopped',
            'let timelines that damaged redo stopped try it again, after the log was repaired',
            false,
          )
          .addHelpText(
            'after',
            '\nPrints "ready HOST:PORT" once usable. SIGTERM or Ctrl-C stops it cleanly.',
          ),
      ),
    ),
  ).action((options: ServeOptions & PageServerOptions & StoreOptions & OwnOptions) =>
    serve('pageserver', options, async (listener, log, parts, watch) => {
      const loaded = watch.readiness.pending('pageserver', 'its manifests are not all loaded yet')
      parts.push(
        await startPageServer({
          dataDir: options.data,
          store: await openObjectStore(options.store ?? join(options.data, 'store'), s3Options(options)),
          cacheBytes: options.cacheSize,
          retryStopped: options.retryStopped,
          safekeepers: options.safekeepers,
          security: outgoingSecurity(options),
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
