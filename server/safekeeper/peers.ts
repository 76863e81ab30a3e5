/**
 * Connections among the nodes of a cell. This node *subscribes* at every other one, over two connections (lanes): what the
 * other has to say comes as a stream on them. What this node has to say goes out on the subscriptions that others have here.
 * Messages without entries have the control lane to themselves, so a heartbeat never queues behind megabytes.
 *
 * Bounds: bytes of entries under way to one node (`hasRoom`), messages that wait on a control lane (the rest is dropped: the
 * consensus says it again), one frame of entries in the hands of the driver (then the socket is not read).
 *
 * The control lane says a word every half second, whatever happens; a subscriber that hears nothing for 3 s dials anew. So a
 * connection whose other end has vanished without a word is noticed.
 */
import type { Connection } from '../../protocol/connection.ts'
import { crc32cCombine } from '../../protocol/crc32c.ts'
import { type Address, formatAddress } from '../../protocol/dial.ts'
import {
  MessageType,
  type PeerAppend,
  type PeerEntry,
  type PeerLane,
  type PeerNode,
  type PeerSubscribe,
  type RaftMessage,
  type RaftPoint,
} from '../../protocol/messages.ts'
import { invalidError, retryError, toPalimpsestError } from '../shared/errors.ts'
import type { RequestContext } from '../shared/listener.ts'
import type { Log } from '../shared/log.ts'
import type { Clock } from '../shared/seams.ts'
import type { EntryId, NodeId } from './core/types.ts'
import { nameOf } from './node-files.ts'
import type { AppendHead, PeerTransport } from './outbox.ts'

/** Bytes of entries under way to one node: enough to fill a fast network, little enough to be resent. */
const ENTRIES_BYTES_MAX = 8 * 1024 * 1024
const CONTROL_MESSAGES_MAX = 1024
const RETRY_MS_MIN = 50
const RETRY_MS_MAX = 1000
const KEEP_ALIVE_MS = 500
const SILENCE_MS_MAX = 3000

export interface PeersOptions {
  readonly cellId: string
  /** This node, as others shall know it. */
  readonly self: PeerNode
  readonly clock: Clock
  /** In [0, 1). */
  readonly random: () => number
  readonly log: Log
  /** The one way to another node: with this node's TLS and token. */
  readonly dial: (address: Address) => Promise<Connection>
  readonly onMessage: (from: NodeId, message: RaftMessage) => void
  /** Resolves when more may come. */
  readonly onEntries: (from: NodeId, message: PeerAppend, bulk: Uint8Array) => Promise<void>
  readonly onSnapshot: (from: NodeId, term: number, last: EntryId, bytes: Uint8Array) => Promise<void>
  /** A way to that node was lost, or is new: what was sent before may not have come. */
  readonly onLost: (peer: NodeId) => void
  /** A node was reached and said who it is and where. */
  readonly onSeen: (node: PeerNode) => void
  /** A node subscribed here and said the same. */
  readonly onSubscribed: (node: PeerNode) => void
}

/** A subscription of another node here. */
interface OutLane {
  readonly ctx: RequestContext
  pending: number
  lastSentMs: number
}

interface OutPeer {
  readonly lanes: Partial<Record<PeerLane, OutLane>>
  waiters: (() => void)[]
}

/** A node at which we subscribe. */
interface Target {
  address: Address
  readonly stop: AbortController
}

export class Peers implements PeerTransport {
  private readonly options: PeersOptions
  private readonly out = new Map<NodeId, OutPeer>()
  /** By the node's name. */
  private readonly targets = new Map<string, Target>()
  private closed = false

  constructor(options: PeersOptions) {
    this.options = options
    void this.keepAlive()
  }

  /** Subscribes at these nodes (by name) and at no others. */
  setTargets(wanted: ReadonlyMap<string, Address>): void {
    if (this.closed) return
    for (const [name, target] of this.targets) {
      const address = wanted.get(name)
      if (address !== undefined && formatAddress(address) === formatAddress(target.address)) continue
      target.stop.abort(retryError(`${name} is not subscribed at any more`))
      this.targets.delete(name)
    }
    for (const [name, address] of wanted) {
      if (this.targets.has(name)) continue
      const target = { address, stop: new AbortController() }
      this.targets.set(name, target)
      void this.subscribeLoop(name, target, 'control')
      void this.subscribeLoop(name, target, 'entries')
    }
  }

  // Sending

  isConnected(to: NodeId): boolean {
    const lanes = this.out.get(to)?.lanes
    return lanes?.control !== undefined && lanes.entries !== undefined
  }

