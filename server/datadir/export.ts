/**
 * Writes a datadir as it was at an LSN, on which a stock mariadbd starts: every tablespace, the captured files, and a
 * made-up ib_logfile0 that begins at that LSN. The server finds no redo to apply and rolls back what was in flight.
 *
 * ib_logfile0 comes last and under its name only when all else is on disk, and mariadbd does not start without it: an
 * export that was interrupted cannot be mistaken for a whole one.
 */
import { mkdir, open, readdir, rename, rm, stat, statfs, utimes } from 'node:fs/promises'
import { dirname, join, resolve } from 'node:path'
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
import { formatBytes } from '../shared/format.ts'
import type { Progress } from '../shared/progress.ts'
import { listSpaces, type Moment, resolveMoment } from './at-lsn.ts'
import { atOnce } from './at-once.ts'
import { makeDdlRecoveryLog } from './ddl-recovery-log.ts'
import { isInternallyPrepared, readUndoSegments, unprepare } from './dictionary/undo-segments.ts'
import { DatadirError, explainSystemError } from './errors.ts'
import { fetchBatch, fetchPages, type PageSource } from './page-fetcher.ts'
import { reconcileExport } from './reconcile-export.ts'
import { systemFiles } from './scan.ts'

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
const DIRECTORY_MODE = 0o700
const FILE_MODE = 0o660

