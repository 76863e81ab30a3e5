import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { zstdDecompressSync } from 'node:zlib'
import t from 'tap'
import { compareWithDatadir } from '../../support/compare-datadir.ts'
import { readTarZst } from '../../support/fixture-tar.ts'
import { NaiveReplay } from '../../support/naive-replay.ts'

const GOLDEN = join(import.meta.dirname, '../../fixtures/golden')

function fixture(name: string): NaiveReplay {
  const replay = new NaiveReplay()
  for (const [file, content] of readTarZst(join(GOLDEN, `${name}.base.tar.zst`)))
    replay.addFile(file, content)
  replay.useRedo(zstdDecompressSync(readFileSync(join(GOLDEN, `${name}.redo.zst`))))
  return replay
}

function writtenOrNothing(replay: NaiveReplay): (space: number, pageNo: number) => Uint8Array | undefined {
  return (space, pageNo) => (replay.spaces.has(space) ? replay.writtenPage(space, pageNo) : undefined)
}

t.test('4k pages: every step of the log, then every page of the final files', async t => {
  const replay = fixture('zoo-4k')
  t.equal(replay.lsn, 52748, 'starts at the checkpoint of the base')
  t.equal(replay.advanceTo(), 69329526, 'reaches the last mini-transaction')
  t.match(
    { mtrs: replay.mtrs, records: replay.records, checksums: replay.applier.checksumsVerified },
    { mtrs: 291774, records: 1244720, checksums: 334164 },
  )
  const final = t.testdir()
  for (const [file, content] of readTarZst(join(GOLDEN, 'zoo-4k.final.tar.zst'))) {
    mkdirSync(dirname(join(final, file)), { recursive: true })
    writeFileSync(join(final, file), content)
  }
  const result = compareWithDatadir(final, writtenOrNothing(replay))
  t.match(result, { files: 36, compared: 7222, differing: 0, differences: [] })
})

t.test('16k pages, ROW_FORMAT=COMPRESSED and page_compressed among them', async t => {
  const replay = fixture('zoo-16k')
  const names = new Set<string>()
  replay.onMtr = (_start, _end, pages) => {
    for (const id of pages) {
      const space = replay.spaces.get(Number(id.split(':')[0]))
      if (space?.format?.zip) names.add('zip')
      if (space?.format?.pageCompressed) names.add('page_compressed')
    }
  }
  replay.advanceTo()
  t.ok(replay.lsn > 48_000_000, 'reaches the end of the cut log')
  t.same([...names].sort(), ['page_compressed', 'zip'])
  t.ok(replay.applier.checksumsVerified > 20000, `${replay.applier.checksumsVerified} page checksums`)
})

t.test('64k pages', async t => {
  const replay = fixture('zoo-64k')
  replay.advanceTo()
  t.ok(replay.lsn > 3_100_000, 'reaches the end of the cut log')
  t.ok(replay.applier.checksumsVerified > 10000, `${replay.applier.checksumsVerified} page checksums`)
})

t.test('stopping at an LSN and going on gives the same pages', async t => {
  const straight = fixture('zoo-64k')
  straight.advanceTo(2_000_000)
  const stepwise = fixture('zoo-64k')
  for (let lsn = 50_000; lsn <= 2_000_000; lsn += 19_531) stepwise.advanceTo(lsn)
  stepwise.advanceTo(2_000_000)
  t.equal(stepwise.lsn, straight.lsn)
  let pages = 0
  for (const space of straight.spaces.values())
    for (const pageNo of space.pages.keys()) {
      pages++
      if (
        Buffer.compare(straight.writtenPage(space.id, pageNo), stepwise.writtenPage(space.id, pageNo)) !== 0
      )
        t.fail(`${space.name} page ${pageNo} differs`)
    }
  t.ok(pages > 100)
})

const full = process.env['PALIMPSEST_GOLDEN']
const EXPECTED: Record<string, { lsn: number; mtrs: number; checksums: number }> = {
  '4k': { lsn: 69329526, mtrs: 291774, checksums: 334164 },
  '16k': { lsn: 76756998, mtrs: 288522, checksums: 321332 },
  '64k': { lsn: 75684508, mtrs: 276307, checksums: 299849 },
}
for (const [set, expected] of Object.entries(EXPECTED)) {
  const dir = join(full ?? '', set)
  const skip = full && existsSync(dir) ? false : 'set PALIMPSEST_GOLDEN to run the full recordings'
  t.test(`full recording ${set}`, { skip }, async t => {
    const replay = NaiveReplay.load(join(dir, 'base'))
    replay.useRedo(readFileSync(join(dir, 'redo')))
    replay.advanceTo()
    t.same({ lsn: replay.lsn, mtrs: replay.mtrs, checksums: replay.applier.checksumsVerified }, expected)
    const result = compareWithDatadir(join(dir, 'final'), writtenOrNothing(replay))
    t.comment(`compared ${result.compared} pages in ${result.files} files`)
    t.same(result.differences, [])
  })
}
