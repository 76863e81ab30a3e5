/** The page server's side of the protocol: what each request means. */
import { LSN_MAX, LSN_ZERO, type Lsn } from '../../protocol/ids.ts'
import {
  type GetPages,
  MessageType,
  type PageHistory,
  PageSections,
  PageStatus,
  Role,
  type SpaceList,
  type TimelineShow,
} from '../../protocol/messages.ts'
import { SPACE_NAME_BYTES_MAX } from '../../protocol/messages-page.ts'
import type { TimelineStatus, TimelineSummary } from '../../protocol/messages-timeline.ts'
import { invalidError } from '../shared/errors.ts'
import type { Handlers, IncomingRequest, RequestContext, Service } from '../shared/listener.ts'
import type { PageServerEnvironment } from './environment.ts'
import { FileService } from './file-service.ts'
import { IMPORT_IMAGE_LEVEL, ImportSessions } from './import-session.ts'
import type { LayerEntry } from './manifest.ts'
import type { ReadPages } from './page-reader.ts'
import { lsnAtTime, timeAtLsn } from './time-queries.ts'
import { Timeline } from './timeline.ts'
import type { BrokenTimeline, Timelines } from './timelines.ts'

/** Bytes of pages in one frame of an answer: large enough for full speed, small enough for others to get a word in. */
const REPLY_BYTES = 1 << 20
const HISTORY_LIMIT_MAX = 100_000
const HISTORY_ENTRIES_PER_FRAME = 5000
const SPACES_PER_FRAME = 1000
const BRANCHES_PER_FRAME = 10_000
const TIMELINES_PER_FRAME = 1000
const ERROR_CHARACTERS_MAX = 1000
/** InnoDB's own; said of a timeline whose manifest cannot be read. */
const INNODB_PAGE_SIZE_DEFAULT = 16384

export class PageService implements Service {
  readonly role = Role.PAGESERVER
  readonly imports = new ImportSessions()
  readonly #env: PageServerEnvironment
  readonly #timelines: Timelines
  readonly handlers: Handlers

