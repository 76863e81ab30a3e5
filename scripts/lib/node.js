// Hands the running command over to the Node.js that the project brings along.
import { spawn } from 'node:child_process'
import { realpathSync } from 'node:fs'
import { Socket } from 'node:net'
import { nodeMajorMin, ownNode, root, SetupError } from './checkout.js'

/** @param {string} file @returns {string | undefined} the file behind symbolic links, if there is one */
function real(file) {
  try {
    return realpathSync(file)
  } catch {
    return undefined
  }
}

/** @returns {boolean} whether this process runs on a Node.js new enough for the project's TypeScript */
export function nodeIsNewEnough() {
  return Number(process.versions.node.split('.')[0]) >= nodeMajorMin
}

/**
 * Runs `script` with `args` on the project's own Node.js in place of this process: same terminal, same
 * signals, same end. Resolves only if there is nothing to hand over, that is, if this process already is
 * that Node.js, or is new enough and the project brings none for this platform.
 * @param {string} script absolute path of the file to run
 * @param {string[]} args
 */
export async function handOver(script, args) {
  const own = real(ownNode)
  if (own === undefined) {
    if (nodeIsNewEnough()) return
    throw new SetupError(
      `this is Node.js ${process.versions.node} and ${nodeMajorMin} or newer is needed; ` +
        `run "npm ci" in ${root} (it brings one for Linux on x64 and arm64 and for macOS on arm64), or install Node.js ${nodeMajorMin}`,
    )
  }
  if (real(process.execPath) === own) return
  await becomeChild(own, [...process.execArgv, script, ...args])
}

/** Set for a child that stands in its starter's place: the starter's process id. Then descriptor 3 is a pipe that ends with it. */
const FRONT_VARIABLE = 'PALIMPSEST_FRONT'
const FRONT_FD = 3

/**
 * In a child of `becomeChild`: ends with the process in front, however that ends. Who kills that one with SIGKILL means the
 * server, and would otherwise leave it running, with its port and its data directory.
 */
export function endWithFront() {
  const pid = Number(process.env[FRONT_VARIABLE])
  delete process.env[FRONT_VARIABLE]
  // It may have come down from further up, to a process that has no such pipe.
  if (pid !== process.ppid) return
  const front = new Socket({ fd: FRONT_FD, readable: true, writable: false })
  const end = () => process.kill(process.pid, 'SIGKILL')
  front.on('error', end).on('end', end).resume()
  front.unref()
}

/**
 * Starts a child that takes this process's place, and ends as it ends. Never resolves.
 * @param {string} command
 * @param {string[]} args
 * @returns {Promise<never>}
 */
export function becomeChild(command, args) {
  return new Promise((_resolve, reject) => {
    const child = spawn(command, args, {
      stdio: ['inherit', 'inherit', 'inherit', 'pipe'],
      env: { ...process.env, [FRONT_VARIABLE]: String(process.pid) },
    })
    /** @type {NodeJS.Signals[]} */
    const signals = ['SIGTERM', 'SIGHUP', 'SIGINT']
    /** @param {NodeJS.Signals} signal */
    const forward = signal => {
      // Ctrl-C on a terminal reaches the whole foreground group: the child has it already, and a second
      // one would look like an impatient user.
      if (signal === 'SIGINT' && process.stdin.isTTY) return
      child.kill(signal)
    }
    for (const signal of signals) process.on(signal, forward)
    child.on('error', error => {
      reject(
        new SetupError(
          `cannot run ${command} (${error.message}); install Node.js ${nodeMajorMin} and try again`,
        ),
      )
    })
    child.on('exit', (code, signal) => {
      for (const name of signals) process.removeListener(name, forward)
      if (signal === null) process.exit(code ?? 1)
      // End by the same signal, so that a shell or supervisor sees what really happened.
      process.kill(process.pid, signal)
      setTimeout(() => process.exit(1), 100)
    })
  })
}
