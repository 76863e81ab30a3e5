/** `palimpsest backup list|verify|restore`: what the safekeepers of a cell keep in an object store; needs no server. */
import { randomBytes } from 'node:crypto'
import { type Command, Option } from 'commander'
import { type Address, formatAddress } from '../../protocol/dial.ts'
import { backupEnd, listBackups } from '../safekeeper/backup-manifest.ts'
import { loadBackup } from '../safekeeper/backup-reader.ts'
import { restoreBackup, verifyBackup } from '../safekeeper/backup-restore.ts'
import { lockDirectory } from '../shared/dir-lock.ts'
import { invalidError } from '../shared/errors.ts'
import { formatBytes, formatRoughly } from '../shared/format.ts'
import { createLog } from '../shared/log.ts'
import { nodeClock, nodeDisk } from '../shared/node-seams.ts'
import type { ObjectReader } from '../shared/object-store.ts'
import {
  addressArgument,
  DEFAULT_ADDRESS,
  JSON_HELP,
  nodeNameArgument,
  pathArgument,
  printJson,
  UsageError,
  zoneArgument,
} from './common.ts'
import { makeDataFolder } from './data-folder.ts'
import { interruptible, orAborted } from './interruption.ts'
import { addS3Options, openStoreToRead, type S3CommandOptions } from './store-options.ts'
import { plainTable } from './table.ts'

interface BackupCommandOptions extends S3CommandOptions {
  backup: string
  cell?: string
  json: boolean
}

interface RestoreCommandOptions extends BackupCommandOptions {
  data: string
  id: string
  listen: Address
  zone: string
}

export function registerBackup(program: Command): void {
  const backup = program
    .command('backup')
    .description('look at, verify or restore the backup that safekeepers make with --backup')

  addBackupOptions(backup.command('list').description('the cells that have a backup there')).action(
    async (options: BackupCommandOptions) => {
      const store = await openStoreToRead(options.backup, options)
      const backups = await Promise.all((await listBackups(store)).map(id => loadBackup(store, id)))
      const rows = backups.map(manifest => ({
        cellId: manifest.cellId,
        fromIndex: manifest.base.index + 1,
        toIndex: backupEnd(manifest).index,
        packs: manifest.packs.length,
        bytes: manifest.packs.reduce((sum, pack) => sum + pack.bytes, 0),
        rawBytes: manifest.packs.reduce((sum, pack) => sum + pack.rawBytes, 0),
        atUs: manifest.atUs,
      }))
      if (options.json) return printJson(rows)
      if (rows.length === 0) return console.log(`no backups in ${store.description}`)
      const table = plainTable(
        [
          { head: 'cell' },
          { head: 'entries' },
          { head: 'stored', align: 'right' },
          { head: 'redo', align: 'right' },
          { head: 'last written', align: 'right' },
        ],
        rows.map(row => [
          row.cellId,
          `${row.fromIndex} to ${row.toIndex}`,
          formatBytes(row.bytes),
          formatBytes(row.rawBytes),
          row.atUs === 0 ? undefined : `${formatRoughly(Date.now() - row.atUs / 1000)} ago`,
        ]),
      )
      console.log(table)
    },
  )

  addCellOption(
    addBackupOptions(backup.command('verify').description('read all of a backup and check every checksum')),
  ).action(async (options: BackupCommandOptions) => {
    const store = await openStoreToRead(options.backup, options)
    const { manifest, entries, bytes, rawBytes } = await interruptible(
      'the backup was read in part only, and nothing was changed; run the same command again',
      async signal => orAborted(signal, verifyBackup(store, await cellOf(store, options))),
    )
    const { cellId, base, packs } = manifest
    const toIndex = backupEnd(manifest).index
    if (options.json)
      printJson({ cellId, fromIndex: base.index + 1, toIndex, packs: packs.length, entries, bytes, rawBytes })
    else
      console.log(
        `the backup of cell ${cellId} is whole: entries ${base.index + 1} to ${toIndex} in ${packs.length} packs, ` +
          `${formatBytes(bytes)} for ${formatBytes(rawBytes)} of redo`,
      )
  })

  addCellOption(
    addBackupOptions(
      backup
        .command('restore')
        .description('make the data folder of a safekeeper, the first of a new cell, from a backup'),
    ),
  )
    .requiredOption('--data <DIR>', 'folder to make, for "palimpsest safekeeper --data"', pathArgument)
    .requiredOption('--id <NAME>', 'name of the safekeeper in its new cell', nodeNameArgument)
    .addOption(
      new Option('--listen <HOST:PORT>', 'where that safekeeper will listen')
        .argParser(addressArgument)
        .default(addressArgument(DEFAULT_ADDRESS), DEFAULT_ADDRESS),
    )
    .option('--zone <LABEL>', 'where it stands, so that "palimpsest status" can warn', zoneArgument, '')
    .action(async (options: RestoreCommandOptions) => {
      const store = await openStoreToRead(options.backup, options)
      const name = options.id
      const cellId = await cellOf(store, options)
      const newCellId = randomBytes(16).toString('hex')
      makeDataFolder(options.data)
      const unlock = lockDirectory(options.data)
      try {
        const manifest = await interruptible(
          `what was restored to ${options.data} is not complete: remove that folder, and run the same command again`,
          signal =>
            orAborted(
              signal,
              restoreBackup({
                store,
                cellId,
                newCellId,
                disk: nodeDisk,
                clock: nodeClock,
                log: createLog({ name: 'restore', level: 'warn' }),
                dir: options.data,
                nodeId: `${name}.${randomBytes(8).toString('hex')}`,
                address: formatAddress(options.listen),
                zone: options.zone,
              }),
            ),
        )
        const toIndex = backupEnd(manifest).index
        if (options.json)
          return printJson({ cellId: newCellId, restoredFrom: cellId, toIndex, data: options.data })
        console.log(
          `restored ${options.data} from the backup of cell ${cellId}, up to entry ${toIndex}. Next:\n` +
            `  palimpsest safekeeper --id ${name} --data ${options.data} --listen ${formatAddress(options.listen)}\n` +
            'then add the others, with empty folders: palimpsest member add ID=HOST:PORT',
        )
      } finally {
        unlock()
      }
    })
}

function addBackupOptions(command: Command): Command {
  return addS3Options(
    command.requiredOption('--backup <DIR|s3://BUCKET/PREFIX>', 'where the backup is', pathArgument),
  ).option('--json', JSON_HELP, false)
}

function addCellOption(command: Command): Command {
  return command.option('--cell <ID>', 'which cell (default: the only one that has a backup there)')
}

async function cellOf(store: ObjectReader, { cell }: BackupCommandOptions): Promise<string> {
  if (cell !== undefined) {
    if (/^[0-9a-f]{32}$/.test(cell)) return cell
    throw new UsageError(`cell id "${cell}" is not 32 hexadecimal digits`)
  }
  const ids = await listBackups(store)
  if (ids.length === 1) return ids[0]!
  throw invalidError(
    ids.length === 0
      ? `${store.description} has no backup of a cell`
      : `${store.description} has backups of ${ids.length} cells: say which with --cell (palimpsest backup list)`,
  )
}
