// One of everything that InnoDB writes differently: the SQL of a workload that visits each kind of page.

export type ZooOptions = {
  /** innodb_page_size of the server: ROW_FORMAT=COMPRESSED exists up to 16 KiB only. */
  pageSizeBytes: number
  /** Database to use; it must not exist. Default `zoo`. */
  database?: string
  /** Multiplies the number of rows. Default 1: about 20 MB of redo. */
  scale?: number
}

/** SQL text for the command line client (it uses DELIMITER). Needs no server option but InnoDB's own. */
export function zooSql(options: ZooOptions): string {
  const db = options.database ?? 'zoo'
  const rows = Math.round(1000 * (options.scale ?? 1))
  return [
    `CREATE DATABASE ${db}; USE ${db};`,
    'SET SESSION max_recursive_iterations = 100000000;',
    rowFormats(rows, options.pageSizeBytes),
    blobs(rows),
    columnKinds(rows),
    searches(rows),
    transactions(rows),
    alters(rows),
    lifecycle(rows),
  ].join('\n')
}

function rowFormats(rows: number, pageSizeBytes: number): string {
  const formats = [
    'ROW_FORMAT=REDUNDANT',
    'ROW_FORMAT=COMPACT',
    'ROW_FORMAT=DYNAMIC',
    'PAGE_COMPRESSED=1',
    ...(pageSizeBytes <= 16384 ? ['ROW_FORMAT=COMPRESSED KEY_BLOCK_SIZE=2', 'ROW_FORMAT=COMPRESSED'] : []),
  ]
  return formats
    .map(
      (format, index) => `
CREATE TABLE rows${index} (id INT PRIMARY KEY, a VARCHAR(100), b CHAR(20), n BIGINT NULL, KEY (a), KEY (b, n)) ENGINE=InnoDB ${format};
INSERT INTO rows${index} SELECT seq, REPEAT(MD5(seq), 1 + seq % 3), SUBSTR(SHA1(seq), 1, seq % 20), NULLIF(seq % 10, 3) FROM seq_1_to_${rows};
UPDATE rows${index} SET a = REVERSE(a) WHERE id % 3 = 0;
UPDATE rows${index} SET b = '' , n = NULL WHERE id % 5 = 0;
DELETE FROM rows${index} WHERE id % 7 = 0;
INSERT INTO rows${index} SELECT seq, 'again', 'again', seq FROM seq_1_to_${rows} WHERE seq % 14 = 0;`,
    )
    .join('\n')
}

function blobs(rows: number): string {
  return `
CREATE TABLE blobs (id INT PRIMARY KEY, t MEDIUMTEXT, b LONGBLOB) ENGINE=InnoDB;
INSERT INTO blobs SELECT seq, REPEAT(MD5(seq), seq * 13 % 2000), REPEAT(UNHEX(SHA1(seq)), seq * 7 % 3000) FROM seq_1_to_${Math.ceil(rows / 10)};
UPDATE blobs SET t = CONCAT(t, REPEAT('x', 9000)) WHERE id % 4 = 0;
UPDATE blobs SET b = NULL WHERE id % 6 = 0;
DELETE FROM blobs WHERE id % 9 = 0;`
}

function columnKinds(rows: number): string {
  return `
CREATE TABLE computed (id INT PRIMARY KEY, a INT, v INT AS (a * 2) VIRTUAL, s VARCHAR(50) AS (CONCAT('row ', a)) STORED, KEY (v), KEY (s)) ENGINE=InnoDB;
INSERT INTO computed (id, a) SELECT seq, seq * 3 % 101 FROM seq_1_to_${rows};
UPDATE computed SET a = a + 1 WHERE id % 2 = 0;
CREATE TABLE parent (id INT PRIMARY KEY, name VARCHAR(30)) ENGINE=InnoDB;
CREATE TABLE child (id INT PRIMARY KEY, parent_id INT, FOREIGN KEY (parent_id) REFERENCES parent (id) ON DELETE CASCADE ON UPDATE CASCADE) ENGINE=InnoDB;
INSERT INTO parent SELECT seq, CONCAT('p', seq) FROM seq_1_to_100;
INSERT INTO child SELECT seq, 1 + seq % 100 FROM seq_1_to_${rows};
DELETE FROM parent WHERE id % 10 = 0;
UPDATE parent SET id = id + 1000 WHERE id < 20;
CREATE TABLE history (id INT PRIMARY KEY, a INT) ENGINE=InnoDB WITH SYSTEM VERSIONING;
INSERT INTO history SELECT seq, seq FROM seq_1_to_${Math.ceil(rows / 4)};
UPDATE history SET a = a + 1 WHERE id % 2 = 0;
DELETE FROM history WHERE id % 3 = 0;
CREATE SEQUENCE counter START WITH 10 INCREMENT BY 3 CACHE 5 ENGINE=InnoDB;
DO NEXTVAL(counter); DO NEXTVAL(counter); DO SETVAL(counter, 1000); DO NEXTVAL(counter);
CREATE TABLE longkeys (k VARCHAR(180) CHARACTER SET utf8mb4 PRIMARY KEY, w VARCHAR(150) CHARACTER SET utf8mb4, KEY (w)) ENGINE=InnoDB;
INSERT INTO longkeys SELECT CONCAT(REPEAT('ä', 120), MD5(seq)), REPEAT(MD5(seq * 17), 4) FROM seq_1_to_${rows};`
}

