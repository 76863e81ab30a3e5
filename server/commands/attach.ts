/** `palimpsest attach`: import a running (or stopped) server's datadir, and follow its redo. */
import type { Command } from 'commander'
import type { TimelineId } from '../../protocol/ids.ts'
import { type AttachOptions, type AttachResult, attach } from '../attach/attach.ts'
import { AttachMetrics } from '../attach/metrics.ts'
import { openClientSecurity } from '../shared/client-security.ts'
import { createLog } from '../shared/log.ts'
import { type AdminCommandOptions, addAdminOption, openWatch } from './admin.ts'
import {
  addClientOptions,
  type ClientOptions,
  checkTimeline,
  pathArgument,
  TIMELINE_WRITE_HELP,
} from './common.ts'
import {
  importLeft,
  newTimelineOption,
  printAttachResult,
  sameServerOption,
  withProgress,
} from './datadir-common.ts'
import { interruptible } from './interruption.ts'

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
        .requiredOption('--timeline <NAME>', TIMELINE_WRITE_HELP)
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
      const result = await interruptible(importLeft(options.timeline), async signal => {
        const attached = await runAttach(options, signal)
        // What follows until it is told to stop has done its work then; --once has an end of its own.
        if (options.once) signal.throwIfAborted()
        return attached
      })
      printAttachResult(result, options.json)
    })
}

async function runAttach(options: Options, signal: AbortSignal): Promise<AttachResult> {
  checkTimeline(options.timeline)
  if (options.socket !== undefined) {
    const { checkServer } = await import('../attach/server-check.ts')
    await checkServer(options.socket, options.datadir)
  }
  const watch = await openWatch('attach', options, createLog({ name: 'attach', level: 'warn' }))
  const security = openClientSecurity(options)
  const metrics = new AttachMetrics(watch.part('attach'), options.timeline)
  watch.readiness.add('following', () => metrics.missing)
  try {
    return await withProgress(options.json, progress =>
      attach({
        datadir: options.datadir,
        timeline: options.timeline,
        newTimeline: options.id ?? security?.onlyTimeline,
        connect: options.connect,
        security,
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
