// Brings node_modules to what package-lock.json says, and does so only when it is not there yet.
import { spawnSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import { existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { ownNode, root, SetupError, say } from './checkout.js'

const modulesDir = join(root, 'node_modules')
const stampFile = join(modulesDir, '.palimpsest-stamp.json')
// tap generates its test class from the plugins that .taprc names; this is where the result lies.
const tapClass = join(modulesDir, '@tapjs', 'test', 'test-built', 'dist', 'esm', 'index.js')

/** @param {string} file @returns {string} SHA-256 in hex, or '' if the file is not there */
function digest(file) {
  try {
    return createHash('sha256').update(readFileSync(file)).digest('hex')
  } catch {
    return ''
  }
}

/** @returns {{lock?: string, taprc?: string}} what the installed modules were made from */
function readStamp() {
  try {
    return JSON.parse(readFileSync(stampFile, 'utf8'))
  } catch {
    return {}
  }
}

/**
 * Whether what npm says it installed is what the lock file asks for: then someone ran `npm install`
 * by hand, and there is nothing to do. Packages for other platforms may be missing.
 */
function installedMatchesLock() {
  try {
    const wanted = JSON.parse(readFileSync(join(root, 'package-lock.json'), 'utf8')).packages
    const present = JSON.parse(readFileSync(join(modulesDir, '.package-lock.json'), 'utf8')).packages
    for (const [path, entry] of Object.entries(wanted)) {
      if (path === '') continue
      const found = present[path]
      if (found === undefined ? !entry.optional : found.version !== entry.version) return false
    }
    return true
  } catch {
    return false
  }
}

/** @param {string[]} args @returns {boolean} whether npm succeeded; its errors go to stderr */
function npm(args) {
  // npm says where it lies when it started us; the Node.js that runs us can run it, too.
  const fromNpm = process.env.npm_execpath
  const command = fromNpm?.endsWith('.js') ? process.execPath : 'npm'
  const before = fromNpm?.endsWith('.js') ? [fromNpm] : []
  const result = spawnSync(command, [...before, ...args, '--no-audit', '--no-fund', '--loglevel=error'], {
    cwd: root,
    stdio: ['ignore', 'ignore', 'inherit'],
  })
  if (result.error)
    throw new SetupError(`cannot run npm (${result.error.message}); install Node.js 20 or newer with npm`)
  return result.status === 0
}

/** Two commands started at once must not install into the same directory: the second waits for the first. */
function withLock(work) {
  const lock = join(root, '.palimpsest', 'setup.lock')
  mkdirSync(join(root, '.palimpsest'), { recursive: true })
  for (let waited = 0; ; waited++) {
    try {
      writeFileSync(lock, String(process.pid), { flag: 'wx' })
      break
    } catch (error) {
      if (error.code !== 'EEXIST') throw error
    }
    if (holderIsGone(lock)) rmSync(lock, { force: true })
    else {
      if (waited === 0) say('waiting for another Palimpsest command that is installing dependencies…')
      Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 500)
    }
  }
  try {
    return work()
  } finally {
    rmSync(lock, { force: true })
  }
}

/** @param {string} lock @returns {boolean} whether the process that made the lock file has ended */
function holderIsGone(lock) {
  try {
    const pid = Number(readFileSync(lock, 'utf8'))
    if (!(pid > 0)) return false
    process.kill(pid, 0)
    return false
  } catch (error) {
    return error.code === 'ESRCH'
  }
}

/**
 * Installs the dependencies if they are missing or differ from package-lock.json, and has tap generate
 * its test class where `forTests` asks for it. Idempotent; takes a few milliseconds when all is there.
 * @param {{forTests?: boolean}} [options]
 */
export function ensureModules({ forTests = false } = {}) {
  const lock = digest(join(root, 'package-lock.json'))
  const taprc = digest(join(root, '.taprc'))
  const complete = () => {
    const stamp = readStamp()
    return stamp.lock === lock && (!forTests || (stamp.taprc === taprc && existsSync(tapClass)))
  }
  if (complete()) return
  withLock(() => {
    if (complete()) return
    const stamp = readStamp()
    if (stamp.lock !== lock && !installedMatchesLock()) {
      say('installing dependencies (npm ci)…')
      if (!npm(['ci', '--include=dev', '--include=optional'])) {
        throw new SetupError(
          'npm ci failed (its messages stand above); check the network and the npm registry, then try again',
        )
      }
      stamp.taprc = undefined
    }
    if (forTests && !(stamp.taprc === taprc && existsSync(tapClass))) {
      say('preparing the test runner (tap build)…')
      buildTap()
      stamp.taprc = taprc
    }
    writeFileSync(stampFile, `${JSON.stringify({ lock, taprc: stamp.taprc })}\n`)
  })
}

function buildTap() {
  const node = existsSync(ownNode) ? ownNode : process.execPath
  const cli = join(modulesDir, 'tap', 'dist', 'esm', 'run.mjs')
  const result = spawnSync(node, [cli, 'build'], {
    cwd: root,
    encoding: 'utf8',
    stdio: ['ignore', 'pipe', 'pipe'],
  })
  if (result.status !== 0) {
    throw new SetupError(
      `tap build failed: ${(result.stderr || result.error?.message || '').trim().split('\n')[0]}`,
    )
  }
}
