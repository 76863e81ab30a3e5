/**
 * Makes test/fixtures/golden/ from the full recordings (see the README there):
 *
 *     node test/support/make-golden-fixtures.ts DIR
 *
 * where DIR has 4k/, 16k/ and 64k/, each with base/, final/ and redo.
 */
import { readFileSync, writeFileSync } from 'node:fs'
import { join, relative } from 'node:path'
import { compressPage } from '../../parser/page-compression.ts'
import { FSP_SIZE, read4 } from '../../parser/page-format.ts'
import { crc32c } from '../../protocol/crc32c.ts'
import { compress, writeTarZst } from './fixture-tar.ts'
import { NaiveReplay, tablespaceFiles } from './naive-replay.ts'

const MIB = 1 << 20
const OUT = join(import.meta.dirname, '../fixtures/golden')
/** First megabyte and end, in LSN, of the cut logs. The 16k one begins where ROW_FORMAT=COMPRESSED is about to. */
const CUTS = { '16k': [39, 46], '64k': [0, 3] } as const

function archive(datadir: string): Map<string, Uint8Array> {
  return new Map(tablespaceFiles(datadir).map(path => [relative(datadir, path), readFileSync(path)]))
}

/** The tablespace files as InnoDB would have left them at the replay's LSN. */
function filesOf(replay: NaiveReplay): Map<string, Uint8Array> {
  const files = new Map<string, Uint8Array>()
  for (const space of replay.spaces.values()) {
    const format = space.format!
    const pages = read4(space.pages.get(0)!, FSP_SIZE)
    const file = new Uint8Array(pages * format.physicalSize)
    for (const pageNo of space.pages.keys()) {
      if (pageNo >= pages) continue
      const written = compressPage(replay.writtenPage(space.id, pageNo), format, space.name)
      file.set(written.bytes, pageNo * format.physicalSize)
    }
    files.set(space.name, file)
  }
  return files
}

/** An ib_logfile0 that begins at `start`, with both checkpoints there, cut at `end`. */
function logFile(redo: Uint8Array, firstLsn: number, start: number, end: number): Uint8Array {
  const file = Buffer.concat([
    redo.subarray(0, 0x3000),
    redo.subarray(0x3000 + start - firstLsn, 0x3000 + end - firstLsn),
  ])
  file.writeBigUInt64BE(BigInt(start), 8)
  file.writeUInt32BE(crc32c(file, 0, 508), 508)
  for (const block of [0x1000, 0x2000]) {
    file.fill(0, block, block + 64)
    file.writeBigUInt64BE(BigInt(start), block)
    file.writeBigUInt64BE(BigInt(start), block + 8)
    file.writeUInt32BE(crc32c(file, block, block + 60), block + 60)
  }
  return file
}

const golden = process.argv[2]
if (!golden) throw new Error('usage: make-golden-fixtures.ts DIR')

for (const [set, [from, to]] of Object.entries(CUTS)) {
  const redo = readFileSync(join(golden, set, 'redo'))
  const replay = NaiveReplay.load(join(golden, set, 'base'))
  replay.useRedo(redo)
  if (from) replay.advanceTo(from * MIB)
  writeTarZst(join(OUT, `zoo-${set}.base.tar.zst`), filesOf(replay))
  writeFileSync(join(OUT, `zoo-${set}.redo.zst`), compress(logFile(redo, 12288, replay.lsn, to * MIB)))
}
const replay = NaiveReplay.load(join(golden, '4k/base'))
const redo = readFileSync(join(golden, '4k/redo'))
writeTarZst(join(OUT, 'zoo-4k.base.tar.zst'), archive(join(golden, '4k/base')))
writeTarZst(join(OUT, 'zoo-4k.final.tar.zst'), archive(join(golden, '4k/final')))
writeFileSync(
  join(OUT, 'zoo-4k.redo.zst'),
  compress(logFile(redo, 12288, replay.lsn, redo.length - 0x3000 + 12288)),
)
