/**
 * The server's end of one connection: hello, requests in flight, replies, back-pressure. Made by the Listener only.
 *
 * Bounds: requests in flight and their bytes (then the socket is not read), bytes that wait to be sent (then too), and
 * the whole listener's bytes of requests. Replies that are given while one readable event is handled leave together.
 */
import type { Socket } from 'node:net'
import { TLSSocket } from 'node:tls'
import {
  BULK_WAIT,
  type Frame,
  FrameFlag,
  type FrameHeader,
  FrameReader,
  HELLO_FRAME_BYTES_MAX,
} from '../../protocol/frame.ts'
import {
  type AnyMessage,
  Feature,
  type Hello,
  type Message,
  MessageType,
  messageName,
  PROTOCOL_VERSION,
  roleNames,
} from '../../protocol/messages.ts'
import { SendQueue } from '../../protocol/send-queue.ts'
import type { Admission, Place } from './admission.ts'
import { authorize, ImportSessionsBegun, type NodesCertified } from './authorize.ts'
import { internalError, MalformedError, PalimpsestError, toPalimpsestError } from './errors.ts'
import type { AnyHandler, ListenerLimits, Service } from './listener.ts'
import type { ListenerStats, RequestOutcome } from './listener-stats.ts'
import type { Log } from './log.ts'
import { nodesOf } from './node-names.ts'
import { type ReplyOptions, RequestContext } from './request-context.ts'
import { EVERYBODY, type Principal } from './scopes.ts'
import type { Authenticator } from './server-security.ts'

/** What the connections of one listener share. */
export interface ListenerState {
  readonly limits: ListenerLimits
  readonly services: readonly Service[]
  readonly handlers: ReadonlyMap<number, { readonly handler: AnyHandler; readonly service: Service }>
  readonly roles: number
  readonly nodeId: string
  readonly software: string
  readonly log: Log
  readonly admission: Admission
  /** Without it everybody may do everything. */
  readonly authenticator: Authenticator | undefined
  /** Clients show certificates. */
  readonly wantsCertificates: boolean
  readonly stats: ListenerStats
  /** Bytes of requests in flight over all connections, bulks that are still being received included. */
  requestBytes: number
  /** Connections that stopped for want of those bytes. */
  readonly starved: Set<ServerConnection>
  readonly connections: Set<ServerConnection>
  wallTimeUs(): number
}

/** Longest time that a timer takes. */
const TIMER_MS_MAX = 2 ** 31 - 1

export class ServerConnection {
  readonly peer: string
  log: Log
  private readonly state: ListenerState
  private readonly socket: Socket
  private readonly place: Place
  private principal: Principal = EVERYBODY
  private readonly imports = new ImportSessionsBegun()
  /** Where clients must show a certificate: of which nodes it is one. */
  private readonly certified: NodesCertified | undefined
  private readonly reader: FrameReader
  private readonly queue = new SendQueue()
  private readonly inFlight = new Map<number, RequestContext>()
  private inFlightBytes = 0
  /** Of the bulk that is arriving. */
  private receivingBytes = 0
  private features = 0
  private ready = false
  /** Nothing is read until it is known whose connection this is. */
  private authenticating = false
  /** A callback that will flush the queue is on its way. */
  private flushes = false
  private flushesSoon = false
  private inEvent = false
  private gone = false
  private closing = false
  private readonly writableWaiters: (() => void)[] = []
  /** Until the hello: how long it may take; after it: the end of the credential. */
  private timer: NodeJS.Timeout

