/** What a node of the cell is started with. */
import type { Connection } from '../../protocol/connection.ts'
import type { Address, DialOptions } from '../../protocol/dial.ts'
import type { Log } from '../shared/log.ts'
import type { MetricsPart } from '../shared/metrics.ts'
import type { ObjectStore } from '../shared/object-store.ts'
import type { Clock, Disk } from '../shared/seams.ts'
import type { CoreTiming } from './core/types.ts'
import type { PackRunner } from './log/packer.ts'

export interface CellNodeOptions {
  readonly dir: string
  /** 1 to 32 of letters, digits, `_` and `-`. */
  readonly name: string
  /** Where others reach this node; asked for again each time, since a port may be known only later. */
  readonly address: () => string
  readonly zone: string
  /** First members of the cell by name, this node among them; none: a cell of its own, or see `join`. */
  readonly peers: ReadonlyMap<string, Address>
  /** Nodes of a cell that this one shall be added to. */
  readonly join: readonly Address[]
  readonly disk: Disk
  readonly clock: Clock
  /** So many random bytes as hexadecimal digits. */
  readonly randomHex: (bytes: number) => string
  readonly random: () => number
  readonly log: Log
  readonly segmentBytes: number | undefined
  /** What packs sealed segments; this thread unless told. */
  readonly packs?: PackRunner | undefined
  /** How this node dials others: its TLS, its token. */
  readonly dial: DialOptions
  /** Opens a connection to another safekeeper; over TCP unless told. */
  readonly connect?: ((address: Address, options: DialOptions) => Promise<Connection>) | undefined
  /** Runs a function after the events of this turn; setImmediate unless told. */
  readonly soon?: ((run: () => void) => void) | undefined
  readonly timing: Partial<CoreTiming> | undefined
  readonly metrics: MetricsPart | undefined
  /** Where the cell's log is kept as well; store null: nowhere any more; undefined: as it was, by others. */
  readonly backup?:
    | { readonly store: ObjectStore | null; readonly intervalMs: number; readonly mergeAt?: number }
    | undefined
  /** How the log is looked through for damage; 8 MiB/s, every 6 hours at most, unless told. */
  readonly scrub?: { readonly bytesPerSecond: number; readonly everyMs: number } | undefined
  readonly onFatal: (error: Error) => void
}
