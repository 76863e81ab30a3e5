/**
 * Generational fuzzing of what reads the cell's log: packs, and segments at the start of a node.
 *
 *     node test/fuzz/log-fuzz.ts [--seconds N] [--seed N]
 *
 * It makes a small log, takes a file apart, damages one or two parts in ways that keep them plausible, and puts it together with
 * right CRCs, so that the checks behind these are reached. Then everything is read. Whatever happens must be a `corrupt` error
 * that names the file, or entries that keep what readers rely on: indexes without a hole, terms that do not fall, lengths that go
 * with LSNs, payloads that fit their CRC. Damage without new CRCs must never change what is read (of the newest segment the unproven end
 * may be given up). Anything else is a finding: another exception, a case that takes seconds.
 *
 * A run is determined by its seed. Seeds worth keeping are in test/fixtures/fuzz/log-seeds.json, and
 * test/property/log-fuzz.test.ts runs them briefly.
 */
import { parseArgs } from 'node:util'
import { crc32c } from '../../protocol/crc32c.ts'
import type { Lsn, TimelineId } from '../../protocol/ids.ts'
import type { LogIndex, Term } from '../../server/safekeeper/core/types.ts'
import { CellLog, type LogEntry } from '../../server/safekeeper/log/cell-log.ts'
import { decodeEntryHeader, ENTRY_HEADER_BYTES, entryBytes } from '../../server/safekeeper/log/entry.ts'
import { PackBuilder } from '../../server/safekeeper/log/pack-builder.ts'
import {
  decodePackFooter,
  decodePackHeader,
  encodePackFooter,
  encodePackHeader,
  PACK_FOOTER_BYTES,
  PACK_HEADER_BYTES,
  type PackHeader,
} from '../../server/safekeeper/log/pack-codec.ts'
import { packEntries, packSourceOf } from '../../server/safekeeper/log/pack-reader.ts'
import { SEGMENT_DATA_OFFSET } from '../../server/safekeeper/log/segment-file.ts'
import { PalimpsestError } from '../../server/shared/errors.ts'
import { silentLog } from '../../server/shared/log.ts'
import { zstdCompress, zstdDecompress } from '../../server/shared/zstd.ts'
import {
  appendAndFlush,
  createLog,
  gap,
  LOG_DIR,
  noop,
  redo,
  SEGMENT_BYTES,
} from '../support/cell-log-rig.ts'
import { MemoryDisk } from '../support/memory-disk.ts'

export interface LogFuzzCounters {
  cases: number
  refused: number
  read: number
}

type Random = (below: number) => number

/** Mulberry32: small, seedable, good enough to choose damage by. */
function makeRandom(seed: number): Random {
  let state = seed | 0
  return below => {
    state = (state + 0x6d2b79f5) | 0
    let z = Math.imul(state ^ (state >>> 15), 1 | state)
    z = (z + Math.imul(z ^ (z >>> 7), 61 | z)) ^ z
    return ((z ^ (z >>> 14)) >>> 0) % below
  }
}

const CASE_MS_MAX = 5000
const WORDS = [0, 1, 2, 3, 7, 8, 16, 31, 0x7f, 0x80, 0xff]
const NUMBERS = [0, 1, 2, 255, 4096, 65536, 0x7fffffff, 0x80000000, 0xffffffff, 2 ** 32, 2 ** 53 - 1]

function makeEntries(random: Random): LogEntry[] {
  const entries: LogEntry[] = []
  const ends = new Map<TimelineId, number>()
  let term = 1
  for (let index = 1, count = 1 + random(60); index <= count; index++) {
    term += random(12) === 0 ? 1 : 0
    const timeline = String(1 + random(6))
      .padStart(2, '0')
      .repeat(16) as TimelineId
    const at = ends.get(timeline) ?? 1000
    const bytes = 1 + random(random(5) === 0 ? 3000 : 200)
    const kind = random(10)
    if (kind > 1) ends.set(timeline, at + bytes)
    entries.push(
      kind === 0
        ? noop(index, term)
        : kind === 1
          ? gap(index, term, timeline, at, at + bytes)
          : redo(index, term, timeline, at, bytes),
    )
  }
  return entries
}

