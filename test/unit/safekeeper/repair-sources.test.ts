/** Other members as sources of lost entries: how often they are dialled. */
import t from 'tap'
import type { Connection } from '../../../protocol/connection.ts'
import { MessageType } from '../../../protocol/messages.ts'
import type { LogIndex } from '../../../server/safekeeper/core/types.ts'
import { PeerSource } from '../../../server/safekeeper/repair-sources.ts'
import { retryError } from '../../../server/shared/errors.ts'

const ADDRESS = { host: 'h', port: 1 }

/** A member that has nothing, and what became of the connections to it. */
function member() {
  const made = { dials: 0, open: 0, asked: 0, isAway: false, breakLast: () => {} }
  const dial = async () => {
    made.dials++
    if (made.isAway) throw retryError('away')
    made.open++
    const closed = new AbortController()
    const close = () => {
      if (closed.signal.aborted) return
      made.open--
      closed.abort(retryError('closed'))
    }
    made.breakLast = close
    return {
      closed: closed.signal,
      close,
      request: async () => {
        made.asked++
        closed.signal.throwIfAborted()
        const message = { type: MessageType.PeerFetched, beginIndex: 1, appliedIndex: 9, entries: [] }
        return { message, bulk: Buffer.alloc(0) }
      },
    } as unknown as Connection
  }
  return { made, source: new PeerSource('b', 'cell', ADDRESS, dial) }
}

const ask = (source: PeerSource) => source.fetch(1 as LogIndex, 9 as LogIndex, 1000)

t.test('one connection for all questions, until it rests', async t => {
  const { made, source } = member()
  await Promise.all([ask(source), ask(source)])
  for (let i = 0; i < 10; i++) await ask(source)
  t.match(made, { dials: 1, open: 1, asked: 12 })
  source.rest()
  await new Promise(setImmediate)
  t.match(made, { dials: 1, open: 0 })
  source.rest()
  await ask(source)
  t.match(made, { dials: 2, open: 1 })
  source.rest()
})

t.test('a connection that breaks, or does not come about, is made anew', async t => {
  const { made, source } = member()
  await ask(source)
  made.breakLast()
  await ask(source)
  t.match(made, { dials: 2, open: 1 })
  made.breakLast()
  made.isAway = true
  await t.rejects(ask(source), { message: 'away' } as Error)
  await t.rejects(ask(source), { message: 'away' } as Error)
  t.equal(made.dials, 4)
  made.isAway = false
  await ask(source)
  t.match(made, { dials: 5, open: 1 })
  source.rest()
})
