/** `palimpsest safekeeper`: one of a cell that keeps the redo log durable until the page server has it in layers. */
import { type Command, InvalidArgumentError } from 'commander'
import { type Address, formatAddress, parseAddress } from '../../protocol/dial.ts'
import { checkNodeName, checkZone } from '../../protocol/messages.ts'
import { NODE_NAME_DEFAULT, startSafekeeper } from '../safekeeper/safekeeper.ts'
import { meteredDisk } from '../shared/metered-disk.ts'
import { nodeDisk } from '../shared/node-seams.ts'
import { addressArgument, addressesArgument, UsageError } from './common.ts'
import { addServeOptions, outgoingSecurity, type ServeOptions, serve } from './serve.ts'

interface SafekeeperCommandOptions extends ServeOptions {
  peers?: Map<string, Address>
  join?: Address[]
  advertise?: Address
  zone?: string
}

export function registerSafekeeper(program: Command): void {
  addServeOptions(
    program
      .command('safekeeper')
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
      .option('--zone <LABEL>', 'where this node stands, so that "palimpsest status" can warn', zoneArgument)
      .addHelpText(
        'after',
        '\nPrints "ready HOST:PORT" once it listens and has read its disk; it may still wait for its peers. SIGTERM or Ctrl-C stops it cleanly.',
      ),
  ).action((options: SafekeeperCommandOptions) => {
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
    return serve('safekeeper', { ...options, id }, async (listener, log, parts, watch) => {
      const metrics = watch.part('safekeeper', { node: id })
      const safekeeper = await startSafekeeper({
        dataDir: options.data,
        id,
        peers,
        join,
        zone: options.zone,
        address: advertise && formatAddress(advertise),
        listener,
        log,
        dial: { security: outgoingSecurity(options) },
        disk: meteredDisk(nodeDisk, metrics),
        metrics,
      })
      watch.readiness.add('cell', () => safekeeper.node.unready)
      parts.push(safekeeper)
    })
  })
}

function nodeNameArgument(text: string): string {
  return orWrongUsage(() => checkNodeName(text))
}

function zoneArgument(text: string): string {
  return orWrongUsage(() => checkZone(text))
}

/** `NAME=HOST:PORT,…`. */
export function peersArgument(text: string): Map<string, Address> {
  const peers = new Map<string, Address>()
  for (const part of text.split(',')) {
    const at = part.indexOf('=')
    if (at < 0) throw new InvalidArgumentError(`"${part}" is not NAME=HOST:PORT.`)
    const name = nodeNameArgument(part.slice(0, at).trim())
    if (peers.has(name)) throw new InvalidArgumentError(`there are two nodes ${name}.`)
    peers.set(
      name,
      orWrongUsage(() => parseAddress(part.slice(at + 1))),
    )
  }
  if (peers.size > 7 || peers.size % 2 === 0)
    throw new InvalidArgumentError(`${peers.size} nodes: a cell begins with 1, 3, 5 or 7.`)
  return peers
}

function orWrongUsage<T>(check: () => T): T {
  try {
    return check()
  } catch (error) {
    throw new InvalidArgumentError((error as Error).message)
  }
}
