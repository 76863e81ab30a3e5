/**
 * Both ends of a simulated connection. The client's has of protocol/connection.ts what safekeepers and their clients use; the
 * server's gives requests to the services of a node, with what a handler uses of server/shared/request-context.ts.
 */
import type { Connection, Reply, RequestOptions } from '../../protocol/connection.ts'
import { crc32c } from '../../protocol/crc32c.ts'
import { PalimpsestError, toPalimpsestError } from '../../protocol/errors.ts'
import { type Frame, FrameFlag, FrameReader, FrameWriter } from '../../protocol/frame.ts'
import { type AnyMessage, type Message, MessageType, type ReplyMessage } from '../../protocol/messages.ts'
import type { AnyHandler, ReplyOptions, RequestContext, Service } from '../../server/shared/listener.ts'
import type { Link, StreamEnd } from './byte-network.ts'
import type { Life } from './sim-disk.ts'

const FRAME_BYTES_MAX = 32 * 1024 * 1024
const SEND_BYTES_MAX = 8 * 1024 * 1024
const STREAM_FRAMES_MAX = 64

interface Pending {
  readonly onReply: (frame: Frame, last: boolean) => void
  readonly onError: (error: PalimpsestError) => void
}

const retry = (why: string) => new PalimpsestError('retry', why)

export class SimConnection implements StreamEnd {
  readonly address: string
  private readonly link: Link
  private readonly life: Life
  private readonly deadlineMs: number
  private readonly reader: FrameReader
  private readonly writer = new FrameWriter()
  private readonly pending = new Map<number, Pending>()
  private readonly over = new AbortController()
  private failure: PalimpsestError | undefined
  private nextId = 1

  constructor(link: Link, life: Life, address: string, deadlineMs: number) {
    this.link = link
    this.life = life
    this.address = address
    this.deadlineMs = deadlineMs
    this.writer.frameBytesMax = FRAME_BYTES_MAX
    this.reader = new FrameReader(
      {
        onFrame: frame => this.onFrame(frame),
        onRefused: (_, error) => this.broken(`a frame was refused: ${error.message}`),
      },
      FRAME_BYTES_MAX,
    )
    link.clientEnd = this
  }

  /** As the production code knows it. */
  get connection(): Connection {
    return this as unknown as Connection
  }

  get closed(): AbortSignal {
    return this.over.signal
  }

  received(bytes: Uint8Array): boolean {
    if (!this.life.alive || this.failure !== undefined) return true
    return this.reader.push(bytes)
  }

  broken(why: string): void {
    this.fail(retry(`connection to ${this.address} lost: ${why}`))
  }

  close(): void {
    this.fail(retry(`connection to ${this.address} closed by this side`))
  }

  private fail(error: PalimpsestError): void {
    if (this.failure !== undefined || !this.life.alive) return
    this.failure = error
    this.link.end('client', 'closed by the client')
    const all = [...this.pending.values()]
    this.pending.clear()
    for (const { onError } of all) onError(error)
    this.over.abort(error)
  }

  private onFrame({ header, message, bulk }: Frame): void {
    const pending = this.pending.get(header.requestId)
    if (pending === undefined) return
    const last = (header.flags & FrameFlag.MORE) === 0
    if (last) this.pending.delete(header.requestId)
    if ((header.flags & FrameFlag.ERROR) !== 0) pending.onError(errorOf(message))
    else pending.onReply({ header, message, bulk }, last)
  }

  private begin(message: AnyMessage, options: RequestOptions, pending: Pending): number {
    if (this.failure !== undefined) throw this.failure
    const id = this.nextId++
    const bytes = Buffer.concat(
      this.writer.encode({ requestId: id, message, bulk: options.bulk, bulkCrc: options.bulkCrc }),
    )
    this.pending.set(id, pending)
    this.link.up.send(bytes)
    const deadlineMs = options.deadlineMs ?? this.deadlineMs
    if (deadlineMs > 0)
      this.life.after(deadlineMs, () => {
        if (this.pending.get(id) === pending) this.broken(`no answer within ${deadlineMs} ms`)
      })
    return id
  }