  hasRoom(to: NodeId): boolean {
    const lane = this.out.get(to)?.lanes.entries
    return lane !== undefined && lane.pending < ENTRIES_BYTES_MAX
  }

  whenRoom(to: NodeId): Promise<void> {
    const peer = this.out.get(to)
    if (peer === undefined || this.hasRoom(to)) return Promise.resolve()
    return new Promise(resolve => peer.waiters.push(resolve))
  }

  send(to: NodeId, message: RaftMessage): void {
    const lane = this.out.get(to)?.lanes.control
    if (lane === undefined || lane.pending >= CONTROL_MESSAGES_MAX) return
    lane.pending++
    lane.lastSentMs = this.options.clock.monotonicMs()
    lane.ctx.reply(
      { type: MessageType.PeerRaft, message },
      {
        more: true,
        soon: true,
        sent: () => {
          lane.pending--
        },
      },
    )
  }

  sendEntries(
    to: NodeId,
    head: AppendHead,
    entries: readonly PeerEntry[],
    payloads: readonly Uint8Array[],
  ): void {
    const peer = this.out.get(to)
    const lane = peer?.lanes.entries
    if (lane === undefined) return
    let bytes = entries.length * 128
    for (const payload of payloads) bytes += payload.length
    lane.pending += bytes
    lane.ctx.reply(
      { type: MessageType.PeerAppend, ...head, entries },
      {
        bulk: payloads,
        bulkCrc: crcOf(entries),
        more: true,
        soon: true,
        sent: () => this.sent(peer!, lane, bytes),
      },
    )
  }

  sendPiece(
    to: NodeId,
    head: { term: number; last: RaftPoint; offset: number; totalBytes: number },
    piece: Uint8Array,
  ): void {
    const peer = this.out.get(to)
    const lane = peer?.lanes.entries
    if (lane === undefined) return
    lane.pending += piece.length
    lane.ctx.reply(
      { type: MessageType.PeerSnapshot, ...head },
      { bulk: piece, more: true, sent: () => this.sent(peer!, lane, piece.length) },
    )
  }

  private sent(peer: OutPeer, lane: OutLane, bytes: number): void {
    lane.pending -= bytes
    if (lane.pending < ENTRIES_BYTES_MAX) this.wake(peer)
  }

  private wake(peer: OutPeer): void {
    for (const resolve of peer.waiters.splice(0)) resolve()
  }

  /** Takes another node's subscription; ends when either side closes. */
  async subscribed(message: PeerSubscribe, ctx: RequestContext): Promise<void> {
    const { cellId, self, log, clock, onLost, onSubscribed } = this.options
    if (message.cellId !== cellId)
      throw invalidError(
        `this safekeeper, ${self.nodeId}, is in cell ${cellId}, ${message.node.nodeId} in ${message.cellId || 'none'}: ` +
          'check --peers of both',
      )
    if (this.closed) throw retryError('the safekeeper is shutting down')
    const { node, lane: name } = message
    let peer = this.out.get(node.nodeId)
    if (peer === undefined) {
      peer = { lanes: {}, waiters: [] }
      this.out.set(node.nodeId, peer)
    }
    const older = peer.lanes[name]
    const lane: OutLane = { ctx, pending: 0, lastSentMs: clock.monotonicMs() }
    peer.lanes[name] = lane
    older?.ctx.connection.destroy()
    ctx.reply({ type: MessageType.PeerWelcome, node: self }, { more: true })
    log.debug({ peer: node.nodeId, lane: name }, 'peer subscribed')
    onSubscribed(node)
    // What was sent before did not come.
    onLost(node.nodeId)
    this.wake(peer)
    await aborted(ctx.closed)
    if (peer.lanes[name] === lane) {
      delete peer.lanes[name]
      if (peer.lanes.control === undefined && peer.lanes.entries === undefined) this.out.delete(node.nodeId)
      this.wake(peer)
      onLost(node.nodeId)
    }
    ctx.error(retryError('subscription ended'))
  }

  private async keepAlive(): Promise<void> {
    const { clock, self } = this.options
    while (!this.closed) {
      await clock.sleep(KEEP_ALIVE_MS)
      const now = clock.monotonicMs()
      for (const { lanes } of this.out.values()) {
        const lane = lanes.control
        if (lane === undefined || lane.pending > 0 || now - lane.lastSentMs < KEEP_ALIVE_MS) continue
        lane.lastSentMs = now
        lane.ctx.reply({ type: MessageType.PeerWelcome, node: self }, { more: true })
      }
    }
  }

