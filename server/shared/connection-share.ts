/**
 * One connection to each safekeeper for all writers of a process. What they append in one turn of the event loop goes out in one
 * system call, and so do the answers: with many writers that halves what an append costs, at both ends.
 *
 * Each holder has a *lease*, which looks like a connection of its own: closing it ends that holder's requests and nobody
 * else's. A connection that breaks, or on which an answer is overdue, is lost to all; each dials again by itself, and they find
 * themselves on one new connection.
 */
import type { Connection, Reply, RequestOptions } from '../../protocol/connection.ts'
import { type Address, type DialOptions, dial, formatAddress } from '../../protocol/dial.ts'
import { type ReplyOf, type Request, Role } from '../../protocol/messages.ts'
import { retryError, toPalimpsestError } from './errors.ts'
import type { Channel, Connect } from './leader-scout.ts'

interface Shared {
  readonly opening: Promise<Connection>
  connection: Connection | undefined
  /** Gives up the dialling, when nobody waits for it any more. */
  readonly abandon: AbortController
  readonly leases: Set<Lease>
  /** Those that hold a lease, or wait for one. */
  users: number
}

export class ConnectionShare {
  private readonly open: Connect
  /** By address; those that are being dialled among them. */
  private readonly shared = new Map<string, Shared>()

  /** `open`: over TCP unless told. */
  constructor(open: Connect = (address, how) => dial([address], Role.SAFEKEEPER, how)) {
    this.open = open
  }

  /** For the option `connect` of writers that are given the same `dial` options: those of the first count. */
  readonly connect: Connect<Channel> = async (address, options) => {
    const { signal, ...how } = options
    signal?.throwIfAborted()
    const key = formatAddress(address)
    const shared = this.shared.get(key) ?? this.begin(key, address, how)
    shared.users++
    const connection = await orAborted(shared.opening, signal).catch((error: unknown) => {
      this.released(key, shared)
      throw error
    })
    const lease = new Lease(connection, () => {
      shared.leases.delete(lease)
      this.released(key, shared)
    })
    if (connection.closed.aborted) lease.lost(connection.closed.reason)
    else shared.leases.add(lease)
    return lease
  }

  private begin(key: string, address: Address, options: DialOptions): Shared {
    const abandon = new AbortController()
    const opening = this.open(address, { ...options, signal: abandon.signal })
    const shared: Shared = { opening, connection: undefined, abandon, leases: new Set(), users: 0 }
    this.shared.set(key, shared)
    const lost = (reason: unknown): void => {
      if (this.shared.get(key) === shared) this.shared.delete(key)
      for (const lease of shared.leases) lease.lost(reason)
      shared.leases.clear()
    }
    shared.opening.then(connection => {
      const { closed } = connection
      shared.connection = connection
      // All that waited for it have left.
      if (abandon.signal.aborted) connection.close()
      closed.addEventListener('abort', () => lost(closed.reason), { once: true })
    }, lost)
    return shared
  }

  /** The last one turns off the light. */
  private released(key: string, shared: Shared): void {
    if (--shared.users > 0) return
    if (this.shared.get(key) === shared) this.shared.delete(key)
    shared.abandon.abort(retryError('nobody waits for this connection any more'))
    shared.connection?.close()
  }
}

/** Nobody who has found a better node waits until this one's deadline. */
async function orAborted<T>(promise: Promise<T>, signal: AbortSignal | null | undefined): Promise<T> {
  if (!signal) return promise
  const { promise: aborted, reject } = Promise.withResolvers<never>()
  const abort = () => reject(toPalimpsestError(signal.reason, 'connecting was aborted'))
  signal.addEventListener('abort', abort, { once: true })
  try {
    return await Promise.race([promise, aborted])
  } finally {
    signal.removeEventListener('abort', abort)
  }
}

class Lease implements Channel {
  private readonly connection: Connection
  private readonly release: () => void
  private readonly closed_ = new AbortController()
  /** Fails each request that has not been answered. */
  private readonly waiting = new Set<(error: unknown) => void>()

  constructor(connection: Connection, release: () => void) {
    this.connection = connection
    this.release = release
  }

  get address(): string {
    return this.connection.address
  }

  get closed(): AbortSignal {
    return this.closed_.signal
  }

  request<R extends Request>(message: R, options?: RequestOptions): Promise<Reply<ReplyOf<R>>> {
    if (this.closed.aborted) return Promise.reject(this.closed.reason)
    return new Promise((resolve, reject) => {
      this.waiting.add(reject)
      this.connection.request(message, options).then(
        reply => {
          this.waiting.delete(reject)
          resolve(reply)
        },
        error => {
          this.waiting.delete(reject)
          reject(error)
        },
      )
    })
  }

  close(): void {
    if (this.closed.aborted) return
    this.end(retryError(`connection to ${this.address} lost: closed by this side`))
    this.release()
  }

  /** The connection is gone: its own errors reach those that wait. */
  lost(reason: unknown): void {
    if (!this.closed.aborted) this.end(reason)
  }

  private end(reason: unknown): void {
    this.closed_.abort(reason)
    for (const reject of this.waiting) reject(reason)
    this.waiting.clear()
  }
}
