/** Requests about captured files: those of a datadir that are not InnoDB's. */
import { LSN_MAX, LSN_ZERO, type Lsn, type TimelineId, type WriterEpoch } from '../../protocol/ids.ts'
import {
  type FileDelete,
  type FileEpoch,
  type FileGet,
  type FileList,
  type FilePut,
  type FileVersions,
  MessageType,
} from '../../protocol/messages.ts'
import { fencedError, invalidError } from '../shared/errors.ts'
import type { Handlers, RequestContext } from '../shared/listener.ts'
import type { Timeline } from './timeline.ts'
import type { Timelines } from './timelines.ts'

const FILES_PER_FRAME = 1000

export class FileService {
  readonly #timelines: Timelines
  /** The latest epoch that a writer named, and what each connection named. */
  readonly #epochs = new WeakMap<Timeline, WriterEpoch>()
  readonly #named = new WeakMap<object, Map<TimelineId, WriterEpoch>>()
  readonly handlers: Handlers

  constructor(timelines: Timelines) {
    this.#timelines = timelines
    this.handlers = {
      [MessageType.FileEpoch]: ({ message }, ctx) => this.#epoch(message, ctx),
      [MessageType.FilePut]: ({ message, bulk }, ctx) => this.#put(message, bulk, ctx),
      [MessageType.FileDelete]: ({ message }, ctx) => this.#delete(message, ctx),
      [MessageType.FileList]: ({ message }, ctx) => this.#list(message, ctx),
      [MessageType.FileGet]: ({ message }, ctx) => this.#get(message, ctx),
      [MessageType.FileVersions]: ({ message }, ctx) => this.#versions(message, ctx),
    }
  }

  #epoch({ timeline, epoch }: FileEpoch, ctx: RequestContext): void {
    const of = this.#timelines.get(timeline)
    const named = this.#named.get(ctx.connection) ?? new Map<TimelineId, WriterEpoch>()
    this.#named.set(ctx.connection, named.set(timeline, epoch))
    if (epoch > (this.#epochs.get(of) ?? 0)) this.#epochs.set(of, epoch)
    this.#writable(timeline, ctx)
    ctx.reply({ type: MessageType.Ok })
  }

  /** @throws PalimpsestError `fenced` if the timeline has a later writer than the one that speaks */
  #writable(id: TimelineId, ctx: RequestContext): Timeline {
    const timeline = this.#timelines.get(id)
    const latest = this.#epochs.get(timeline) ?? 0
    const epoch = this.#named.get(ctx.connection)?.get(id) ?? 0
    if (epoch >= latest) return timeline
    throw fencedError(
      `timeline ${id} has a newer writer, of epoch ${latest}: files of ${epoch === 0 ? 'one that names no epoch' : `epoch ${epoch}`} are not taken`,
    )
  }

  async #put(message: FilePut, bulk: Uint8Array, ctx: RequestContext): Promise<void> {
    const timeline = this.#writable(message.timeline, ctx)
    const { path, lsn, mode, mtimeMs, totalBytes, offset } = message
    const whole = await timeline.files.put({ path, lsn, mode, mtimeMs, totalBytes }, offset, bulk)
    // Many files that end at the same time share one write of the index.
    if (whole) await timeline.files.save(timeline.manifest)
    ctx.reply({ type: MessageType.Ok })
  }

  async #delete(message: FileDelete, ctx: RequestContext): Promise<void> {
    const timeline = this.#writable(message.timeline, ctx)
    timeline.files.remove(message.path, message.lsn)
    await timeline.files.save(timeline.manifest)
    ctx.reply({ type: MessageType.Ok })
  }

  async #list(message: FileList, ctx: RequestContext): Promise<void> {
    const timeline = this.#timelines.get(message.timeline)
    const lsn = message.lsn === 0 ? timeline.ingestedLsn : message.lsn
    const files = timeline.files.list(message.lsn === 0 ? LSN_MAX : message.lsn)
    for (let at = 0; ; at += FILES_PER_FRAME) {
      const more = at + FILES_PER_FRAME < files.length
      ctx.reply(
        { type: MessageType.FileListReply, lsn, files: files.slice(at, at + FILES_PER_FRAME) },
        { more },
      )
      if (!more || ctx.done) return
      await ctx.drain()
    }
  }

  async #versions(message: FileVersions, ctx: RequestContext): Promise<void> {
    const { directory, suffix, fromLsn, toLsn } = message
    const type = MessageType.FileVersion
    const { files } = this.#timelines.get(message.timeline)
    for await (const { file, content } of files.versions(directory, suffix, fromLsn, toLsn)) {
      await ctx.drain()
      if (ctx.done) return
      const { path, lsn, mtimeMs, mode } = file
      ctx.reply({ type, lsn, mtimeMs, mode, path }, { bulk: content, more: true })
    }
    if (!ctx.done) ctx.reply({ type, lsn: LSN_ZERO, mtimeMs: 0, mode: 0, path: '' })
  }

  async #get(message: FileGet, ctx: RequestContext): Promise<void> {
    const timeline = this.#timelines.get(message.timeline)
    const lsn: Lsn = message.lsn === 0 ? LSN_MAX : message.lsn
    const version = timeline.files.get(message.path, lsn)
    if (version === undefined)
      throw invalidError(
        `there is no file ${message.path} at ${message.lsn === 0 ? 'any LSN' : `LSN ${lsn}`}`,
        message.lsn,
      )
    const { totalBytes, mtimeMs, mode } = version
    let offset = 0
    if (totalBytes === 0) ctx.reply({ type: MessageType.FileData, offset, totalBytes, mtimeMs, mode })
    for await (const piece of timeline.files.read(message.path, lsn)) {
      await ctx.drain()
      if (ctx.done) return
      ctx.reply(
        { type: MessageType.FileData, offset, totalBytes, mtimeMs, mode },
        { bulk: piece, more: offset + piece.length < totalBytes },
      )
      offset += piece.length
    }
  }
}
