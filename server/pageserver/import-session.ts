/**
 * One import: tablespaces and pages as of the LSN at which it began, until it ends or is given up.
 *
 * Pages are spooled to a file as they come, and each full spool is made an image layer by a worker while the next one
 * fills: memory stays at the frames in flight. Layers are put into the store as they are finished, but no manifest names
 * them before the import has ended. Of one that is given up nothing remains, of one that a crash ended nothing after the next
 * start.
 */
import { type FileHandle, open } from 'node:fs/promises'
import { parseSpaceFlags } from '../../parser/space-flags.ts'
import { LSN_MAX, type Lsn } from '../../protocol/ids.ts'
import type { ImportEnd, ImportKind, ImportPages, ImportSpace } from '../../protocol/messages-import.ts'
import { invalidError, retryError, toPalimpsestError } from '../shared/errors.ts'
import { DATA_FILE_MODE } from '../shared/file-modes.ts'
import { Turns } from '../shared/turns.ts'
import type { CatalogueEvent } from './catalogue-codec.ts'
import { closeGaps } from './core/gaps.ts'
import { removeScratch } from './environment.ts'
import { type LayerEntry, layerEntry } from './manifest.ts'
import type { Timeline } from './timeline.ts'

const SPOOL_BYTES = 64 << 20
/** Spools that wait for a worker; beyond that the sender waits. */
const SPOOLS_IN_WORK_MAX = 2
/** Imports of one timeline that may be under way: its agent has one or two. */
const SESSIONS_MAX = 32
/** A partial import may end before the log's gap has arrived here; it is waited for so long. */
const GAP_WAIT_MS = 20_000
/** Level of image layers that come from an import; those of a compaction have a higher one. */
export const IMPORT_IMAGE_LEVEL = 1

interface Spool {
  readonly path: string
  readonly file: FileHandle
  readonly pages: number[]
  bytes: number
}

export class ImportSession {
  readonly id: number
  readonly timeline: Timeline
  readonly startLsn: Lsn
  readonly kind: ImportKind
  /** Whose import it is. Gaps that others were to mend are no concern of theirs any more once somebody new has begun one. */
  readonly owner: unknown
  /** The gaps, by where they begin, that its end closes; undefined: all up to its LSN. */
  claims: ReadonlySet<number> | undefined
  /** It is about content that the redo does not tell, and opened a gap of its own. */
  isSmall = false
  /** By space id: flags. */
  readonly #spaces = new Map<number, number>()
  readonly #events: CatalogueEvent[] = []
  readonly #layers: LayerEntry[] = []
  #spool: Spool | undefined
  readonly #inWork = new Set<Promise<void>>()
  #failure: unknown
  /** The manifest may have the layers: its update has begun. */
  #mayBeNamed = false
  /** Requests are carried out in the order in which they came. */
  readonly #turns = new Turns()
  pages = 0
  lastUsedMs: number

  constructor(id: number, timeline: Timeline, startLsn: Lsn, kind: ImportKind, owner: unknown) {
    this.id = id
    this.owner = owner
    this.timeline = timeline
    this.startLsn = startLsn
    this.kind = kind
    this.lastUsedMs = timeline.env.nowMs()
  }

  mends(gapFrom: number): boolean {
    return this.claims === undefined ? gapFrom <= this.startLsn : this.claims.has(gapFrom)
  }

