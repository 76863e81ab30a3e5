/**
 * The frozen test vectors: one frame of every message as hexadecimal, sixteen bytes a line. They hold the wire format in
 * place; a failure here means that this release does not talk to others. `node test/unit/protocol/vectors.test.ts
 * --write-missing` adds files for new samples; existing ones are never written.
 */
import { existsSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import t from 'tap'
import { type Frame, FrameReader, FrameWriter } from '../../../protocol/frame.ts'
import { ALL_CODECS, MessageType } from '../../../protocol/messages.ts'
import { SAMPLES, type Sample } from '../../support/protocol-samples.ts'

const DIR = fileURLToPath(new URL('../../fixtures/protocol/', import.meta.url))
const REQUEST_ID = 0x0102030405

function encode(sample: Sample): Buffer {
  const pieces = new FrameWriter().encode({
    requestId: REQUEST_ID,
    message: sample.message,
    flags: sample.flags ?? 0,
    bulk: sample.bulk,
  })
  return Buffer.concat(pieces)
}

function decode(bytes: Uint8Array): Frame {
  const frames: Frame[] = []
  const reader = new FrameReader({
    onFrame: frame => frames.push(frame),
    onRefused: (_, error) => {
      throw error
    },
  })
  reader.push(bytes)
  if (frames.length !== 1 || !reader.isIdle) throw new Error(`${frames.length} frames`)
  return frames[0]!
}

function toHex(bytes: Buffer): string {
  const lines = []
  for (let at = 0; at < bytes.length; at += 16)
    lines.push(
      bytes
        .subarray(at, at + 16)
        .toString('hex')
        .replace(/..(?!$)/g, '$& '),
    )
  return `${lines.join('\n')}\n`
}

if (process.argv.includes('--write-missing'))
  for (const sample of SAMPLES) {
    const path = `${DIR}${sample.name}.hex`
    if (!existsSync(path)) writeFileSync(path, toHex(encode(sample)))
  }

for (const sample of SAMPLES)
  t.test(sample.name, async t => {
    const bytes = Buffer.from(readFileSync(`${DIR}${sample.name}.hex`, 'latin1').replace(/\s/g, ''), 'hex')
    t.same(toHex(encode(sample)), toHex(bytes), 'our encoder makes these bytes')
    const { header, message, bulk } = decode(bytes)
    t.strictSame(message, sample.message, 'our decoder reads them')
    t.equal(header.requestId, REQUEST_ID)
    t.same(Buffer.from(bulk), sample.bulk ?? Buffer.alloc(0))
  })

t.test('every message has a vector, every vector a message', async t => {
  const names = new Set(SAMPLES.map(sample => sample.name.split('-')[0]))
  t.same([...names].sort(), Object.keys(MessageType).sort())
  t.equal(ALL_CODECS.length, names.size)
  for (const codec of ALL_CODECS) t.equal(MessageType[codec.name as keyof typeof MessageType], codec.type)
  t.same(readdirSync(DIR).sort(), SAMPLES.map(sample => `${sample.name}.hex`).sort())
})
