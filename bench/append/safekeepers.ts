// Safekeepers as users run them, a process each, and writers that each have a timeline and a connection of their own.
import type { ChildProcess } from 'node:child_process'
import { mkdirSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { Connection } from '../../protocol/connection.ts'
import { type Lsn, type TimelineId, toTimelineId, type WriterEpoch } from '../../protocol/ids.ts'
import { MessageType } from '../../protocol/messages.ts'
import { endChild, startChild } from '../harness.ts'
import type { AppendTarget } from './closed-loop.ts'
import { freePorts } from './ports.ts'

const BIN = fileURLToPath(new URL('../../bin/palimpsest.js', import.meta.url))
const START_LSN = 12288 as Lsn
const LEADER_MS = 20_000

interface Writer {
  readonly connection: Connection
  readonly timeline: TimelineId
  readonly epoch: WriterEpoch
  lsn: Lsn
}

class SafekeeperTarget implements AppendTarget {
  readonly name: string
  readonly #children: readonly ChildProcess[]
  readonly #writers: readonly Writer[]

  constructor(name: string, children: readonly ChildProcess[], writers: readonly Writer[]) {
    this.name = name
    this.#children = children
    this.#writers = writers
  }

  async append(index: number, payload: Uint8Array): Promise<void> {
    const writer = this.#writers[index]!
    const { connection, timeline, epoch, lsn } = writer
    writer.lsn = (lsn + payload.length) as Lsn
    await connection.request(
      { type: MessageType.WalAppend, timeline, epoch, beginLsn: lsn, wallTimeUs: Date.now() * 1000 },
      { bulk: payload },
    )
  }

  async close(): Promise<void> {
    for (const { connection } of this.#writers) connection.close()
    await Promise.all(this.#children.map(endChild))
  }
}

export function safekeepersName(nodes: number): string {
  return `Palimpsest ×${nodes}`
}

export async function startSafekeepers(
  dir: string,
  nodes: number,
  writers: number,
): Promise<SafekeeperTarget> {
  mkdirSync(dir, { recursive: true })
  const ports = await freePorts(nodes)
  const peers = ports.map((port, i) => `n${i}=127.0.0.1:${port}`).join(',')
  const started = await Promise.all(
    ports.map((port, i) =>
      startChild(
        BIN,
        [
          ...['safekeeper', '--id', `n${i}`, '--data', join(dir, `n${i}`)],
          ...['--listen', `127.0.0.1:${port}`, '--log-level', 'error'],
          ...(nodes > 1 ? ['--peers', peers] : []),
        ],
        /^ready (\S+)$/,
      ),
    ),
  )
  const leader = await findLeader(ports)
  const opened: Writer[] = []
  for (let i = 0; i < writers; i++) {
    const connection = await Connection.connect({ host: '127.0.0.1', port: leader, deadlineMs: 60_000 })
    const timeline = timelineId(i + 1)
    await connection.request({ type: MessageType.WalCreate, timeline, startLsn: START_LSN, name: `w${i}` })
    const { message } = await connection.request({
      type: MessageType.WalOpen,
      timeline,
      writer: `bench-${i}`,
    })
    opened.push({ connection, timeline, epoch: message.epoch, lsn: message.endLsn })
  }
  return new SafekeeperTarget(
    safekeepersName(nodes),
    started.map(({ child }) => child),
    opened,
  )
}

/** The node that takes a new timeline. */
async function findLeader(ports: readonly number[]): Promise<number> {
  const until = performance.now() + LEADER_MS
  let problem = ''
  while (performance.now() < until) {
    for (const port of ports) {
      let connection: Connection | undefined
      try {
        connection = await Connection.connect({ host: '127.0.0.1', port, deadlineMs: 5000 })
        await connection.request({
          type: MessageType.WalCreate,
          timeline: timelineId(0),
          startLsn: START_LSN,
          name: 'probe',
        })
        return port
      } catch (error) {
        problem = (error as Error).message
      } finally {
        connection?.close()
      }
    }
    await sleep(100)
  }
  throw new Error(`no safekeeper took a new timeline within ${LEADER_MS / 1000} s: ${problem}`)
}

function timelineId(n: number): TimelineId {
  return toTimelineId(`b${n.toString(16).padStart(31, '0')}`)
}