  constructor(env: PageServerEnvironment, timelines: Timelines) {
    this.#env = env
    this.#timelines = timelines
    const files = new FileService(timelines)
    this.handlers = {
      ...files.handlers,
      [MessageType.GetPages]: (request, ctx) => this.#getPages(request, ctx),
      [MessageType.PageHistory]: (request, ctx) => this.#pageHistory(request.message, ctx),
      [MessageType.SpaceList]: (request, ctx) => this.#spaceList(request.message, ctx),
      [MessageType.TimelineCreate]: async ({ message }, ctx) => {
        await timelines.create(message)
        ctx.reply({ type: MessageType.Ok })
      },
      [MessageType.TimelineList]: (_, ctx) => this.#timelineList(ctx),
      [MessageType.TimelineShow]: ({ message }, ctx) => this.#timelineShow(message, ctx),
      [MessageType.TimelineDelete]: async ({ message }, ctx) => {
        const timeline = timelines.find(message.timeline)
        if (timeline instanceof Timeline) await this.imports.abortAll(timeline)
        await timelines.delete(message.timeline)
        ctx.reply({ type: MessageType.Ok })
      },
      [MessageType.TimelineBranch]: async ({ message }, ctx) => {
        await timelines.branch(message)
        ctx.reply({ type: MessageType.Ok })
      },
      [MessageType.TimelineRename]: async ({ message }, ctx) => {
        await timelines.rename(message)
        ctx.reply({ type: MessageType.Ok })
      },
      [MessageType.TimelineBranches]: (_, ctx) => {
        const branches = [...timelines.all].flatMap(({ id, ancestor }) =>
          ancestor === undefined ? [] : [{ timeline: id, ancestor: ancestor.timeline.id, lsn: ancestor.lsn }],
        )
        for (let at = 0; ; at += BRANCHES_PER_FRAME) {
          const more = at + BRANCHES_PER_FRAME < branches.length
          const part = branches.slice(at, at + BRANCHES_PER_FRAME)
          ctx.reply({ type: MessageType.TimelineBranchesReply, branches: part }, { more })
          if (!more) return
        }
      },
      [MessageType.WaitLsn]: async ({ message }, ctx) => {
        const timeline = timelines.get(message.timeline)
        await timeline.waitForLsn(message.lsn, message.timeoutMs, ctx.closed)
        ctx.reply({ type: MessageType.WaitLsnReply, ingestedLsn: timeline.ingestedLsn })
      },
      [MessageType.Checkpoint]: async ({ message }, ctx) => {
        const durableLsn = await timelines.get(message.timeline).checkpoint()
        ctx.reply({ type: MessageType.CheckpointReply, durableLsn })
      },
      [MessageType.LsnAtTime]: async ({ message }, ctx) => {
        const found = await lsnAtTime(timelines.get(message.timeline), message.timeUs)
        ctx.reply({ type: MessageType.LsnTime, lsn: found.lsn, timeUs: found.timeUs })
      },
      [MessageType.TimeAtLsn]: async ({ message }, ctx) => {
        const found = await timeAtLsn(timelines.get(message.timeline), message.lsn)
        ctx.reply({ type: MessageType.LsnTime, lsn: found.lsn, timeUs: found.timeUs })
      },
      [MessageType.ImportBegin]: async ({ message }, ctx) => {
        const timeline = timelines.get(message.timeline)
        const { startLsn, kind } = message
        const branches = timelines.branchesOf(timeline).map(({ ancestor }) => ancestor!.lsn)
        const session = await this.imports.begin(timeline, startLsn, kind, ctx.connection, branches)
        ctx.reply({ type: MessageType.ImportBegun, session: session.id })
      },
      [MessageType.ImportSpace]: async ({ message }, ctx) => {
        await this.imports.get(message.session).addSpace(message)
        ctx.reply({ type: MessageType.Ok })
      },
      [MessageType.ImportPages]: async ({ message, bulk }, ctx) => {
        await this.imports.get(message.session).addPages(message, bulk)
        ctx.reply({ type: MessageType.Ok })
      },
      [MessageType.ImportEnd]: async ({ message }, ctx) => {
        await this.imports.end(message)
        ctx.reply({ type: MessageType.Ok })
      },
    }
  }

  /** The worker that makes a layer of imported pages verifies them. */
  leaveBulkCheck(header: { readonly type: number }): boolean {
    return header.type === MessageType.ImportPages
  }

  // GetPages.

