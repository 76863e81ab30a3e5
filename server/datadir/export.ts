/**
 * Writes a datadir as it was at an LSN, on which a stock mariadbd starts: every tablespace, the captured files, and a
 * made-up ib_logfile0 that begins at that LSN. The server finds no redo to apply and rolls back what was in flight.
 *
 * ib_logfile0 comes last and under its name only when all else is on disk, and mariadbd does not start without it: an
 * export that was interrupted cannot be mistaken for a whole one.
 */
import { type FileHandle, mkdir, open, rename, statfs } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { LOG_START_OFFSET, makeLogFileHead } from '../../parser/log-file.ts'
import { compressPage } from '../../parser/page-compression.ts'
import { isZeroPage, stampChecksum } from '../../parser/page-format.ts'
import { checkSpaceFileName } from '../../parser/space-events.ts'
import { parseSpaceFlags, type SpaceFormat } from '../../parser/space-flags.ts'
import { checkRelativePath } from '../../protocol/codec.ts'
import type { Connection } from '../../protocol/connection.ts'
import type { Lsn } from '../../protocol/ids.ts'
import { type FileItem, MessageType, type SpaceItem, type TimelineStatus } from '../../protocol/messages.ts'
import { corruptError } from '../shared/errors.ts'
import { formatBytes, formatTime } from '../shared/format.ts'
import type { Progress } from '../shared/progress.ts'
import { listSpaces, type Moment, type ResolvedMoment, resolveMoment } from './at-lsn.ts'
import { atOnce } from './at-once.ts'
import { makeDdlRecoveryLog } from './ddl-recovery-log.ts'
import { isInternallyPrepared, readUndoSegments, unprepare } from './dictionary/undo-segments.ts'
import { DatadirError, explainSystemError } from './errors.ts'
import { OutDirectory } from './out-directory.ts'
import { fetchBatch, fetchPages, type PageSource } from './page-fetcher.ts'
import type { Reconciled } from './reconcile.ts'
import { reconcileExport } from './reconcile-export.ts'
import { isUndoName, systemFiles } from './scan.ts'

export interface ExportOptions {
  readonly pageServer: Connection
  readonly status: TimelineStatus
  readonly moment: Moment
  /** Must not exist, or be an empty directory. */
  readonly out: string
  readonly progress: Progress
  readonly signal?: AbortSignal | undefined
}

export interface ExportResult {
  readonly out: string
  readonly lsn: Lsn
  readonly sampleTimeUs: number | undefined
  readonly nextSampleTimeUs: number | undefined
  readonly spaces: number
  readonly files: number
  readonly pages: number
  readonly bytes: number
  /** What mariadbd must be told to start on it, beside --datadir. */
  readonly serverOptions: readonly string[]
  readonly warnings: readonly string[]
}

/** innodb_log_file_size's default; with it, the server does not begin by making another one. */
const LOG_FILE_BYTES = 96 << 20
const LOG_CREATOR = 'Backup Palimpsest'
const WRITE_BYTES = 4 << 20
const FILES_AT_ONCE = 16
/**
 * Tablespaces that are written side by side: each waits for the disk in the end, and most are small. A large one has 16 MiB
 * on its way and up to 8 MiB being written, a small one all of its pages.
 */
const LARGE_AT_ONCE = 2
const SMALL_AT_ONCE = 6
const SMALL_BYTES_MAX = 4 << 20
/** A server that is at work writes more often. */
const QUIET_US = 10_000_000
const DIRECTORY_MODE = 0o700
const FILE_MODE = 0o660

/** What is to be written. */
interface Plan extends ResolvedMoment {
  readonly reconciled: Reconciled
  readonly spaces: readonly SpaceItem[]
  readonly source: PageSource
  readonly prepared: ReadonlySet<string>
}

/** @throws PalimpsestError, DatadirError; what was written is removed then */
export async function exportDatadir(options: ExportOptions): Promise<ExportResult> {
  // First of all, since it fails at once and an LSN may have to be waited for.
  const out = await OutDirectory.claim(options.out)
  try {
    const plan = await untilAborted(makePlan(options), options.signal)
    const result = await writePlan(plan, out, options)
    await out.close()
    return result
  } catch (error) {
    const explained = explainSystemError(out.path, error)
    const isGone = await out.discard().then(
      () => true,
      () => false,
    )
    throw isGone
      ? explained
      : new DatadirError(out.path, `${explained.message}; what was written there could not be removed`)
  }
}

