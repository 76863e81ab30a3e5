/**
 * Small imports beside the redo, of what it does not tell: tablespaces that ALTER TABLE … IMPORT TABLESPACE moved in, and
 * other undo tablespaces after a start of the server.
 *
 * Each opens a gap at its LSN that its end closes (docs/attach.md). There is one at a time, and while the next one waits for
 * it, so does the redo: the images have to be as of this LSN, since the same tablespace had other pages before. A large import
 * that is under way ends after them. Ending takes no redo to come, so nobody waits for himself.
 */
import type { Connection } from '../../protocol/connection.ts'
import type { Lsn, TimelineId } from '../../protocol/ids.ts'
import { MessageType } from '../../protocol/messages.ts'
import { isUndoName, type SpaceFile, scanTable } from '../datadir/scan.ts'
import type { Progress } from '../shared/progress.ts'
import { PageImport } from './page-import.ts'
import type { UnknownSpaces } from './space-tracker.ts'
import { UndoWatch } from './undo-watch.ts'

export interface SideImportsOptions {
  readonly datadir: string
  readonly pageServer: Connection
  readonly timeline: TimelineId
  readonly progress: Progress
  readonly signal?: AbortSignal | undefined
  /** A large import is under way. */
  readonly isImporting: () => boolean
  /** Ids of the tablespaces that exist. */
  readonly spaces: () => readonly number[]
  /** Waits until the page server has the redo up to an LSN. */
  readonly ingested: (lsn: Lsn) => Promise<void>
  readonly onImported: (pages: number) => void
  readonly onFailure: (error: unknown) => void
}

export class SideImports {
  readonly #o: SideImportsOptions
  readonly #undo: UndoWatch
  /** Settles when the one under way, if any, has ended. Never fails. */
  #current: Promise<void> = Promise.resolve()
  #busy = false

  constructor(options: SideImportsOptions) {
    this.#o = options
    this.#undo = new UndoWatch(options.datadir)
  }

  /** Waits until nothing is under way. */
  async idle(): Promise<void> {
    while (this.#busy) await this.#current
  }

  #run(work: () => Promise<void>): void {
    this.#busy = true
    this.#current = work()
      .catch(error => this.#o.onFailure(error))
      .finally(() => {
        this.#busy = false
      })
  }

  /** Tablespaces whose content the log does not tell: their files are copied. The redo is at rest until this returns. */
  async take(unknown: UnknownSpaces, lsn: Lsn): Promise<void> {
    const { datadir, progress, pageServer, timeline, signal } = this.#o
    const found: SpaceFile[] = []
    for (const { space, name, external } of unknown.spaces) {
      const file = await scanTable(datadir, name, external)
      // A table that was dropped since: the log will say so.
      if (file?.space === space) found.push(file)
    }
    if (found.length === 0) return
    progress.message(
      `the content of ${found.map(file => file.name).join(', ')} is not in the redo log (IMPORT TABLESPACE); copying it`,
      { spaces: found.map(file => file.space), lsn },
    )
    await this.idle()
    if (!this.#o.isImporting()) await this.#o.ingested(lsn)
    const exist = this.#o.spaces()
    const session = await PageImport.begin({
      pageServer,
      timeline,
      kind: 'partial',
      startLsn: lsn,
      live: true,
      signal,
    })
    this.#run(async () => {
      for (const file of found) await session.copy(file)
      // Their newest page tells from where on they are right.
      const readableFromLsn = session.maxPageLsn > lsn ? session.maxPageLsn : lsn
      await session.end(readableFromLsn, exist)
      this.#o.onImported(session.pages)
      progress.message(
        `copied ${session.pages} pages of ${found.map(file => file.name).join(', ')}; readable from LSN ${readableFromLsn}`,
        { spaces: found.map(file => file.space), pages: session.pages, readableFromLsn },
      )
    })
  }

  /** Undo tablespaces come and go at a start of the server, and the log does not name them: it only has their pages. */
  async lookAtUndo(lsn: Lsn): Promise<void> {
    const isBusy = (): boolean => this.#busy || this.#o.isImporting()
    if (isBusy() || !(await this.#undo.changed())) return
    const files = await this.#undo.settle()
    if (!files) return
    await this.#o.ingested(lsn)
    const { pageServer, timeline, progress, signal } = this.#o
    const replies = await pageServer.requestAll({ type: MessageType.SpaceList, timeline, lsn })
    const before = replies.flatMap(({ message }) => message.spaces)
    const known = new Map(before.map(space => [space.space, space.name]))
    const added = files.filter(file => known.get(file.space) !== file.name)
    const gone = before.filter(space => isUndoName(space.name) && !files.some(f => f.space === space.space))
    if (added.length + gone.length === 0) return
    if (isBusy()) {
      this.#undo.unsettle()
      return
    }
    progress.message(
      `the server has other undo tablespaces than before: ${files.map(file => `${file.name} (id ${file.space})`).join(', ') || 'none'}`,
      { added: added.map(file => file.space), gone: gone.map(space => space.space), lsn },
    )
    this.#run(async () => {
      const session = await PageImport.begin({
        pageServer,
        timeline,
        kind: 'partial',
        startLsn: lsn,
        live: true,
        signal,
      })
      for (const file of added) await session.announce(file)
      const absent = new Set(gone.map(space => space.space))
      await session.end(
        lsn,
        before.flatMap(({ space }) => (absent.has(space) ? [] : [space])),
      )
    })
    await this.#current
  }
}
