/**
 * The cache of finished pages: slots in one SharedArrayBuffer. Workers write pages into slots, sockets send them from
 * there; the main thread alone decides what lies where.
 *
 * A slot holds one *version* of a page, valid for the LSNs in [from, to). A version that was the newest when it was made is
 * open (`to` = infinity) until redo changes the page; then it is closed at the LSN of that change and goes on to serve
 * readers of the past. A version that was made for a past LSN is known to be valid from its last change up to that
 * LSN, and no further. So nothing is ever removed because of a write: what nobody reads ages out.
 *
 * While a worker is still writing it, a version is *filling*: it is found like any other, so that two readers never make
 * the same page, and it may be closed like any other, so that a page that changed meanwhile is not taken for the newest.
 *
 * Memory is cut into blocks of 64 KiB, each given to one slot size (4 to 64 KiB); smaller physical pages of compressed tables
 * take a slot of 4 KiB. Replacement is by second chance (clock) within a size; a size that has less than an eighth of the
 * memory takes a block from the one that has most. A slot is *pinned* while it is filling and while a socket may still read
 * it; pinned slots stay.
 */
import type { Lsn } from '../../protocol/ids.ts'
import { PAIR_ABSENT, PairTable, SharedRegion } from '../shared/shared-memory.ts'

const BLOCK_BYTES = 65536
const SLOT_BYTES_MIN = 4096
const SLOTS_PER_BLOCK_MAX = BLOCK_BYTES / SLOT_BYTES_MIN
const CLASSES = 5
const NO_SLOT = -1

const FREE = 0
const FILLING = 1
const READY = 2

/** What a worker found out about the page that it has put into a slot. */
export interface PageFill {
  /** First LSN at which these bytes are the page: that of its newest change. */
  readonly from: Lsn
  readonly pageLsn: Lsn
  /** CRC-32C of the bytes. */
  readonly crc: number
  /** The page is free in its tablespace; its bytes are what was last written. */
  readonly freed: boolean
}

/** Slot class of a physical page size: 0 for up to 4 KiB … 4 for 64 KiB. */
function classOf(pageBytes: number): number {
  let slotClass = 0
  while (SLOT_BYTES_MIN << slotClass < pageBytes) slotClass++
  return slotClass
}

export class PageCache {
  readonly region: SharedRegion
  readonly #blocks: number
  readonly #freeBlocks: number[] = []
  readonly #blockClass: Int8Array
  readonly #classBlocks: number[][] = Array.from({ length: CLASSES }, () => [])
  readonly #classFree: number[][] = Array.from({ length: CLASSES }, () => [])
  /** Clock hands: a block's place in `classBlocks`, and a slot in it. */
  readonly #hand = Array.from({ length: CLASSES }, () => ({ block: 0, slot: 0 }))

  /** (cache space, page) → the first slot of its chain of versions. */
  readonly #heads = new PairTable(4096)
  readonly #next: Int32Array
  readonly #space: Uint32Array
  readonly #page: Uint32Array
  readonly #from: Float64Array
  readonly #to: Float64Array
  readonly #pageLsn: Float64Array
  readonly #crc: Uint32Array
  readonly #bytes: Int32Array
  readonly #state: Uint8Array
  readonly #freed: Uint8Array
  readonly #recent: Uint8Array
  readonly #pins: Int32Array
  readonly #views: (Buffer | undefined)[]
  readonly #filling = new Map<number, { promise: Promise<void>; resolve: () => void }>()

  evictions = 0

