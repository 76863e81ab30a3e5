/** Which files of a datadir are kept beside InnoDB's: everything a server needs to start on a copy, nothing else. */
import { basename, matchesGlob } from 'node:path'

/** InnoDB's own: kept page by page, or made anew by an export. */
const INNODB = [
  /^ibdata\d+$/,
  /^undo\d{3}$/,
  /\.ibd$/,
  /\.isl$/,
  /^ib_logfile\d+$/,
  /^ibtmp\d*$/,
  /^ib_buffer_pool/,
]

/** Of one running server, of no use in a copy: sockets, process ids, logs, replication positions, caches, core files. */
const TRANSIENT = [
  /\.pid$/,
  /\.sock(\.lock)?$/,
  /\.err(-old)?$/,
  /^[^/]+\.log$/,
  /^[^/]*-bin\.(\d{6,}|index|state)$/,
  /^[^/]*-bin\.\d{6,}\.idx$/,
  /^[^/]*-relay-bin/,
  /^(master|relay-log)(-.*)?\.info$/,
  /^multi-master\.info$/,
  /^(galera\.cache|gvwstate\.dat)$/,
  /^core(\.\d+)?$/,
  /^#sql-temptable-/,
  /^(xtrabackup|mariadb_backup)_/,
]
/** Logs by their names that a server does need: Aria's, and the records of an unfinished DDL statement. */
const NEEDED = [/^aria_log\./, /^ddl_recovery(-backup)?\.log$/, /^tc\.log$/]

const SKIPPED_DIRECTORIES = /^(lost\+found|#innodb_.*|#rocksdb|\.rocksdb)$/

export interface FileRules {
  /** Globs of paths relative to the datadir that are kept although the rules here would not. */
  readonly include?: readonly string[]
  /** Globs of paths that are not kept; stronger than `include`. */
  readonly exclude?: readonly string[]
}

/** @param path relative to the datadir, with `/` */
export function isCaptured(path: string, rules: FileRules = {}): boolean {
  if (rules.exclude?.some(glob => matchesGlob(path, glob))) return false
  const name = basename(path)
  if (INNODB.some(pattern => pattern.test(name))) return false
  if (rules.include?.some(glob => matchesGlob(path, glob))) return true
  if (path.includes('\\') || hasControlCharacters(path)) return false
  if (!path.includes('/') && NEEDED.some(pattern => pattern.test(name))) return true
  // Patterns about whole files of the server apply at the top; a table may be called "core".
  return path.includes('/') ? !/^#sql-temptable-/.test(name) : !TRANSIENT.some(pattern => pattern.test(name))
}

export function isWatchedDirectory(name: string): boolean {
  return !SKIPPED_DIRECTORIES.test(name)
}

function hasControlCharacters(path: string): boolean {
  for (let i = 0; i < path.length; i++) {
    const c = path.charCodeAt(i)
    if (c < 0x20 || c === 0x7f) return true
  }
  return false
}

/**
 * The order in which files that changed together are read. Aria writes its log before its tables and its control file
 * last, so a copy that takes them in the opposite order holds a log that knows all that the tables hold.
 */
export function captureOrder(path: string): number {
  if (path === 'aria_log_control') return 2
  if (/^aria_log\./.test(path)) return 1
  return 0
}
