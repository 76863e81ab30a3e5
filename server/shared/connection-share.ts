/**
 * One connection to each safekeeper for all writers of a process. What they append in one turn of the event loop goes out in one
 * system call, and so do the answers: with many writers that halves what an append costs, at both ends.
 *
 * Each holder has a *lease*, which looks like a connection of its own: closing it, or a deadline of its that passes, ends
 * that holder's requests and nobody else's. Only a connection that breaks is lost to all; each dials again by itself, and they
 * find themselves on one new connection.
 *
 * A node that says nothing. A holder whose deadline has passed is out, the others wait on as long as they like, and are
 * answered on the same connection if the node was only slow. But while nothing at all has been heard since the request that
 * was given up, nobody else is put on that connection: who comes now, or comes back, gets a new one.
 *
 * Who leads is asked once for all of them as well: `dialer` has a scout that they share (leader-scout.ts).
 */
import type { Connection, Reply, RequestOptions } from '../../protocol/connection.ts'
import { type Address, type DialOptions, dial, formatAddress } from '../../protocol/dial.ts'
import { messageName, type ReplyOf, type Request, Role } from '../../protocol/messages.ts'
import type { LeaderDialerOptions } from './cell-client.ts'
import { type PalimpsestError, retryError, toPalimpsestError } from './errors.ts'
import { type Channel, type Connect, LeaderScout } from './leader-scout.ts'
import { nodeClock } from './node-seams.ts'
import type { Clock } from './seams.ts'

/** As a connection's own. */
const DEADLINE_MS_DEFAULT = 30_000

export interface ConnectionShareOptions {
  /** Of all connections. `deadlineMs` is the default of every request; each holder may say another when it connects. */
  readonly dial?: DialOptions | undefined
  /** Opens a connection to a safekeeper; over TCP unless told. */
  readonly open?: Connect | undefined
  readonly clock?: Clock | undefined
  /** In [0, 1). */
  readonly random?: (() => number) | undefined
}

interface Shared {
  readonly key: string
  readonly opening: Promise<Connection>
  connection: Connection | undefined
  /** Gives up the dialling, when nobody waits for it any more. */
  readonly abandon: AbortController
  readonly leases: Set<Lease>
  /** Those that hold a lease, or wait for one. */
  users: number
  /** Answers heard on it. */
  answers: number
  /** A request was given up since anything was heard. */
  isSilent: boolean
}

export class ConnectionShare {
  /** For the options of all writers that are to share: `WalWriter.open({ …, ...share.dialer })`. */
  readonly dialer: Pick<LeaderDialerOptions, 'connect' | 'scout' | 'clock'>
  private readonly options: DialOptions
  private readonly open: Connect
  private readonly clock: Clock
  /** By address, those that whoever connects is put on; those that are being dialled among them. */
  private readonly shared = new Map<string, Shared>()

  constructor(safekeepers: readonly Address[], options: ConnectionShareOptions = {}) {
    this.options = { ...options.dial, elsewhere: 'redirect' }
    this.open = options.open ?? ((address, how) => dial([address], Role.SAFEKEEPER, how))
    this.clock = options.clock ?? nodeClock
    const { connect, clock } = this
    const scout = new LeaderScout(safekeepers, connect, this.options, clock, options.random)
    this.dialer = { connect, scout, clock }
  }

  /** Connections that are open or being opened. */
  get connections(): number {
    return this.shared.size
  }

  /** A lease. Of the options only `signal` and `deadlineMs` are the holder's own; the rest is as the share was told. */
  readonly connect: Connect<Channel> = async (address, options) => {
    const { signal, deadlineMs = this.options.deadlineMs ?? DEADLINE_MS_DEFAULT } = options
    signal?.throwIfAborted()
    const shared = this.find(address)
    shared.users++
    try {
      const connection = await this.orOver(shared, deadlineMs, signal)
      const lease = new Lease(shared, connection, this.clock, deadlineMs, () => this.released(shared))
      if (connection.closed.aborted) lease.lost(connection.closed.reason)
      return lease
    } catch (error) {
      this.released(shared)
      throw error
    }
  }

  private find(address: Address): Shared {
    const key = formatAddress(address)
    const known = this.shared.get(key)
    return known === undefined || known.isSilent ? this.begin(key, address) : known
  }

  private begin(key: string, address: Address): Shared {
    const abandon = new AbortController()
    // Each who waits has a deadline of his own; the hello's is the connection's.
    const { deadlineMs: _, ...how } = this.options
    const opening = this.open(address, { ...how, signal: abandon.signal })
    const shared: Shared = {
      ...{ key, opening, abandon, leases: new Set<Lease>(), users: 0 },
      ...{ connection: undefined, answers: 0, isSilent: false },
    }
    this.shared.set(key, shared)
    const lost = (reason: unknown): void => {
      this.forget(shared)
      for (const lease of [...shared.leases]) lease.lost(reason)
    }
    opening.then(connection => {
      const { closed } = connection
      shared.connection = connection
      // All that waited for it have left.
      if (abandon.signal.aborted) connection.close()
      closed.addEventListener('abort', () => lost(closed.reason), { once: true })
    }, lost)
    return shared
  }