/** Throws if the entries are not such as a reader may rely on; a digest of them otherwise. */
function digestOf(entries: readonly LogEntry[], first: number): string {
  let digest = ''
  let term = 0
  for (const [i, entry] of entries.entries()) {
    const { index, kind, timeline, beginLsn, endLsn, payload, payloadCrc, dropped } = entry
    if (index !== first + i) throw new Error(`entry ${index} where ${first + i} is next`)
    if (entry.term < term) throw new Error('terms fall')
    term = entry.term
    const isTimelines = kind === 'redo' || kind === 'gap'
    if (isTimelines !== (timeline !== undefined)) throw new Error('an entry of the wrong owner')
    if (isTimelines && !(endLsn > beginLsn && Number.isSafeInteger(endLsn)))
      throw new Error('LSNs out of order')
    if (kind === 'redo' && !dropped && endLsn - beginLsn !== payload.length)
      throw new Error('redo of another length')
    if (kind !== 'redo' || !dropped)
      if (crc32c(payload, 0, payload.length) !== payloadCrc) throw new Error('a payload with a wrong CRC')
    digest += `${index} ${entry.term} ${kind} ${timeline} ${entry.epoch} ${beginLsn} ${endLsn} ${entry.wallTimeUs} ${payloadCrc} ${dropped};`
  }
  return digest
}

// Packs

function makePack(random: Random): Buffer {
  const entries = makeEntries(random)
  const header: PackHeader = {
    firstIndex: 1 as LogIndex,
    lastIndex: entries.length as LogIndex,
    prevTerm: random(2) as Term,
    generation: 1,
  }
  const builder = new PackBuilder(header, { groupBytes: [100, 1000, 1 << 20][random(3)]! })
  for (const entry of entries) {
    const isTimelines = entry.timeline !== undefined
    const dropped = entry.kind === 'redo' && random(12) === 0
    builder.add({
      ...entry,
      ...(dropped ? { dropped, payload: Buffer.alloc(0) } : {}),
      isVoid: isTimelines && random(15) === 0,
    })
  }
  builder.finish()
  return Buffer.concat(builder.take())
}

async function readPack(bytes: Buffer): Promise<string> {
  const entries: LogEntry[] = []
  for await (const entry of packEntries(packSourceOf('/fuzz/pack', bytes))) entries.push(entry)
  return digestOf(entries, 1)
}

/** Damages header, tables or footer, and makes the CRCs right again. */
function damagePack(good: Buffer, random: Random): Buffer {
  const header = decodePackHeader(good)
  const footer = decodePackFooter(good.subarray(good.length - PACK_FOOTER_BYTES), good.length, header)
  const sections = [footer.table, footer.summary].map(({ offset, storedBytes, rawBytes }) =>
    Buffer.from(zstdDecompress(good.subarray(offset, offset + storedBytes), rawBytes)),
  )
  let made = header
  for (let n = 1 + random(2); n > 0; n--) {
    const which = random(8)
    if (which === 7) {
      const number = NUMBERS[random(NUMBERS.length)]!
      const change = [
        { firstIndex: number },
        { lastIndex: number },
        { prevTerm: number },
        { lastIndex: header.lastIndex + 1 },
      ]
      made = { ...made, ...change[random(change.length)]! } as PackHeader
      continue
    }
    const at = which % 2
    let raw = sections[at]!
    if (random(8) === 0)
      raw =
        random(2) === 0
          ? raw.subarray(0, random(raw.length + 1))
          : Buffer.concat([raw, Buffer.alloc(random(40), random(256))])
    else if (raw.length > 0) {
      const place = random(random(3) === 0 ? raw.length : Math.min(raw.length, 60))
      raw[place] = random(2) === 0 ? WORDS[random(WORDS.length)]! : (raw[place]! + 255 + random(3)) & 0xff
    }
    sections[at] = raw
  }
  const groups = good.subarray(PACK_HEADER_BYTES, footer.table.offset)
  let offset = footer.table.offset
  const [table, summary] = sections.map(raw => {
    const stored = zstdCompress(raw, 1)
    const section = {
      bytes: stored,
      offset,
      storedBytes: stored.length,
      rawBytes: random(30) === 0 ? random(100_000) : raw.length,
      crc: crc32c(stored, 0, stored.length),
    }
    offset += stored.length
    return section
  })
  const packBytes = offset + PACK_FOOTER_BYTES
  const tail = encodePackFooter({ table: table!, summary: summary!, packBytes })
  return Buffer.concat([encodePackHeader(made), groups, table!.bytes, summary!.bytes, tail])
}

