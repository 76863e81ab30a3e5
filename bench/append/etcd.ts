// etcd on three processes of this machine, and a client that is as fast as we could make it: gRPC straight over node:http2, a
// connection for each writer, to the leader. A put of a new key is an append to etcd's replicated log; its answer means that
// a majority has synced it. Settings are etcd's own, but for a quota that is large enough for the run.
import { type ChildProcess, spawn } from 'node:child_process'
import { createWriteStream, existsSync, mkdirSync, readdirSync, readFileSync } from 'node:fs'
import { type ClientHttp2Session, connect } from 'node:http2'
import { delimiter, join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { adoptChild, endChild } from '../harness.ts'
import type { AppendTarget } from './closed-loop.ts'
import { freePorts } from './ports.ts'
import { SHARED } from './safekeepers.ts'

/** Where scripts/setup-etcd.js unpacks Debian's package. */
const UNPACKED = fileURLToPath(new URL('../../.palimpsest/bench/etcd', import.meta.url))
const QUOTA_BYTES = 8 * 2 ** 30
const READY_MS = 20_000

/** The program: on the PATH, or unpacked by the setup script; undefined if there is none. */
export function findEtcd(): string | undefined {
  const dirs = [...(process.env['PATH'] ?? '').split(delimiter), join(UNPACKED, 'usr/bin')]
  return dirs.map(dir => join(dir, 'etcd')).find(existsSync)
}

export const HOW_TO_GET_ETCD =
  'etcd is not there, so it is left out: "node scripts/setup-etcd.js" fetches Debian\'s package and unpacks it (nothing is installed)'

class EtcdTarget implements AppendTarget {
  readonly name: string
  readonly pids: readonly number[]
  readonly #children: readonly ChildProcess[]
  readonly #sessions: readonly ClientHttp2Session[]
  #sequence = 0

  constructor(name: string, children: readonly ChildProcess[], sessions: readonly ClientHttp2Session[]) {
    this.name = name
    this.pids = children.map(child => child.pid!)
    this.#children = children
    this.#sessions = sessions
  }

  append(writer: number, payload: Uint8Array): Promise<void> {
    const key = Buffer.from(`log/${writer}/${String(this.#sequence++).padStart(10, '0')}`, 'latin1')
    return put(this.#sessions[writer]!, key, payload)
  }

  async close(): Promise<void> {
    for (const session of this.#sessions) session.destroy()
    await Promise.all(this.#children.map(endChild))
  }
}

/** etcdserverpb.KV/Put: a gRPC frame (a flag, u32 length) around a PutRequest (1: key, 2: value). */
function put(session: ClientHttp2Session, key: Uint8Array, value: Uint8Array): Promise<void> {
  const head = Buffer.alloc(5 + 1 + 5 + key.length + 1 + 5)
  let at = 5
  head[at++] = 0x0a
  at = varint(head, at, key.length)
  head.set(key, at)
  at += key.length
  head[at++] = 0x12
  at = varint(head, at, value.length)
  head.writeUInt32BE(at - 5 + value.length, 1)
  return new Promise((resolve, reject) => {
    const stream = session.request({
      ':method': 'POST',
      ':path': '/etcdserverpb.KV/Put',
      'content-type': 'application/grpc',
      te: 'trailers',
    })
    let status: string | undefined
    let message = ''
    const trailers = (headers: { 'grpc-status'?: unknown; 'grpc-message'?: unknown }): void => {
      if (headers['grpc-status'] === undefined) return
      status = String(headers['grpc-status'])
      message = String(headers['grpc-message'] ?? '')
    }
    // An error may come in the head alone.
    stream.on('response', trailers)
    stream.on('trailers', trailers)
    stream.on('error', reject)
    stream.on('close', () => {
      if (status === '0') resolve()
      else reject(new Error(`etcd refused a put: ${decodeURIComponent(message) || `status ${status}`}`))
    })
    stream.resume()
    stream.write(head.subarray(0, at))
    stream.end(value)
  })
}

function varint(target: Buffer, at: number, value: number): number {
  let rest = value
  while (rest >= 0x80) {
    target[at++] = (rest & 0x7f) | 0x80
    rest >>>= 7
  }
  target[at++] = rest
  return at
}

export async function startEtcd(
  program: string,
  dir: string,
  nodes: number,
  writers: number,
  isShared = false,
): Promise<EtcdTarget> {
  mkdirSync(dir, { recursive: true })
  const ports = await freePorts(nodes * 2)
  const client = (i: number): string => `http://127.0.0.1:${ports[2 * i]}`
  const peer = (i: number): string => `http://127.0.0.1:${ports[2 * i + 1]}`
  const ids = Array.from({ length: nodes }, (_, i) => i)
  const children = ids.map(i => {
    const args = [
      ...['--name', `n${i}`, '--data-dir', join(dir, `n${i}`)],
      ...['--listen-client-urls', client(i), '--advertise-client-urls', client(i)],
      ...['--listen-peer-urls', peer(i), '--initial-advertise-peer-urls', peer(i)],
      ...['--initial-cluster', ids.map(n => `n${n}=${peer(n)}`).join(','), '--initial-cluster-state', 'new'],
      ...['--quota-backend-bytes', String(QUOTA_BYTES), '--logger', 'zap', '--log-level', 'error'],
    ]
    const child = spawn(program, args, { stdio: ['ignore', 'ignore', 'pipe'] })
    child.stderr.pipe(createWriteStream(join(dir, `n${i}.log`)))
    return adoptChild(child)
  })
  const leader = await findLeader(ids.map(client), dir)
  const open = (): ClientHttp2Session => {
    const session = connect(leader, { settings: { initialWindowSize: 1 << 20 } })
    session.on('error', () => {})
    return session
  }
  if (!isShared) return new EtcdTarget(`etcd ×${nodes}`, children, Array.from({ length: writers }, open))
  const session = open()
  const sessions = Array.from({ length: writers }, () => session)
  return new EtcdTarget(`etcd ×${nodes}${SHARED}`, children, sessions)
}

async function findLeader(urls: readonly string[], dir: string): Promise<string> {
  const until = performance.now() + READY_MS
  while (performance.now() < until) {
    for (const url of urls) {
      const reply = await fetch(`${url}/v3/maintenance/status`, { method: 'POST', body: '{}' }).catch(
        () => undefined,
      )
      if (reply?.ok !== true) continue
      const status = (await reply.json()) as { header: { member_id: string }; leader?: string }
      if (status.leader !== undefined && status.leader === status.header.member_id) return url
    }
    await sleep(100)
  }
  const log = readdirSync(dir).find(name => name.endsWith('.log'))
  const words = log === undefined ? '' : readFileSync(join(dir, log), 'utf8').trim().slice(-500)
  throw new Error(`etcd had no leader within ${READY_MS / 1000} s: ${words}`)
}
