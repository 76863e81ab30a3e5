/** `palimpsest page history`: at which LSNs a page changed, and by what kinds of records. */
import type { Command } from 'commander'
import { recordName } from '../../parser/apply-page.ts'
import type { Connection } from '../../protocol/connection.ts'
import { LSN_ZERO, type Lsn } from '../../protocol/ids.ts'
import { type HistoryEntry, MessageType, Role } from '../../protocol/messages.ts'
import { integerArgument, lsnArgument, UsageError, withConnection } from './common.ts'
import { addPageOptions, findSpace, type PageOptions } from './page-common.ts'
import { plainTable } from './table.ts'

interface Options extends PageOptions {
  from: Lsn
  to?: Lsn
  limit: number
}

export function registerPageHistory(page: Command): void {
  addPageOptions(
    page
      .command('history')
      .description('the LSNs at which a page changed, newest first, and by what records'),
  )
    .option('--from <LSN>', 'changes after this LSN', lsnArgument, LSN_ZERO)
    .option('--to <LSN>', 'changes up to this LSN (default: the newest)', lsnArgument)
    .option('--limit <N>', 'at most so many changes', integerArgument(1, 1_000_000), 100)
    .addHelpText(
      'after',
      `
Each LSN is the end of a mini-transaction; "page get --lsn" with it gives the page right after that change.

Example:
  palimpsest page history --timeline prod --space test/t1 --page 3 --limit 20`,
    )
    .action(async (options: Options) => {
      if (options.to !== undefined && options.from >= options.to)
        throw new UsageError(`--from ${options.from} is not before --to ${options.to}`)
      const { entries, complete, name, space } = await withConnection(options, Role.PAGESERVER, connection =>
        pageHistory(connection, options),
      )
      const rows = entries.map(entry => ({
        lsn: entry.lsn,
        kind: entry.kind,
        bytes: entry.bytes,
        records: entry.recordTypes.map(({ recordType, count }) => ({
          type: recordTypeName(recordType),
          count,
        })),
      }))
      if (options.json) {
        process.stdout.write(
          `${JSON.stringify({ space, name, page: options.page, complete, changes: rows })}\n`,
        )
        return
      }
      console.log(`page ${options.page} of ${name} (tablespace ${space})`)
      console.log(
        plainTable(
          [
            { head: 'LSN', align: 'right' },
            { head: 'what' },
            { head: 'bytes', align: 'right' },
            { head: 'records' },
          ],
          rows.map(row => [
            row.lsn,
            row.kind,
            row.bytes,
            row.records.map(r => (r.count > 1 ? `${r.count} × ${r.type}` : r.type)).join(', '),
          ]),
        ),
      )
      if (!complete) console.log('there are older changes; see --limit')
    })
}

/** Type as on the wire: the first byte's type bits, plus 256 × subtype for EXTENDED and OPTION. */
function recordTypeName(recordType: number): string {
  return recordName(recordType & 0xff, recordType >>> 8)
}

export async function pageHistory(
  connection: Connection,
  options: Options,
): Promise<{ entries: HistoryEntry[]; complete: boolean; space: number; name: string }> {
  const { status, space } = await findSpace(connection, {
    ...options,
    ...(options.to === undefined ? {} : { lsn: options.to }),
  })
  const replies = await connection.requestAll({
    type: MessageType.PageHistory,
    timeline: status.summary.timeline,
    space: space.space,
    page: options.page,
    fromLsn: options.from,
    toLsn: options.to ?? LSN_ZERO,
    limit: options.limit,
  })
  return {
    entries: replies.flatMap(({ message }) => message.entries),
    complete: replies.at(-1)!.message.complete,
    space: space.space,
    name: space.name,
  }
}
