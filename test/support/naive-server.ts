/**
 * A safekeeper and a page server of a few hundred lines that keep everything in memory and compute pages with
 * NaiveReplay: against it attach, export and verify are tested on their own, and with it the real page server's answers
 * can be compared.
 */

import { LOG_START_OFFSET, makeLogFileHead } from '../../parser/log-file.ts'
import { MTR_TRAILER_BYTES, MtrScanner, ScanResult } from '../../parser/mtr-scanner.ts'
import { FSP_SIZE, read4 } from '../../parser/page-format.ts'
import { parseSpaceFlags } from '../../parser/space-flags.ts'
import { crc32c } from '../../protocol/crc32c.ts'
import { LSN_MAX, LSN_ZERO, type Lsn, type TimelineId, toLsn, toWriterEpoch } from '../../protocol/ids.ts'
import { MessageType, PageSections, PageStatus, Role } from '../../protocol/messages.ts'
import { invalidError } from '../../server/shared/errors.ts'
import { Listener, type Service } from '../../server/shared/listener.ts'
import { silentLog } from '../../server/shared/log.ts'
import { NaiveReplay } from './naive-replay.ts'

interface Space {
  readonly flags: number
  readonly pages: number
  readonly external: boolean
  readonly name: string
  readonly images: Map<number, Uint8Array>
}

interface Import {
  readonly kind: string
  readonly startLsn: Lsn
  readonly spaces: Map<number, Space>
  readableFromLsn: Lsn | undefined
  existing: number[]
}

interface FileVersion {
  readonly lsn: Lsn
  readonly mode: number
  readonly mtimeMs: number
  /** undefined: deleted. */
  readonly content: Uint8Array | undefined
}

/** One timeline's redo, contiguous from `begin`. */
interface Stretch {
  readonly begin: Lsn
  end: Lsn
  readonly chunks: { readonly lsn: Lsn; readonly bytes: Uint8Array; readonly wallTimeUs: number }[]
}

export class NaiveServer {
  readonly timelines = new Map<TimelineId, NaiveTimeline>()
  readonly listener: Listener
  /** Milliseconds that every append takes: a slow safekeeper. */
  appendDelayMs = 0
  #sessions = new Map<number, { readonly timeline: NaiveTimeline; readonly import: Import }>()
  #nextSession = 1

  private constructor() {
    this.listener = new Listener({
      host: '127.0.0.1',
      port: 0,
      log: silentLog,
      services: [this.#safekeeper(), this.#pageServer()],
    })
  }

  static async start(): Promise<NaiveServer> {
    const server = new NaiveServer()
    await server.listener.listen()
    return server
  }

  get addresses(): { host: string; port: number }[] {
    return [{ host: '127.0.0.1', port: this.listener.port }]
  }

  stop(): Promise<void> {
    return this.listener.close()
  }

  get only(): NaiveTimeline {
    const [timeline] = this.timelines.values()
    if (!timeline || this.timelines.size !== 1) throw new Error(`${this.timelines.size} timelines`)
    return timeline
  }

  #get(id: TimelineId): NaiveTimeline {
    const timeline = this.timelines.get(id)
    if (!timeline) throw invalidError(`no timeline ${id}`)
    return timeline
  }

