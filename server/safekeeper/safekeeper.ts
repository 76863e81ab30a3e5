/** A safekeeper as a part that `palimpsest safekeeper` and `palimpsest dev` put on their listener. */
import { randomBytes } from 'node:crypto'
import { type Address, type DialOptions, formatAddress } from '../../protocol/dial.ts'
import { lockDirectory } from '../shared/dir-lock.ts'
import { retryError } from '../shared/errors.ts'
import type { Listener } from '../shared/listener.ts'
import type { Log } from '../shared/log.ts'
import type { MetricsPart } from '../shared/metrics.ts'
import { nodeClock, nodeDisk } from '../shared/node-seams.ts'
import type { ObjectStore } from '../shared/object-store.ts'
import type { Clock, Disk } from '../shared/seams.ts'
import { BACKUP_INTERVAL_MS_DEFAULT } from './backup.ts'
import { cellService } from './cell-service.ts'
import type { CoreTiming } from './core/types.ts'
import { workerPackRunner } from './log/pack-pool.ts'
import type { PackRunner } from './log/packer.ts'
import { logService } from './log-service.ts'
import { CellNode } from './node.ts'

export const NODE_NAME_DEFAULT = 'safekeeper'

export interface SafekeeperOptions {
  /** Made if it is not there; belongs to this process alone. */
  readonly dataDir: string
  readonly listener: Listener
  readonly log: Log
  /** Name of the node: 1 to 32 of letters, digits, `_` and `-`. */
  readonly id?: string | undefined
  /** Where other nodes and clients reach this one; the listener's address unless told, or what `peers` has for this node. */
  readonly address?: string | undefined
  readonly zone?: string | undefined
  /** The first members of the cell by name, this node among them. Without it, and without `join`: a cell of one. */
  readonly peers?: ReadonlyMap<string, Address> | undefined
  /** Wait to be added to the cell of these. */
  readonly join?: readonly Address[] | undefined
  /** How other safekeepers are dialled: this node's TLS and token. */
  readonly dial?: DialOptions | undefined
  readonly disk?: Disk | undefined
  /** Makes packs; a thread of its own unless told. With a `disk` that is not told it is this thread: a worker cannot see that disk. */
  readonly packs?: PackRunner | undefined
  readonly clock?: Clock | undefined
  /** Of new segments. Existing ones keep theirs. */
  readonly segmentBytes?: number | undefined
  readonly timing?: Partial<CoreTiming> | undefined
  readonly metrics?: MetricsPart | undefined
  /** How the log is looked through for damage. */
  readonly scrub?: { readonly bytesPerSecond: number; readonly everyMs: number } | undefined
  /** Where the cell's log is backed up; `store` null ends that. */
  readonly backup?:
    | { readonly store: ObjectStore | null; readonly intervalMs?: number | undefined }
    | undefined
  /** A sync or write failed: nothing this process says about the disk can be trusted. Ends the process. */
  readonly onFatal?: ((error: Error) => void) | undefined
}

export interface Safekeeper {
  readonly node: CellNode
  /** Resolves when the cell has a leader, as far as this node knows; false if that takes longer than `waitMs`. */
  ready(waitMs: number): Promise<boolean>
  /** Hands the lead over, if it has it: before the listener is closed. */
  retire(): Promise<void>
  /** Makes all durable that was accepted, and ends readers with kind retry. Close the listener as well. */
  close(): Promise<void>
}

/** Reads what is below `dataDir` and adds the services to the listener. A cell of one leads when this resolves. */
export async function startSafekeeper(options: SafekeeperOptions): Promise<Safekeeper> {
  const { dataDir, log, listener } = options
  const name = options.id ?? NODE_NAME_DEFAULT
  const peers = options.peers ?? new Map<string, Address>()
  const configured = peers.get(name)
  const unlock = lockDirectory(dataDir)
  try {
    const node = await CellNode.start({
      dir: dataDir,
      name,
      address: () =>
        options.address ?? (configured === undefined ? listener.address : formatAddress(configured)),
      zone: options.zone ?? '',
      peers,
      join: options.join ?? [],
      disk: options.disk ?? nodeDisk,
      clock: options.clock ?? nodeClock,
      randomHex: bytes => randomBytes(bytes).toString('hex'),
      random: Math.random,
      log,
      segmentBytes: options.segmentBytes,
      packs: options.packs ?? (options.disk === undefined ? workerPackRunner() : undefined),
      dial: options.dial ?? {},
      timing: options.timing,
      metrics: options.metrics,
      scrub: options.scrub,
      backup: options.backup && {
        store: options.backup.store,
        intervalMs: options.backup.intervalMs ?? BACKUP_INTERVAL_MS_DEFAULT,
      },
      onFatal:
        options.onFatal ??
        (error => {
          log.fatal({ err: error }, 'this safekeeper cannot go on: ending the process')
          process.exit(1)
        }),
    })
    listener.addService(logService(node))
    listener.addService(cellService(node))
    if (peers.size <= 1 && options.join === undefined) await node.leaderKnown(10_000)
    return {
      node,
      ready: waitMs => node.leaderKnown(waitMs),
      retire: () => node.retire(),
      async close() {
        await node.close(retryError('the safekeeper is shutting down'))
        unlock()
      },
    }
  } catch (error) {
    unlock()
    throw error
  }
}
