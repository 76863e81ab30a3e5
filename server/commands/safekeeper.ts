/** `palimpsest safekeeper`: keeps the redo log durable until the page server has it in layers. */
import type { Command } from 'commander'
import { startSafekeeper } from '../safekeeper/safekeeper.ts'
import { addServeOptions, type ServeOptions, serve } from './serve.ts'

export function registerSafekeeper(program: Command): void {
  addServeOptions(
    program
      .command('safekeeper')
      .description('run a safekeeper: it makes redo durable and hands it to page servers')
      .addHelpText('after', '\nPrints "ready HOST:PORT" once usable. SIGTERM or Ctrl-C stops it cleanly.'),
  ).action((options: ServeOptions) =>
    serve('safekeeper', options, async (listener, log, parts) => {
      parts.push(await startSafekeeper({ dataDir: options.data, listener, log }))
    }),
  )
}
