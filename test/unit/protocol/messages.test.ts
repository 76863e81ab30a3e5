/** What the codecs refuse, or make harmless, of what is well-formed. */
import t from 'tap'
import { ByteReader, ByteWriter } from '../../../protocol/cursor.ts'
import { MalformedError } from '../../../protocol/errors.ts'
import type { Lsn, TimelineId } from '../../../protocol/ids.ts'
import { decodeMessage, encodeMessage, type Message, MessageType } from '../../../protocol/messages.ts'
import { SAMPLES } from '../../support/protocol-samples.ts'

const like = (fields: object) => fields as Error
const TIMELINE = 'ab'.repeat(16) as TimelineId
const lsn = (value: number) => value as Lsn

function encode(message: Message): Buffer {
  const w = new ByteWriter()
  w.start(0)
  encodeMessage(w, message)
  return Buffer.from(w.take())
}

function decode(type: number, head: Uint8Array): Message {
  return decodeMessage(type, new ByteReader(head))
}

/** As one who does not check sends it. */
function sent(message: object): Message {
  const { type } = message as Message
  return decode(type, encode(message as Message))
}

t.test('a timeline of zeros is none, and refused where there must be one', async t => {
  const optional = new Set<number>([MessageType.TimelineShow])
  for (const { name, message } of SAMPLES) {
    if (!('timeline' in message) || message.timeline === undefined) continue
    const head = encode(message)
    const at = head.indexOf(Buffer.from(message.timeline as string, 'hex'))
    t.ok(at >= 0, name)
    head.fill(0, at, at + 16)
    const read = () => decode(message.type, head)
    if (optional.has(message.type)) t.throws(read, like({ message: /timeline name/ }), name)
    else t.throws(read, like({ kind: 'invalid', message: /is all zeros/ }), name)
  }
})

t.test('what is meant for people cannot act on their terminal', async t => {
  const bad = 'a\x1b[2Jb\x07\r\x9bc\u202ed\u2066\u200f\ttab\nline é'
  const good = 'a?[2Jb????c???d??????\ttab\nline é'
  for (const message of [
    { type: MessageType.ErrorReply, kind: 'retry', lsn: undefined, message: bad },
    { type: MessageType.Redirect, address: 'a:1', message: bad },
  ] as const) {
    t.match(sent(message), { message: good })
    t.equal(encode(sent(message)).length, encode(message).length, 'passed on in as many bytes')
  }
  const hello = SAMPLES.find(({ message }) => message.type === MessageType.HelloOk)!.message
  t.match(sent({ ...hello, software: bad, nodeId: bad }), { software: good, nodeId: good })
  const status = SAMPLES.find(({ message }) => message.type === MessageType.TimelineStatus)!.message
  t.match(sent({ ...status, lastError: bad, serverVersion: bad }), { lastError: good, serverVersion: good })
})

t.test('names in answers are checked like those in requests', async t => {
  for (const type of [MessageType.WalStateReply, MessageType.WalShowReply] as const) {
    const { message } = SAMPLES.find(sample => sample.message.type === type)!
    for (const name of ['', 'a b', '\x1b[2J', 'x'.repeat(64)])
      t.throws(() => sent({ ...message, name }), like({ kind: 'invalid', message: /timeline name/ }))
    t.throws(() => sent({ ...message, writer: 'a b' }), like({ message: /printable/ }))
    t.match(sent({ ...message, writer: '' }), { writer: '' }, 'none yet')
  }
  const item = { timeline: TIMELINE, epoch: 1, beginLsn: 1, committedLsn: 2 }
  t.throws(
    () => sent({ type: MessageType.WalListReply, timelines: [{ ...item, name: '\u202e' }] }),
    like({ message: /timeline name/ }),
  )
})

t.test('a stretch of the log goes forward', async t => {
  for (const toLsn of [lsn(10), lsn(9)]) {
    const stretch = { fromLsn: lsn(10), toLsn, wallTimeUs: 0 }
    for (const message of [
      { type: MessageType.WalGap, ...stretch },
      { type: MessageType.WalSkip, timeline: TIMELINE, epoch: 1, ...stretch },
    ])
      t.throws(() => sent(message), like({ message: /is not above fromLsn 10/ }))
  }
  const versions = { type: MessageType.FileVersions, timeline: TIMELINE, directory: 'a', suffix: '' }
  t.match(sent({ ...versions, fromLsn: 10, toLsn: 10 }), { toLsn: 10 })
  t.throws(() => sent({ ...versions, fromLsn: 10, toLsn: 9 }), like({ message: /LSNs 10 to 9/ }))
  t.throws(
    () => sent({ ...versions, fromLsn: 1, toLsn: 9, suffix: 'x'.repeat(1025) }),
    like({ message: /at most 1024/ }),
  )
})

t.test('a count that cannot fit is refused before anything is allocated for it', async t => {
  for (const { name, message } of SAMPLES) {
    const head = encode(message)
    for (let at = 0; at + 4 <= head.length; at++) {
      const changed = Buffer.from(head)
      changed.writeUInt32LE(0xffff_fff0, at)
      const before = process.memoryUsage().arrayBuffers
      try {
        decode(message.type, changed)
      } catch (error) {
        if (!(error instanceof MalformedError)) t.fail(`${name}, offset ${at}: ${error}`)
      }
      if (process.memoryUsage().arrayBuffers - before > 1 << 24) t.fail(`${name}, offset ${at}: memory`)
    }
  }
})
