/**
 * A workload that goes through as many of InnoDB's ways to change a page as fit into seconds: every row format, instant
 * and rebuilding ALTER, blobs, spatial and full-text indexes, page merges, bulk load, rollback, XA, partitions, undo
 * truncation, concurrent writers.
 */
import type { MariadbServer } from './mariadb.ts'

export interface NastyOptions {
  /** Rows of the larger tables. */
  readonly rows: number
  /** ROW_FORMAT=COMPRESSED needs innodb_page_size of at most 16 KiB. */
  readonly zip: boolean
  /** Statements of each concurrent writer. */
  readonly statements: number
}

const FORMATS = ['REDUNDANT', 'COMPACT', 'DYNAMIC', 'COMPRESSED'] as const

async function rowFormats(server: MariadbServer, { rows, zip }: NastyOptions): Promise<void> {
  for (const format of FORMATS) {
    if (format === 'COMPRESSED' && !zip) continue
    const options =
      format === 'COMPRESSED' ? 'ROW_FORMAT=COMPRESSED KEY_BLOCK_SIZE=4' : `ROW_FORMAT=${format}`
    const table = `nasty.rf_${format.toLowerCase()}`
    await server.sql(`USE nasty;
      CREATE TABLE ${table} (
        id INT NOT NULL PRIMARY KEY, a VARCHAR(200) CHARACTER SET latin1, b INT, c CHAR(40) CHARACTER SET utf8mb4, d LONGBLOB,
        KEY (a), KEY (b), UNIQUE KEY (c, id)) ENGINE=InnoDB ${options};
      INSERT INTO ${table} SELECT (seq * 7919) % 1000003, REPEAT(CHAR(97 + seq % 26), seq % 180), seq % 100,
        SHA1(seq), IF(seq % 50 = 0, REPEAT(SHA1(seq), 40 + seq % 900), NULL) FROM seq_1_to_${rows};
      UPDATE ${table} SET a = CONCAT(a, id) WHERE b < 20;
      UPDATE ${table} SET d = CONCAT(COALESCE(d, ''), REPEAT('x', b * 300)) WHERE b % 9 = 0;
      UPDATE ${table} SET id = id + 2000000 WHERE b = 3;
      DELETE FROM ${table} WHERE b BETWEEN 30 AND 70;
      INSERT INTO ${table} SELECT 9000000 - seq, 'back', seq, 'x', NULL FROM seq_1_to_${rows >> 2};
      START TRANSACTION; DELETE FROM ${table} WHERE b > 10; UPDATE ${table} SET a = 'gone'; ROLLBACK;
      DELETE FROM ${table} WHERE b % 2 = 1;
    `)
  }
}

async function instantAlter(server: MariadbServer, { rows }: NastyOptions): Promise<void> {
  for (const format of ['REDUNDANT', 'DYNAMIC']) {
    const table = `nasty.instant_${format.toLowerCase()}`
    await server.sql(`USE nasty;
      CREATE TABLE ${table} (id INT PRIMARY KEY, a INT, b VARCHAR(50)) ENGINE=InnoDB CHARSET=latin1 ROW_FORMAT=${format};
      INSERT INTO ${table} SELECT seq, seq, SHA1(seq) FROM seq_1_to_${rows >> 1};
      ALTER TABLE ${table} ADD COLUMN c VARCHAR(30) DEFAULT 'added' AFTER id, ALGORITHM=INSTANT;
      INSERT INTO ${table} SELECT seq + 1000000, 'later', seq, SHA1(seq) FROM seq_1_to_${rows >> 2};
      ALTER TABLE ${table} DROP COLUMN a, ALGORITHM=INSTANT;
      UPDATE ${table} SET b = CONCAT(b, c) WHERE id % 3 = 0;
      ALTER TABLE ${table} ADD COLUMN e INT NOT NULL DEFAULT 7 FIRST, MODIFY COLUMN b VARCHAR(90), ALGORITHM=INSTANT;
      DELETE FROM ${table} WHERE id % 5 = 0;
      ALTER TABLE ${table} ADD INDEX (b), ALGORITHM=INPLACE;
      INSERT INTO ${table} SELECT 1, seq + 2000000, 'x', REPEAT('z', seq % 80) FROM seq_1_to_1000;
      CREATE TABLE ${table}_empty (a INT PRIMARY KEY, b INT) ENGINE=InnoDB ROW_FORMAT=${format};
      INSERT INTO ${table}_empty SELECT seq, seq FROM seq_1_to_500;
      ALTER TABLE ${table}_empty ADD COLUMN c INT DEFAULT 5 FIRST, ALGORITHM=INSTANT;
      DELETE FROM ${table}_empty;
      INSERT INTO ${table}_empty SELECT 1, seq, seq FROM seq_1_to_50;
      ALTER TABLE ${table} FORCE;
    `)
  }
}

