/**
 * Requests that a client wants passed on to the leader: over one connection to it, in the order in which they came, so that
 * appends stay in theirs. What becomes of a request when that connection breaks is not known; the client hears retry.
 *
 * The connection is this node's: the leader sees a safekeeper and not the one who asked. That one's scopes were judged before the
 * request came here, as for every request (server/shared/authorize.ts), and the leader takes nothing else from safekeepers.
 */
import type { Connection, RequestOptions } from '../../protocol/connection.ts'
import { type Address, parseAddress } from '../../protocol/dial.ts'
import type { Message, Request } from '../../protocol/messages.ts'
import { PalimpsestError, retryError, toPalimpsestError } from '../shared/errors.ts'
import type { IncomingRequest } from '../shared/listener.ts'

type Forwardable = IncomingRequest<Message & Request>

export interface ForwardedReply {
  readonly message: Message
  readonly bulk: Uint8Array | undefined
  readonly more: boolean
}

/** A change of the members waits until a node has caught up, however much there is. */
const SLOW_MS = 24 * 3600_000

export class Forwarder {
  private readonly dial: (address: Address) => Promise<Connection>
  private address = ''
  private connection: Promise<Connection> | undefined
  private readonly slow = new Set<() => void>()

  constructor(dial: (address: Address) => Promise<Connection>) {
    this.dial = dial
  }

  /** Gives every frame of the answer to `reply`. Throws what the leader answers, or kind retry. */
  async forward(
    address: string,
    request: Forwardable,
    reply: (reply: ForwardedReply) => void,
  ): Promise<void> {
    await this.pass(await this.connect(address), request, reply, {})
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

  private connect(address: string): Promise<Connection> {
    if (this.connection === undefined || this.address !== address) {
      void this.connection?.then(
        old => old.close(),
        () => {},
      )
      this.address = address
      const fresh = this.dial(parseAddress(address))
      this.connection = fresh
      const forget = () => {
        if (this.connection === fresh) this.connection = undefined
      }
      fresh.then(connection => connection.closed.addEventListener('abort', forget), forget)
    }
    return this.connection
  }

  close(): void {
    for (const close of this.slow) close()
    void this.connection?.then(
      connection => connection.close(),
      () => {},
    )
    this.connection = undefined
  }
}
