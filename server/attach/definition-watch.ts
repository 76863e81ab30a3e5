/**
 * Catches every version of the table definitions (.frm, .par), however short it lives.
 *
 * A schema change replaces them within milliseconds, and a version that was never seen is missing for ever, for all LSNs
 * between two changes. So a thread of its own does nothing but wait for inotify and read, at once and synchronously,
 * whatever the main thread is busy with. It also sees the files under the intermediate names (#sql-alter-…), where a new
 * definition lies before InnoDB commits it.
 *
 * The thread tells when it read; the LSN comes from the main thread, which keeps it where the thread can see it.
 */
import { closeSync, type FSWatcher, fstatSync, readdirSync, readSync, statSync, watch } from 'node:fs'
import { join } from 'node:path'
import { isMainThread, parentPort, Worker, workerData } from 'node:worker_threads'
import type { Lsn } from '../../protocol/ids.ts'
import { ForeignFileError, openServerFileSync, type ServerFiles } from '../datadir/server-files.ts'

/** A definition as it was when somebody looked; without `content` it was gone. */
export interface SeenDefinition {
  readonly path: string
  readonly lsn: Lsn
  readonly content: Uint8Array | undefined
  readonly mode: number
  readonly mtimeNs: bigint
  readonly inode: bigint
}

const DEFINITION = /\.(frm|par)$/
const DEFINITION_BYTES_MAX = 1 << 20
/** Seen and not yet taken by the receiver; beyond it, the regular walk has to do. */
const QUEUE_BYTES_MAX = 64 << 20

export function isDefinition(path: string): boolean {
  return DEFINITION.test(path)
}

interface ThreadData {
  readonly palimpsest: 'definition-watch'
  readonly datadir: string
  readonly files: ServerFiles
  readonly position: SharedArrayBuffer
}

export class DefinitionWatch {
  readonly #worker: Worker
  readonly #position = new BigInt64Array(new SharedArrayBuffer(8))
  #queue: SeenDefinition[] = []
  #queueBytes = 0
  #lost = false

  constructor(datadir: string, files: ServerFiles) {
    const data: ThreadData = {
      palimpsest: 'definition-watch',
      datadir,
      files,
      position: this.#position.buffer as SharedArrayBuffer,
    }
    this.#worker = new Worker(new URL(import.meta.url), { workerData: data })
    this.#worker.unref()
    this.#worker.on('message', (seen: SeenDefinition) => {
      const bytes = seen.content?.length ?? 0
      if (this.#queueBytes + bytes > QUEUE_BYTES_MAX) {
        this.#lost = true
        return
      }
      this.#queueBytes += bytes
      this.#queue.push(seen)
    })
    // Whatever goes wrong there, the walk over the datadir still finds what lasts.
    this.#worker.on('error', () => {
      this.#lost = true
    })
  }

  /** LSN up to which redo has been read. */
  set position(lsn: Lsn) {
    Atomics.store(this.#position, 0, BigInt(lsn))
  }

  /**
   * Watches a directory; once more if another one has its name now.
   * @param list whether to begin with what lies there
   */
  watch(directory: string, list: boolean): void {
    this.#worker.postMessage({ directory, list } satisfies WatchRequest)
  }

  get pending(): number {
    return this.#queue.length
  }

  /** Whether versions may be missing since the last call. */
  takeLost(): boolean {
    const lost = this.#lost
    this.#lost = false
    return lost
  }

  /** What was seen, in that order. */
  take(): SeenDefinition[] {
    const taken = this.#queue
    this.#queue = []
    this.#queueBytes = 0
    return taken
  }

  async close(): Promise<void> {
    await this.#worker.terminate()
  }
}

interface WatchRequest {
  readonly directory: string
  readonly list: boolean
}

function runThread({ datadir, files, position }: ThreadData): void {
  const lsn = new BigInt64Array(position)
  const watchers = new Map<string, { readonly watcher: FSWatcher; readonly inode: bigint }>()
  const last = new Map<string, { inode: bigint; mtimeNs: bigint; size: bigint }>()

  const look = (path: string): void => {
    const at = Number(Atomics.load(lsn, 0)) as Lsn
    const full = join(datadir, path)
    let fd: number | undefined
    try {
      fd = openServerFileSync(files, full)
      const info = fstatSync(fd, { bigint: true })
      if (info.size > DEFINITION_BYTES_MAX) return
      const buffer = Buffer.alloc(Number(info.size))
      const content = buffer.subarray(0, readSync(fd, buffer, 0, buffer.length, 0))
      const known = last.get(path)
      // A file that is being written comes again with its next event.
      if (
        known?.inode === info.ino &&
        known.mtimeNs === info.mtimeNs &&
        known.size === BigInt(content.length)
      )
        return
      last.set(path, { inode: info.ino, mtimeNs: info.mtimeNs, size: BigInt(content.length) })
      if (content.length === 0) return
      const { mode, mtimeNs, ino } = info
      parentPort!.postMessage({
        path,
        lsn: at,
        content,
        mode: Number(mode) & 0o7777,
        mtimeNs,
        inode: ino,
      } satisfies SeenDefinition)
    } catch (error) {
      if (error instanceof ForeignFileError || !last.delete(path)) return
      const gone = { path, lsn: at, content: undefined, mode: 0, mtimeNs: 0n, inode: 0n }
      parentPort!.postMessage(gone satisfies SeenDefinition)
    } finally {
      if (fd !== undefined) closeSync(fd)
    }
  }

  parentPort!.on('message', ({ directory, list }: WatchRequest) => {
    const full = join(datadir, directory)
    try {
      const inode = statSync(full, { bigint: true }).ino
      const before = watchers.get(directory)
      if (before?.inode === inode) return
      before?.watcher.close()
      const watcher = watch(full, (_, name) => {
        if (name !== null && DEFINITION.test(name)) look(`${directory}/${name}`)
      })
      watcher.on('error', () => {
        watcher.close()
        if (watchers.get(directory)?.watcher === watcher) watchers.delete(directory)
      })
      watchers.set(directory, { watcher, inode })
      if (list || before)
        for (const name of readdirSync(full)) if (DEFINITION.test(name)) look(`${directory}/${name}`)
    } catch {
      // Gone again, or not to be watched: the walk looks there.
      watchers.get(directory)?.watcher.close()
      watchers.delete(directory)
    }
  })
}

if (!isMainThread && (workerData as Partial<ThreadData> | null)?.palimpsest === 'definition-watch')
  runThread(workerData as ThreadData)
