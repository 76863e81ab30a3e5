/**
 * The log's messages, as protocol/messages-wal.ts has them, answered from a cell's timelines. Reads are answered by any node;
 * all else is the leader's: others pass it on or say where to go, as the client chose in its hello.
 */

import type { TimelineId } from '../../protocol/ids.ts'
import { MessageType, Role, type WalRead, type WalShow } from '../../protocol/messages.ts'
import { retryError } from '../shared/errors.ts'
import type { Handler, Handlers, IncomingRequest, RequestContext, Service } from '../shared/listener.ts'
import type { ServerConnection } from '../shared/server-connection.ts'
import type { CellTimelines } from './cell-timelines.ts'
import type { CellNode } from './node.ts'

/** Timelines in one WalListReply frame. */
const LIST_ITEMS_MAX = 1000

export function logService(node: CellNode): Service {
  /** Answered by the leader alone. */
  const lead =
    <M extends { readonly type: number }>(
      run: (
        timelines: CellTimelines,
        request: IncomingRequest<M>,
        ctx: RequestContext,
      ) => Promise<void> | void,
    ): Handler<M> =>
    (request, ctx) => {
      // At once where possible: appends keep their order.
      const timelines = node.leading
      if (timelines !== undefined) return run(timelines, request, ctx)
      return node.elsewhere(request, ctx, () => run(node.leading!, request, ctx))
    }

  /** How many partings of a timeline each reader was told of, on its connection. */
  const told = new WeakMap<ServerConnection, Map<TimelineId, number>>()

  const handlers: Handlers = {
    [MessageType.WalCreate]: lead(async (timelines, { message }, ctx) => {
      await timelines.create(message.timeline, message.name, message.startLsn)
      ctx.reply({ type: MessageType.Ok })
    }),
    [MessageType.WalOpen]: lead(async (timelines, { message }, ctx) => {
      const opened = await timelines.open(message.timeline, message.writer)
      ctx.reply({ type: MessageType.WalOpened, ...opened })
    }),
    [MessageType.WalAppend]: lead((timelines, { message, bulk, header }, ctx) => {
      const { timeline, epoch, beginLsn, wallTimeUs } = message
      const begun = node.metrics.appendBegun()
      return timelines.append(timeline, epoch, beginLsn, wallTimeUs, bulk, header.bulkCrc).then(lsn => {
        node.metrics.appendDone(begun, bulk.length)
        ctx.reply({ type: MessageType.WalAppended, flushedLsn: lsn, committedLsn: lsn }, { soon: true })
      })
    }),
    [MessageType.WalSkip]: lead(async (timelines, { message }, ctx) => {
      const { timeline, epoch, fromLsn, toLsn, wallTimeUs } = message
      const lsn = await timelines.skip(timeline, epoch, fromLsn, toLsn, wallTimeUs)
      ctx.reply({ type: MessageType.WalAppended, flushedLsn: lsn, committedLsn: lsn })
    }),
    [MessageType.WalRead]: async (request, ctx) => {
      const { timeline } = request.message
      await node.leading?.sure(timeline)
      await sendLog(node.timelines, request, ctx, told.get(ctx.connection)?.get(timeline))
    },
    [MessageType.WalPartings]: async ({ message: { timeline } }, ctx) => {
      await node.leading?.sure(timeline)
      const partings = [...node.timelines.partings(timeline)]
      const ofConnection = told.get(ctx.connection) ?? new Map<TimelineId, number>()
      told.set(ctx.connection, ofConnection.set(timeline, partings.length))
      ctx.reply({ type: MessageType.WalPartingsReply, partings })
    },
    [MessageType.WalTrim]: lead(async (timelines, { message }, ctx) => {
      const beginLsn = await timelines.trim(message.timeline, message.consumer, message.durableLsn)
      ctx.reply({ type: MessageType.WalTrimmed, beginLsn })
    }),
    [MessageType.WalState]: lead(async (timelines, { message }, ctx) => {
      ctx.reply(await timelines.walState(message.timeline))
    }),
    [MessageType.WalList]: lead(async (timelines, _, ctx) => {
      const items = await timelines.list()
      for (let at = 0; at === 0 || at < items.length; at += LIST_ITEMS_MAX)
        ctx.reply(
          { type: MessageType.WalListReply, timelines: items.slice(at, at + LIST_ITEMS_MAX) },
          { more: at + LIST_ITEMS_MAX < items.length },
        )
    }),
    [MessageType.WalDelete]: lead(async (timelines, { message }, ctx) => {
      await timelines.delete(message.timeline)
      ctx.reply({ type: MessageType.Ok })
    }),
    [MessageType.WalRename]: lead(async (timelines, { message }, ctx) => {
      await timelines.rename(message.timeline, message.name)
      ctx.reply({ type: MessageType.Ok })
    }),
    [MessageType.WalBranch]: lead(async (timelines, { message }, ctx) => {
      const { timeline, ancestor, lsn, name } = message
      ctx.reply({
        type: MessageType.WalBranched,
        lsn: await timelines.branch(timeline, ancestor, lsn, name),
      })
    }),
    [MessageType.WalConsumerDrop]: lead(async (timelines, { message }, ctx) => {
      await timelines.dropConsumer(message.timeline, message.consumer)
      ctx.reply({ type: MessageType.Ok })
    }),
    // What this node has, if it has it; what is not there is the leader's to say.
    [MessageType.WalShow]: (request, ctx) => {
      const { timeline } = request.message
      if (node.timelines.has(timeline)) return ctx.reply(node.timelines.show(timeline))
      return show(request, ctx)
    },
  }
  const show = lead<WalShow>(async (timelines, { message }, ctx) => {
    await timelines.sure(message.timeline)
    ctx.reply(timelines.show(message.timeline))
  })
  return { role: Role.SAFEKEEPER, handlers }
}

