// What every benchmark shares: its options, its table, its ratios, its JSON, and child processes that end with it.
import { type ChildProcess, spawn } from 'node:child_process'
import { cpus } from 'node:os'
import { pathToFileURL } from 'node:url'
import { type ParseArgsConfig, parseArgs } from 'node:util'
import Table from 'cli-table3'

/** One measured thing. */
export type Result = {
  /** What was done, e.g. "batches of 64". Rows of the same group are compared with each other. */
  group: string
  /** Who did it, e.g. "node:net ceiling". */
  subject: string
  /** How much a second, in the report's unit. More is better. */
  perSecond: number
  /** Latency of one operation, in microseconds. */
  latencyUsP50?: number
  latencyUsP95?: number
  latencyUsP99?: number
  /** Anything else worth a column of its own in the JSON. */
  extra?: Record<string, number | string>
}

export type ReportOptions = {
  title: string
  /** E.g. "pages/s" or "MB/s". */
  unit: string
  /** Subjects to divide by, each with the heading of its column, e.g. "of the ceiling". */
  references: readonly { subject: string; heading: string }[]
  /** Of the results' `extra`, what has a column in the table too. */
  columns?: readonly { key: string; heading: string }[]
}

/** Results as they come in, with their ratios to the references of the same group and the same run. */
export class Report {
  readonly results: Result[] = []
  private readonly options: ReportOptions

  constructor(options: ReportOptions) {
    this.options = options
  }

  /**
   * Adds a result beside those of its group. Of several by the same subject the best is kept: what a machine's other
   * work does to a measurement is to slow it down.
   */
  add(result: Result): void {
    const known = this.results.findIndex(
      ({ group, subject }) => group === result.group && subject === result.subject,
    )
    if (known >= 0) {
      if (this.results[known]!.perSecond < result.perSecond) this.results[known] = result
      return
    }
    const last = this.results.findLastIndex(({ group }) => group === result.group)
    this.results.splice(last < 0 ? this.results.length : last + 1, 0, result)
  }

  /** perSecond divided by the reference's, or undefined where the reference was not measured. */
  ratio(result: Result, reference: string): number | undefined {
    const other = this.results.find(({ group, subject }) => group === result.group && subject === reference)
    return other === undefined || other.perSecond === 0 ? undefined : result.perSecond / other.perSecond
  }

  /** Prints the table, or with `json` one JSON object, on stdout. */
  print(json: boolean): void {
    process.stdout.write(`${json ? JSON.stringify(this.toJson()) : this.toTable()}\n`)
  }

  toJson(): object {
    const { title, unit, references } = this.options
    return {
      title,
      unit,
      machine: machine(),
      date: new Date().toISOString(),
      results: this.results.map(result => ({
        ...result,
        ratios: Object.fromEntries(references.map(({ subject }) => [subject, this.ratio(result, subject)])),
      })),
    }
  }

  private toTable(): string {
    const { title, unit, references, columns = [] } = this.options
    const latency = this.results.some(result => result.latencyUsP50 !== undefined)
    const p95 = this.results.some(result => result.latencyUsP95 !== undefined)
    const head = ['', '', unit]
    if (latency) head.push('p50 µs', ...(p95 ? ['p95 µs'] : []), 'p99 µs')
    head.push(...columns.map(({ heading }) => heading))
    head.push(...references.map(({ heading }) => heading))
    const table = new Table({
      head,
      colAligns: head.map((_, column) => (column < 2 ? 'left' : 'right')),
      style: { head: [], border: [], compact: true },
    })
    let group = ''
    for (const result of this.results) {
      const row = [result.group === group ? '' : result.group, result.subject, short(result.perSecond)]
      if (latency) row.push(short(result.latencyUsP50))
      if (p95) row.push(short(result.latencyUsP95))
      if (latency) row.push(short(result.latencyUsP99))
      for (const { key } of columns) {
        const value = result.extra?.[key]
        row.push(typeof value === 'number' ? short(value) : (value ?? ''))
      }
      for (const { subject } of references) {
        const ratio = this.ratio(result, subject)
        row.push(ratio === undefined || subject === result.subject ? '' : `${ratio.toFixed(2)} ×`)
      }
      table.push(row)
      group = result.group
    }
    const { cpu, cores, node } = machine()
    return `${title}\n${cores} × ${cpu}, Node.js ${node}\n${table.toString()}`
  }
}

function short(value: number | undefined): string {
  if (value === undefined) return ''
  if (value >= 1000) return Math.round(value).toLocaleString('en-GB')
  return value >= 10 ? value.toFixed(0) : value.toFixed(2)
}

export function machine(): { cpu: string; cores: number; node: string } {
  const all = cpus()
  return { cpu: (all[0]?.model ?? 'unknown').trim(), cores: all.length, node: process.versions.node }
}

