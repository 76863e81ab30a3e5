/**
 * Compares a cleanly shut down datadir with a timeline, page by page, byte for byte.
 *
 * Left out is only what the redo log does not define: free pages (by the extent descriptors, everything from
 * FSP_FREE_LIMIT on included), the doublewrite area, and FIL_PAGE_FILE_FLUSH_LSN in page 0 of the system tablespace.
 * page_compressed pages are compared uncompressed. Checksums count.
 */
import { existsSync } from 'node:fs'
import { join } from 'node:path'
import { descriptorPageOf, ExtentMap } from '../../parser/extent-map.ts'
import { FILE_CHECKPOINT_MTR_BYTES } from '../../parser/log-file.ts'
import { decompressPage, isPageCompressed } from '../../parser/page-compression.ts'
import {
  FIL_PAGE_FILE_FLUSH_LSN,
  FIL_PAGE_SPACE_ID,
  FIL_PAGE_TYPE,
  isZeroPage,
  pageLsn,
  pageTypeName,
  read2,
  stampChecksum,
  verifyPage,
} from '../../parser/page-format.ts'
import type { Connection } from '../../protocol/connection.ts'
import type { Lsn } from '../../protocol/ids.ts'
import type { SpaceItem, TimelineStatus } from '../../protocol/messages.ts'
import { listSpaces, resolveMoment } from '../datadir/at-lsn.ts'
import { DatadirError } from '../datadir/errors.ts'
import { type FetchedPage, fetchPages } from '../datadir/page-fetcher.ts'
import { SpaceReader } from '../datadir/page-reader.ts'
import { refuseRunningServer } from '../datadir/running-server.ts'
import { type SpaceFile, scanDatadir } from '../datadir/scan.ts'
import { invalidError } from '../shared/errors.ts'
import type { Progress } from '../shared/progress.ts'
import { RingTail } from './ring-tail.ts'

export interface VerifyOptions {
  readonly pageServer: Connection
  readonly status: TimelineStatus
  readonly datadir: string
  /** Default: the end of the datadir's log. */
  readonly lsn?: Lsn | undefined
  readonly progress: Progress
  readonly signal?: AbortSignal | undefined
  /** Called for each difference. */
  readonly onDifference: (difference: Difference) => void
}

export interface Difference {
  readonly space: number
  readonly name: string
  /** Undefined: the tablespace as a whole is missing on one side. */
  readonly page: number | undefined
  readonly reason: string
  /** The first byte offsets that differ. */
  readonly offsets: readonly number[]
  readonly fileLsn: Lsn | undefined
  readonly timelineLsn: Lsn | undefined
  readonly fileType: string | undefined
  readonly timelineType: string | undefined
}

export interface VerifyResult {
  readonly lsn: Lsn
  readonly spaces: number
  readonly compared: number
  readonly differ: number
  /** Pages of the files that were left out. */
  readonly free: number
  readonly doublewrite: number
}

const OFFSETS_MAX = 8
/** So many unwanted pages are read along rather than with a read of their own for what follows. */
const RUN_GAP_PAGES = 16

/** @throws PalimpsestError, DatadirError when no comparison is possible */
export async function verifyDatadir(options: VerifyOptions): Promise<VerifyResult> {
  const { pageServer, status, datadir, progress } = options
  await refuseRunningServer(datadir, 'shut it down cleanly, and verify then')
  // Copies of tablespaces alone will do if one says what they are copies of.
  const scan = await scanDatadir(datadir, { withoutLog: options.lsn !== undefined })
  const hasLog = existsSync(join(scan.datadir, 'ib_logfile0'))
  const end = hasLog ? await cleanEnd(scan.datadir) : options.lsn!
  const lsn = options.lsn ?? end
  if (lsn !== end)
    progress.message(`the datadir is at LSN ${end}; comparing it with LSN ${lsn} as asked`, {
      datadirLsn: end,
      lsn,
    })
  await resolveMoment(pageServer, status, { lsn }, text => progress.message(text))
  const source = { pageServer, timeline: status.summary.timeline, lsn }
  const inTimeline = new Map<number, SpaceItem>()
  for (const space of await listSpaces(pageServer, status, lsn)) inTimeline.set(space.space, space)
  const task = await progress.task('verify', scan.bytes)
  const result = { lsn, spaces: scan.spaces.length, compared: 0, differ: 0, free: 0, doublewrite: 0 }
  const report = (difference: Difference): void => {
    result.differ++
    options.onDifference(difference)
  }
  let doneBytes = 0
  for (const space of scan.spaces) {
    const item = inTimeline.get(space.space)
    inTimeline.delete(space.space)
    if (!item) {
      report(wholeSpace(space.space, space.name, 'the timeline has no such tablespace'))
      result.compared++
      continue
    }
    if (item.flags !== space.format.flags)
      report(
        wholeSpace(
          space.space,
          space.name,
          `tablespace flags are 0x${space.format.flags.toString(16)} in the file, 0x${item.flags.toString(16)} in the timeline`,
        ),
      )
    if (item.name !== space.name)
      report(wholeSpace(space.space, space.name, `the timeline has it as ${item.name}`))
    const before = doneBytes
    await compareSpace(space, source, options, result, report, pages => {
      doneBytes = before + pages * space.format.physicalSize
      task.update(doneBytes)
    })
  }
  for (const item of inTimeline.values()) {
    report(wholeSpace(item.space, item.name, 'the datadir has no such tablespace'))
    result.compared++
  }
  task.finish()
  // Differences that a server made meanwhile would be none.
  await refuseRunningServer(
    datadir,
    'it was started meanwhile, so this comparison means nothing; shut it down and verify again',
  )
  if (hasLog && (await cleanEnd(scan.datadir)) !== end)
    throw new DatadirError(
      datadir,
      'a server ran on it during the comparison, which therefore means nothing; verify again',
    )
  return result
}

