/**
 * The leader's process stands still (SIGSTOP) and is not continued before a writer and a reader have gone on at another node:
 * its connections live, so nothing tells them but what the others say. Nothing is lost or there twice, also after it goes on.
 */
import t from 'tap'
import type { Lsn, TimelineId } from '../../protocol/ids.ts'
import { MessageType } from '../../protocol/messages.ts'
import { askLeader } from '../../server/shared/cell-client.ts'
import { silentLog } from '../../server/shared/log.ts'
import { WalWriter } from '../../server/shared/log-client.ts'
import { SafekeeperWatch } from '../../server/shared/safekeeper-watch.ts'
import { lsnBytes, retried, SafekeeperProcesses } from '../support/safekeeper-processes.ts'

const ID = '5b'.repeat(16) as TimelineId
const START = 8192 as Lsn

/** Follows the log as a page server does, and checks every byte. */
class Reader {
  at: number = START
  /** Nodes that it has read from, one after the other. */
  readonly from: string[] = []
  wrong = ''
  private readonly watch: SafekeeperWatch
  private readonly stop = new AbortController()
  private readonly done: Promise<void>

  /** `first`: where it shall begin. */
  constructor(watch: SafekeeperWatch, first: string) {
    this.watch = watch
    this.done = this.run(first)
  }

  private async run(first: string): Promise<void> {
    const { signal } = this.stop
    let avoid: string | undefined
    while (!signal.aborted && this.wrong === '')
      try {
        let connection = await this.watch.dial(signal, avoid)
        while (avoid === undefined && connection.address !== first) {
          connection.close()
          connection = await this.watch.dial(signal)
        }
        avoid = connection.address
        this.from.push(avoid)
        const unfollow = this.watch.follow(avoid, () => connection.close())
        const request = {
          type: MessageType.WalRead,
          timeline: ID,
          fromLsn: this.at as Lsn,
          follow: true,
        } as const
        try {
          for await (const { message, bulk } of connection.stream(request, { deadlineMs: 0, signal })) {
            if (message.type !== MessageType.WalData) continue
            if (message.beginLsn !== this.at || !lsnBytes(this.at, bulk.length).equals(bulk))
              this.wrong ||= `wrong bytes at LSN ${this.at} of ${connection.address}`
            this.at += bulk.length
          }
        } finally {
          unfollow()
          connection.close()
        }
      } catch {
        await new Promise(resolve => setTimeout(resolve, 20))
      }
  }

  async reached(lsn: number): Promise<void> {
    while (this.at < lsn && this.wrong === '') await new Promise(resolve => setTimeout(resolve, 10))
  }

  async close(): Promise<void> {
    this.stop.abort(new Error('the test is over'))
    await this.done
    this.watch.close()
  }
}

t.test('writer and reader leave a leader that is stopped', { timeout: 200_000 }, async t => {
  const cell = await SafekeeperProcesses.start()
  t.teardown(() => cell.end())
  await retried(() =>
    askLeader(cell.list, { type: MessageType.WalCreate, timeline: ID, startLsn: START, name: 'main' }),
  )
  const writer = await WalWriter.open({ safekeepers: cell.list, timeline: ID, name: 'test', log: silentLog })
  t.teardown(() => writer.close())
  const append = async (bytes: number) => {
    await writer.append(writer.endLsn, lsnBytes(writer.endLsn, bytes))
    return writer.endLsn
  }
  await append(1000)
  await writer.durable()
  const leader = await retried(() => cell.leader())
  const { host, port } = cell.addresses.get(leader)!
  const reader = new Reader(new SafekeeperWatch(cell.list), `${host}:${port}`)
  t.teardown(() => reader.close())
  await reader.reached(writer.endLsn)

  await cell.signal(leader, 'SIGSTOP')
  const ends = []
  for (let i = 0; i < 50; i++) ends.push(await append(1 + i * 37))
  await writer.durable()
  t.pass('the writer has gone on')
  await reader.reached(writer.endLsn)
  t.equal(reader.wrong, '')
  t.ok(reader.from.length > 1, 'so has the reader')
  t.not(reader.from.at(-1), `${host}:${port}`)

  await cell.signal(leader, 'SIGCONT')
  await append(777)
  await writer.durable()
  await reader.reached(writer.endLsn)
  t.equal(reader.wrong, '')
  t.equal(reader.at, writer.flushedLsn)
  // What the old leader had taken and not committed is nowhere; the rest is on all, once.
  for (const [name, address] of cell.addresses)
    await retried(async () => {
      const all = new SafekeeperWatch([address])
      const connection = await all.dial(new AbortController().signal)
      let at: number = START
      try {
        const request = { type: MessageType.WalRead, timeline: ID, fromLsn: START, follow: false } as const
        for await (const { message, bulk } of connection.stream(request)) {
          if (message.type !== MessageType.WalData) continue
          if (message.beginLsn !== at || !lsnBytes(at, bulk.length).equals(bulk))
            t.fail(`${name} at LSN ${at}`)
          at += bulk.length
        }
      } finally {
        connection.close()
      }
      if (at !== writer.flushedLsn) throw new Error(`${name} has ${at} of ${writer.flushedLsn}`)
      t.pass(`${name} has every byte once`)
    })
})
