/** The timelines of a page server, as its clients ask for them. */
import type { Connection } from '../../protocol/connection.ts'
import { MessageType, type TimelineSummary } from '../../protocol/messages.ts'

/** All of them, by name. */
export async function listTimelines(pageServer: Connection): Promise<TimelineSummary[]> {
  const replies = await pageServer.requestAll({ type: MessageType.TimelineList })
  return replies.flatMap(({ message }) => message.timelines).sort((a, b) => a.name.localeCompare(b.name))
}
