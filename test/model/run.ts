/**
 * The body of `npm run model` (scripts/model.js): has Spin check test/model/raft.pml, and show that each broken variant is one.
 */
import { type ChildProcess, spawn, spawnSync } from 'node:child_process'
import { mkdir, mkdtemp, rm } from 'node:fs/promises'
import { availableParallelism, tmpdir } from 'node:os'
import { join } from 'node:path'
import { parseArgs } from 'node:util'
import Table from 'cli-table3'

export interface ModelRun {
  readonly name: string
  /** Bounds and variant; see the head of raft.pml. */
  readonly defines: readonly string[]
  readonly expect: 'holds' | 'violated'
  /** Takes a second or so: part of `npm test`. */
  readonly isQuick?: boolean
}

const TWO_CANDIDATES = ['ODD=1', 'EVEN=4']
const DAMAGE = ['DAMAGE', 'LENGTH=2', 'ODD=1', 'EVEN=2']
/** Node 2 becomes the only member: the majority that stays and the one that goes need not meet. */
const REMOVE = ['MEMBERSHIP', 'NEWSET=4', 'TERMS=2', 'ODD=4', 'EVEN=1', 'NOOPS_ONLY']

export const MODEL_RUNS: readonly ModelRun[] = [
  { name: 'any may stand', defines: ['TERMS=2', 'LENGTH=2'], expect: 'holds' },
  {
    name: 'three terms, two may stand',
    defines: ['TERMS=3', 'LENGTH=2', ...TWO_CANDIDATES],
    expect: 'holds',
  },
  {
    name: 'four terms, no-ops',
    defines: ['TERMS=4', 'LENGTH=2', 'NOOPS_ONLY', ...TWO_CANDIDATES],
    expect: 'holds',
  },
  { name: 'one disk damaged', defines: ['TERMS=3', ...DAMAGE], expect: 'holds' },
  { name: 'two of three removed', defines: ['LENGTH=4', ...REMOVE], expect: 'holds' },
  { name: 'two terms, one entry', defines: ['TERMS=2', 'LENGTH=1'], expect: 'holds', isQuick: true },
  {
    name: 'acknowledges before it persists',
    defines: ['TERMS=2', 'LENGTH=2', 'ACK_BEFORE_PERSIST'],
    expect: 'violated',
    isQuick: true,
  },
  {
    name: 'forgets its vote',
    defines: ['TERMS=2', 'LENGTH=2', 'FORGETS_VOTE'],
    expect: 'violated',
    isQuick: true,
  },
  {
    name: 'commits an old term’s entry directly',
    defines: ['TERMS=4', 'LENGTH=2', 'NOOPS_ONLY', ...TWO_CANDIDATES, 'COMMITS_OLD_TERM'],
    expect: 'violated',
  },
  {
    name: 'removes members in a single step',
    defines: ['LENGTH=2', ...REMOVE, 'SINGLE_STEP'],
    expect: 'violated',
    isQuick: true,
  },
  {
    name: 'votes although damaged',
    defines: ['TERMS=3', 'NOOPS_ONLY', ...DAMAGE, 'VOTES_DAMAGED'],
    expect: 'violated',
    isQuick: true,
  },
  {
    name: 'recovers in the term of the damage',
    defines: ['TERMS=2', ...DAMAGE, 'KEEPS_TERM'],
    expect: 'violated',
    isQuick: true,
  },
]

export interface ModelResult {
  readonly outcome: 'holds' | 'violated'
  readonly states: number
  readonly seconds: number
  /** The first assertion that failed. */
  readonly violated: string | undefined
}

/** What is missing to check the model; undefined if nothing is. */
export function missingTools(): string | undefined {
  const missing = ['spin', 'gcc'].filter(tool => {
    return spawnSync(tool, [tool === 'spin' ? '-V' : '--version'], { stdio: 'ignore' }).error !== undefined
  })
  if (missing.length === 0) return undefined
  return `${missing.join(' and ')} not found; on Debian and Ubuntu: apt-get install ${missing.join(' ')}`
}

const running = new Set<ChildProcess>()

function run(dir: string, command: string, args: readonly string[]): Promise<string> {
  return new Promise((resolve, reject) => {
    const child = spawn(command, args, { cwd: dir, stdio: ['ignore', 'pipe', 'pipe'] })
    running.add(child)
    let output = ''
    const take = (bytes: Buffer) => {
      if (output.length < 1 << 20) output += bytes
    }
    child.stdout.on('data', take)
    child.stderr.on('data', take)
    child.on('error', reject)
    child.on('close', (code, signal) => {
      running.delete(child)
      // pan's own exit code is 0 with or without errors; what it found stands in its output.
      if (code === 0) resolve(output)
      else
        reject(
          new Error(`${command} ${args.join(' ')} ended with ${signal ?? code}:\n${output.slice(0, 2000)}`),
        )
    })
  })
}