  #inTurn<T>(work: () => Promise<T>): Promise<T> {
    this.lastUsedMs = this.timeline.env.nowMs()
    return this.#turns.run(async () => {
      if (this.#failure !== undefined) throw this.#failure
      return work()
    })
  }

  addSpace(message: ImportSpace): Promise<void> {
    return this.#inTurn(async () => {
      const { space, flags, pages, name, external } = message
      let format: ReturnType<typeof parseSpaceFlags>
      try {
        format = parseSpaceFlags(flags)
      } catch (error) {
        throw invalidError(`tablespace ${space} (${name}): ${(error as Error).message}`)
      }
      const expected = this.timeline.manifest.current.innodbPageSize
      if (format.logicalSize !== expected)
        throw invalidError(
          `tablespace ${space} (${name}) has pages of ${format.logicalSize} bytes, the timeline ${expected}`,
        )
      this.#spaces.set(space, flags)
      this.#events.push({ kind: 'import', lsn: this.startLsn, space, name, external, flags, pages })
    })
  }

  addPages(message: ImportPages, bulk: Uint8Array): Promise<void> {
    return this.#inTurn(async () => {
      const flags = this.#spaces.get(message.space)
      if (flags === undefined)
        throw invalidError(`pages of tablespace ${message.space}, which was not announced`)
      const { physicalSize } = parseSpaceFlags(flags)
      if (message.pageBytes !== physicalSize)
        throw invalidError(
          `pages of ${message.pageBytes} bytes for tablespace ${message.space}, whose pages have ${physicalSize}`,
        )
      const count = message.pages.length / 2
      if (count === 0) return
      let spool = this.#spool
      if (spool === undefined) {
        const path = this.timeline.scratchPath('import')
        spool = { path, file: await open(path, 'wx', DATA_FILE_MODE), pages: [], bytes: 0 }
        this.#spool = spool
      }
      let written = 0
      while (written < bulk.length)
        written += (await spool.file.write(bulk, written, bulk.length - written, spool.bytes + written))
          .bytesWritten
      spool.bytes += bulk.length
      for (let i = 0; i < count; i++)
        spool.pages.push(message.space, message.pages[2 * i]!, flags, message.pages[2 * i + 1]!)
      this.pages += count
      if (spool.bytes >= SPOOL_BYTES) await this.#closeSpool([])
    })
  }

  /** Has a worker make a layer of the spool; waits while too many are being made. */
  async #closeSpool(events: readonly CatalogueEvent[]): Promise<void> {
    const spool = this.#spool
    this.#spool = undefined
    await spool?.file.close()
    if (spool === undefined && events.length === 0) return
    while (this.#inWork.size >= SPOOLS_IN_WORK_MAX) await Promise.race(this.#inWork)
    const work = this.#makeLayer(spool, events).catch(error => {
      this.#failure ??= error
    })
    this.#inWork.add(work)
    void work.then(() => this.#inWork.delete(work))
  }

  async #makeLayer(spool: Spool | undefined, events: readonly CatalogueEvent[]): Promise<void> {
    const { timeline } = this
    const { manifest, env } = timeline
    const path = timeline.scratchPath('image')
    const pages = Uint32Array.from(spool?.pages ?? [])
    try {
      const summary = await env.background.run('importLayer', {
        spool: spool?.path ?? '',
        pages,
        path,
        timeline: timeline.id,
        generation: manifest.current.generation,
        lsn: this.startLsn,
        events,
      })
      const key = manifest.layerKey('image', IMPORT_IMAGE_LEVEL, this.startLsn, this.startLsn)
      await env.layers.put(key, path)
      this.#layers.push(layerEntry(key, IMPORT_IMAGE_LEVEL, summary))
    } finally {
      if (spool !== undefined) await removeScratch(spool.path)
      await removeScratch(path)
    }
  }

  /** Makes the import part of the timeline; it is durable when this resolves. */
  end(message: ImportEnd): Promise<void> {
    return this.#inTurn(async () => {
      const { timeline, startLsn } = this
      const { readableFromLsn } = message
      if (readableFromLsn < startLsn)
        throw invalidError(`an import as of LSN ${startLsn} cannot be readable from LSN ${readableFromLsn}`)
      // Redo that was lost must be known as lost before it can be mended.
      if (this.kind === 'partial') await timeline.waitForLsn(startLsn, GAP_WAIT_MS)
      const exist = new Set(message.spaces)
      for (const { space, name } of timeline.catalogue.list(startLsn))
        if (!exist.has(space) && !this.#spaces.has(space)) {
          timeline.log.info({ space, spaceName: name }, 'this tablespace is gone since the last import')
          this.#events.push({ kind: 'gone', lsn: startLsn, space })
        }
      // The spaces go last: the layers of pages exist by then.
      await this.#closeSpool(this.#events)
      await Promise.all(this.#inWork)
      if (this.#failure !== undefined) throw this.#failure
      for (const event of this.#events) timeline.catalogue.apply(event)
      // A snapshot of the catalogue that was saved meanwhile lacks these events, and its LSN may be above theirs.
      await timeline.saveCatalogue()
      let outdated: LayerEntry[] = []
      this.#mayBeNamed = true
      await timeline.manifest.update(current => {
        const gaps =
          this.kind === 'full' && current.gaps.length === 0
            ? [{ from: current.startLsn, readableFrom: readableFromLsn }]
            : closeGaps(current.gaps, { startLsn, readableFromLsn, mends: from => this.mends(from) })
        outdated = current.layers.filter(layer => isOutdated(layer, startLsn))
        const kept = current.layers.filter(layer => !outdated.includes(layer))
        // Of compactions under way, too.
        timeline.pagesReplaced()
        return { ...current, gaps, layers: [...considerAgain(kept, startLsn), ...this.#layers] }
      })
      timeline.imported(startLsn)
      await timeline.stack.retire(outdated)
      timeline.log.info(
        { startLsn, readableFromLsn, pages: this.pages, spaces: this.#spaces.size },
        'import ended',
      )
    })
  }

  /** Gives the import up, with what it stored: what cannot be deleted now, the next start removes. */
  async abort(): Promise<void> {
    this.#failure ??= invalidError(`import ${this.id} was given up`)
    await this.#turns.done()
    await Promise.all(this.#inWork)
    const spool = this.#spool
    this.#spool = undefined
    if (spool !== undefined) {
      await spool.file.close()
      await removeScratch(spool.path)
    }
    if (this.#mayBeNamed) return
    for (const { key } of this.#layers.splice(0))
      await this.timeline.env.layers.delete(key).catch(error => {
        this.timeline.log.debug({ err: error, layer: key }, 'a layer of an import that was given up stays')
      })
  }
}

/** Images that a compaction made of pages that were not these yet. Nothing is lost with them. */
function isOutdated(layer: LayerEntry, startLsn: Lsn): boolean {
  return layer.kind === 'image' && layer.level !== IMPORT_IMAGE_LEVEL && layer.lsnEnd >= startLsn
}

/** Of the pages in these layers there are to be images again. */
function considerAgain(layers: readonly LayerEntry[], startLsn: Lsn): LayerEntry[] {
  return layers.map(layer =>
    layer.imagesDone && layer.lsnEnd >= startLsn ? { ...layer, imagesDone: false } : layer,
  )
}

/** The imports under way in a page server. */
export class ImportSessions {
  readonly #sessions = new Map<number, ImportSession>()
  #nextId = 1

  /**
   * A partial import brings what the redo does not tell. If redo was lost, there is an open gap that no import is about to
   * mend yet, and this one does. Otherwise it is about the content of single tablespaces (IMPORT TABLESPACE), maybe beside
   * one that mends a gap: then nothing after its LSN can be read before it has ended, either, and it opens a gap of its own.
   * That is durable when this returns, whatever becomes of the importer.
   * @param owner a new one takes over the gaps that all others were to mend: a timeline has one writer
   * @param branches where branches of the timeline begin
   */
  async begin(
    timeline: Timeline,
    startLsn: Lsn,
    kind: ImportKind,
    owner: unknown,
    branches: readonly Lsn[] = [],
  ): Promise<ImportSession> {
    const { startLsn: first } = timeline.manifest.current
    if (startLsn < first)
      throw invalidError(`an import as of LSN ${startLsn} for a timeline whose redo begins at LSN ${first}`)
    if (kind === 'full' && timeline.state === 'importing' && startLsn !== first)
      throw invalidError(`the first import must be as of the LSN at which the timeline begins, ${first}`)
    const newest = Math.max(0, ...branches)
    if (newest > startLsn && timeline.state !== 'importing')
      throw retryError(
        `an import as of LSN ${startLsn} would change the past of a branch of ${timeline.name} that began at LSN ${newest}; try again when the server's checkpoint has passed that`,
      )
    await this.#makeRoom(timeline)
    // Ids are not to be confused with those of the process before.
    const id = ((this.#nextId++ << 16) | (Math.floor(timeline.env.nowMs()) & 0xffff)) >>> 0
    const session = new ImportSession(id, timeline, startLsn, kind, owner)
    this.#sessions.set(id, session)
    if (kind === 'partial')
      try {
        await this.#claimGaps(session)
      } catch (error) {
        // It must not keep the next one from what it has claimed.
        this.#sessions.delete(id)
        throw error
      }
    return session
  }

  /** Importers that come and go leave spools and layers: of too many, the one that nobody has used for longest is given up. */
  async #makeRoom(timeline: Timeline): Promise<void> {
    const others = [...this.#sessions.values()].filter(session => session.timeline === timeline)
    if (others.length < SESSIONS_MAX) return
    const [oldest] = others.sort((a, b) => a.lastUsedMs - b.lastUsedMs)
    this.#sessions.delete(oldest!.id)
    timeline.log.warn({ session: oldest!.id }, 'an import was given up for others: too many are under way')
    await oldest!.abort()
  }

  async #claimGaps(session: ImportSession): Promise<void> {
    const { timeline, startLsn, owner } = session
    await timeline.manifest.update(current => {
      const others = [...this.#sessions.values()].filter(
        other => other !== session && other.timeline === timeline && other.owner === owner,
      )
      const open = current.gaps.filter(gap => gap.readableFrom === LSN_MAX)
      const isClaimed = (from: Lsn): boolean => others.some(other => other.claims?.has(from))
      if (open.some(gap => !isClaimed(gap.from))) {
        const small = others.filter(other => other.isSmall)
        const mine = open.filter(gap => !small.some(other => other.claims?.has(gap.from)))
        session.claims = new Set(mine.map(gap => gap.from))
        return current
      }
      session.isSmall = true
      // Before the end of the first import nothing can be read anyway.
      session.claims = new Set(current.gaps.length === 0 ? [] : [startLsn])
      if (current.gaps.length === 0) return current
      const gap = { from: startLsn, readableFrom: LSN_MAX, cause: 'unlogged' as const }
      return { ...current, gaps: [...current.gaps, gap] }
    })
  }

  get(id: number): ImportSession {
    const session = this.#sessions.get(id)
    if (session === undefined)
      throw invalidError(`there is no import ${id}; if the page server was restarted, begin the import again`)
    return session
  }

  async end(message: ImportEnd): Promise<void> {
    await this.get(message.session).end(message)
    this.#sessions.delete(message.session)
  }

  /** Gives up imports that nobody has used for long. */
  async expire(idleMs: number): Promise<void> {
    for (const session of this.#sessions.values()) {
      if (session.timeline.env.nowMs() - session.lastUsedMs < idleMs) continue
      this.#sessions.delete(session.id)
      session.timeline.log.warn({ session: session.id }, 'an import that nobody goes on with was given up')
      await session
        .abort()
        .catch(error => session.timeline.log.warn({ err: toPalimpsestError(error) }, 'giving up'))
    }
  }

  async abortAll(of?: Timeline): Promise<void> {
    for (const session of [...this.#sessions.values()]) {
      if (of !== undefined && session.timeline !== of) continue
      this.#sessions.delete(session.id)
      await session.abort()
    }
  }
}
