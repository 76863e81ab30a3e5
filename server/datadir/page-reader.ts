/**
 * Reads the pages of one tablespace from its files: in large sequential reads, every checksum verified, torn pages read
 * again, page_compressed pages turned into what the buffer pool would hold.
 *
 * On a live server three things look alike: a page that is being written this very moment (a later read sees it whole),
 * a page that no longer or not yet means anything (free pages, the doublewrite area, what lies above FSP_FREE_LIMIT),
 * and real damage. The first is told by reading again, the second by the extent descriptors, and what remains is an
 * error that names file and page.
 */
import type { FileHandle } from 'node:fs/promises'
import { descriptorPageOf, doublewriteAreas, ExtentMap, type PageRange } from '../../parser/extent-map.ts'
import { decompressPage, isPageCompressed } from '../../parser/page-compression.ts'
import {
  FIL_PAGE_OFFSET,
  isZeroPage,
  pageLsn,
  read4,
  TRX_SYS_PAGE_NO,
  verifyPage,
} from '../../parser/page-format.ts'
import type { Lsn } from '../../protocol/ids.ts'
import { DamagedPageError, explainSystemError, isMissing } from './errors.ts'
import type { SpaceFile, SpaceFilePart } from './scan.ts'
import { openServerFile } from './server-files.ts'

export const READ_BYTES = 1 << 20
const TORN_ATTEMPTS = 40
const TORN_RETRY_MS_MIN = 2
const TORN_RETRY_MS_MAX = 50

export interface PageImage {
  readonly page: number
  /** As the buffer pool would have it: physicalSize bytes, never page_compressed. Owned by whoever receives it. */
  readonly bytes: Uint8Array
  readonly lsn: Lsn
}

export interface PageBatch {
  readonly images: readonly PageImage[]
  /** Pages looked at to yield this batch, blank and unwanted ones included. */
  readonly pagesRead: number
  readonly bytesRead: number
}

export interface ReadPagesOptions {
  /** Only pages with a FIL_PAGE_LSN beyond this one. */
  readonly afterLsn?: Lsn
  /** Told about the others. */
  readonly onUnchanged?: (page: number, lsn: Lsn) => void
  /** The server is running: pages may be torn, the file may vanish. */
  readonly live?: boolean
  readonly signal?: AbortSignal
  /** A sound copy of a page that is damaged in its file: see doublewrite.ts. */
  readonly rescue?: (page: number) => Uint8Array | undefined
  /** Told about pages that are damaged but mean nothing. */
  readonly onSkip?: (page: number, reason: string) => void
}

const pause = (ms: number): Promise<void> => new Promise(done => setTimeout(done, ms))

/** Opens the files of one tablespace for reading pages. Close it when done. */
export class SpaceReader {
  readonly space: SpaceFile
  readonly #parts: { readonly part: SpaceFilePart; readonly file: FileHandle }[] = []

  private constructor(space: SpaceFile) {
    this.space = space
  }

  /** Undefined when a file has vanished meanwhile. */
  static async open(space: SpaceFile): Promise<SpaceReader | undefined> {
    const reader = new SpaceReader(space)
    for (const part of space.parts) {
      try {
        reader.#parts.push({ part, file: await openServerFile(space.files, part.path) })
      } catch (error) {
        await reader.close()
        if (isMissing(error)) return undefined
        throw explainSystemError(part.path, error)
      }
    }
    return reader
  }

  async close(): Promise<void> {
    for (const { file } of this.#parts.splice(0)) await file.close()
  }

  /** Reads up to `pages` pages from `firstPage` on, not beyond the end of the file that holds the first one. */
  async #readRaw(firstPage: number, pages: number): Promise<Uint8Array> {
    const size = this.space.format.physicalSize
    const found = this.#parts.findLast(p => p.part.firstPage <= firstPage)
    if (!found) return new Uint8Array(0)
    const last = found === this.#parts.at(-1)
    const within = last ? pages : Math.min(pages, found.part.firstPage + found.part.pages - firstPage)
    const bytes = within * size
    const buffer = Buffer.allocUnsafeSlow(bytes)
    const start = (firstPage - found.part.firstPage) * size
    let have = 0
    while (have < bytes) {
      const { bytesRead } = await found.file.read(buffer, have, bytes - have, start + have)
      if (bytesRead === 0) break
      have += bytesRead
    }
    return buffer.subarray(0, have - (have % size))
  }

  /** One page as it stands in the file, unchecked; undefined beyond the end. */
  async readRawPage(page: number): Promise<Uint8Array | undefined> {
    const bytes = await this.#readRaw(page, 1)
    return bytes.length === this.space.format.physicalSize ? bytes : undefined
  }

  /** Pages as they stand in the files, unchecked; fewer where the file ends. */
  async readRawRange(firstPage: number, pages: number): Promise<Uint8Array> {
    const pieces: Uint8Array[] = []
    for (let at = firstPage; at < firstPage + pages; ) {
      const piece = await this.#readRaw(at, firstPage + pages - at)
      if (piece.length === 0) break
      pieces.push(piece)
      at += piece.length / this.space.format.physicalSize
    }
    return pieces.length === 1 ? pieces[0]! : Buffer.concat(pieces)
  }

