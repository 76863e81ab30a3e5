// Safekeepers as users run them, a process each, and writers as attach uses them, each with a timeline and a connection of its
// own: one that loses its leader finds the next and goes on.
import type { ChildProcess } from 'node:child_process'
import { mkdirSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { Connection } from '../../protocol/connection.ts'
import { type Lsn, type TimelineId, toTimelineId } from '../../protocol/ids.ts'
import { MessageType } from '../../protocol/messages.ts'
import { ConnectionShare } from '../../server/shared/connection-share.ts'
import { silentLog } from '../../server/shared/log.ts'
import { WalWriter } from '../../server/shared/log-client.ts'
import { endChild, startChild } from '../harness.ts'
import type { AppendTarget } from './closed-loop.ts'
import { freePorts } from './ports.ts'

const BIN = fileURLToPath(new URL('../../bin/palimpsest.js', import.meta.url))
export const START_LSN = 12288 as Lsn
const LEADER_MS = 20_000

/** An answer is waited for so long before the writer takes its leader for lost: longer than on an idle machine. */
const SILENCE_MS = 20_000

class SafekeeperTarget implements AppendTarget {
  readonly name: string
  readonly pids: readonly number[]
  readonly #children: readonly ChildProcess[]
  readonly #writers: readonly WalWriter[]

  constructor(name: string, children: readonly ChildProcess[], writers: readonly WalWriter[]) {
    this.name = name
    this.pids = children.map(child => child.pid!)
    this.#children = children
    this.#writers = writers
  }

  async append(index: number, payload: Uint8Array): Promise<void> {
    const writer = this.#writers[index]!
    const lsn = writer.endLsn
    await writer.append(lsn, payload)
    await writer.durable((lsn + payload.length) as Lsn)
  }

  async close(): Promise<void> {
    for (const writer of this.#writers) writer.close()
    await Promise.all(this.#children.map(endChild))
  }
}

/** All writers over one connection. */
export const SHARED = ', one connection'

export function safekeepersName(nodes: number): string {
  return `Palimpsest ×${nodes}`
}

/** Processes of one cell. */
export interface Cell {
  readonly children: readonly ChildProcess[]
  readonly safekeepers: readonly { readonly host: string; readonly port: number }[]
  /** Port of the leader. */
  readonly leader: number
}

/** Starts a cell on `DIR/n0`, `n1`, … and waits until it takes requests. `ports`: those that it had before. */
export async function startCell(
  dir: string,
  nodes: number,
  ports?: readonly number[],
): Promise<Cell & { readonly ports: readonly number[] }> {
  mkdirSync(dir, { recursive: true })
  ports ??= await freePorts(nodes)
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
  return {
    children: started.map(({ child }) => child),
    safekeepers: ports.map(port => ({ host: '127.0.0.1', port })),
    leader: await findLeader(ports),
    ports,
  }
}

export async function startSafekeepers(
  dir: string,
  nodes: number,
  writers: number,
  isShared = false,
): Promise<SafekeeperTarget> {
  const { children, safekeepers, leader } = await startCell(dir, nodes)
  const share = isShared ? new ConnectionShare(safekeepers) : undefined
  const connection = await Connection.connect({ host: '127.0.0.1', port: leader })
  const opened: WalWriter[] = []
  for (let i = 0; i < writers; i++) {
    const timeline = timelineId(i + 1)
    await connection.request({ type: MessageType.WalCreate, timeline, startLsn: START_LSN, name: `w${i}` })
    opened.push(
      await WalWriter.open({
        safekeepers,
        timeline,
        name: `bench-${i}`,
        log: silentLog,
        silenceMs: SILENCE_MS,
        ...share?.dialer,
      }),
    )
  }
  connection.close()
  return new SafekeeperTarget(safekeepersName(nodes) + (isShared ? SHARED : ''), children, opened)
}

/** The node that takes a new timeline. */
async function findLeader(ports: readonly number[]): Promise<number> {
  const until = performance.now() + LEADER_MS
  let problem = ''
  while (performance.now() < until) {
    for (const port of ports) {
      let connection: Connection | undefined
      try {
        // The others must not pass it on.
        connection = await Connection.connect({
          host: '127.0.0.1',
          port,
          deadlineMs: 5000,
          elsewhere: 'redirect',
        })
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

export function timelineId(n: number): TimelineId {
  return toTimelineId(`b${n.toString(16).padStart(31, '0')}`)
}