async function makePlan({ pageServer, status, moment, progress }: ExportOptions): Promise<Plan> {
  const resolved = await resolveMoment(pageServer, status, moment, text => progress.message(text))
  const { lsn } = resolved
  const reconciled = await reconcileExport(pageServer, status, lsn)
  // A file takes its new name before the transaction that renames the table is committed, and recovery looks for those
  // that were committed; what an unfinished CREATE made is not missed.
  const spaces = (await listSpaces(pageServer, status, lsn)).filter(
    ({ space, name }) => space === 0 || isUndoName(name) || reconciled.spaceNames.has(space),
  )
  if (!spaces.some(space => space.space === 0))
    throw corruptError(`timeline ${status.summary.name} has no system tablespace at LSN ${lsn}`, lsn)
  const source = { pageServer, timeline: status.summary.timeline, lsn }
  return { ...resolved, reconciled, spaces, source, prepared: await preparedTransactions(source) }
}

async function writePlan(plan: Plan, out: OutDirectory, options: ExportOptions): Promise<ExportResult> {
  const { status, progress } = options
  const { lsn, sampleTimeUs, nextSampleTimeUs, spaces, reconciled } = plan
  const { files, replaced, actions } = reconciled
  const total =
    spaces.reduce((sum, s) => sum + s.pages * parseSpaceFlags(s.flags).physicalSize, 0) +
    files.reduce((sum, f) => sum + f.totalBytes, 0)
  progress.message(
    `exporting LSN ${lsn} of timeline ${status.summary.name}: ${spaces.length} tablespaces, ${files.length} other files`,
    { lsn, spaces: spaces.length, files: files.length },
  )
  const room = await statfs(out.inside)
  const freeBytes = room.bavail * room.bsize
  if (freeBytes < total)
    progress.message(
      `there are ${formatBytes(freeBytes)} free at ${out.path}, and ${formatBytes(total)} to write, less what is blank: it may not be enough`,
      { freeBytes, totalBytes: total },
    )
  const task = await progress.task('export', total)
  const writer = new DatadirWriter(options, out, plan, bytes => task.update(bytes))
  await writer.writeSpaces(spaces)
  await writer.writeFiles(files)
  for (const { path, mode, mtimeMs, content } of replaced)
    await writer.writeContent(path, content, mode, mtimeMs)
  if (actions.length > 0)
    await writer.writeContent('ddl_recovery.log', makeDdlRecoveryLog(actions), FILE_MODE, Date.now())
  await writer.writeLog()
  task.finish()
  const serverOptions: string[] = []
  if (status.summary.innodbPageSize !== 16384)
    serverOptions.push(`--innodb-page-size=${status.summary.innodbPageSize}`)
  if (writer.dataFilePath) serverOptions.push(`--innodb-data-file-path=${writer.dataFilePath}`)
  return {
    out: out.path,
    lsn,
    sampleTimeUs,
    nextSampleTimeUs,
    spaces: spaces.length,
    files: files.length + replaced.length,
    pages: writer.pages,
    bytes: writer.bytes,
    serverOptions,
    warnings: [...timeWarnings(plan), ...reconciled.warnings, ...writer.warnings],
  }
}

function timeWarnings({ sampleTimeUs, nextSampleTimeUs }: ResolvedMoment): string[] {
  if (sampleTimeUs === undefined || nextSampleTimeUs === undefined) return []
  if (nextSampleTimeUs - sampleTimeUs < QUIET_US) return []
  return [
    `no change was seen between ${formatTime(sampleTimeUs)} and ${formatTime(nextSampleTimeUs)}: if the agent did not run all that time, what the server changed meanwhile counts from the end of it`,
  ]
}

/** Fails as soon as the signal says so; what the page server answers later is nobody's. */
async function untilAborted<T>(work: Promise<T>, signal: AbortSignal | undefined): Promise<T> {
  if (signal === undefined) return await work
  let stop = (): void => {}
  const aborted = new Promise<never>((_, reject) => {
    stop = () => reject(signal.reason)
    if (signal.aborted) stop()
    else signal.addEventListener('abort', stop, { once: true })
  })
  try {
    return await Promise.race([work, aborted])
  } finally {
    signal.removeEventListener('abort', stop)
    work.catch(() => {})
  }
}

/**
 * Undo pages, by `space:page`, of transactions that were in both minds at the LSN: prepared in InnoDB, and perhaps in the
 * binary log. An export has no binary log to ask, and without one the server would not start. They had not been committed
 * at the LSN, so they are rolled back with all others.
 */
async function preparedTransactions(source: PageSource): Promise<ReadonlySet<string>> {
  const { segments } = await readUndoSegments(async (space, pages) =>
    (await fetchBatch(source, space, pages)).map(({ bytes, page }) => {
      if (bytes) return bytes
      throw corruptError(
        `page ${page} of tablespace ${space} does not exist at LSN ${source.lsn}`,
        source.lsn,
      )
    }),
  )
  return new Set(segments.filter(isInternallyPrepared).map(({ space, page }) => `${space}:${page}`))
}

