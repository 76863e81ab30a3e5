/**
 * The attach agent: brings a datadir into a timeline and keeps it there.
 *
 *     import   pages as of a checkpoint C, while the redo from C on is being followed, until E = an LSN at which all of
 *              the copied pages are covered; the timeline is readable from E on
 *     follow   redo, and the files that are not InnoDB's, a few milliseconds behind the server
 *     repair   when the ring overtook the reader: the log goes on at a new checkpoint, and the pages that changed since
 *              the last LSN read are imported again
 *
 * A *session* lasts from connecting to the first error. Errors that may pass begin a new session, which takes up where
 * the safekeeper's log ends; nothing is kept on this side.
 */
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { LSN_MAX, type Lsn, type TimelineId, type WriterEpoch } from '../../protocol/ids.ts'
import { type ImportKind, MessageType, type TimelineStatus } from '../../protocol/messages.ts'
import { refuseRunningServer } from '../datadir/running-server.ts'
import { type DatadirScan, scanDatadir } from '../datadir/scan.ts'
import { invalidError, PalimpsestError, retryError } from '../shared/errors.ts'
import { formatBytes } from '../shared/format.ts'
import type { WalWriter } from '../shared/log-client.ts'
import type { Progress } from '../shared/progress.ts'
import { EncryptionWatch, encryptionError } from './encryption-watch.ts'
import { FileCapture } from './file-capture.ts'
import type { FileRules } from './file-rules.ts'
import { type ImportJob, Imports } from './imports.ts'
import { AttachMetrics, type AttachTotals, type SessionView } from './metrics.ts'
import { type Cut, RedoPump } from './redo-pump.ts'
import { RingTail, readCheckpoint, serverVersion, type TailStep } from './ring-tail.ts'
import { checkNewestPages, checkServerIdentity, checkSomePages, isReadableAt } from './same-history.ts'
import { SideImports } from './side-imports.ts'
import { SpaceTracker } from './space-tracker.ts'
import {
  claimFiles,
  createTimeline,
  fileSink,
  findTimeline,
  openServers,
  openWriter,
  refuseSuccessor,
  type ServerOptions,
  type Servers,
  showTimeline,
} from './timeline-link.ts'

export interface AttachOptions extends ServerOptions {
  readonly datadir: string
  /** Name of the timeline; made if there is none. */
  readonly timeline: string
  /** Id for it if it is made; random unless told. */
  readonly newTimeline?: TimelineId | undefined
  /** Stop when caught up. Otherwise it goes on until `signal`. */
  readonly once: boolean
  /** The server may be running. False: a cold datadir, whose log is read to its end. */
  readonly live: boolean
  /** Another ib_logfile0 than the datadir's, with redo from the datadir's checkpoint on. Only for a cold datadir. */
  readonly redoFile?: string | undefined
  readonly rules?: FileRules
  /** The datadir is believed to be that of the timeline's server although Aria's UUID is another one. */
  readonly sameServer?: boolean | undefined
  readonly progress: Progress
  readonly metrics?: AttachMetrics | undefined
  /** Told when something happened that a test or a supervisor waits for. */
  readonly onState?: (state: AttachState) => void
}

export type AttachState =
  | {
      readonly kind: 'importing'
      readonly timeline: TimelineId
      readonly importKind: ImportKind
      readonly startLsn: Lsn
    }
  | { readonly kind: 'following'; readonly timeline: TimelineId; readonly lsn: Lsn }
  | { readonly kind: 'overtaken'; readonly fromLsn: Lsn; readonly toLsn: Lsn }

export interface AttachResult {
  readonly timeline: TimelineId
  readonly name: string
  /** The timeline can be read from here on. */
  readonly readableFromLsn: Lsn
  readonly endLsn: Lsn
  readonly importedPages: number
  readonly redoBytes: number
  readonly overtaken: number
}

const RETRY_MS_MIN = 200
const RETRY_MS_MAX = 5000
const FOLLOW_TICK_MS = 10
/** For the safekeepers to take what was read, when the agent is told to stop. */
const LAST_WORDS_MS = 10_000
const LAST_LOOK_MS = 3000
/** How often the files of tablespaces that could be encrypted silently are looked at. */
const ENCRYPTION_LOOK_MS = 10_000
/** A sign of life now and then. */
const REPORT_MS = 60_000
const WAIT_LSN_MS = 10 * 60_000