function wholeSpace(space: number, name: string, reason: string): Difference {
  return {
    space,
    name,
    page: undefined,
    reason,
    offsets: [],
    fileLsn: undefined,
    timelineLsn: undefined,
    fileType: undefined,
    timelineType: undefined,
  }
}

/** The end of a log that a clean shutdown left: nothing after the last checkpoint but the record of it. */
async function cleanEnd(datadir: string): Promise<Lsn> {
  const tail = await RingTail.open(join(datadir, 'ib_logfile0'), { cold: true })
  try {
    const start = tail.position
    for (;;) if ((await tail.step()).kind === 'idle') break
    if (tail.position - start > FILE_CHECKPOINT_MTR_BYTES)
      throw new DatadirError(
        datadir,
        `was not shut down cleanly: its log goes on to LSN ${tail.position} after the checkpoint at LSN ${start}; ` +
          'if a server runs on it, stop it; otherwise start it and shut it down',
      )
    return tail.position
  } finally {
    await tail.close()
  }
}

async function compareSpace(
  space: SpaceFile,
  source: Parameters<typeof fetchPages>[0],
  options: VerifyOptions,
  result: { compared: number; free: number; doublewrite: number },
  report: (difference: Difference) => void,
  onProgress: (pages: number) => void,
): Promise<void> {
  const { format } = space
  const reader = await SpaceReader.open(space)
  if (!reader) throw invalidError(`${space.parts[0]!.path} has vanished`)
  try {
    const descriptors = new Map<number, Uint8Array>()
    for (let page = 0; page < space.pages; page += format.physicalSize) {
      const raw = await reader.readRawPage(descriptorPageOf(page, format))
      if (raw) descriptors.set(page, decompressPage(raw, format, space.name))
    }
    const extents = new ExtentMap(format, page => descriptors.get(page))
    const doublewrite = await reader.doublewriteAreas()
    // Not a list: a large tablespace has hundreds of millions of pages.
    const inUse = function* (): Generator<number> {
      for (let page = 0; page < space.pages; page++) {
        if (extents.isFree(page)) result.free++
        else if (doublewrite.some(area => page >= area.start && page < area.end)) result.doublewrite++
        else yield page
      }
    }
    for await (const batch of fetchPages(source, space.space, format.physicalSize, inUse())) {
      options.signal?.throwIfAborted()
      for (const run of runs(batch)) {
        const first = run[0]!.page
        const raw = await reader.readRawRange(first, run.at(-1)!.page - first + 1)
        for (const fetched of run) {
          const at = (fetched.page - first) * format.physicalSize
          const difference = comparePage(
            space,
            fetched.page,
            raw.subarray(at, at + format.physicalSize),
            fetched.bytes,
          )
          result.compared++
          if (difference) report(difference)
        }
      }
      onProgress(batch.at(-1)!.page + 1)
    }
    onProgress(space.pages)
  } finally {
    await reader.close()
  }
}

/** Cuts a batch where pages in between that nobody asked for would be read. */
function* runs(batch: readonly FetchedPage[]): Generator<readonly FetchedPage[]> {
  let from = 0
  for (let i = 1; i <= batch.length; i++) {
    if (i < batch.length && batch[i]!.page - batch[i - 1]!.page <= RUN_GAP_PAGES) continue
    yield batch.slice(from, i)
    from = i
  }
}

function comparePage(
  space: SpaceFile,
  page: number,
  inFile: Uint8Array,
  fetched: Uint8Array | undefined,
): Difference | undefined {
  const { format } = space
  const size = format.physicalSize
  const expected = fetched ?? new Uint8Array(size)
  if (Buffer.compare(inFile, expected) === 0) return undefined
  const describe = (
    reason: string,
    offsets: readonly number[],
    file: Uint8Array | undefined,
  ): Difference => ({
    space: space.space,
    name: space.name,
    page,
    reason,
    offsets,
    fileLsn: file && pageLsn(file),
    timelineLsn: fetched && pageLsn(fetched),
    fileType: file && pageTypeName(read2(file, FIL_PAGE_TYPE)),
    timelineType: fetched && pageTypeName(read2(fetched, FIL_PAGE_TYPE)),
  })
  if (inFile.length < size) return describe('the file is shorter', [], undefined)
  const check = verifyPage(inFile, format)
  if (!check.ok) return describe(`damaged in the file: ${check.reason}`, [], inFile)
  let actual = inFile
  const hasFlushLsn = space.space === 0 && page === 0
  if (hasFlushLsn || isPageCompressed(inFile, format)) {
    const plain = decompressPage(inFile, format, space.name)
    actual = plain === inFile ? Uint8Array.from(inFile) : plain
    if (hasFlushLsn)
      actual.set(expected.subarray(FIL_PAGE_FILE_FLUSH_LSN, FIL_PAGE_SPACE_ID), FIL_PAGE_FILE_FLUSH_LSN)
    stampChecksum(actual, format)
  }
  const offsets: number[] = []
  for (let i = 0; i < size && offsets.length < OFFSETS_MAX; i++)
    if (actual[i] !== expected[i]) offsets.push(i)
  if (offsets.length === 0) return undefined
  if (!fetched) return describe('the timeline has no such page', offsets, actual)
  return describe(
    isZeroPage(fetched, size) ? 'the timeline has a blank page' : 'different bytes',
    offsets,
    actual,
  )
}