/** Progress for people, on stderr. */
export function note(line: string): void {
  process.stderr.write(`${line}\n`)
}

type OptionTypes = NonNullable<ParseArgsConfig['options']>

/** A benchmark: `bench/NAME.ts` exports one as `benchmark` and ends with `await runIfMain(import.meta.url, benchmark)`. */
export type Benchmark = {
  summary: string
  /** Option lines for --help, without --json and --help. */
  help: string
  options: OptionTypes
  run(values: Record<string, string | boolean | undefined>): Promise<Report | undefined>
}

/** Parses `argv` and runs the benchmark. @returns the exit code: 0, 1 if it failed, 2 on wrong usage */
export async function runBenchmark(benchmark: Benchmark, argv: readonly string[]): Promise<number> {
  let values: Record<string, string | boolean | undefined>
  try {
    const parsed = parseArgs({
      args: [...argv],
      options: { ...benchmark.options, json: { type: 'boolean' }, help: { type: 'boolean', short: 'h' } },
    })
    values = parsed.values as Record<string, string | boolean | undefined>
  } catch (error) {
    note(`palimpsest: ${error instanceof Error ? error.message : String(error)}`)
    return 2
  }
  if (values['help'] === true) {
    process.stdout.write(
      `${benchmark.summary}\n\n${benchmark.help.trimEnd()}\n  --json  print JSON instead of a table\n`,
    )
    return 0
  }
  try {
    const report = await benchmark.run(values)
    report?.print(values['json'] === true)
    return 0
  } catch (error) {
    note(`palimpsest: ${error instanceof Error ? error.message : String(error)}`)
    if (process.env['PALIMPSEST_DEBUG'] && error instanceof Error) note(error.stack ?? '')
    return error instanceof UsageError ? 2 : 1
  } finally {
    await endChildren()
  }
}

/** Runs the benchmark if its file is what Node.js was started with. */
export async function runIfMain(moduleUrl: string, benchmark: Benchmark): Promise<void> {
  if (process.argv[1] === undefined || pathToFileURL(process.argv[1]).href !== moduleUrl) return
  process.exitCode = await runBenchmark(benchmark, process.argv.slice(2))
}

/** The benchmark was called wrongly: exit code 2. */
export class UsageError extends Error {}

/** A whole number ≥ `least` from an option, or `standard` where it was not given. */
export function wholeNumber(
  value: string | boolean | undefined,
  standard: number,
  name: string,
  least = 1,
): number {
  if (value === undefined || typeof value === 'boolean') return standard
  const number = Number(value)
  if (!Number.isInteger(number) || number < least) {
    throw new UsageError(`--${name} must be a whole number of at least ${least}, not "${value}"`)
  }
  return number
}

const children = new Set<ChildProcess>()
process.on('exit', () => {
  for (const child of children) child.kill('SIGKILL')
})
for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) {
  process.once(signal, () => {
    for (const child of children) child.kill('SIGKILL')
    process.kill(process.pid, signal)
  })
}

/**
 * Starts this Node.js on a script and waits for a line on its stdout.
 * @param ready matched against each line
 * @returns the match and the process, which ends with `endChild`, at the latest with the benchmark
 * @throws with the end of its stderr if it ends before
 */
export function startChild(
  script: string,
  args: readonly string[],
  ready: RegExp,
): Promise<{ child: ChildProcess; match: RegExpExecArray }> {
  return new Promise((resolve, reject) => {
    const child = spawn(process.execPath, [script, ...args], { stdio: ['ignore', 'pipe', 'pipe'] })
    children.add(child)
    let out = ''
    let errors = ''
    child.stderr.on('data', chunk => {
      errors = (errors + chunk).slice(-4000)
    })
    child.stdout.on('data', chunk => {
      out = (out + chunk).slice(-4000)
      for (const line of out.split('\n')) {
        const match = ready.exec(line)
        if (match !== null) resolve({ child, match })
      }
    })
    child.once('error', reject)
    child.once('exit', (code, signal) => {
      children.delete(child)
      reject(new Error(`${script} ended (${signal ?? `exit code ${code}`}) before it was ready\n${errors}`))
    })
  })
}

/** Has a process end with the benchmark, at the latest. */
export function adoptChild(child: ChildProcess): ChildProcess {
  children.add(child)
  child.once('exit', () => children.delete(child))
  child.once('error', () => children.delete(child))
  return child
}

/** Asks a process to end and waits until it has. */
export async function endChild(child: ChildProcess): Promise<void> {
  if (!children.has(child)) return
  const ended = new Promise<void>(resolve => child.once('exit', () => resolve()))
  child.kill('SIGTERM')
  const late = setTimeout(() => child.kill('SIGKILL'), 10_000)
  await ended
  clearTimeout(late)
}

async function endChildren(): Promise<void> {
  await Promise.all([...children].map(endChild))
}