  /** `acceptedAtMs` in performance.now() milliseconds. */
  constructor(state: ListenerState, socket: Socket, place: Place, acceptedAtMs: number) {
    this.state = state
    this.socket = socket
    this.place = place
    this.peer = `${socket.remoteAddress ?? '?'}:${socket.remotePort ?? 0}`
    this.log = state.log.child({ peer: this.peer })
    if (state.wantsCertificates && socket instanceof TLSSocket) {
      const certificate = socket.getPeerX509Certificate()
      this.certified = () => (certificate === undefined ? [] : nodesOf(certificate))
    }
    this.queue.frameBytesMax = HELLO_FRAME_BYTES_MAX
    this.reader = new FrameReader(
      {
        onFrame: frame => this.onFrame(frame),
        onRefused: (header, error) => this.onRefused(header, error),
        bulkTarget: (header, message) => this.bulkTarget(header, message),
        leaveBulkCheck: (header, message) =>
          state.handlers.get(header.type)?.service.leaveBulkCheck?.(header, message) ?? false,
      },
      HELLO_FRAME_BYTES_MAX,
    )
    this.timer = setTimeout(
      () => this.giveUp(new PalimpsestError('invalid', 'no hello in time'), 0),
      Math.max(0, acceptedAtMs + state.limits.helloMs - performance.now()),
    )
    socket.setNoDelay(true)
    socket.setKeepAlive(true, state.limits.keepAliveMs)
    socket.setTimeout(state.limits.stalledMs)
    socket.on('data', chunk => this.onData(chunk))
    socket.on('drain', () => this.afterWrite())
    socket.on('timeout', () => this.onTimeout())
    socket.on('error', error => this.log.debug({ err: error }, 'connection failed'))
    socket.on('end', () => this.onEnd())
    socket.on('close', () => this.onClose())
  }

  get bulkBytesMax(): number {
    return this.queue.frameBytesMax - 65536
  }

  get writable(): boolean {
    return this.gone || this.socket.writableLength + this.queue.bytes < this.state.limits.sendBytesMax
  }

  whenWritable(): Promise<void> {
    if (this.writable) return Promise.resolve()
    return new Promise(resolve => this.writableWaiters.push(resolve))
  }

  private onData(chunk: Buffer): void {
    this.state.stats.receivedBytes += chunk.length
    this.inEvent = true
    try {
      if (!this.reader.push(chunk)) this.socket.pause()
    } catch (error) {
      this.giveUp(toPalimpsestError(error), 0)
    }
    this.inEvent = false
    this.flush()
  }

  /** A bulk counts from the moment that it begins to arrive, whoever's memory it goes to. */
  private bulkTarget(header: FrameHeader, message: Message): Uint8Array | typeof BULK_WAIT | undefined {
    const { state } = this
    if (state.requestBytes > 0 && state.requestBytes + header.bulkBytes > state.limits.requestBytesMaxAll) {
      state.starved.add(this)
      return BULK_WAIT
    }
    const service = this.mayAsk(message) ? state.handlers.get(header.type)?.service : undefined
    const target = service?.bulkTarget?.(header, message)
    if (target !== BULK_WAIT) {
      this.receivingBytes = header.bulkBytes
      state.requestBytes += header.bulkBytes
    }
    return target
  }

  /** The bulk is whole, or will not come: it is counted with its request from here on, or not at all. */
  private received(): void {
    this.state.requestBytes -= this.receivingBytes
    this.receivingBytes = 0
  }

  private feedStarved(): void {
    const { starved } = this.state
    if (starved.size === 0) return
    const connections = [...starved]
    starved.clear()
    for (const connection of connections) connection.resumeReading()
  }

  private onFrame(frame: Frame): void {
    const { header, message } = frame
    this.received()
    if (this.closing || this.gone) return
    if (!this.ready) {
      this.onHello(header, message)
      return
    }
    if ((header.flags & ~(FrameFlag.BULK_SECTIONED | FrameFlag.BULK_ZSTD)) !== 0)
      throw new MalformedError(`${messageName(header.type)} from a client must not have reply flags`, true)
    if (message.type === MessageType.Cancel) {
      this.inFlight
        .get(header.requestId)
        ?.cancel(new PalimpsestError('retry', 'cancelled by the client'), false)
      return
    }
    if (this.inFlight.has(header.requestId))
      throw new MalformedError(`request id ${header.requestId} is still in flight`, true)
    const bytes = header.headBytes + frame.bulk.length
    const context = new RequestContext(this, header.requestId, message, bytes)
    this.inFlight.set(header.requestId, context)
    this.inFlightBytes += bytes
    this.state.requestBytes += bytes
    this.dispatch(context, frame)
    if (this.isOverLimit) this.reader.stop()
  }

