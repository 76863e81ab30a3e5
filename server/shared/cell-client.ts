/** Requests to the leader of a cell of safekeepers, wherever it is at present. */
import type { Connection, Reply, RequestOptions } from '../../protocol/connection.ts'
import { type Address, type DialOptions, dial, formatAddress, parseAddress } from '../../protocol/dial.ts'
import { type ReplyOf, type Request, Role } from '../../protocol/messages.ts'
import { PalimpsestError, toPalimpsestError } from './errors.ts'

const REDIRECTS_MAX = 8
/** A node that has not said hello by then is passed over: it may be stopped, or behind a network that swallows. */
const DIAL_MS = 2000
const REQUEST_MS = 30_000

/**
 * Dials safekeepers, each time another one of those it knows: the leader that it was told of, then those that were given, one
 * after the other.
 */
export class LeaderDialer {
  readonly addresses: readonly Address[]
  private readonly options: DialOptions
  private hint: Address | undefined
  private next = 0

  constructor(addresses: readonly Address[], options: DialOptions = {}) {
    this.addresses = addresses
    this.options = options
  }

  /** Somebody's answer: it may say who leads. Whether it did. */
  learn(error: PalimpsestError): boolean {
    if (error.askAt === undefined) return false
    const before = this.hint
    try {
      this.hint = parseAddress(error.askAt)
    } catch {
      return false
    }
    return before === undefined || formatAddress(before) !== formatAddress(this.hint)
  }

  /** One connection; throws kind retry if that one cannot be reached now. */
  async dial(): Promise<Connection> {
    const { hint } = this
    const address = hint ?? this.addresses[this.next++ % this.addresses.length]!
    // Asked once; if it does not answer, or leads no more, the others say who does.
    this.hint = undefined
    return dial([address], Role.SAFEKEEPER, { deadlineMs: DIAL_MS, ...this.options, elsewhere: 'redirect' })
  }
}

/** Sends one request to the leader; follows where it is told to go. */
export async function askLeader<R extends Request>(
  addresses: readonly Address[],
  message: R,
  options: { readonly dial?: DialOptions; readonly request?: RequestOptions } = {},
): Promise<Reply<ReplyOf<R>>> {
  const dialer = new LeaderDialer(addresses, options.dial)
  let failure: PalimpsestError | undefined
  let clueless = 0
  for (let i = 0; i < addresses.length + REDIRECTS_MAX; i++) {
    let connection: Connection | undefined
    try {
      connection = await dialer.dial()
      return await connection.request(message, { deadlineMs: REQUEST_MS, ...options.request })
    } catch (error) {
      failure = toPalimpsestError(error)
      // Unless it is only that this one cannot be reached, or is not the one.
      if (connection !== undefined && !dialer.learn(failure) && failure.kind !== 'retry') throw failure
      if (connection === undefined || failure.askAt !== undefined) continue
      // One that knows of no leader, because it is not in the cell yet or was cut off, is no reason not to ask the others.
      if (connection.closed.aborted || ++clueless >= addresses.length) throw failure
    } finally {
      connection?.close()
    }
  }
  throw failure ?? new PalimpsestError('invalid', 'no safekeeper was given')
}
