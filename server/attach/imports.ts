/**
 * The imports of one session of the agent, one after the other: the first one, or repairs. A newer one takes the place of
 * one that is not finished, since the ring may overtake the reader while it copies.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import type { Connection } from '../../protocol/connection.ts'
import type { Lsn, TimelineId } from '../../protocol/ids.ts'
import type { ImportKind } from '../../protocol/messages.ts'
import { DoublewriteCopies } from '../datadir/doublewrite.ts'
import { type SpaceFile, scanDatadir } from '../datadir/scan.ts'
import { invalidError, retryError } from '../shared/errors.ts'
import { formatBytes } from '../shared/format.ts'
import type { Progress } from '../shared/progress.ts'
import { copySpaces } from './copy-spaces.ts'
import { PageImport } from './page-import.ts'
import type { RedoPump } from './redo-pump.ts'
import { isReadableAt, UnchangedPages } from './same-history.ts'
import type { SideImports } from './side-imports.ts'
import type { SpaceTracker } from './space-tracker.ts'
import { showTimeline } from './timeline-link.ts'

/** What is to be imported next; a newer one replaces one that is not finished. */
export interface ImportJob {
  readonly kind: ImportKind
  readonly startLsn: Lsn
  readonly afterLsn: Lsn | undefined
}

export interface ImportsOptions {
  readonly datadir: string
  readonly live: boolean
  readonly pageServer: Connection
  readonly timeline: TimelineId
  readonly progress: Progress
  readonly pump: RedoPump
  readonly tracker: SpaceTracker
  readonly side: SideImports
  /** From where on the timeline can be read already. */
  readonly readableFromLsn: Lsn
  /** Waits until the page server has the redo up to an LSN. */
  readonly ingested: (lsn: Lsn) => Promise<void>
  /** Waits until the files that are not InnoDB's have been taken once. */
  readonly otherFiles: () => Promise<void>
  /** Why the session is to end, if it is. */
  readonly failure: () => unknown
  readonly onBegun: (job: ImportJob) => void
  readonly onImported: (pages: number) => void
}

export class Imports {
  readonly #o: ImportsOptions
  #readableFromLsn: Lsn
  /** Begun by the time that it stands here: the redo beyond its start LSN may flow. */
  #job:
    | {
        readonly job: ImportJob
        readonly session: PageImport
        readonly abort: AbortController
        readonly unchanged: UnchangedPages | undefined
      }
    | undefined

  constructor(options: ImportsOptions) {
    this.#o = options
    this.#readableFromLsn = options.readableFromLsn
  }

  /** The timeline can be read from here on, gaps aside. */
  get readableFromLsn(): Lsn {
    return this.#readableFromLsn
  }

  /** What is under way. */
  get job(): ImportJob | undefined {
    return this.#job?.job
  }

  abort(reason?: unknown): void {
    this.#job?.abort.abort(reason)
  }

