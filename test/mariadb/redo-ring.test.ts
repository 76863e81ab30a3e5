// The redo log of a real server, followed while it runs round a small ring several times.
import { closeSync, fstatSync, openSync, readFileSync, readSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import t from 'tap'
import { ChunkIndexer } from '../../parser/chunk-index.ts'
import { LOG_START_OFFSET, LogGeometry, makeLogFileHead, parseLogFileHead } from '../../parser/log-file.ts'
import { MtrScanner, ScanResult } from '../../parser/mtr-scanner.ts'
import type { Lsn } from '../../protocol/ids.ts'
import { firstDifference } from '../support/compare-index.ts'
import { MariadbServer, mariadbSkip } from '../support/mariadb.ts'
import { referenceIndex } from '../support/reference-index.ts'

const LOG_BYTES = 4 << 20

/** What a tail reader does, at its plainest: reads the whole ring, laid out from its position on. */
class PlainFollower {
  position: Lsn
  mtrs = 0
  /** Mini-transactions that lie across the end of the file. */
  wrapped = 0
  events = 0
  readonly geometry: LogGeometry
  readonly #fd: number
  readonly #ring: Uint8Array
  readonly #scanner = new MtrScanner()
  readonly #indexer = new ChunkIndexer()

  constructor(path: string) {
    this.#fd = openSync(path, 'r')
    const head = new Uint8Array(LOG_START_OFFSET)
    readSync(this.#fd, head, 0, head.length, 0)
    const { firstLsn, checkpoint } = parseLogFileHead(head)
    this.geometry = new LogGeometry(firstLsn, fstatSync(this.#fd).size)
    this.position = checkpoint.checkpointLsn
    this.#ring = new Uint8Array(new SharedArrayBuffer(this.geometry.capacity))
  }

  /** Takes what is there; returns why it stopped. Throws if the index of it is not the reference's. */
  follow(): ScanResult {
    const ring = this.#ring
    const first = this.geometry.bytesToWrap(this.position)
    readSync(this.#fd, ring, 0, first, this.geometry.fileOffset(this.position))
    if (first < ring.length) readSync(this.#fd, ring, first, ring.length - first, LOG_START_OFFSET)
    const begin = this.position
    const { consumedBytes, mtrs, stop } = this.#scanner.scanRange(ring, 0, ring.length, begin, this.geometry)
    const result = this.#indexer.index(ring, 0, consumedBytes, begin)
    const reference = referenceIndex(ring, 0, consumedBytes, begin)
    const difference = firstDifference(this.#indexer, result, reference, begin, 0)
    if (difference !== undefined) throw new Error(difference)
    for (let at = 0; at < consumedBytes; at = this.#scanner.mtrEnd) {
      this.#scanner.scan(ring, at, consumedBytes, (begin + at) as Lsn, this.geometry)
      if (at < first && this.#scanner.mtrEnd > first) this.wrapped++
    }
    this.mtrs += mtrs
    this.events += result.events.length
    this.position = (begin + consumedBytes) as Lsn
    return stop
  }

  close(): void {
    closeSync(this.#fd)
  }
}

t.test('following a 4 MiB ring of a running server for several laps', { skip: mariadbSkip() }, async t => {
  const server = await MariadbServer.create(t, {
    logFileSizeBytes: LOG_BYTES,
    args: ['--innodb-flush-log-at-trx-commit=1'],
  })
  const follower = new PlainFollower(join(server.datadir, 'ib_logfile0'))
  t.teardown(() => follower.close())
  t.equal(follower.geometry.fileBytes, LOG_BYTES)
  const begin = follower.position
  const stops = new Set<ScanResult>()

  await server.sql('CREATE DATABASE ring')
  await server.sql('CREATE TABLE ring.t (a INT PRIMARY KEY, b VARBINARY(3000), c INT, KEY(c)) ENGINE=InnoDB')
  // Eight laps, in steps well below one lap, each caught up with before the next. (A reader that falls a lap behind has
  // lost the log; that is the attach agent's affair.)
  for (let step = 0; follower.position < begin + 8 * LOG_BYTES; step++) {
    const rows = `ring.seq_${step * 100}_to_${step * 100 + 99}`
    await server.sql(
      `REPLACE INTO ring.t SELECT seq % 997, REPEAT(CHAR(65 + seq % 26), 20 + (seq * 7) % 2900), seq FROM ${rows}`,
    )
    if (step % 5 === 0) await server.sql('DELETE FROM ring.t WHERE c % 3 = 0')
    if (step % 40 === 7) await server.sql(`ALTER TABLE ring.t COMMENT='${step}', FORCE`)
    const target = await server.status('Innodb_lsn_flushed')
    for (let tries = 0; follower.position < target; tries++) {
      if (tries > 2000) throw new Error(`stuck at LSN ${follower.position} before ${target}: ${[...stops]}`)
      stops.add(follower.follow())
      if (follower.position < target) await sleep(5)
    }
  }
  t.ok(follower.wrapped >= 4, `${follower.wrapped} mini-transactions lay across the end of the file`)
  t.ok(follower.events > 0, `${follower.events} events`)
  // The server fills the block it writes last with zeros, so what follows the end is zeros unless a block is just full.
  t.ok(stops.has(ScanResult.EMPTY), `stops: ${[...stops]}`)

  await server.stop()
  follower.follow()
  const shutdownLsn = Number(
    [...server.logTail().matchAll(/Shutdown completed; log sequence number (\d+)/g)].at(-1)?.[1],
  )
  // The checkpoint at shutdown is followed by its FILE_CHECKPOINT mini-transaction of 16 bytes.
  t.ok(
    follower.position === shutdownLsn || follower.position === shutdownLsn + 16,
    `ended at ${follower.position}, the server at ${shutdownLsn}`,
  )
})

t.test('a server starts on a log file head that we made', { skip: mariadbSkip() }, async t => {
  const server = await MariadbServer.create(t)
  await server.sql('CREATE DATABASE d')
  await server.sql('CREATE TABLE d.t (a INT PRIMARY KEY) ENGINE=InnoDB')
  await server.sql('INSERT INTO d.t VALUES (1), (2)')
  await server.stop()
  const path = join(server.datadir, 'ib_logfile0')
  const { checkpoint } = parseLogFileHead(readFileSync(path))
  // Some LSN above every page's, of no particular alignment.
  const lsn = (checkpoint.checkpointLsn + 1_234_567) as Lsn
  writeFileSync(path, makeLogFileHead(lsn, 'Backup palimpsest'))
  await server.start()
  t.strictSame(await server.sql('SELECT a FROM d.t'), [{ a: 1 }, { a: 2 }])
  await server.sql('INSERT INTO d.t VALUES (3)')
  t.ok((await server.currentLsn()) > lsn)
  await server.stop()
  t.notMatch(server.logTail(1000), /\[ERROR\]/)
})
