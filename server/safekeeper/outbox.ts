/**
 * What waits to be sent to the other members: ranges of the log, read only when there is room for them, so that a slow
 * member costs an index and not memory. One member's range or snapshot at a time, in order.
 */
import type { PeerEntry, RaftMessage, RaftPoint } from '../../protocol/messages.ts'
import { toPalimpsestError } from '../shared/errors.ts'
import type { Log } from '../shared/log.ts'
import type { Effect, EntryId, LogIndex, NodeId, Term } from './core/types.ts'
import type { EntryCache } from './entry-cache.ts'
import type { CellLog } from './log/cell-log.ts'
import type { LogEntry } from './log/entry.ts'

/** Payload of one append message, unless a single entry has more. */
const MESSAGE_BYTES = 1024 * 1024
const MESSAGE_ENTRIES = 2048

/**
 * Carries messages to other nodes; nothing is promised. What cannot be sent is dropped. Peers are told apart by their
 * full id, so that nothing meant for one incarnation reaches another.
 */
export interface PeerTransport {
  /** A message without entries. */
  send(to: NodeId, message: RaftMessage): void
  /** True while entries may be sent: connected, and not too many bytes under way. */
  hasRoom(to: NodeId): boolean
  isConnected(to: NodeId): boolean
  /** Resolves when `hasRoom` or `isConnected` may have changed. */
  whenRoom(to: NodeId): Promise<void>
  sendEntries(
    to: NodeId,
    head: AppendHead,
    entries: readonly PeerEntry[],
    payloads: readonly Uint8Array[],
  ): void
  /** A piece of a snapshot. */
  sendPiece(
    to: NodeId,
    head: { term: number; last: RaftPoint; offset: number; totalBytes: number },
    piece: Uint8Array,
  ): void
}

export interface AppendHead {
  readonly term: number
  readonly prev: RaftPoint
  readonly commit: number
  readonly round: number
}

type Replicate = Extract<Effect, { type: 'replicate' }>

interface Queue {
  range: Replicate | undefined
  snapshotTerm: Term | undefined
  running: boolean
}

export interface OutboxOptions {
  readonly transport: PeerTransport
  readonly log: CellLog
  readonly cache: EntryCache
  readonly logger: Log
  isLeading(term: Term): boolean
  readonly snapshotToSend: () => Promise<{ last: EntryId; bytes: Uint8Array }>
  onLost(peer: NodeId): void
  /** What the member needs could be read neither here nor, in its place, from others. It may work another time. */
  onUnreadable(peer: NodeId): void
}

export class Outbox {
  private readonly options: OutboxOptions
  private readonly queues = new Map<NodeId, Queue>()

  constructor(options: OutboxOptions) {
    this.options = options
  }

  /** Follows on the range before, or takes its place. */
  replicate(range: Replicate): void {
    const queue = this.queue(range.to)
    const before = queue.range
    queue.range =
      before !== undefined && before.term === range.term && before.last === range.prev.index
        ? { ...range, prev: before.prev }
        : range
    this.start(range.to, queue)
  }

  snapshot(to: NodeId, term: Term): void {
    const queue = this.queue(to)
    queue.snapshotTerm = term
    queue.range = undefined
    this.start(to, queue)
  }

  clear(): void {
    for (const queue of this.queues.values()) {
      queue.range = undefined
      queue.snapshotTerm = undefined
    }
  }

  private queue(to: NodeId): Queue {
    let queue = this.queues.get(to)
    if (queue === undefined) {
      queue = { range: undefined, snapshotTerm: undefined, running: false }
      this.queues.set(to, queue)
    }
    return queue
  }

  private start(to: NodeId, queue: Queue): void {
    if (queue.running) return
    // What is in memory leaves in this very turn.
    while (queue.range !== undefined && queue.snapshotTerm === undefined) {
      if (!this.options.transport.hasRoom(to)) break
      if (!this.sendCached(to, queue)) break
    }
    if (queue.range === undefined && queue.snapshotTerm === undefined) return
    queue.running = true
    void this.run(to, queue).finally(() => {
      queue.running = false
      if (queue.range !== undefined || queue.snapshotTerm !== undefined) this.start(to, queue)
    })
  }

  private async run(to: NodeId, queue: Queue): Promise<void> {
    const { transport, log, logger } = this.options
    try {
      while (queue.range !== undefined || queue.snapshotTerm !== undefined) {
        if (!transport.isConnected(to)) {
          // The core hears of it when the connection is back.
          queue.range = undefined
          queue.snapshotTerm = undefined
          return
        }
        if (!transport.hasRoom(to)) {
          await transport.whenRoom(to)
          continue
        }
        if (queue.snapshotTerm !== undefined) {
          const term = queue.snapshotTerm
          queue.snapshotTerm = undefined
          if (this.options.isLeading(term)) await this.sendSnapshot(to, term)
          continue
        }
        if (this.sendCached(to, queue)) continue
        const range = queue.range!
        const entries = await log.read((range.prev.index + 1) as LogIndex, range.last, MESSAGE_BYTES)
        // Another range may have come meanwhile.
        if (queue.range?.term === range.term && queue.range.prev.index === range.prev.index)
          this.send(to, queue, entries)
      }
    } catch (error) {
      const { kind, message } = toPalimpsestError(error)
      logger.warn({ peer: to, kind, reason: message }, 'entries for a member could not be read')
      queue.range = undefined
      this.options.onUnreadable(to)
      this.options.onLost(to)
    }
  }

  private sendCached(to: NodeId, queue: Queue): boolean {
    const range = queue.range!
    const entries = this.options.cache.slice(range.prev.index + 1, range.last, MESSAGE_BYTES, MESSAGE_ENTRIES)
    if (entries === undefined) return false
    this.send(to, queue, entries)
    return true
  }

  private send(to: NodeId, queue: Queue, entries: readonly LogEntry[]): void {
    const range = queue.range!
    if (!this.options.isLeading(range.term)) {
      queue.range = undefined
      return
    }
    const heads: PeerEntry[] = []
    const payloads: Uint8Array[] = []
    for (const entry of entries) {
      const { payload } = entry
      const { term, kind, dropped, timeline, epoch, beginLsn, endLsn, wallTimeUs, payloadCrc } = entry
      heads.push({
        term,
        kind,
        dropped,
        timeline,
        epoch,
        beginLsn,
        endLsn,
        wallTimeUs,
        payloadBytes: payload.length,
        payloadCrc,
      })
      if (payload.length > 0) payloads.push(payload)
    }
    const { term, prev, commit, round } = range
    this.options.transport.sendEntries(to, { term, prev, commit, round }, heads, payloads)
    const last = entries.at(-1)!
    queue.range =
      last.index >= range.last ? undefined : { ...range, prev: { index: last.index, term: last.term } }
  }

  private async sendSnapshot(to: NodeId, term: Term): Promise<void> {
    const { transport, logger } = this.options
    const { last, bytes } = await this.options.snapshotToSend()
    logger.info({ peer: to, index: last.index, bytes: bytes.length }, 'sending a snapshot')
    for (let offset = 0; ; ) {
      if (!transport.isConnected(to) || !this.options.isLeading(term)) return
      if (!transport.hasRoom(to)) {
        await transport.whenRoom(to)
        continue
      }
      const piece = bytes.subarray(offset, offset + MESSAGE_BYTES)
      transport.sendPiece(to, { term, last, offset, totalBytes: bytes.length }, piece)
      offset += piece.length
      if (offset >= bytes.length) return
    }
  }
}
