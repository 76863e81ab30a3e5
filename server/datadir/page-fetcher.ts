/** Reads pages of a timeline in large batches, several on their way at a time. */
import type { Connection } from '../../protocol/connection.ts'
import type { Lsn, TimelineId } from '../../protocol/ids.ts'
import { type GetPages, MessageType, PageStatus } from '../../protocol/messages.ts'
import { corruptError, PalimpsestError, refreshError } from '../shared/errors.ts'

export interface FetchedPage {
  readonly space: number
  readonly page: number
  /** Physical page size in bytes; undefined where the tablespace is shorter. Belongs to the receiver. */
  readonly bytes: Uint8Array | undefined
  readonly lsn: Lsn
  /** Freed at that LSN: what it holds means nothing. */
  readonly freed: boolean
}

/** Bytes of pages asked for in one request, and requests on their way. */
const BATCH_BYTES = 4 << 20
const BATCHES_IN_FLIGHT = 4
const DEADLINE_MS = 300_000

export interface PageSource {
  readonly pageServer: Connection
  readonly timeline: TimelineId
  readonly lsn: Lsn
}

/**
 * Fetches the pages of one tablespace with the numbers that `wanted` gives, in that order, batch after batch.
 * @throws PalimpsestError when a page cannot be had; one beyond the end of its tablespace is no error
 */
export async function* fetchPages(
  source: PageSource,
  space: number,
  pageBytes: number,
  wanted: Iterable<number>,
): AsyncGenerator<FetchedPage[]> {
  const perBatch = Math.max(1, Math.floor(BATCH_BYTES / pageBytes))
  const inFlight: Promise<FetchedPage[]>[] = []
  let batch: number[] = []
  for (const page of wanted) {
    batch.push(page)
    if (batch.length < perBatch) continue
    inFlight.push(begin(source, space, batch))
    batch = []
    if (inFlight.length >= BATCHES_IN_FLIGHT) yield await inFlight.shift()!
  }
  if (batch.length > 0) inFlight.push(begin(source, space, batch))
  for (const promise of inFlight) yield await promise
}

function begin(source: PageSource, space: number, pages: readonly number[]): Promise<FetchedPage[]> {
  const promise = fetchBatch(source, space, pages)
  // Seen when it is awaited; a failure before that must not end the process.
  promise.catch(() => {})
  return promise
}

/** @throws PalimpsestError */
export async function fetchBatch(
  source: PageSource,
  space: number,
  pages: readonly number[],
): Promise<FetchedPage[]> {
  const wanted = new Uint32Array(pages.length * 2)
  pages.forEach((page, i) => {
    wanted[i * 2] = space
    wanted[i * 2 + 1] = page
  })
  const request: GetPages = {
    type: MessageType.GetPages,
    timeline: source.timeline,
    lsn: source.lsn,
    notModifiedSinceLsn: source.lsn,
    flags: 0,
    pages: wanted,
  }
  const replies = await source.pageServer.requestAll(request, { deadlineMs: DEADLINE_MS })
  const result: FetchedPage[] = []
  for (const { message, bulk } of replies) {
    const { sections } = message
    let at = 0
    for (let i = 0; i < sections.count; i++) {
      const status = sections.status(i)
      const page = sections.page(i)
      if (status !== PageStatus.OK && status !== PageStatus.BEYOND_END)
        throw statusError(status, space, page, source.lsn)
      const bytes = sections.bytes(i)
      result.push({
        space,
        page,
        bytes: status === PageStatus.OK ? bulk.subarray(at, at + bytes) : undefined,
        lsn: sections.pageLsn(i),
        freed: sections.freed(i),
      })
      at += bytes
    }
  }
  if (result.length !== pages.length)
    throw new PalimpsestError('internal', `asked for ${pages.length} pages, was given ${result.length}`)
  return result
}

function statusError(status: PageStatus, space: number, page: number, lsn: Lsn): PalimpsestError {
  const which = `page ${page} of tablespace ${space} at LSN ${lsn}`
  switch (status) {
    case PageStatus.MISSING_SPACE:
      return refreshError(`${which}: no tablespace of that id existed then`, lsn)
    case PageStatus.UNKNOWN:
      return corruptError(`${which}: its content is not known; attach again, so that it is imported`, lsn)
    default:
      return corruptError(`${which} is damaged in the page server's store; its log says where`, lsn)
  }
}
