/**
 * `palimpsest dev`: a cell of safekeepers and a page server with embedded defaults, in one process. The first safekeeper and the
 * page server are on the port that is printed, which therefore answers for everything; the other safekeepers have loopback
 * ports of their own, any that are free.
 */
import { existsSync, readdirSync } from 'node:fs'
import { join } from 'node:path'
import type { Command } from 'commander'
import { type Address, formatAddress } from '../../protocol/dial.ts'
import type { ConnectionSecurity } from '../../protocol/security.ts'
import { startPageServer } from '../pageserver/index.ts'
import { workerPackRunner } from '../safekeeper/log/pack-pool.ts'
import { type Safekeeper, startSafekeeper } from '../safekeeper/safekeeper.ts'
import type { Listener } from '../shared/listener.ts'
import type { Log } from '../shared/log.ts'
import { meteredDisk } from '../shared/metered-disk.ts'
import { nodeDisk } from '../shared/node-seams.ts'
import type { Watch } from './admin.ts'
import { UsageError } from './common.ts'
import { addPageServerOptions, type PageServerOptions } from './pageserver.ts'
import { addServeOptions, type Part, type ServeOptions, serve } from './serve.ts'
import { openStore, type StoreOptions } from './store-options.ts'

const SAFEKEEPERS_DEFAULT = 3
/** The cell elects its leader within a second; a machine that is busy may need longer. */
const LEADER_MS = 20_000

interface DevOptions extends ServeOptions, PageServerOptions, StoreOptions {
  safekeepers?: string
}

export function registerDev(program: Command): void {
  const command = program
    .command('dev')
    .description(
      'run everything in one process: safekeepers, a page server and an object store in a directory',
    )
    .addOption(
      program
        .createOption(
          '--safekeepers <N>',
          `how many safekeepers (default: as before in DIR, else ${SAFEKEEPERS_DEFAULT})`,
        )
        .choices(['1', '3', '5', '7']),
    )
    .addHelpText('after', '\nPrints "ready HOST:PORT" once usable. SIGTERM or Ctrl-C stops it cleanly.')
  addPageServerOptions(addServeOptions(command, '.palimpsest/dev')).action((options: DevOptions) =>
    serve('dev', options, async (listener, log, parts, watch, security) => {
      const loaded = watch.readiness.pending('pageserver', 'its manifests are not all loaded yet')
      const safekeepers = await startCell(options, listener, log, parts, watch, security)
      parts.push(
        await startPageServer({
          dataDir: join(options.data, 'pageserver'),
          store: await openStore(options),
          cacheBytes: options.cacheSize,
          retryStopped: options.retryStopped,
          safekeepers,
          security,
          listener,
          memoryBytes: options.memory,
          workers: options.workers,
          log: log.child({ part: 'pageserver' }),
          metrics: watch,
        }),
      )
      loaded()
    }),
  )
}

/** Starts the safekeepers and waits for a leader. @returns their addresses */
async function startCell(
  options: DevOptions,
  main: Listener,
  log: Log,
  parts: Part[],
  watch: Watch,
  security: ConnectionSecurity | undefined,
): Promise<Address[]> {
  const root = join(options.data, 'safekeepers')
  const count = cellSize(options, root)
  const names = Array.from({ length: count }, (_, i) => `sk${i + 1}`)
  const listeners = new Map<string, Listener>()
  const peers = new Map<string, Address>()
  for (const name of names) {
    const part = log.child({ part: 'safekeeper', node: name })
    const listener = listeners.size === 0 ? main : main.sibling(part, name)
    if (listener !== main) {
      await listener.listen()
      parts.push({ close: () => listener.close() })
    }
    listeners.set(name, listener)
    peers.set(name, listener.localAddress)
  }
  const running: Safekeeper[] = []
  for (const [name, listener] of listeners) {
    const metrics = watch.part('safekeeper', { node: name })
    const safekeeper = await startSafekeeper({
      dataDir: join(root, name),
      id: name,
      address: listener === main ? undefined : formatAddress(listener.localAddress),
      peers,
      listener,
      log: log.child({ part: 'safekeeper', node: name }),
      dial: { security },
      disk: meteredDisk(nodeDisk, metrics),
      packs: workerPackRunner(),
      metrics,
    })
    // All end together: there is nobody to hand over to.
    parts.push({ close: () => safekeeper.close() })
    running.push(safekeeper)
  }
  watch.readiness.add('cell', () => running[0]!.node.unready)
  if (!(await running[0]!.ready(LEADER_MS)))
    throw new UsageError(
      `the safekeepers in ${root} found no leader: were they copied, or is one of their folders gone?`,
    )
  return [...peers.values()]
}

/** As many as there were before; so many as is said in a new folder. */
function cellSize(options: DevOptions, root: string): number {
  const old = join(options.data, 'safekeeper')
  if (existsSync(join(old, 'timelines')))
    throw new UsageError(
      `${old} holds logs of an earlier release, which knew no cells; give another --data, and attach the databases again`,
    )
  const wanted = options.safekeepers === undefined ? undefined : Number(options.safekeepers)
  const found = existsSync(root) ? readdirSync(root).filter(name => /^sk[1-7]$/.test(name)).length : 0
  if (found === 0) return wanted ?? SAFEKEEPERS_DEFAULT
  if (wanted !== undefined && wanted !== found)
    throw new UsageError(`${root} has ${found} safekeepers; leave --safekeepers out, or give another --data`)
  return found
}
