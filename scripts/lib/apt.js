// Installs Debian packages where that is possible and allowed. What it never does: remove or downgrade a package, or let
// one start a service.
import { spawnSync } from 'node:child_process'
import { existsSync, rmSync, writeFileSync } from 'node:fs'
import { findProgram } from './mariadb.js'

const policyFile = '/usr/sbin/policy-rc.d'

/**
 * @typedef {{command: string, before: string[], isRoot: boolean}} Privilege
 */

/** @returns {Privilege | string} how to run apt-get with the right to install, or why that is not possible */
export function privilege() {
  if (findProgram(['apt-get']) === undefined) return 'this machine has no apt-get to install it with'
  if (process.getuid?.() === 0) return { command: 'apt-get', before: [], isRoot: true }
  if (spawnSync('sudo', ['-n', 'true'], { stdio: 'ignore' }).status === 0) {
    return { command: 'sudo', before: ['-n', 'DEBIAN_FRONTEND=noninteractive', 'apt-get'], isRoot: false }
  }
  return 'installing it needs root (or sudo without a password)'
}

/**
 * @param {Privilege} right
 * @param {string[]} args
 * @returns {{ok: boolean, output: string}}
 */
export function apt(right, args) {
  const result = spawnSync(
    right.command,
    [...right.before, '-q', '-y', '-o', 'DPkg::Lock::Timeout=120', ...args],
    {
      encoding: 'utf8',
      maxBuffer: 64 << 20,
      env: { ...process.env, DEBIAN_FRONTEND: 'noninteractive', LC_ALL: 'C' },
      stdio: ['ignore', 'pipe', 'pipe'],
    },
  )
  return {
    ok: result.status === 0,
    output: `${result.stdout ?? ''}${result.stderr ?? ''}${result.error?.message ?? ''}`,
  }
}

/** The line of apt's output that says what went wrong. @param {string} output */
export function complaint(output) {
  const lines = output.trim().split('\n')
  return (lines.find(line => /^E:/.test(line)) ?? lines.at(-1) ?? '').trim()
}

/**
 * Simulates an installation first and goes through with it only if it neither removes nor downgrades.
 * @param {Privilege} right
 * @param {string[]} packages
 * @returns {string | undefined} what went wrong
 */
export function install(right, packages) {
  const args = ['install', '--no-install-recommends', ...packages]
  const plan = apt(right, ['-s', ...args])
  if (!plan.ok) return complaint(plan.output)
  const removed = /^Remv (\S+)/m.exec(plan.output)
  if (removed !== null) return `apt would have to remove ${removed[1]}, which is not Palimpsest's to do`
  // Debian starts a service as it is installed unless this file says no. One that is there already
  // belongs to the machine's owner, and stays, whatever it says.
  const startsService = packages.some(name => /^(mariadb-server=|ceph-|radosgw)/.test(name))
  const ownPolicy = startsService && right.isRoot && !existsSync(policyFile)
  const removePolicy = () => rmSync(policyFile, { force: true })
  if (ownPolicy) {
    writeFileSync(policyFile, '#!/bin/sh\nexit 101\n', { mode: 0o755 })
    process.on('exit', removePolicy)
  }
  try {
    const done = apt(right, args)
    return done.ok ? undefined : complaint(done.output)
  } finally {
    if (ownPolicy) {
      removePolicy()
      process.removeListener('exit', removePolicy)
    }
  }
}