  constructor(bytes: number) {
    this.#blocks = Math.max(4, Math.floor(bytes / BLOCK_BYTES))
    this.region = SharedRegion.allocate(this.#blocks * BLOCK_BYTES)
    for (let i = this.#blocks - 1; i >= 0; i--) this.#freeBlocks.push(i)
    this.#blockClass = new Int8Array(this.#blocks).fill(-1)
    const slots = this.#blocks * SLOTS_PER_BLOCK_MAX
    this.#next = new Int32Array(slots)
    this.#space = new Uint32Array(slots)
    this.#page = new Uint32Array(slots)
    this.#from = new Float64Array(slots)
    this.#to = new Float64Array(slots)
    this.#pageLsn = new Float64Array(slots)
    this.#crc = new Uint32Array(slots)
    this.#bytes = new Int32Array(slots)
    this.#state = new Uint8Array(slots)
    this.#freed = new Uint8Array(slots)
    this.#recent = new Uint8Array(slots)
    this.#pins = new Int32Array(slots)
    this.#views = new Array(slots)
  }

  get byteLength(): number {
    return this.#blocks * BLOCK_BYTES
  }

  /** Number of pages with at least one version. */
  get pages(): number {
    return this.#heads.size
  }

  /**
   * The slot of the version of the page that is valid at `lsn`, ready or filling, or -1.
   * @param space the cache's own number for a tablespace of a timeline
   */
  find(space: number, page: number, lsn: Lsn): number {
    const head = this.#heads.get(space, page)
    if (head === PAIR_ABSENT) return NO_SLOT
    for (let slot = head; slot !== NO_SLOT; slot = this.#next[slot]!)
      if (lsn < this.#to[slot]! && lsn >= this.#from[slot]!) {
        this.#recent[slot] = 1
        return slot
      }
    return NO_SLOT
  }

  isReady(slot: number): boolean {
    return this.#state[slot] === READY
  }

  /** Resolves when the slot is no longer filling. Whoever waits asks `find` again afterwards: filling may have failed. */
  filled(slot: number): Promise<void> {
    return this.#filling.get(slot)?.promise ?? Promise.resolve()
  }

  /** The bytes of a ready slot. Valid while it is pinned. */
  view(slot: number): Buffer {
    const known = this.#views[slot]
    const bytes = this.#bytes[slot]!
    if (known !== undefined && known.length === bytes) return known
    const view = Buffer.from(this.region.buffer, this.offset(slot), bytes)
    this.#views[slot] = view
    return view
  }

  /** Byte offset of the slot in the cache's memory. */
  offset(slot: number): number {
    const block = Math.floor(slot / SLOTS_PER_BLOCK_MAX)
    return block * BLOCK_BYTES + (slot % SLOTS_PER_BLOCK_MAX) * (SLOT_BYTES_MIN << this.#blockClass[block]!)
  }

  crc(slot: number): number {
    return this.#crc[slot]!
  }

  pageLsn(slot: number): Lsn {
    return this.#pageLsn[slot]! as Lsn
  }

  freed(slot: number): boolean {
    return this.#freed[slot] === 1
  }

  pin(slot: number): void {
    this.#pins[slot] = this.#pins[slot]! + 1
  }

  unpin(slot: number): void {
    this.#pins[slot] = this.#pins[slot]! - 1
  }

  /**
   * Takes a slot for the version valid at `lsn` and marks it filling; it is pinned until `fill` or `fail`.
   * @param open the version is the newest: it stays valid until `invalidate`
   * @returns -1 when every slot of that size is pinned
   */
  begin(space: number, page: number, lsn: Lsn, open: boolean, pageBytes: number): number {
    const slot = this.#take(classOf(pageBytes))
    if (slot === NO_SLOT) return NO_SLOT
    this.#state[slot] = FILLING
    this.#space[slot] = space
    this.#page[slot] = page
    this.#from[slot] = lsn
    this.#to[slot] = open ? Number.POSITIVE_INFINITY : lsn + 1
    this.#bytes[slot] = pageBytes
    this.#freed[slot] = 0
    this.#recent[slot] = 1
    this.#pins[slot] = 1
    const head = this.#heads.get(space, page)
    if (head === PAIR_ABSENT || open) {
      this.#next[slot] = head === PAIR_ABSENT ? NO_SLOT : head
      this.#heads.set(space, page, slot)
    } else {
      // Behind the head, so that readers of the newest version still find it first.
      this.#next[slot] = this.#next[head]!
      this.#next[head] = slot
    }
    let resolve: () => void = () => {}
    const promise = new Promise<void>(done => {
      resolve = done
    })
    this.#filling.set(slot, { promise, resolve })
    return slot
  }

  /** The worker is done: the version is ready, valid from its newest change on. The pin of `begin` becomes the caller's. */
  fill(slot: number, what: PageFill): void {
    this.#state[slot] = READY
    this.#from[slot] = Math.min(what.from, this.#from[slot]!)
    this.#pageLsn[slot] = what.pageLsn
    this.#crc[slot] = what.crc
    this.#freed[slot] = what.freed ? 1 : 0
    const waiting = this.#filling.get(slot)
    this.#filling.delete(slot)
    waiting?.resolve()
  }

  /** Nothing came of it: the slot is free again, and those who wait for it will find nothing. */
  fail(slot: number): void {
    const waiting = this.#filling.get(slot)
    this.#filling.delete(slot)
    this.#pins[slot] = 0
    this.#remove(slot)
    this.#classFree[this.#blockClass[Math.floor(slot / SLOTS_PER_BLOCK_MAX)]!]!.push(slot)
    waiting?.resolve()
  }

  /** The page changes at `lsn`: its open version, if there is one, ends there. */
  invalidate(space: number, page: number, lsn: Lsn): void {
    const head = this.#heads.get(space, page)
    if (head === PAIR_ABSENT) return
    for (let slot = head; slot !== NO_SLOT; slot = this.#next[slot]!)
      if (this.#to[slot]! > lsn) this.#to[slot] = lsn
  }

  /** All open versions of these tablespaces' pages from `firstPage` on end at `lsn`: they were dropped, truncated, replaced. */
  invalidateSpaces(spaces: ReadonlySet<number>, firstPage: number, lsn: Lsn): void {
    for (let slot = 0; slot < this.#state.length; slot++)
      if (
        this.#state[slot] !== FREE &&
        spaces.has(this.#space[slot]!) &&
        this.#page[slot]! >= firstPage &&
        this.#to[slot]! > lsn
      )
        this.#to[slot] = lsn
  }

  /** A free slot of the class, evicting if need be, or -1. */
  #take(slotClass: number): number {
    const free = this.#classFree[slotClass]!
    const ready = free.pop()
    if (ready !== undefined) return ready
    const block = this.#freeBlocks.pop()
    if (block !== undefined) {
      this.#giveBlock(block, slotClass)
      return free.pop()!
    }
    if (this.#classBlocks[slotClass]!.length * 8 < this.#blocks && this.#stealBlock(slotClass))
      return free.pop()!
    return this.#evictOne(slotClass)
  }

  #giveBlock(block: number, slotClass: number): void {
    this.#blockClass[block] = slotClass
    this.#classBlocks[slotClass]!.push(block)
    const first = block * SLOTS_PER_BLOCK_MAX
    for (let i = 0; i < SLOTS_PER_BLOCK_MAX; i++) this.#views[first + i] = undefined
    for (let i = (SLOTS_PER_BLOCK_MAX >> slotClass) - 1; i >= 0; i--)
      this.#classFree[slotClass]!.push(first + i)
  }

  /** Takes a block without pinned slots from the class that has most blocks. */
  #stealBlock(forClass: number): boolean {
    let richest = -1
    for (let c = 0; c < CLASSES; c++)
      if (
        c !== forClass &&
        (richest < 0 || this.#classBlocks[c]!.length > this.#classBlocks[richest]!.length)
      )
        richest = c
    const blocks = this.#classBlocks[richest]!
    if (blocks.length <= this.#classBlocks[forClass]!.length) return false
    const perBlock = SLOTS_PER_BLOCK_MAX >> richest
    const hand = this.#hand[richest]!
    for (let tries = 0; tries < Math.min(blocks.length, 64); tries++) {
      const at = (hand.block + tries) % blocks.length
      const block = blocks[at]!
      const first = block * SLOTS_PER_BLOCK_MAX
      let pinned = false
      for (let i = 0; i < perBlock; i++) if (this.#pins[first + i]! > 0) pinned = true
      if (pinned) continue
      for (let i = 0; i < perBlock; i++)
        if (this.#state[first + i] !== FREE) {
          this.#remove(first + i)
          this.evictions++
        }
      blocks.splice(at, 1)
      this.#classFree[richest] = this.#classFree[richest]!.filter(
        slot => Math.floor(slot / SLOTS_PER_BLOCK_MAX) !== block,
      )
      hand.block = 0
      hand.slot = 0
      this.#giveBlock(block, forClass)
      return true
    }
    return false
  }

  #evictOne(slotClass: number): number {
    const blocks = this.#classBlocks[slotClass]!
    const perBlock = SLOTS_PER_BLOCK_MAX >> slotClass
    const hand = this.#hand[slotClass]!
    for (let steps = blocks.length * perBlock * 2; steps > 0; steps--) {
      if (hand.slot >= perBlock) {
        hand.slot = 0
        hand.block++
      }
      if (hand.block >= blocks.length) hand.block = 0
      const slot = blocks[hand.block]! * SLOTS_PER_BLOCK_MAX + hand.slot++
      if (this.#pins[slot]! > 0 || this.#state[slot] !== READY) continue
      if (this.#recent[slot] === 1) {
        this.#recent[slot] = 0
        continue
      }
      this.#remove(slot)
      this.evictions++
      return slot
    }
    return NO_SLOT
  }

  /** Takes the slot out of its page's chain. */
  #remove(slot: number): void {
    const space = this.#space[slot]!
    const page = this.#page[slot]!
    this.#state[slot] = FREE
    let at = this.#heads.get(space, page)
    if (at === slot) {
      const next = this.#next[slot]!
      if (next === NO_SLOT) this.#heads.delete(space, page)
      else this.#heads.set(space, page, next)
      return
    }
    while (at !== PAIR_ABSENT && at !== NO_SLOT) {
      if (this.#next[at] === slot) {
        this.#next[at] = this.#next[slot]!
        return
      }
      at = this.#next[at]!
    }
    throw new Error(`cache slot ${slot} is not in the chain of page ${space}:${page}`)
  }
}
