/** Requests to the leader of a cell of safekeepers, wherever it is at present. */
import type { Reply, RequestOptions } from '../../protocol/connection.ts'
import {
  type Address,
  type DialOptions,
  dial,
  formatAddress,
  parseAddress,
  tellFailures,
} from '../../protocol/dial.ts'
import { MessageType, type ReplyOf, type Request, Role } from '../../protocol/messages.ts'
import { PalimpsestError, retryError, toPalimpsestError } from './errors.ts'
import { type Channel, type Connect, LeaderScout, type Sighting, type Standing } from './leader-scout.ts'
import { nodeClock } from './node-seams.ts'
import type { Clock } from './seams.ts'

const REDIRECTS_MAX = 8
/**
 * A node that has not said hello by then is passed over: it may be stopped, or behind a network that swallows. Where others say who
 * leads, nobody waits so long; and a server may take its time to refuse a wrong token.
 */
const DIAL_MS = 6000
const REQUEST_MS = 30_000

export interface LeaderDialerOptions {
  readonly dial?: DialOptions | undefined
  readonly clock?: Clock | undefined
  /** Opens a connection to a safekeeper; over TCP unless told. */
  readonly connect?: Connect<Channel> | undefined
  /** In [0, 1). */
  readonly random?: (() => number) | undefined
  /** Asks who leads; one of its own unless told. Several that share one must have the same safekeepers and `dial`. */
  readonly scout?: LeaderScout | undefined
}

/**
 * Dials safekeepers, each time another one of those it knows: the leader that it was told of, then those that were given, one
 * after the other. While one of them says nothing, the others are asked who leads.
 */
export class LeaderDialer {
  readonly addresses: readonly Address[]
  readonly scout: LeaderScout
  /** What the node that was reached last said of itself. */
  standing: Standing | undefined
  private readonly options: DialOptions
  private readonly clock: Clock
  private readonly connect: Connect<Channel>
  private hint: Address | undefined
  private next = 0

  constructor(addresses: readonly Address[], options: LeaderDialerOptions = {}) {
    this.addresses = addresses
    this.options = { ...options.dial, elsewhere: 'redirect' }
    this.clock = options.clock ?? nodeClock
    this.connect = options.connect ?? ((address, how) => dial([address], Role.SAFEKEEPER, how))
    this.scout =
      options.scout ?? new LeaderScout(addresses, this.connect, this.options, this.clock, options.random)
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

  /** The next attempt goes to this one. Returns the error with which to leave the one before. */
  move(from: string, to: Sighting): PalimpsestError {
    this.hint = to.address
    return retryError(
      `${from} has not answered, and ${to.nodeId} at ${formatAddress(to.address)} leads the cell in term ${to.term}`,
    )
  }

  /** Whether it is known where to go next. */
  get isHinted(): boolean {
    return this.hint !== undefined
  }

  /**
   * One attempt: connects to one node and lets `use` talk to it. The connection is the caller's if it succeeds. Throws kind
   * retry if that node cannot be reached now, or another one turns out to lead before it has answered.
   */
  async reach<T>(
    use: (connection: Channel) => Promise<T>,
  ): Promise<{ readonly connection: Channel; readonly answer: T }> {
    const { clock } = this
    const address = this.hint ?? this.addresses[this.next++ % this.addresses.length]!
    // Asked once; if it does not answer, or leads no more, the others say who does.
    this.hint = undefined
    this.standing = undefined
    const begunMs = clock.monotonicMs()
    const over = new AbortController()
    const moved = new AbortController()
    void this.scout.watch({
      asked: address,
      standing: () => this.standing,
      silentMs: () => clock.monotonicMs() - begunMs,
      signal: over.signal,
      found: sighting => moved.abort(this.move(formatAddress(address), sighting)),
    })
    let connection: Channel | undefined
    try {
      const opened = await this.connect(address, {
        deadlineMs: DIAL_MS,
        ...this.options,
        signal: moved.signal,
      })
      connection = opened
      moved.signal.addEventListener('abort', () => opened.close())
      moved.signal.throwIfAborted()
      opened.request({ type: MessageType.CellStatus }).then(
        ({ message: { nodeId, term } }) => {
          this.standing = { nodeId, term }
        },
        () => {},
      )
      return { connection, answer: await use(connection) }
    } catch (error) {
      connection?.close()
      throw moved.signal.aborted ? moved.signal.reason : error
    } finally {
      over.abort()
    }
  }
}

/** Sends one request to the leader; follows where it is told to go. The request must be one that may be made again. */
export async function askLeader<R extends Request>(
  addresses: readonly Address[],
  message: R,
  options: LeaderDialerOptions & { readonly request?: RequestOptions } = {},
): Promise<Reply<ReplyOf<R>>> {
  const dialer = new LeaderDialer(addresses, options)
  let failure: PalimpsestError | undefined
  let clueless = 0
  /** Says more than that others cannot be reached. */
  let answered: PalimpsestError | undefined
  let missed = 0
  const unreached = new Map<string, PalimpsestError>()
  for (let i = 0; i < addresses.length + REDIRECTS_MAX; i++) {
    let reached: Channel | undefined
    const wasHinted = dialer.isHinted
    try {
      const { connection, answer } = await dialer.reach(connection => {
        reached = connection
        return connection.request(message, { deadlineMs: REQUEST_MS, ...options.request })
      })
      connection.close()
      return answer
    } catch (error) {
      failure = toPalimpsestError(error)
      // Unless it is only that this one cannot be reached, or is not the one.
      if (reached !== undefined && !dialer.learn(failure) && failure.kind !== 'retry') throw failure
      if (dialer.isHinted) continue
      if (reached === undefined) {
        if (wasHinted) continue
        unreached.set(failure.message, failure)
        if (++missed >= addresses.length) throw answered ?? noneReached([...unreached.values()])
        continue
      }
      // One that knows of no leader, because it is not in the cell yet or was cut off, or that went away in the midst, is no
      // reason not to ask the others.
      answered = failure
      if (++clueless >= addresses.length) throw failure
    }
  }
  throw failure ?? new PalimpsestError('invalid', 'no safekeeper was given')
}

/** As protocol/dial.ts has it: of kind retry if any of them may yet come. */
function noneReached(failures: readonly PalimpsestError[]): PalimpsestError {
  const [first] = failures
  if (failures.length === 1) return first!
  const { kind } = failures.find(failure => failure.kind === 'retry') ?? first!
  return new PalimpsestError(kind, `no safekeeper could be reached: ${tellFailures(failures)}`)
}
