/**
 * Which term each entry of a log has, as runs: a log of any length with few elections takes a few numbers. The entries themselves
 * are the driver's.
 */
import { CoreError } from './core-error.ts'
import type { EntryId, EntryRun, LogIndex, Term } from './types.ts'

export interface TermRuns {
  /** The last entry below the log's beginning. Its term is known although it is gone. */
  base: EntryId
  /** First index of each run, ascending; firsts[0] is base.index + 1. Parallel to `terms`. */
  readonly firsts: number[]
  /** Ascending strictly: neighbouring runs of one term are one run. None is below base.term. */
  readonly terms: number[]
  /** Last entry; base.index if there is none. */
  last: LogIndex
}

/** Throws CoreError if terms fall or counts are not positive. */
export function createRuns(base: EntryId, runs: readonly EntryRun[]): TermRuns {
  const log: TermRuns = { base, firsts: [], terms: [], last: base.index }
  for (const run of runs) appendRun(log, run.term, run.count)
  return log
}

export function lastTerm(log: TermRuns): Term {
  const runs = log.terms.length
  return runs === 0 ? log.base.term : (log.terms[runs - 1] as Term)
}

export function lastEntry(log: TermRuns): EntryId {
  return { index: log.last, term: lastTerm(log) }
}

/** Number of the run that holds `index`, which must lie within (base, last]. From the end: that is where questions are asked. */
function runOf(log: TermRuns, index: number): number {
  let run = log.firsts.length - 1
  while (log.firsts[run]! > index) run--
  return run
}

/** The term of an entry; undefined below the base and beyond the end. */
export function termAt(log: TermRuns, index: LogIndex): Term | undefined {
  if (index > log.last || index < log.base.index) return undefined
  if (index === log.base.index) return log.base.term
  return log.terms[runOf(log, index)] as Term
}

/** The entry at an index that is known to be within [base, last]. */
export function entryAt(log: TermRuns, index: LogIndex): EntryId {
  const term = termAt(log, index)
  if (term === undefined) {
    throw new CoreError(`entry ${index} is outside the log (${log.base.index}, ${log.last}]`)
  }
  return { index, term }
}

/** Adds `count` entries at the end. Throws CoreError if the term falls: that can only be a damaged log or a faulty leader. */
export function appendRun(log: TermRuns, term: Term, count: number): void {
  if (!Number.isSafeInteger(count) || count < 1) throw new CoreError(`a run of ${count} entries`)
  const newest = lastTerm(log)
  if (term < newest)
    throw new CoreError(`entry ${log.last + 1} of term ${term} follows one of term ${newest}`)
  if (log.terms.length === 0 || term !== newest) {
    log.firsts.push(log.last + 1)
    log.terms.push(term)
  }
  log.last = (log.last + count) as LogIndex
}

/** Forgets the entries after `after`, which must not lie below the base. */
export function truncateRuns(log: TermRuns, after: LogIndex): void {
  if (after < log.base.index)
    throw new CoreError(`cut after ${after}, below the log's base ${log.base.index}`)
  if (after >= log.last) return
  while (log.firsts.length > 0 && log.firsts[log.firsts.length - 1]! > after) {
    log.firsts.pop()
    log.terms.pop()
  }
  log.last = after
}

/** Forgets the entries up to and including `base`, which must be in the log. */
export function trimRuns(log: TermRuns, base: EntryId): void {
  if (base.index <= log.base.index) return
  if (termAt(log, base.index) !== base.term) {
    throw new CoreError(`trimmed to entry ${base.index} of term ${base.term}, which the log does not hold`)
  }
  let gone = 0
  while (gone + 1 < log.firsts.length && log.firsts[gone + 1]! <= base.index + 1) gone++
  if (base.index === log.last) gone = log.firsts.length
  log.firsts.splice(0, gone)
  log.terms.splice(0, gone)
  if (log.firsts.length > 0) log.firsts[0] = base.index + 1
  log.base = base
}

/** An empty log that begins after `base`. */
export function resetRuns(log: TermRuns, base: EntryId): void {
  log.firsts.length = 0
  log.terms.length = 0
  log.base = base
  log.last = base.index
}

/**
 * The last entry at or before `index` whose term is `term` at most: where two logs that differ at `index` may still be one.
 * Both sides use it, so that a repair takes one question for each term at most. The base, if nothing else fits: below it all
 * is committed.
 */
export function lastAtMost(log: TermRuns, index: LogIndex, term: Term): EntryId {
  let at = Math.min(index, log.last) as LogIndex
  if (at <= log.base.index) return log.base
  let run = runOf(log, at)
  while (run >= 0 && log.terms[run]! > term) {
    at = (log.firsts[run]! - 1) as LogIndex
    run--
  }
  return run < 0 ? log.base : { index: at, term: log.terms[run] as Term }
}

/** The runs of entries (after, upTo]. Both must lie within [base, last]. */
export function runsBetween(log: TermRuns, after: LogIndex, upTo: LogIndex): EntryRun[] {
  const found: EntryRun[] = []
  if (upTo <= after) return found
  for (let run = runOf(log, after + 1); run < log.firsts.length; run++) {
    const first = Math.max(log.firsts[run]!, after + 1)
    const end = Math.min(run + 1 < log.firsts.length ? log.firsts[run + 1]! - 1 : log.last, upTo)
    if (first > upTo) break
    found.push({ term: log.terms[run] as Term, count: end - first + 1 })
  }
  return found
}