  #getPages(request: IncomingRequest<GetPages>, ctx: RequestContext): void | Promise<void> {
    const { message } = request
    const since = performance.now()
    const timeline = this.#timelines.get(message.timeline)
    if (message.flags !== 0)
      throw invalidError(`GetPages flags 0x${message.flags.toString(16)} are not known`)
    const count = message.pages.length / 2
    const perFrame = pagesPerFrame(timeline, ctx)
    // Everything is there already: the usual case of a busy server, answered without giving up this turn.
    if (count <= perFrame && message.notModifiedSinceLsn <= timeline.ingestedLsn) {
      const { timeline: owner, lsn } = timeline.readAt(message.lsn)
      const slots = this.#env.reader.readCached(owner, lsn, message.pages, 0, count)
      if (slots !== undefined) {
        this.#replyPages(ctx, lsn, message.pages, 0, slots, undefined, false)
        this.#env.metrics.readSeconds.observe((performance.now() - since) / 1000, 'cache')
        return
      }
    }
    return this.#getPagesSlowly(message, timeline, perFrame, ctx).then(() =>
      this.#env.metrics.readSeconds.observe((performance.now() - since) / 1000, 'layers'),
    )
  }

  async #getPagesSlowly(
    message: GetPages,
    named: Timeline,
    perFrame: number,
    ctx: RequestContext,
  ): Promise<void> {
    const { pages } = message
    const { reader } = this.#env
    await named.waitForLsn(message.notModifiedSinceLsn)
    // One LSN for the whole answer, whatever is ingested meanwhile.
    const { timeline, lsn } = named.readAt(message.lsn)
    const count = pages.length / 2
    // One frame's pages are made while those of the frame before are sent.
    let next = reader.read(timeline, lsn, pages, 0, Math.min(count, perFrame))
    for (let from = 0; ; from += perFrame) {
      const made: ReadPages = await next
      const to = Math.min(count, from + perFrame)
      const last = to >= count
      if (!last && !ctx.done) {
        next = reader.read(timeline, lsn, pages, to, Math.min(count, to + perFrame))
        next.catch(() => {})
      }
      this.#replyPages(ctx, lsn, pages, from, made.slots, made.status, !last)
      if (last) return
      await ctx.drain()
      if (ctx.done) {
        const unused = await next.catch(() => undefined)
        if (unused !== undefined) this.#unpin(unused.slots)
        return
      }
    }
  }

  #unpin(slots: Int32Array): void {
    for (const slot of slots) if (slot >= 0) this.#env.cache.unpin(slot)
  }

  /** Sends pinned slots from where they lie; they are unpinned when the kernel has them. */
  #replyPages(
    ctx: RequestContext,
    lsn: Lsn,
    pages: Uint32Array,
    from: number,
    slots: Int32Array,
    status: Uint8Array | undefined,
    more: boolean,
  ): void {
    const { cache } = this.#env
    const count = slots.length
    const sections = new PageSections(count)
    const bulk: Uint8Array[] = []
    for (let i = 0; i < count; i++) {
      const space = pages[2 * (from + i)]!
      const page = pages[2 * (from + i) + 1]!
      const slot = slots[i]!
      if (slot < 0) {
        sections.set(i, space, page, (status?.[i] ?? PageStatus.CORRUPT) as PageStatus, 0 as Lsn, 0, 0, false)
        continue
      }
      const bytes = cache.view(slot)
      sections.set(
        i,
        space,
        page,
        PageStatus.OK,
        cache.pageLsn(slot),
        bytes.length,
        cache.crc(slot),
        cache.freed(slot),
      )
      bulk.push(bytes)
    }
    ctx.reply({ type: MessageType.Pages, lsn, sections }, { bulk, more, sent: () => this.#unpin(slots) })
  }

  // The rest.

  async #pageHistory(message: PageHistory, ctx: RequestContext): Promise<void> {
    const { timeline, lsn: toLsn } = this.#timelines.get(message.timeline).readAt(message.toLsn)
    const snapshot = timeline.snapshot(toLsn)
    try {
      const request = snapshot.request(message.space, message.page)
      if (typeof request === 'number')
        throw invalidError(
          request === PageStatus.MISSING_SPACE
            ? `there is no tablespace ${message.space} at LSN ${toLsn}`
            : `tablespace ${message.space} has no page ${message.page} at LSN ${toLsn}`,
        )
      // Images that a compaction made are no changes.
      const layers = request.layers.filter(at => {
        const { kind, level } = snapshot.entries[at]!
        return kind === 'delta' || level === IMPORT_IMAGE_LEVEL
      })
      const { entries, complete } = await this.#env.reader.history(snapshot, {
        request: { ...request, layers },
        fromLsn: message.fromLsn,
        toLsn,
        limit: Math.min(message.limit, HISTORY_LIMIT_MAX),
      })
      for (let at = 0; ; at += HISTORY_ENTRIES_PER_FRAME) {
        const part = entries.slice(at, at + HISTORY_ENTRIES_PER_FRAME)
        const more = at + HISTORY_ENTRIES_PER_FRAME < entries.length
        ctx.reply({ type: MessageType.PageHistoryReply, entries: part, complete }, { more })
        if (!more || ctx.done) return
        await ctx.drain()
      }
    } finally {
      snapshot.release()
    }
  }

  async #spaceList(message: SpaceList, ctx: RequestContext): Promise<void> {
    const { timeline, lsn } = this.#timelines.get(message.timeline).readAt(message.lsn)
    const spaces = timeline.catalogue
      .list(lsn)
      .filter(state => state.flags !== undefined)
      .map(state => ({
        space: state.space,
        flags: state.flags!,
        pages: state.pages,
        external: state.external,
        name: state.name.slice(0, SPACE_NAME_BYTES_MAX),
      }))
    for (let at = 0; ; at += SPACES_PER_FRAME) {
      const more = at + SPACES_PER_FRAME < spaces.length
      ctx.reply(
        { type: MessageType.SpaceListReply, lsn, spaces: spaces.slice(at, at + SPACES_PER_FRAME) },
        { more },
      )
      if (!more || ctx.done) return
      await ctx.drain()
    }
  }

  async #timelineList(ctx: RequestContext): Promise<void> {
    const all = [...[...this.#timelines.all].map(summary), ...[...this.#timelines.broken].map(brokenSummary)]
    for (let at = 0; ; at += TIMELINES_PER_FRAME) {
      const more = at + TIMELINES_PER_FRAME < all.length
      const timelines = all.slice(at, at + TIMELINES_PER_FRAME)
      ctx.reply({ type: MessageType.TimelineListReply, timelines }, { more })
      if (!more || ctx.done) return
      await ctx.drain()
    }
  }

  #timelineShow({ timeline: id, name }: TimelineShow, ctx: RequestContext): void {
    const timeline = id === undefined ? this.#timelines.findByName(name) : this.#timelines.find(id)
    if (!(timeline instanceof Timeline)) {
      ctx.reply(brokenStatus(timeline))
      return
    }
    const { current } = timeline.manifest
    ctx.reply({
      type: MessageType.TimelineStatus,
      summary: summary(timeline),
      arenaBytes: timeline.arenaBytes,
      ...layerCounts(current.layers),
      spaces: timeline.catalogue.list(timeline.ingestedLsn).length,
      files: timeline.files.list(timeline.ingestedLsn).length,
      serverVersion: current.serverVersion,
      lastError: shortened(timeline.lastError),
      gaps: timeline.gaps.map(gap => ({ fromLsn: gap.from, toLsn: gap.readableFrom })),
    })
  }
}

