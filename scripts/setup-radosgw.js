// Sees to it that there is an S3 service to test with: Ceph's radosgw and what it stands on, from the distribution. Uses what
// is installed, or, on a machine with apt, installs it (some 110 MB to fetch). Run directly it prints what it found.
//
// It starts nothing: a test brings up a Ceph of its own, in a directory of its own (test/support/radosgw.ts).
import { argv } from 'node:process'
import { fileURLToPath } from 'node:url'
import { apt, complaint, install, privilege } from './lib/apt.js'
import { runMain, say } from './lib/checkout.js'
import { findRadosgw, radosgwPackages } from './lib/radosgw.js'

/** @returns {import('./lib/radosgw.js').FoundRadosgw} */
export function setupRadosgw() {
  const found = findRadosgw()
  if (found.ok) return found
  if (process.env.PALIMPSEST_NO_INSTALL === '1') {
    return { ok: false, reason: `${found.reason}, and PALIMPSEST_NO_INSTALL=1 forbids installing it` }
  }
  const right = privilege()
  if (typeof right === 'string') return { ok: false, reason: `${found.reason}, and ${right}` }
  say('installing Ceph and its S3 gateway from the distribution (apt-get)…')
  const update = apt(right, ['update'])
  const problem = install(right, [...radosgwPackages])
  if (problem !== undefined) {
    const why = update.ok ? problem : complaint(update.output)
    return { ok: false, reason: `${found.reason}, and installing it failed: ${why}` }
  }
  return findRadosgw()
}

if (argv[1] === fileURLToPath(import.meta.url)) {
  await runMain(async () => {
    const found = setupRadosgw()
    if (!found.ok) {
      say(`palimpsest: ${found.reason}`)
      return 1
    }
    for (const [name, path] of Object.entries(found.programs)) process.stdout.write(`${name}: ${path}\n`)
    return 0
  })
}