/**
 * Streams the log, from disk until the reader has caught up, then from memory as it is committed. A reader that asked for partings is
 * brought nothing from behind one that it was not told of.
 */
async function sendLog(
  timelines: CellTimelines,
  { message }: IncomingRequest<WalRead>,
  ctx: RequestContext,
  partingsTold: number | undefined,
): Promise<void> {
  const { timeline } = message
  const reader = timelines.read(timeline, message.fromLsn)
  const gone = timelines.gone(timeline)
  let wake: (() => void) | undefined
  const wakeUp = () => {
    wake?.()
    wake = undefined
  }
  const unfollow = timelines.follow(timeline, wakeUp)
  ctx.closed.addEventListener('abort', wakeUp)
  gone.addEventListener('abort', wakeUp)
  try {
    for (;;) {
      gone.throwIfAborted()
      if (ctx.done) return
      if (ctx.closed.aborted) break
      const chunk = await reader.next()
      if (chunk === undefined) {
        if (!message.follow) break
        const stale = timelines.staleness()
        if (stale !== undefined) throw stale
        await new Promise<void>(resolve => {
          wake = resolve
          // What happened while the reader looked must not be slept through.
          if (ctx.closed.aborted || gone.aborted || timelines.endLsn(timeline) > reader.position) wakeUp()
        })
        continue
      }
      if (partingsTold !== undefined && timelines.partings(timeline).length !== partingsTold) {
        chunk.release()
        throw retryError(
          'the cell was made again of what was left of it: ask for the partings of the log once more',
        )
      }
      await ctx.drain()
      const { beginLsn, endLsn, wallTimeUs } = chunk
      if (chunk.kind === 'gap') {
        chunk.release()
        ctx.reply({ type: MessageType.WalGap, fromLsn: beginLsn, toLsn: endLsn, wallTimeUs }, { more: true })
      } else
        ctx.reply(
          {
            type: MessageType.WalData,
            beginLsn,
            wallTimeUs,
            committedLsn: timelines.endLsn(timeline),
          },
          { bulk: chunk.payload, bulkCrc: chunk.payloadCrc, more: true, sent: chunk.release },
        )
    }
    ctx.reply({ type: MessageType.WalReadEnd, endLsn: reader.position })
  } finally {
    reader.close()
    unfollow()
    ctx.closed.removeEventListener('abort', wakeUp)
    gone.removeEventListener('abort', wakeUp)
  }
}
