// Runs test files, each as a process of its own that writes TAP, and prints one line for each.
import { join } from 'node:path'
import { root } from './checkout.js'
import { run } from './processes.js'
import { indent, readTap } from './tap-report.js'

/** How long a file that was told to end may take before it is killed. */
const killGraceMs = 10_000
/** Of a failing file's stderr this much, from the end, is shown. */
const stderrCharsMax = 8_000

/**
 * @param {string} file relative to the root
 * @param {{env: NodeJS.ProcessEnv, timeoutSeconds: number, children: Set<import('node:child_process').ChildProcess>}} options
 */
async function runFile(file, { env, timeoutSeconds, children }) {
  const tap = readTap()
  const started = performance.now()
  let timedOut = false
  /** @type {NodeJS.Timeout[]} */
  const timers = []
  // The mock plugin's loader is what tap's own runner adds, too.
  const args = ['--import', '@tapjs/mock/import', join(root, file)]
  const ended = await run(process.execPath, args, {
    env,
    onStdout: chunk => tap.write(chunk),
    onStart: child => {
      children.add(child)
      child.once('close', () => children.delete(child))
      timers.push(
        setTimeout(() => {
          timedOut = true
          child.kill('SIGTERM')
        }, timeoutSeconds * 1000),
        setTimeout(() => child.kill('SIGKILL'), timeoutSeconds * 1000 + killGraceMs),
      )
    },
  })
  for (const timer of timers) clearTimeout(timer)
  const result = await tap.end()
  const { failures } = result
  if (timedOut) failures.push({ title: `did not end within ${timeoutSeconds} s`, detail: '' })
  else if (ended.signal !== null) failures.push({ title: `was ended by ${ended.signal}`, detail: '' })
  else if (ended.code !== 0 && failures.length === 0) {
    failures.push({ title: `ended with exit code ${ended.code}`, detail: result.incomplete })
  }
  if (failures.length === 0 && result.incomplete) failures.push({ title: result.incomplete, detail: '' })
  if (failures.length === 0 && result.passed === 0 && result.skipped === 0) {
    failures.push({ title: 'held no test', detail: '' })
  }
  return { ...result, seconds: (performance.now() - started) / 1000, stderr: ended.output }
}

/**
 * Runs files, `jobs` at a time, prints them as they end and adds them to the tally.
 * @param {string[]} files relative to the root
 * @param {object} options
 * @param {number} options.jobs
 * @param {number} options.timeoutSeconds for one file
 * @param {NodeJS.ProcessEnv} options.env
 * @param {import('./tap-report.js').Tally} options.tally
 * @param {(line: string) => void} options.print
 * @param {Set<import('node:child_process').ChildProcess>} options.children what runs at the moment
 * @param {() => boolean} options.stopped asked before each file
 */
export async function runFiles(files, options) {
  const { jobs, tally, print, stopped } = options
  const queue = [...files]
  // tap's own watchdog in the child stays out of the way of ours.
  const env = { ...options.env, TAP_TIMEOUT: String(options.timeoutSeconds + 60) }
  const work = async () => {
    for (let file = queue.shift(); file !== undefined; file = queue.shift()) {
      if (stopped()) {
        tally.skipped++
        continue
      }
      const result = await runFile(file, { ...options, env })
      tally.passed += result.passed
      tally.skipped += result.skipped
      const why = result.skipReason ? ` (${result.skipReason})` : ''
      const skips = result.skipped > 0 ? `, ${result.skipped} skipped${why}` : ''
      const time = `${result.seconds.toFixed(1)} s`
      if (result.failures.length === 0) {
        print(`  ok    ${file}  ${result.passed} passed${skips}  ${time}`)
        continue
      }
      print(`  FAIL  ${file}  ${result.passed} passed, ${result.failures.length} failed${skips}  ${time}`)
      for (const { title, detail } of result.failures) {
        print(indent(detail ? `${title}\n${indent(detail, '  ')}` : title, '        '))
        tally.fail(`${file}: ${title}`, detail)
      }
      const stderr = result.stderr.trim().slice(-stderrCharsMax)
      if (stderr) print(indent(`its stderr:\n${indent(stderr, '  ')}`, '        '))
    }
  }
  await Promise.all(Array.from({ length: jobs }, work))
}