// Segments

async function makeLog(
  random: Random,
): Promise<{ files: Map<string, Buffer>; digest: string; proven: number }> {
  const { disk, log, events } = await createLog({ packs: 'off' })
  const entries = makeEntries(random)
  let proven = 0
  for (let at = 0; at < entries.length; ) {
    const count = 1 + random(10)
    proven = at
    await appendAndFlush(log, events, entries.slice(at, at + count))
    at += count
  }
  const files = new Map(disk.paths().map(path => [path, Buffer.from(disk.content(path))]))
  return { files, digest: digestOf(entries, 1), proven }
}

async function openAndRead(files: ReadonlyMap<string, Buffer>): Promise<{ digest: string; last: number }> {
  const disk = new MemoryDisk()
  for (const [path, bytes] of files) {
    const file = await disk.open(path, 'create')
    await file.write([bytes], 0)
    await file.datasync()
  }
  const { log } = await CellLog.open({
    disk,
    // Time stands still: what repair would try again later does not come to that.
    clock: { wallTimeUs: () => 0, monotonicMs: () => 0, sleep: () => new Promise(() => {}) },
    dir: LOG_DIR,
    log: silentLog,
    segmentBytes: SEGMENT_BYTES,
    reserveBytes: 0,
    packs: 'off',
    appliedTo: 1000 as LogIndex,
    onFatal: error => {
      throw error
    },
  })
  const entries: LogEntry[] = []
  while (log.base.index + entries.length < log.lastIndex) {
    const from = (log.base.index + entries.length + 1) as LogIndex
    entries.push(...(await log.read(from, log.lastIndex, 10_000)))
  }
  for (const { timeline, beginLsn, index } of entries) {
    if (timeline === undefined) continue
    // Redo that no writer could have appended may lie anywhere; a reader must end or be refused.
    const cursor = log.timelineCursor(timeline, beginLsn as Lsn)
    try {
      for (let left = 200; left > 0 && (await cursor.next()) !== undefined; left--);
    } catch (error) {
      if (!(error instanceof PalimpsestError) || error.kind === 'internal')
        throw new Error(`a reader from entry ${index}: ${(error as Error).message}`, { cause: error })
    }
  }
  return { digest: digestOf(entries, log.base.index + 1), last: log.lastIndex }
}

/** Damages the header of an entry or segment, or a payload, and makes CRCs and chain right again from there on. */
function damageSegment(bytes: Buffer, random: Random): void {
  const entryAt: number[] = []
  for (let at = SEGMENT_DATA_OFFSET; ; ) {
    const header = decodeEntryHeader(bytes, at)
    if (header === undefined) break
    entryAt.push(at)
    at += entryBytes(header.payloadBytes)
  }
  if (random(4) === 0 || entryAt.length === 0) {
    bytes[16 + random(48)] = WORDS[random(WORDS.length)]!
    bytes.writeUInt32LE(crc32c(bytes, 16, 64), 12)
  } else {
    const at = entryAt[random(entryAt.length)]!
    const field = 8 + random(ENTRY_HEADER_BYTES - 8)
    bytes[at + field] = random(2) === 0 ? WORDS[random(WORDS.length)]! : random(256)
  }
  let chain = bytes.readUInt32LE(12)
  for (const at of entryAt) {
    if (random(20) > 0) bytes.writeUInt32LE(chain, at + 88)
    chain = crc32c(bytes, at + 8, at + ENTRY_HEADER_BYTES)
    bytes.writeUInt32LE(chain, at + 4)
  }
}

