import { readFileSync } from 'node:fs'
import fc from 'fast-check'
import t from 'tap'
import { crc32c } from '../../protocol/crc32c.ts'
import { ByteReader } from '../../protocol/cursor.ts'
import { MalformedError } from '../../protocol/errors.ts'
import { BULK_WAIT, type Frame, type FrameHeader, FrameReader, FrameWriter } from '../../protocol/frame.ts'
import type { Lsn, TimelineId, WriterEpoch } from '../../protocol/ids.ts'
import { ALL_CODECS, decodeMessage, type Message, MessageType } from '../../protocol/messages.ts'
import { fuzzFrames } from '../fuzz/frame-fuzz.ts'
import { SAMPLES } from '../support/protocol-samples.ts'

/** A frame with a bulk large enough to be read in place. */
const BIG = 300_000

const frames = fc.array(
  fc.oneof(
    fc.constantFrom(...SAMPLES),
    fc.integer({ min: 1, max: BIG }).map(bytes => ({
      name: 'append',
      flags: 0,
      bulk: Buffer.alloc(bytes, bytes),
      message: {
        type: MessageType.WalAppend,
        timeline: '12'.repeat(16) as TimelineId,
        epoch: 1 as WriterEpoch,
        beginLsn: bytes as Lsn,
        wallTimeUs: 1,
      } as Message,
    })),
  ),
  { minLength: 1, maxLength: 6 },
)

function encode(
  samples: readonly { message: Message; bulk?: Buffer; flags?: number }[],
  compress: boolean,
): Buffer {
  const w = new FrameWriter()
  return Buffer.concat(
    samples.flatMap((sample, i) =>
      w.encode({
        requestId: i,
        message: sample.message,
        bulk: sample.bulk,
        flags: sample.flags ?? 0,
        compress,
      }),
    ),
  )
}

t.test('any stream of frames, split anywhere, read either way, comes out whole', async t => {
  fc.assert(
    fc.property(
      frames,
      fc.array(fc.integer({ min: 1, max: 200_000 }), { minLength: 1 }),
      fc.infiniteStream(fc.nat(3)),
      fc.boolean(),
      fc.boolean(),
      (samples, sizes, choices, direct, compress) => {
        const stream = encode(samples, compress)
        const got: Frame[] = []
        const region = Buffer.from(new SharedArrayBuffer(BIG))
        const choose = () => choices.next().value as number
        const reader: FrameReader = new FrameReader({
          onFrame: frame => {
            got.push({ ...frame, bulk: Buffer.from(frame.bulk) })
            if (choose() === 0) reader.stop()
          },
          onRefused: (_, error) => {
            throw error
          },
          bulkTarget: () => ([BULK_WAIT, region, undefined, undefined] as const)[choose()],
        })
        for (let at = 0, i = 0; at < stream.length; i++) {
          let bytes = Math.min(sizes[i % sizes.length]!, stream.length - at)
          if (direct) {
            const target = reader.target()
            bytes = Math.min(bytes, target.length)
            target.set(stream.subarray(at, at + bytes))
            reader.received(bytes)
          } else reader.push(stream.subarray(at, at + bytes))
          at += bytes
          while (reader.isStopped) reader.resume()
        }
        t.ok(reader.isIdle)
        t.equal(got.length, samples.length)
        got.forEach((frame, i) => {
          t.strictSame(frame.message, samples[i]!.message)
          t.ok((samples[i]!.bulk ?? Buffer.alloc(0)).equals(frame.bulk), `bulk of frame ${i}`)
        })
      },
    ),
    { numRuns: 150 },
  )
})

t.test('a flipped bit is noticed, unless it lies in padding', async t => {
  fc.assert(
    fc.property(fc.constantFrom(...SAMPLES), fc.nat(), fc.nat(7), (sample, where, bit) => {
      const stream = encode([sample], false)
      const at = where % stream.length
      const headEnd = 40 + stream.readUInt32LE(20)
      const bulkAt = (headEnd + 7) & ~7
      const inPadding = (at >= headEnd && at < bulkAt) || at >= bulkAt + (sample.bulk?.length ?? 0)
      stream[at]! ^= 1 << bit
      let frames = 0
      let refusals = 0
      const reader = new FrameReader({
        onFrame: () => frames++,
        onRefused: () => refusals++,
      })
      try {
        reader.push(stream)
      } catch (error) {
        t.ok(error instanceof MalformedError && error.fatal)
        refusals++
      }
      if (inPadding) t.equal(frames, 1)
      else t.equal(frames, 0, `byte ${at} of ${sample.name}`)
      t.ok(frames + refusals <= 1)
    }),
    { numRuns: 1500 },
  )
})

