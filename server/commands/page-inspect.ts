/** `palimpsest page inspect`: a page for people who debug InnoDB. */
import type { Command } from 'commander'
import { inspectPage, inspectPageObject } from '../../parser/page-inspect.ts'
import { Role } from '../../protocol/messages.ts'
import { withConnection } from './common.ts'
import { addMomentOptions, addPageOptions, getPage, type PageOptions } from './page-common.ts'

export function registerPageInspect(page: Command): void {
  addMomentOptions(
    addPageOptions(
      page
        .command('inspect')
        .description('a page taken apart: header, type, index header, records with offsets, directory'),
    ),
  )
    .addHelpText(
      'after',
      `
Example:
  palimpsest page inspect --timeline prod --space test/t1 --page 3 --time "2026-11-21 14:30:00"`,
    )
    .action(async (options: PageOptions) => {
      const { bytes, format, space, lsn, freed } = await withConnection(
        options,
        Role.PAGESERVER,
        connection => getPage(connection, options),
      )
      if (options.json) {
        // As `page get` has it: `lsn` is the moment.
        const { lsn: pageLsn, ...inspection } = inspectPageObject(bytes, format)
        process.stdout.write(
          `${JSON.stringify({ ...inspection, name: space.name, lsn, pageLsn, freed }, (_key, value) => (typeof value === 'bigint' ? value.toString() : value))}\n`,
        )
        return
      }
      console.log(
        `${space.name} at LSN ${lsn}${freed ? ' (this page is free: what it holds means nothing)' : ''}`,
      )
      console.log(inspectPage(bytes, format))
    })
}
