/**
 * The one way into a server: accepts connections and gives their requests to the services' handlers. TLS, the limits on
 * clients that are not known yet, and who may ask for what are here, for all services at once (docs/security.md).
 */
import { randomUUID } from 'node:crypto'
import { createServer, type Server, type Socket } from 'node:net'
import { createServer as createTlsServer, type TLSSocket, type Server as TlsServer } from 'node:tls'
import { isLoopback } from '../../protocol/client-socket.ts'
import {
  type BULK_WAIT,
  FRAME_BYTES_MAX_LEAST,
  FRAME_BYTES_MAX_MOST,
  type FrameHeader,
} from '../../protocol/frame.ts'
import type { Message, MessageType, Replies } from '../../protocol/messages.ts'
import { Admission, type AdmissionLimits, type Place } from './admission.ts'
import { invalidError, retryError } from './errors.ts'
import { ListenerStats } from './listener-stats.ts'
import type { Log } from './log.ts'
import type { MetricsPart } from './metrics.ts'
import type { IncomingRequest, RequestContext } from './request-context.ts'
import { type ListenerState, ServerConnection } from './server-connection.ts'
import type { ServerSecurity } from './server-security.ts'

export { isLoopback } from '../../protocol/client-socket.ts'
export type { IncomingRequest, ReplyOptions, RequestContext } from './request-context.ts'

/**
 * Answers a request through `ctx.reply`, in time or later. What it throws, or its promise rejects with, becomes the
 * error reply. If it returns a promise, the last reply must have been given when that resolves.
 */
export type Handler<M> = (request: IncomingRequest<M>, ctx: RequestContext) => Promise<void> | void

/** A handler for each request that the service knows, by message type. */
export type Handlers = { readonly [K in keyof Replies as (typeof MessageType)[K]]?: Handler<Replies[K][0]> }

export type AnyHandler = Handler<never> & Handler<Message>

export interface Service {
  /** Bits of Role. */
  readonly role: number
  readonly handlers: Handlers
  /** Memory for a request's bulk; see FrameSink.bulkTarget. */
  bulkTarget?(header: FrameHeader, message: Message): Uint8Array | typeof BULK_WAIT | undefined
  /** True where the service checks the bulk's CRCs itself. */
  leaveBulkCheck?(header: FrameHeader, message: Message): boolean
}

export interface ListenerLimits extends AdmissionLimits {
  /** Per connection: requests in flight, and bytes of their frames. */
  readonly requestsMax: number
  readonly requestBytesMax: number
  /** Over all connections. */
  readonly requestBytesMaxAll: number
  /** Per connection: bytes that wait to be sent before no more requests are read. */
  readonly sendBytesMax: number
  readonly frameBytesMax: number
  /** Bounds of what a client may ask for as its own frame limit. */
  readonly frameBytesLeast: number
  readonly frameBytesMost: number
  /** From accept to hello, the TLS handshake included. */
  readonly helloMs: number
  /** Without any movement, while a frame or reply is half through. */
  readonly stalledMs: number
  /** Idle time before TCP asks whether the peer is still there. */
  readonly keepAliveMs: number
}

export const LISTENER_LIMITS: ListenerLimits = {
  unknownMax: 1024,
  unknownMaxPerAddress: 768,
  unknownOldPerAddress: 128,
  unknownYoungMs: 1000,
  connectionsMax: 16_384,
  connectionsMaxPerAddress: 12_288,
  requestsMax: 1024,
  requestBytesMax: 64 * 1024 * 1024,
  requestBytesMaxAll: 256 * 1024 * 1024,
  sendBytesMax: 8 * 1024 * 1024,
  frameBytesMax: 16 * 1024 * 1024,
  frameBytesLeast: FRAME_BYTES_MAX_LEAST,
  frameBytesMost: FRAME_BYTES_MAX_MOST,
  helloMs: 10_000,
  stalledMs: 60_000,
  keepAliveMs: 10_000,
}

