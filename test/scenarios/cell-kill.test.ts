/**
 * Three real processes under a synthetic writer. The leader is killed with -9, or stopped and continued, again and again: nothing
 * that was acknowledged is missing or there twice, and a new leader takes redo soon. The times without one are printed;
 * they are not asserted, since they say as much about the machine. PALIMPSEST_KILLS sets how often (6 unless told).
 */
import t from 'tap'
import { Connection } from '../../protocol/connection.ts'
import type { Lsn, TimelineId } from '../../protocol/ids.ts'
import { MessageType } from '../../protocol/messages.ts'
import { askLeader } from '../../server/shared/cell-client.ts'
import { silentLog } from '../../server/shared/log.ts'
import { WalWriter } from '../../server/shared/log-client.ts'
import { lsnBytes, retried, SafekeeperProcesses } from '../support/safekeeper-processes.ts'

const KILLS = Number(process.env['PALIMPSEST_KILLS'] ?? 6)
const ID = '5a'.repeat(16) as TimelineId
const START = 8192 as Lsn

t.test(`the leader goes ${KILLS} times while redo is appended`, { timeout: 600_000 }, async t => {
  const cell = await SafekeeperProcesses.start()
  t.teardown(() => cell.end())
  await retried(() =>
    askLeader(cell.list, { type: MessageType.WalCreate, timeline: ID, startLsn: START, name: 'main' }),
  )
  let ackedAtMs = performance.now()
  let longestMs = 0
  const writer = await WalWriter.open({
    safekeepers: cell.list,
    timeline: ID,
    name: 'test',
    log: silentLog,
    windowBytesMax: 512 * 1024,
    onFlushed: () => {
      const now = performance.now()
      longestMs = Math.max(longestMs, now - ackedAtMs)
      ackedAtMs = now
    },
  })
  t.teardown(() => writer.close())
  let stop = false
  const appending = (async () => {
    for (let i = 0; !stop; i++) {
      const at = writer.endLsn
      await writer.append(at, lsnBytes(at, 1 + ((i * 7919) % 20_000)))
      if (i % 50 === 0) await writer.durable()
    }
    await writer.durable()
  })()
  appending.catch(() => {})

  const gaps: number[] = []
  for (let round = 0; round < KILLS; round++) {
    await writer.durable((writer.flushedLsn + 1) as Lsn)
    await new Promise(resolve => setTimeout(resolve, Math.random() * 300))
    const leader = await retried(() => cell.leader())
    const isStop = round % 3 === 2
    longestMs = 0
    ackedAtMs = performance.now()
    await cell.signal(leader, isStop ? 'SIGSTOP' : 'SIGKILL')
    const before = writer.endLsn
    await writer.durable((before + 1) as Lsn)
    if (!isStop) gaps.push(Math.round(longestMs))
    if (isStop) await cell.signal(leader, 'SIGCONT')
    else await cell.run(leader)
  }
  stop = true
  await appending
  gaps.sort((a, b) => a - b)
  t.comment(`ms without acknowledgements after kill -9: ${gaps.join(' ')}; median ${gaps[gaps.length >> 1]}`)
  t.equal(writer.flushedLsn, writer.endLsn)
  t.ok(writer.flushedLsn > START + 100_000, `${writer.flushedLsn - START} bytes were appended`)
  for (const [name, address] of cell.addresses)
    await retried(async () => {
      const reader = await Connection.connect(address)
      let at: number = START
      try {
        for await (const { message, bulk } of reader.stream({
          type: MessageType.WalRead,
          timeline: ID,
          fromLsn: START,
          follow: false,
        })) {
          if (message.type !== MessageType.WalData) continue
          if (message.beginLsn !== at || !lsnBytes(at, bulk.length).equals(bulk))
            t.fail(`wrong bytes at LSN ${at} of ${name}`)
          at += bulk.length
        }
      } finally {
        reader.close()
      }
      if (at !== writer.flushedLsn) throw new Error(`${name} has ${at} of ${writer.flushedLsn}`)
      t.pass(`${name} has every byte once`)
    })
})
