/**
 * A real safekeeper process is killed at random moments of appending, again and again: nothing that it acknowledged is
 * lost, every byte is right, and the same writer goes on by itself. PALIMPSEST_KILLS sets how often (10 unless told).
 */
import { type ChildProcess, spawn } from 'node:child_process'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import t from 'tap'
import { Connection } from '../../protocol/connection.ts'
import type { Lsn, TimelineId } from '../../protocol/ids.ts'
import { MessageType } from '../../protocol/messages.ts'
import { silentLog } from '../../server/shared/log.ts'
import { WalWriter } from '../../server/shared/log-client.ts'
import { lsnBytes } from '../support/lsn-bytes.ts'

const KILLS = Number(process.env['PALIMPSEST_KILLS'] ?? 10)
const ID = '5a'.repeat(16) as TimelineId
const START = 8192 as Lsn
const SEGMENT_BYTES = 1024 * 1024
const CHILD = fileURLToPath(new URL('../support/safekeeper-child.ts', import.meta.url))

function start(dir: string, port: number): Promise<{ child: ChildProcess; port: number }> {
  const child = spawn(process.execPath, [CHILD, dir, String(SEGMENT_BYTES), String(port)], {
    stdio: ['ignore', 'pipe', 'inherit'],
  })
  return new Promise((resolve, reject) => {
    child.once('exit', code => reject(new Error(`safekeeper ended with ${code}`)))
    child.stdout.on('data', (text: Buffer) => {
      const ready = /ready (\d+)/.exec(text.toString())
      if (ready !== null) resolve({ child, port: Number(ready[1]) })
    })
  })
}

async function kill(child: ChildProcess): Promise<void> {
  child.removeAllListeners('exit')
  const ended = new Promise(resolve => child.once('exit', resolve))
  child.kill('SIGKILL')
  await ended
}

t.test(`${KILLS} kills while redo is appended`, { timeout: 60_000 + KILLS * 5000 }, async t => {
  const dir = mkdtempSync(join(tmpdir(), 'palimpsest-safekeeper-'))
  let { child, port } = await start(dir, 0)
  t.teardown(async () => {
    await kill(child)
    rmSync(dir, { recursive: true, force: true })
  })
  const address = { host: '127.0.0.1', port }
  const connection = await Connection.connect(address)
  await connection.request({ type: MessageType.WalCreate, timeline: ID, startLsn: START, name: 'main' })
  connection.close()

  const writer = await WalWriter.open({
    safekeepers: [address],
    timeline: ID,
    name: 'test',
    log: silentLog,
    windowBytesMax: 512 * 1024,
  })
  let stop = false
  const appending = (async () => {
    for (let i = 0; !stop; i++) {
      const at = writer.endLsn
      await writer.append(at, lsnBytes(at, 1 + ((i * 7919) % 20_000)))
      if (i % 50 === 0) await writer.durable()
    }
    await writer.durable()
  })()
  // Whoever awaits it below sees the failure; until then it is not unhandled.
  appending.catch(() => {})

  let acked: number = START
  for (let round = 1; round <= KILLS; round++) {
    // Once it has made some headway since the last kill, at any moment.
    await writer.durable((acked + 1) as Lsn)
    await new Promise(resolve => setTimeout(resolve, Math.random() * 200))
    await kill(child)
    const ackedBefore = writer.flushedLsn
    ;({ child } = await start(dir, port))
    const reader = await Connection.connect(address)
    let at: number = START
    for await (const { message, bulk } of reader.stream({
      type: MessageType.WalRead,
      timeline: ID,
      fromLsn: START,
      follow: false,
    })) {
      if (message.type !== MessageType.WalData) continue
      if (message.beginLsn !== at || !lsnBytes(at, bulk.length).equals(bulk))
        t.fail(`wrong bytes at LSN ${at}`)
      at += bulk.length
    }
    reader.close()
    t.ok(at >= ackedBefore, `kill ${round}: ${ackedBefore} was acknowledged, ${at} is there`)
    t.ok(ackedBefore > acked)
    acked = ackedBefore
  }
  stop = true
  await appending
  t.ok(acked > START + 100_000, `${acked - START} bytes were appended`)
  t.equal(writer.flushedLsn, writer.endLsn)
  writer.close()
})