  async request(message: AnyMessage, options: RequestOptions = {}): Promise<Reply<Message>> {
    const replies = await this.requestAll(message, options)
    return replies[0]!
  }

  requestAll(message: AnyMessage, options: RequestOptions = {}): Promise<Reply<Message>[]> {
    return new Promise((resolve, reject) => {
      const replies: Reply<Message>[] = []
      try {
        this.begin(message, options, {
          onReply: (frame, last) => {
            replies.push(frame)
            if (last) resolve(replies)
          },
          onError: reject,
        })
      } catch (error) {
        reject(error)
      }
    })
  }

  async *stream(message: AnyMessage, options: RequestOptions = {}): AsyncGenerator<Reply<Message>> {
    const queue: Frame[] = []
    let ended = false
    let failure: PalimpsestError | undefined
    let wake = () => {}
    let id = 0
    const pending: Pending = {
      onReply: (frame, last) => {
        // The deadline was for the first one.
        if (this.pending.has(id)) this.pending.set(id, { ...pending })
        queue.push(frame)
        ended = last
        if (queue.length >= STREAM_FRAMES_MAX) this.reader.stop()
        wake()
      },
      onError: error => {
        failure = error
        wake()
      },
    }
    id = this.begin(message, options, pending)
    try {
      for (;;) {
        const frame = queue.shift()
        if (frame !== undefined) {
          if (queue.length < STREAM_FRAMES_MAX / 2) this.resume()
          yield frame
        } else if (failure !== undefined) throw failure
        else if (ended) return
        else await new Promise<void>(resolve => (wake = resolve))
      }
    } finally {
      if (!ended && failure === undefined && this.failure === undefined && this.life.alive) {
        this.pending.delete(id)
        this.link.up.send(
          Buffer.concat(this.writer.encode({ requestId: id, message: { type: MessageType.Cancel } })),
        )
      }
      this.resume()
    }
  }

  private resume(): void {
    if (!this.reader.isStopped || this.failure !== undefined) return
    if (this.reader.resume()) this.link.down.resume()
  }
}

function errorOf(message: Message): PalimpsestError {
  if (message.type === MessageType.Redirect)
    return new PalimpsestError('refresh', message.message, { askAt: message.address })
  if (message.type === MessageType.ErrorReply)
    return new PalimpsestError(message.kind, message.message, { lsn: message.lsn })
  return new PalimpsestError('internal', `an error frame with message ${message.type}`)
}

export interface ServerUser {
  readonly services: readonly Service[]
  readonly life: Life
  /** An answer leaves the node. */
  answered(request: Message, reply: ReplyMessage, context: SimContext): void
}

export class SimServerEnd implements StreamEnd {
  readonly link: Link
  readonly user: ServerUser
  readonly wantsForward: boolean
  readonly requests = new Map<number, SimContext>()
  readonly writer = new FrameWriter()
  private readonly reader: FrameReader

  constructor(link: Link, user: ServerUser, wantsForward: boolean) {
    this.link = link
    this.user = user
    this.wantsForward = wantsForward
    this.writer.frameBytesMax = FRAME_BYTES_MAX
    this.reader = new FrameReader(
      {
        onFrame: frame => this.onFrame(frame),
        onRefused: (header, error) => new SimContext(this, header.requestId, undefined).error(error),
      },
      FRAME_BYTES_MAX,
    )
    link.serverEnd = this
  }

  received(bytes: Uint8Array): boolean {
    return this.user.life.alive ? this.reader.push(bytes) : true
  }

  broken(why: string): void {
    if (!this.user.life.alive) return
    const all = [...this.requests.values()]
    this.requests.clear()
    for (const context of all)
      context.cancel(retry(`connection from ${this.link.client} is gone: ${why}`), true)
  }