  #safekeeper(): Service {
    return {
      role: Role.SAFEKEEPER,
      handlers: {
        [MessageType.WalCreate]: ({ message }, ctx) => {
          if (!this.timelines.has(message.timeline))
            this.timelines.set(
              message.timeline,
              new NaiveTimeline(message.timeline, message.name, message.startLsn),
            )
          ctx.reply({ type: MessageType.Ok })
        },
        [MessageType.WalList]: (_request, ctx) =>
          ctx.reply({
            type: MessageType.WalListReply,
            timelines: [...this.timelines.values()].map(t => ({
              timeline: t.id,
              epoch: toWriterEpoch(t.epoch),
              beginLsn: t.startLsn,
              committedLsn: t.endLsn,
              name: t.name,
            })),
          }),
        [MessageType.WalOpen]: ({ message }, ctx) => {
          const t = this.#get(message.timeline)
          t.epoch++
          ctx.reply({
            type: MessageType.WalOpened,
            epoch: toWriterEpoch(t.epoch),
            beginLsn: t.startLsn,
            endLsn: t.endLsn,
          })
        },
        [MessageType.WalAppend]: async ({ message, bulk }, ctx) => {
          const t = this.#get(message.timeline)
          t.checkEpoch(message.epoch)
          t.append(message.beginLsn, Uint8Array.from(bulk), message.wallTimeUs)
          if (this.appendDelayMs > 0) await new Promise(done => setTimeout(done, this.appendDelayMs))
          ctx.reply({ type: MessageType.WalAppended, flushedLsn: t.endLsn, committedLsn: t.endLsn })
        },
        [MessageType.WalSkip]: ({ message }, ctx) => {
          const t = this.#get(message.timeline)
          t.checkEpoch(message.epoch)
          t.skip(message.fromLsn, message.toLsn)
          ctx.reply({ type: MessageType.WalAppended, flushedLsn: t.endLsn, committedLsn: t.endLsn })
        },
      },
    }
  }

  #pageServer(): Service {
    return {
      role: Role.PAGESERVER,
      handlers: {
        [MessageType.TimelineCreate]: ({ message }, ctx) => {
          const t = this.#get(message.timeline)
          t.innodbPageSize = message.innodbPageSize
          t.serverVersion = message.serverVersion
          t.onPageServer = true
          ctx.reply({ type: MessageType.Ok })
        },
        [MessageType.TimelineList]: (_request, ctx) =>
          ctx.reply({
            type: MessageType.TimelineListReply,
            timelines: [...this.timelines.values()].filter(t => t.onPageServer).map(t => t.summary()),
          }),
        [MessageType.TimelineShow]: ({ message }, ctx) => {
          const t = [...this.timelines.values()].find(
            x => x.id === message.timeline || (message.timeline === undefined && x.name === message.name),
          )
          if (!t) throw invalidError('no such timeline')
          ctx.reply({
            type: MessageType.TimelineStatus,
            summary: t.summary(),
            arenaBytes: 0,
            deltaLayers: 0,
            imageLayers: 0,
            layerBytes: 0,
            spaces: 0,
            files: t.filesAt(LSN_ZERO).length,
            serverVersion: t.serverVersion,
            lastError: '',
            gaps: t.gaps(),
          })
        },
        [MessageType.ImportBegin]: ({ message }, ctx) => {
          const timeline = this.#get(message.timeline)
          const session = this.#nextSession++
          const begun: Import = {
            kind: message.kind,
            startLsn: message.startLsn,
            spaces: new Map(),
            readableFromLsn: undefined,
            existing: [],
          }
          this.#sessions.set(session, { timeline, import: begun })
          ctx.reply({ type: MessageType.ImportBegun, session })
        },
        [MessageType.ImportSpace]: ({ message }, ctx) => {
          const { flags, pages, external, name } = message
          this.#session(message.session).import.spaces.set(message.space, {
            flags,
            pages,
            external,
            name,
            images: new Map(),
          })
          ctx.reply({ type: MessageType.Ok })
        },
        [MessageType.ImportPages]: ({ message, bulk }, ctx) => {
          const space = this.#session(message.session).import.spaces.get(message.space)
          if (!space) throw invalidError('ImportPages before ImportSpace')
          for (let i = 0; i * 2 < message.pages.length; i++)
            space.images.set(
              message.pages[i * 2]!,
              Uint8Array.from(bulk.subarray(i * message.pageBytes, (i + 1) * message.pageBytes)),
            )
          ctx.reply({ type: MessageType.Ok })
        },
        [MessageType.ImportEnd]: ({ message }, ctx) => {
          const { timeline, import: ended } = this.#session(message.session)
          ended.readableFromLsn = message.readableFromLsn
          ended.existing = [...message.spaces]
          timeline.imports.push(ended)
          ctx.reply({ type: MessageType.Ok })
        },
        [MessageType.FilePut]: ({ message, bulk }, ctx) => {
          this.#get(message.timeline).putPiece(message, bulk)
          ctx.reply({ type: MessageType.Ok })
        },
        [MessageType.FileEpoch]: (_request, ctx) => ctx.reply({ type: MessageType.Ok }),
        [MessageType.FileDelete]: ({ message }, ctx) => {
          this.#get(message.timeline).addFile(message.path, {
            lsn: message.lsn,
            mode: 0,
            mtimeMs: 0,
            content: undefined,
          })
          ctx.reply({ type: MessageType.Ok })
        },
        [MessageType.FileList]: ({ message }, ctx) => {
          const t = this.#get(message.timeline)
          ctx.reply({ type: MessageType.FileListReply, lsn: t.endLsn, files: t.filesAt(message.lsn) })
        },
        [MessageType.FileGet]: ({ message }, ctx) => {
          const version = this.#get(message.timeline).fileAt(message.path, message.lsn)
          if (!version?.content) throw invalidError(`no file ${message.path}`)
          const { content, mtimeMs, mode } = version
          ctx.reply(
            { type: MessageType.FileData, offset: 0, totalBytes: content.length, mtimeMs, mode },
            { bulk: content },
          )
        },
        [MessageType.WaitLsn]: ({ message }, ctx) => {
          ctx.reply({ type: MessageType.WaitLsnReply, ingestedLsn: this.#get(message.timeline).endLsn })
        },
        [MessageType.LsnAtTime]: ({ message }, ctx) => {
          const t = this.#get(message.timeline)
          ctx.reply({ type: MessageType.LsnTime, ...t.lsnAt(message.timeUs) })
        },
        [MessageType.SpaceList]: ({ message }, ctx) => {
          const t = this.#get(message.timeline)
          const replay = t.replayTo(message.lsn || t.endLsn)
          ctx.reply({
            type: MessageType.SpaceListReply,
            lsn: replay.lsn,
            spaces: [...replay.spaces.values()]
              .filter(s => s.format)
              .map(s => ({
                space: s.id,
                flags: s.format!.flags,
                pages: read4(s.pages.get(0)!, FSP_SIZE),
                external: s.name.startsWith('/'),
                name: s.name,
              })),
          })
        },
        [MessageType.GetPages]: ({ message }, ctx) => {
          const t = this.#get(message.timeline)
          const lsn = message.lsn || t.endLsn
          const replay = t.replayTo(lsn)
          const sections = new PageSections(message.pages.length / 2)
          const bulk: Uint8Array[] = []
          for (let i = 0; i < sections.count; i++) {
            const [space, page] = [message.pages[i * 2]!, message.pages[i * 2 + 1]!]
            if (!replay.spaces.get(space)?.format) {
              sections.set(i, space, page, PageStatus.MISSING_SPACE, LSN_ZERO, 0, 0, false)
              continue
            }
            const bytes = replay.writtenPage(space, page)
            bulk.push(bytes)
            const pageLsn = toLsn(read4(bytes, 16) * 2 ** 32 + read4(bytes, 20))
            const crc = crc32c(bytes, 0, bytes.length)
            sections.set(i, space, page, PageStatus.OK, pageLsn, bytes.length, crc, false)
          }
          ctx.reply({ type: MessageType.Pages, lsn, sections }, { bulk })
        },
      },
    }
  }

  #session(id: number): { readonly timeline: NaiveTimeline; readonly import: Import } {
    const session = this.#sessions.get(id)
    if (!session) throw invalidError(`no import session ${id}`)
    return session
  }
}