  /** A service does not even set memory aside for a request that will be refused. */
  private mayAsk(message: Message): boolean {
    try {
      authorize(this.principal, message, this.imports, this.certified)
      return true
    } catch {
      return false
    }
  }

  private dispatch(context: RequestContext, frame: Frame): void {
    if (frame.message.type === MessageType.Ping) {
      context.reply({ type: MessageType.Pong, wallTimeUs: this.state.wallTimeUs() })
      return
    }
    try {
      context.filter = authorize(this.principal, frame.message, this.imports, this.certified)
    } catch (error) {
      context.error(error)
      return
    }
    const entry = this.state.handlers.get(frame.message.type)
    if (entry === undefined) {
      context.error(
        new PalimpsestError(
          'invalid',
          `${messageName(frame.message.type)} is not for this server, which is a ${roleNames(this.state.roles)}`,
        ),
      )
      return
    }
    try {
      const result = entry.handler(frame, context)
      if (result instanceof Promise) this.follow(context, result)
    } catch (error) {
      context.error(error)
    }
  }

  private follow(context: RequestContext, result: Promise<void>): void {
    result.then(
      () => {
        if (!context.done)
          context.error(internalError(`${messageName(context.type)} was left without an answer`))
      },
      error => context.error(error),
    )
  }

  private onHello(header: FrameHeader, message: Message): void {
    if (message.type !== MessageType.Hello)
      throw new MalformedError(`the first frame must be a Hello, not ${messageName(message.type)}`, true)
    const { versionMin, versionMax } = message
    if (versionMin > PROTOCOL_VERSION || versionMax < PROTOCOL_VERSION)
      throw new MalformedError(
        `the client speaks protocol versions ${versionMin} to ${versionMax}, this server speaks ${PROTOCOL_VERSION}: ` +
          'use the same release on both sides',
        true,
      )
    const { authenticator } = this.state
    if (authenticator === undefined) {
      this.welcome(header, message, EVERYBODY)
      return
    }
    let principal: Principal | Promise<Principal>
    try {
      principal = authenticator.authenticate(message.token)
    } catch (error) {
      this.refuseCredential(toPalimpsestError(error))
      return
    }
    if (principal instanceof Promise) {
      this.authenticating = true
      this.reader.stop()
      principal.then(
        known => {
          this.authenticating = false
          if (this.gone || this.closing) return
          this.welcome(header, message, known)
          this.resumeReading()
        },
        error => this.refuseCredential(toPalimpsestError(error)),
      )
    } else this.welcome(header, message, principal)
  }

  /** A wrong credential: says so, later the more often that address is wrong. */
  private refuseCredential(error: PalimpsestError): void {
    if (this.gone || this.closing) return
    this.authenticating = true
    this.reader.stop()
    this.socket.pause()
    clearTimeout(this.timer)
    const delayMs = this.state.admission.failed(this.place, Date.now())
    if (delayMs === 0) this.giveUp(error, 0)
    else this.timer = setTimeout(() => this.giveUp(error, 0), delayMs)
  }

