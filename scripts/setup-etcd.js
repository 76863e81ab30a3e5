// Sees to it that there is an etcd to compare with: uses the one on the PATH, or fetches Debian's package and unpacks it under
// .palimpsest/bench/etcd. Nothing is installed, nothing is started, and no right is needed that apt-get download does not need.
import { spawnSync } from 'node:child_process'
import { existsSync, mkdirSync, mkdtempSync, readdirSync, rmSync } from 'node:fs'
import { delimiter, join } from 'node:path'
import { root, runMain, SetupError, say } from './lib/checkout.js'

const unpacked = join(root, '.palimpsest/bench/etcd')

/** @param {string} command @param {string[]} args @param {string} cwd */
function run(command, args, cwd) {
  const result = spawnSync(command, args, { cwd, encoding: 'utf8', env: { ...process.env, LC_ALL: 'C' } })
  if (result.status === 0) return
  const words = `${result.stdout ?? ''}${result.stderr ?? ''}${result.error?.message ?? ''}`.trim()
  throw new SetupError(`${command} ${args.join(' ')} failed: ${words.split('\n').at(-1) ?? ''}`)
}

function main() {
  const onPath = (process.env.PATH ?? '')
    .split(delimiter)
    .map(dir => join(dir, 'etcd'))
    .find(existsSync)
  const program = onPath ?? join(unpacked, 'usr/bin/etcd')
  if (!existsSync(program)) {
    if (process.env.PALIMPSEST_NO_INSTALL === '1')
      throw new SetupError('there is no etcd, and PALIMPSEST_NO_INSTALL=1 forbids fetching it')
    mkdirSync(join(root, '.palimpsest'), { recursive: true })
    const scratch = mkdtempSync(join(root, '.palimpsest/etcd-'))
    try {
      run('apt-get', ['-q', 'download', 'etcd-server'], scratch)
      const file = readdirSync(scratch).find(name => name.endsWith('.deb'))
      if (file === undefined) throw new SetupError('apt-get downloaded nothing')
      mkdirSync(unpacked, { recursive: true })
      run('dpkg-deb', ['-x', join(scratch, file), unpacked], scratch)
    } finally {
      rmSync(scratch, { recursive: true, force: true })
    }
  }
  const version = spawnSync(program, ['--version'], { encoding: 'utf8' })
  if (version.status !== 0)
    throw new SetupError(`${program} does not run: ${version.stderr ?? version.error?.message}`)
  say(`${program}: ${version.stdout.split('\n')[0]}`)
  return 0
}

await runMain(async () => main())
