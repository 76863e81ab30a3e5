// Child processes of the test run: started with a mark in their environment, so that whatever they
// start in turn, however it detaches itself, is found again and ended by its pid.
import { spawn } from 'node:child_process'
import { readdirSync, readFileSync, readlinkSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import { root } from './checkout.js'

/** Of a command's output this much is kept, from the end. */
const outputCharsMax = 1 << 20
/** After a command ended, its output is waited for this long. */
const outputGraceMs = 1000

/** Name of the environment variable that marks the processes of one run. */
export const markName = 'PALIMPSEST_TEST_RUN'

/**
 * @param {string} mark value of the mark
 * @returns {{pid: number, command: string}[]} running processes that carry it; empty where there is no /proc
 */
export function markedProcesses(mark) {
  const wanted = `${markName}=${mark}`
  const found = []
  for (const name of listProc()) {
    const pid = Number(name)
    if (!Number.isInteger(pid) || pid === process.pid) continue
    try {
      const environment = readFileSync(`/proc/${pid}/environ`, 'latin1').split('\0')
      if (!environment.includes(wanted)) continue
      const command = readFileSync(`/proc/${pid}/cmdline`, 'utf8').split('\0').join(' ').trim()
      found.push({ pid, command: command || readlinkSync(`/proc/${pid}/exe`) })
    } catch {
      // It ended meanwhile, or belongs to someone else.
    }
  }
  return found
}

function listProc() {
  try {
    return readdirSync('/proc')
  } catch {
    return []
  }
}

/**
 * Gives the marked processes a moment to end, then kills those that did not.
 * @param {string} mark
 * @param {number} graceMs how long a process may take to end by itself
 * @returns {Promise<string[]>} the command lines of those that had to be killed
 */
export async function killMarked(mark, graceMs) {
  const until = Date.now() + graceMs
  let left = markedProcesses(mark)
  while (left.length > 0 && Date.now() < until) {
    await sleep(100)
    left = markedProcesses(mark)
  }
  const names = left.map(({ pid, command }) => `pid ${pid}: ${command.slice(0, 200)}`)
  // Killing one may let another go on for a moment (a shell's child): look again until none is left.
  for (let round = 0; left.length > 0 && round < 20; round++) {
    for (const { pid } of left) {
      try {
        process.kill(pid, 'SIGKILL')
      } catch {
        // already gone
      }
    }
    await sleep(50)
    left = markedProcesses(mark)
  }
  return names
}

/**
 * Runs one command in the checkout's root.
 * @param {string} command
 * @param {string[]} args
 * @param {{env?: NodeJS.ProcessEnv, onStdout?: (chunk: Buffer) => void, onStart?: (child: import('node:child_process').ChildProcess) => void}} [options]
 *   stderr is kept and returned as `output`, and stdout with it unless there is an onStdout
 * @returns {Promise<{code: number, signal: NodeJS.Signals | null, output: string}>}
 */
export function run(command, args, { env = process.env, onStdout, onStart } = {}) {
  return new Promise((resolve, reject) => {
    const child = spawn(command, args, {
      cwd: root,
      env,
      stdio: ['ignore', 'pipe', 'pipe'],
    })
    onStart?.(child)
    let output = ''
    const keep = chunk => {
      // A test that floods stderr must not fill the memory: its end tells most.
      output = (output + chunk).slice(-outputCharsMax)
    }
    child.stdout.on('data', onStdout ?? keep)
    child.stderr.on('data', keep)
    child.on('error', reject)
    child.on('exit', (code, signal) => {
      // Its output ends a moment later, unless something it left behind holds the pipe open.
      const give = setTimeout(() => {
        child.stdout.destroy()
        child.stderr.destroy()
      }, outputGraceMs)
      child.on('close', () => {
        clearTimeout(give)
        resolve({ code: code ?? 1, signal, output })
      })
    })
  })
}
