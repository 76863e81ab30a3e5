/**
 * Generational fuzzing of everything that reads the wire: frames, heads, bulks.
 *
 *     node test/fuzz/frame-fuzz.ts [--seconds N] [--seed N]
 *
 * Each case is a stream of a few sample frames, damaged in ways that keep it plausible (fields set to interesting values,
 * bits flipped, pieces cut, repeated, swapped; checksums and lengths made right again, so that the inner checks are
 * reached), fed to a reader in random pieces, through `push` or through `target`/`received`, with stops in between.
 * Whatever happens must be one of: frames whose messages encode again to the same bytes; a refused frame with an error
 * that has a kind; a fatal MalformedError. Never another exception, a bulk beyond the limit, a frame that depends on how
 * the stream was split, or a reader that asks for memory that it was not promised.
 *
 * A run is determined by its seed. Seeds worth keeping are in test/fixtures/fuzz/frame-seeds.json, and
 * test/property/frame.test.ts runs them briefly.
 */
import { parseArgs } from 'node:util'
import { crc32c } from '../../protocol/crc32c.ts'
import { ByteReader, ByteWriter } from '../../protocol/cursor.ts'
import { MalformedError, PalimpsestError } from '../../protocol/errors.ts'
import { type Frame, FrameReader, FrameWriter } from '../../protocol/frame.ts'
import { decodeMessage, encodeMessage } from '../../protocol/messages.ts'
import { SAMPLES } from '../support/protocol-samples.ts'

export interface FrameFuzzCounters {
  cases: number
  accepted: number
  refused: number
  fatal: number
}

const FRAME_BYTES_MAX = 64 * 1024
const INTERESTING = [
  0, 1, 7, 8, 0x7f, 0x80, 0xff, 0xffff, 0x10000, 0x1fffff, 0x200000, 0x7fffffff, 0xfffffff8, 0xffffffff,
]

/** Mulberry32: small, seedable, good enough to choose damage by. */
export function makeRandom(seed: number): (below: number) => number {
  let state = seed | 0
  return below => {
    state = (state + 0x6d2b79f5) | 0
    let z = Math.imul(state ^ (state >>> 15), 1 | state)
    z = (z + Math.imul(z ^ (z >>> 7), 61 | z)) ^ z
    return ((z ^ (z >>> 14)) >>> 0) % below
  }
}
export type Random = ReturnType<typeof makeRandom>

/** The frames of all samples, some compressed. */
export const FRAME_CORPUS: readonly Buffer[] = SAMPLES.flatMap((sample, i) =>
  [false, true]
    .filter(compress => !compress || sample.bulk !== undefined)
    .map(compress =>
      Buffer.concat(
        new FrameWriter().encode({
          requestId: i + 1,
          message: sample.message,
          flags: sample.flags ?? 0,
          bulk: compress ? Buffer.concat([sample.bulk!, Buffer.alloc(0)]) : sample.bulk,
          compress,
        }),
      ),
    ),
)

/** Makes the header's lengths and checksum fit again, as far as the frame is long enough. */
function seal(frame: Buffer, random: Random): void {
  if (frame.length < 40) return
  if (random(4) === 0) frame.writeUInt32LE(frame.length, 0)
  const end = Math.min(frame.length, 40 + frame.readUInt32LE(20))
  frame.writeUInt32LE(crc32c(frame, 8, end), 4)
}

export function damage(frame: Buffer, random: Random): Buffer {
  let out = Buffer.from(frame)
  for (let i = random(3); i >= 0; i--) {
    const at = random(out.length || 1)
    switch (random(7)) {
      case 0:
        if (out.length > 0) out[at]! ^= 1 << random(8)
        break
      case 1:
        if (at + 4 <= out.length) out.writeUInt32LE(INTERESTING[random(INTERESTING.length)]!, at & ~3)
        break
      case 2:
        // Counts and lengths of heads stand where a u32 is.
        if (out.length >= 44)
          out.writeUInt32LE(INTERESTING[random(INTERESTING.length)]!, 40 + (random(out.length - 43) & ~3))
        break
      case 3:
        out = Buffer.concat([out.subarray(0, at), out.subarray(Math.min(out.length, at + 1 + random(16)))])
        break
      case 4:
        out = Buffer.concat([out.subarray(0, at), out.subarray(Math.max(0, at - random(16)))])
        break
      case 5:
        if (out.length >= 18)
          out.writeUInt16LE(FRAME_CORPUS[random(FRAME_CORPUS.length)]!.readUInt16LE(16), 16)
        break
      default:
        if (out.length > 40) out.fill(random(256), 40 + random(out.length - 40), out.length)
    }
  }
  if (random(5) > 0) seal(out, random)
  return out
}