t.test('a bulk that is larger than the limit is refused before there is memory for it', async t => {
  const header = Buffer.alloc(40)
  const attempt = (
    frameBytes: number,
    headBytes: number,
    bulkBytes: number,
    wireBytes: number,
    flags: number,
  ) => {
    header.fill(0)
    header.writeUInt32LE(frameBytes, 0)
    header.writeUInt16LE(MessageType.WalAppend, 16)
    header.writeUInt16LE(flags, 18)
    header.writeUInt32LE(headBytes, 20)
    header.writeUInt32LE(bulkBytes, 24)
    header.writeUInt32LE(wireBytes, 28)
    const reader = new FrameReader(
      {
        onFrame: () => t.fail('a frame'),
        onRefused: () => t.fail('refused'),
        bulkTarget: (header: FrameHeader) => {
          t.fail(`asked for ${header.bulkBytes} bytes`)
          return undefined
        },
      },
      1 << 20,
    )
    t.throws(() => reader.push(header))
    t.throws(() => reader.push(header), 'and stays dead')
  }
  attempt(0xffff_fff8, 0, 0xffff_ffd0, 0xffff_ffd0, 0)
  attempt(48, 0, 0xffff_ffff, 8, 8)
  attempt(40, 0xffff_ffff, 0, 0, 0)
  attempt(48, 0, 9, 8, 0)
})

t.test('a zstd bomb unpacks to what was announced or to nothing', async t => {
  const w = new FrameWriter()
  const bulk = Buffer.alloc(1 << 20)
  const sample = SAMPLES.find(sample => sample.name === 'WalAppend')!
  const bytes = Buffer.concat(w.encode({ requestId: 1, message: sample.message, bulk, compress: true }))
  t.ok(bytes.length < 1000)
  bytes.writeUInt32LE(1000, 24)
  bytes.writeUInt32LE(crc32c(bytes, 8, 40 + bytes.readUInt32LE(20)), 4)
  const refused: string[] = []
  const reader = new FrameReader({
    onFrame: () => t.fail('a frame'),
    onRefused: (_, error) => refused.push(error.kind),
  })
  reader.push(bytes)
  t.same(refused, ['corrupt'])
})

t.test('random heads: a message or a MalformedError that names message and offset', async t => {
  fc.assert(
    fc.property(fc.constantFrom(...ALL_CODECS), fc.uint8Array({ maxLength: 300 }), (codec, bytes) => {
      try {
        decodeMessage(codec.type, new ByteReader(bytes))
      } catch (error) {
        t.ok(error instanceof MalformedError && error.message.startsWith(`${codec.name}: `))
        t.match((error as Error).message, /offset \d+/)
      }
    }),
    { numRuns: 3000 },
  )
})

t.test('what decoders refuse', async t => {
  const sample = (name: string) => {
    const found = SAMPLES.find(sample => sample.name === name)!
    const stream = encode([{ message: found.message }], false)
    return { type: found.message.type, head: stream.subarray(40, 40 + stream.readUInt32LE(20)) }
  }
  const refuse = (name: string, change: (head: Buffer) => Buffer | undefined, message: RegExp) => {
    const { type, head } = sample(name)
    const copy = Buffer.from(head)
    const bytes = change(copy) ?? copy
    t.throws(() => decodeMessage(type, new ByteReader(bytes)), { message }, `${name}: ${message}`)
  }
  for (const { name } of SAMPLES.filter(
    ({ name }) => !/^(Ping|Ok|Cancel|WalList|TimelineList|TimelineBranches|CellStatus)$/.test(name),
  ))
    refuse(name, head => head.subarray(0, -1), /needs|do not fit/)
  for (const { name } of SAMPLES.filter(sample => sample.bulk === undefined))
    refuse(name, head => Buffer.concat([head, Buffer.alloc(1)]), /too many/)
  refuse('WalOpened', head => void head.writeUInt32LE(0x200000, 12), /exceeds 2\^53-1/)
  refuse('WalRead', head => void head.writeUInt8(2, 24), /neither 0 nor 1/)
  refuse('GetPages', head => void head.writeUInt32LE(0xffff_ffff, 36), /do not fit/)
  refuse('WalCreate', head => void head.write('../x', head.length - 4), /timeline name/)
  refuse('WalOpen', head => void head.writeUInt8(0x20, head.length - 1), /printable/)
  refuse('FileDelete', head => void head.write('../', 26), /relative/)
  refuse('FileDelete', head => void head.write('/', 26), /relative/)
  refuse('FileDelete', head => void head.writeUInt8(0, 28), /NUL/)
  refuse('FileDelete', head => void head.writeUInt8(0xff, 28), /UTF-8/)
  refuse('ErrorReply', head => void head.writeUInt16LE(9, 0), /error kind 9/)
  refuse('WalSkip', head => void head.writeUInt8(100, 32), /not above/)
  refuse('ImportPages', head => void head.writeUInt32LE(1000, 12), /no page size/)
  refuse('TimelineCreate', head => void head.writeUInt32LE(1000, 24), /innodbPageSize/)
  refuse('Pages', head => void head.writeUInt32LE(1025, 16 + 16), /section 0/)
  refuse('Hello', head => void head.writeUInt32LE(1, 0), /magic/)
})

t.test('damaged streams (test/fuzz/frame-fuzz.ts runs longer)', async t => {
  const { casesEach, seeds } = JSON.parse(
    readFileSync(new URL('../fixtures/fuzz/frame-seeds.json', import.meta.url), 'utf8'),
  ) as { casesEach: number; seeds: number[] }
  for (const seed of seeds) {
    const counters = fuzzFrames(seed, ({ cases }) => cases >= casesEach)
    t.ok(counters.refused > casesEach / 10, `seed ${seed}: ${JSON.stringify(counters)}`)
    t.ok(counters.fatal > casesEach / 10 && counters.accepted > casesEach / 2)
  }
})
