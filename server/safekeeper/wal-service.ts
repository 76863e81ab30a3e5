/** The log's messages, as protocol/messages-wal.ts has them, answered from a TimelineStore. */
import { MessageType, Role, type WalRead } from '../../protocol/messages.ts'
import type { IncomingRequest, RequestContext, Service } from '../shared/listener.ts'
import type { TimelineLog, TimelineStore } from './timelines.ts'

/** Timelines in one WalListReply frame. */
const LIST_ITEMS_MAX = 1000

export function walService(store: TimelineStore): Service {
  return {
    role: Role.SAFEKEEPER,
    handlers: {
      [MessageType.WalCreate]: async ({ message }, ctx) => {
        await store.create(message.timeline, message.name, message.startLsn)
        ctx.reply({ type: MessageType.Ok })
      },
      [MessageType.WalOpen]: async ({ message }, ctx) => {
        const opened = await store.get(message.timeline).open(message.writer)
        ctx.reply({ type: MessageType.WalOpened, ...opened })
      },
      [MessageType.WalAppend]: async ({ message, bulk, header }, ctx) => {
        const timeline = store.get(message.timeline)
        const flushedLsn = await timeline.append(
          message.epoch,
          message.beginLsn,
          message.wallTimeUs,
          bulk,
          header.bulkCrc,
        )
        ctx.reply({ type: MessageType.WalAppended, flushedLsn, committedLsn: timeline.committedLsn })
      },
      [MessageType.WalSkip]: async ({ message }, ctx) => {
        const timeline = store.get(message.timeline)
        const flushedLsn = await timeline.skip(
          message.epoch,
          message.fromLsn,
          message.toLsn,
          message.wallTimeUs,
        )
        ctx.reply({ type: MessageType.WalAppended, flushedLsn, committedLsn: timeline.committedLsn })
      },
      [MessageType.WalRead]: (request, ctx) => sendLog(store.get(request.message.timeline), request, ctx),
      [MessageType.WalTrim]: async ({ message }, ctx) => {
        const beginLsn = await store.get(message.timeline).trim(message.consumer, message.durableLsn)
        ctx.reply({ type: MessageType.WalTrimmed, beginLsn })
      },
      [MessageType.WalState]: ({ message }, ctx) => ctx.reply(store.get(message.timeline).state()),
      [MessageType.WalList]: (_, ctx) => {
        const items = store.list().map(timeline => timeline.summary())
        for (let at = 0; at === 0 || at < items.length; at += LIST_ITEMS_MAX)
          ctx.reply(
            { type: MessageType.WalListReply, timelines: items.slice(at, at + LIST_ITEMS_MAX) },
            { more: at + LIST_ITEMS_MAX < items.length },
          )
      },
      [MessageType.WalDelete]: async ({ message }, ctx) => {
        await store.delete(message.timeline)
        ctx.reply({ type: MessageType.Ok })
      },
    },
  }
}

/** Streams the log, from disk until the reader has caught up, then from memory as it becomes durable. */
async function sendLog(
  timeline: TimelineLog,
  { message }: IncomingRequest<WalRead>,
  ctx: RequestContext,
): Promise<void> {
  const cursor = timeline.read(message.fromLsn)
  let wake: (() => void) | undefined
  const wakeUp = () => {
    wake?.()
    wake = undefined
  }
  const unfollow = timeline.follow(wakeUp)
  ctx.closed.addEventListener('abort', wakeUp)
  timeline.gone.addEventListener('abort', wakeUp)
  try {
    for (;;) {
      timeline.gone.throwIfAborted()
      if (ctx.done) return
      if (ctx.closed.aborted) break
      const entry = await cursor.next()
      if (entry === undefined) {
        if (!message.follow) break
        await new Promise<void>(resolve => {
          wake = resolve
          // What happened while the cursor looked must not be slept through.
          if (ctx.closed.aborted || timeline.gone.aborted || timeline.flushedLsn > cursor.position) wakeUp()
        })
        continue
      }
      await ctx.drain()
      const { beginLsn, endLsn, wallTimeUs } = entry
      if (entry.kind === 'gap')
        ctx.reply({ type: MessageType.WalGap, fromLsn: beginLsn, toLsn: endLsn, wallTimeUs }, { more: true })
      else
        ctx.reply(
          { type: MessageType.WalData, beginLsn, wallTimeUs, committedLsn: timeline.committedLsn },
          { bulk: entry.payload, bulkCrc: entry.payloadCrc, more: true },
        )
    }
    ctx.reply({ type: MessageType.WalReadEnd, endLsn: cursor.position })
  } finally {
    unfollow()
    ctx.closed.removeEventListener('abort', wakeUp)
    timeline.gone.removeEventListener('abort', wakeUp)
    await cursor.close()
  }
}
