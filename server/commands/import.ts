/** `palimpsest import`: a cold datadir, and the redo of a log file beyond it. */
import type { Command } from 'commander'
import type { TimelineId } from '../../protocol/ids.ts'
import { attach } from '../attach/attach.ts'
import { openClientSecurity } from '../shared/client-security.ts'
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

interface Options extends ClientOptions {
  datadir: string
  timeline: string
  id?: TimelineId
  redo?: string
  sameServer: boolean
}

export function registerImport(program: Command): void {
  addClientOptions(
    program
      .command('import')
      .description('import the datadir of a server that is not running, or a copy of one')
      .requiredOption('--datadir <DIR>', 'the datadir; it is only read', pathArgument)
      .requiredOption('--timeline <NAME>', TIMELINE_WRITE_HELP)
      .addOption(newTimelineOption())
      .addOption(sameServerOption())
      .option('--redo <FILE>', "an ib_logfile0 with redo beyond the datadir's own checkpoint", pathArgument),
  )
    .addHelpText(
      'after',
      `
The datadir's own ib_logfile0 tells the checkpoint from which on redo is needed. The redo is read from that
file, or from FILE: a copy of the server's ib_logfile0 taken later, which must reach back to the checkpoint.
FILE may be sparse, and cut after its last record.

Example:
  palimpsest import --datadir /backup/data --timeline prod --redo /backup/ib_logfile0`,
    )
    .action(async (options: Options) => {
      checkTimeline(options.timeline)
      const security = openClientSecurity(options)
      const result = await interruptible(importLeft(options.timeline), async signal => {
        const imported = await withProgress(options.json, progress =>
          attach({
            datadir: options.datadir,
            timeline: options.timeline,
            newTimeline: options.id ?? security?.onlyTimeline,
            connect: options.connect,
            security,
            once: true,
            live: false,
            redoFile: options.redo,
            sameServer: options.sameServer,
            signal,
            progress,
          }),
        )
        // Of pages that are all there, the redo may not be.
        signal.throwIfAborted()
        return imported
      })
      printAttachResult(result, options.json)
    })
}
