/** `palimpsest verify`: is every page of the timeline exactly what the server has? */
import type { Command } from 'commander'
import type { Lsn } from '../../protocol/ids.ts'
import { type Difference, type VerifyResult, verifyDatadir } from '../attach/verify.ts'
import { addClientOptions, type ClientOptions, lsnArgument, pathArgument } from './common.ts'
import { withTimeline } from './datadir-common.ts'
import { interruptible, orAborted } from './interruption.ts'

interface Options extends ClientOptions {
  timeline: string
  datadir: string
  lsn?: Lsn
}

/** Lines for people; programs get all of them. */
const LINES_MAX = 100

export function registerVerify(program: Command): void {
  addClientOptions(
    program
      .command('verify')
      .description('compare every page of a cleanly shut down datadir with the timeline, byte for byte')
      .requiredOption('--timeline <NAME>', 'timeline to compare with, by name or id')
      .requiredOption(
        '--datadir <DIR>',
        'datadir of a server that was shut down cleanly; it is only read',
        pathArgument,
      )
      .option('--lsn <N>', "compare with this LSN instead of the end of the datadir's log", lsnArgument),
  )
    .addHelpText(
      'after',
      `
Waits until the page server has all redo of the datadir's log. Left out is only what the redo log does not
define: free pages, the doublewrite area, the flush LSN in page 0 of ibdata1; page_compressed pages are
compared uncompressed. The last line is "compared N pages, M differ"; the exit code is 1 if M is not 0.`,
    )
    .action(async (options: Options) => {
      let lines = 0
      let differ = 0
      const left = () =>
        `${differ === 0 ? 'no difference was' : `${differ} differences were`} found until then, and the rest was not compared; run the same command again`
      const result = await interruptible(left, signal =>
        withTimeline(options, signal, ({ pageServer, status, progress }) =>
          orAborted(
            signal,
            verifyDatadir({
              pageServer,
              status,
              datadir: options.datadir,
              lsn: options.lsn,
              progress,
              signal,
              onDifference: difference => {
                differ++
                if (options.json)
                  process.stdout.write(`${JSON.stringify({ event: 'difference', ...difference })}\n`)
                else if (++lines <= LINES_MAX) progress.message(describeDifference(difference))
              },
            }),
          ),
        ),
      )
      printResult(result, options.json, lines - LINES_MAX)
      if (result.differ > 0) process.exitCode = 1
    })
}

export function describeDifference(d: Difference): string {
  if (d.page === undefined) return `tablespace ${d.space} (${d.name}): ${d.reason}`
  const offsets = d.offsets.length > 0 ? ` at offsets ${d.offsets.join(', ')}` : ''
  return (
    `tablespace ${d.space} (${d.name}) page ${d.page}: ${d.reason}${offsets}; ` +
    `file: LSN ${d.fileLsn ?? 'none'}, ${d.fileType ?? 'none'}; timeline: LSN ${d.timelineLsn ?? 'none'}, ${d.timelineType ?? 'none'}`
  )
}

function printResult(result: VerifyResult, json: boolean, unlisted: number): void {
  if (json) {
    process.stdout.write(`${JSON.stringify({ event: 'done', ...result })}\n`)
    return
  }
  if (unlisted > 0) console.error(`… and ${unlisted} more; --json lists all`)
  console.log(
    `LSN ${result.lsn}: ${result.spaces} tablespaces; left out ${result.free} free pages and ${result.doublewrite} of the doublewrite area`,
  )
  console.log(`compared ${result.compared} pages, ${result.differ} differ`)
}
