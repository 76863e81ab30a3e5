/** `palimpsest dev`: a safekeeper and a page server with embedded defaults, in one process. */
import { join } from 'node:path'
import type { Command } from 'commander'
import { startPageServer } from '../pageserver/index.ts'
import { startSafekeeper } from '../safekeeper/safekeeper.ts'
import { addPageServerOptions, type PageServerOptions } from './pageserver.ts'
import { addServeOptions, outgoingSecurity, type ServeOptions, serve } from './serve.ts'
import { openStore, type StoreOptions } from './store-options.ts'

export function registerDev(program: Command): void {
  const command = program
    .command('dev')
    .description(
      'run everything in one process: a safekeeper, a page server and an object store in a directory',
    )
    .addHelpText('after', '\nPrints "ready HOST:PORT" once usable. SIGTERM or Ctrl-C stops it cleanly.')
  addPageServerOptions(addServeOptions(command, '.palimpsest/dev')).action(
    (options: ServeOptions & PageServerOptions & StoreOptions) =>
      serve('dev', options, async (listener, log, parts, watch) => {
        const loaded = watch.readiness.pending('pageserver', 'its manifests are not all loaded yet')
        parts.push(
          await startSafekeeper({
            dataDir: join(options.data, 'safekeeper'),
            listener,
            log: log.child({ part: 'safekeeper' }),
          }),
        )
        parts.push(
          await startPageServer({
            dataDir: join(options.data, 'pageserver'),
            store: await openStore(options),
            cacheBytes: options.cacheSize,
            retryStopped: options.retryStopped,
            safekeepers: [listener.localAddress],
            security: outgoingSecurity(options),
            listener,
            memoryBytes: options.memory,
            workers: options.workers,
            log: log.child({ part: 'pageserver' }),
            metrics: watch,
          }),
        )
        loaded()
      }),
  )
}