/** @throws PalimpsestError, DatadirError; what was written is removed then */
export async function exportDatadir(options: ExportOptions): Promise<ExportResult> {
  const { pageServer, status, progress } = options
  const out = resolve(options.out)
  // First of all, since it fails at once and an LSN may have to be waited for.
  const existed = await claimDirectory(out)
  try {
    const { lsn, sampleTimeUs } = await resolveMoment(pageServer, status, options.moment)
    const { files, replaced, actions, warnings, spaceNames } = await reconcileExport(pageServer, status, lsn)
    // A file takes its new name before the transaction that renames the table is committed, and recovery looks for those
    // that were committed; what an unfinished CREATE made is not missed.
    const spaces = (await listSpaces(pageServer, status, lsn)).filter(
      ({ space, name }) => space === 0 || isUndoName(name) || spaceNames.has(space),
    )
    const source = { pageServer, timeline: status.summary.timeline, lsn }
    const prepared = await preparedTransactions(source)
    const writer = new DatadirWriter(options, out, source, spaceNames, prepared)
    writer.warnings.push(...warnings)
    const total =
      spaces.reduce((sum, s) => sum + s.pages * parseSpaceFlags(s.flags).physicalSize, 0) +
      files.reduce((sum, f) => sum + f.totalBytes, 0)
    progress.message(
      `exporting LSN ${lsn} of timeline ${status.summary.name}: ${spaces.length} tablespaces, ${files.length} other files`,
      { lsn, spaces: spaces.length, files: files.length },
    )
    const room = await statfs(out)
    if (room.bavail * room.bsize < total)
      progress.message(
        `there are ${formatBytes(room.bavail * room.bsize)} free at ${out}, and ${formatBytes(total)} to write, less what is blank: it may not be enough`,
        { freeBytes: room.bavail * room.bsize, totalBytes: total },
      )
    const task = await progress.task('export', total)
    writer.onProgress = bytes => task.update(bytes)
    if (!spaces.some(space => space.space === 0))
      throw corruptError(`timeline ${status.summary.name} has no system tablespace at LSN ${lsn}`, lsn)
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
      out,
      lsn,
      sampleTimeUs,
      spaces: spaces.length,
      files: files.length + replaced.length,
      pages: writer.pages,
      bytes: writer.bytes,
      serverOptions,
      warnings: writer.warnings,
    }
  } catch (error) {
    await removeContents(out, existed)
    throw (error as NodeJS.ErrnoException).syscall === undefined ? error : explainSystemError(out, error)
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

/** @returns whether the directory was there already */
async function claimDirectory(out: string): Promise<boolean> {
  try {
    if ((await readdir(out)).length > 0)
      throw new DatadirError(out, 'is not empty; give a directory that does not exist yet, or an empty one')
    return true
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw explainSystemError(out, error)
  }
  await makeDirectory(out)
  return false
}

/** Not with `recursive`: on file systems where nothing can be made (/proc), that never comes back. */
async function makeDirectory(path: string): Promise<void> {
  const missing: string[] = []
  for (let at = path; ; at = dirname(at)) {
    const exists = await stat(at).then(
      () => true,
      error => {
        if ((error as NodeJS.ErrnoException).code === 'ENOENT') return false
        throw explainSystemError(at, error)
      },
    )
    if (exists) break
    missing.push(at)
  }
  for (const directory of missing.reverse())
    try {
      await mkdir(directory, { mode: DIRECTORY_MODE })
    } catch (error) {
      const { code } = error as NodeJS.ErrnoException
      if (code === 'EEXIST') continue
      if (code === 'ENOENT')
        throw new DatadirError(directory, 'cannot be made there; give a directory on a disk')
      if (code === 'EACCES' || code === 'EPERM' || code === 'EROFS')
        throw new DatadirError(
          directory,
          'may not be made there; choose another place, or run this as a user that may write to it',
        )
      throw explainSystemError(directory, error)
    }
}

async function removeContents(out: string, keepDirectory: boolean): Promise<void> {
  if (!keepDirectory) {
    await rm(out, { recursive: true, force: true })
    return
  }
  for (const name of await readdir(out)) await rm(join(out, name), { recursive: true, force: true })
}

function isUndoName(name: string): boolean {
  return /^undo\d{3}$/.test(name)
}

class DatadirWriter {
  readonly #options: ExportOptions
  readonly #out: string
  readonly #lsn: Lsn
  readonly #source: PageSource
  readonly #prepared: ReadonlySet<string>
  readonly #names: ReadonlyMap<number, string>
  readonly #directories = new Set<string>()
  readonly #taken = new Set<string>()
  readonly warnings: string[] = []
  onProgress: (bytes: number) => void = () => {}
  pages = 0
  bytes = 0
  #done = 0
  dataFilePath: string | undefined

  constructor(
    options: ExportOptions,
    out: string,
    source: PageSource,
    names: ReadonlyMap<number, string>,
    prepared: ReadonlySet<string>,
  ) {
    this.#names = names
    this.#prepared = prepared
    this.#options = options
    this.#out = out
    this.#source = source
    this.#lsn = source.lsn
    this.#directories.add(out)
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
      throw corruptError(`two files of the timeline have the name ${relative} at LSN ${this.#lsn}`)
    this.#taken.add(relative)
    return join(this.#out, relative)
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
    const inside = `${this.#names.get(space.space)}.ibd`
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
      for await (const batch of fetchPages(this.#source, space.space, size, range(from, to))) {
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
            if (this.#prepared.has(`${space.space}:${page}`)) unprepare(bytes)
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
        this.onProgress(this.#done)
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
        lsn: this.#lsn,
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
      this.onProgress(this.#done)
      if (item.mode & 0o600) await file.chmod(item.mode & 0o777)
      await file.sync()
    } finally {
      await file.close()
    }
    await utimes(path, item.mtimeMs / 1000, item.mtimeMs / 1000)
  }

  async writeContent(relative: string, content: Buffer, mode: number, mtimeMs: number): Promise<void> {
    const path = this.#place(relative)
    await this.#directory(path)
    const file = await open(path, 'wx', FILE_MODE)
    try {
      await writeAll(file, [content], 0)
      if (mode & 0o600) await file.chmod(mode & 0o777)
      await file.sync()
    } finally {
      await file.close()
    }
    this.bytes += content.length
    await utimes(path, mtimeMs / 1000, mtimeMs / 1000)
  }

  /** Last of all: with this file the datadir is whole. */
  async writeLog(): Promise<void> {
    for (const directory of this.#directories) await syncDirectory(directory)
    const path = this.#place('ib_logfile0')
    const temporary = `${path}.incomplete`
    const file = await open(temporary, 'wx', FILE_MODE)
    try {
      await file.truncate(LOG_FILE_BYTES)
      await writeAll(file, [makeLogFileHead(this.#lsn, LOG_CREATOR)], 0)
      await file.sync()
    } finally {
      await file.close()
    }
    await rename(temporary, path)
    await syncDirectory(this.#out)
    await syncDirectory(dirname(this.#out))
    this.bytes += LOG_START_OFFSET
  }
}

function* range(from: number, to: number): Generator<number> {
  for (let page = from; page < to; page++) yield page
}

async function writeAll(
  file: import('node:fs/promises').FileHandle,
  pieces: readonly Uint8Array[],
  position: number,
): Promise<void> {
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
