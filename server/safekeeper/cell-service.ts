/** The messages among the nodes of a cell, and those of whoever looks after it. */
import { MessageType } from '../../protocol/messages.ts'
import type { RequestContext, Service } from '../shared/listener.ts'
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
      [MessageType.PeerSubscribe]: ({ message }, ctx) => node.peers.subscribed(message, ctx),
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