function pagesPerFrame(timeline: Timeline, ctx: RequestContext): number {
  const { innodbPageSize } = timeline.manifest.current
  return Math.max(1, Math.floor(Math.min(REPLY_BYTES, ctx.bulkBytesMax) / innodbPageSize))
}

function summary(timeline: Timeline): TimelineSummary {
  const { current } = timeline.manifest
  return {
    timeline: timeline.id,
    name: current.name,
    startLsn: current.startLsn,
    readableFromLsn: timeline.readableFromLsn,
    ingestedLsn: timeline.ingestedLsn,
    durableLsn: timeline.durableLsn,
    lastWallTimeUs: timeline.lastWallTimeUs,
    innodbPageSize: current.innodbPageSize,
    state: timeline.state,
  }
}

function shortened(error: string): string {
  return error.slice(0, ERROR_CHARACTERS_MAX).toWellFormed()
}

/** Of a timeline that could not be opened: what its manifest says, as far as that could be read. Its pages cannot be. */
function brokenSummary({ id, name, manifest }: BrokenTimeline): TimelineSummary {
  const durableLsn = manifest?.durableLsn ?? LSN_ZERO
  return {
    timeline: id,
    name,
    startLsn: manifest?.startLsn ?? LSN_ZERO,
    readableFromLsn: manifest?.gaps[0]?.readableFrom ?? LSN_MAX,
    ingestedLsn: durableLsn,
    durableLsn,
    lastWallTimeUs: 0,
    innodbPageSize: manifest?.innodbPageSize ?? INNODB_PAGE_SIZE_DEFAULT,
    state: 'stopped',
  }
}

function brokenStatus(timeline: BrokenTimeline): TimelineStatus {
  const { manifest, error } = timeline
  return {
    type: MessageType.TimelineStatus,
    summary: brokenSummary(timeline),
    arenaBytes: 0,
    ...layerCounts(manifest?.layers ?? []),
    spaces: 0,
    files: 0,
    serverVersion: manifest?.serverVersion ?? '',
    lastError: shortened(`it could not be opened: ${error.message}`),
    gaps: [],
  }
}

function layerCounts(layers: readonly LayerEntry[]) {
  return {
    deltaLayers: layers.filter(layer => layer.kind === 'delta').length,
    imageLayers: layers.filter(layer => layer.kind === 'image').length,
    layerBytes: layers.reduce((sum, layer) => sum + layer.bytes, 0),
  }
}