export interface ListenerOptions {
  readonly host: string
  /** 0: any free port; see `Listener.port`. */
  readonly port: number
  readonly services?: readonly Service[] | undefined
  readonly limits?: Partial<ListenerLimits> | undefined
  readonly log: Log
  readonly nodeId?: string | undefined
  readonly software?: string | undefined
  /** TLS and who the clients are. Without it: plain TCP, and everybody may do everything. The caller closes it. */
  readonly security?: ServerSecurity | undefined
  /** Listen on an address that others can reach although encryption, or proof of who the clients are, is missing. */
  readonly insecureListen?: boolean | undefined
  readonly metrics?: MetricsPart | undefined
}

/** Bytes that a socket holds that is not read. */
const SOCKET_BYTES = 64 * 1024

/** @throws PalimpsestError of kind invalid that says what is missing */
function checkListen(host: string, security: ServerSecurity | undefined): void {
  if (isLoopback(host)) return
  const encrypted = security?.tls !== undefined
  const identified = security?.identifies === true
  if (encrypted && identified) return
  const missing = [
    ...(encrypted ? [] : ['encryption (--tls-cert and --tls-key)']),
    ...(identified ? [] : ['proof of who the clients are (--token-keys, --api-keys or --tls-client-ca)']),
  ]
  throw invalidError(
    `refusing to listen on ${host}, which other machines can reach, without ${missing.join(' and ')}. ` +
      'Listen on 127.0.0.1, or add --insecure-listen if the network makes up for it.',
  )
}

/** A connection before its frames are read. */
interface Arrival {
  readonly acceptedAtMs: number
  /** The TLS socket, once the handshake is done. */
  socket: Socket
  place: Place
}

function endpointOf(socket: Socket): string {
  return `${socket.remoteAddress ?? '?'}:${socket.remotePort ?? 0}`
}

export class Listener {
  readonly host: string
  private readonly options: ListenerOptions
  private readonly log: Log
  private readonly server: Server
  private readonly tlsServer: TlsServer | undefined
  /** Connections within their TLS handshake, by the client's address and port. */
  private readonly handshakes = new Map<string, Arrival>()
  private readonly services: Service[] = []
  private readonly handlers = new Map<number, { readonly handler: AnyHandler; readonly service: Service }>()
  private readonly state: ListenerState
  private started = false

  constructor(options: ListenerOptions) {
    if (options.insecureListen !== true) checkListen(options.host, options.security)
    this.host = options.host
    this.options = options
    this.log = options.log
    const limits = { ...LISTENER_LIMITS, ...options.limits }
    this.state = {
      limits,
      admission: new Admission(limits),
      services: this.services,
      handlers: this.handlers,
      roles: 0,
      nodeId: options.nodeId ?? randomUUID(),
      software: options.software ?? 'palimpsest',
      log: options.log,
      authenticator: options.security?.authenticator,
      wantsCertificates: options.security?.tls?.requireClientCertificate === true,
      stats: new ListenerStats(),
      requestBytes: 0,
      starved: new Set(),
      connections: new Set(),
      wallTimeUs: () => Date.now() * 1000,
    }
    for (const service of options.services ?? []) this.addService(service)
    if (options.metrics !== undefined)
      this.state.stats.register(options.metrics, {
        connections: () => this.state.connections.size,
        requestBytes: () => this.state.requestBytes,
      })
    this.server = createServer({ noDelay: true, highWaterMark: SOCKET_BYTES }, socket => this.accept(socket))
    this.tlsServer = options.security?.tls === undefined ? undefined : this.openTls(options.security.tls)
    // Who is no longer vouched for leaves now; a client that has a new token comes back with it.
    options.security?.authenticator?.onChange(() => {
      for (const connection of this.state.connections) connection.checkCredential()
    })
  }

  private accept(socket: Socket): void {
    const { stats, admission } = this.state
    stats.accepted++
    const arrival: Arrival = { acceptedAtMs: performance.now(), socket, place: undefined as never }
    arrival.place = admission.enter(socket.remoteAddress, arrival.acceptedAtMs, () => {
      stats.refuse('limit')
      const suppressed = admission.mayLog(arrival.place.address, Date.now())
      if (suppressed !== undefined)
        this.log.warn(
          { address: arrival.place.address, suppressed },
          'too many connections that did not say who they are: the oldest was closed',
        )
      arrival.socket.destroy()
    })
    socket.once('close', () => admission.leave(arrival.place))
    if (this.tlsServer === undefined) this.begin(arrival)
    else {
      const key = endpointOf(socket)
      this.handshakes.set(key, arrival)
      socket.once('close', () => this.handshakes.delete(key))
      this.tlsServer.emit('connection', socket)
    }
  }

