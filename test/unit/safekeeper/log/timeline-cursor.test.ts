/** Readers of timelines: windows that are used again, and what is not read. */
import t, { type Test } from 'tap'
import type { Lsn, TimelineId } from '../../../../protocol/ids.ts'
import type { CellLog } from '../../../../server/safekeeper/log/cell-log.ts'
import { ReadWindows, WINDOW_BYTES } from '../../../../server/safekeeper/log/read-windows.ts'
import type { TimelineChunk } from '../../../../server/safekeeper/log/timeline-chunk.ts'
import {
  appendAndFlush,
  createLog,
  gap,
  LOG_DIR,
  type Made,
  openLog,
  redo,
  T1,
  T2,
} from '../../../support/cell-log-rig.ts'
import { MemoryDisk } from '../../../support/memory-disk.ts'

const SEGMENT_BYTES = 8 * 1024 * 1024

/** Several timelines by turns, entries of 1 byte to 300 KB; then opened anew, so that nothing is in memory. */
async function written(disk: MemoryDisk, packs: 'off' | undefined) {
  const options = { segmentBytes: SEGMENT_BYTES, ...(packs !== undefined && { packs }) }
  const { log, events } = await createLog(options, disk)
  const made: Made[] = []
  const ends = new Map<TimelineId, number>()
  for (let index = 1; index <= 400; index++) {
    const timeline = index % 7 === 0 ? T2 : T1
    const at = ends.get(timeline) ?? 1000
    const bytes = index % 31 === 0 ? 300_000 : 1 + ((index * 7919) % 60_000)
    made.push(
      index % 50 === 9 ? gap(index, 1, timeline, at, at + bytes) : redo(index, 1, timeline, at, bytes),
    )
    ends.set(timeline, at + bytes)
  }
  await appendAndFlush(log, events, made)
  for (const entry of made) log.applied(entry)
  if (packs === undefined) await log.packed()
  await log.close()
  const again = await openLog(disk, { ...options, appliedTo: 400 })
  return { log: again.log, of: (timeline: TimelineId) => made.filter(entry => entry.timeline === timeline) }
}

function check(t: Pick<Test, 'fail'>, chunk: TimelineChunk, expected: Made): void {
  const { index, beginLsn, endLsn, kind, payloadCrc } = expected
  const isSame =
    chunk.index === index &&
    chunk.beginLsn === beginLsn &&
    chunk.endLsn === endLsn &&
    chunk.kind === kind &&
    chunk.payloadCrc === payloadCrc &&
    Buffer.from(expected.payload).equals(chunk.payload)
  if (!isSame) t.fail(`entry ${index} is not what was appended`)
}

for (const packs of ['off', undefined] as const)
  t.test(
    `readers keep what they were given until they release it, ${packs === 'off' ? 'raw' : 'packed'}`,
    async t => {
      const { log, of } = await written(new MemoryDisk(), packs)
      const { packs: packCount } = log.stats()
      t.equal(packCount > 0, packs === undefined)
      // A quick one, a slow one that holds much, and one of the other timeline, by turns.
      const readers = [
        { expected: of(T1), cursor: log.timelineCursor(T1, 1000 as Lsn), hold: 0 },
        { expected: of(T1), cursor: log.timelineCursor(T1, 1000 as Lsn), hold: 150 },
        { expected: of(T2), cursor: log.timelineCursor(T2, 1000 as Lsn), hold: 3 },
      ].map(reader => ({ ...reader, at: 0, held: [] as { chunk: TimelineChunk; expected: Made }[] }))
      for (let more = true; more; ) {
        more = false
        for (const reader of readers) {
          const chunk = await reader.cursor.next()
          if (chunk === undefined) continue
          more = true
          reader.held.push({ chunk, expected: reader.expected[reader.at++]! })
          while (reader.held.length > reader.hold) {
            const oldest = reader.held.shift()!
            check(t, oldest.chunk, oldest.expected)
            oldest.chunk.release()
          }
        }
      }
      for (const { held, at, expected } of readers) {
        t.equal(at, expected.length)
        for (const { chunk, expected: made } of held) {
          check(t, chunk, made)
          chunk.release()
        }
      }
    },
  )