class DatadirWriter {
  readonly #options: ExportOptions
  readonly #out: OutDirectory
  readonly #plan: Plan
  readonly #onProgress: (bytes: number) => void
  readonly #directories = new Set<string>()
  readonly #taken = new Set<string>()
  readonly warnings: string[] = []
  pages = 0
  bytes = 0
  #done = 0
  dataFilePath: string | undefined

  constructor(options: ExportOptions, out: OutDirectory, plan: Plan, onProgress: (bytes: number) => void) {
    this.#options = options
    this.#out = out
    this.#plan = plan
    this.#onProgress = onProgress
    this.#directories.add(out.inside)
  }

  async #directory(path: string): Promise<void> {
    const directory = dirname(path)
    if (this.#directories.has(directory)) return
    await mkdir(directory, { recursive: true, mode: DIRECTORY_MODE })
    this.#directories.add(directory)
  }

  /** Names come from a server's log and from the network: nothing may leave the directory, or be written twice. */
  #place(relative: string): string {
    checkRelativePath(relative)
    if (this.#taken.has(relative))
      throw corruptError(`two files of the timeline have the name ${relative} at LSN ${this.#plan.lsn}`)
    this.#taken.add(relative)
    return join(this.#out.inside, relative)
  }

  async writeSpaces(spaces: readonly SpaceItem[]): Promise<void> {
    const isSmall = ({ flags, pages }: SpaceItem): boolean =>
      pages * parseSpaceFlags(flags).physicalSize <= SMALL_BYTES_MAX
    const small = spaces.filter(isSmall)
    const large = spaces.filter(space => !isSmall(space))
    await atOnce(
      [
        { items: large, count: LARGE_AT_ONCE },
        { items: small, count: SMALL_AT_ONCE },
      ],
      this.#options.signal,
      (space, signal) => this.#writeSpace(space, signal),
    )
  }

  async #writeSpace(space: SpaceItem, signal: AbortSignal): Promise<void> {
    const format = parseSpaceFlags(space.flags)
    if (space.space === 0) {
      await this.#writeSystem(space, format, signal)
      return
    }
    await this.#writePages(this.#place(this.#spacePath(space)), space, format, 0, space.pages, signal)
  }

