/**
 * Requests that a client wants passed on to the leader: over one connection to it, in the order in which they came, so that
 * appends stay in theirs. What becomes of a request when that connection breaks is not known; the client hears retry.
 */
import type { Connection } from '../../protocol/connection.ts'
import { type Address, parseAddress } from '../../protocol/dial.ts'
import type { Message, Request } from '../../protocol/messages.ts'
import { PalimpsestError, retryError, toPalimpsestError } from '../shared/errors.ts'
import type { IncomingRequest } from '../shared/listener.ts'

export interface ForwardedReply {
  readonly message: Message
  readonly bulk: Uint8Array | undefined
  readonly more: boolean
}

export class Forwarder {
  private readonly dial: (address: Address) => Promise<Connection>
  private address = ''
  private connection: Promise<Connection> | undefined

  constructor(dial: (address: Address) => Promise<Connection>) {
    this.dial = dial
  }

  /** Gives every frame of the answer to `reply`. Throws what the leader answers, or kind retry. */
  async forward(
    address: string,
    request: IncomingRequest<Message & Request>,
    reply: (reply: ForwardedReply) => void,
  ): Promise<void> {
    const connection = await this.connect(address)
    const { message, bulk, header } = request
    try {
      const replies = await connection.requestAll(message, {
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
    void this.connection?.then(
      connection => connection.close(),
      () => {},
    )
    this.connection = undefined
  }
}