t.test("another timeline's redo is not read", async t => {
  const disk = new MemoryDisk()
  const { log, events } = await createLog({ segmentBytes: SEGMENT_BYTES, packs: 'off' }, disk)
  const made: Made[] = []
  for (let i = 0; i < 20; i++) {
    made.push(redo(2 * i + 1, 1, T1, 1000 + i * 1000, 1000))
    made.push(redo(2 * i + 2, 1, T2, 1000 + i * 200_000, 200_000))
  }
  await appendAndFlush(log, events, made)
  for (const entry of made) log.applied(entry)
  await log.close()
  let bytes = 0
  let reads = 0
  const counting = new Proxy(disk, {
    get: (target, key) => {
      if (key !== 'open') return Reflect.get(target, key).bind?.(target) ?? Reflect.get(target, key)
      return async (...of: Parameters<MemoryDisk['open']>) => {
        const file = await target.open(...of)
        return {
          write: file.write.bind(file),
          datasync: file.datasync.bind(file),
          size: file.size.bind(file),
          close: file.close.bind(file),
          read: async (buffer: Uint8Array, position: number) => {
            const got = await file.read(buffer, position)
            bytes += got
            reads++
            return got
          },
        }
      }
    },
  })
  const again = await openLog(counting, { segmentBytes: SEGMENT_BYTES, packs: 'off', appliedTo: 40 })
  bytes = 0
  reads = 0
  const chunks = await all(again.log, T1)
  t.same(
    chunks.map(chunk => chunk.index),
    made.filter(entry => entry.timeline === T1).map(entry => entry.index),
  )
  t.equal(reads, 20)
  t.ok(bytes < 20 * 1200, `${bytes} bytes`)
})

t.test('damage under a reader names the place', async t => {
  const disk = new MemoryDisk()
  const { log, of } = await written(disk, 'off')
  const entry = of(T1)[100]!
  const path = `${LOG_DIR}/00000000000000000001.seg`
  const bytes = Buffer.from(await disk.readFile(path))
  const at = bytes.indexOf(Buffer.from(entry.payload))
  t.ok(at > 0)
  const file = await disk.open(path, 'write')
  await file.write([Buffer.from([bytes[at]! ^ 1])], at)
  await t.rejects(all(log, T1), {
    kind: 'corrupt',
    message: new RegExp(`${path} is damaged at offset ${at - 104} \\(index ${entry.index}, .*payload CRC`),
  } as never)
})

t.test('windows come back, and are smaller while many are out', t => {
  const windows = new ReadWindows()
  t.equal(windows.bytesWanted, WINDOW_BYTES)
  const first = windows.take(10)
  t.equal(first.buffer.length, 256 * 1024)
  first.users = 2
  first.release()
  t.not(windows.take(10), first)
  first.release()
  t.equal(windows.take(200_000), first)
  t.equal(windows.take(WINDOW_BYTES + 1).buffer.length, 2 * WINDOW_BYTES)
  const out = Array.from({ length: 40 }, () => windows.take(WINDOW_BYTES))
  t.equal(windows.bytesWanted, 256 * 1024)
  for (const { release } of out) release()
  t.equal(windows.bytesWanted, WINDOW_BYTES)
  t.ok(windows.bytes <= 40 * 1024 * 1024, 'not all are kept')
  t.end()
})

async function all(log: CellLog, timeline: TimelineId): Promise<TimelineChunk[]> {
  const chunks: TimelineChunk[] = []
  const cursor = log.timelineCursor(timeline, 1000 as Lsn)
  for (let chunk = await cursor.next(); chunk !== undefined; chunk = await cursor.next()) {
    chunks.push(chunk)
    chunk.release()
  }
  return chunks
}