  /** Tables with DATA DIRECTORY come to lie in the datadir like all others. */
  #spacePath(space: SpaceItem): string {
    if (isUndoName(space.name)) return space.name
    const inside = `${this.#plan.reconciled.spaceNames.get(space.space)}.ibd`
    const name = Buffer.from(inside)
    const checked = checkSpaceFileName(name, 0, name.length)
    if (typeof checked === 'string' || checked.external)
      throw corruptError(`tablespace ${space.space} has no name that can be written: "${inside}"`)
    if (!space.external) return inside
    this.warnings.push(
      `${space.name} (DATA DIRECTORY) was written to ${inside} in the new datadir, where the server will find it`,
    )
    return inside
  }

  async #writeSystem(space: SpaceItem, format: SpaceFormat, signal: AbortSignal): Promise<void> {
    const files = systemFiles(space.name)
    let first = 0
    const described: string[] = []
    for (const file of files) {
      const pages = file.pages ?? space.pages - first
      if (pages <= 0) break
      await this.#writePages(this.#place(file.name), space, format, first, first + pages, signal)
      described.push(`${file.name}:${(pages * format.physicalSize) / 1024}K`)
      first += pages
    }
    if (described.length > 1) this.dataFilePath = `${described.join(';')}:autoextend`
  }

  async #writePages(
    path: string,
    space: SpaceItem,
    format: SpaceFormat,
    from: number,
    to: number,
    signal: AbortSignal,
  ): Promise<void> {
    await this.#directory(path)
    const size = format.physicalSize
    const file = await open(path, 'wx', FILE_MODE)
    try {
      await file.truncate((to - from) * size)
      let run: Uint8Array[] = []
      let runStart = 0
      let runBytes = 0
      // One write is under way while the next pages are taken in.
      let writing: Promise<void> | undefined
      const flush = async (): Promise<void> => {
        await writing
        writing = runBytes > 0 ? writeAll(file, run, runStart) : undefined
        // Seen when the next one is due; until then it must not end the process.
        writing?.catch(() => {})
        this.bytes += runBytes
        run = []
        runBytes = 0
      }
      for await (const batch of fetchPages(this.#plan.source, space.space, size, range(from, to))) {
        signal.throwIfAborted()
        for (const { page, bytes, freed } of batch) {
          // Blank and free pages become holes.
          if (!bytes || freed || isZeroPage(bytes, size)) continue
          if (bytes.length !== size)
            throw corruptError(
              `page ${page} of tablespace ${space.space} has ${bytes.length} bytes instead of ${size}`,
            )
          let written = bytes
          let length = size
          if (format.pageCompressed) ({ bytes: written, length } = compressPage(bytes, format, space.name))
          else {
            if (this.#plan.prepared.has(`${space.space}:${page}`)) unprepare(bytes)
            stampChecksum(bytes, format)
          }
          const at = (page - from) * size
          if (runBytes === 0 || at !== runStart + runBytes || runBytes >= WRITE_BYTES) {
            await flush()
            runStart = at
          }
          run.push(length < size ? written.subarray(0, length) : written)
          runBytes += length
          this.pages++
        }
        await flush()
        this.#done += batch.length * size
        this.#onProgress(this.#done)
      }
      await writing
      await file.sync()
    } finally {
      await file.close()
    }
  }

  /** Several at a time: most of them are small, and each waits for the disk. */
  async writeFiles(items: readonly FileItem[]): Promise<void> {
    await atOnce([{ items, count: FILES_AT_ONCE }], this.#options.signal, (item, signal) =>
      this.#writeFile(item, signal),
    )
  }

  async #writeFile(item: FileItem, signal: AbortSignal): Promise<void> {
    const path = this.#place(item.path)
    await this.#directory(path)
    const file = await open(path, 'wx', FILE_MODE)
    try {
      let at = 0
      for await (const { bulk } of this.#options.pageServer.stream({
        type: MessageType.FileGet,
        timeline: this.#options.status.summary.timeline,
        lsn: this.#plan.lsn,
        path: item.path,
      })) {
        signal.throwIfAborted()
        await writeAll(file, [bulk], at)
        at += bulk.length
      }
      if (at !== item.totalBytes)
        throw corruptError(`${item.path} came with ${at} bytes instead of ${item.totalBytes}`)
      this.#done += at
      this.bytes += at
      this.#onProgress(this.#done)
      await settle(file, item)
    } finally {
      await file.close()
    }
  }

  async writeContent(relative: string, content: Buffer, mode: number, mtimeMs: number): Promise<void> {
    const path = this.#place(relative)
    await this.#directory(path)
    const file = await open(path, 'wx', FILE_MODE)
    try {
      await writeAll(file, [content], 0)
      await settle(file, { mode, mtimeMs })
    } finally {
      await file.close()
    }
    this.bytes += content.length
  }

  /** Last of all: with this file the datadir is whole. */
  async writeLog(): Promise<void> {
    for (const directory of this.#directories) await syncDirectory(directory)
    const path = this.#place('ib_logfile0')
    const temporary = `${path}.incomplete`
    const file = await open(temporary, 'wx', FILE_MODE)
    try {
      await file.truncate(LOG_FILE_BYTES)
      await writeAll(file, [makeLogFileHead(this.#plan.lsn, LOG_CREATOR)], 0)
      await file.sync()
    } finally {
      await file.close()
    }
    this.#options.signal?.throwIfAborted()
    await rename(temporary, path)
    await this.#out.sync()
    this.bytes += LOG_START_OFFSET
  }
}

/** The last of a captured file: mode, time, and on the disk with it. */
async function settle(
  file: FileHandle,
  { mode, mtimeMs }: { readonly mode: number; readonly mtimeMs: number },
): Promise<void> {
  if (mode & 0o600) await file.chmod(mode & 0o777)
  await file.utimes(mtimeMs / 1000, mtimeMs / 1000)
  await file.sync()
}

function* range(from: number, to: number): Generator<number> {
  for (let page = from; page < to; page++) yield page
}

async function writeAll(file: FileHandle, pieces: readonly Uint8Array[], position: number): Promise<void> {
  let at = position
  // The kernel takes at most 1024 pieces at a time.
  for (let i = 0; i < pieces.length; i += 1024) {
    const part = pieces.slice(i, i + 1024)
    const bytes = part.reduce((sum, piece) => sum + piece.length, 0)
    const { bytesWritten } = await file.writev(part, at)
    if (bytesWritten < bytes) {
      const rest = Buffer.concat(part).subarray(bytesWritten)
      let done = 0
      while (done < rest.length)
        done += (await file.write(rest, done, rest.length - done, at + bytesWritten + done)).bytesWritten
    }
    at += bytes
  }
}

async function syncDirectory(path: string): Promise<void> {
  const directory = await open(path, 'r')
  try {
    await directory.sync()
  } finally {
    await directory.close()
  }
}
