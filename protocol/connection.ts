/**
 * The client's end of a connection: hello, request ids, pipelining, streams, deadlines.
 *
 * - Answers come in any order; within one stream in order.
 * - A deadline that passes closes the connection: whoever waits no longer must not find the late answer's bytes in the
 *   way of the next one. All requests of the connection then fail with kind retry.
 * - Requests in flight are bounded in number and bytes; `request` waits for room.
 * - A stream whose reader is slow stops the socket, and with it all of the connection: a long stream wants a connection
 *   of its own.
 */
import type { Socket } from 'node:net'
import { BulkPool } from './bulk-pool.ts'
import { certificateEndMs, openClientSocket } from './client-socket.ts'
import { type ErrorKind, PalimpsestError, toPalimpsestError } from './errors.ts'
import {
  type BULK_WAIT,
  FRAME_BYTES_MAX_DEFAULT,
  FRAME_BYTES_MAX_LEAST,
  FRAME_BYTES_MAX_MOST,
  type Frame,
  FrameFlag,
  type FrameHeader,
  FrameReader,
  HELLO_FRAME_BYTES_MAX,
} from './frame.ts'
import {
  type AnyMessage,
  type ErrorReply,
  Feature,
  type HelloOk,
  type Message,
  MessageType,
  messageName,
  PROTOCOL_VERSION,
  type Redirect,
  type ReplyMessage,
  type ReplyOf,
  type Request,
} from './messages.ts'
import type { ConnectionSecurity } from './security.ts'
import { SendQueue } from './send-queue.ts'

export interface ConnectOptions {
  readonly host: string
  readonly port: number
  /** TLS and the token. Without it: plain TCP, no token. */
  readonly security?: ConnectionSecurity | undefined
  /** The default of every request, and for connecting and the hello together, which take 10 s at most. 30 s unless told. */
  readonly deadlineMs?: number | undefined
  readonly signal?: AbortSignal | undefined
  readonly software?: string | undefined
  /**
   * What the server does with a request that is another's business: pass it on (unless told), or refuse it with an error whose
   * `askAt` says whose.
   */
  readonly elsewhere?: 'forward' | 'redirect' | undefined
  /** Largest frame that we take, in bytes. */
  readonly frameBytesMax?: number | undefined
  /** Requests in flight, and bytes of their bulks, before `request` waits. */
  readonly requestsMax?: number | undefined
  readonly requestBytesMax?: number | undefined
}

export interface RequestOptions {
  readonly bulk?: Uint8Array | readonly Uint8Array[] | undefined
  /** CRC-32C of the bulk if known. */
  readonly bulkCrc?: number | undefined
  readonly compress?: boolean | undefined
  /** Until the answer is complete; for a stream, until its first frame. 0: none. */
  readonly deadlineMs?: number | undefined
  readonly signal?: AbortSignal | undefined
  /** Memory for the answers' bulks: see FrameSink.bulkTarget. After BULK_WAIT call `resumeReading()`. */
  readonly bulkTarget?:
    | ((header: FrameHeader, message: Message) => Uint8Array | typeof BULK_WAIT | undefined)
    | undefined
  /** The caller checks the answers' bulks itself (`header.bulkCrc`, or the sections'). */
  readonly leaveBulkCheck?: boolean | undefined
  /** For a stream: frames and bytes received and not yet consumed, before the socket is stopped. */
  readonly queueFramesMax?: number | undefined
  readonly queueBytesMax?: number | undefined
}

export interface Reply<M> {
  readonly message: M
  /** Belongs to the receiver. Empty if the message has none. */
  readonly bulk: Uint8Array
  readonly header: FrameHeader
}

const DEADLINE_MS_DEFAULT = 30_000
/** As long as a server waits for it. */
const HELLO_MS_MAX = 10_000
const REQUESTS_MAX_DEFAULT = 1024
const REQUEST_BYTES_MAX_DEFAULT = 64 * 1024 * 1024
const QUEUE_FRAMES_MAX_DEFAULT = 64
const QUEUE_BYTES_MAX_DEFAULT = 8 * 1024 * 1024
/** Kept of what was recycled. */
const RECYCLED_BYTES_MAX = 16 * 1024 * 1024

/** One request that has not got its last frame yet. */
interface Pending {
  readonly requestId: number
  readonly type: number
  readonly bytes: number
  readonly options: RequestOptions
  /** Date in performance.now() milliseconds; Infinity: none. */
  deadlineAt: number
  readonly deadlineMs: number
  /** Nobody waits any more: what still comes is thrown away. */
  abandoned: boolean
  onReply(frame: Frame, last: boolean): void
  onError(error: PalimpsestError): void
}