/** Runs cases until told to stop. Throws, with the seed and the case, at the first finding. */
export async function fuzzLog(
  seed: number,
  until: (counters: LogFuzzCounters) => boolean,
): Promise<LogFuzzCounters> {
  const random = makeRandom(seed)
  const counters: LogFuzzCounters = { cases: 0, refused: 0, read: 0 }
  const attempt = async (read: () => Promise<void>): Promise<void> => {
    const begun = performance.now()
    counters.cases++
    try {
      await read()
      counters.read++
    } catch (error) {
      if (
        !(error instanceof PalimpsestError) ||
        error.kind !== 'corrupt' ||
        !/\/(fuzz|data\/log)\//.test(error.message)
      )
        throw new Error(`seed ${seed}, case ${counters.cases}: ${(error as Error).message}`, { cause: error })
      counters.refused++
    }
    if (performance.now() - begun > CASE_MS_MAX)
      throw new Error(`seed ${seed}, case ${counters.cases} takes seconds`)
  }
  const flip = (bytes: Buffer, flips: number, below = bytes.length) => {
    for (; flips > 0; flips--) {
      const at = random(below)
      bytes[at] = bytes[at]! ^ (1 << random(8))
    }
  }
  while (!until(counters)) {
    const pack = makePack(random)
    const packDigest = await readPack(pack)
    for (let n = 0; n < 15 && !until(counters); n++) {
      await attempt(async () => {
        await readPack(damagePack(pack, random))
      })
      const flipped = Buffer.from(pack)
      flip(flipped, 1 + random(3))
      const cut = random(4) === 0 ? flipped.subarray(0, random(flipped.length)) : flipped
      await attempt(async () => {
        if ((await readPack(cut)) !== packDigest)
          throw new Error('damage changed what is read, and nobody noticed')
      })
    }
    const { files, digest, proven } = await makeLog(random)
    const segments = [...files.keys()].filter(path => /\/[0-9]{20}\.seg$/.test(path))
    for (let n = 0; n < 10 && !until(counters); n++) {
      const path = segments[random(segments.length)]!
      const changed = Buffer.from(files.get(path)!)
      damageSegment(changed, random)
      await attempt(async () => {
        await openAndRead(new Map([...files, [path, changed]]))
      })
      const flipped = Buffer.from(files.get(path)!)
      // One: several may also hit all later entries that prove what was flushed.
      flip(flipped, 1, Math.max(SEGMENT_DATA_OFFSET + 1, flipped.lastIndexOf('PLE2') + ENTRY_HEADER_BYTES))
      await attempt(async () => {
        const got = await openAndRead(new Map([...files, [path, flipped]]))
        if (!digest.startsWith(got.digest) || got.last < proven)
          throw new Error(
            `damage changed what is read (${got.last} entries, ${proven} proven), and nobody noticed`,
          )
      })
    }
  }
  return counters
}

if (import.meta.main) {
  const { values } = parseArgs({ options: { seconds: { type: 'string' }, seed: { type: 'string' } } })
  const until = performance.now() + 1000 * Number(values.seconds ?? 60)
  let seed = Number(values.seed ?? Date.now() % 0x7fffffff)
  process.stdout.write(`fuzzing for ${values.seconds ?? 60} s from seed ${seed}\n`)
  const total: LogFuzzCounters = { cases: 0, refused: 0, read: 0 }
  while (performance.now() < until) {
    const c = await fuzzLog(seed++, ({ cases }) => cases >= 2000 || performance.now() >= until)
    for (const key of Object.keys(total) as (keyof LogFuzzCounters)[]) total[key] += c[key]
    process.stdout.write(`seed ${seed - 1} done; in all ${JSON.stringify(total)}\n`)
  }
}
