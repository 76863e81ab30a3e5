/**
 * The one way into a server: accepts connections and gives their requests to the services' handlers. Access control
 * and TLS belong here, for all services at once; until they come, only loopback addresses are listened on unless
 * the operator insists (`insecureListen`).
 */
import { randomUUID } from 'node:crypto'
import { createServer, isIPv4, type Server } from 'node:net'
import {
  type BULK_WAIT,
  FRAME_BYTES_MAX_LEAST,
  FRAME_BYTES_MAX_MOST,
  type FrameHeader,
} from '../../protocol/frame.ts'
import type { Hello, Message, MessageType, Replies } from '../../protocol/messages.ts'
import { invalidError, retryError } from './errors.ts'
import { ListenerStats } from './listener-stats.ts'
import type { Log } from './log.ts'
import type { MetricsPart } from './metrics.ts'
import {
  type IncomingRequest,
  type ListenerState,
  type RequestContext,
  ServerConnection,
} from './server-connection.ts'

export type { IncomingRequest, ReplyOptions, RequestContext } from './server-connection.ts'

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

export interface ListenerLimits {
  readonly connectionsMax: number
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
  /** From accept to hello. */
  readonly helloMs: number
  /** Without any movement, while a frame or reply is half through. */
  readonly stalledMs: number
  /** Idle time before TCP asks whether the peer is still there. */
  readonly keepAliveMs: number
}

export const LISTENER_LIMITS: ListenerLimits = {
  connectionsMax: 1024,
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
  /** Listen on an address that others can reach although nothing is encrypted and nobody has to prove who he is. */
  readonly insecureListen?: boolean | undefined
  /** Throws to refuse a client. */
  readonly authenticate?: ((hello: Hello) => void) | undefined
  readonly metrics?: MetricsPart | undefined
}

/** 127.0.0.0/8, ::1 and localhost. */
export function isLoopback(host: string): boolean {
  return host === 'localhost' || host === '::1' || (isIPv4(host) && host.startsWith('127.'))
}

export class Listener {
  readonly host: string
  private readonly options: ListenerOptions
  private readonly log: Log
  private readonly server: Server
  private readonly services: Service[] = []
  private readonly handlers = new Map<number, { readonly handler: AnyHandler; readonly service: Service }>()
  private readonly state: ListenerState
  private started = false

  constructor(options: ListenerOptions) {
    if (!isLoopback(options.host) && options.insecureListen !== true)
      throw invalidError(
        `refusing to listen on ${options.host}: connections are neither encrypted nor authenticated yet. ` +
          'Listen on 127.0.0.1, or add --insecure-listen on a network that you trust.',
      )
    this.host = options.host
    this.options = options
    this.log = options.log
    this.state = {
      limits: { ...LISTENER_LIMITS, ...options.limits },
      services: this.services,
      handlers: this.handlers,
      roles: 0,
      nodeId: options.nodeId ?? randomUUID(),
      software: options.software ?? 'palimpsest',
      log: options.log,
      authenticate: options.authenticate ?? (() => {}),
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
    this.server = createServer({ noDelay: true, highWaterMark: 256 * 1024 }, socket => {
      if (this.state.connections.size >= this.state.limits.connectionsMax) {
        this.log.warn(
          { connections: this.state.connections.size },
          'too many connections: one more was closed',
        )
        this.state.stats.refuse('limit')
        socket.destroy()
        return
      }
      this.state.stats.accepted++
      this.state.connections.add(new ServerConnection(this.state, socket))
    })
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
    await promise
  }
}