  private welcome(header: FrameHeader, message: Hello, principal: Principal): void {
    const noRoom = this.state.admission.promote(this.place)
    if (noRoom !== undefined) {
      this.state.stats.refuse('limit')
      this.giveUp(new PalimpsestError('retry', noRoom), 0)
      return
    }
    clearTimeout(this.timer)
    this.principal = principal
    if (principal !== EVERYBODY) this.log = this.log.child({ client: principal.name })
    this.armExpiry()
    const { limits } = this.state
    this.ready = true
    this.features = message.features & (Feature.ZSTD | Feature.REDIRECT | Feature.FORWARD)
    this.reader.frameBytesMax = limits.frameBytesMax
    this.send(header.requestId, FrameFlag.REPLY, {
      type: MessageType.HelloOk,
      version: PROTOCOL_VERSION,
      features: this.features,
      frameBytesMax: limits.frameBytesMax,
      roles: this.state.roles,
      nodeId: this.state.nodeId,
      software: this.state.software,
    } as AnyMessage)
    this.queue.frameBytesMax = Math.min(
      Math.max(message.frameBytesMax, limits.frameBytesLeast),
      limits.frameBytesMost,
    )
  }

  private armExpiry(): void {
    const { expiresAtMs } = this.principal
    if (expiresAtMs === undefined) return
    const leftMs = expiresAtMs - Date.now()
    if (leftMs <= 0) {
      this.giveUp(
        new PalimpsestError(
          'retry',
          `the token of "${this.principal.name}" has expired; connect with a new one`,
        ),
        0,
      )
      return
    }
    this.timer = setTimeout(() => this.armExpiry(), Math.min(leftMs, TIMER_MS_MAX))
    this.timer.unref()
  }

  /** Keys changed: ends the connection if nothing vouches for its client any more. */
  checkCredential(): void {
    if (!this.ready || this.state.authenticator === undefined) return
    if (this.state.authenticator.isCurrent(this.principal)) return
    this.giveUp(
      new PalimpsestError('retry', `the key of "${this.principal.name}" was withdrawn; connect with another`),
      0,
    )
  }

  /** A whole frame whose message is unknown or wrong: that request fails, the connection lives. */
  private onRefused(header: FrameHeader, error: PalimpsestError): void {
    this.received()
    this.feedStarved()
    if (!this.ready) throw new MalformedError(error.message, true)
    if (!this.closing && !this.gone) this.sendError(header.requestId, error)
  }

  /** Returns the frame's bytes. Throws MalformedError if the message cannot be sent to this peer. */
  send(requestId: number, flags: number, message: AnyMessage, options: ReplyOptions = {}): number {
    if (this.gone) {
      options.sent?.()
      return 0
    }
    const bytes = this.queue.push(
      {
        requestId,
        flags,
        message,
        bulk: options.bulk,
        bulkCrc: options.bulkCrc,
        compress: options.compress === true && (this.features & Feature.ZSTD) !== 0,
      },
      options.sent,
    )
    this.flushLater(options.soon === true)
    this.state.stats.sentBytes += bytes
    if (!this.writable) this.reader.stop()
    return bytes
  }

  /** What is another server's business: whether this client wants it passed on. */
  get wantsForward(): boolean {
    return (this.features & Feature.FORWARD) !== 0
  }

  sendError(requestId: number, error: PalimpsestError): void {
    if (error.askAt !== undefined && (this.features & Feature.REDIRECT) !== 0) {
      this.send(requestId, FrameFlag.REPLY | FrameFlag.ERROR, {
        type: MessageType.Redirect,
        address: error.askAt,
        message: cut(error.message),
      } as AnyMessage)
      return
    }
    this.send(requestId, FrameFlag.REPLY | FrameFlag.ERROR, {
      type: MessageType.ErrorReply,
      kind: error.kind,
      lsn: error.lsn,
      message: cut(error.message),
    } as AnyMessage)
  }

  private flushLater(soon: boolean): void {
    // What one readable event brings about leaves at its end.
    if (this.inEvent) return
    if (soon) {
      if (this.flushesSoon) return
      this.flushesSoon = true
      process.nextTick(this.flushSoon)
    } else if (!this.flushes) {
      // All that other events of this turn answer leaves together.
      this.flushes = true
      setImmediate(() => {
        this.flushes = false
        this.flush()
      })
    }
  }