  private begin(arrival: Arrival): void {
    const { socket, place, acceptedAtMs } = arrival
    this.state.connections.add(new ServerConnection(this.state, socket, place, acceptedAtMs))
  }

  private openTls(tls: NonNullable<ServerSecurity['tls']>): TlsServer {
    // It never listens itself: `accept` gives it the sockets, so that limits come before the first handshake byte.
    const server = createTlsServer({ ...tls.options, handshakeTimeout: this.state.limits.helloMs })
    tls.onChange(material => server.setSecureContext(material))
    server.on('secureConnection', (socket: TLSSocket) => {
      const arrival = this.handshakes.get(endpointOf(socket))
      if (arrival === undefined || arrival.place.gone) {
        socket.destroy()
        return
      }
      this.handshakes.delete(endpointOf(socket))
      arrival.socket = socket
      this.begin(arrival)
    })
    server.on('tlsClientError', (error: NodeJS.ErrnoException, socket: TLSSocket) => {
      const { stats, admission } = this.state
      const peer = endpointOf(socket)
      socket.destroy()
      const arrival = this.handshakes.get(peer)
      // Those that went away, or gave way, by themselves are no failures.
      if (arrival === undefined || arrival.place.gone) return
      stats.refuse('handshake')
      const suppressed = admission.mayLog(arrival.place.address, Date.now())
      if (suppressed !== undefined)
        this.log.warn({ peer, suppressed, reason: error.code ?? error.message }, 'TLS handshake failed')
    })
    return server
  }

  /** Another one with the same security and limits, on any free port of a loopback address: for more parts of this process. */
  sibling(log: Log, nodeId: string): Listener {
    const host = isLoopback(this.host) ? this.host : '127.0.0.1'
    return new Listener({ ...this.options, host, port: 0, services: [], log, nodeId, metrics: undefined })
  }

  /** Before or after `listen`: the process's parts add themselves as they become ready. */
  addService(service: Service): void {
    for (const [type, handler] of Object.entries(service.handlers)) {
      if (this.handlers.has(Number(type))) throw new Error(`two services handle message ${type}`)
      this.handlers.set(Number(type), { handler: handler as AnyHandler, service })
    }
    this.services.push(service)
    ;(this.state as { roles: number }).roles |= service.role
  }

  /** Connections accepted and not yet gone. */
  get connections(): number {
    return this.state.connections.size
  }

  /** The port that was bound. */
  get port(): number {
    const address = this.server.address()
    return typeof address === 'object' && address !== null ? address.port : this.options.port
  }

  /** Where this process reaches itself, also where it listens on all addresses. */
  get localAddress(): { readonly host: string; readonly port: number } {
    const host = this.host === '0.0.0.0' ? '127.0.0.1' : this.host === '::' ? '::1' : this.host
    return { host, port: this.port }
  }

  get address(): string {
    return this.host.includes(':') ? `[${this.host}]:${this.port}` : `${this.host}:${this.port}`
  }

  listen(): Promise<void> {
    const { promise, resolve, reject } = Promise.withResolvers<void>()
    const failed = (error: NodeJS.ErrnoException) => {
      const hint =
        error.code === 'EADDRINUSE' ? ': another process listens there; stop it or choose another port' : ''
      reject(
        retryError(`cannot listen on ${this.options.host}:${this.options.port}: ${error.code}${hint}`, error),
      )
    }
    this.server.once('error', failed)
    this.server.listen({ host: this.options.host, port: this.options.port, backlog: 511 }, () => {
      this.server.off('error', failed)
      this.server.on('error', error => this.log.error({ err: error }, 'listener failed'))
      this.started = true
      resolve()
    })
    return promise
  }

  /** Stops accepting and cuts all connections; clients see kind retry. */
  async close(): Promise<void> {
    const { promise, resolve } = Promise.withResolvers<void>()
    if (this.started) this.server.close(() => resolve())
    else resolve()
    for (const connection of this.state.connections) connection.destroy()
    for (const arrival of this.handshakes.values()) arrival.socket.destroy()
    await promise
  }
}
