/**
 * Copies tablespaces to the page server: one session of ImportBegin … ImportEnd. The server may be running; redo from
 * the import's start LSN on makes whole what is copied at different moments (docs/architecture.md).
 */
import { FIL_PAGE_SPACE_ID, read4 } from '../../parser/page-format.ts'
import type { Connection } from '../../protocol/connection.ts'
import { crc32c } from '../../protocol/crc32c.ts'
import { LSN_ZERO, type Lsn, type TimelineId } from '../../protocol/ids.ts'
import { type ImportKind, MessageType } from '../../protocol/messages.ts'
import { type PageImage, SpaceReader } from '../datadir/page-reader.ts'
import type { SpaceFile } from '../datadir/scan.ts'

/** Pages sent and not yet acknowledged. */
const IN_FLIGHT_BYTES_MAX = 16 << 20
const FRAME_BYTES = 1 << 20
/** Making an import durable may take the page server as long as writing all of it once more. */
const END_DEADLINE_MS = 3_600_000
const PAGES_DEADLINE_MS = 300_000

export interface PageImportOptions {
  readonly pageServer: Connection
  readonly timeline: TimelineId
  readonly kind: ImportKind
  /** The images are good as of this LSN: redo from here on completes them. */
  readonly startLsn: Lsn
  /** Only pages that changed after this LSN. */
  readonly afterLsn?: Lsn
  /** Told about the others. */
  readonly onUnchanged?: (space: number, page: number, lsn: Lsn) => void
  readonly live: boolean
  readonly signal?: AbortSignal | undefined
  /** Awaited before each read: lets the redo go first. */
  readonly yieldToRedo?: () => Promise<void>
  readonly onProgress?: (bytes: number) => void
  /** A sound copy of a page that is damaged in its file. */
  readonly rescue?: (space: SpaceFile, page: number) => Uint8Array | undefined
}

export class PageImport {
  readonly #options: PageImportOptions
  readonly #session: number
  readonly #inFlight = new Set<Promise<unknown>>()
  #inFlightBytes = 0
  #failure: unknown
  /** Greatest FIL_PAGE_LSN among the copied pages: the copy is whole from there on at the earliest. */
  maxPageLsn: Lsn = LSN_ZERO
  /** The page that has it, for messages. */
  newestPage = ''
  pages = 0
  bytesRead = 0
  skipped = 0

  private constructor(options: PageImportOptions, session: number) {
    this.#options = options
    this.#session = session
  }

  static async begin(options: PageImportOptions): Promise<PageImport> {
    const { message } = await options.pageServer.request({
      type: MessageType.ImportBegin,
      timeline: options.timeline,
      startLsn: options.startLsn,
      kind: options.kind,
    })
    return new PageImport(options, message.session)
  }

  /** Copies one tablespace. False if it is no longer where it was seen: renamed, deleted, or another one has its name. */
  async copy(space: SpaceFile): Promise<boolean> {
    const reader = await SpaceReader.open(space)
    if (!reader) return false
    const { signal, afterLsn, live, rescue, onUnchanged } = this.#options
    try {
      // From here on the file is the same, whatever it is called.
      const first = live ? await reader.readRawPage(0) : undefined
      if (live && (!first || read4(first, FIL_PAGE_SPACE_ID) !== space.space)) return false
      await this.announce(space)
      let batch: PageImage[] = []
      let batchBytes = 0
      let newest: number | undefined
      for await (const { images, bytesRead } of reader.pages({
        live,
        ...(afterLsn === undefined ? {} : { afterLsn }),
        ...(onUnchanged === undefined
          ? {}
          : { onUnchanged: (page: number, lsn: Lsn) => onUnchanged(space.space, page, lsn) }),
        ...(signal === undefined ? {} : { signal }),
        ...(rescue === undefined ? {} : { rescue: page => rescue(space, page) }),
        onSkip: () => {
          this.skipped++
        },
      })) {
        for (const image of images) {
          if (batchBytes + image.bytes.length > FRAME_BYTES) {
            await this.#send(space, batch, batchBytes)
            batch = []
            batchBytes = 0
          }
          batch.push(image)
          batchBytes += image.bytes.length
          if (image.lsn > this.maxPageLsn) {
            this.maxPageLsn = image.lsn
            newest = image.page
          }
        }
        this.pages += images.length
        this.bytesRead += bytesRead
        this.#options.onProgress?.(this.bytesRead)
        await this.#options.yieldToRedo?.()
      }
      await this.#send(space, batch, batchBytes)
      if (newest !== undefined) this.newestPage = `page ${newest} of ${space.name}`
    } finally {
      await reader.close()
    }
    return true
  }

  /** Says that a tablespace exists. */
  async announce(space: SpaceFile): Promise<void> {
    await this.#options.pageServer.request({
      type: MessageType.ImportSpace,
      session: this.#session,
      space: space.space,
      flags: space.format.flags,
      pages: space.pages,
      external: space.external,
      name: space.name,
    })
  }

  async #send(space: SpaceFile, images: readonly PageImage[], bytes: number): Promise<void> {
    if (images.length === 0) return
    while (this.#inFlightBytes > 0 && this.#inFlightBytes + bytes > IN_FLIGHT_BYTES_MAX && !this.#failure)
      await Promise.race(this.#inFlight)
    if (this.#failure) throw this.#failure
    this.#options.signal?.throwIfAborted()
    const pages = new Uint32Array(images.length * 2)
    images.forEach((image, i) => {
      pages[i * 2] = image.page
      pages[i * 2 + 1] = crc32c(image.bytes, 0, image.bytes.length)
    })
    this.#inFlightBytes += bytes
    const sent: Promise<void> = this.#options.pageServer
      .request(
        {
          type: MessageType.ImportPages,
          session: this.#session,
          space: space.space,
          pageBytes: space.format.physicalSize,
          pages,
        },
        { bulk: images.map(image => image.bytes), deadlineMs: PAGES_DEADLINE_MS },
      )
      .then(
        () => {},
        error => {
          this.#failure ??= error
        },
      )
      .finally(() => {
        this.#inFlightBytes -= bytes
        this.#inFlight.delete(sent)
      })
    this.#inFlight.add(sent)
  }

  /** Waits until the page server has taken all pages sent. */
  async drained(): Promise<void> {
    await Promise.all(this.#inFlight)
    if (this.#failure) throw this.#failure
  }

  /** @param spaces ids of the tablespaces that exist as of the start LSN */
  async end(readableFromLsn: Lsn, spaces: readonly number[]): Promise<void> {
    await this.drained()
    await this.#options.pageServer.request(
      {
        type: MessageType.ImportEnd,
        session: this.#session,
        readableFromLsn,
        spaces: Uint32Array.from(spaces),
      },
      { deadlineMs: END_DEADLINE_MS },
    )
  }
}
