/** Asking another safekeeper who it is, which cell it is in, and who leads that. */
import type { Connection } from '../../protocol/connection.ts'
import type { Address } from '../../protocol/dial.ts'
import { MessageType, type PeerHelloReply, type PeerNode } from '../../protocol/messages.ts'

export type DialPeer = (address: Address) => Promise<Connection>

/** Who asks; an empty `cellId`: it is in none yet. */
export interface PeerHelloFrom {
  readonly cellId: string
  readonly node: PeerNode
}

/** Over a connection of its own. Throws what kept it from an answer. */
export async function sayHello(
  dial: DialPeer,
  address: Address,
  from: PeerHelloFrom,
  deadlineMs: number,
): Promise<PeerHelloReply> {
  const connection = await dial(address)
  try {
    const { message } = await connection.request({ type: MessageType.PeerHello, ...from }, { deadlineMs })
    return message
  } finally {
    connection.close()
  }
}
