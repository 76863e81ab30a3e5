/**
 * Keeps the files of a datadir that are not InnoDB's: table definitions, triggers, Aria and MyISAM tables, and so on.
 *
 * These have no log that could be followed, so each is read whole whenever it changed. A version is labelled with the
 * LSN up to which redo had been read when the change was noticed, a few milliseconds after it happened. Statements that
 * change both InnoDB and such files (DDL) are therefore not atomic here; an export sorts that out (datadir/reconcile.ts).
 * For table definitions every version counts, and definition-watch.ts catches them.
 *
 * Changes are noticed by fs.watch, which may lose events, and by a regular walk over the whole datadir, which may not.
 * A file counts as read if its size, time and inode were the same before and after.
 */
import { type FSWatcher, type Stats, statSync, watch } from 'node:fs'
import { type FileHandle, readdir, stat } from 'node:fs/promises'
import { join } from 'node:path'
import { crc32c } from '../../protocol/crc32c.ts'
import type { Lsn } from '../../protocol/ids.ts'
import { explainSystemError, isMissing } from '../datadir/errors.ts'
import { ForeignFileError, openServerFile, type ServerFiles } from '../datadir/server-files.ts'
import { DefinitionWatch, isDefinition, type SeenDefinition } from './definition-watch.ts'
import { captureOrder, type FileRules, isCaptured, isWatchedDirectory } from './file-rules.ts'

export interface FileVersion {
  readonly path: string
  readonly lsn: Lsn
  readonly mode: number
  readonly mtimeMs: number
  readonly totalBytes: number
}

/** Where versions go. Each call waits until the receiver has taken it. */
export interface FileSink {
  putPiece(version: FileVersion, offset: number, piece: Uint8Array): Promise<void>
  remove(path: string, lsn: Lsn): Promise<void>
}

export interface FileCaptureOptions {
  readonly datadir: string
  /** Whose files are read. */
  readonly files: ServerFiles
  readonly sink: FileSink
  /** LSN up to which redo has been read. */
  readonly position: () => Lsn
  readonly rules?: FileRules
  readonly onCaptured?: (version: FileVersion) => void
  /** Something that does not stop the capture: a file that never stays the same, a directory that cannot be watched. */
  readonly warn?: (message: string) => void
}

export const FILE_PIECE_BYTES = 1 << 20
const SWEEP_MS = 5000
/** A change is acted upon so long after it was noticed, so that a file that is written in several steps is read once. */
const SETTLE_MS = 5
/** Large files that change all the time are read at most at this rate, on average. */
const READ_BYTES_PER_MS = 10_000
/** Times in files are as coarse as the kernel's tick: a file as young as this may change again and look the same. */
const YOUNG_MS = 50
const READ_ATTEMPTS = 5
const DEPTH_MAX = 3
/** How often the thread that reads definitions is told the LSN. */
const POSITION_MS = 2
/** The receiver makes files durable that arrive together with one write. */
const FILES_AT_ONCE = 32
/** Whoever fills a datadir with links does not fill the log. */
const WARNINGS_MAX = 100

interface Known {
  size: number
  mtimeNs: bigint
  inode: bigint
  crc: number
  /** Not to be read again before this moment (performance.now). */
  notBefore: number
}

interface Noticed {
  lsn: Lsn
  at: number
}

export class FileCapture {
  readonly #options: FileCaptureOptions
  readonly #known = new Map<string, Known>()
  readonly #noticed = new Map<string, Noticed>()
  readonly #watchers = new Map<string, { readonly watcher: FSWatcher; readonly inode: bigint }>()
  #definitions: DefinitionWatch | undefined
  #positionTimer: NodeJS.Timeout | undefined
  readonly #warned = new Set<string>()
  #lastSweep = Number.NEGATIVE_INFINITY
  #running: Promise<void> | undefined
  #closed = false

  constructor(options: FileCaptureOptions) {
    this.#options = options
  }

