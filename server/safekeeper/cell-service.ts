/** The messages among the nodes of a cell, and those of whoever looks after it. */
import { MessageType, type PeerSubscribe } from '../../protocol/messages.ts'
import { invalidError } from '../shared/errors.ts'
import { formatTime } from '../shared/format.ts'
import type { RequestContext, Service } from '../shared/listener.ts'
import { cellOrigin } from './cell-state.ts'
import type { Members } from './members.ts'
import type { CellNode } from './node.ts'

export function cellService(node: CellNode): Service {
  const lead =
    <M extends { readonly type: number }>(run: (members: Members, message: M) => Promise<void>) =>
    async (
      request: Parameters<CellNode['elsewhere']>[0] & { readonly message: M },
      ctx: RequestContext,
    ): Promise<void> => {
      const here = async () => {
        await run(node.members, request.message)
        ctx.reply({ type: MessageType.Ok })
      }
      await (node.leading === undefined ? node.elsewhere(request, ctx, here, 'slow') : here())
    }

  return {
    role: 0,
    handlers: {
      [MessageType.PeerHello]: ({ message }, ctx) => ctx.reply(node.hello(message.node, message.cellId)),
      [MessageType.PeerSeed]: async ({ message }, ctx) => {
        await node.seeded({ cellId: message.cellId, members: message.members })
        ctx.reply({ type: MessageType.Ok })
      },
      [MessageType.PeerSubscribe]: ({ message }, ctx) => {
        refuseLeftBehind(node, message)
        return node.peers.subscribed(message, ctx)
      },
      [MessageType.PeerFetch]: async ({ message }, ctx) => {
        const { reply, payloads } = await node.fetched(message)
        ctx.reply(reply, { bulk: payloads })
      },
      [MessageType.CellStatus]: (_, ctx) => ctx.reply(node.status()),
      [MessageType.MemberAdd]: lead((members, { name, address }) => members.add(name, address)),
      [MessageType.MemberRemove]: lead((members, { name }) => members.remove(name)),
      [MessageType.MemberReplace]: lead((members, { old, name, address }) =>
        members.replace(old, name, address),
      ),
      [MessageType.TransferLeadership]: lead((members, { name }) => members.transfer(name)),
    },
  }
}

/** A member of the cell that this one was made of has come back with its disk: it is told what happened meanwhile. */
function refuseLeftBehind(node: CellNode, { cellId, node: { nodeId } }: PeerSubscribe): void {
  const origin = cellOrigin(node.driver.state)
  if (origin === undefined || cellId !== origin.from || cellId === origin.to) return
  const [how, by] =
    origin.how === 'survivor' ? ['one of its members', 'member recover'] : ['its backup', 'backup restore']
  throw invalidError(
    `cell ${cellId}, to which ${nodeId} belongs, was given up: cell ${origin.to} was made of what ${how} had ("palimpsest ${by}", ` +
      `${formatTime(origin.wallTimeUs)}), and goes on without it. Stop ${nodeId}, keep its folder until nobody misses anything, and add it ` +
      'with an empty one',
  )
}