  // Receiving

  private async subscribeLoop(name: string, target: Target, lane: PeerLane): Promise<void> {
    const { clock, random, log } = this.options
    const { signal } = target.stop
    let retryMs = RETRY_MS_MIN
    let lastReason = ''
    while (!signal.aborted) {
      const begunMs = clock.monotonicMs()
      try {
        await this.subscribe(name, target, lane)
        lastReason = ''
      } catch (error) {
        if (signal.aborted) return
        const { kind, message } = toPalimpsestError(error)
        if (message !== lastReason) {
          const say = kind === 'retry' ? log.debug.bind(log) : log.warn.bind(log)
          say({ peer: name, kind, reason: message, lane }, 'no subscription at a peer')
          lastReason = message
        }
      }
      if (clock.monotonicMs() - begunMs > 5000) retryMs = RETRY_MS_MIN
      await clock.sleep(retryMs * (0.5 + random()), signal)
      retryMs = Math.min(retryMs * 2, RETRY_MS_MAX)
    }
  }

  private async subscribe(name: string, target: Target, lane: PeerLane): Promise<void> {
    const { cellId, self, dial, clock, onMessage, onEntries, onSnapshot, onSeen } = this.options
    const { signal } = target.stop
    const connection = await dial(target.address)
    const close = () => connection.close()
    signal.addEventListener('abort', close, { once: true })
    let heardMs = clock.monotonicMs()
    let over = false
    if (lane === 'control')
      void (async () => {
        while (!over) {
          await clock.sleep(KEEP_ALIVE_MS)
          if (clock.monotonicMs() - heardMs > SILENCE_MS_MAX) connection.close()
        }
      })()
    try {
      if (signal.aborted) return
      const request: PeerSubscribe = { type: MessageType.PeerSubscribe, cellId, node: self, lane }
      let from: NodeId | undefined
      let snapshot: { last: RaftPoint; bytes: Buffer; got: number } | undefined
      for await (const { message, bulk } of connection.stream(request, { deadlineMs: 5000 })) {
        heardMs = clock.monotonicMs()
        if (message.type === MessageType.PeerWelcome) {
          if (from === undefined) {
            from = message.node.nodeId
            if (nameOf(from) !== name)
              throw invalidError(
                `${connection.address} is node ${from}, not ${name}: check --peers, or the address it was added with`,
              )
            onSeen(message.node)
          }
          continue
        }
        if (from === undefined) throw invalidError(`${connection.address} speaks before it says who it is`)
        if (message.type === MessageType.PeerRaft) onMessage(from, message.message)
        else if (message.type === MessageType.PeerAppend) await onEntries(from, message, bulk)
        else {
          const { last, offset, totalBytes } = message
          if (offset === 0) snapshot = { last, bytes: Buffer.allocUnsafeSlow(totalBytes), got: 0 }
          if (snapshot === undefined || offset !== snapshot.got || totalBytes !== snapshot.bytes.length)
            throw invalidError(`a piece of a snapshot out of order from ${from}`)
          if (snapshot.last.index !== last.index || offset + bulk.length > totalBytes)
            throw invalidError(`a piece of another snapshot from ${from}`)
          snapshot.bytes.set(bulk, offset)
          snapshot.got += bulk.length
          if (snapshot.got === totalBytes) {
            const { bytes } = snapshot
            snapshot = undefined
            await onSnapshot(from, message.term, last as EntryId, bytes)
          }
        }
      }
    } finally {
      over = true
      signal.removeEventListener('abort', close)
      connection.close()
    }
  }

  close(): void {
    this.closed = true
    for (const target of this.targets.values())
      target.stop.abort(retryError('the safekeeper is shutting down'))
    this.targets.clear()
    for (const peer of this.out.values()) {
      this.wake(peer)
      for (const lane of Object.values(peer.lanes)) lane.ctx.connection.destroy()
    }
  }
}

/** Of the payloads, one behind the other, as their makers computed it: whoever receives them checks all the way from there. */
function crcOf(entries: readonly PeerEntry[]): number {
  let crc = 0
  for (const { payloadBytes, payloadCrc } of entries)
    if (payloadBytes > 0) crc = crc32cCombine(crc, payloadCrc, payloadBytes)
  return crc
}

function aborted(signal: AbortSignal): Promise<void> {
  if (signal.aborted) return Promise.resolve()
  return new Promise(resolve => signal.addEventListener('abort', () => resolve(), { once: true }))
}