export class Connection {
  /** `HOST:PORT` as dialled. */
  readonly address: string
  private readonly socket: Socket
  /** Until then nothing of ours must leave, the token least of all. */
  private readonly secured: Promise<void> | undefined
  private readonly reader: FrameReader
  private readonly queue = new SendQueue()
  private readonly bulks = new BulkPool(RECYCLED_BYTES_MAX)
  private readonly pending = new Map<number, Pending>()
  /** Callers that wait for room in flight, first come first served. */
  private readonly waiters: (() => void)[] = []
  private readonly deadlineMs: number
  private readonly requestsMax: number
  private readonly requestBytesMax: number
  private readonly closed_ = new AbortController()
  private hello_: HelloOk | undefined
  private onHello: ((result: HelloOk | PalimpsestError) => void) | undefined
  private nextId = 1
  private bytesInFlight = 0
  private failure: PalimpsestError | undefined
  private flushes = false
  private timer: NodeJS.Timeout | undefined
  private timerAt = Number.POSITIVE_INFINITY
  /** Who wants the socket stopped: streams with full queues. */
  private readonly holds = new Set<object>()

  /** Connects and says hello. Throws PalimpsestError; kind retry if the server cannot be reached now. */
  static async connect(options: ConnectOptions): Promise<Connection> {
    options.signal?.throwIfAborted()
    const connection = new Connection(options)
    const abort = () =>
      connection.destroy(toPalimpsestError(options.signal!.reason, 'connecting was aborted'))
    options.signal?.addEventListener('abort', abort, { once: true })
    try {
      await connection.handshake(options)
      return connection
    } catch (error) {
      connection.destroy(toPalimpsestError(error))
      throw error
    } finally {
      options.signal?.removeEventListener('abort', abort)
    }
  }

  private constructor(options: ConnectOptions) {
    this.address = options.host.includes(':')
      ? `[${options.host}]:${options.port}`
      : `${options.host}:${options.port}`
    this.deadlineMs = options.deadlineMs ?? DEADLINE_MS_DEFAULT
    this.requestsMax = options.requestsMax ?? REQUESTS_MAX_DEFAULT
    this.requestBytesMax = options.requestBytesMax ?? REQUEST_BYTES_MAX_DEFAULT
    this.reader = new FrameReader(
      {
        onFrame: frame => this.onFrame(frame),
        onRefused: (header, error) => this.onRefused(header, error),
        bulkTarget: (header, message) => {
          const pending = this.pending.get(header.requestId)
          if (pending === undefined || pending.abandoned) return undefined
          return pending.options.bulkTarget?.(header, message) ?? this.bulks.take(header.bulkBytes)
        },
        leaveBulkCheck: header => this.pending.get(header.requestId)?.options.leaveBulkCheck ?? false,
      },
      HELLO_FRAME_BYTES_MAX,
    )
    this.queue.frameBytesMax = HELLO_FRAME_BYTES_MAX
    const { socket, secured } = openClientSocket(options, options.security, this.reader, {
      garbled: error => this.destroy(this.garbled(error)),
      lost: (kind, why, cause) => this.destroy(this.lost(why, cause, kind)),
      heard: () => this.hello_ !== undefined,
    })
    this.socket = socket
    this.secured = secured
  }

  private lost(why: string, cause?: unknown, kind: ErrorKind = 'retry'): PalimpsestError {
    const what =
      this.hello_ === undefined ? `cannot connect to ${this.address}` : `connection to ${this.address} lost`
    return new PalimpsestError(kind, `${what}: ${why}`, { cause })
  }

  /** The stream's bytes are no frames any more. */
  private garbled(error: unknown): PalimpsestError {
    const { kind, message } = toPalimpsestError(error)
    const what =
      this.hello_ === undefined
        ? `does not answer as a Palimpsest server does; is another one on that port, such as MariaDB or --admin-listen? (${message})`
        : `sent what is no frame: ${message}`
    return new PalimpsestError(kind, `${this.address} ${what}`, { cause: error })
  }

