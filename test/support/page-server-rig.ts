/** A page server with a log keeper in memory, in a directory of its own, and the golden logs to feed it with. */
import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { LOG_START_OFFSET, parseLogFileHead } from '../../parser/log-file.ts'
import { MtrScanner, ScanResult } from '../../parser/mtr-scanner.ts'
import { FSP_SIZE, read4 } from '../../parser/page-format.ts'
import { RecordCursor, RecordType } from '../../parser/record-decoder.ts'
import { Connection } from '../../protocol/connection.ts'
import { crc32c } from '../../protocol/crc32c.ts'
import type { Lsn, TimelineId } from '../../protocol/ids.ts'
import {
  type GetPages,
  type ImportBegin,
  type ImportEnd,
  type ImportPages,
  type ImportSpace,
  MessageType,
  PageStatus,
  type TimelineCreate,
  type TimelineShow,
  type TimelineStatus,
  type WaitLsn,
} from '../../protocol/messages.ts'
import { type PageServer, startPageServer } from '../../server/pageserver/index.ts'
import { Listener } from '../../server/shared/listener.ts'
import { createLog, silentLog } from '../../server/shared/log.ts'
import type { ObjectStore } from '../../server/shared/object-store.ts'
import { LocalObjectStore } from '../../server/shared/object-store-local.ts'
import { S3ObjectStore, type S3StoreOptions } from '../../server/shared/object-store-s3.ts'
import { readTarZst } from './fixture-tar.ts'
import { NaiveReplay } from './naive-replay.ts'
import { loadGoldenLog, type PageSizeName } from './redo-fixtures.ts'
import { WalSource } from './wal-source.ts'

export { seeded } from './seeded.ts'

export const TIMELINE = '0123456789abcdef0123456789abcdef' as TimelineId

const INNODB_PAGE_SIZES = { '4k': 4096, '16k': 16384, '64k': 65536 } as const
const fixtures = new URL('../fixtures/golden/', import.meta.url)

/** Redo that never wrapped: the byte at LSN x is `bytes[x - begin]`. */
export interface GoldenLog {
  readonly bytes: Uint8Array
  readonly begin: number
  /** End of the last whole mini-transaction. */
  readonly end: number
  readonly pageSize: number
}

export function goldenLog(size: PageSizeName): GoldenLog {
  const file = loadGoldenLog(size)
  const begin = parseLogFileHead(file.slice(0, LOG_START_OFFSET)).firstLsn
  const bytes = file.subarray(LOG_START_OFFSET)
  const scanner = new MtrScanner()
  let at = 0
  while (scanner.scan(bytes, at, bytes.length, (begin + at) as Lsn, null) === ScanResult.COMPLETE)
    at = scanner.mtrEnd
  return { bytes, begin, end: begin + at, pageSize: INNODB_PAGE_SIZES[size] }
}

/**
 * The same redo as a stock server writes it, which has no OPT_PAGE_CHECKSUM: what is made of a wrong page is not noticed. In
 * their places are options that mean nothing, so that LSNs stay.
 */
export function withoutPageChecksums(log: GoldenLog): GoldenLog {
  const bytes = Uint8Array.from(log.bytes)
  const scanner = new MtrScanner()
  const records = new RecordCursor()
  for (let at = 0; at < log.end - log.begin; at = scanner.mtrEnd) {
    scanner.scan(bytes, at, bytes.length, (log.begin + at) as Lsn, null)
    records.reset(bytes, scanner.recordsStart, scanner.recordsEnd)
    while (records.next()) {
      const { type, subtype, payloadStart, recordEnd } = records
      if ((type & 0x70) === RecordType.OPTION && subtype === 0 && recordEnd === payloadStart + 5)
        bytes[payloadStart] = 0x7f
    }
    const sum = crc32c(bytes, scanner.recordsStart, scanner.recordsEnd)
    new DataView(bytes.buffer).setUint32(scanner.recordsEnd + 1, sum)
  }
  return { ...log, bytes }
}

