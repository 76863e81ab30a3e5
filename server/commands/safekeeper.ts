/** `palimpsest safekeeper`: one of a cell that keeps the redo log durable until the page server has it in layers. */
import { type Command, InvalidArgumentError } from 'commander'
import { type Address, formatAddress } from '../../protocol/dial.ts'
import { BACKUP_INTERVAL_MS_DEFAULT } from '../safekeeper/backup.ts'
import { workerPackRunner } from '../safekeeper/log/pack-pool.ts'
import { SCRUB_BYTES_PER_SECOND_DEFAULT, SCRUB_EVERY_MS_DEFAULT } from '../safekeeper/log/scrub.ts'
import { NODE_NAME_DEFAULT, startSafekeeper } from '../safekeeper/safekeeper.ts'
import { countBuffersInHeapLimit } from '../shared/heap-limits.ts'
import { meteredDisk } from '../shared/metered-disk.ts'
import { nodeDisk } from '../shared/node-seams.ts'
import type { ObjectStore } from '../shared/object-store.ts'
import {
  addressArgument,
  addressesArgument,
  nodeNameArgument,
  pathArgument,
  UsageError,
  zoneArgument,
} from './common.ts'
import { durationArgument } from './durations.ts'
import { addServeOptions, type ServeOptions, serve } from './serve.ts'
import { addS3Options, openStoreAt, type S3CommandOptions } from './store-options.ts'

interface SafekeeperCommandOptions extends ServeOptions, S3CommandOptions {
  backup?: string
  /** Milliseconds. */
  backupInterval: number
  peers?: Map<string, Address>
  join?: Address[]
  advertise?: Address
  zone?: string
  scrubRate: number
}

export function registerSafekeeper(program: Command): void {
  const command = program.command('safekeeper')
  addServeOptions(
    command
      .description(
        'run a safekeeper: it makes redo durable, on a quorum of its cell, and hands it to page servers',
      )
      .option(
        '--id <NAME>',
        `name of this node in its cell (default: ${NODE_NAME_DEFAULT})`,
        nodeNameArgument,
      )
      .option(
        '--peers <NAME=HOST:PORT,…>',
        'the first members of the cell, this one among them: 1, 3, 5 or 7; without it, a cell of its own',
        peersArgument,
      )
      .option(
        '--join <HOST:PORT[,…]>',
        'members of a cell that this node waits to be added to ("palimpsest member add")',
        addressesArgument,
      )
      .option(
        '--advertise <HOST:PORT>',
        'where others reach this node (default: as in --peers, else as in --listen)',
        addressArgument,
      )
      .option('--zone <LABEL>', 'where it stands, so that "palimpsest status" can warn', zoneArgument)
      .addHelpText(
        'after',
        '\nPrints "ready HOST:PORT" once it listens and has read its disk; it may still wait for its peers. SIGTERM or Ctrl-C stops it cleanly.',
      ),
  )
  addS3Options(
    command
      .option(
        '--backup <DIR|s3://BUCKET/PREFIX>',
        'object store in which the cell keeps its log as well; the same for all safekeepers. "none" ends a backup',
        pathArgument,
      )
      .addOption(
        command
          .createOption(
            '--backup-interval <DURATION>',
            'committed redo waits at most so long for its backup, such as 10s or 1m; a number alone is seconds',
          )
          .argParser(durationArgument('100ms', '1d', 's'))
          .default(BACKUP_INTERVAL_MS_DEFAULT, `${BACKUP_INTERVAL_MS_DEFAULT / 1000}s`),
      )
      .option(
        '--scrub-rate <MIB/S>',
        'the log on disk is read again and again at this speed, at most once in 6 hours, to find damage while others can repair it; 0: it is not',
        scrubRateArgument,
        SCRUB_BYTES_PER_SECOND_DEFAULT / 1024 / 1024,
      ),
  )
  command.action((options: SafekeeperCommandOptions) => {
    const { peers, join, advertise } = options
    const id = options.id ?? NODE_NAME_DEFAULT
    if (peers !== undefined && join !== undefined)
      throw new UsageError(
        'give --peers to the first members of a cell, --join to those that are added later',
      )
    if (peers !== undefined && !peers.has(id))
      throw new UsageError(
        options.id === undefined
          ? 'add --id: which of --peers is this node?'
          : `--peers does not have ${id}, which is this node`,
      )
    countBuffersInHeapLimit()
    return serve('safekeeper', { ...options, id }, async (listener, log, parts, watch, security) => {
      const metrics = watch.part('safekeeper', { node: id })
      const backup = options.backup === undefined ? undefined : await openBackup(options.backup, options)
      const safekeeper = await startSafekeeper({
        dataDir: options.data,
        id,
        peers,
        join,
        zone: options.zone,
        address: advertise && formatAddress(advertise),
        listener,
        log,
        dial: { security },
        disk: meteredDisk(nodeDisk, metrics),
        packs: workerPackRunner(),
        metrics,
        scrub: { bytesPerSecond: options.scrubRate * 1024 * 1024, everyMs: SCRUB_EVERY_MS_DEFAULT },
        backup: backup && { store: backup.store, intervalMs: options.backupInterval },
      })
      watch.readiness.add('cell', () => safekeeper.node.unready)
      parts.push(safekeeper)
    })
  })
}

async function openBackup(where: string, options: S3CommandOptions): Promise<{ store: ObjectStore | null }> {
  return { store: where === 'none' ? null : await openStoreAt(where, options) }
}

function scrubRateArgument(text: string): number {
  const rate = Number(text)
  if (text.trim() === '' || !(rate >= 0 && rate <= 10_000))
    throw new InvalidArgumentError(`"${text}" is not 0 to 10000 MiB/s.`)
  return rate
}

/** `NAME=HOST:PORT,…`. */
export function peersArgument(text: string): Map<string, Address> {
  const peers = new Map<string, Address>()
  for (const part of text.split(',')) {
    const at = part.indexOf('=')
    if (at < 0) throw new InvalidArgumentError(`"${part}" is not NAME=HOST:PORT.`)
    const name = nodeNameArgument(part.slice(0, at).trim())
    if (peers.has(name)) throw new InvalidArgumentError(`there are two nodes ${name}.`)
    peers.set(name, addressArgument(part.slice(at + 1)))
  }
  if (peers.size > 7 || peers.size % 2 === 0)
    throw new InvalidArgumentError(`${peers.size} nodes: a cell begins with 1, 3, 5 or 7.`)
  return peers
}
