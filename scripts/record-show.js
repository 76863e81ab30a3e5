// Records test/fixtures/show/: what `npm start` plays where there is no MariaDB. Needs a MariaDB server and tar.
//
// It holds a datadir at rest (base/), the redo log of a short workload on it (redo: an ib_logfile0 cut after its last
// record), the InnoDB files after the clean shutdown that followed (final/), and show.json with the moments worth
// looking at. Run it again with: node scripts/record-show.js
import { execFileSync } from 'node:child_process'
import {
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  truncateSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import * as zlib from 'node:zlib'
import { root, runMain, SetupError, say } from './lib/checkout.js'
import { ensureModules } from './lib/modules.js'
import { handOver } from './lib/node.js'

const customers = 200
const orders = 4000
const packedBytesMax = 3 << 20
/** Bytes of ib_logfile0 before its first record. */
const logHeaderBytes = 0x3000

const options = { logFileSizeBytes: 16 << 20 }

/** InnoDB's own files of a datadir. @param {string} datadir @returns {string[]} relative paths */
function innodbFiles(datadir) {
  return readdirSync(datadir, { recursive: true, encoding: 'utf8' })
    .filter(file => /(^ibdata\d+$|^undo\d+$|\.ibd$)/.test(file))
    .sort()
}

/**
 * The leaf page that holds the smallest keys of a table with a 4-byte key: down the leftmost pointers from the root.
 * @param {Buffer} file the .ibd
 */
function leftmostLeaf(file) {
  const pageBytes = 16384
  let page = 3
  for (;;) {
    const bytes = file.subarray(page * pageBytes, (page + 1) * pageBytes)
    const level = bytes.readUInt16BE(38 + 26)
    if (level === 0) return page
    // The infimum record lies at 99; the two bytes before a record lead to the next one. A node pointer is its key,
    // then the child's page number.
    const first = (99 + bytes.readInt16BE(97)) & 0xffff
    page = bytes.readUInt32BE(first + 4)
  }
}

/**
 * The tables, empty: they belong to the datadir at rest, since their .frm files are not in the redo log.
 * @param {import('../test/support/mariadb.ts').MariadbServer} server
 */
async function openShop(server) {
  await server.sql(
    `CREATE DATABASE shop;
    CREATE TABLE shop.customers (id INT PRIMARY KEY, name VARCHAR(40) NOT NULL) ENGINE=InnoDB;
    CREATE TABLE shop.orders (id INT PRIMARY KEY AUTO_INCREMENT, customer INT NOT NULL, total DECIMAL(10,2) NOT NULL,
      status VARCHAR(12) NOT NULL, KEY (customer), FOREIGN KEY (customer) REFERENCES shop.customers (id)) ENGINE=InnoDB`,
  )
}

/** @param {import('../test/support/mariadb.ts').MariadbServer} server */
async function fill(server) {
  await server.sql('CREATE TABLE shop.carts (id INT PRIMARY KEY, content VARCHAR(200)) ENGINE=InnoDB')
  await server.sql(
    `INSERT INTO shop.customers SELECT seq, CONCAT('customer ', seq) FROM shop.seq_1_to_${customers}`,
  )
  for (let from = 0; from < orders; from += 500) {
    await server.sql(
      `INSERT INTO shop.orders (customer, total, status)
        SELECT 1 + (seq + ${from}) % ${customers}, (seq + ${from}) % 997 + 0.5, 'paid' FROM shop.seq_1_to_500`,
    )
  }
  await server.sql(`INSERT INTO shop.carts SELECT seq, REPEAT('item ', seq % 30) FROM shop.seq_1_to_1000`)
  await server.sql("UPDATE shop.orders SET status = 'shipped' WHERE id % 3 = 0")
  await server.sql('DELETE FROM shop.orders WHERE id % 50 = 0')
}

/** @param {import('../test/support/mariadb.ts').MariadbServer} server @param {string} what */
async function moment(server, what) {
  const [row] = await server.sql('SELECT status, total FROM shop.orders WHERE id = 42')
  const [sum] = await server.sql('SELECT COUNT(*) AS count, SUM(total) AS total FROM shop.orders')
  return {
    what,
    lsn: await server.currentLsn(),
    order42: `${row.status}, ${row.total}`,
    orders: sum.count,
    ordersTotal: String(sum.total),
  }
}

await runMain(async () => {
  ensureModules()
  await handOver(fileURLToPath(import.meta.url), process.argv.slice(2))
  const { copyDatadir, mariadb, MariadbServer } = await import('../test/support/mariadb.ts')
  const found = mariadb()
  if (!found.ok) throw new SetupError(found.reason)

  const scratch = mkdtempSync(join(tmpdir(), 'pal-record-'))
  const live = join(scratch, 'live')
  const server = await MariadbServer.createAt(live, options)
  try {
    // The help texts are a third of a fresh datadir, and nobody asks for them here.
    await server.start()
    for (const table of ['help_topic', 'help_keyword', 'help_relation', 'help_category']) {
      await server.sql(`TRUNCATE TABLE mysql.${table}`)
    }
    await openShop(server)
    await server.stop()
    await copyDatadir(live, join(scratch, 'base'))

    await server.start()
    await fill(server)
    const moments = [await moment(server, 'before the accident')]
    await server.sql("UPDATE shop.orders SET status = 'cancelled', total = 0 WHERE id <= 2000")
    moments.push(await moment(server, 'after an update without the right WHERE'))
    await server.sql('DROP TABLE shop.carts')
    moments.push(await moment(server, 'after DROP TABLE shop.carts'))
    await server.stop()
    // The log has earlier shutdowns as well: the last one counts.
    const lastLine = [...server.logTail(50).matchAll(/Shutdown completed; log sequence number (\d+)/g)].at(-1)
    if (lastLine === undefined) throw new Error(`mariadbd did not tell its last LSN\n${server.logTail(50)}`)
    const endLsn = Number(lastLine[1])

    const redo = join(scratch, 'redo')
    await copyDatadir(join(live, 'ib_logfile0'), redo)
    const firstLsn = Number(readFileSync(redo).readBigUInt64BE(8))
    const used = endLsn - firstLsn
    if (used >= options.logFileSizeBytes - logHeaderBytes)
      throw new Error('the redo log wrapped; make it larger')
    truncateSync(redo, logHeaderBytes + used)
    for (const file of innodbFiles(live)) {
      mkdirSync(join(scratch, 'final', dirname(file)), { recursive: true })
      await copyDatadir(join(live, file), join(scratch, 'final', file))
    }
    const ordersFile = readFileSync(join(live, 'shop', 'orders.ibd'))
    const story = {
      mariadb: found.version,
      moments,
      endLsn,
      // Where order 42 lies: the tablespace id stands on every page, at 34.
      orders: { space: ordersFile.readUInt32BE(34), page: leftmostLeaf(ordersFile) },
    }

    const tar = execFileSync(
      'tar',
      [
        '--sort=name',
        '--owner=0',
        '--group=0',
        '--numeric-owner',
        '-C',
        scratch,
        '-c',
        'base',
        'final',
        'redo',
      ],
      { maxBuffer: 1 << 30 },
    )
    const packed = zlib.zstdCompressSync(tar, {
      params: {
        [zlib.constants.ZSTD_c_compressionLevel]: 19,
        // One window over all of it: final/ is mostly base/ again.
        [zlib.constants.ZSTD_c_windowLog]: 27,
        [zlib.constants.ZSTD_c_enableLongDistanceMatching]: 1,
        [zlib.constants.ZSTD_c_checksumFlag]: 1,
      },
    })
    say(
      `${(tar.length / 1e6).toFixed(1)} MB, packed ${(packed.length / 1e6).toFixed(2)} MB, redo ${(used / 1e6).toFixed(2)} MB`,
    )
    if (packed.length > packedBytesMax) throw new Error('that is too large to keep in the repository')
    const out = join(root, 'test', 'fixtures', 'show')
    mkdirSync(out, { recursive: true })
    writeFileSync(join(out, 'show.tar.zst'), packed)
    writeFileSync(join(out, 'show.json'), `${JSON.stringify(story, null, 2)}\n`)
  } finally {
    await server.remove()
    rmSync(scratch, { recursive: true, force: true })
  }
})