function searches(rows: number): string {
  return `
CREATE TABLE texts (id INT UNSIGNED AUTO_INCREMENT PRIMARY KEY, body TEXT, FULLTEXT KEY (body)) ENGINE=InnoDB;
INSERT INTO texts (body) SELECT CONCAT('vellum ', MD5(seq), ' quill ', SHA1(seq % 50)) FROM seq_1_to_${Math.ceil(rows / 5)};
DELETE FROM texts WHERE id % 4 = 0;
UPDATE texts SET body = 'scraped and written again' WHERE id % 5 = 0;
SET GLOBAL innodb_optimize_fulltext_only = 1; OPTIMIZE TABLE texts; SET GLOBAL innodb_optimize_fulltext_only = 0;
CREATE TABLE places (id INT PRIMARY KEY, p GEOMETRY NOT NULL, SPATIAL KEY (p)) ENGINE=InnoDB;
INSERT INTO places SELECT seq, ST_PointFromText(CONCAT('POINT(', seq * 37 % 1000, ' ', seq * 91 % 1000, ')')) FROM seq_1_to_${rows};
UPDATE places SET p = ST_PointFromText('POINT(5 5)') WHERE id % 11 = 0;
DELETE FROM places WHERE id % 6 = 0;`
}

function transactions(rows: number): string {
  return `
CREATE TABLE undone (id INT PRIMARY KEY, a VARCHAR(200), KEY (a)) ENGINE=InnoDB;
INSERT INTO undone SELECT seq, MD5(seq) FROM seq_1_to_${rows};
BEGIN; UPDATE undone SET a = REPEAT(a, 5); DELETE FROM undone WHERE id % 2 = 0; ROLLBACK;
BEGIN; INSERT INTO undone SELECT ${rows} + seq, 'kept' FROM seq_1_to_50; SAVEPOINT s; UPDATE undone SET a = 'not kept'; ROLLBACK TO s; COMMIT;
XA START 'one'; UPDATE undone SET a = 'xa' WHERE id < 50; XA END 'one'; XA PREPARE 'one'; XA COMMIT 'one';
XA START 'two'; DELETE FROM undone WHERE id < 90; XA END 'two'; XA PREPARE 'two'; XA ROLLBACK 'two';
CREATE TABLE bulk (id INT PRIMARY KEY, a VARCHAR(100), KEY (a)) ENGINE=InnoDB;
SET unique_checks = 0, foreign_key_checks = 0;
BEGIN; INSERT INTO bulk SELECT seq, MD5(seq) FROM seq_1_to_${rows * 3}; COMMIT;
SET unique_checks = 1, foreign_key_checks = 1;
DELIMITER //
CREATE PROCEDURE churn(steps INT)
BEGIN
  DECLARE i INT DEFAULT 0;
  WHILE i < steps DO
    UPDATE bulk SET a = SHA1(CONCAT(a, i)) WHERE id BETWEEN 1 + (i * 97) % ${rows} AND 20 + (i * 97) % ${rows};
    DELETE FROM bulk WHERE id = 1 + (i * 31) % ${rows * 3};
    INSERT IGNORE INTO bulk VALUES (1 + (i * 31) % ${rows * 3}, REPEAT('y', i % 100));
    SET i = i + 1;
  END WHILE;
END//
DELIMITER ;
CALL churn(${Math.ceil(rows / 4)});`
}