  /**
   * What the receiver already has, so that unchanged files are not sent again after a restart; what is no longer
   * in the datadir is removed by the next sweep.
   */
  assume(
    files: Iterable<{ readonly path: string; readonly totalBytes: number; readonly mtimeMs: number }>,
  ): void {
    for (const file of files)
      this.#known.set(file.path, {
        size: file.totalBytes,
        mtimeNs: BigInt(Math.round(file.mtimeMs)) * 1_000_000n,
        inode: -1n,
        crc: -1,
        notBefore: 0,
      })
  }

  get files(): number {
    return this.#known.size
  }

  /** Takes every file that differs from what was last taken. */
  async sweep(): Promise<void> {
    this.#lastSweep = performance.now()
    const lsn = this.#options.position()
    const found = new Set<string>()
    for (const path of await this.#list()) {
      found.add(path)
      if (!this.#noticed.has(path)) this.#noticed.set(path, { lsn, at: Number.NEGATIVE_INFINITY })
    }
    for (const path of this.#known.keys())
      if (!found.has(path) && !this.#noticed.has(path))
        this.#noticed.set(path, { lsn, at: Number.NEGATIVE_INFINITY })
    await this.#work(true)
  }

  /** Starts to watch. `poll` must be called now and then. */
  watch(): void {
    this.#watching = true
    const definitions = new DefinitionWatch(this.#options.datadir, this.#options.files)
    this.#definitions = definitions
    definitions.position = this.#options.position()
    this.#positionTimer = setInterval(() => {
      definitions.position = this.#options.position()
    }, POSITION_MS).unref()
    // The directories below join in with the next sweep.
    this.#watchDirectory('')
  }

  /**
   * Takes what was noticed, in the background; sweeps when that is due. Returns at once. Errors of the sink come out of
   * the next call, or of `idle`.
   */
  poll(): void {
    if (this.#running || this.#closed) return
    const sweepDue = performance.now() - this.#lastSweep >= SWEEP_MS
    if (!sweepDue && this.#noticed.size === 0 && !this.#definitions?.pending) return
    this.#running = (sweepDue ? this.sweep() : this.#work(false)).finally(() => {
      this.#running = undefined
    })
    this.#running.catch(error => {
      this.#failure ??= error
    })
    if (this.#failure) throw this.#failure
  }

  #failure: unknown

  /** Waits until everything noticed so far was taken. */
  async idle(): Promise<void> {
    await this.#running
    if (this.#failure) throw this.#failure
    await this.sweep()
  }

  async close(): Promise<void> {
    this.#closed = true
    for (const { watcher } of this.#watchers.values()) watcher.close()
    this.#watchers.clear()
    clearInterval(this.#positionTimer)
    await this.#definitions?.close()
    await this.#running?.catch(() => {})
  }

  async #list(): Promise<string[]> {
    const result: string[] = []
    const walk = async (directory: string, depth: number): Promise<void> => {
      let entries: import('node:fs').Dirent[]
      try {
        entries = await readdir(join(this.#options.datadir, directory), { withFileTypes: true })
      } catch (error) {
        if (isMissing(error) && directory !== '') return
        throw explainSystemError(join(this.#options.datadir, directory), error)
      }
      for (const entry of entries) {
        const path = directory === '' ? entry.name : `${directory}/${entry.name}`
        // A database, or a table with DATA DIRECTORY of another engine, may be a symbolic link to another disk.
        const isLink = entry.isSymbolicLink()
        const is = isLink ? await this.#followed(path) : entry
        if (is?.isDirectory()) {
          // Databases are one level deep; nothing of the server's lies deeper but what other engines make.
          if (depth < DEPTH_MAX && isWatchedDirectory(entry.name))
            await walk(path, isLink ? DEPTH_MAX : depth + 1)
        } else if (is?.isFile() && !(isLink && directory === '') && isCaptured(path, this.#options.rules))
          result.push(path)
      }
      this.#watchDirectory(directory)
    }
    await walk('', 0)
    return result.sort((a, b) => captureOrder(a) - captureOrder(b) || (a < b ? -1 : 1))
  }

  /** What a symbolic link leads to; undefined if to nothing. */
  async #followed(path: string): Promise<Stats | undefined> {
    try {
      return await stat(join(this.#options.datadir, path))
    } catch (error) {
      const { code } = error as NodeJS.ErrnoException
      if (isMissing(error) || code === 'ELOOP') return undefined
      throw explainSystemError(join(this.#options.datadir, path), error)
    }
  }

  #watching = false

  #watchDirectory(directory: string, isNew = false): void {
    if (!this.#watching || this.#closed) return
    try {
      const inode = statSync(join(this.#options.datadir, directory), { bigint: true }).ino
      const before = this.#watchers.get(directory)
      // A database that was dropped and made again has another directory.
      if (before?.inode === inode) return
      before?.watcher.close()
      if (directory !== '') this.#definitions?.watch(directory, isNew)
      const watcher = watch(join(this.#options.datadir, directory), { persistent: false }, (event, name) => {
        if (name === null) {
          this.#lastSweep = Number.NEGATIVE_INFINITY
          return
        }
        const path = directory === '' ? name : `${directory}/${name}`
        if (directory !== '' && isDefinition(path)) return
        if (isCaptured(path, this.#options.rules)) this.#notice(path)
        // A new directory: a database was created.
        if (directory === '' && event === 'rename' && !name.includes('.')) this.#watchDirectoryIfNew(name)
      })
      watcher.on('error', () => {
        watcher.close()
        if (this.#watchers.get(directory)?.watcher === watcher) this.#watchers.delete(directory)
      })
      this.#watchers.set(directory, { watcher, inode })
    } catch (error) {
      if (!isMissing(error))
        this.#warnOnce(
          `cannot watch ${join(this.#options.datadir, directory)} (${(error as Error).message}); changes there are found by looking every ${SWEEP_MS / 1000} s`,
        )
    }
  }

  #watchDirectoryIfNew(name: string): void {
    if (!isWatchedDirectory(name)) return
    // Watched first: what comes between is seen twice rather than not at all.
    this.#watchDirectory(name, true)
    readdir(join(this.#options.datadir, name)).then(
      files => {
        for (const file of files) {
          const path = `${name}/${file}`
          if (isCaptured(path, this.#options.rules)) this.#notice(path)
        }
      },
      () => {},
    )
  }

  #notice(path: string): void {
    if (!this.#noticed.has(path))
      this.#noticed.set(path, { lsn: this.#options.position(), at: performance.now() })
  }

  #warnOnce(message: string): void {
    if (this.#warned.has(message) || this.#warned.size >= WARNINGS_MAX) return
    this.#warned.add(message)
    this.#options.warn?.(message)
  }

  /** Sends the definitions that were seen since the last call; those of one path one after the other. */
  async #takeDefinitions(): Promise<void> {
    const seen = this.#definitions?.take() ?? []
    if (this.#definitions?.takeLost()) this.#lastSweep = Number.NEGATIVE_INFINITY
    const byPath = new Map<string, SeenDefinition[]>()
    for (const definition of seen) {
      if (!isCaptured(definition.path, this.#options.rules)) continue
      const list = byPath.get(definition.path)
      if (list) list.push(definition)
      else byPath.set(definition.path, [definition])
    }
    const chains = [...byPath.values()]
    const worker = async (): Promise<void> => {
      for (let chain = chains.shift(); chain && !this.#closed; chain = chains.shift())
        for (const definition of chain) await this.#takeDefinition(definition)
    }
    await Promise.all(Array.from({ length: Math.min(FILES_AT_ONCE, chains.length) }, worker))
  }

  async #takeDefinition({ path, lsn, content, mode, mtimeNs, inode }: SeenDefinition): Promise<void> {
    if (!content) {
      if (this.#known.delete(path)) await this.#options.sink.remove(path, lsn)
      return
    }
    const size = content.length
    const crc = crc32c(content, 0, size)
    const known = this.#known.get(path)
    if (!(known && known.crc === crc && known.size === size)) {
      const version = { path, lsn, mode, mtimeMs: Number(mtimeNs / 1_000_000n), totalBytes: size }
      await this.#options.sink.putPiece(version, 0, content)
      this.#options.onCaptured?.(version)
    }
    this.#known.set(path, { size, mtimeNs, inode, crc, notBefore: 0 })
  }

  async #work(all: boolean): Promise<void> {
    await this.#takeDefinitions()
    // Group by group, so that Aria's log is read after its tables; within a group several at a time.
    for (const order of [0, 1, 2]) {
      const paths = [...this.#noticed.keys()].filter(path => captureOrder(path) === order)
      const worker = async (): Promise<void> => {
        for (let path = paths.shift(); path !== undefined && !this.#closed; path = paths.shift()) {
          const noticed = this.#noticed.get(path)
          if (!noticed) continue
          const now = performance.now()
          const known = this.#known.get(path)
          if (!all && (now < noticed.at + SETTLE_MS || (known && now < known.notBefore))) continue
          this.#noticed.delete(path)
          await this.#take(path, noticed.lsn)
        }
      }
      await Promise.all(Array.from({ length: Math.min(FILES_AT_ONCE, paths.length) }, worker))
    }
  }

  async #take(path: string, noticedLsn: Lsn): Promise<void> {
    const full = join(this.#options.datadir, path)
    let lsn = noticedLsn
    for (let attempt = 1; ; attempt++) {
      let file: FileHandle
      try {
        file = await openServerFile(this.#options.files, full, path.includes('/'))
      } catch (error) {
        if (error instanceof ForeignFileError) {
          // A directory or a socket that came by is nothing to tell; this is somebody's mistake, or worse.
          if (error.isForeign) this.#warnOnce(error.message)
          return
        }
        if (!isMissing(error)) throw explainSystemError(full, error)
        if (this.#known.delete(path)) await this.#options.sink.remove(path, lsn)
        return
      }
      try {
        if (await this.#read(path, file, lsn)) return
      } finally {
        await file.close()
      }
      if (attempt >= READ_ATTEMPTS) {
        this.#warnOnce(`${full} changes while it is read; it is tried again later`)
        this.#noticed.set(path, { lsn: this.#options.position(), at: performance.now() + 200 })
        return
      }
      lsn = this.#options.position()
      await new Promise(done => setTimeout(done, attempt * 10))
    }
  }

  /** Sends the file; false if it changed meanwhile, and then the receiver has no new version. */
  async #read(path: string, file: FileHandle, lsn: Lsn): Promise<boolean> {
    const before = await file.stat({ bigint: true })
    const size = Number(before.size)
    const known = this.#known.get(path)
    const seen = Date.now()
    if (
      known &&
      known.size === size &&
      known.mtimeNs === before.mtimeNs &&
      (known.inode === before.ino || known.inode < 0n)
    )
      return true
    // After a restart only whole milliseconds are known.
    if (
      known &&
      known.crc < 0 &&
      known.size === size &&
      known.mtimeNs / 1_000_000n === before.mtimeNs / 1_000_000n
    ) {
      this.#known.set(path, { ...known, mtimeNs: before.mtimeNs, inode: before.ino })
      return true
    }
    const version: FileVersion = {
      path,
      lsn,
      mode: Number(before.mode) & 0o7777,
      mtimeMs: Math.floor(Number(before.mtimeMs)),
      totalBytes: size,
    }
    let crc = 0
    let held: Uint8Array = new Uint8Array(0)
    let heldAt = 0
    for (let offset = 0; offset < size; ) {
      const piece = Buffer.allocUnsafeSlow(Math.min(FILE_PIECE_BYTES, size - offset))
      const { bytesRead } = await file.read(piece, 0, piece.length, offset)
      if (bytesRead === 0) return false
      const part = piece.subarray(0, bytesRead)
      crc = crc32c(part, 0, part.length, crc)
      if (held.length > 0) await this.#options.sink.putPiece(version, heldAt, held)
      held = part
      heldAt = offset
      offset += bytesRead
    }
    const after = await stat(join(this.#options.datadir, path), { bigint: true }).catch(() => undefined)
    if (!after || after.size !== before.size || after.mtimeNs !== before.mtimeNs || after.ino !== before.ino)
      return false
    const young = seen - Number(before.mtimeMs) < YOUNG_MS
    if (!(known && known.crc === crc && known.size === size)) {
      await this.#options.sink.putPiece(version, heldAt, held)
      this.#options.onCaptured?.(version)
    }
    this.#known.set(path, {
      size,
      // A young file is read once more, whatever its time says then.
      mtimeNs: young ? -1n : before.mtimeNs,
      inode: before.ino,
      crc,
      notBefore: performance.now() + size / READ_BYTES_PER_MS,
    })
    if (young) this.#noticed.set(path, { lsn, at: performance.now() + YOUNG_MS })
    return true
  }
}