/** An oracle at the beginning of a golden log. */
export function goldenReplay(size: PageSizeName): NaiveReplay {
  const replay = new NaiveReplay()
  for (const [name, content] of readTarZst(fileURLToPath(new URL(`zoo-${size}.base.tar.zst`, fixtures))))
    replay.addFile(name.replace(/^\.\//, ''), content)
  replay.useRedo(loadGoldenLog(size))
  return replay
}

/** Cuts redo at mini-transactions into chunks of about the sizes that `size` gives. */
export function* chunksOf(log: GoldenLog, size: () => number): Generator<Uint8Array> {
  const { bytes, begin } = log
  const stop = log.end - begin
  const scanner = new MtrScanner()
  for (let at = 0; at < stop; ) {
    const want = at + Math.max(1, size())
    let to = at
    while (to < want && to < stop) {
      if (scanner.scan(bytes, to, stop, (begin + to) as Lsn, null) !== ScanResult.COMPLETE)
        throw new Error(`no mini-transaction at LSN ${begin + to}`)
      to = scanner.mtrEnd
    }
    yield bytes.subarray(at, to)
    at = to
  }
}

export function openStore(dir: string, s3: S3StoreOptions | undefined): Promise<ObjectStore> {
  return s3 === undefined ? LocalObjectStore.open(join(dir, 'store')) : S3ObjectStore.open(s3)
}

export interface RigOptions {
  /** The page server runs in a process of its own, which `kill` ends without warning. */
  readonly ownProcess?: boolean
  readonly memoryBytes?: number
  readonly flushBytes?: number
  readonly workers?: number
  /** Instead of a directory. */
  readonly s3?: S3StoreOptions
  /** The same, one that a test has its hands in. */
  readonly store?: ObjectStore
  /** The same, anew at each start. */
  readonly openStore?: () => ObjectStore
  readonly cacheBytes?: number
}

export class Rig {
  readonly dir = mkdtempSync(join(tmpdir(), 'palimpsest-'))
  readonly wal = new WalSource()
  readonly #options: RigOptions
  #walListener: Listener | undefined
  #listener: Listener | undefined
  #child: ChildProcess | undefined
  server: PageServer | undefined
  connection!: Connection

  constructor(options: RigOptions = {}) {
    this.#options = options
  }

  async start(more: { retryStopped?: boolean } = {}): Promise<void> {
    const log = process.env['RIG_LOG'] ? createLog({ name: 'rig', level: process.env['RIG_LOG'] }) : silentLog
    if (this.#walListener === undefined) {
      this.#walListener = new Listener({ host: '127.0.0.1', port: 0, log, services: [this.wal] })
      await this.#walListener.listen()
    }
    if (this.#options.ownProcess === true) {
      await this.#startChild(this.#walListener.port)
      return
    }
    this.#listener = new Listener({ host: '127.0.0.1', port: 0, log })
    await this.#listener.listen()
    this.server = await startPageServer({
      dataDir: join(this.dir, 'pageserver'),
      store:
        this.#options.store ?? this.#options.openStore?.() ?? (await openStore(this.dir, this.#options.s3)),
      cacheBytes: this.#options.cacheBytes,
      retryStopped: more.retryStopped,
      safekeepers: [{ host: '127.0.0.1', port: this.#walListener.port }],
      listener: this.#listener,
      log,
      memoryBytes: this.#options.memoryBytes ?? 512 << 20,
      workers: this.#options.workers ?? 2,
      flushBytes: this.#options.flushBytes,
    })
    this.connection = await Connection.connect({ host: '127.0.0.1', port: this.#listener.port })
  }

  async #startChild(walPort: number): Promise<void> {
    const script = fileURLToPath(new URL('page-server-process.ts', import.meta.url))
    const { flushBytes, s3, cacheBytes } = this.#options
    const args = [script, this.dir, String(walPort), JSON.stringify({ flushBytes, s3, cacheBytes })]
    const child = spawn(process.execPath, args, { stdio: ['ignore', 'pipe', 'inherit'] })
    this.#child = child
    const [line] = (await once(child.stdout, 'data')) as [Buffer]
    this.connection = await Connection.connect({ host: '127.0.0.1', port: Number(line.toString()) })
  }

  /** SIGKILL. */
  async kill(): Promise<void> {
    const child = this.#child
    this.#child = undefined
    if (child === undefined) return
    const ended = once(child, 'exit')
    child.kill('SIGKILL')
    await ended
    this.connection.close()
  }

  async stop(): Promise<void> {
    this.connection.close()
    await this.#listener?.close()
    await this.server?.close()
    this.server = undefined
  }

  /** The safekeepers are gone. The next `start` has them back, with all that they had, elsewhere. */
  async loseSafekeepers(): Promise<void> {
    this.wal.cut()
    await this.#walListener?.close()
    this.#walListener = undefined
  }

  /** Everything that the page server has on its own disk: nothing of it is the truth. */
  loseLocalFiles(): void {
    rmSync(join(this.dir, 'pageserver'), { recursive: true })
  }

  async destroy(): Promise<void> {
    if (this.server !== undefined) await this.stop()
    await this.kill()
    await this.#walListener?.close()
    rmSync(this.dir, { recursive: true, force: true })
  }

  async create(startLsn: number, innodbPageSize: number, name = 'zoo'): Promise<void> {
    this.wal.create(TIMELINE, startLsn)
    const request: TimelineCreate = {
      type: MessageType.TimelineCreate,
      timeline: TIMELINE,
      startLsn: startLsn as Lsn,
      innodbPageSize,
      name,
      serverVersion: '10.11.18-MariaDB',
    }
    await this.connection.request(request)
  }

  /**
   * Imports everything that the oracle holds, as of where it stands. `later` is a second oracle, further on: each page
   * is taken from one or the other as `choose` says, as if it had been copied while the server ran.
   */
  async import(
    replay: NaiveReplay,
    readableFromLsn: number,
    kind: 'full' | 'partial' = 'full',
    later: NaiveReplay = replay,
    choose: () => boolean = () => false,
  ): Promise<void> {
    const begin: ImportBegin = {
      type: MessageType.ImportBegin,
      timeline: TIMELINE,
      startLsn: replay.lsn,
      kind,
    }
    const { session } = (await this.connection.request(begin)).message
    for (const space of replay.spaces.values()) {
      const format = space.format!
      const numbers = [...space.pages.keys()].sort((a, b) => a - b)
      const announce: ImportSpace = {
        type: MessageType.ImportSpace,
        session,
        space: space.id,
        flags: format.flags,
        // The oracle leaves zero pages out; the file has them.
        pages: Math.max(numbers[numbers.length - 1]! + 1, read4(space.pages.get(0)!, FSP_SIZE)),
        external: false,
        name: space.name,
      }
      await this.connection.request(announce)
      for (let at = 0; at < numbers.length; at += 32) {
        const pages = numbers.slice(at, at + 32)
        const bulk = pages.map(page => {
          const from = choose() && later.page(space.id, page) !== undefined ? later : replay
          return from.writtenPage(space.id, page)
        })
        const message: ImportPages = {
          type: MessageType.ImportPages,
          session,
          space: space.id,
          pageBytes: format.physicalSize,
          pages: Uint32Array.from(pages.flatMap((page, i) => [page, crc32c(bulk[i]!, 0, bulk[i]!.length)])),
        }
        await this.connection.request(message, { bulk })
      }
    }
    const end: ImportEnd = {
      type: MessageType.ImportEnd,
      session,
      readableFromLsn: readableFromLsn as Lsn,
      spaces: Uint32Array.from(later.spaces.keys()),
    }
    await this.connection.request(end)
  }

  async waitFor(lsn: number, timeoutMs = 60_000, timeline = TIMELINE): Promise<void> {
    const request: WaitLsn = { type: MessageType.WaitLsn, timeline, lsn: lsn as Lsn, timeoutMs }
    await this.connection.request(request, { deadlineMs: timeoutMs + 5000 })
  }

  async checkpoint(): Promise<void> {
    await this.connection.request(
      { type: MessageType.Checkpoint, timeline: TIMELINE },
      { deadlineMs: 60_000 },
    )
  }

  async show(): Promise<TimelineStatus> {
    const request: TimelineShow = { type: MessageType.TimelineShow, timeline: TIMELINE, name: '' }
    return (await this.connection.request(request)).message
  }

  /** Pages by pairs of space and page number; undefined where the status is not OK. */
  async pages(
    lsn: number,
    ids: readonly (readonly [number, number])[],
    timeline = TIMELINE,
  ): Promise<(Buffer | undefined)[]> {
    const request: GetPages = {
      type: MessageType.GetPages,
      timeline,
      lsn: lsn as Lsn,
      notModifiedSinceLsn: lsn as Lsn,
      flags: 0,
      pages: Uint32Array.from(ids.flat()),
    }
    const out: (Buffer | undefined)[] = []
    for (const { message, bulk } of await this.connection.requestAll(request, { deadlineMs: 120_000 })) {
      let at = 0
      for (let i = 0; i < message.sections.count; i++) {
        if (message.sections.status(i) !== PageStatus.OK) {
          out.push(undefined)
          continue
        }
        const bytes = message.sections.bytes(i)
        out.push(Buffer.from(bulk.subarray(at, at + bytes)))
        at += bytes
      }
    }
    return out
  }

  /** Compares every page of the oracle at its LSN; the differences as text. */
  async compare(
    replay: NaiveReplay,
    timeline = TIMELINE,
  ): Promise<{ compared: number; differences: string[] }> {
    const differences: string[] = []
    let compared = 0
    for (const space of replay.spaces.values()) {
      if (space.format === undefined) continue
      const ids = [...space.pages.keys()].map(page => [space.id, page] as const)
      const got = await this.pages(replay.lsn, ids, timeline)
      for (let i = 0; i < ids.length; i++) {
        compared++
        const want = replay.writtenPage(space.id, ids[i]![1])
        const page = got[i]
        if (page?.equals(want)) continue
        let at = 0
        while (page !== undefined && page[at] === want[at]) at++
        differences.push(
          `page ${ids[i]!.join(':')} of ${space.name} at LSN ${replay.lsn}: ${page === undefined ? 'no page' : `differs at byte ${at}`}`,
        )
      }
    }
    return { compared, differences }
  }
}