  private handshake(options: ConnectOptions): Promise<void> {
    const token = options.security?.token?.() ?? ''
    const { promise, resolve, reject } = Promise.withResolvers<void>()
    const frameBytesMax = clampFrameBytes(options.frameBytesMax ?? FRAME_BYTES_MAX_DEFAULT)
    const helloMs = Math.min(this.deadlineMs, HELLO_MS_MAX)
    const timer = setTimeout(
      () => this.destroy(this.lost(`no hello within ${helloMs} ms: it hangs, or is no Palimpsest server`)),
      helloMs,
    )
    this.onHello = result => {
      clearTimeout(timer)
      this.onHello = undefined
      if (result instanceof PalimpsestError) {
        reject(result)
        return
      }
      this.hello_ = result
      this.reader.frameBytesMax = frameBytesMax
      this.queue.frameBytesMax = clampFrameBytes(result.frameBytesMax)
      resolve()
    }
    const sayHello = () => {
      if (this.failure !== undefined) return
      this.send(0, 0, {
        type: MessageType.Hello,
        versionMin: PROTOCOL_VERSION,
        versionMax: PROTOCOL_VERSION,
        features: Feature.ZSTD | (options.elsewhere === 'redirect' ? Feature.REDIRECT : Feature.FORWARD),
        frameBytesMax,
        token,
        software: options.software ?? 'palimpsest',
      } as AnyMessage)
    }
    if (this.secured === undefined) sayHello()
    else void this.secured.then(sayHello)
    return promise
  }

  /** The server's hello. */
  get hello(): HelloOk {
    return this.hello_!
  }

  /** Bit mask of the server's roles. */
  get roles(): number {
    return this.hello_!.roles
  }

  /** Until when the server's certificate is valid, milliseconds since 1970; undefined over plain TCP. Ask while connected. */
  get certificateExpiresAtMs(): number | undefined {
    return certificateEndMs(this.socket)
  }

  /** Aborted, with the error as its reason, when the connection is gone. */
  get closed(): AbortSignal {
    return this.closed_.signal
  }

  /** Largest bulk that certainly fits into a request's frame (64 KiB are left for the head). */
  get bulkBytesMax(): number {
    return this.queue.frameBytesMax - 65536
  }

  /** Sends a request that has one answer. */
  request<R extends Request>(message: R, options: RequestOptions = {}): Promise<Reply<ReplyOf<R>>> {
    return this.start(message, options, (resolve, reject, pending) => ({
      onReply: (frame, last) => {
        if (!last)
          this.giveUp(
            pending(),
            new PalimpsestError('internal', `${messageName(message.type)} was answered by a stream`),
          )
        else resolve(frame as Reply<ReplyOf<R>>)
      },
      onError: reject,
    }))
  }

  /** Sends a request that has one or more answers, and gives them all. */
  requestAll<R extends Request>(message: R, options: RequestOptions = {}): Promise<Reply<ReplyOf<R>>[]> {
    const replies: Reply<ReplyOf<R>>[] = []
    return this.start(message, options, (resolve, reject) => ({
      onReply: (frame, last) => {
        replies.push(frame as Reply<ReplyOf<R>>)
        if (last) resolve(replies)
      },
      onError: reject,
    }))
  }

  private start<T>(
    message: AnyMessage,
    options: RequestOptions,
    make: (
      resolve: (value: T) => void,
      reject: (error: PalimpsestError) => void,
      pending: () => Pending,
    ) => Pick<Pending, 'onReply' | 'onError'>,
  ): Promise<T> {
    return new Promise((resolve, reject) => {
      let pending: Pending | undefined
      const handlers = make(resolve, reject, () => pending!)
      const begin = () => {
        try {
          pending = this.begin(message, options, handlers)
        } catch (error) {
          reject(error)
        }
      }
      if (this.hasRoom(options)) begin()
      else this.waiters.push(begin)
    })
  }

  /**
   * Sends a request whose answer is a stream. Leaving the loop early tells the server to stop. The socket stops while
   * more frames or bytes than the options allow wait for the consumer.
   */
  async *stream<R extends Request>(
    message: R,
    options: RequestOptions = {},
  ): AsyncGenerator<Reply<ReplyOf<R>>, void, void> {
    const framesMax = options.queueFramesMax ?? QUEUE_FRAMES_MAX_DEFAULT
    const bytesMax = options.queueBytesMax ?? QUEUE_BYTES_MAX_DEFAULT
    const queue: Frame[] = []
    let queueBytes = 0
    let ended = false
    let failure: PalimpsestError | undefined
    let wake: (() => void) | undefined
    const signalWake = () => {
      wake?.()
      wake = undefined
    }
    if (!this.hasRoom(options)) await new Promise<void>(resolve => this.waiters.push(resolve))
    const pending = this.begin(message, options, {
      onReply: (frame, last) => {
        pending.deadlineAt = Number.POSITIVE_INFINITY
        queue.push(frame)
        queueBytes += frame.bulk.length
        ended = last
        if (!last && (queue.length >= framesMax || queueBytes >= bytesMax)) this.hold(queue)
        signalWake()
      },
      onError: error => {
        failure = error
        ended = true
        signalWake()
      },
    })
    try {
      for (;;) {
        const frame = queue.shift()
        if (frame !== undefined) {
          queueBytes -= frame.bulk.length
          if (queue.length <= framesMax / 2 && queueBytes <= bytesMax / 2) this.release(queue)
          yield frame as Reply<ReplyOf<R>>
        } else if (failure !== undefined) throw failure
        else if (ended) return
        else
          await new Promise<void>(resolve => {
            wake = resolve
          })
      }
    } finally {
      if (!ended) this.giveUp(pending, undefined)
      this.release(queue)
    }
  }