  private readonly flushSoon = (): void => {
    this.flushesSoon = false
    this.flush()
  }

  private flush(): void {
    if (this.queue.bytes > 0) this.queue.flush(this.socket, this.afterWrite)
  }

  private readonly afterWrite = (): void => {
    if (!this.writable) return
    if (this.writableWaiters.length > 0) for (const waiter of this.writableWaiters.splice(0)) waiter()
    this.resumeReading()
  }

  /** For a request's context: its last reply was given. */
  settled(context: RequestContext, outcome: RequestOutcome): void {
    if (!this.inFlight.delete(context.requestId)) return
    this.state.stats.request(context.type, outcome)
    this.inFlightBytes -= context.bytes
    this.state.requestBytes -= context.bytes
    if (this.reader.isStopped) this.resumeReading()
    this.feedStarved()
  }

  private get isOverLimit(): boolean {
    const { limits } = this.state
    return (
      this.authenticating ||
      this.inFlight.size >= limits.requestsMax ||
      this.inFlightBytes >= limits.requestBytesMax ||
      !this.writable
    )
  }

  /** Goes on reading if it was stopped and nothing speaks against it. Services call it after BULK_WAIT. */
  resumeReading(): void {
    if (this.gone || this.closing || !this.reader.isStopped || this.isOverLimit) return
    // Until now it was we who waited.
    this.socket.setTimeout(this.state.limits.stalledMs)
    try {
      if (this.reader.resume()) this.socket.resume()
    } catch (error) {
      this.giveUp(toPalimpsestError(error), 0)
    }
  }

  /** Nothing moved for a while: half a frame, or a peer that does not take its replies, is given up. */
  private onTimeout(): void {
    const waitsForPeer = this.socket.writableLength > 0 || (!this.reader.isIdle && !this.reader.isStopped)
    if (waitsForPeer) {
      this.log.warn({ stalledMs: this.state.limits.stalledMs }, 'peer does not move: connection closed')
      this.state.stats.refuse('stalled')
      this.socket.destroy()
    } else this.socket.setTimeout(this.state.limits.stalledMs)
  }

  private onEnd(): void {
    if (!this.reader.isIdle && !this.closing) this.log.debug('connection ended within a frame')
    this.socket.end()
  }

  /** Says why, if it can, and closes. */
  private giveUp(error: PalimpsestError, requestId: number): void {
    if (this.closing || this.gone) return
    const suppressed = this.state.admission.mayLog(this.place.address, Date.now())
    if (suppressed !== undefined)
      this.log.warn({ kind: error.kind, reason: error.message, suppressed }, 'connection refused')
    this.state.stats.refuse(this.ready ? 'frame' : 'handshake')
    this.sendError(requestId, error)
    this.closing = true
    this.reader.stop()
    this.flush()
    this.socket.pause()
    this.socket.end(() => this.socket.destroy())
  }

  destroy(): void {
    this.socket.destroy()
  }

  private onClose(): void {
    this.gone = true
    this.queue.drop()
    clearTimeout(this.timer)
    const reason = new PalimpsestError('retry', `connection from ${this.peer} is gone`)
    for (const context of this.inFlight.values()) {
      this.state.requestBytes -= context.bytes
      this.state.stats.request(context.type, 'gone')
      context.cancel(reason, true)
    }
    this.inFlight.clear()
    this.inFlightBytes = 0
    this.received()
    for (const waiter of this.writableWaiters.splice(0)) waiter()
    this.state.connections.delete(this)
    this.state.starved.delete(this)
    this.feedStarved()
  }
}

function cut(text: string): string {
  return text.length > 1000
    ? `${text.slice(0, 1000).toWellFormed()}…`
    : text.replaceAll('\0', ' ').toWellFormed()
}
