/** One request, as its handler sees it: where answers go, and whether anybody still waits for them. */
import { FrameFlag, type FrameHeader } from '../../protocol/frame.ts'
import type { TimelineId } from '../../protocol/ids.ts'
import { type Message, messageName, type ReplyMessage } from '../../protocol/messages.ts'
import type { AnswerFilter } from './authorize.ts'
import { type PalimpsestError, toPalimpsestError } from './errors.ts'
import type { ServerConnection } from './server-connection.ts'

export interface IncomingRequest<M> {
  readonly message: M
  /** Belongs to the handler. Empty if there is none. */
  readonly bulk: Uint8Array
  readonly header: FrameHeader
}

export interface ReplyOptions {
  /** Must not change until it was sent: `sent` tells. */
  readonly bulk?: Uint8Array | readonly Uint8Array[] | undefined
  /** CRC-32C of the bulk, from whoever made the bytes; else it is computed here. */
  readonly bulkCrc?: number | undefined
  /** More frames of this answer follow. */
  readonly more?: boolean | undefined
  readonly compress?: boolean | undefined
  /** Leaves when the callback that runs has ended, and does not wait for what the rest of this turn answers: one more system call. */
  readonly soon?: boolean | undefined
  /** Called once when the bulk's memory is no longer needed: the kernel has it, or the connection is gone. */
  readonly sent?: (() => void) | undefined
}

/** Bytes a stream may send before it lets others have their turn. */
const TURN_BYTES = 2 * 1024 * 1024

export class RequestContext {
  readonly connection: ServerConnection
  readonly requestId: number
  readonly type: number
  /** Counted against the limits until the last reply. */
  readonly bytes: number
  /** That the request is about, if it names one: for logs. */
  readonly timeline: TimelineId | undefined
  /** For who may not see every answer. */
  filter: AnswerFilter | undefined
  private done_ = false
  private abort: AbortController | undefined
  private abortReason: PalimpsestError | undefined
  private turnBytes = 0

  constructor(connection: ServerConnection, requestId: number, message: Message, bytes: number) {
    this.connection = connection
    this.requestId = requestId
    this.type = message.type
    this.bytes = bytes
    this.timeline = 'timeline' in message ? (message.timeline as TimelineId | undefined) : undefined
  }

  /** True once the last reply was given or the connection is gone: nothing more can be said. */
  get done(): boolean {
    return this.done_
  }

  /** Aborted when the connection is gone or the client cancelled; long-running handlers listen to it. */
  get closed(): AbortSignal {
    if (this.abort === undefined) {
      this.abort = new AbortController()
      if (this.abortReason !== undefined) this.abort.abort(this.abortReason)
    }
    return this.abort.signal
  }

  /** Largest bulk that certainly fits in one reply to this peer, with 64 KiB of head beside it. */
  get bulkBytesMax(): number {
    return this.connection.bulkBytesMax
  }

  /** False when so much waits to be sent that a handler with more to say should `await drain()` first. */
  get writable(): boolean {
    return this.connection.writable
  }

  /** What is another server's business: whether this client wants it passed on, rather than be told whose. */
  get wantsForward(): boolean {
    return this.connection.wantsForward
  }

  /** Sends a reply; ignored (but for `sent`) when the connection is gone or the last reply was given. */
  reply(message: ReplyMessage, options: ReplyOptions = {}): void {
    if (this.done_) {
      options.sent?.()
      return
    }
    if (this.filter !== undefined)
      try {
        message = this.filter.answer(message)
      } catch (error) {
        options.sent?.()
        this.filter = undefined
        this.error(error)
        return
      }
    const more = options.more === true
    if (!more) this.finish()
    const flags = FrameFlag.REPLY | (more ? FrameFlag.MORE : 0)
    try {
      this.turnBytes += this.connection.send(this.requestId, flags, message, options)
    } catch (error) {
      // Too large for the peer, or not encodable: the peer must hear something.
      options.sent?.()
      if (more) this.finish()
      const known = toPalimpsestError(error, `answer to ${messageName(this.type)}`)
      this.connection.sendError(this.requestId, known)
      this.connection.settled(this, known.kind)
    }
    if (!more) this.connection.settled(this, 'ok')
  }

  /** Ends the request with an error. */
  error(thrown: unknown): void {
    if (this.done_) return
    const error = toPalimpsestError(thrown)
    const { log } = this.connection
    const fields = { request: messageName(this.type), timeline: this.timeline, lsn: error.lsn }
    if (error.kind === 'internal') log.error({ err: thrown, kind: error.kind, ...fields }, 'request failed')
    else log.debug({ kind: error.kind, reason: error.message, ...fields }, 'request refused')
    this.finish()
    this.connection.sendError(this.requestId, this.filter?.error(error) ?? error)
    this.connection.settled(this, error.kind)
  }

  /**
   * Resolves when there is room for more, and lets other connections have their turn now and then. A handler that
   * sends a stream awaits it before each frame. Check `done` after it.
   */
  async drain(): Promise<void> {
    if (!this.connection.writable) await this.connection.whenWritable()
    if (this.turnBytes >= TURN_BYTES) {
      this.turnBytes = 0
      await new Promise(resolve => setImmediate(resolve))
    }
  }

  /** For the connection: the client cancelled, or is gone. */
  cancel(reason: PalimpsestError, gone: boolean): void {
    this.abortReason = reason
    if (gone) this.done_ = true
    this.abort?.abort(reason)
  }

  private finish(): void {
    this.done_ = true
  }
}