/** @throws PalimpsestError, DatadirError */
export async function attach(options: AttachOptions): Promise<AttachResult> {
  const metrics = options.metrics ?? new AttachMetrics()
  const { totals } = metrics
  let delay = RETRY_MS_MIN
  /** Of the newest session. */
  let epoch: WriterEpoch | undefined
  /** Of the newest session with which all imports were complete. */
  let complete: AttachResult | undefined
  for (;;) {
    let session: Session | undefined
    try {
      session = await Session.open(options, totals, epoch)
      epoch = session.epoch
      delay = RETRY_MS_MIN
      metrics.begin(session.view)
      return await session.run()
    } catch (error) {
      metrics.end()
      if (session !== undefined) complete = session.isImporting ? undefined : (session.complete ?? complete)
      if (options.signal?.aborted && complete !== undefined) return complete
      if (options.signal?.aborted || epoch === undefined || !mayPass(error)) throw error
      options.progress.message(
        `${(error as Error).message}; trying again in ${(delay / 1000).toFixed(1)} s`,
        { retryInMs: delay },
      )
      await sleep(delay, undefined, { signal: options.signal }).catch(() => {})
      if (options.signal?.aborted) {
        // Between two sessions: what the last one completed stands.
        if (complete !== undefined) return complete
        throw error
      }
      delay = Math.min(delay * 2, RETRY_MS_MAX)
    } finally {
      metrics.end()
      await session?.close()
    }
  }
}

function mayPass(error: unknown): boolean {
  return error instanceof PalimpsestError && (error.kind === 'retry' || error.kind === 'refresh')
}

/** @throws PalimpsestError if the datadir is not one that continues the timeline */
async function checkBelongs(
  options: AttachOptions,
  status: TimelineStatus,
  servers: Servers,
  scan: DatadirScan,
  logPath: string,
): Promise<void> {
  const { pageServer } = servers
  if (!options.sameServer) await checkServerIdentity(pageServer, status, scan.datadir)
  await checkNewestPages(pageServer, status, scan)
  const tail = await RingTail.open(logPath, { fromLsn: status.summary.ingestedLsn, cold: !options.live })
  await tail.close()
}

class Session {
  readonly #o: AttachOptions
  readonly #totals: AttachTotals
  readonly #servers: Servers
  readonly #timeline: TimelineId
  /** As it was when the session began; undefined: it was made then. */
  readonly #status: TimelineStatus | undefined
  readonly #scan: DatadirScan
  readonly #writer: WalWriter
  /** Where the log ended when this session took it over. */
  readonly #fromLsn: Lsn
  readonly #tail: RingTail
  readonly #tracker = new SpaceTracker()
  readonly #encryption = new EncryptionWatch()
  #encryptionSeenAt = Number.NEGATIVE_INFINITY
  readonly #side: SideImports
  readonly #pump: RedoPump
  readonly #capture: FileCapture
  readonly #imports: Imports
  #following = false
  #caughtUp = false
  #failure: unknown

