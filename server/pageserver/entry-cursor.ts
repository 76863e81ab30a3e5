/** Reading the entries of one page out of a delta layer's blocks, with every bound checked on the way. */
import type { Lsn } from '../../protocol/ids.ts'
import { FRAGMENT_HEADER_BYTES } from './layer-format.ts'
import type { LayerReader } from './layer-reader.ts'

const EMPTY = Buffer.alloc(0)

/**
 * Walks the entries of one page. `buf[start, end)` are the bytes of the entry that `next` found; they stay valid until
 * the next call, and are not to be changed.
 */
export class EntryCursor {
  readonly #reader: LayerReader
  #handle: number
  #afterLsn = 0
  #upToLsn = 0
  #block = 0
  #at = 0
  #fragmentEnd = 0
  #fragmentEntries = 0
  #more = false
  #done = false
  /** LSN of the last entry of the fragment before, until the next one's first entry is read. */
  #previous = 0
  #base: number

  buf: Buffer = EMPTY
  start = 0
  end = 0
  lsn = 0 as Lsn
  flags = 0

  constructor(reader: LayerReader, handle: number) {
    this.#reader = reader
    this.#handle = handle
    this.#base = reader.footer.lsnStart
  }

  seek(handle: number, afterLsn: number, upToLsn: number, fromInit = false): this {
    this.#handle = handle
    this.#afterLsn = afterLsn
    this.#upToLsn = upToLsn
    this.#fragmentEntries = 0
    this.#done =
      this.#reader.isImage ||
      this.#reader.lastLsn(handle) <= afterLsn ||
      this.#reader.firstLsn(handle) > upToLsn
    if (this.#done) return this
    const { block, offset } = this.#reader.startOf(handle, afterLsn, upToLsn, fromInit)
    this.#block = block
    this.#at = offset
    this.#fragmentEnd = offset
    this.#more = true
    this.lsn = 0 as Lsn
    this.buf = this.#reader.readBlock(block)
    return this
  }

  next(): boolean {
    for (;;) {
      if (this.#done || (this.#fragmentEntries === 0 && !this.#nextFragment())) return false
      this.#readEntry()
      if (this.lsn > this.#upToLsn) {
        this.#done = true
        return false
      }
      if (this.lsn > this.#afterLsn) return true
    }
  }

  #fail(offset: number, reason: string): Error {
    return this.#reader.blockError(this.#block, offset, reason)
  }

  #nextFragment(): boolean {
    if (this.#at !== this.#fragmentEnd) throw this.#fail(this.#at, 'a fragment is longer than its entries')
    if (!this.#more) {
      this.#done = true
      return false
    }
    if (this.#at >= this.buf.length) {
      if (++this.#block >= this.#reader.blockCount) throw this.#beyondLastBlock()
      this.buf = this.#reader.readBlock(this.#block)
      this.#at = 0
    }
    const { buf } = this
    const at = this.#at
    if (at + FRAGMENT_HEADER_BYTES >= buf.length) throw this.#fail(at, 'no room for a fragment')
    const space = buf.readUInt32LE(at)
    const page = buf.readUInt32LE(at + 4)
    if (space !== this.#reader.space(this.#handle) || page !== this.#reader.page(this.#handle))
      throw this.#fail(
        at,
        `a fragment of page ${space}:${page} where the index has ${this.#reader.space(this.#handle)}:${this.#reader.page(this.#handle)}`,
      )
    const entries = buf.readUInt32LE(at + 8)
    const word = buf.readUInt32LE(at + 12)
    const bytes = word & 0x7fffffff
    this.#more = word >= 0x80000000
    if (entries === 0 || entries > bytes / 3 || at + FRAGMENT_HEADER_BYTES + bytes > buf.length)
      throw this.#fail(at, `a fragment of ${entries} entries in ${bytes} bytes`)
    this.#fragmentEntries = entries
    this.#at = at + FRAGMENT_HEADER_BYTES
    this.#fragmentEnd = this.#at + bytes
    this.#previous = this.lsn
    this.lsn = this.#base as Lsn
    return true
  }

  #beyondLastBlock(): Error {
    this.#block--
    return this.#fail(this.#at, 'the page goes on beyond the last block')
  }

  #readEntry(): void {
    const { buf } = this
    let at = this.#at
    const stop = this.#fragmentEnd
    let byte = buf[at++]!
    let step = byte & 0x7f
    for (let scale = 128; byte >= 128; scale *= 128) {
      if (at >= stop || scale > 0x2000000000000) throw this.#fail(at, 'an LSN that does not end')
      byte = buf[at++]!
      step += (byte & 0x7f) * scale
    }
    if (at >= stop) throw this.#fail(at, 'an entry is cut short')
    byte = buf[at++]!
    let word = byte & 0x7f
    for (let shift = 7; byte >= 128; shift += 7) {
      if (at >= stop || shift > 21) throw this.#fail(at, 'a length that does not end')
      byte = buf[at++]!
      word |= (byte & 0x7f) << shift
    }
    const lsn = this.lsn + step
    const end = at + (word >>> 2)
    if (end > stop || end === at) throw this.#fail(at, `an entry of ${word >>> 2} bytes`)
    if (lsn < this.#previous || lsn > this.#reader.footer.lsnEnd || lsn <= this.#base)
      throw this.#fail(at, `an entry at LSN ${lsn} after ${this.#previous}`)
    this.#previous = 0
    this.lsn = lsn as Lsn
    this.flags = word & 3
    this.start = at
    this.end = end
    this.#at = end
    this.#fragmentEntries--
  }
}