function alters(rows: number): string {
  return `
CREATE TABLE altered (id INT PRIMARY KEY, a VARCHAR(50), b INT) ENGINE=InnoDB;
INSERT INTO altered SELECT seq, MD5(seq), seq FROM seq_1_to_${rows};
ALTER TABLE altered ADD COLUMN c INT DEFAULT 7, ALGORITHM=INSTANT;
INSERT INTO altered SELECT ${rows} + seq, 'new', seq, seq FROM seq_1_to_100;
ALTER TABLE altered ADD COLUMN first_one VARCHAR(20) DEFAULT 'first' FIRST, ALGORITHM=INSTANT;
ALTER TABLE altered DROP COLUMN b, ALGORITHM=INSTANT;
UPDATE altered SET c = c + 1 WHERE id % 2 = 0;
UPDATE altered SET a = NULL WHERE id % 9 = 0;
ALTER TABLE altered ADD KEY (a), ADD UNIQUE KEY (id, c), ALGORITHM=INPLACE;
ALTER TABLE altered DROP KEY a, ALGORITHM=INPLACE;
ALTER TABLE altered ENGINE=InnoDB, ALGORITHM=INPLACE;
ALTER TABLE altered MODIFY a VARCHAR(60), ALGORITHM=INSTANT;
ALTER TABLE altered ROW_FORMAT=REDUNDANT, ALGORITHM=COPY;
ALTER TABLE altered ADD COLUMN d INT NOT NULL DEFAULT 5, ALGORITHM=INSTANT;
CREATE TABLE parts (id INT PRIMARY KEY, a VARCHAR(50)) ENGINE=InnoDB PARTITION BY RANGE (id) (PARTITION p0 VALUES LESS THAN (${Math.ceil(rows / 3)}), PARTITION p1 VALUES LESS THAN (${rows}), PARTITION p2 VALUES LESS THAN MAXVALUE);
INSERT INTO parts SELECT seq, MD5(seq) FROM seq_1_to_${rows * 2};
ALTER TABLE parts TRUNCATE PARTITION p0;
ALTER TABLE parts REORGANIZE PARTITION p2 INTO (PARTITION p2 VALUES LESS THAN (${rows + 100}), PARTITION p3 VALUES LESS THAN MAXVALUE);
ALTER TABLE parts DROP PARTITION p1;
CREATE TABLE single (id INT PRIMARY KEY, a VARCHAR(50)) ENGINE=InnoDB;
ALTER TABLE parts EXCHANGE PARTITION p0 WITH TABLE single;`
}

function lifecycle(rows: number): string {
  return `
CREATE TABLE renamed (id INT PRIMARY KEY, a VARCHAR(50)) ENGINE=InnoDB;
INSERT INTO renamed SELECT seq, MD5(seq) FROM seq_1_to_${rows};
RENAME TABLE renamed TO renamed_again;
CREATE TABLE emptied LIKE renamed_again;
INSERT INTO emptied SELECT * FROM renamed_again;
TRUNCATE TABLE emptied;
INSERT INTO emptied SELECT * FROM renamed_again WHERE id % 10 = 0;
CREATE TABLE dropped LIKE renamed_again;
INSERT INTO dropped SELECT * FROM renamed_again;
DROP TABLE dropped;
DELETE FROM renamed_again WHERE id % 2 = 0;
OPTIMIZE TABLE renamed_again;
CREATE OR REPLACE TABLE emptied (id INT PRIMARY KEY, other VARCHAR(9)) ENGINE=InnoDB;
INSERT INTO emptied VALUES (1, 'one');
CREATE TABLE \`odd name, with ünïcode\` (id INT PRIMARY KEY) ENGINE=InnoDB;
INSERT INTO \`odd name, with ünïcode\` VALUES (1);`
}

/**
 * SQL that fills the undo tablespaces so that InnoDB truncates one soon after. The datadir must be made
 * with `undoTruncationArgs`.
 */
export function undoTruncationSql(database = 'undo_churn'): string {
  return `
CREATE DATABASE ${database}; USE ${database};
CREATE TABLE t (id INT PRIMARY KEY, a VARCHAR(1000)) ENGINE=InnoDB;
INSERT INTO t SELECT seq, REPEAT('a', 900) FROM seq_1_to_12000;
BEGIN; UPDATE t SET a = REPEAT('b', 900); UPDATE t SET a = REPEAT('c', 900); COMMIT;
BEGIN; UPDATE t SET a = REPEAT('d', 900); UPDATE t SET a = REPEAT('e', 900); ROLLBACK;
SET GLOBAL innodb_max_purge_lag_wait = 0;
BEGIN; UPDATE t SET a = REPEAT('f', 900); COMMIT;
SET GLOBAL innodb_max_purge_lag_wait = 0;`
}

/**
 * Options with which undo tablespaces exist and are cut soon. They go into `installArgs`, since a datadir
 * made without undo tablespaces keeps its undo in the system tablespace for good.
 */
export const undoTruncationArgs = [
  '--innodb-undo-tablespaces=3',
  '--innodb-undo-log-truncate=ON',
  '--innodb-max-undo-log-size=10485760',
  '--innodb-purge-rseg-truncate-frequency=1',
] as const
