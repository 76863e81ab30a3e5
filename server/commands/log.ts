/** `palimpsest log inspect`: the log of a safekeeper that is stopped, as it lies on its disk. */
import { join } from 'node:path'
import { type Command, InvalidArgumentError } from 'commander'
import { type TimelineId, toTimelineId } from '../../protocol/ids.ts'
import { type EntryReport, LogInspection, type LogReport } from '../safekeeper/log/inspect.ts'
import { directoryOwner } from '../shared/dir-lock.ts'
import { invalidError } from '../shared/errors.ts'
import { formatBytes, formatTime } from '../shared/format.ts'
import { nodeDisk } from '../shared/node-seams.ts'
import { pathArgument, printJson } from './common.ts'
import { plainTable } from './table.ts'

interface InspectOptions {
  data: string
  timeline?: TimelineId
  entries: boolean
  verify: boolean
  json: boolean
}

export function registerLog(program: Command): void {
  program
    .command('log')
    .description("a safekeeper's log on its disk")
    .command('inspect')
    .description('files, indexes, terms, LSNs, compression and damage of the log of a stopped safekeeper')
    .requiredOption(
      '--data <DIR>',
      "the safekeeper's data folder; only read, so a read-only mount will do",
      pathArgument,
    )
    .option('--timeline <ID>', 'only what is of this timeline (32 hexadecimal digits)', timelineArgument)
    .option('--entries', 'list every entry', false)
    .option('--verify', 'check every CRC, also those of compressed groups', false)
    .option('--json', 'machine-readable output; with --entries one object a line', false)
    .addHelpText(
      'after',
      `
Ends with 1 if there is damage, and names file, offset and index of it.

Example:
  palimpsest log inspect --data /var/lib/palimpsest/sk1 --verify`,
    )
    .action(async (options: InspectOptions) => {
      const dir = join(options.data, 'log')
      if (!(await nodeDisk.exists(join(dir, 'state'))))
        throw invalidError(
          `there is no safekeeper's log in ${options.data} (no ${join(dir, 'state')})${await hintOfDev(options.data)}`,
        )
      const owner = directoryOwner(options.data)
      if (owner !== undefined)
        throw invalidError(
          `the safekeeper of ${options.data} is running (process ${owner}) and changes its log while it is read: stop it, ` +
            'or ask it with "palimpsest status"',
        )
      const inspection = await LogInspection.open(nodeDisk, dir)
      try {
        if (options.entries)
          for await (const entry of inspection.entries(options.timeline)) printEntry(entry, options.json)
        else {
          const report = await inspection.report(options)
          if (options.json) printJson(report)
          else printReport(report, dir)
          if (report.damage.length > 0) process.exitCode = 1
        }
      } finally {
        await inspection.close()
      }
    })
}

function timelineArgument(text: string): TimelineId {
  try {
    return toTimelineId(text)
  } catch (error) {
    throw new InvalidArgumentError((error as Error).message)
  }
}

/** `palimpsest dev` has several safekeepers in its folder. */
async function hintOfDev(data: string): Promise<string> {
  const folder = join(data, 'safekeepers')
  if (!(await nodeDisk.exists(folder))) return ''
  return `; those of "palimpsest dev" are in ${folder}: give one of them, such as ${join(folder, 'sk1')}`
}

function printEntry(entry: EntryReport, json: boolean): void {
  if (json) {
    process.stdout.write(`${JSON.stringify(entry)}\n`)
    return
  }
  const { index, term, kind, timeline, epoch, beginLsn, endLsn, wallTimeUs, payloadBytes, file } = entry
  const flags = `${entry.isVoid ? ' void' : ''}${entry.dropped ? ' dropped' : ''}`
  const redo =
    timeline === undefined
      ? ''
      : ` ${timeline} epoch ${epoch} LSN ${beginLsn}..${endLsn} ${wallTimeUs === 0 ? '' : formatTime(wallTimeUs)}`
  process.stdout.write(`${index} term ${term} ${kind}${flags}${redo} ${payloadBytes} bytes, ${file}\n`)
}

/** Nothing where it takes more room than before: a few bytes have a header each. */
function smaller(rawBytes: number, storedBytes: number): string {
  return rawBytes <= storedBytes ? '' : `${(100 - (storedBytes / rawBytes) * 100).toFixed(1)} %`
}

function printReport(report: LogReport, dir: string): void {
  const { base, lastIndex, lastTerm, generation, cutAfter, units, timelines } = report
  const range =
    lastIndex === base.index
      ? `no entries after ${base.index}`
      : `entries ${base.index + 1} to ${lastIndex} (term ${lastTerm})`
  console.log(`${dir}: ${range}; ${generation - 1} cuts or resets, the last after entry ${cutAfter}`)
  console.log(
    plainTable(
      [
        { head: 'file' },
        { head: 'entries' },
        { head: 'terms', align: 'right' },
        { head: 'timelines', align: 'right' },
        { head: 'redo', align: 'right' },
        { head: 'on disk', align: 'right' },
        { head: 'saved', align: 'right' },
      ],
      units.map(unit => [
        unit.path.slice(dir.length + 1),
        unit.lastIndex < unit.firstIndex ? 'none' : `${unit.firstIndex}..${unit.lastIndex}`,
        unit.firstTerm === unit.lastTerm ? String(unit.firstTerm) : `${unit.firstTerm}..${unit.lastTerm}`,
        unit.timelines,
        formatBytes(unit.payloadBytes),
        formatBytes(unit.storedBytes),
        unit.kind === 'pack' ? smaller(unit.payloadBytes, unit.storedBytes) : 'raw',
      ]),
    ),
  )
  // In words, since an id takes half of a line.
  for (const { timeline, entries, beginLsn, endLsn, rawBytes, storedBytes, droppedEndLsn } of timelines) {
    const saved = smaller(rawBytes, storedBytes)
    console.log(`timeline ${timeline}: LSN ${beginLsn} to ${endLsn} in ${entries} entries`)
    console.log(
      `  ${formatBytes(rawBytes)} of redo, ${formatBytes(storedBytes)} on disk${saved === '' ? '' : ` (${saved} saved)`}` +
        (droppedEndLsn === undefined ? '' : `; dropped up to LSN ${droppedEndLsn}`),
    )
  }
  if (report.voids.length > 0) console.log(`void entries in segments: ${report.voids.join(', ')}`)
  if (report.leftovers.length > 0)
    console.log(
      `to be removed at the next start: ${report.leftovers.map(path => path.slice(dir.length + 1)).join(', ')}`,
    )
  for (const { message } of report.damage) console.log(`DAMAGE: ${message}`)
  if (report.damage.length === 0)
    console.log(
      report.verified ? 'every CRC is right' : 'no damage found (--verify also checks compressed groups)',
    )
}
