/**
 * A log keeper in memory for tests of the page server alone: it holds chunks, streams them, remembers what was trimmed,
 * and can cut its readers off.
 */
import type { Lsn, TimelineId } from '../../protocol/ids.ts'
import { MessageType, Role, type WalParting, type WalRead } from '../../protocol/messages.ts'
import type { Handlers, RequestContext, Service } from '../../server/shared/listener.ts'

interface Chunk {
  readonly begin: number
  readonly end: number
  /** Undefined for a gap. */
  readonly bytes: Uint8Array | undefined
  readonly wallTimeUs: number
}

class Log {
  readonly chunks: Chunk[] = []
  end: number
  trimmed = 0
  readonly partings: WalParting[] = []
  wake: () => void = () => {}
  changed: Promise<void>

  constructor(startLsn: number) {
    this.end = startLsn
    this.changed = new Promise(resolve => {
      this.wake = resolve
    })
  }

  add(chunk: Chunk): void {
    this.chunks.push(chunk)
    this.end = chunk.end
    this.wake()
    this.changed = new Promise(resolve => {
      this.wake = resolve
    })
  }
}

export class WalSource implements Service {
  readonly role = Role.SAFEKEEPER
  readonly handlers: Handlers
  /** Readers under way; `cut` ends them. */
  readonly readers = new Set<RequestContext>()
  /** Instead of the partings that there were. */
  tells: readonly WalParting[] | undefined
  readonly #logs = new Map<TimelineId, Log>()

  constructor() {
    this.handlers = {
      [MessageType.WalRead]: ({ message }, ctx) => this.#read(message, ctx),
      [MessageType.WalPartings]: ({ message }, ctx) =>
        ctx.reply({
          type: MessageType.WalPartingsReply,
          partings: [...(this.tells ?? this.#logs.get(message.timeline)?.partings ?? [])],
        }),
      [MessageType.WalTrim]: ({ message }, ctx) => {
        const log = this.#logs.get(message.timeline)
        if (log !== undefined) log.trimmed = Math.max(log.trimmed, message.durableLsn)
        ctx.reply({ type: MessageType.WalTrimmed, beginLsn: message.durableLsn })
      },
    }
  }

  create(timeline: TimelineId, startLsn: number): void {
    this.#logs.set(timeline, new Log(startLsn))
  }

  append(timeline: TimelineId, bytes: Uint8Array, wallTimeUs = Date.now() * 1000): void {
    const log = this.#logs.get(timeline)!
    log.add({ begin: log.end, end: log.end + bytes.length, bytes, wallTimeUs })
  }

  /** The log goes on at `toLsn`. */
  skip(timeline: TimelineId, toLsn: number): void {
    const log = this.#logs.get(timeline)!
    log.add({ begin: log.end, end: toLsn, bytes: undefined, wallTimeUs: Date.now() * 1000 })
  }

  /** The log is made again of what is left of it, up to the last chunk that ends at or below `lsn`. Gives its end. */
  part(timeline: TimelineId, lsn: number, cell = '1'): number {
    const log = this.#logs.get(timeline)!
    while (log.end > lsn) log.end = log.chunks.pop()!.begin
    log.partings.push({ lsn: log.end as Lsn, cellId: cell.repeat(32) })
    this.cut()
    return log.end
  }

  end(timeline: TimelineId): number {
    return this.#logs.get(timeline)!.end
  }

  trimmed(timeline: TimelineId): number {
    return this.#logs.get(timeline)!.trimmed
  }

  /** Cuts every reader's connection. */
  cut(): void {
    for (const ctx of this.readers) ctx.connection.destroy()
  }

  async #read(message: WalRead, ctx: RequestContext): Promise<void> {
    const log = this.#logs.get(message.timeline)
    if (log === undefined) throw new Error(`no log ${message.timeline}`)
    if (message.fromLsn < log.trimmed)
      throw new Error(`LSN ${message.fromLsn} was trimmed up to ${log.trimmed}`)
    this.readers.add(ctx)
    let at = log.chunks.findIndex(chunk => chunk.end > message.fromLsn)
    if (at < 0) at = log.chunks.length
    if (at < log.chunks.length && log.chunks[at]!.begin !== message.fromLsn)
      throw new Error(`LSN ${message.fromLsn} is no chunk boundary`)
    const closed = new Promise<void>(resolve => ctx.closed.addEventListener('abort', () => resolve()))
    while (!ctx.closed.aborted) {
      if (at === log.chunks.length) {
        await Promise.race([log.changed, closed])
        continue
      }
      await ctx.drain()
      if (ctx.closed.aborted) break
      const chunk = log.chunks[at++]!
      if (chunk.bytes === undefined)
        ctx.reply(
          {
            type: MessageType.WalGap,
            fromLsn: chunk.begin as Lsn,
            toLsn: chunk.end as Lsn,
            wallTimeUs: chunk.wallTimeUs,
          },
          { more: true },
        )
      else
        ctx.reply(
          {
            type: MessageType.WalData,
            beginLsn: chunk.begin as Lsn,
            wallTimeUs: chunk.wallTimeUs,
            committedLsn: log.end as Lsn,
          },
          { bulk: chunk.bytes, more: true },
        )
    }
    this.readers.delete(ctx)
  }
}