/** Checks one run in a folder of its own. Throws if the tools fail, or the search was not complete. */
export async function checkModel(model: string, item: ModelRun, dir: string): Promise<ModelResult> {
  await mkdir(dir, { recursive: true })
  await run(dir, 'spin', ['-a', ...item.defines.map(define => `-D${define}`), model])
  // Hash compaction: a state is kept as 64 bits of hash. That two of 10^7 are taken for one has a chance of about 10^-5.
  await run(dir, 'gcc', ['-O1', '-w', '-DSAFETY', '-DHC4', '-DMEMLIM=8000', '-o', 'pan', 'pan.c'])
  const startedMs = performance.now()
  const output = await run(dir, './pan', ['-m500000', '-w22'])
  const seconds = (performance.now() - startedMs) / 1000
  const states = Number(/(\d+) states, stored/.exec(output)?.[1])
  const errors = Number(/errors: (\d+)/.exec(output)?.[1])
  if (!Number.isFinite(states) || !Number.isFinite(errors)) throw new Error(`not understood:\n${output}`)
  if (errors === 0 && /max search depth too small|out of memory|Search not completed/i.test(output)) {
    throw new Error(`${item.name}: the search is not complete:\n${output.slice(0, 2000)}`)
  }
  const violated = /assertion violated (.*) \(at depth/.exec(output)?.[1]
  if (errors > 0 && violated === undefined) throw new Error(`not an assertion:\n${output.slice(0, 2000)}`)
  return { outcome: errors > 0 ? 'violated' : 'holds', states, seconds, violated }
}

const HELP = `npm run model -- [OPTIONS]

Has Spin check the model of the consensus (test/model/raft.pml), and show that each broken variant is one.
Needs spin and gcc; installs nothing.

  --quick    only what takes a few seconds
  --help     this text
`

/** Returns the exit code: 0 as expected, 1 not, or tools are missing, 2 wrong usage. */
export async function main(args: string[]): Promise<number> {
  let values: { quick: boolean; help: boolean }
  try {
    const options = {
      quick: { type: 'boolean', default: false },
      help: { type: 'boolean', short: 'h', default: false },
    } as const
    values = parseArgs({ args, options }).values
  } catch (error) {
    console.error(error instanceof Error ? error.message : String(error))
    return 2
  }
  if (values.help) {
    process.stdout.write(HELP)
    return 0
  }
  const missing = missingTools()
  if (missing !== undefined) {
    console.error(missing)
    return 1
  }
  const chosen = MODEL_RUNS.filter(item => !values.quick || item.isQuick)
  const dir = await mkdtemp(join(tmpdir(), 'palimpsest-model-'))
  const end = () => {
    for (const child of running) child.kill('SIGKILL')
  }
  process.once('exit', end)
  try {
    return await checkAll(chosen, dir)
  } finally {
    process.removeListener('exit', end)
    await rm(dir, { recursive: true, force: true })
  }
}

async function checkAll(chosen: readonly ModelRun[], dir: string): Promise<number> {
  const model = join(import.meta.dirname, 'raft.pml')
  const results: (ModelResult | Error)[] = []
  let next = 0
  const work = async () => {
    while (next < chosen.length) {
      const at = next++
      const item = chosen[at]!
      const folder = join(dir, String(at))
      results[at] = await checkModel(model, item, folder).catch((error: unknown) =>
        error instanceof Error ? error : new Error(String(error)),
      )
      await rm(folder, { recursive: true, force: true })
      process.stderr.write(`${item.name}: done\n`)
    }
  }
  await Promise.all(Array.from({ length: Math.min(2, availableParallelism()) }, work))

  const table = new Table({ head: ['model', 'states', 'seconds', 'result'], style: { head: [], border: [] } })
  let failed = 0
  for (const [at, item] of chosen.entries()) {
    const result = results[at]!
    if (result instanceof Error) {
      failed++
      console.error(`${item.name}: ${result.message}`)
      table.push([item.name, '', '', 'failed'])
      continue
    }
    const isExpected = result.outcome === item.expect
    if (!isExpected) failed++
    const text = isExpected ? result.outcome : `${result.outcome.toUpperCase()}, not as expected`
    table.push([item.name, result.states, result.seconds.toFixed(1), text])
  }
  console.log(table.toString())
  if (failed > 0) console.log(`${failed} of ${chosen.length} not as expected`)
  return failed > 0 ? 1 : 0
}
