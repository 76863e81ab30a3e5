/**
 * The real server as judge: a fresh datadir, a workload, a clean shutdown; then the log applied to a copy of the fresh
 * datadir must give every page that the server wrote, byte for byte.
 */
import { mkdtempSync, rmSync } from 'node:fs'
import { readFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import t from 'tap'
import { compareWithDatadir } from '../support/compare-datadir.ts'
import { copyDatadir, type MariadbOptions, MariadbServer, mariadbSkip } from '../support/mariadb.ts'
import { NaiveReplay } from '../support/naive-replay.ts'
import { runNastySql, truncateUndo } from '../support/nasty-sql.ts'

const UNDO = [
  '--innodb-undo-log-truncate=ON',
  '--innodb-max-undo-log-size=10485760',
  '--innodb-purge-rseg-truncate-frequency=1',
]

interface Case {
  readonly name: string
  readonly options: MariadbOptions
  readonly rows: number
  readonly undoTruncation?: boolean
}

const CASES: readonly Case[] = [
  {
    name: '16 KiB pages, full_crc32, three undo tablespaces, small buffer pool',
    rows: 8000,
    undoTruncation: true,
    options: { installArgs: ['--innodb-undo-tablespaces=3'], bufferPoolBytes: 8 << 20, args: UNDO },
  },
  {
    name: '8 KiB pages, innodb_checksum_algorithm=crc32, change buffer in use',
    rows: 4000,
    options: {
      pageSizeBytes: 8192,
      installArgs: ['--innodb-checksum-algorithm=crc32'],
      bufferPoolBytes: 5 << 20,
      args: [...UNDO, '--innodb-change-buffering=all'],
    },
  },
  { name: '32 KiB pages', rows: 6000, options: { pageSizeBytes: 32768, args: UNDO } },
]

for (const { name, options, rows, undoTruncation } of CASES) {
  t.test(name, { skip: mariadbSkip(), timeout: 600_000 }, async t => {
    const server = await MariadbServer.create(t, { ...options, logFileSizeBytes: 1 << 30 })
    await server.stop()
    const scratch = mkdtempSync(join(tmpdir(), 'pal-replay-'))
    t.teardown(() => rmSync(scratch, { recursive: true, force: true }))
    const base = join(scratch, 'base')
    await copyDatadir(server.datadir, base)
    await server.start()
    await runNastySql(server, { rows, statements: rows >> 3, zip: (options.pageSizeBytes ?? 16384) <= 16384 })
    if (undoTruncation) {
      await truncateUndo(server)
      await server.sql('UPDATE nasty.sb SET k = k + 1')
    }
    await server.stop()

    const replay = NaiveReplay.load(base)
    replay.useRedo(await readFile(join(server.datadir, 'ib_logfile0')))
    replay.advanceTo()
    t.comment(`${replay.mtrs} mini-transactions, ${replay.records} records, ${replay.touched.size} pages`)
    const result = compareWithDatadir(server.datadir, (space, pageNo) =>
      replay.spaces.has(space) ? replay.writtenPage(space, pageNo) : undefined,
    )
    if (undoTruncation) t.ok(replay.trims > 0, `${replay.trims} undo tablespaces started over`)
    t.comment(`compared ${result.compared} pages in ${result.files} files; left out ${result.free} free ones`)
    t.same(result.differences, [])
    t.equal(result.differing, 0)
    const names = [...replay.spaces.values()].map(space => space.name).filter(name => name !== '')
    t.equal(names.length, result.files, 'the log and the datadir agree on the tablespaces')
  })
}
