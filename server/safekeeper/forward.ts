/**
 * Requests that a client wants passed on to the leader: over one connection to it, in the order in which they came, so that
 * appends stay in theirs. What becomes of a request when that connection breaks is not known; the client hears retry.
 *
 * A request may take its time: it has no deadline here, since one that passes would end the connection, and with it the requests of
 * everybody. How long a client waits is its own matter. That the leader stands still is known by its silence: while requests
 * wait, it is asked for a sign of life, and the connection is ended if none comes. Requests of clients that have gone stay
 * until they are answered, so there is a bound on how many there may be.
 *
 * The connection is this node's: the leader sees a safekeeper and not the one who asked. That one's scopes were judged before the
 * request came here, as for every request (server/shared/authorize.ts), and the leader takes nothing else from safekeepers.
 */
import type { Connection, RequestOptions } from '../../protocol/connection.ts'
import { type Address, parseAddress } from '../../protocol/dial.ts'
import { type Message, MessageType, type Request } from '../../protocol/messages.ts'
import { PalimpsestError, retryError, toPalimpsestError } from '../shared/errors.ts'
import type { IncomingRequest } from '../shared/listener.ts'
import type { Clock } from '../shared/seams.ts'

type Forwardable = IncomingRequest<Message & Request>

export interface ForwardedReply {
  readonly message: Message
  readonly bulk: Uint8Array | undefined
  readonly more: boolean
}

/** A change of the members waits until a node has caught up, however much there is. */
const SLOW_MS = 24 * 3600_000
/** How often a connection with requests in flight is looked at. */
const LOOK_MS = 1000
/** A leader from which nothing has come for so long is asked for a sign of life, */
const QUIET_MS = 2000
/** and left after so long. */
const SILENT_MS = 6000
/** Requests that wait for the leader, and their bulks. */
const WAITING_MAX = 4096
const WAITING_BYTES_MAX = 256 * 1024 * 1024

/** The connection that all share. */
interface Line {
  readonly address: string
  readonly connection: Promise<Connection>
  /** Requests in flight. */
  waiting: number
  /** When anything was last heard on it, or the first request was sent since when all were answered. */
  heardMs: number
  isWatched: boolean
  /** Why it is ended. */
  fault: PalimpsestError | undefined
}

export class Forwarder {
  private readonly dial: (address: Address) => Promise<Connection>
  private readonly clock: Clock
  private line: Line | undefined
  private readonly slow = new Set<() => void>()
  /** On this line and on earlier ones. */
  private waiting = 0
  private waitingBytes = 0

  constructor(dial: (address: Address) => Promise<Connection>, clock: Clock) {
    this.dial = dial
    this.clock = clock
  }

  /** Gives every frame of the answer to `reply`. Throws what the leader answers, or kind retry. */
  async forward(
    address: string,
    request: Forwardable,
    reply: (reply: ForwardedReply) => void,
  ): Promise<void> {
    const bytes = request.bulk.length
    if (this.waiting >= WAITING_MAX || this.waitingBytes + bytes > WAITING_BYTES_MAX)
      throw retryError(
        `${this.waiting} requests (${this.waitingBytes} bytes) wait already for the leader at ${address}; ask again`,
      )
    const line = this.connect(address)
    this.waiting++
    this.waitingBytes += bytes
    try {
      const connection = await line.connection
      if (line.waiting++ === 0) line.heardMs = this.clock.monotonicMs()
      if (!line.isWatched) void this.watch(line, connection)
      try {
        await this.pass(connection, request, reply, { deadlineMs: 0 })
      } catch (error) {
        throw line.fault ?? error
      } finally {
        line.waiting--
        line.heardMs = this.clock.monotonicMs()
      }
    } finally {
      this.waiting--
      this.waitingBytes -= bytes
    }
  }

  /** Ends the connection if the leader stands still; until nothing waits any more. */
  private async watch(line: Line, connection: Connection): Promise<void> {
    const { clock } = this
    let isAsked = false
    line.isWatched = true
    while (line.waiting > 0 && !connection.closed.aborted) {
      await clock.sleep(LOOK_MS)
      const silentMs = clock.monotonicMs() - line.heardMs
      if (line.waiting === 0) break
      if (silentMs >= SILENT_MS) {
        line.fault = retryError(
          `the leader at ${line.address} has not said anything for ${Math.round(silentMs / 1000)} s; what became of the request is not known: ask again`,
        )
        connection.close()
      } else if (silentMs >= QUIET_MS && !isAsked) {
        isAsked = true
        const heard = () => {
          isAsked = false
          if (!connection.closed.aborted) line.heardMs = clock.monotonicMs()
        }
        connection.request({ type: MessageType.Ping }, { deadlineMs: 0 }).then(heard, heard)
      }
    }
    line.isWatched = false
  }

  /** The same for one that may take hours, over a connection of its own; given up when nobody waits any more. */
  async forwardSlow(
    address: string,
    request: Forwardable,
    reply: (reply: ForwardedReply) => void,
    signal: AbortSignal,
  ): Promise<void> {
    const connection = await this.dial(parseAddress(address))
    const close = () => connection.close()
    this.slow.add(close)
    try {
      await this.pass(connection, request, reply, { deadlineMs: SLOW_MS, signal })
    } finally {
      this.slow.delete(close)
      close()
    }
  }

  private async pass(
    connection: Connection,
    request: Forwardable,
    reply: (reply: ForwardedReply) => void,
    options: RequestOptions,
  ): Promise<void> {
    const { message, bulk, header } = request
    try {
      const replies = await connection.requestAll(message, {
        ...options,
        ...(bulk.length > 0 && { bulk, bulkCrc: header.bulkCrc }),
      })
      replies.forEach(({ message, bulk }, i) => {
        reply({
          message: message as Message,
          bulk: bulk.length > 0 ? bulk : undefined,
          more: i + 1 < replies.length,
        })
      })
    } catch (error) {
      const known = toPalimpsestError(error)
      // It leads no longer: whoever does will be known here soon.
      if (known.askAt !== undefined)
        throw retryError(`the leader changed while the request was passed on: ${known.message}`)
      throw new PalimpsestError(known.kind, known.message, { lsn: known.lsn })
    }
  }

  private connect(address: string): Line {
    if (this.line?.address === address) return this.line
    this.end()
    const connection = this.dial(parseAddress(address))
    const line: Line = { address, connection, waiting: 0, heardMs: 0, isWatched: false, fault: undefined }
    this.line = line
    const forget = () => {
      if (this.line === line) this.line = undefined
    }
    connection.then(({ closed }) => {
      if (closed.aborted) forget()
      else closed.addEventListener('abort', forget)
    }, forget)
    return line
  }

  private end(): void {
    this.line?.connection.then(
      connection => connection.close(),
      () => {},
    )
    this.line = undefined
  }

  close(): void {
    for (const close of this.slow) close()
    this.end()
  }
}
