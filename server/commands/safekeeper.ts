/** `palimpsest safekeeper`: keeps the redo log durable until the page server has it in layers. */
import type { Command } from 'commander'
import { startSafekeeper } from '../safekeeper/safekeeper.ts'
import { UsageError } from './common.ts'
import { addServeOptions, type ServeOptions, serve } from './serve.ts'

interface SafekeeperCommandOptions extends ServeOptions {
  peers?: string
}

export function registerSafekeeper(program: Command): void {
  addServeOptions(
    program
      .command('safekeeper')
      .description('run a safekeeper: it makes redo durable and hands it to page servers')
      .option('--id <ID>', 'name of this node, shown to clients (default: a random one at each start)')
      .option('--peers <ID=HOST:PORT>', 'the members of the quorum; only this node alone is supported yet')
      .addHelpText('after', '\nPrints "ready HOST:PORT" once usable. SIGTERM or Ctrl-C stops it cleanly.'),
  ).action((options: SafekeeperCommandOptions) => {
    if (options.peers?.includes(','))
      throw new UsageError(
        'a quorum of several safekeepers is not supported yet; name this node alone, or leave --peers out',
      )
    return serve('safekeeper', options, async (listener, log, parts) => {
      parts.push(await startSafekeeper({ dataDir: options.data, listener, log }))
    })
  })
}