  /** Nobody waits beyond his own deadline, or when he has found a better node meanwhile. */
  private async orOver(
    { opening, key }: Shared,
    deadlineMs: number,
    signal: AbortSignal | null | undefined,
  ): Promise<Connection> {
    const { promise: over, reject } = Promise.withResolvers<never>()
    const arrived = new AbortController()
    const abort = () => reject(toPalimpsestError(signal?.reason, 'connecting was aborted'))
    signal?.addEventListener('abort', abort, { once: true })
    if (deadlineMs > 0)
      void this.clock.sleep(deadlineMs, arrived.signal).then(() => {
        reject(
          retryError(
            `cannot connect to ${key}: no hello within ${deadlineMs} ms: it hangs, or is no safekeeper`,
          ),
        )
      })
    try {
      return await Promise.race([opening, over])
    } finally {
      arrived.abort()
      over.catch(() => {})
      signal?.removeEventListener('abort', abort)
    }
  }

  private forget(shared: Shared): void {
    if (this.shared.get(shared.key) === shared) this.shared.delete(shared.key)
  }

  /** The last one turns off the light. */
  private released(shared: Shared): void {
    if (--shared.users > 0) return
    this.forget(shared)
    shared.abandon.abort(retryError('nobody waits for this connection any more'))
    shared.connection?.close()
  }
}

/** A request that has no answer yet. */
interface Waiting {
  readonly what: string
  readonly deadlineMs: number
  /** Of the clock; Infinity: none. */
  readonly untilMs: number
  /** Answers that the connection had brought before. */
  readonly answers: number
  reject(error: unknown): void
}

class Lease implements Channel {
  private readonly shared: Shared
  private readonly connection: Connection
  private readonly clock: Clock
  private readonly deadlineMs: number
  private readonly released: () => void
  private readonly closed_ = new AbortController()
  private readonly waiting = new Set<Waiting>()
  /** When the deadlines are looked at next, and how to be woken sooner. */
  private alarm: { readonly atMs: number; readonly sooner: AbortController } | undefined

  constructor(
    shared: Shared,
    connection: Connection,
    clock: Clock,
    deadlineMs: number,
    released: () => void,
  ) {
    this.shared = shared
    this.connection = connection
    this.clock = clock
    this.deadlineMs = deadlineMs
    this.released = released
    shared.leases.add(this)
  }

  get address(): string {
    return this.connection.address
  }

  get closed(): AbortSignal {
    return this.closed_.signal
  }

  request<R extends Request>(message: R, options: RequestOptions = {}): Promise<Reply<ReplyOf<R>>> {
    if (this.closed.aborted) return Promise.reject(this.closed.reason)
    const { shared, waiting } = this
    const deadlineMs = options.deadlineMs ?? this.deadlineMs
    const untilMs = deadlineMs > 0 ? this.clock.monotonicMs() + deadlineMs : Number.POSITIVE_INFINITY
    return new Promise((resolve, reject) => {
      const what = messageName(message.type)
      const one: Waiting = { what, deadlineMs, untilMs, answers: shared.answers, reject }
      waiting.add(one)
      this.setAlarm(untilMs)
      const answered = (): void => {
        waiting.delete(one)
        if (this.connection.closed.aborted) return
        shared.answers++
        shared.isSilent = false
      }
      // A deadline of the connection's own would close it for all.
      this.connection.request(message, { ...options, deadlineMs: 0 }).then(
        reply => {
          answered()
          resolve(reply)
        },
        error => {
          answered()
          reject(error)
        },
      )
    })
  }

  /** One timer for all of them: it looks, and sleeps until the next deadline. */
  private setAlarm(atMs: number): void {
    if (atMs >= (this.alarm?.atMs ?? Number.POSITIVE_INFINITY)) return
    this.alarm?.sooner.abort()
    const sooner = new AbortController()
    this.alarm = { atMs, sooner }
    void this.clock.sleep(Math.max(1, Math.ceil(atMs - this.clock.monotonicMs())), sooner.signal).then(() => {
      if (!sooner.signal.aborted) this.checkDeadlines()
    })
  }

  private checkDeadlines(): void {
    this.alarm = undefined
    const nowMs = this.clock.monotonicMs()
    let nextMs = Number.POSITIVE_INFINITY
    for (const { what, deadlineMs, untilMs, answers } of this.waiting) {
      if (untilMs <= nowMs) {
        if (answers === this.shared.answers) this.shared.isSilent = true
        this.leave(`${what} was not answered within ${deadlineMs} ms`)
        return
      }
      nextMs = Math.min(nextMs, untilMs)
    }
    this.setAlarm(nextMs)
  }

  close(): void {
    this.leave('closed by this side')
  }

  private leave(why: string): void {
    if (!this.closed.aborted) this.lost(this.lostBecause(why))
  }

  private lostBecause(why: string): PalimpsestError {
    const error = retryError(`connection to ${this.address} lost: ${why}`)
    error.address = this.address
    return error
  }

  /** By this holder's doing, or because the connection is gone: its own error reaches those that wait. */
  lost(reason: unknown): void {
    if (this.closed.aborted) return
    this.shared.leases.delete(this)
    this.alarm?.sooner.abort()
    this.closed_.abort(reason)
    for (const { reject } of this.waiting) reject(reason)
    this.waiting.clear()
    this.released()
  }
}