  private constructor(
    options: AttachOptions,
    totals: AttachTotals,
    servers: Servers,
    timeline: TimelineId,
    status: TimelineStatus | undefined,
    writer: WalWriter,
    tail: RingTail,
    scan: DatadirScan,
  ) {
    this.#o = options
    this.#status = status
    this.#scan = scan
    this.#totals = totals
    this.#servers = servers
    this.#timeline = timeline
    this.#writer = writer
    this.#fromLsn = writer.endLsn
    this.#tail = tail
    this.#side = new SideImports({
      datadir: options.datadir,
      pageServer: servers.pageServer,
      timeline,
      progress: options.progress,
      signal: options.signal,
      isImporting: () => this.#imports.job !== undefined,
      spaces: () => this.#tracker.all(),
      ingested: lsn => this.#ingested(lsn),
      onImported: pages => {
        totals.importedPages += pages
      },
      onFailure: error => {
        this.#failure ??= error
      },
    })
    this.#pump = new RedoPump({
      tail,
      writer,
      inspect: chunk => this.#inspect(chunk),
      onOvertaken: step => this.#overtaken(step),
    })
    this.#imports = new Imports({
      datadir: options.datadir,
      live: options.live,
      pageServer: servers.pageServer,
      timeline,
      progress: options.progress,
      pump: this.#pump,
      tracker: this.#tracker,
      side: this.#side,
      readableFromLsn: status?.summary.readableFromLsn ?? writer.endLsn,
      ingested: lsn => this.#ingested(lsn),
      otherFiles: async () => await this.#firstSweep,
      failure: () => this.#failure,
      onBegun: ({ kind, startLsn }) =>
        options.onState?.({ kind: 'importing', timeline, importKind: kind, startLsn }),
      onImported: pages => {
        totals.importedPages += pages
      },
    })
    // Files of a stopped server are as old as its pages, however far the redo has been read meanwhile.
    const begin = tail.position
    this.#capture = new FileCapture({
      datadir: options.datadir,
      files: scan.spaces[0]!.files,
      sink: fileSink(servers.pageServer, timeline),
      position: options.live ? () => tail.position : () => begin,
      ...(options.rules ? { rules: options.rules } : {}),
      warn: text => options.progress.message(text),
    })
  }

  /** @param lastEpoch of this agent's session before */
  static async open(
    options: AttachOptions,
    totals: AttachTotals,
    lastEpoch: WriterEpoch | undefined,
  ): Promise<Session> {
    const { datadir, live } = options
    // Before anything is made anywhere: is this a datadir that can be followed?
    if (!live)
      await refuseRunningServer(datadir, 'use "palimpsest attach", which copies it while the server works')
    const scan = await scanDatadir(datadir, { live })
    const ownLog = join(scan.datadir, 'ib_logfile0')
    const checkpoint = await readCheckpoint(ownLog)
    const servers = await openServers(options).catch(error => {
      // Addresses that were right before are right still: a server that starts up may not have all of its roles yet.
      throw lastEpoch !== undefined && !options.signal?.aborted
        ? retryError((error as Error).message, error)
        : error
    })
    let writer: WalWriter | undefined
    try {
      const status = await findTimeline(servers.pageServer, options.timeline)
      if (status && status.summary.innodbPageSize !== scan.pageSize)
        throw invalidError(
          `timeline ${options.timeline} has pages of ${status.summary.innodbPageSize} bytes, but ${datadir} has pages of ${scan.pageSize}; choose another timeline`,
        )
      const path = options.redoFile ?? ownLog
      // Before another agent, which may be the right one, is put out of its office.
      if (status) await checkBelongs(options, status, servers, scan, path)
      const timeline =
        status?.summary.timeline ??
        (
          await createTimeline(servers, {
            name: options.timeline,
            timeline: options.newTimeline,
            startLsn: checkpoint.checkpointLsn,
            innodbPageSize: scan.pageSize,
            serverVersion: await serverVersion(path),
          })
        ).timeline
      if (lastEpoch !== undefined) await refuseSuccessor(servers, timeline, lastEpoch)
      writer = await openWriter(options, timeline, reason =>
        options.progress.message(
          `the safekeepers do not take redo at present (${reason}); going on as soon as they do`,
        ),
      )
      await claimFiles(servers.pageServer, timeline, writer.epoch)
      const tail = await RingTail.open(path, { fromLsn: writer.endLsn, cold: !live })
      return new Session(options, totals, servers, timeline, status, writer, tail, scan)
    } catch (error) {
      writer?.close()
      servers.close()
      throw error
    }
  }

  /** For metrics. */
  readonly view = (): SessionView => ({
    sentLsn: this.#pump.sentLsn,
    flushedLsn: this.#pump.flushedLsn,
    redoBytes: this.#pump.redoBytes,
    chunks: this.#pump.chunks,
    endSeenAtMs: this.#pump.endSeenAtMs,
    importing: this.#imports.job !== undefined,
    following: this.#following,
    files: this.#capture.files,
  })

  async close(): Promise<void> {
    this.#pump.stop()
    this.#imports.abort()
    await this.#capture.close()
    this.#writer.close()
    this.#servers.close()
    await this.#tail.close()
  }

  async run(): Promise<AttachResult> {
    const { progress, signal, once } = this.#o
    const job = await this.#missingImport()
    this.#tracker.know(this.#scan.spaces.map(space => space.space))
    for (const { space, format } of this.#scan.spaces)
      if (format.encryptedHint) this.#encryption.prepared.add(space)
    if (job) {
      await this.#imports.begin(job)
    } else {
      progress.message(
        `timeline ${this.#o.timeline} exists; following ${this.#tail.path} from LSN ${this.#fromLsn}`,
        { timeline: this.#timeline, lsn: this.#fromLsn },
      )
      await this.#assumeKnown()
    }
    if (this.#o.live && !once) this.#capture.watch()
    const pumped = this.#pump.run()
    pumped.catch(error => {
      this.#failure ??= error
    })
    // The writer finds another safekeeper by itself; a page server that is gone ends the session.
    const { closed } = this.#servers.pageServer
    const onLost = (): void => this.#pump.fail(closed.reason)
    closed.addEventListener('abort', onLost, { once: true })
    const onAbort = (): void => {
      // While following, the last look at the log comes first: see #follow.
      if (!this.#following) this.#pump.stop()
      this.#imports.abort(signal?.reason)
      // What is not committed by then is read again by the next session.
      setTimeout(() => this.#pump.fail(signal?.reason), LAST_WORDS_MS).unref()
    }
    signal?.addEventListener('abort', onAbort, { once: true })
    // It may have come before anybody listened.
    if (signal?.aborted) onAbort()
    try {
      this.#firstSweep = this.#capture.sweep()
      // Awaited by the import as well; a failure is seen there or here.
      this.#firstSweep.catch(() => {})
      await this.#imports.finish()
      await this.#firstSweep
      const lsn = await this.#pump.caughtUp()
      if (signal?.aborted) throw signal.reason
      await this.#imports.finish()
      this.#caughtUp = true
      this.#o.onState?.({ kind: 'following', timeline: this.#timeline, lsn })
      progress.event('following', {
        timeline: this.#timeline,
        lsn,
        readableFromLsn: this.#imports.readableFromLsn,
      })
      if (once) {
        const end = await this.#pump.caughtUp()
        // Files last: a table that the redo creates had its definition before.
        this.#pump.stop()
        await pumped
        await this.#side.idle()
        await this.#capture.idle()
        if (this.#failure) throw this.#failure
        await this.#ingested(end)
        await this.#side.lookAtUndo(this.#tail.position)
      } else {
        progress.message(`caught up with the server at LSN ${lsn}; following (stop with Ctrl-C)`, { lsn })
        await this.#follow()
      }
    } catch (error) {
      // Being told to stop is no failure, unless the import was not complete.
      if (!signal?.aborted || this.#imports.job) throw this.#failure ?? error
    } finally {
      signal?.removeEventListener('abort', onAbort)
      closed.removeEventListener('abort', onLost)
      this.#pump.stop()
    }
    await pumped
    this.#totals.redoBytes += this.#pump.redoBytes
    return this.#result()
  }

  get epoch(): WriterEpoch {
    return this.#writer.epoch
  }

  get isImporting(): boolean {
    return this.#imports.job !== undefined
  }

  /** What there is, once all that had to be imported is and the redo was read to its end. */
  get complete(): AttachResult | undefined {
    return this.#caughtUp && !this.isImporting ? this.#result() : undefined
  }

  #result(): AttachResult {
    return {
      timeline: this.#timeline,
      name: this.#o.timeline,
      readableFromLsn: this.#imports.readableFromLsn,
      endLsn: this.#pump.flushedLsn,
      importedPages: this.#totals.importedPages,
      redoBytes: this.#totals.redoBytes,
      overtaken: this.#totals.overtaken,
    }
  }

  /**
   * What an earlier session left undone, or the first import. It is as of an LSN from which on the page server has, or
   * will have, all redo, and up to which the data files are complete.
   */
  async #missingImport(): Promise<ImportJob | undefined> {
    const status = this.#status
    if (!status) return { kind: 'full', startLsn: this.#fromLsn, afterLsn: undefined }
    const { summary, gaps } = status
    if (summary.state === 'importing')
      return { kind: 'full', startLsn: summary.startLsn, afterLsn: undefined }
    const open = gaps.find(gap => gap.toLsn === LSN_MAX)
    const never = summary.readableFromLsn === LSN_MAX
    if (!open && !never) return undefined
    // The redo of the gap's other side begins at a checkpoint, so the present one is not before it.
    const checkpointLsn = await this.#tail.refreshCheckpoint()
    const startLsn = Math.min(checkpointLsn, this.#fromLsn) as Lsn
    return never
      ? { kind: 'full', startLsn, afterLsn: undefined }
      : // Not only what changed since: it may be the content of a tablespace that was just moved in, whose pages are older.
        { kind: 'partial', startLsn, afterLsn: undefined }
  }

  async #follow(): Promise<void> {
    const { signal, progress } = this.#o
    let reported = performance.now()
    let reportedLsn = this.#pump.sentLsn
    this.#following = true
    while (!signal?.aborted) {
      if (this.#failure) throw this.#failure
      const now = performance.now()
      if (now - reported >= REPORT_MS) {
        const lsn = this.#pump.sentLsn
        const rate = formatBytes(((lsn - reportedLsn) / (now - reported)) * 1000)
        progress.message(`at LSN ${lsn}, ${rate}/s of redo, ${this.#capture.files} other files`, { lsn })
        reported = now
        reportedLsn = lsn
      }
      this.#capture.poll()
      await this.#imports.finish()
      try {
        await this.#side.lookAtUndo(this.#tail.position)
      } catch (error) {
        // Told to stop: what follows this loop is still done.
        if (!signal?.aborted) throw error
      }
      await this.#lookAtEncryption()
      await sleep(FOLLOW_TICK_MS, undefined, signal ? { signal } : {}).catch(() => {})
    }
    // What the server had written when we were told to stop is taken along, but nothing is waited for that may not come.
    await Promise.race([this.#pump.caughtUp(), sleep(LAST_LOOK_MS, undefined, { ref: false })])
    // Files last: a table that the redo creates had its definition before.
    this.#pump.stop()
    await this.#capture.idle()
  }

  async #ingested(lsn: Lsn): Promise<void> {
    await this.#servers.pageServer.request(
      { type: MessageType.WaitLsn, timeline: this.#timeline, lsn, timeoutMs: WAIT_LSN_MS },
      // A page server that does not get on must not keep the agent from ending.
      { deadlineMs: WAIT_LSN_MS + 10_000, signal: this.#o.signal },
    )
  }

  /** What the page server has already: tablespaces by id, files by size and time. */
  async #assumeKnown(): Promise<void> {
    const { pageServer } = this.#servers
    const lsn = 0 as Lsn
    const spaces = await pageServer.requestAll({ type: MessageType.SpaceList, timeline: this.#timeline, lsn })
    for (const { message } of spaces) this.#tracker.know(message.spaces.map(space => space.space))
    const files = await pageServer.requestAll({ type: MessageType.FileList, timeline: this.#timeline, lsn })
    for (const { message } of files) this.#capture.assume(message.files)
  }

  #firstSweep: Promise<void> | undefined
  /** The ring came round. All redo read so far is durable, and nothing is in flight. */
  async #overtaken(step: Extract<TailStep, { kind: 'overtaken' }>): Promise<void> {
    const { progress } = this.#o
    const from = step.position
    // The newest checkpoint gives the most time until it happens again.
    const to = step.checkpointLsn
    this.#totals.overtaken++
    progress.message(
      `the server's log has overtaken the reader at LSN ${from} (${step.reason}); going on at its checkpoint, LSN ${to}. ` +
        'LSNs in between cannot be read; a larger innodb_log_file_size makes this less likely',
      { fromLsn: from, toLsn: to },
    )
    this.#o.onState?.({ kind: 'overtaken', fromLsn: from, toLsn: to })
    await this.#ingested(from)
    const { pageServer } = this.#servers
    const status = await showTimeline(pageServer, this.#timeline)
    // There is nothing to compare with where an earlier gap is not mended yet.
    if (isReadableAt(status, from)) {
      const scan = await scanDatadir(this.#o.datadir, { live: this.#o.live })
      await checkSomePages(scan, { pageServer, status, lsn: from })
    }
    await this.#writer.skip(to)
    await this.#writer.durable()
    await this.#tail.restartAt(to)
    await this.#ingested(to)
    // What an unfinished import had to bring is still to be brought.
    const unfinished = this.#imports.job
    await this.#imports.begin({
      kind: unfinished?.kind ?? 'partial',
      startLsn: to,
      afterLsn: unfinished ? unfinished.afterLsn : from,
    })
  }

  #inspect(chunk: Extract<TailStep, { kind: 'chunk' }>): Cut[] {
    const encrypted = this.#encryption.inspect(chunk.bytes, chunk.beginLsn)
    const unknown = this.#tracker.inspect(chunk.bytes, chunk.beginLsn, chunk.fileMtrs)
    const cuts: Cut[] = []
    if (this.#o.live)
      for (const spaces of unknown)
        if (!encrypted || spaces.at <= encrypted.at)
          cuts.push({ at: spaces.at, action: lsn => this.#side.take(spaces, lsn) })
    if (encrypted)
      cuts.push({
        at: encrypted.at,
        action: lsn => this.#refuseEncryption(encrypted.space, lsn),
      })
    return cuts
  }

  async #refuseEncryption(space: number, lsn: Lsn): Promise<never> {
    const name =
      this.#tracker.nameOf(space) ??
      this.#scan.spaces.find(file => file.space === space)?.name ??
      'no name known'
    // What is readable has its table definitions, too.
    await this.#capture.idle().catch(() => {})
    throw encryptionError(space, name, lsn)
  }

  /** Tablespaces that could be encrypted without the log saying so once more. */
  async #lookAtEncryption(): Promise<void> {
    const now = performance.now()
    if (this.#encryption.prepared.size === 0 || now - this.#encryptionSeenAt < ENCRYPTION_LOOK_MS) return
    this.#encryptionSeenAt = now
    await scanDatadir(this.#o.datadir, { live: true })
  }
}
