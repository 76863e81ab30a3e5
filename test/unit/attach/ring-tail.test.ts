// A ring in a file, written by a stand-in for the server.
import { closeSync, ftruncateSync, openSync, renameSync, writeSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import t, { type Test } from 'tap'
import { LOG_START_OFFSET, LogGeometry } from '../../../parser/log-file.ts'
import { crc32c } from '../../../protocol/crc32c.ts'
import { type Lsn, toLsn } from '../../../protocol/ids.ts'
import { DivergedLogError, RingTail } from '../../../server/attach/ring-tail.ts'

const FIRST = 12288
const RING = 64 * 1024

/** Writes mini-transactions into a ring as a server does, in whole blocks, with a zero after the last. */
class FakeServer {
  readonly path: string
  lsn: number
  checkpoint: number
  geometry: LogGeometry
  #fd: number
  #next = 1

  constructor(path: string, firstLsn = FIRST, capacity = RING) {
    this.path = path
    this.lsn = firstLsn
    this.checkpoint = firstLsn
    this.geometry = new LogGeometry(toLsn(firstLsn), LOG_START_OFFSET + capacity)
    this.#fd = openSync(path, 'w+')
    ftruncateSync(this.#fd, this.geometry.fileBytes)
    this.writeHead()
  }

  close(): void {
    closeSync(this.#fd)
  }

  writeHead(): void {
    const head = Buffer.alloc(LOG_START_OFFSET)
    head.writeUInt32BE(0x50687973, 0)
    head.writeBigUInt64BE(BigInt(this.geometry.firstLsn), 8)
    head.write('MariaDB 10.11.18', 16)
    head.writeUInt32BE(crc32c(head, 0, 508), 508)
    head.writeBigUInt64BE(BigInt(this.checkpoint), 0x1000)
    head.writeBigUInt64BE(BigInt(this.checkpoint), 0x1008)
    head.writeUInt32BE(crc32c(head, 0x1000, 0x1000 + 60), 0x1000 + 60)
    writeSync(this.#fd, head, 0, head.length, 0)
  }

  /** Bytes at an LSN, whatever they are. */
  put(lsn: number, bytes: Uint8Array): void {
    for (let i = 0; i < bytes.length; i++)
      writeSync(this.#fd, bytes, i, 1, this.geometry.fileOffset((lsn + i) as Lsn))
  }

  /** A mini-transaction of one MEMSET-like record with `payload` bytes, as it would stand at `lsn`. */
  mtr(payload: number, lsn = this.lsn, content = this.#next++): Uint8Array {
    const bytes = new Uint8Array(1 + payload + 5)
    bytes[0] = 0x30 | payload
    bytes[1] = 1
    bytes[2] = 3
    for (let i = 3; i <= payload; i++) bytes[i] = content >>> ((i % 4) * 8)
    bytes[1 + payload] = this.geometry.sequenceBit(lsn + 1 + payload)
    Buffer.from(bytes.buffer).writeUInt32BE(crc32c(bytes, 0, 1 + payload), 2 + payload)
    return bytes
  }

  append(payload = 15): Uint8Array {
    const bytes = this.mtr(payload)
    this.put(this.lsn, bytes)
    this.lsn += bytes.length
    this.put(this.lsn, Uint8Array.of(0))
    return bytes
  }

  appendUntil(lsn: number): void {
    while (this.lsn < lsn) this.append(8 + (this.lsn % 8))
  }

  checkpointAt(lsn: number): void {
    this.checkpoint = lsn
    this.writeHead()
  }
}

function setUp(t: Test) {
  const path = join(t.testdir(), 'ib_logfile0')
  const server = new FakeServer(path)
  t.teardown(() => server.close())
  return server
}

/** Reads to the end of the log; returns the bytes. */
async function drain(tail: RingTail): Promise<Buffer> {
  const pieces: Uint8Array[] = []
  for (;;) {
    const step = await tail.step(true)
    if (step.kind === 'chunk') pieces.push(step.bytes)
    else if (step.kind === 'idle') return Buffer.concat(pieces)
    else if (step.kind === 'wait') await sleep(1)
    else throw new Error(`unexpected ${JSON.stringify(step)}`)
  }
}

t.test('hands out every byte, lap after lap', async t => {
  const server = setUp(t)
  const tail = await RingTail.open(server.path)
  t.teardown(() => tail.close())
  const wanted: Uint8Array[] = []
  const got: Buffer[] = []
  while (server.lsn < FIRST + 3.5 * RING) {
    for (let i = 0; i < 200; i++) wanted.push(server.append(5 + (i % 11)))
    got.push(await drain(tail))
    server.checkpointAt(server.lsn)
  }
  t.ok(Buffer.concat(wanted).equals(Buffer.concat(got)))
  t.equal(tail.position, server.lsn)
})

t.test('a look that ends just where a mini-transaction does is not the end of the log', async t => {
  for (const cold of [false, true]) {
    const server = setUp(t)
    // 16 bytes each, so that looks of powers of two are filled to the last byte.
    while (server.lsn < FIRST + 48 * 1024) server.append(10)
    const tail = await RingTail.open(server.path, { cold })
    t.teardown(() => tail.close())
    for (;;) {
      const step = await tail.step()
      if (step.kind !== 'chunk') break
      t.equal(step.atEnd, step.endLsn === server.lsn, `cold: ${cold}, at LSN ${step.endLsn}`)
    }
    t.equal(tail.position, server.lsn)
  }
})

t.test('half a mini-transaction is nothing yet', async t => {
  const server = setUp(t)
  const tail = await RingTail.open(server.path)
  t.teardown(() => tail.close())
  server.append()
  await drain(tail)
  const next = server.mtr(15)
  server.put(server.lsn, next.subarray(0, 9))
  t.equal((await drain(tail)).length, 0)
  server.put(server.lsn, next)
  server.lsn += next.length
  t.ok((await drain(tail)).equals(next))
})

t.test('says when the ring has overtaken it, and goes on at the checkpoint', async t => {
  const server = setUp(t)
  const tail = await RingTail.open(server.path)
  t.teardown(() => tail.close())
  server.append()
  await drain(tail)
  const position = tail.position
  server.appendUntil(FIRST + RING / 2)
  server.checkpointAt(server.lsn)
  server.appendUntil(FIRST + RING + 4096)
  const step = await tail.step()
  t.match(step, { kind: 'overtaken', position, checkpointLsn: server.checkpoint })
  await tail.restartAt(toLsn(server.checkpoint))
  await drain(tail)
  t.equal(tail.position, server.lsn)
})

t.test('two laps behind, everything looks right again but the checkpoint', async t => {
  const server = setUp(t)
  const tail = await RingTail.open(server.path)
  t.teardown(() => tail.close())
  // Nothing was read yet, so there is nothing to compare with: only the checkpoint can tell.
  while (server.lsn < FIRST + 2 * RING - 100) {
    server.append(10)
    server.checkpointAt(server.lsn)
  }
  server.append(FIRST + 2 * RING - server.lsn > 40 ? 12 : 9)
  server.put(FIRST + 2 * RING, server.mtr(15, FIRST + 2 * RING))
  t.equal((await tail.step()).kind, 'overtaken')
})

t.test('a server that lost redo which was already read', async t => {
  const server = setUp(t)
  const tail = await RingTail.open(server.path)
  t.teardown(() => tail.close())
  for (let i = 0; i < 50; i++) server.append()
  await drain(tail)
  // The machine went down; after recovery the server writes something else where the end was.
  server.lsn -= 5 * 21
  server.appendUntil(server.lsn + 3000)
  await t.rejects(async () => {
    for (let i = 0; i < 10; i++) await tail.step(true)
  }, DivergedLogError)
})

t.test('takes up a position, but not one that is none', async t => {
  const server = setUp(t)
  for (let i = 0; i < 50; i++) server.append()
  const middle = toLsn(FIRST + 21 * 20)
  const tail = await RingTail.open(server.path, { fromLsn: middle })
  t.equal((await drain(tail)).length, 21 * 30)
  await tail.close()
  await t.rejects(RingTail.open(server.path, { fromLsn: toLsn(middle + 7) }), DivergedLogError)
  await t.rejects(RingTail.open(server.path, { fromLsn: toLsn(server.lsn + 1000) }), DivergedLogError)
})

t.test('goes on in the file that replaced the one it reads', async t => {
  const server = setUp(t)
  // In the second lap of the old file, which is the first of the new one.
  server.appendUntil(FIRST + RING + 1000)
  server.checkpointAt(server.lsn)
  const tail = await RingTail.open(server.path)
  t.teardown(() => tail.close())
  for (let i = 0; i < 10; i++) server.append()
  const first = await drain(tail)
  const appended = Array.from({ length: 10 }, () => server.append())
  const resized = new FakeServer(`${server.path}.new`, server.lsn - 21 * 4, RING * 2)
  t.teardown(() => resized.close())
  // The last four are in both files; their sequence bits follow each file's own size.
  for (const bytes of appended.slice(-4)) {
    const copy = Uint8Array.from(bytes)
    copy[16] = resized.geometry.sequenceBit(resized.lsn + 16)
    resized.put(resized.lsn, copy)
    resized.lsn += copy.length
  }
  resized.checkpointAt(server.lsn)
  renameSync(`${server.path}.new`, server.path)
  const old = await drain(tail)
  const more = [resized.append(), resized.append()]
  const rest = Buffer.concat([old, await drain(tail), await drain(tail)])
  t.equal(first.length, 210)
  t.equal(rest.length, 10 * 21 + 2 * 21)
  t.ok(rest.subarray(-42).equals(Buffer.concat(more)))
  t.equal(tail.capacity, RING * 2)
})

t.test("remains of the log buffer in the last block are not taken for what isn't there", async t => {
  const server = setUp(t)
  const tail = await RingTail.open(server.path)
  t.teardown(() => tail.close())
  // An earlier mini-transaction, and 4096 bytes later the very same bytes where the next one is to come.
  const earlier = server.append(15)
  const at = server.lsn - earlier.length
  server.appendUntil(at + 4096 - 60)
  while (server.lsn !== at + 4096) server.append(Math.min(15, at + 4096 - server.lsn - 6) || 15)
  await drain(tail)
  t.equal(tail.position, at + 4096)
  server.put(server.lsn, earlier)
  t.equal((await tail.step()).kind, 'idle')
  t.equal(tail.suspects, 1)
  // What really comes replaces it.
  const real = server.append(14)
  t.ok((await drain(tail)).equals(real))
})

t.test('remains that are real are believed when the log goes on behind their block', async t => {
  const server = setUp(t)
  const tail = await RingTail.open(server.path)
  t.teardown(() => tail.close())
  const earlier = server.append(15)
  const at = server.lsn - earlier.length
  server.appendUntil(at + 4096 - 60)
  while (server.lsn !== at + 4096) server.append(Math.min(15, at + 4096 - server.lsn - 6) || 15)
  await drain(tail)
  server.put(server.lsn, earlier)
  server.lsn += earlier.length
  t.equal((await tail.step()).kind, 'idle')
  server.appendUntil(at + 3 * 4096)
  await drain(tail)
  t.equal(tail.position, server.lsn)
})

t.test('a cold copy may be cut after its last record', async t => {
  const server = setUp(t)
  server.appendUntil(FIRST + 9000)
  const fd = openSync(server.path, 'r+')
  ftruncateSync(fd, LOG_START_OFFSET + (server.lsn - FIRST))
  closeSync(fd)
  const tail = await RingTail.open(server.path, { cold: true })
  await drain(tail)
  t.equal(tail.position, server.lsn)
  await tail.close()
})