export class NaiveTimeline {
  readonly id: TimelineId
  readonly name: string
  readonly startLsn: Lsn
  epoch = 0
  innodbPageSize = 0
  serverVersion = ''
  onPageServer = false
  readonly imports: Import[] = []
  readonly stretches: Stretch[] = []
  readonly files = new Map<string, FileVersion[]>()
  #partial = new Map<string, Uint8Array[]>()

  constructor(id: TimelineId, name: string, startLsn: Lsn) {
    this.id = id
    this.name = name
    this.startLsn = startLsn
    this.stretches.push({ begin: startLsn, end: startLsn, chunks: [] })
  }

  get endLsn(): Lsn {
    return this.stretches.at(-1)!.end
  }

  checkEpoch(epoch: number): void {
    if (epoch !== this.epoch) throw invalidError(`epoch ${epoch} is not ${this.epoch}`)
  }

  append(lsn: Lsn, bytes: Uint8Array, wallTimeUs: number): void {
    const stretch = this.stretches.at(-1)!
    if (lsn !== stretch.end) throw invalidError(`append at ${lsn}, but the log ends at ${stretch.end}`)
    const scan = new MtrScanner().scanRange(bytes, 0, bytes.length, lsn, null)
    if (scan.consumedBytes !== bytes.length || scan.stop !== ScanResult.COMPLETE)
      throw invalidError(`the chunk at ${lsn} is not whole mini-transactions`)
    stretch.chunks.push({ lsn, bytes, wallTimeUs })
    stretch.end = toLsn(lsn + bytes.length)
  }

  skip(from: Lsn, to: Lsn): void {
    if (from !== this.endLsn) throw invalidError(`skip from ${from}, but the log ends at ${this.endLsn}`)
    this.stretches.push({ begin: to, end: to, chunks: [] })
  }

  gaps(): { fromLsn: Lsn; toLsn: Lsn }[] {
    return this.stretches.slice(1).map((stretch, i) => ({
      fromLsn: this.stretches[i]!.end,
      toLsn: this.imports.find(done => done.startLsn >= stretch.begin)?.readableFromLsn ?? LSN_MAX,
    }))
  }