  #check(): void {
    const failure = this.#o.failure()
    if (failure) throw failure
  }

  /** Begins an import. The redo is at rest while this runs, so that none beyond the start LSN comes before it. */
  async begin(job: ImportJob): Promise<void> {
    const begun = this.#begin(job)
    this.#begun = begun
    await begun
  }

  /** The last beginning: who was stopped by it waits to see what took his place. */
  #begun: Promise<void> | undefined

  async #begin(job: ImportJob): Promise<void> {
    this.#job?.abort.abort()
    const abort = new AbortController()
    const unchanged = job.afterLsn === undefined ? undefined : new UnchangedPages()
    const session = await PageImport.begin({
      pageServer: this.#o.pageServer,
      timeline: this.#o.timeline,
      kind: job.kind,
      startLsn: job.startLsn,
      ...(job.afterLsn === undefined ? {} : { afterLsn: job.afterLsn }),
      ...(unchanged
        ? {
            onUnchanged: (space: number, page: number, lsn: Lsn) => unchanged.offer(space, page, lsn),
          }
        : {}),
      live: this.#o.live,
      signal: abort.signal,
      yieldToRedo: () => this.#yieldToRedo(abort.signal),
      onProgress: bytes => this.#onCopied?.(bytes),
      rescue: (space, page) => this.#rescue(space, page),
    })
    this.#job = { job, session, abort, unchanged }
    this.#o.onBegun(job)
  }

  /** Of a server that went down with its machine. */
  #doublewrite: DoublewriteCopies | undefined

  #rescue(space: SpaceFile, page: number): Uint8Array | undefined {
    const copy = this.#doublewrite?.find(space.space, page, space.format)
    if (copy)
      this.#o.progress.message(
        `page ${page} of ${space.name} is torn; taking its copy from the doublewrite buffer, as recovery would`,
        { space: space.space, page },
      )
    return copy
  }

  #onCopied: ((bytes: number) => void) | undefined

  async #yieldToRedo(signal: AbortSignal): Promise<void> {
    // Nobody overwrites the log of a server that does not run.
    while (this.#o.live && this.#o.pump.isInDanger && !this.#o.failure() && !signal.aborted) await sleep(2)
    this.#check()
  }

  /** Copies what `#job` asks for; when the ring overtakes the reader meanwhile, begins again as the new job says. */
  async finish(): Promise<void> {
    while (this.#job) {
      const current = this.#job
      this.#o.tracker.beginScans()
      try {
        await this.#copy(current.job, current.session)
        if (this.#job === current) this.#job = undefined
      } catch (error) {
        await this.#begun
        this.#check()
        if (this.#job === current || !current.abort.signal.aborted) throw error
      } finally {
        this.#o.tracker.endScans()
      }
    }
    await this.#o.side.idle()
    this.#check()
  }

  async #copy(job: ImportJob, session: PageImport): Promise<void> {
    const { progress, datadir, live } = this.#o
    const { signal } = this.#job!.abort
    const started = performance.now()
    const scan = await scanDatadir(datadir, { live })
    this.#doublewrite = await DoublewriteCopies.read(scan.spaces[0]!)
    const task = await progress.task(job.kind === 'full' ? 'pages' : 'changed pages', scan.bytes)
    this.#onCopied = bytes => task.update(bytes)
    progress.message(
      job.kind === 'full'
        ? `importing ${scan.spaces.length} tablespaces (${formatBytes(scan.bytes)}) as of LSN ${job.startLsn}`
        : job.afterLsn === undefined
          ? `importing ${scan.spaces.length} tablespaces (${formatBytes(scan.bytes)}) once more, as of LSN ${job.startLsn}`
          : `importing the pages that changed after LSN ${job.afterLsn}, as of LSN ${job.startLsn}`,
      { startLsn: job.startLsn, kind: job.kind },
    )
    const spaces = await copySpaces(scan, {
      datadir,
      live,
      session,
      startLsn: job.startLsn,
      tracker: this.#o.tracker,
      caughtUp: () => this.#o.pump.caughtUp(),
      signal,
    })
    await session.drained()
    task.finish()
    const end = await this.#coveringLsn(session, job.startLsn)
    // What can be read has its other files, too.
    await this.#o.otherFiles()
    // Nor are tablespaces missing that were moved in meanwhile.
    await this.#o.side.idle()
    // The ring may have overtaken the reader meanwhile, and then another import has taken this one's place.
    if (this.#job?.session !== session) throw retryError('the import was begun anew')
    // The page server must know of the gap that this import mends, and be able to read at its end.
    await this.#o.ingested(end)
    await this.#checkUnchanged(job)
    await session.end(end, spaces)
    this.#readableFromLsn = job.kind === 'full' ? end : this.#readableFromLsn
    this.#o.onImported(session.pages)
    progress.message(
      `imported ${session.pages} pages in ${((performance.now() - started) / 1000).toFixed(1)} s; readable from LSN ${end}`,
      { pages: session.pages, readableFromLsn: end },
    )
  }

  /** Nothing of a repair counts before it is sure that it mends this timeline. */
  async #checkUnchanged({ afterLsn }: ImportJob): Promise<void> {
    if (afterLsn === undefined) return
    const { pageServer, timeline, datadir } = this.#o
    const status = await showTimeline(pageServer, timeline)
    if (isReadableAt(status, afterLsn))
      await this.#job?.unchanged?.check({ pageServer, status, lsn: afterLsn }, datadir)
  }

  /** The LSN from which on the copied pages are right, with all of the redo up to it durable. */
  async #coveringLsn(session: PageImport, startLsn: Lsn): Promise<Lsn> {
    // Pages are written after their redo, so the log file has all of it by now: its end is enough, and is soon reached.
    const end = await this.#o.pump.caughtUp()
    if (end < session.maxPageLsn)
      throw invalidError(
        `${session.newestPage} has LSN ${session.maxPageLsn}, but the redo log ends at LSN ${end}: if this file is no table of the server (copied there to be imported, or left over), move it out of the datadir; otherwise the log does not belong to this datadir, or was cut`,
        end,
      )
    // The files of a stopped server stood still: their newest page tells how far they are, and all that is in the
    // redo beyond can be read as well.
    if (!this.#o.live) return session.maxPageLsn > startLsn ? session.maxPageLsn : startLsn
    return end
  }
}
