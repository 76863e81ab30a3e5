// Finds the MariaDB programs on this machine, without changing anything.
import { spawnSync } from 'node:child_process'
import { accessSync, constants, realpathSync } from 'node:fs'
import { delimiter, dirname, join } from 'node:path'

/** The release that Palimpsest is developed and tested with. */
export const testedRelease = '10.11'

/** What is supported, in words for people. */
export const supportedText =
  'Palimpsest reads the redo log of MariaDB 10.8 to 11.x and is tested with 10.11 (10.11.18 on Debian 12)'

/** @param {string} file @returns {boolean} */
function isExecutable(file) {
  try {
    accessSync(file, constants.X_OK)
    return true
  } catch {
    return false
  }
}

/** Where programs may lie, in the order they are tried. @returns {string[]} */
function searchPath() {
  const own = process.env.PALIMPSEST_MARIADB_BASEDIR
  const inBase = own ? [join(own, 'sbin'), join(own, 'bin'), join(own, 'libexec'), join(own, 'scripts')] : []
  const path = (process.env.PATH ?? '').split(delimiter).filter(Boolean)
  return [
    ...inBase,
    ...path,
    '/usr/sbin',
    '/usr/libexec',
    '/usr/local/sbin',
    '/usr/local/bin',
    '/usr/local/mysql/bin',
    '/usr/local/mariadb/bin',
    '/opt/homebrew/opt/mariadb@10.11/bin',
    '/opt/homebrew/opt/mariadb/bin',
  ]
}

/**
 * @param {string[]} names the same program's names, newest first
 * @param {string[]} [directories]
 * @returns {string | undefined} absolute path of the first that can be executed
 */
export function findProgram(names, directories = searchPath()) {
  for (const name of names) {
    for (const directory of directories) {
      const file = join(directory, name)
      if (isExecutable(file)) return file
    }
  }
  return undefined
}

/**
 * @param {string} mariadbd path of a server
 * @returns {{version: string, isMariadb: boolean} | undefined} its version, e.g. "10.11.18"
 */
function serverVersion(mariadbd) {
  const result = spawnSync(mariadbd, ['--no-defaults', '--version'], { encoding: 'utf8' })
  const match = /Ver (\d+\.\d+\.\d+)(\S*)/.exec(result.stdout ?? '')
  if (match === null) return undefined
  return { version: match[1], isMariadb: /mariadb/i.test(result.stdout) }
}

/** @param {string} version @returns {boolean} whether it writes the redo format that Palimpsest reads */
export function isSupported(version) {
  const [major, minor] = version.split('.').map(Number)
  return major === 11 || (major === 10 && minor >= 8)
}

/**
 * Looks for a server, the program that makes a datadir, and the client programs.
 * PALIMPSEST_MARIADB_BASEDIR names an installation to prefer over those on the PATH.
 * @returns {import('./mariadb.js').FoundMariadb}
 */
export function findMariadb() {
  const directories = searchPath()
  const mariadbd = findProgram(['mariadbd', 'mysqld'], directories)
  if (mariadbd === undefined) return { ok: false, reason: 'no mariadbd was found on this machine' }
  const server = serverVersion(mariadbd)
  if (server === undefined) return { ok: false, reason: `${mariadbd} --version could not be run or read` }
  if (!server.isMariadb)
    return { ok: false, reason: `${mariadbd} is MySQL ${server.version}, not MariaDB; ${supportedText}` }
  if (!isSupported(server.version)) {
    return { ok: false, reason: `${mariadbd} is MariaDB ${server.version}; ${supportedText}` }
  }

  // Programs beside the server come first, so that two installations are not mixed.
  const base = dirname(dirname(realpathSync(mariadbd)))
  const beside = [join(base, 'bin'), join(base, 'scripts'), join(base, 'sbin'), ...directories]
  const installDb = findProgram(['mariadb-install-db', 'mysql_install_db'], beside)
  const client = findProgram(['mariadb', 'mysql'], beside)
  if (installDb === undefined) return { ok: false, reason: `${mariadbd} is there, but no mariadb-install-db` }
  if (client === undefined)
    return { ok: false, reason: `${mariadbd} is there, but no client program "mariadb"` }
  return {
    ok: true,
    version: server.version,
    tested: server.version.startsWith(`${testedRelease}.`),
    mariadbd,
    installDb,
    client,
    check: findProgram(['mariadb-check', 'mysqlcheck'], beside),
    dump: findProgram(['mariadb-dump', 'mysqldump'], beside),
    innochecksum: findProgram(['innochecksum'], beside),
    backup: findProgram(['mariadb-backup', 'mariabackup'], beside),
    sysbench: findProgram(['sysbench']),
    basedir: base,
  }
}