  summary() {
    const [first] = this.imports
    return {
      timeline: this.id,
      startLsn: this.startLsn,
      readableFromLsn: first?.readableFromLsn ?? LSN_MAX,
      ingestedLsn: this.endLsn,
      durableLsn: this.endLsn,
      lastWallTimeUs: 0,
      innodbPageSize: this.innodbPageSize,
      state: first ? ('active' as const) : ('importing' as const),
      name: this.name,
    }
  }

  lsnAt(timeUs: number): { lsn: Lsn; timeUs: number } {
    let found = { lsn: this.startLsn, timeUs: 0 }
    for (const { chunks } of this.stretches)
      for (const chunk of chunks)
        if (chunk.wallTimeUs <= timeUs)
          found = { lsn: toLsn(chunk.lsn + chunk.bytes.length), timeUs: chunk.wallTimeUs }
    return found
  }

  putPiece(
    put: { path: string; lsn: Lsn; mode: number; mtimeMs: number; offset: number; totalBytes: number },
    piece: Uint8Array,
  ): void {
    const pieces = put.offset === 0 ? [] : (this.#partial.get(put.path) ?? [])
    const have = pieces.reduce((sum, p) => sum + p.length, 0)
    if (have !== put.offset)
      throw invalidError(`${put.path}: piece at ${put.offset}, but ${have} bytes came before`)
    pieces.push(Uint8Array.from(piece))
    this.#partial.set(put.path, pieces)
    if (put.offset + piece.length < put.totalBytes) return
    this.#partial.delete(put.path)
    this.addFile(put.path, {
      lsn: put.lsn,
      mode: put.mode,
      mtimeMs: put.mtimeMs,
      content: Buffer.concat(pieces),
    })
  }

  addFile(path: string, version: FileVersion): void {
    const versions = this.files.get(path) ?? []
    const last = versions.at(-1)
    if (last && version.lsn < last.lsn)
      throw invalidError(`${path}: version at ${version.lsn} after ${last.lsn}`)
    versions.push(version)
    this.files.set(path, versions)
  }

  fileAt(path: string, lsn: Lsn): FileVersion | undefined {
    return this.files.get(path)?.findLast(v => lsn === 0 || v.lsn <= lsn)
  }

  filesAt(lsn: Lsn) {
    return [...this.files.keys()].flatMap(path => {
      const version = this.fileAt(path, lsn)
      if (!version?.content) return []
      return [
        {
          path,
          lsn: version.lsn,
          mode: version.mode,
          mtimeMs: version.mtimeMs,
          totalBytes: version.content.length,
        },
      ]
    })
  }

  /** The stretch as a file that NaiveReplay reads: in its first lap, whatever lap of the server's ring it came from. */
  #asLogFile(stretch: Stretch): Uint8Array {
    const redo = Buffer.concat(stretch.chunks.map(c => c.bytes))
    const scanner = new MtrScanner()
    for (let at = 0; at < redo.length; at = scanner.mtrEnd) {
      if (scanner.scan(redo, at, redo.length, stretch.begin, null) !== ScanResult.COMPLETE)
        throw new Error('damaged redo')
      redo[scanner.mtrEnd - MTR_TRAILER_BYTES] = 1
    }
    return Buffer.concat([
      makeLogFileHead(stretch.begin, 'naive').subarray(0, LOG_START_OFFSET),
      redo,
      Buffer.alloc(4096),
    ])
  }

  /** All pages as of `lsn`. Goes forward only as long as it can, else starts over. */
  replayTo(lsn: Lsn): NaiveReplay {
    const replay = new NaiveReplay()
    const imports = [...this.imports].sort((a, b) => a.startLsn - b.startLsn)
    const take = (done: Import): void => {
      for (const id of [...replay.spaces.keys()]) if (!done.existing.includes(id)) replay.spaces.delete(id)
      for (const [id, space] of done.spaces) {
        const target = replay.spaces.get(id)
        const pages = done.kind === 'full' || !target ? new Map<number, Uint8Array>() : target.pages
        for (const [page, image] of space.images) pages.set(page, Uint8Array.from(image))
        replay.spaces.set(id, { id, name: space.name, format: parseSpaceFlags(space.flags), pages })
      }
    }
    for (const stretch of this.stretches) {
      if (stretch.begin > lsn) break
      replay.lsn = stretch.begin
      replay.useRedo(this.#asLogFile(stretch))
      while (imports.length > 0 && imports[0]!.startLsn <= stretch.end) {
        const next = imports.shift()!
        if (next.startLsn > lsn) break
        replay.advanceTo(next.startLsn)
        take(next)
      }
      replay.advanceTo(Math.min(lsn, stretch.end))
    }
    return replay
  }
}
