/**
 * Is this still the datadir that the timeline was made of, and did its history go on from there?
 *
 * LSNs tell little: those of two servers are alike, and a server that was restored from an older backup passes the LSN up
 * to which the timeline knows it a second time, with another past. To go on then would mix two databases page by page.
 * The log itself says so only while it still reaches back. Otherwise:
 *
 *   1. Aria's control file has a UUID, made when the datadir was.
 *   2. A page of a data file whose FIL_PAGE_LSN is L has been changed by the mini-transaction that ends at L, so the
 *      timeline must have a version of this page with this very LSN. Looked at when the agent begins, in the system and
 *      undo tablespaces, whose pages are always among the newest.
 *   3. In a repair, a page that did not change beyond the last LSN read, P, must be the one that the timeline has at P.
 *      (The file has everything up to a checkpoint beyond P.) But a page that was freed after P need not have been written
 *      before (`buf_pool_t::release_freed_page`, buf0flu.cc): an older version in the file is judged by 2.
 *      Looked at before anything is written, and once more in the end.
 *
 * 2 and 3 look at some pages only: the newest, where histories that parted differ most, and in 3 also a random choice.
 */
import { join } from 'node:path'
import { FIL_PAGE_OFFSET, FIL_PAGE_SPACE_ID, pageLsn, read4, verifyPage } from '../../parser/page-format.ts'
import type { Connection } from '../../protocol/connection.ts'
import { LSN_MAX, type Lsn } from '../../protocol/ids.ts'
import { MessageType, type TimelineStatus } from '../../protocol/messages.ts'
import { explainSystemError, isMissing } from '../datadir/errors.ts'
import { fetchBatch, type PageSource } from '../datadir/page-fetcher.ts'
import { SpaceReader } from '../datadir/page-reader.ts'
import type { DatadirScan, SpaceFile } from '../datadir/scan.ts'
import { openServerFile, serverFilesOf } from '../datadir/server-files.ts'
import { invalidError, PalimpsestError } from '../shared/errors.ts'

const ARIA_CONTROL = 'aria_log_control'
const ARIA_MAGIC = Buffer.from([0xfe, 0xfe, 0x0c])
const ARIA_UUID_AT = 4
const ARIA_UUID_BYTES = 16

/** Pages of a file that are looked at, from its beginning, and of those of all files that are compared. */
const LOOK_PAGES = 256
const COMPARED_PAGES = 32
const NEWEST_PAGES = 512
const RANDOM_PAGES = 1024
/** The first look at a repair. */
const PIECE_PAGES = 8
const PIECES_MAX = 512

export interface PageAt {
  readonly space: number
  readonly page: number
  readonly lsn: Lsn
}

/** A timeline, as of the last LSN that was read from the server's log before a gap. */
export interface HistoryAt {
  readonly pageServer: Connection
  /** As it is now. */
  readonly status: TimelineStatus
  readonly lsn: Lsn
}

/** Whether the timeline can be read at an LSN. */
export function isReadableAt({ summary, gaps }: TimelineStatus, lsn: Lsn): boolean {
  const { readableFromLsn, ingestedLsn } = summary
  return (
    lsn >= readableFromLsn && lsn <= ingestedLsn && !gaps.some(gap => lsn > gap.fromLsn && lsn < gap.toLsn)
  )
}

function ariaUuid(control: Uint8Array): string | undefined {
  const bytes = Buffer.from(control.buffer, control.byteOffset, control.length)
  if (bytes.length < ARIA_UUID_AT + ARIA_UUID_BYTES || ARIA_MAGIC.compare(bytes, 0, ARIA_MAGIC.length) !== 0)
    return undefined
  return bytes.toString('hex', ARIA_UUID_AT, ARIA_UUID_AT + ARIA_UUID_BYTES)
}

