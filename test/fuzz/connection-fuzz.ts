/**
 * Hostile bytes at a server's port: damaged frames and plain noise, before and after authentication, over plain TCP and
 * TLS, in pieces, with ends in the middle.
 *
 *     node test/fuzz/connection-fuzz.ts --connect HOST:PORT [--tls] [--token TOKEN] [--cases N] [--seed N]
 *
 * The server is a process of its own; whether it lives, answers others and keeps its memory is for the caller to see.
 * Here it must answer in frames or not at all: whatever comes back after the hello is read with a FrameReader.
 */
import { randomBytes } from 'node:crypto'
import { connect as connectTcp, type Socket } from 'node:net'
import { connect as connectTls } from 'node:tls'
import { parseArgs } from 'node:util'
import { type Address, parseAddress } from '../../protocol/dial.ts'
import { FrameReader, FrameWriter } from '../../protocol/frame.ts'
import { type AnyMessage, MessageType, PROTOCOL_VERSION } from '../../protocol/messages.ts'
import { damage, FRAME_CORPUS, makeRandom, type Random } from './frame-fuzz.ts'

export interface ConnectionFuzzOptions {
  readonly address: Address
  readonly tls: boolean
  /** Right for the server: half of the cases get in with it. */
  readonly token: string
  readonly seed: number
  readonly cases: number
  /** Connections at a time. */
  readonly parallel?: number
}

export interface ConnectionFuzzCounters {
  cases: number
  gotIn: number
  answers: number
  closedByServer: number
}

function hello(token: string, random: Random | undefined): Buffer {
  const frame = Buffer.concat(
    new FrameWriter().encode({
      requestId: 0,
      message: {
        type: MessageType.Hello,
        versionMin: PROTOCOL_VERSION,
        versionMax: PROTOCOL_VERSION,
        features: 1,
        frameBytesMax: 1 << 20,
        token,
        software: 'fuzz',
      } as AnyMessage,
    }),
  )
  return random === undefined ? frame : damage(frame, random)
}

/** The first bytes of a TLS client, with the lengths of its hello right or not. */
function clientHello(random: Random): Buffer {
  const bytes = Buffer.alloc(5 + random(512))
  for (let i = 0; i < bytes.length; i++) bytes[i] = random(256)
  bytes.set([0x16, 3, 1 + random(3)])
  bytes.writeUInt16BE(random(2) ? bytes.length - 5 : random(65536), 3)
  return bytes
}

function noise(random: Random): Buffer {
  if (random(2)) return clientHello(random)
  const bytes = Buffer.alloc(1 + random(20_000))
  for (let i = 0; i < bytes.length; i++) bytes[i] = random(256)
  return bytes
}

/** Runs `cases` connections. Throws on an answer that is no frame. */
export async function fuzzConnections(options: ConnectionFuzzOptions): Promise<ConnectionFuzzCounters> {
  const counters = { cases: 0, gotIn: 0, answers: 0, closedByServer: 0 }
  const random = makeRandom(options.seed)
  const worker = async () => {
    while (counters.cases < options.cases) {
      const seed = random(2 ** 31)
      const number = counters.cases++
      try {
        await oneConnection(options, makeRandom(seed), counters)
      } catch (cause) {
        throw new Error(`seed ${options.seed}, case ${number} (${seed})`, { cause })
      }
    }
  }
  await Promise.all(Array.from({ length: options.parallel ?? 8 }, worker))
  return counters
}

async function oneConnection(
  options: ConnectionFuzzOptions,
  random: Random,
  counters: ConnectionFuzzCounters,
): Promise<void> {
  const { address, token } = options
  // Some speak plainly to a TLS port.
  const tls = options.tls && random(5) > 0
  const socket: Socket = tls ? connectTls({ ...address, rejectUnauthorized: false }) : connectTcp(address)
  const { promise: closed, resolve } = Promise.withResolvers<void>()
  const { promise: answered, resolve: answer } = Promise.withResolvers<void>()
  let problem: unknown
  let ended = false
  socket.on('error', () => {})
  socket.on('end', () => {
    ended = true
  })
  socket.on('close', () => {
    resolve()
    answer()
  })
  const getsIn = tls === options.tls && random(2) === 0
  const reader = new FrameReader({
    onFrame: ({ message }) => {
      counters.answers++
      if (message.type === MessageType.HelloOk) counters.gotIn++
      answer()
    },
    onRefused: (_, error) => {
      problem = error
    },
  })
  // Alerts of a TLS server to one who speaks plainly are no frames.
  if (tls || !options.tls)
    socket.on('data', chunk => {
      try {
        reader.push(chunk)
      } catch (error) {
        problem = error
        socket.destroy()
      }
    })
  else socket.resume()
  await new Promise<void>(go => {
    socket.once(tls ? 'secureConnect' : 'connect', () => go())
    socket.once('close', () => go())
  })
  if (getsIn) {
    socket.write(hello(token, undefined))
    // Sometimes the rest comes on its heels, before the token was checked.
    if (random(3)) await answered
  }
  const pieces = [
    ...(getsIn ? [] : random(3) ? [hello(random(2) ? token : 'wrong', random)] : []),
    ...Array.from({ length: 1 + random(4) }, () => {
      const which = random(8)
      if (which === 0) return noise(random)
      const frame = FRAME_CORPUS[random(FRAME_CORPUS.length)] as Buffer
      return which === 1 ? frame : damage(frame, random)
    }),
  ]
  const stream = Buffer.concat(pieces)
  const end = random(4) === 0 ? random(stream.length + 1) : stream.length
  for (let at = 0; at < end && !socket.destroyed; ) {
    const bytes = Math.min(end - at, 1 + random(random(3) ? 4096 : 64))
    socket.write(stream.subarray(at, at + bytes))
    at += bytes
    if (random(6) === 0) await new Promise(next => setImmediate(next))
  }
  // Either side may be the one to go.
  if (random(2)) socket.end()
  const timer = setTimeout(() => socket.destroy(), 20 + random(100))
  await closed
  clearTimeout(timer)
  if (ended) counters.closedByServer++
  if (problem !== undefined) throw problem
}

if (import.meta.main) {
  const { values } = parseArgs({
    options: {
      connect: { type: 'string' },
      tls: { type: 'boolean', default: false },
      token: { type: 'string', default: '' },
      cases: { type: 'string', default: '10000' },
      seed: { type: 'string' },
    },
  })
  const seed = Number(values.seed ?? randomBytes(4).readUInt32LE())
  console.log(`seed ${seed}`)
  const counters = await fuzzConnections({
    address: parseAddress(values.connect ?? '127.0.0.1:7070'),
    tls: values.tls,
    token: values.token,
    seed,
    cases: Number(values.cases),
  })
  console.log(JSON.stringify(counters))
}