  destroy(): void {
    this.link.end('server', 'closed by the server')
    this.broken('closed by this side')
  }

  private onFrame(frame: Frame): void {
    const { header, message, bulk } = frame
    if (message.type === MessageType.Cancel) {
      this.requests.get(header.requestId)?.cancel(retry('cancelled by the client'), false)
      return
    }
    const context = new SimContext(this, header.requestId, message)
    if (message.type === MessageType.WalAppend) {
      const begin = message.beginLsn as number
      context.appended = { begin, end: begin + bulk.length, crc: crc32c(bulk, 0, bulk.length) }
    }
    this.requests.set(header.requestId, context)
    let handler: AnyHandler | undefined
    for (const { handlers } of this.user.services)
      handler ??= (handlers as Record<number, AnyHandler>)[message.type]
    if (handler === undefined) {
      context.error(new PalimpsestError('invalid', `message ${message.type} is not served here`))
      return
    }
    try {
      const ctx = context as unknown as RequestContext
      const result = (handler as (request: unknown, ctx: RequestContext) => Promise<void> | void)(
        { message, bulk, header },
        ctx,
      )
      result?.then(
        () => {
          if (!context.done && this.user.life.alive && this.requests.has(header.requestId))
            context.error(new PalimpsestError('internal', `no answer to message ${message.type}`))
        },
        error => context.error(error),
      )
    } catch (error) {
      context.error(error)
    }
  }
}

export class SimContext {
  readonly connection: SimServerEnd
  readonly requestId: number
  readonly request: Message | undefined
  readonly bulkBytesMax = FRAME_BYTES_MAX - 65536
  done = false
  /** Of an append. */
  appended: { readonly begin: number; readonly end: number; readonly crc: number } | undefined
  private readonly abort = new AbortController()

  constructor(connection: SimServerEnd, requestId: number, request: Message | undefined) {
    this.connection = connection
    this.requestId = requestId
    this.request = request
  }

  get closed(): AbortSignal {
    return this.abort.signal
  }

  get writable(): boolean {
    return this.connection.link.down.waitingBytes < SEND_BYTES_MAX
  }

  get wantsForward(): boolean {
    return this.connection.wantsForward
  }

  reply(message: ReplyMessage, options: ReplyOptions = {}): void {
    const { user } = this.connection
    if (this.done || !user.life.alive) {
      options.sent?.()
      return
    }
    const more = options.more === true
    if (!more) this.finish()
    if (this.request !== undefined) user.answered(this.request, message, this)
    this.send(FrameFlag.REPLY | (more ? FrameFlag.MORE : 0), message, options)
  }

  error(thrown: unknown): void {
    if (this.done || !this.connection.user.life.alive) return
    const error = toPalimpsestError(thrown)
    this.finish()
    const flags = FrameFlag.REPLY | FrameFlag.ERROR
    const { message, kind, lsn, askAt } = error
    if (askAt !== undefined)
      this.send(flags, { type: MessageType.Redirect, address: askAt, message } as AnyMessage)
    else this.send(flags, { type: MessageType.ErrorReply, kind, lsn, message } as AnyMessage)
  }

  private send(flags: number, message: AnyMessage, options: ReplyOptions = {}): void {
    const { link, writer } = this.connection
    const pieces = writer.encode({
      requestId: this.requestId,
      flags,
      message,
      bulk: options.bulk,
      bulkCrc: options.bulkCrc,
    })
    link.down.send(Buffer.concat(pieces), options.sent)
  }

  async drain(): Promise<void> {
    if (!this.writable) await this.connection.link.down.whenBelow(SEND_BYTES_MAX / 2)
  }

  cancel(reason: PalimpsestError, gone: boolean): void {
    if (gone) this.done = true
    this.abort.abort(reason)
  }

  private finish(): void {
    this.done = true
    this.connection.requests.delete(this.requestId)
  }
}
