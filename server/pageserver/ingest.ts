/**
 * The way of a timeline's redo into its memtable: arrive, be indexed by workers in parallel, be linked in LSN order.
 *
 *     reserve → (socket fills) → commit → waiting ranges → a worker each → linked, oldest first
 *
 * Adjacent chunks that wait are indexed as one range, so that a trickle of small chunks costs little when it comes faster
 * than workers take it, and a chunk that comes alone is readable at once. Nothing here is queued without bound: when
 * too much is unlinked, or no arena is free, `reserve` gives nothing and the caller stops reading its socket.
 */
import type { SpaceEvent } from '../../parser/space-events.ts'
import type { Lsn } from '../../protocol/ids.ts'
import { internalError, isCorrupt, PalimpsestError } from '../shared/errors.ts'
import type { WorkerPool } from '../shared/worker-pool.ts'
import type { ArenaPool } from './arena.ts'
import type { IndexRangeResult } from './worker.ts'

/** Largest range that adjacent chunks are joined to. */
const RANGE_BYTES_MAX = 2 << 20
/** Redo that may have arrived and not be linked yet. */
const UNLINKED_BYTES_MAX = 24 << 20

/** An index is about as large as its redo; this and an eighth more are set aside for it. */
const INDEX_BYTES_EXTRA = 32 << 10
/** Up to so much unlinked redo, indexes go into the arena of the redo if that has so much room. */
const QUIET_BYTES_MAX = 256 << 10
const SHARED_FREE_BYTES_MIN = 1 << 20

const RETRY_MS = 500

/** Of so many threads these index: one alone takes in more than half a gigabyte a second. The others make pages meanwhile. */
export function indexingThreads(threads: number): number {
  return Math.max(1, threads >> 1)
}

const WAITING = 0
const INDEXING = 1
const INDEXED = 2
/** Its index found no room; it is tried again when an arena is free. */
const STARVED = 3

/** When redo up to an LSN was seen, in microseconds since 1970; 0 if that is not known. */
export interface ArrivalTime {
  readonly lsn: Lsn
  readonly wallTimeUs: number
}

interface Range {
  state: typeof WAITING | typeof INDEXING | typeof INDEXED | typeof STARVED
  readonly arena: number
  /** Byte offset in the arena memory. */
  readonly at: number
  bytes: number
  readonly begin: Lsn
  readonly samples: ArrivalTime[]
  /** Arena of the index, retained for this range until it is linked. */
  indexArena: number
  /** Bytes that its index takes, where an attempt has shown it; else 0. */
  indexBytes: number
  result: (IndexRangeResult & { status: 'ok' }) | undefined
  /** It follows corrupt redo and will not be linked. */
  dropped: boolean
  /** The redo after this range is corrupt: stop when it has been linked. */
  stopWith: PalimpsestError | undefined
}

interface Reservation {
  readonly arena: number
  /** Byte offset in the arena memory. */
  readonly at: number
  readonly bytes: number
}

export interface LinkedRange {
  /** The arena that it lies in. The redo that it was made from is not needed any more. */
  readonly arena: number
  /** Word of the range's index (run-index.ts). */
  readonly header: number
  readonly bytes: number
  readonly endLsn: Lsn
  readonly events: readonly SpaceEvent[]
  readonly samples: readonly ArrivalTime[]
  readonly mtrs: number
  readonly records: number
}

export interface RedoIngestHooks {
  /** A range is next in LSN order; called synchronously, one after the other. It must take its hold on the arena. */
  link(range: LinkedRange): void
  /** The redo at `error.lsn` is damaged. Everything before it has been linked; nothing more will be. */
  stopped(error: PalimpsestError): void
  /** No arena is free: flush something. */
  starved(): void
}

type IndexPool = WorkerPool<typeof import('./worker.ts')>

export class RedoIngest {
  readonly #pool: ArenaPool
  readonly #workers: IndexPool
  readonly #hooks: RedoIngestHooks
  readonly #innodbPageSize: number
  readonly #ranges: Range[] = []
  /** Where redo goes now: an arena with one reference of ours, and the byte offset in it; -1 before the first. */
  #arena = -1
  #bottom = 0
  /** Where indexes go now; often the same arena. */
  #indexArena = -1
  /** Reserved and not yet committed, oldest first; each holds its arena. */
  readonly #reserved: Reservation[] = []
  #reservedBytes = 0
  #indexing = 0
  #unlinkedBytes = 0
  #arrivedLsn: Lsn
  #stopped = false
  readonly #roomWaiters: (() => void)[] = []