async function otherIndexes(server: MariadbServer, { rows }: NastyOptions): Promise<void> {
  await server.sql(`USE nasty;
    CREATE TABLE nasty.geo (id INT PRIMARY KEY, g POINT NOT NULL, SPATIAL INDEX (g)) ENGINE=InnoDB;
    INSERT INTO nasty.geo SELECT seq, POINT((seq * 37) % 1009, (seq * 91) % 997) FROM seq_1_to_${rows >> 1};
    DELETE FROM nasty.geo WHERE id % 3 = 0;
    UPDATE nasty.geo SET g = POINT(id % 50, id % 49) WHERE id % 7 = 0;
    CREATE TABLE nasty.fts (id INT PRIMARY KEY, t TEXT, FULLTEXT (t)) ENGINE=InnoDB;
    INSERT INTO nasty.fts SELECT seq, CONCAT('word', seq % 97, ' common term', seq % 13, ' ', SHA1(seq)) FROM seq_1_to_${rows >> 3};
    DELETE FROM nasty.fts WHERE id % 4 = 0;
    SET GLOBAL innodb_optimize_fulltext_only = 1; OPTIMIZE TABLE nasty.fts; SET GLOBAL innodb_optimize_fulltext_only = 0;
    CREATE TABLE nasty.virt (id INT PRIMARY KEY, a INT, v INT AS (a * 2) VIRTUAL, s INT AS (a + 1) STORED, KEY (v), KEY (s));
    INSERT INTO nasty.virt (id, a) SELECT seq, seq % 1000 FROM seq_1_to_${rows >> 2};
    UPDATE nasty.virt SET a = a + 5 WHERE id % 2 = 0; DELETE FROM nasty.virt WHERE v > 1200;
    CREATE TABLE nasty.longkey (k VARCHAR(700) CHARACTER SET latin1 PRIMARY KEY, v VARCHAR(60), KEY (v)) ENGINE=InnoDB;
    INSERT INTO nasty.longkey SELECT CONCAT(SHA1(seq), REPEAT(CHAR(65 + seq % 26), seq % 600)), SHA1(seq) FROM seq_1_to_${rows >> 3};
    DELETE FROM nasty.longkey WHERE v < '8';
    CREATE TABLE nasty.pc (id INT PRIMARY KEY, a VARCHAR(900)) ENGINE=InnoDB PAGE_COMPRESSED=1;
    INSERT INTO nasty.pc SELECT seq, REPEAT(SHA1(seq), seq % 20) FROM seq_1_to_${rows >> 1};
    UPDATE nasty.pc SET a = REVERSE(a) WHERE id % 3 = 0; DELETE FROM nasty.pc WHERE id % 11 = 0;
    CREATE TABLE nasty.versioned (id INT PRIMARY KEY, a INT) ENGINE=InnoDB WITH SYSTEM VERSIONING;
    INSERT INTO nasty.versioned SELECT seq, seq FROM seq_1_to_2000; UPDATE nasty.versioned SET a = a + 1; DELETE FROM nasty.versioned WHERE id < 900;
    CREATE SEQUENCE nasty.sq ENGINE=InnoDB; SELECT NEXTVAL(nasty.sq), SETVAL(nasty.sq, 5000);
    CREATE TABLE nasty.parent (id INT PRIMARY KEY) ENGINE=InnoDB;
    CREATE TABLE nasty.child (id INT PRIMARY KEY, p INT, FOREIGN KEY (p) REFERENCES nasty.parent (id) ON DELETE CASCADE) ENGINE=InnoDB;
    INSERT INTO nasty.parent SELECT seq FROM seq_1_to_500; INSERT INTO nasty.child SELECT seq, 1 + seq % 500 FROM seq_1_to_5000;
    DELETE FROM nasty.parent WHERE id % 3 = 0;
  `)
}