  /** Why the page as read is not right; undefined if it is. */
  #fault(bytes: Uint8Array, page: number): string | undefined {
    const check = verifyPage(bytes, this.space.format)
    if (!check.ok) return check.reason
    if (check.kind === 'zero page') return undefined
    const number = read4(bytes, FIL_PAGE_OFFSET)
    return number === page ? undefined : `its header says that it is page ${number}`
  }

  /** The page in its uncompressed form, or the reason why there is none. */
  #decode(bytes: Uint8Array, page: number): Uint8Array | string {
    const fault = this.#fault(bytes, page)
    if (fault !== undefined) return fault
    if (!isPageCompressed(bytes, this.space.format)) return bytes
    try {
      return decompressPage(bytes, this.space.format, this.space.name)
    } catch (error) {
      if (error instanceof Error && error.name === 'CorruptPageError') return error.message
      throw error
    }
  }

  /**
   * Whether InnoDB gives no meaning to the page's bytes, by the descriptors as they are in the file. The file may lag
   * behind the server's memory, but not behind its last checkpoint; and what is freed after that is freed for the log.
   */
  async isMeaningless(page: number): Promise<boolean> {
    const { format, space } = this.space
    const page0 = await this.#good(0)
    const descriptorNo = descriptorPageOf(page, format)
    const descriptor = descriptorNo === 0 ? page0 : await this.#good(descriptorNo)
    const map = new ExtentMap(format, no => (no === 0 ? page0 : no === descriptorNo ? descriptor : undefined))
    if (page >= map.freeLimit || page >= map.size || map.isFree(page)) return true
    if (space !== 0) return false
    const areas = await this.doublewriteAreas()
    return areas.some(area => page >= area.start && page < area.end)
  }

  async doublewriteAreas(): Promise<PageRange[]> {
    if (this.space.space !== 0) return []
    const trxSys = await this.#good(TRX_SYS_PAGE_NO)
    return trxSys ? doublewriteAreas(trxSys, this.space.format) : []
  }

  /** A page, read until it is whole; undefined when it does not become so. */
  async #good(page: number): Promise<Uint8Array | undefined> {
    for (let attempt = 0; attempt < TORN_ATTEMPTS; attempt++) {
      if (attempt > 0) await pause(TORN_RETRY_MS_MIN)
      const bytes = await this.readRawPage(page)
      if (!bytes) return undefined
      const decoded = this.#decode(bytes, page)
      if (typeof decoded !== 'string') return decoded
    }
    return undefined
  }

  /** A page that failed at first sight: whole after all, or undefined when it is one that does not matter. */
  async #retry(
    page: number,
    firstReason: string,
    options: ReadPagesOptions,
  ): Promise<Uint8Array | undefined> {
    let reason = firstReason
    let delay = TORN_RETRY_MS_MIN
    for (let attempt = 0; options.live && attempt < TORN_ATTEMPTS; attempt++) {
      // Most bad pages are free ones, which no waiting mends.
      if (attempt === 3 && (await this.isMeaningless(page))) break
      await pause(delay)
      delay = Math.min(delay * 2, TORN_RETRY_MS_MAX)
      options.signal?.throwIfAborted()
      const bytes = await this.readRawPage(page)
      if (!bytes) return undefined
      const decoded = this.#decode(bytes, page)
      if (typeof decoded !== 'string') return decoded
      reason = decoded
    }
    if (await this.isMeaningless(page)) {
      options.onSkip?.(page, reason)
      return undefined
    }
    const copy = options.rescue?.(page)
    const rescued = copy && this.#decode(copy, page)
    if (rescued && typeof rescued !== 'string') return rescued
    const part = this.space.parts.findLast(p => p.firstPage <= page) ?? this.space.parts[0]!
    throw new DamagedPageError(part.path, this.space.space, page, reason)
  }

  /**
   * All pages that hold something, in order, about 1 MiB of file at a time; the next read is under way while a batch is
   * in the caller's hands. Blank pages are left out: a page that was never written is zero wherever it is asked for.
   * @throws DamagedPageError
   */
  async *pages(options: ReadPagesOptions = {}): AsyncGenerator<PageBatch> {
    const { format } = this.space
    const perRead = Math.max(1, Math.floor(READ_BYTES / format.physicalSize))
    const doublewrite = await this.doublewriteAreas()
    let at = 0
    let ahead: Promise<Uint8Array> | undefined = this.#readRaw(at, perRead)
    // A failure is seen when the promise is awaited; until then it must not count as unhandled.
    ahead.catch(() => {})
    while (ahead) {
      const bytes: Uint8Array = await ahead
      ahead = undefined
      options.signal?.throwIfAborted()
      const count = bytes.length / format.physicalSize
      if (count === 0) return
      ahead = this.#readRaw(at + count, perRead)
      ahead.catch(() => {})
      const images: PageImage[] = []
      for (let i = 0; i < count; i++) {
        const page = at + i
        if (doublewrite.some(area => page >= area.start && page < area.end)) continue
        const raw = bytes.subarray(i * format.physicalSize, (i + 1) * format.physicalSize)
        let image: Uint8Array | undefined
        const decoded = this.#decode(raw, page)
        if (typeof decoded === 'string') {
          image = await this.#retry(page, decoded, options)
          if (!image) continue
        } else image = decoded
        const lsn = pageLsn(image)
        if (lsn === 0 && isZeroPage(image, format.physicalSize)) continue
        // IMPORT TABLESPACE writes pages with an LSN of 0, and they may be younger than anything.
        if (options.afterLsn !== undefined && lsn !== 0 && lsn <= options.afterLsn) {
          options.onUnchanged?.(page, lsn)
          continue
        }
        images.push({ page, bytes: image, lsn })
      }
      at += count
      yield { images, pagesRead: count, bytesRead: bytes.length }
    }
  }
}
