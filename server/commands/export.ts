/** `palimpsest export`: a datadir as it was, on which a stock mariadbd starts. */
import type { Command } from 'commander'
import type { Lsn } from '../../protocol/ids.ts'
import { type ExportResult, exportDatadir } from '../datadir/export.ts'
import { formatBytes, formatTime } from '../shared/format.ts'
import {
  addClientOptions,
  type ClientOptions,
  lsnArgument,
  momentOf,
  pathArgument,
  TIME_HELP,
  TIMELINE_READ_HELP,
  timeArgument,
} from './common.ts'
import { withTimeline } from './datadir-common.ts'
import { interruptible } from './interruption.ts'

interface Options extends ClientOptions {
  timeline: string
  lsn?: Lsn
  time?: number
  out: string
}

export function registerExport(program: Command): void {
  addClientOptions(
    program
      .command('export')
      .description('write a datadir as it was at an LSN or a time; a stock mariadbd starts on it')
      .requiredOption('--timeline <NAME>', TIMELINE_READ_HELP)
      .option('--lsn <N>', 'as of this LSN', lsnArgument)
      .option('--time <ISO>', `as of this time, ${TIME_HELP}`, timeArgument)
      .requiredOption('--out <DIR>', 'where to write; must be empty or not exist', pathArgument),
  )
    .addHelpText(
      'after',
      `
Without --lsn and --time: the newest state. A time is understood as the newest change that had been seen by
then; one that is later than all changes seen is refused, since nobody knows what else there was. The server that is started on the result rolls back what was not
committed at that LSN. The files belong to whoever runs this command: give them to the server's user
(chown -R mysql:mysql DIR) before starting it. Transactions that were prepared for a binary log are rolled
back; those of XA PREPARE are still prepared. An export that is interrupted removes what it
wrote; one that was killed has no ib_logfile0, and no server starts on it.

Examples:
  palimpsest export --timeline prod --time "2026-11-21 14:30:00" --out /restore/data
  mariadbd --no-defaults --user=mysql --datadir=/restore/data --socket=/tmp/restored.sock --skip-networking`,
    )
    .action(async (options: Options) => {
      const moment = momentOf(options)
      const result = await interruptible(
        `what was written to ${options.out} has been removed; run the same command again`,
        signal =>
          withTimeline(options, signal, open => exportDatadir({ ...open, moment, out: options.out, signal })),
      )
      printResult(result, options.json)
    })
}

function printResult(result: ExportResult, json: boolean): void {
  if (json) {
    process.stdout.write(`${JSON.stringify({ event: 'done', ...result })}\n`)
    return
  }
  for (const warning of result.warnings) console.error(`warning: ${warning}`)
  const seen = result.sampleTimeUs ? `, written by ${formatTime(result.sampleTimeUs)}` : ''
  console.log(
    `exported LSN ${result.lsn}${seen} to ${result.out}: ${result.spaces} tablespaces, ${result.files} files, ${formatBytes(result.bytes)}`,
  )
  // Not with the options of the server that runs here already: its socket, port and logs are its own.
  const asRoot = process.getuid?.() === 0
  if (asRoot) console.log(`give it to the server's user: chown -R mysql:mysql ${result.out}`)
  const options = [
    '--no-defaults',
    ...(asRoot ? ['--user=mysql'] : []),
    `--datadir=${result.out}`,
    '--socket=/tmp/restored.sock',
    '--skip-networking',
    ...result.serverOptions,
  ]
  console.log(`start it with: mariadbd ${options.join(' ')}`)
}
