/**
 * Limits on connections whose client is not known yet, and on those that are. One address's flood of connections that
 * never say who they are costs only that address's own unknown connections: the oldest gives way to the newest. A client
 * that means it is unknown for milliseconds, so it is not the oldest; and a page server that dials for hundreds of
 * timelines at once is no flood, so the young are spared while there is room (docs/security.md, "Before authentication").
 */
import { isIPv4, isIPv6 } from 'node:net'

export interface AdmissionLimits {
  /** Connections that have not completed their hello. */
  readonly unknownMax: number
  readonly unknownMaxPerAddress: number
  /** So many of one address, if they are older than `unknownYoungMs`, are enough. */
  readonly unknownOldPerAddress: number
  readonly unknownYoungMs: number
  /** Connections that have. */
  readonly connectionsMax: number
  readonly connectionsMaxPerAddress: number
}

/** One connection's place. */
export class Place {
  readonly address: string
  readonly sinceMs: number
  /** Closes the connection, for another that wants the place. */
  readonly evict: () => void
  known = false
  gone = false

  constructor(address: string, sinceMs: number, evict: () => void) {
    this.address = address
    this.sinceMs = sinceMs
    this.evict = evict
  }
}

interface PerAddress {
  /** In the order of arrival. */
  readonly unknown: Set<Place>
  known: number
}

/** What is remembered of addresses that are not connected. */
const ADDRESSES_MAX = 4096
const LOG_MS = 1000
const FAILURES_FREE = 5
const FAILURES_COUNTED_MAX = 30
const DELAY_MS_FIRST = 100
const DELAY_MS_MAX = 5000
/** Time without a failure that forgives one. */
const FORGIVE_MS = 1000

export class Admission {
  readonly limits: AdmissionLimits
  private readonly addresses = new Map<string, PerAddress>()
  private readonly failures = new Map<string, { count: number; lastMs: number }>()
  private readonly logged = new Map<string, { atMs: number; suppressed: number }>()
  private unknown_ = 0
  private known_ = 0
  /** Unknown connections that gave way. */
  evicted = 0

  constructor(limits: AdmissionLimits) {
    this.limits = limits
  }

  get unknown(): number {
    return this.unknown_
  }

  get known(): number {
    return this.known_
  }

  /** A place for a new connection, whose client is unknown. `nowMs` never falls. */
  enter(remoteAddress: string | undefined, nowMs: number, evict: () => void): Place {
    const address = addressKey(remoteAddress)
    const mine = this.addresses.get(address)
    if (mine !== undefined && this.isFull(mine, nowMs)) this.evictOldest(mine)
    else if (this.unknown_ >= this.limits.unknownMax) this.evictOldest(this.mostUnknown())
    const place = new Place(address, nowMs, evict)
    this.of(address).unknown.add(place)
    this.unknown_++
    return place
  }

  /** The client is known now. Returns why there is no room for it, if so. */
  promote(place: Place): string | undefined {
    const mine = this.of(place.address)
    const { connectionsMax, connectionsMaxPerAddress } = this.limits
    if (this.known_ >= connectionsMax)
      return `this server has its ${connectionsMax} connections; close some, or try again later`
    if (mine.known >= connectionsMaxPerAddress)
      return `there are ${connectionsMaxPerAddress} connections from ${place.address}, as many as one address may have`
    if (mine.unknown.delete(place)) {
      this.unknown_--
      mine.known++
      this.known_++
      place.known = true
    }
    return undefined
  }

  leave(place: Place): void {
    if (place.gone) return
    place.gone = true
    const mine = this.addresses.get(place.address)
    if (mine === undefined) return
    if (place.known) {
      mine.known--
      this.known_--
    } else if (mine.unknown.delete(place)) this.unknown_--
    if (mine.known === 0 && mine.unknown.size === 0) this.addresses.delete(place.address)
  }

  /** Notes a wrong credential. Returns how long its answer is to be held back, milliseconds. */
  failed(place: Place, nowMs: number): number {
    const before = this.failures.get(place.address)
    const forgiven = before === undefined ? 0 : Math.floor((nowMs - before.lastMs) / FORGIVE_MS)
    const count = Math.min(Math.max(0, (before?.count ?? 0) - forgiven) + 1, FAILURES_COUNTED_MAX)
    this.failures.delete(place.address)
    this.failures.set(place.address, { count, lastMs: nowMs })
    dropOldest(this.failures)
    const over = count - FAILURES_FREE
    return over <= 0 ? 0 : Math.min(DELAY_MS_FIRST * 2 ** (over - 1), DELAY_MS_MAX)
  }

  /**
   * Whether something about this address may be logged now: once a second. Returns how many were left out since, or
   * undefined if this one is to be left out, too.
   */
  mayLog(address: string, nowMs: number): number | undefined {
    const before = this.logged.get(address)
    if (before !== undefined && nowMs - before.atMs < LOG_MS) {
      before.suppressed++
      return undefined
    }
    this.logged.delete(address)
    this.logged.set(address, { atMs: nowMs, suppressed: 0 })
    dropOldest(this.logged)
    return before?.suppressed ?? 0
  }

  private of(address: string): PerAddress {
    let mine = this.addresses.get(address)
    if (mine === undefined) {
      mine = { unknown: new Set(), known: 0 }
      this.addresses.set(address, mine)
    }
    return mine
  }

  private isFull({ unknown }: PerAddress, nowMs: number): boolean {
    const { unknownMaxPerAddress, unknownOldPerAddress, unknownYoungMs } = this.limits
    if (unknown.size < unknownOldPerAddress) return false
    if (unknown.size >= unknownMaxPerAddress) return true
    const [oldest] = unknown
    return oldest !== undefined && nowMs - oldest.sinceMs > unknownYoungMs
  }

  private mostUnknown(): PerAddress {
    let most: PerAddress | undefined
    for (const each of this.addresses.values())
      if (most === undefined || each.unknown.size > most.unknown.size) most = each
    return most as PerAddress
  }

  private evictOldest(from: PerAddress): void {
    const [oldest] = from.unknown
    if (oldest === undefined) return
    this.evicted++
    this.leave(oldest)
    oldest.evict()
  }
}

function dropOldest(map: Map<string, unknown>): void {
  if (map.size > ADDRESSES_MAX) map.delete(map.keys().next().value as string)
}

/** What counts as one address: an IPv4 address, or the /64 of an IPv6 address. */
export function addressKey(remoteAddress: string | undefined): string {
  if (remoteAddress === undefined) return '?'
  const plain = remoteAddress.replace(/%.*$/, '').toLowerCase()
  const mapped = /^::ffff:(\d+\.\d+\.\d+\.\d+)$/.exec(plain)
  if (mapped) return mapped[1] as string
  if (isIPv4(plain) || !isIPv6(plain)) return plain
  if (plain === '::1') return plain
  const [head = '', tail] = plain.split('::')
  const groups = head === '' ? [] : head.split(':')
  if (tail !== undefined) {
    const last = tail === '' ? [] : tail.split(':')
    while (groups.length + last.length < 8) groups.push('0')
    groups.push(...last)
  }
  return `${groups
    .slice(0, 4)
    .map(g => Number.parseInt(g, 16).toString(16))
    .join(':')}::/64`
}