  constructor(
    pool: ArenaPool,
    workers: IndexPool,
    innodbPageSize: number,
    startLsn: Lsn,
    hooks: RedoIngestHooks,
  ) {
    this.#pool = pool
    this.#workers = workers
    this.#innodbPageSize = innodbPageSize
    this.#arrivedLsn = startLsn
    this.#hooks = hooks
  }

  /** End of what has arrived whole: where a new subscription goes on. */
  get arrivedLsn(): Lsn {
    return this.#arrivedLsn
  }

  get idle(): boolean {
    return this.#ranges.length === 0
  }

  get isStopped(): boolean {
    return this.#stopped
  }

  /**
   * Arena memory for the next `bytes` of redo, to be filled and then committed, in the order of the reservations, or
   * abandoned. Undefined when there is no room now: wait for `room()` and ask again.
   */
  reserve(bytes: number): Uint8Array | undefined {
    if (bytes === 0 || bytes > this.#pool.arenaBytes / 2)
      throw new PalimpsestError('invalid', `a chunk of ${bytes} bytes of redo; at most half an arena fits`)
    if (this.#stopped || this.#unlinkedBytes + this.#reservedBytes > UNLINKED_BYTES_MAX) return undefined
    const { memory } = this.#pool
    if (this.#arena < 0 || !memory.take(this.#arena, bytes)) {
      let arena = this.#pool.acquire(false)
      if (arena < 0) {
        // Others may let go of theirs at once.
        this.#hooks.starved()
        arena = this.#pool.acquire(false)
        if (arena < 0) return undefined
      }
      if (this.#arena >= 0) this.#pool.release(this.#arena)
      this.#arena = arena
      this.#bottom = memory.start(arena)
      memory.take(arena, bytes)
    }
    this.#pool.retain(this.#arena)
    this.#reserved.push({ arena: this.#arena, at: this.#bottom, bytes })
    this.#reservedBytes += bytes
    this.#bottom += bytes
    return memory.region.bytes.subarray(this.#bottom - bytes, this.#bottom)
  }

  /** Resolves when it is worth asking `reserve` again. */
  room(): Promise<void> {
    // As `reserve` has it, or who asks again at once would do so for ever, and nobody else would have a turn.
    if (this.#unlinkedBytes + this.#reservedBytes > UNLINKED_BYTES_MAX)
      return new Promise(resolve => this.#roomWaiters.push(resolve))
    return this.#pool.hasRoom ? Promise.resolve() : this.#pool.freed()
  }

  /** Nothing that is still reserved will be filled: the connection broke. */
  abandon(): void {
    for (const { arena, at, bytes } of this.#reserved.splice(0).reverse()) {
      this.#reservedBytes -= bytes
      if (arena === this.#arena && at + bytes === this.#bottom) {
        this.#bottom = at
        this.#pool.memory.giveBack(arena, bytes)
      }
      this.#pool.release(arena)
    }
    this.#wakeRoom()
  }

  /** The oldest reservation holds whole mini-transactions from `begin` on, which must be `arrivedLsn`. */
  commit(begin: Lsn, wallTimeUs: number): void {
    if (begin !== this.#arrivedLsn)
      throw internalError(`redo from LSN ${begin} arrived where LSN ${this.#arrivedLsn} is next`)
    const reservation = this.#reserved.shift()
    if (reservation === undefined) throw internalError('a commit of redo for which nothing was reserved')
    const { arena, at, bytes } = reservation
    this.#reservedBytes -= bytes
    const end = (begin + bytes) as Lsn
    this.#arrivedLsn = end
    this.#unlinkedBytes += bytes
    const last = this.#ranges[this.#ranges.length - 1]
    if (
      last !== undefined &&
      last.state === WAITING &&
      last.arena === arena &&
      last.at + last.bytes === at &&
      last.bytes + bytes <= RANGE_BYTES_MAX
    ) {
      last.bytes += bytes
      last.samples.push({ lsn: end, wallTimeUs })
      this.#pool.release(arena)
    } else {
      // The range takes over the reservation's hold.
      this.#ranges.push({
        state: WAITING,
        arena,
        at,
        bytes,
        begin,
        samples: [{ lsn: end, wallTimeUs }],
        indexArena: -1,
        indexBytes: 0,
        result: undefined,
        dropped: false,
        stopWith: undefined,
      })
    }
    this.#pump()
  }

  /** The log goes on at `lsn`; what lies between is lost. Only when idle. */
  skipTo(lsn: Lsn): void {
    // What is reserved already comes after the gap.
    if (!this.idle) throw internalError('a gap in the redo while redo is being indexed')
    this.#arrivedLsn = lsn
  }

  /**
   * Gives back the arenas that nothing of ours lies in any more: of a timeline that is idle while others need memory.
   * False if there were none.
   */
  letGo(): boolean {
    if (!this.idle || this.#reserved.length > 0 || (this.#arena < 0 && this.#indexArena < 0)) return false
    if (this.#arena >= 0) this.#pool.release(this.#arena)
    if (this.#indexArena >= 0) this.#pool.release(this.#indexArena)
    this.#arena = -1
    this.#indexArena = -1
    return true
  }

  /** Tries ranges again whose index found no room. */
  retry(): void {
    for (const range of this.#ranges) if (range.state === STARVED) range.state = WAITING
    this.#pump()
  }

  /** Nothing more is linked. Ranges that are being indexed let go of their arenas when that has ended. */
  close(): void {
    this.#stopped = true
    for (const range of this.#ranges.splice(0)) this.#drop(range)
    this.abandon()
    if (this.#arena >= 0) this.#pool.release(this.#arena)
    if (this.#indexArena >= 0) this.#pool.release(this.#indexArena)
    this.#arena = -1
    this.#indexArena = -1
  }

  #pump(): void {
    const { memory } = this.#pool
    for (const range of this.#ranges) {
      // Two per thread: one at work, one behind it.
      if (this.#indexing >= indexingThreads(this.#workers.threads) * 2) return
      if (range.state !== WAITING) continue
      // Set aside now, or ranges at work side by side would all count on the same room, and all but one would be in vain.
      const bytes = range.indexBytes || range.bytes + (range.bytes >>> 3) + INDEX_BYTES_EXTRA
      if (
        (this.#indexArena < 0 || !memory.take(this.#indexArena, bytes)) &&
        !(this.#newIndexArena(bytes) && memory.take(this.#indexArena, bytes))
      ) {
        this.#starve(range)
        return
      }
      void this.#index(range, bytes)
    }
  }

  /** For an index of so many bytes. */
  #newIndexArena(bytes: number): boolean {
    const before = this.#indexArena
    if (before >= 0) this.#pool.release(before)
    const own = this.#arena
    const ownHasRoom =
      own >= 0 && own !== before && this.#pool.memory.freeBytes(own) > Math.max(SHARED_FREE_BYTES_MIN, bytes)
    // An arena with indexes in it lives until they are in a layer, one with nothing but redo only until that is linked. So
    // the two lie apart, unless there is so little redo that one arena does for a long time.
    if (!(ownHasRoom && this.#unlinkedBytes + this.#reservedBytes <= QUIET_BYTES_MAX)) {
      this.#indexArena = this.#pool.acquire(true)
      if (this.#indexArena >= 0 || !ownHasRoom) return this.#indexArena >= 0
    }
    this.#indexArena = own
    this.#pool.retain(own)
    return true
  }

  #starve(range: Range): void {
    range.state = STARVED
    const freed = this.#pool.freed()
    this.#hooks.starved()
    void freed.then(() => this.retry())
  }

  async #index(range: Range, indexBytes: number): Promise<void> {
    range.state = INDEXING
    range.indexArena = this.#indexArena
    this.#pool.retain(range.indexArena)
    this.#indexing++
    let result: IndexRangeResult
    try {
      result = await this.#workers.run('indexRange', {
        at: range.at,
        bytes: range.bytes,
        begin: range.begin,
        indexArena: range.indexArena,
        indexBytes,
        innodbPageSize: this.#innodbPageSize,
      })
    } catch (error) {
      this.#indexing--
      // Of a thread that died nobody knows what it has done with its room: that stays taken until the arena is empty.
      if (isCorrupt(error)) this.#pool.memory.giveBack(range.indexArena, indexBytes)
      this.#pool.release(range.indexArena)
      range.indexArena = -1
      if (range.dropped) this.#pool.release(range.arena)
      else this.#failed(range, error)
      this.#pump()
      return
    }
    this.#indexing--
    if (range.dropped) {
      this.#pool.release(range.indexArena)
      this.#pool.release(range.arena)
    } else if (result.status === 'ok') {
      range.result = result
      range.state = INDEXED
      this.#linkReady()
    } else {
      this.#pool.release(range.indexArena)
      range.indexArena = -1
      range.indexBytes = result.bytes
      range.state = WAITING
      if (result.bytes > this.#pool.arenaBytes) this.#split(range)
    }
    this.#pump()
  }

  /** The range's index is larger than an arena: its chunks are indexed in two ranges. */
  #split(range: Range): void {
    const { samples } = range
    if (samples.length < 2) {
      this.#failed(
        range,
        internalError(
          `the index of the redo from LSN ${range.begin} takes ${range.indexBytes} bytes, more than an arena has; ` +
            'give the page server more memory',
        ),
      )
      return
    }
    const later = samples.splice(samples.length >>> 1)
    const middle = samples[samples.length - 1]!.lsn
    const bytes = middle - range.begin
    this.#pool.retain(range.arena)
    this.#ranges.splice(this.#ranges.indexOf(range) + 1, 0, {
      ...range,
      at: range.at + bytes,
      bytes: range.bytes - bytes,
      begin: middle,
      samples: later,
      indexBytes: 0,
    })
    range.bytes = bytes
    range.indexBytes = 0
    range.stopWith = undefined
  }

  /** Corrupt redo: what comes before it in the range is still good, and is indexed again without the rest. */
  #failed(range: Range, thrown: unknown): void {
    const error =
      thrown instanceof PalimpsestError
        ? thrown
        : internalError(`indexing redo failed: ${String(thrown)}`, thrown)
    if (error.kind === 'retry' && !this.#stopped) {
      // A thread died: not at once again, or a range that kills threads would keep them all from working.
      range.state = STARVED
      setTimeout(() => this.retry(), RETRY_MS)
      return
    }
    const goodBytes = error.kind === 'corrupt' && error.lsn !== undefined ? error.lsn - range.begin : 0
    range.stopWith = error
    for (const later of this.#ranges.splice(this.#ranges.indexOf(range) + 1)) this.#drop(later)
    if (goodBytes > 0 && goodBytes < range.bytes) {
      this.#unlinkedBytes -= range.bytes - goodBytes
      range.bytes = goodBytes
      const end = (range.begin + goodBytes) as Lsn
      const wallTimeUs = range.samples[0]!.wallTimeUs
      range.samples.splice(0, range.samples.length, { lsn: end, wallTimeUs })
      range.state = WAITING
      return
    }
    // Nothing good in it: it ends here, with the ranges before it linked.
    range.bytes = 0
    range.state = INDEXED
    this.#linkReady()
  }

  #drop(range: Range): void {
    this.#unlinkedBytes -= range.bytes
    // A worker still reads it.
    if (range.state !== INDEXING) this.#pool.release(range.arena)
    if (range.indexArena >= 0 && range.state === INDEXED) this.#pool.release(range.indexArena)
    range.dropped = true
  }

  #linkReady(): void {
    while (this.#ranges.length > 0 && this.#ranges[0]!.state === INDEXED) {
      const range = this.#ranges.shift()!
      const result = range.result
      if (result !== undefined && range.bytes > 0 && !this.#stopped) {
        this.#hooks.link({
          arena: range.indexArena,
          header: result.header,
          bytes: range.bytes,
          endLsn: (range.begin + range.bytes) as Lsn,
          events: result.events,
          samples: range.samples,
          mtrs: result.mtrs,
          records: result.records,
        })
      }
      this.#unlinkedBytes -= range.bytes
      this.#pool.release(range.arena)
      if (range.indexArena >= 0) this.#pool.release(range.indexArena)
      if (range.stopWith !== undefined && !this.#stopped) {
        this.#stopped = true
        this.#hooks.stopped(range.stopWith)
      }
    }
    this.#wakeRoom()
  }

  #wakeRoom(): void {
    if (this.#unlinkedBytes + this.#reservedBytes <= UNLINKED_BYTES_MAX)
      for (const wake of this.#roomWaiters.splice(0)) wake()
  }
}