/** @throws PalimpsestError `invalid` if the datadir is another server's */
export async function checkServerIdentity(
  pageServer: Connection,
  { summary }: TimelineStatus,
  datadir: string,
): Promise<void> {
  const path = join(datadir, ARIA_CONTROL)
  const buffer = Buffer.alloc(ARIA_UUID_AT + ARIA_UUID_BYTES)
  try {
    const file = await openServerFile(await serverFilesOf(datadir), path)
    await file.read(buffer, 0, buffer.length, 0).finally(() => file.close())
  } catch (error) {
    if (isMissing(error)) return
    throw explainSystemError(path, error)
  }
  const here = ariaUuid(buffer)
  let there: string | undefined
  try {
    const message = {
      type: MessageType.FileGet,
      timeline: summary.timeline,
      lsn: 0 as Lsn,
      path: ARIA_CONTROL,
    } as const
    const [first] = await pageServer.requestAll(message)
    there = first && ariaUuid(first.bulk)
  } catch (error) {
    // It was never captured: of a first import that hardly began.
    if (error instanceof PalimpsestError && error.kind === 'invalid') return
    throw error
  }
  if (here === undefined || there === undefined || here === there) return
  throw invalidError(
    `${path}: this is not the server that timeline ${summary.name} follows (Aria's UUID is ${here} here, ${there} in the timeline); ` +
      'attach it with a timeline of its own. If it is the same server, and its Aria logs were made anew, add --same-server',
  )
}

function partedError(datadir: string, name: string, page: PageAt, found: Lsn | undefined): PalimpsestError {
  return invalidError(
    `${datadir}: this datadir does not continue timeline ${name}: page ${page.page} of tablespace ${page.space} was changed at LSN ${page.lsn}, ` +
      `which the timeline knows nothing of (it has ${found === undefined ? 'no such page' : `LSN ${found} there`}). ` +
      'The server was restored from an older backup, or is a copy that went its own way; begin a new timeline for it',
    page.lsn,
  )
}

/** @throws PalimpsestError `invalid` if the newest pages of the system and undo tablespaces are of another history */
export async function checkNewestPages(
  pageServer: Connection,
  status: TimelineStatus,
  scan: DatadirScan,
): Promise<void> {
  const { timeline, name, readableFromLsn } = status.summary
  if (readableFromLsn === LSN_MAX) return
  const newest: PageAt[] = []
  for (const space of scan.spaces) {
    if (space.kind === 'table') continue
    const reader = await SpaceReader.open(space)
    if (!reader) continue
    try {
      const size = space.format.physicalSize
      const areas = await reader.doublewriteAreas()
      const bytes = await reader.readRawRange(0, LOOK_PAGES)
      for (let page = 0; (page + 1) * size <= bytes.length; page++) {
        const raw = bytes.subarray(page * size, (page + 1) * size)
        const lsn = pageLsn(raw)
        if (!isReadableAt(status, lsn) || areas.some(area => page >= area.start && page < area.end)) continue
        if (verifyPage(raw, space.format).ok && read4(raw, FIL_PAGE_OFFSET) === page)
          newest.push({ space: space.space, page, lsn })
      }
    } finally {
      await reader.close()
    }
  }
  newest.sort((a, b) => b.lsn - a.lsn)
  for (const page of newest.slice(0, COMPARED_PAGES)) {
    const found = await lsnsAt({ pageServer, timeline, lsn: page.lsn }, page.space, [page.page])
    const lsn = found.get(page.page)
    if (lsn !== undefined && lsn !== page.lsn) throw partedError(scan.datadir, name, page, lsn)
  }
}

/** FIL_PAGE_LSN of pages at an LSN; without those that mean nothing there. */
async function lsnsAt(
  source: PageSource,
  space: number,
  pages: readonly number[],
): Promise<Map<number, Lsn>> {
  try {
    const fetched = await fetchBatch(source, space, pages)
    return new Map(fetched.flatMap(({ page, freed, bytes, lsn }) => (bytes && !freed ? [[page, lsn]] : [])))
  } catch (error) {
    // The tablespace did not exist then, or this page server cannot tell.
    if (error instanceof PalimpsestError && (error.kind === 'refresh' || error.kind === 'corrupt'))
      return new Map()
    throw error
  }
}

/**
 * A first look, before a repair writes anything: at pieces of the files here and there, all of them if they are small.
 * @param history its LSN must be one at which the timeline can be read; the server's checkpoint is beyond it
 * @throws PalimpsestError `invalid` if the datadir is of another history
 */
