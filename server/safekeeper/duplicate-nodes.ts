/**
 * Two live processes of one node id: somebody copied a folder. Both subscribe here, each throws the other's subscription out, and so they take
 * turns. A node that moves changes its address once; one whose address goes there and back and there again within a minute is two.
 *
 * That is told and not acted upon: which of the two is the right one nobody can know, since each may have voted and acknowledged
 * what the other does not know of.
 */
import type { PeerNode } from '../../protocol/messages.ts'
import type { Log } from '../shared/log.ts'
import type { Clock } from '../shared/seams.ts'
import type { NodeId } from './core/types.ts'

/** Changes that lie further back do not count. */
const WITHIN_MS = 60_000
/** There, back, and there again. */
const CHANGES = 3
const WARN_EVERY_MS = 5 * 60_000

export interface DuplicateNodesOptions {
  /** Only these are looked at, so that there is a limit. */
  readonly isMember: (node: NodeId) => boolean
  readonly clock: Clock
  readonly log: Log
}

interface Seen {
  address: string
  /** Before that. */
  earlier: string
  /** When the address changed back or forth between the two: the newest of them, ascending. */
  readonly changesMs: number[]
  warnedMs: number
}

export class DuplicateNodes {
  private readonly options: DuplicateNodesOptions
  private readonly seen = new Map<NodeId, Seen>()

  constructor(options: DuplicateNodesOptions) {
    this.options = options
  }

  /** A node subscribed here and said where it is. */
  onSubscribed({ nodeId, address }: PeerNode): void {
    const { isMember, clock, log } = this.options
    for (const id of this.seen.keys()) if (!isMember(id)) this.seen.delete(id)
    if (!isMember(nodeId)) return
    const seen = this.seen.get(nodeId)
    if (seen === undefined) {
      this.seen.set(nodeId, { address, earlier: '', changesMs: [], warnedMs: Number.NEGATIVE_INFINITY })
      return
    }
    if (address === seen.address) return
    if (address !== seen.earlier) seen.changesMs.length = 0
    seen.earlier = seen.address
    seen.address = address
    const nowMs = clock.monotonicMs()
    seen.changesMs.push(nowMs)
    if (seen.changesMs.length > CHANGES) seen.changesMs.shift()
    if (!isTwo(seen, nowMs) || nowMs - seen.warnedMs < WARN_EVERY_MS) return
    seen.warnedMs = nowMs
    log.warn({ peer: nodeId, addresses: addressesOf(seen) }, describe(nodeId, seen))
  }

  /** What there is to say at present; empty: nothing. */
  get problem(): string {
    const nowMs = this.options.clock.monotonicMs()
    return [...this.seen]
      .filter(([, seen]) => isTwo(seen, nowMs))
      .map(([nodeId, seen]) => describe(nodeId, seen))
      .join('; ')
  }
}

function isTwo({ changesMs }: Seen, nowMs: number): boolean {
  return changesMs.length === CHANGES && nowMs - changesMs[0]! < WITHIN_MS
}

/** In an order that does not change with their turns. */
function addressesOf({ address, earlier }: Seen): string[] {
  return [address, earlier].sort()
}

function describe(nodeId: NodeId, seen: Seen): string {
  return (
    `${nodeId} runs twice, at ${addressesOf(seen).join(' and at ')}: its folder was copied. Stop both, and start it once, ` +
    'with an empty folder: it gets everything from the others'
  )
}