  private hasRoom(options: RequestOptions): boolean {
    if (this.failure !== undefined || this.pending.size === 0) return true
    return (
      this.pending.size < this.requestsMax && this.bytesInFlight + bulkBytes(options) <= this.requestBytesMax
    )
  }

  private begin(
    message: AnyMessage,
    options: RequestOptions,
    handlers: Pick<Pending, 'onReply' | 'onError'>,
  ): Pending {
    if (this.failure !== undefined) throw this.failure
    options.signal?.throwIfAborted()
    const deadlineMs = options.deadlineMs ?? this.deadlineMs
    const pending: Pending = {
      requestId: this.nextId++,
      type: message.type,
      bytes: bulkBytes(options),
      options,
      deadlineMs,
      deadlineAt: deadlineMs > 0 ? performance.now() + deadlineMs : Number.POSITIVE_INFINITY,
      abandoned: false,
      onReply: handlers.onReply,
      onError: handlers.onError,
    }
    this.send(pending.requestId, 0, message, options)
    this.pending.set(pending.requestId, pending)
    this.bytesInFlight += pending.bytes
    this.armTimer(pending.deadlineAt)
    if (options.signal !== undefined) {
      const signal = options.signal
      const abort = () => this.giveUp(pending, toPalimpsestError(signal.reason, messageName(message.type)))
      signal.addEventListener('abort', abort, { once: true })
      const { onReply, onError } = pending
      pending.onReply = (frame, last) => {
        if (last) signal.removeEventListener('abort', abort)
        onReply(frame, last)
      }
      pending.onError = error => {
        signal.removeEventListener('abort', abort)
        onError(error)
      }
    }
    return pending
  }

  /** Tells the server to end a request that nobody waits for any more. Its entry stays until the last frame came. */
  private giveUp(pending: Pending, error: PalimpsestError | undefined): void {
    if (pending.abandoned || this.failure !== undefined || !this.pending.has(pending.requestId)) return
    pending.abandoned = true
    pending.deadlineAt = performance.now() + this.deadlineMs
    this.armTimer(pending.deadlineAt)
    this.send(pending.requestId, 0, { type: MessageType.Cancel })
    this.resumeReading()
    if (error !== undefined) pending.onError(error)
  }

  private send(requestId: number, flags: number, message: AnyMessage, options: RequestOptions = {}): void {
    this.queue.push({
      requestId,
      flags,
      message,
      bulk: options.bulk,
      bulkCrc: options.bulkCrc,
      compress: options.compress === true && ((this.hello_?.features ?? 0) & Feature.ZSTD) !== 0,
    })
    if (this.flushes) return
    // All that is sent in this turn leaves in one system call.
    this.flushes = true
    process.nextTick(() => {
      this.flushes = false
      this.queue.flush(this.socket)
    })
  }

  private onFrame(frame: Frame): void {
    const { header, message } = frame
    if (this.hello_ === undefined) {
      this.onHelloFrame(message)
      return
    }
    const pending = this.pending.get(header.requestId)
    if ((header.flags & FrameFlag.REPLY) === 0 || pending === undefined) {
      if (message.type === MessageType.ErrorReply) this.destroy(this.errorOf(message))
      else
        this.destroy(
          this.lost(`${messageName(header.type)} answers no request of ours (id ${header.requestId})`),
        )
      return
    }
    const last = (header.flags & FrameFlag.MORE) === 0
    if (last) this.settle(pending)
    if (pending.abandoned) return
    if ((header.flags & FrameFlag.ERROR) !== 0) {
      if (!isError(message) || !last) this.destroy(this.lost('an error frame without an error'))
      else pending.onError(this.errorOf(message))
    } else pending.onReply(frame, last)
  }

  private onHelloFrame(message: Message): void {
    if (message.type === MessageType.HelloOk && message.version === PROTOCOL_VERSION) this.onHello?.(message)
    else if (message.type === MessageType.ErrorReply) this.destroy(this.errorOf(message))
    else
      this.destroy(
        this.lost(`it answers the hello with ${messageName(message.type)}: not a server that we know`),
      )
  }

