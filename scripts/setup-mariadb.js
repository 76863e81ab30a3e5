// Sees to it that there is a MariaDB server to work with: uses the one that is installed, or, on a
// machine with apt, installs one. Run directly it prints what it found.
//
// What it never does: touch a MariaDB or MySQL server that is already there, start a system-wide
// server, remove or downgrade a package, or install anything when PALIMPSEST_NO_INSTALL=1.
import { spawnSync } from 'node:child_process'
import { existsSync } from 'node:fs'
import { argv } from 'node:process'
import { fileURLToPath } from 'node:url'
import { apt, complaint, install, privilege } from './lib/apt.js'
import { runMain, say } from './lib/checkout.js'
import { findMariadb, findProgram, supportedText } from './lib/mariadb.js'

/** The version whose source the tests were checked against; Debian 12 main carries it. */
const debianVersion = '1:10.11.18-0+deb12u1'

/** Server and clients, without the package that registers a system service. */
const corePackages = ['mariadb-server-core', 'mariadb-client-core', 'mariadb-client']
/** What these rest on. Pinned too, for else apt takes a newer release from the security archive. */
const libraryPackages = ['mariadb-common', 'libmariadb3']
/** What the tests use beyond that: a load, a second opinion on backups, MariaDB's own test suites. */
const testPackages = ['mariadb-backup']
const suitePackages = ['mariadb-server', 'mariadb-test', 'mariadb-test-data']

/**
 * @typedef {import('./lib/apt.js').Privilege} Privilege
 * @typedef {import('./lib/mariadb.js').FoundMariadb} FoundMariadb
 */

/** @param {string} name @returns {string | undefined} the installed version of a package */
function installedVersion(name) {
  // biome-ignore lint/suspicious/noTemplateCurlyInString: these are dpkg-query's own fields
  const format = '${db:Status-Abbrev}${Version}'
  const result = spawnSync('dpkg-query', ['-W', '-f', format, name], { encoding: 'utf8' })
  const match = /^ii (\S+)/.exec(result.stdout ?? '')
  return match?.[1]
}

/** @param {string} name @returns {string[]} the versions of a package that the archives offer */
function offeredVersions(name) {
  const result = spawnSync('apt-cache', ['madison', name], { encoding: 'utf8' })
  return (result.stdout ?? '')
    .split('\n')
    .map(line => line.split('|')[1]?.trim())
    .filter(version => version !== undefined && version !== '')
}

/**
 * A 10.11 release to install: the known one where it is offered, else the archive's newest 10.11.
 * @returns {string | undefined}
 */
function chooseVersion() {
  const offered = offeredVersions('mariadb-server-core')
  if (offered.includes(debianVersion)) return debianVersion
  return offered.find(version => /^(\d+:)?10\.11\./.test(version))
}

/**
 * Arguments for one install command that puts the server there at `version`. A library that another
 * program brought along stays as it is.
 * @param {string} version
 * @param {string[]} packages
 */
function pinned(version, packages) {
  const libraries = libraryPackages.filter(name => installedVersion(name) === undefined)
  return [...packages, ...libraries].map(name => `${name}=${version}`)
}

/**
 * Finds MariaDB, installing it where that is possible and allowed.
 * @param {{profile: 'start' | 'test'}} options 'test' also sees to sysbench, mariadb-backup and, for root, to
 *   MariaDB's test suites
 * @returns {Promise<FoundMariadb>}
 */
export async function setupMariadb({ profile }) {
  const found = findMariadb()
  if (found.ok) {
    if (!found.tested) say(`note: MariaDB ${found.version} is used as it is; ${supportedText}`)
    if (profile === 'test') addTestTools(found)
    return findMariadb()
  }
  // A server that is there but cannot be used is its owner's: installing another would replace it.
  const present = findProgram(['mariadbd', 'mysqld']) !== undefined
  if (present && !/no client program|no mariadb-install-db/.test(found.reason)) return found
  if (process.env.PALIMPSEST_NO_INSTALL === '1') {
    return { ok: false, reason: `${found.reason}, and PALIMPSEST_NO_INSTALL=1 forbids installing it` }
  }
  const right = privilege()
  if (typeof right === 'string') {
    return {
      ok: false,
      reason: `${found.reason}, and ${right}; install MariaDB 10.11 by hand. ${supportedText}`,
    }
  }

  say('installing MariaDB from the distribution (apt-get)…')
  const update = apt(right, ['update'])
  const version = chooseVersion()
  if (version === undefined) {
    const why = update.ok
      ? 'the archives of this distribution offer no MariaDB 10.11'
      : complaint(update.output)
    return { ok: false, reason: `${found.reason}, and ${why}. ${supportedText}` }
  }
  const problem = install(right, pinned(version, corePackages))
  if (problem !== undefined) return { ok: false, reason: `installing MariaDB ${version} failed: ${problem}` }
  const now = findMariadb()
  if (now.ok && profile === 'test') addTestTools(now, right)
  return findMariadb()
}

/**
 * Installs what the tests use beyond the server, each step by itself: a test that misses its tool is
 * skipped and says so, the others run.
 * @param {FoundMariadb & {ok: true}} found
 * @param {Privilege} [known]
 */
function addTestTools(found, known) {
  if (process.env.PALIMPSEST_NO_INSTALL === '1') return
  const version = installedVersion('mariadb-server-core')
  const wants = []
  if (found.sysbench === undefined) wants.push(['sysbench'])
  if (version !== undefined) {
    if (found.backup === undefined) wants.push(pinned(version, testPackages))
    // The suites bring the package that registers a service. That is right in a container for tests, not
    // on a machine that would start it at its next boot.
    const container = process.getuid?.() === 0 && !existsSync('/run/systemd/system')
    if (container && installedVersion('mariadb-test') === undefined) {
      wants.push(pinned(version, suitePackages))
    }
  }
  if (wants.length === 0) return
  const right = known ?? privilege()
  if (typeof right === 'string') {
    say(`some tools for tests are missing (${wants.flat().join(' ')}), and ${right}`)
    return
  }
  if (known === undefined) apt(right, ['update'])
  for (const packages of wants) {
    say(`installing ${packages.join(' ')}…`)
    const problem = install(right, packages)
    if (problem !== undefined) say(`could not install ${packages.join(' ')}: ${problem}`)
  }
}

if (argv[1] === fileURLToPath(import.meta.url)) {
  await runMain(async () => {
    const found = await setupMariadb({ profile: argv.includes('--test') ? 'test' : 'start' })
    if (!found.ok) {
      say(`palimpsest: ${found.reason}`)
      return 1
    }
    const lines = Object.entries(found).map(([name, value]) => `${name}: ${value ?? '-'}\n`)
    process.stdout.write(lines.join(''))
    return 0
  })
}