async function tablespaces(server: MariadbServer, { rows }: NastyOptions): Promise<void> {
  await server.sql(`USE nasty;
    CREATE TABLE nasty.parted (id INT PRIMARY KEY, a VARCHAR(100)) ENGINE=InnoDB
      PARTITION BY RANGE (id) (PARTITION p0 VALUES LESS THAN (1000), PARTITION p1 VALUES LESS THAN (5000), PARTITION px VALUES LESS THAN MAXVALUE);
    INSERT INTO nasty.parted SELECT seq, SHA1(seq) FROM seq_1_to_${rows};
    ALTER TABLE nasty.parted TRUNCATE PARTITION p1; ALTER TABLE nasty.parted DROP PARTITION p0;
    CREATE TABLE nasty.doomed LIKE nasty.rf_dynamic; INSERT INTO nasty.doomed SELECT * FROM nasty.rf_dynamic; DROP TABLE nasty.doomed;
    CREATE TABLE nasty.emptied (id INT PRIMARY KEY AUTO_INCREMENT, a VARCHAR(300)) ENGINE=InnoDB;
    INSERT INTO nasty.emptied (a) SELECT REPEAT('q', seq % 300) FROM seq_1_to_${rows >> 1};
    TRUNCATE TABLE nasty.emptied; INSERT INTO nasty.emptied (a) VALUES ('one'), ('two');
    CREATE DATABASE nasty2; RENAME TABLE nasty.emptied TO nasty2.moved, nasty.longkey TO nasty.longer;
    ALTER TABLE nasty.rf_redundant ROW_FORMAT=COMPACT; ALTER TABLE nasty.rf_compact ADD COLUMN z INT, ALGORITHM=COPY;
    OPTIMIZE TABLE nasty.rf_dynamic;
    CREATE TABLE nasty.bulk (id INT PRIMARY KEY, a VARCHAR(200), KEY (a)) ENGINE=InnoDB;
    SET unique_checks = 0, foreign_key_checks = 0; START TRANSACTION;
    INSERT INTO nasty.bulk SELECT seq, REPEAT(SHA1(seq), 1 + seq % 4) FROM seq_1_to_${rows}; COMMIT;
    SET unique_checks = 1, foreign_key_checks = 1;
    CREATE TABLE nasty.sys (id INT PRIMARY KEY) ENGINE=InnoDB; DROP DATABASE IF EXISTS nasty3;
  `)
  await server.withConnection(async connection => {
    await connection.query('USE nasty')
    await connection.query("XA START 'x1'")
    await connection.query('INSERT INTO nasty.parent VALUES (100001)')
    await connection.query("XA END 'x1'")
    await connection.query("XA PREPARE 'x1'")
    await connection.query("XA COMMIT 'x1'")
    await connection.query('START TRANSACTION')
    await connection.query("INSERT INTO nasty.pc SELECT seq + 5000000, REPEAT('r', 800) FROM seq_1_to_2000")
    await connection.query('SAVEPOINT s1')
    await connection.query('DELETE FROM nasty.pc WHERE id < 3000')
    await connection.query('ROLLBACK TO s1')
    await connection.query('COMMIT')
  })
}