  /** An answer that is whole but not to be understood, or whose bulk is damaged: fails its request only. */
  private onRefused(header: FrameHeader, error: PalimpsestError): void {
    error.address = this.address
    const pending = this.pending.get(header.requestId)
    if (pending === undefined) {
      this.destroy(error)
      return
    }
    if ((header.flags & FrameFlag.MORE) === 0) {
      this.settle(pending)
      if (!pending.abandoned) pending.onError(error)
    } else this.giveUp(pending, error)
  }

  private errorOf(message: ErrorReply | Redirect): PalimpsestError {
    if (message.type === MessageType.Redirect) {
      const error = new PalimpsestError('refresh', message.message, { askAt: message.address })
      error.address = this.address
      return error
    }
    const error = new PalimpsestError(message.kind, message.message, { lsn: message.lsn })
    error.address = this.address
    return error
  }

  private settle(pending: Pending): void {
    this.pending.delete(pending.requestId)
    this.bytesInFlight -= pending.bytes
    // Each waiter looks for itself whether there is room now; a stream's waiter queues up again if not.
    if (
      this.waiters.length > 0 &&
      this.pending.size < this.requestsMax &&
      this.bytesInFlight < this.requestBytesMax
    )
      this.waiters.shift()!()
  }

  private hold(who: object): void {
    this.holds.add(who)
    this.reader.stop()
  }

  private release(who: object): void {
    if (this.holds.delete(who) && this.holds.size === 0) this.resumeReading()
  }

  /**
   * Gives a reply's bulk back, for later replies to arrive in: one who reads many pages and is done with each is a third
   * faster so. Nothing may look at it afterwards. A matter of choice, and ignored for memory that is not ours.
   */
  recycle(bulk: Uint8Array): void {
    this.bulks.give(bulk)
  }

  /** Asks again for the memory that `bulkTarget` refused with BULK_WAIT. */
  resumeReading(): void {
    if (this.failure !== undefined || this.holds.size > 0 || !this.reader.isStopped) return
    try {
      if (this.reader.resume()) this.socket.resume()
    } catch (error) {
      this.destroy(this.garbled(error))
    }
  }

  private armTimer(at: number): void {
    if (at >= this.timerAt) return
    clearTimeout(this.timer)
    this.timerAt = at
    this.timer = setTimeout(() => this.checkDeadlines(), Math.max(1, Math.ceil(at - performance.now())))
  }

  private checkDeadlines(): void {
    this.timerAt = Number.POSITIVE_INFINITY
    const now = performance.now()
    let next = Number.POSITIVE_INFINITY
    for (const pending of this.pending.values()) {
      if (pending.deadlineAt <= now) {
        this.destroy(
          this.lost(`${messageName(pending.type)} was not answered within ${pending.deadlineMs} ms`),
        )
        return
      }
      if (pending.deadlineAt < next) next = pending.deadlineAt
    }
    this.armTimer(next)
  }

  /** Ends the connection; requests in flight fail with kind retry. What was already sent still leaves, unless a bulk is just coming in. */
  close(): void {
    if (this.failure !== undefined) return
    this.queue.flush(this.socket)
    this.fail(this.lost('closed by this side'))
    // Memory that was given for a bulk is its owner's again, and may be used for something else at once.
    if (this.reader.isFilling) this.socket.destroy()
    else this.socket.end(() => this.socket.destroy())
  }

  private destroy(error: PalimpsestError): void {
    if (this.failure !== undefined) return
    this.fail(error)
    this.socket.destroy()
  }

  private fail(error: PalimpsestError): void {
    error.address ??= this.address
    this.failure = error
    clearTimeout(this.timer)
    this.onHello?.(error)
    for (const pending of this.pending.values()) if (!pending.abandoned) pending.onError(error)
    this.pending.clear()
    for (const waiter of this.waiters.splice(0)) waiter()
    this.closed_.abort(error)
  }
}

function isError(message: Message): message is ErrorReply | Redirect {
  return message.type === MessageType.ErrorReply || message.type === MessageType.Redirect
}

function bulkBytes(options: RequestOptions): number {
  const bulk = options.bulk
  if (bulk === undefined) return 0
  if (bulk instanceof Uint8Array) return bulk.length
  let bytes = 0
  for (const part of bulk) bytes += part.length
  return bytes
}

function clampFrameBytes(bytes: number): number {
  return Math.min(Math.max(bytes, FRAME_BYTES_MAX_LEAST), FRAME_BYTES_MAX_MOST)
}

export type AnyReply = Reply<ReplyMessage>