interface Outcome {
  readonly events: string[]
  readonly frames: Frame[]
  readonly refused: number
  readonly fatal: boolean
}

/** Reads the stream in pieces of random sizes, one of two ways, stopping now and then. */
function read(stream: Buffer, random: Random, direct: boolean): Outcome {
  const events: string[] = []
  const frames: Frame[] = []
  let refused = 0
  const reader: FrameReader = new FrameReader(
    {
      onFrame: frame => {
        frames.push(frame)
        events.push(
          `${frame.header.requestId} ${frame.message.type} ${crc32c(frame.bulk, 0, frame.bulk.length)}`,
        )
        if (random(4) === 0) reader.stop()
      },
      onRefused: (header, error) => {
        if (!(error instanceof PalimpsestError)) throw error
        refused++
        events.push(`${header.requestId} refused ${error.message}`)
        if (random(4) === 0) reader.stop()
      },
      bulkTarget: header => {
        if (header.bulkBytes > FRAME_BYTES_MAX)
          throw new Error(`a bulk of ${header.bulkBytes} bytes was let in`)
        return undefined
      },
    },
    FRAME_BYTES_MAX,
  )
  try {
    for (let at = 0; at < stream.length; ) {
      const bytes = Math.min(stream.length - at, 1 + random(random(2) === 0 ? 8 : 4096))
      if (direct) {
        const target = reader.target()
        const some = Math.min(bytes, target.length)
        target.set(stream.subarray(at, at + some))
        at += some
        reader.received(some)
      } else {
        reader.push(Buffer.from(stream.subarray(at, at + bytes)))
        at += bytes
      }
      while (reader.isStopped) reader.resume()
    }
  } catch (error) {
    if (!(error instanceof MalformedError) || !error.fatal) throw error
    events.push(`fatal ${error.message}`)
    return { events, frames, refused, fatal: true }
  }
  return { events, frames, refused, fatal: false }
}

function checkCanonical(frame: Frame): void {
  const w = new ByteWriter()
  w.start(0)
  encodeMessage(w, frame.message)
  const bytes = w.take()
  if (bytes.length !== frame.header.headBytes)
    throw new Error(
      `message ${frame.message.type} of ${frame.header.headBytes} bytes encodes to ${bytes.length}`,
    )
  const again = decodeMessage(frame.header.type, new ByteReader(bytes))
  const w2 = new ByteWriter()
  w2.start(0)
  encodeMessage(w2, again)
  if (!w2.take().equals(bytes)) throw new Error(`message ${frame.message.type} does not survive a round trip`)
}

/** Runs until `enough`. Throws, naming the case, on a finding. */
export function fuzzFrames(
  seed: number,
  enough: (counters: FrameFuzzCounters) => boolean,
): FrameFuzzCounters {
  const random = makeRandom(seed)
  const counters = { cases: 0, accepted: 0, refused: 0, fatal: 0 }
  while (!enough(counters)) {
    const frames = Array.from({ length: 1 + random(4) }, () => {
      const frame = FRAME_CORPUS[random(FRAME_CORPUS.length)]!
      return random(3) === 0 ? frame : damage(frame, random)
    })
    const stream = Buffer.concat(frames)
    try {
      const one = read(stream, random, false)
      const two = read(stream, random, true)
      if (one.events.join('\n') !== two.events.join('\n'))
        throw new Error(
          `the way of splitting matters:\n${one.events.join('\n')}\n--\n${two.events.join('\n')}`,
        )
      one.frames.forEach(checkCanonical)
      counters.accepted += one.frames.length
      counters.refused += one.refused
      counters.fatal += one.fatal ? 1 : 0
    } catch (cause) {
      throw new Error(`seed ${seed}, case ${counters.cases}: ${stream.toString('hex')}`, { cause })
    }
    counters.cases++
  }
  return counters
}

if (import.meta.main) {
  const { values } = parseArgs({ options: { seconds: { type: 'string' }, seed: { type: 'string' } } })
  const seed = Number(values.seed ?? Date.now() % 2 ** 31)
  const until = performance.now() + Number(values.seconds ?? 30) * 1000
  console.log(`seed ${seed}`)
  const counters = fuzzFrames(seed, () => performance.now() >= until)
  console.log(JSON.stringify(counters))
}
