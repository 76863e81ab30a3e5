/** `palimpsest attach`: import a running (or stopped) server's datadir, and follow its redo. */
import type { Command } from 'commander'
import type { TimelineId } from '../../protocol/ids.ts'
import { type AttachOptions, type AttachResult, attach } from '../attach/attach.ts'
import { AttachMetrics } from '../attach/metrics.ts'
import { openClientSecurity } from '../shared/client-security.ts'
import { createLog } from '../shared/log.ts'
import { type AdminCommandOptions, addAdminOption, openWatch } from './admin.ts'
import { addClientOptions, type ClientOptions, checkTimeline, pathArgument } from './common.ts'
import { newTimelineOption, printAttachResult, sameServerOption, withProgress } from './datadir-common.ts'

interface Options extends ClientOptions, AdminCommandOptions {
  datadir: string
  timeline: string
  id?: TimelineId
  socket?: string
  once: boolean
  sameServer: boolean
  include?: string[]
  exclude?: string[]
}

const collect = (value: string, all: string[] = []): string[] => [...all, value]

export function registerAttach(program: Command): void {
  addAdminOption(
    addClientOptions(
      program
        .command('attach')
        .description(
          "import a MariaDB server's datadir while it runs, then follow its redo log and its other files",
        )
        .requiredOption('--datadir <DIR>', 'the datadir (SELECT @@datadir); it is only read', pathArgument)
        .requiredOption('--timeline <NAME>', 'timeline to write to; made if there is none')
        .addOption(newTimelineOption())
        .option('--once', 'stop when caught up with the end of the log', false)
        .option('--socket <PATH>', "the server's socket: checked to be this datadir's server")
        .addOption(sameServerOption())
        .option('--include <GLOB>', 'also keep files that are usually left out (repeatable)', collect)
        .option('--exclude <GLOB>', 'do not keep these files (repeatable)', collect),
    ),
  )
    .addHelpText(
      'after',
      `
The datadir is read, never written to; run this as a user that may read it. The server needs no change and
no restart. If the timeline exists already, the agent goes on where it stopped. Where the server's log has
meanwhile overwritten redo that was not read, the pages that changed are imported again; the LSNs in between
cannot be read then. Without --once it runs until SIGTERM or SIGINT.

Globs match paths relative to the datadir, for example 'mydb/*.MYD'.

Examples:
  palimpsest attach --datadir /var/lib/mysql --timeline prod
  palimpsest attach --datadir /var/lib/mysql --timeline prod --once --json`,
    )
    .action(async (options: Options) => {
      const stop = new AbortController()
      const onSignal = (): void => stop.abort(new Error('stopped by signal'))
      process.on('SIGTERM', onSignal)
      process.on('SIGINT', onSignal)
      try {
        const result = await runAttach(options, stop.signal)
        printAttachResult(result, options.json)
      } catch (error) {
        if (!stop.signal.aborted) throw error
        throw new Error('stopped before the import was complete; run the same command again to go on', {
          cause: error,
        })
      } finally {
        process.off('SIGTERM', onSignal)
        process.off('SIGINT', onSignal)
      }
    })
}

async function runAttach(options: Options, signal: AbortSignal): Promise<AttachResult> {
  checkTimeline(options.timeline)
  if (options.socket !== undefined) {
    const { checkServer } = await import('../attach/server-check.ts')
    await checkServer(options.socket, options.datadir)
  }
  const watch = await openWatch('attach', options, createLog({ name: 'attach', level: 'warn' }))
  const metrics = new AttachMetrics(watch.part('attach'), options.timeline)
  watch.readiness.add('following', () => metrics.missing)
  try {
    return await withProgress(options.json, progress =>
      attach({
        datadir: options.datadir,
        timeline: options.timeline,
        newTimeline: options.id,
        connect: options.connect,
        security: openClientSecurity(options),
        once: options.once,
        live: true,
        sameServer: options.sameServer,
        rules: { include: options.include ?? [], exclude: options.exclude ?? [] },
        signal,
        progress,
        metrics,
      } satisfies AttachOptions),
    )
  } finally {
    await watch.close()
  }
}
