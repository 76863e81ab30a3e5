// Reads the TAP that the runner writes, counts what passed and failed, and prints it for people.
import { Parser } from 'tap-parser'

/** What is counted: single assertions, plus whole files that broke outside of any assertion. */
export class Tally {
  passed = 0
  failed = 0
  skipped = 0
  /** One entry for each failure, told again at the end. @type {string[]} */
  failures = []

  /** @param {string} what @param {string} [detail] */
  fail(what, detail = '') {
    this.failed++
    this.failures.push(detail ? `${what}\n${indent(detail, '      ')}` : what)
  }
}

/** @param {string} text @param {string} by */
function indent(text, by) {
  return text
    .trimEnd()
    .split('\n')
    .map(line => by + line)
    .join('\n')
}

/** The parts of a failure's diagnostics that help, as short text. @param {Record<string, any> | null} diag */
function describe(diag) {
  if (diag === null || typeof diag !== 'object') return ''
  const lines = []
  for (const key of [
    'error',
    'message',
    'signal',
    'exitCode',
    'timeout',
    'diff',
    'found',
    'wanted',
    'tapError',
  ]) {
    const value = diag[key]
    if (value === undefined || value === null || (key === 'exitCode' && value === 0)) continue
    if ((key === 'found' || key === 'wanted') && diag.diff) continue
    const text = typeof value === 'string' ? value : JSON.stringify(value)
    lines.push(`${key}: ${text.length > 2000 ? `${text.slice(0, 2000)}…` : text}`)
  }
  if (diag.at?.fileName) lines.push(`at ${diag.at.fileName}:${diag.at.lineNumber}`)
  else if (typeof diag.stack === 'string') lines.push(diag.stack.split('\n')[0])
  return lines.join('\n')
}

/**
 * A sink for the runner's TAP, which prints one line a file and adds to `tally`.
 * @param {Tally} tally
 * @param {(line: string) => void} print
 * @returns {{write: (chunk: Buffer) => void, end: () => Promise<Set<string>>}} `end` resolves with the files seen
 */
export function tapReport(tally, print) {
  const parser = new Parser()
  const files = new Set()
  let passed = 0
  let skipped = 0
  /** @type {any[]} */
  let failures = []

  // 'result' comes once for each assertion, however deeply nested, and for a file only where its own
  // verdict differs from its assertions' (it crashed, timed out, or held no test at all).
  parser.on('result', result => {
    if (result.skip || result.todo) skipped++
    else if (result.ok) passed++
    else failures.push(result)
  })
  // 'assert' on the root parser is the end of one file.
  parser.on('assert', result => {
    const file = String(result.name)
    files.add(file)
    if (!result.ok && failures.length === 0 && !result.skip && !result.todo) failures.push(result)
    const seconds = result.time ? ` ${(result.time / 1000).toFixed(1)} s` : ''
    const skips =
      skipped > 0 ? `, ${skipped} skipped${typeof result.skip === 'string' ? `: ${result.skip}` : ''}` : ''
    if (failures.length === 0) print(`  ok    ${file}  ${passed} passed${skips}${seconds}`)
    else print(`  FAIL  ${file}  ${passed} passed, ${failures.length} failed${skips}${seconds}`)
    for (const failure of failures) {
      const name = failure.fullname || failure.name
      const title = name.startsWith(file) ? name : `${file} > ${name}`
      const detail = describe(failure.diag)
      print(indent(`${title}${detail ? `\n${indent(detail, '  ')}` : ''}`, '        '))
      tally.fail(title, detail)
    }
    tally.passed += passed
    tally.skipped += skipped
    passed = 0
    skipped = 0
    failures = []
  })
  parser.on('bailout', reason => tally.fail('the test runner bailed out', String(reason)))

  return {
    write: chunk => {
      parser.write(chunk)
    },
    end: () =>
      new Promise(resolve => {
        parser.on('complete', () => resolve(files))
        parser.end()
      }),
  }
}
