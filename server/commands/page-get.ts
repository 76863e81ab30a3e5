/** `palimpsest page get`: the raw bytes of one page. */
import { writeFile } from 'node:fs/promises'
import type { Command } from 'commander'
import { Role } from '../../protocol/messages.ts'
import { DATA_FILE_MODE } from '../shared/file-modes.ts'
import { pathArgument, UsageError, withConnection } from './common.ts'
import { addMomentOptions, addPageOptions, getPage, type PageOptions } from './page-common.ts'

export function registerPageGet(page: Command): void {
  addMomentOptions(
    addPageOptions(page.command('get').description('the raw bytes of a page, as InnoDB would write it')),
  )
    .option(
      '--out <FILE>',
      'write to a file; otherwise to stdout, which must not be a terminal',
      pathArgument,
    )
    .addHelpText(
      'after',
      `
With --json: an object with LSNs, flags and the bytes in base64.

Example:
  palimpsest page get --timeline prod --space test/t1 --page 3 --lsn 1418515093 | xxd | less`,
    )
    .action(async (options: PageOptions & { out?: string }) => {
      if (options.out === undefined && !options.json && process.stdout.isTTY)
        throw new UsageError(
          'not writing a page to a terminal; give --out FILE, pipe it, or use "page inspect"',
        )
      const found = await withConnection(options, Role.PAGESERVER, connection => getPage(connection, options))
      if (options.out !== undefined) await writeFile(options.out, found.bytes, { mode: DATA_FILE_MODE })
      if (options.json) {
        const { space, lsn, pageLsn, freed, bytes } = found
        process.stdout.write(
          `${JSON.stringify({
            space: space.space,
            name: space.name,
            page: options.page,
            lsn,
            pageLsn,
            freed,
            bytes: bytes.length,
            ...(options.out === undefined
              ? { base64: Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length).toString('base64') }
              : { out: options.out }),
          })}\n`,
        )
      } else if (options.out !== undefined)
        console.error(
          `${found.bytes.length} bytes of page ${options.page} of ${found.space.name} at LSN ${found.lsn} (page LSN ${found.pageLsn})`,
        )
      else process.stdout.write(found.bytes)
    })
}