export async function checkSomePages(scan: DatadirScan, history: HistoryAt): Promise<void> {
  const unchanged = new UnchangedPages()
  for (const piece of somePieces(scan)) {
    const { space, first } = pieceAt(scan, piece)
    const reader = await SpaceReader.open(space)
    if (!reader) continue
    try {
      const size = space.format.physicalSize
      const areas = await reader.doublewriteAreas()
      const bytes = await reader.readRawRange(first, PIECE_PAGES)
      for (let i = 0; (i + 1) * size <= bytes.length; i++) {
        const page = first + i
        const raw = bytes.subarray(i * size, (i + 1) * size)
        const lsn = pageLsn(raw)
        if (lsn === 0 || lsn > history.lsn || areas.some(area => page >= area.start && page < area.end))
          continue
        if (read4(raw, FIL_PAGE_SPACE_ID) !== space.space || read4(raw, FIL_PAGE_OFFSET) !== page) continue
        if (verifyPage(raw, space.format).ok) unchanged.offer(space.space, page, lsn)
      }
    } finally {
      await reader.close()
    }
  }
  await unchanged.check(history, scan.datadir)
}

const piecesOf = (space: SpaceFile): number => Math.ceil(space.pages / PIECE_PAGES)

/** Numbers of pieces, the files laid end to end; each at most once. */
function somePieces(scan: DatadirScan): Iterable<number> {
  const total = scan.spaces.reduce((sum, space) => sum + piecesOf(space), 0)
  if (total <= PIECES_MAX) return Array.from({ length: total }, (_, i) => i)
  const chosen = new Set<number>()
  while (chosen.size < PIECES_MAX) chosen.add(Math.floor(Math.random() * total))
  return chosen
}

function pieceAt(scan: DatadirScan, piece: number): { space: SpaceFile; first: number } {
  let rest = piece
  for (const space of scan.spaces) {
    const pieces = piecesOf(space)
    if (rest < pieces) return { space, first: rest * PIECE_PAGES }
    rest -= pieces
  }
  throw new RangeError(`there is no piece ${piece}`)
}

/** Remembers some of the pages that a repair finds unchanged since the last LSN read. */
export class UnchangedPages {
  #newest: PageAt[] = []
  readonly #random: PageAt[] = []
  #offered = 0

  offer(space: number, page: number, lsn: Lsn): void {
    const at = { space, page, lsn }
    this.#offered++
    if (this.#newest.length < NEWEST_PAGES * 2 || lsn > this.#newest[NEWEST_PAGES - 1]!.lsn) {
      this.#newest.push(at)
      if (this.#newest.length >= NEWEST_PAGES * 4) this.#trim()
    }
    if (this.#random.length < RANDOM_PAGES) this.#random.push(at)
    else {
      const slot = Math.floor(Math.random() * this.#offered)
      if (slot < RANDOM_PAGES) this.#random[slot] = at
    }
  }

  #trim(): void {
    this.#newest.sort((a, b) => b.lsn - a.lsn)
    this.#newest = this.#newest.slice(0, NEWEST_PAGES)
  }

  /** @throws PalimpsestError `invalid` if one of them is not of the timeline's history up to `history.lsn` */
  async check(history: HistoryAt, datadir: string): Promise<void> {
    this.#trim()
    const { pageServer, status, lsn } = history
    const { timeline, name } = status.summary
    const bySpace = new Map<number, Map<number, PageAt>>()
    for (const at of [...this.#newest, ...this.#random]) {
      const pages = bySpace.get(at.space) ?? new Map<number, PageAt>()
      bySpace.set(at.space, pages.set(at.page, at))
    }
    for (const [space, pages] of bySpace)
      for (const [page, found] of await lsnsAt({ pageServer, timeline, lsn }, space, [...pages.keys()])) {
        const at = pages.get(page)!
        if (found === at.lsn) continue
        const parted = at.lsn > found ? found : await otherVersion(history, at)
        if (parted !== undefined) throw partedError(datadir, name, at, parted)
      }
  }
}

/** What the timeline has as of the page's own LSN, if it can tell and that is another version. */
async function otherVersion({ pageServer, status }: HistoryAt, at: PageAt): Promise<Lsn | undefined> {
  if (!isReadableAt(status, at.lsn)) return undefined
  const { timeline } = status.summary
  const found = (await lsnsAt({ pageServer, timeline, lsn: at.lsn }, at.space, [at.page])).get(at.page)
  return found === at.lsn ? undefined : found
}