async function concurrentWriters(server: MariadbServer, { rows, statements }: NastyOptions): Promise<void> {
  await server.sql(`USE nasty;
    CREATE TABLE nasty.sb (id INT PRIMARY KEY AUTO_INCREMENT, k INT NOT NULL, c CHAR(120) NOT NULL, pad CHAR(60) NOT NULL, KEY (k)) ENGINE=InnoDB;
    INSERT INTO nasty.sb (k, c, pad) SELECT seq * 31 % ${rows}, SHA2(seq, 384), SHA1(seq) FROM seq_1_to_${rows};
  `)
  const writer = async (n: number): Promise<void> =>
    server.withConnection(async connection => {
      await connection.query('USE nasty')
      let x = n * 7919 + 1
      const random = (below: number): number => {
        x = (Math.imul(x, 1103515245) + 12345) & 0x7fffffff
        return (x >> 8) % below
      }
      for (let i = 0; i < statements; i++) {
        const id = 1 + random(rows)
        const statement = [
          `UPDATE nasty.sb SET k = k + 1 WHERE id = ${id}`,
          `UPDATE nasty.sb SET c = SHA2(${id + i}, 384) WHERE id BETWEEN ${id} AND ${id + 3}`,
          `DELETE FROM nasty.sb WHERE id = ${id}`,
          `INSERT IGNORE INTO nasty.sb (id, k, c, pad) VALUES (${id}, ${random(rows)}, SHA2(${i}, 384), '')`,
          `INSERT INTO nasty.sb (k, c, pad) VALUES (${random(rows)}, 'new', REPEAT('p', ${random(60)}))`,
        ][random(5)]!
        // Deadlocks are part of the game; their rollbacks are logged like everything else.
        await connection.query(statement).catch((error: { errno?: number }) => {
          if (error.errno !== 1213 && error.errno !== 1205) throw error
        })
      }
    })
  await Promise.all(Array.from({ length: 6 }, (_, n) => writer(n)))
}

/**
 * Fills the undo tablespaces until InnoDB starts one of them over (TRIM_PAGES). Needs two of them at least,
 * innodb_undo_log_truncate=ON and the smallest innodb_max_undo_log_size.
 */
export async function truncateUndo(server: MariadbServer, deadlineMs = 120_000): Promise<void> {
  await server.sql(`
    CREATE DATABASE IF NOT EXISTS nasty; USE nasty;
    CREATE TABLE nasty.fat (id INT PRIMARY KEY, a VARCHAR(400) CHARACTER SET latin1) ENGINE=InnoDB;
    INSERT INTO nasty.fat SELECT seq, REPEAT('u', 350) FROM seq_1_to_20000;
  `)
  const deadline = performance.now() + deadlineMs
  for (let round = 0; ; round++) {
    await server.sql(`UPDATE nasty.fat SET a = REPEAT(CHAR(97 + ${round} % 26), 350)`)
    await server.sql('SET GLOBAL innodb_max_purge_lag_wait = 0')
    const [status] = await server.sql<{ Value: string }>("SHOW GLOBAL STATUS LIKE 'Innodb_undo_truncations'")
    if (Number(status?.Value) >= 2) return
    if (performance.now() > deadline) throw new Error('no undo tablespace was truncated')
  }
}

/** Runs everything. The server needs undo truncation switched on for that part of it to happen. */
export async function runNastySql(server: MariadbServer, options: NastyOptions): Promise<void> {
  await server.sql('CREATE DATABASE nasty')
  await rowFormats(server, options)
  await instantAlter(server, options)
  await otherIndexes(server, options)
  await tablespaces(server, options)
  await concurrentWriters(server, options)
  await server.sql(
    `USE nasty; UPDATE nasty.bulk SET a = CONCAT('u', a); UPDATE nasty.sb SET pad = 'same'; DELETE FROM nasty.bulk WHERE id % 2`,
  )
  await server.sql('SET GLOBAL innodb_max_purge_lag_wait = 0')
}
