// Reads the TAP that one test file writes, and counts what passed and failed.
import { Parser } from 'tap-parser'

/** What is counted over all files: assertions, plus files that broke outside of any assertion. */
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
export function indent(text, by) {
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
    'diff',
    'found',
    'wanted',
    'stderr',
    'tapError',
  ]) {
    const value = diag[key]
    if (value === undefined || value === null || (key === 'exitCode' && value === 0)) continue
    if ((key === 'found' || key === 'wanted') && diag.diff) continue
    const text = (typeof value === 'string' ? value : JSON.stringify(value)).trimEnd()
    lines.push(`${key}: ${text.length > 2000 ? `${text.slice(0, 2000)}…` : text}`)
  }
  if (diag.at?.fileName) lines.push(`at ${diag.at.fileName}:${diag.at.lineNumber}`)
  else if (typeof diag.stack === 'string') lines.push(diag.stack.split('\n')[0])
  return lines.join('\n')
}

/**
 * @typedef {object} FileResult
 * @property {number} passed assertions
 * @property {number} skipped assertions, subtests or the whole file
 * @property {string} skipReason why the whole file was skipped, or ''
 * @property {{title: string, detail: string}[]} failures
 * @property {string} incomplete what is wrong with the TAP as a whole though no assertion failed, or ''
 */

/**
 * A sink for one file's TAP.
 * @returns {{write: (chunk: Buffer) => void, end: () => Promise<FileResult>}}
 */
export function readTap() {
  const parser = new Parser()
  /** @type {FileResult} */
  const result = { passed: 0, skipped: 0, skipReason: '', failures: [], incomplete: '' }
  // 'result' comes once for each assertion, however deeply nested; a subtest's closing line counts only
  // where its verdict differs from its assertions'.
  parser.on('result', assertion => {
    if (assertion.skip || assertion.todo) result.skipped++
    else if (assertion.ok) result.passed++
    else {
      const title = assertion.fullname || assertion.name || `assertion ${assertion.id}`
      result.failures.push({ title, detail: describe(assertion.diag) })
    }
  })
  parser.on('bailout', reason => result.failures.push({ title: 'bailed out', detail: String(reason) }))
  const complete = new Promise(resolve => parser.on('complete', resolve))
  return {
    write: chunk => {
      parser.write(chunk)
    },
    end: async () => {
      parser.end()
      const final = await complete
      if (final.plan?.skipAll) {
        result.skipReason = final.plan.skipReason || ''
        // tap gives this reason by itself to a file that never called it: no reason at all.
        if (result.skipReason === 'no tests found') result.skipReason = ''
        if (result.skipReason) result.skipped++
      }
      // What is wrong with the TAP as a whole: a plan not kept, a stream cut short.
      if (!final.ok && result.failures.length === 0) {
        const why = final.failures?.map(failure => failure.tapError).filter(Boolean) ?? []
        result.incomplete = `its TAP output is not complete${why.length > 0 ? `: ${why.join('; ')}` : ''}`
      }
      return result
    },
  }
}
