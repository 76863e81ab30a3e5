/** What both shows stand on: lines for the person who watches, child processes that end with us, and the cluster. */
import { type ChildProcess, spawn } from 'node:child_process'
import { mkdirSync, mkdtempSync, rmSync } from 'node:fs'
import { createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { root } from '../lib/checkout.js'

const bold = process.stdout.isTTY ? (text: string) => `\x1b[1m${text}\x1b[0m` : (text: string) => text
const dim = process.stdout.isTTY ? (text: string) => `\x1b[2m${text}\x1b[0m` : (text: string) => text

let steps = 0
export function step(text: string): void {
  console.log(`\n${bold(`${++steps}. ${text}`)}`)
}
export function tell(text: string): void {
  console.log(`   ${text}`)
}
/** A command as the person could type it. */
export function command(text: string): void {
  console.log(dim(`   $ npx palimpsest ${text}`))
}

export class ShowError extends Error {
  override name = 'ShowError'
}

const bin = join(root, 'bin', 'palimpsest.js')
const children = new Set<ChildProcess>()

/** A `palimpsest` command that goes on in the background. Its lines go to `onLine`. */
export function background(args: readonly string[], onLine: (line: string) => void): ChildProcess {
  const child = spawn(process.execPath, [bin, ...args], { stdio: ['ignore', 'pipe', 'pipe'], cwd: root })
  children.add(child)
  child.once('exit', () => children.delete(child))
  for (const stream of [child.stdout, child.stderr]) createInterface({ input: stream }).on('line', onLine)
  return child
}

/** Runs a `palimpsest` command to its end, its output indented. Gives the exit code and the lines. */
export function run(
  args: readonly string[],
  show: (line: string) => boolean = () => true,
): Promise<{ code: number; lines: string[] }> {
  const lines: string[] = []
  const { promise, resolve } = Promise.withResolvers<{ code: number; lines: string[] }>()
  const child = background(args, line => {
    lines.push(line)
    if (show(line)) tell(line)
  })
  child.once('close', code => resolve({ code: code ?? 1, lines }))
  return promise
}

export async function stop(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return
  const { promise, resolve } = Promise.withResolvers<void>()
  child.once('exit', () => resolve())
  child.kill('SIGTERM')
  await promise
}

/** For the way out, however it is taken. */
export function killChildren(): void {
  for (const child of children) child.kill('SIGKILL')
}

export interface Stage {
  /** HOST:PORT of the cluster. */
  readonly address: string
  /** Where the show keeps its files. */
  readonly directory: string
  readonly cluster: ChildProcess
}

/**
 * Brings up `palimpsest dev`. With `once`, in a temporary directory and on a free port, so that nothing that runs
 * already is in the way; else in .palimpsest/show (begun afresh) on the default port if that is free.
 */
export async function raiseStage(once: boolean): Promise<Stage> {
  const directory = once ? mkdtempSync(join(tmpdir(), 'palimpsest-show-')) : join(root, '.palimpsest', 'show')
  if (!once) rmSync(directory, { recursive: true, force: true })
  mkdirSync(directory, { recursive: true })
  const listen = `127.0.0.1:${!once && (await isFree(7070)) ? 7070 : 0}`
  const args = ['dev', '--data', join(directory, 'cluster'), '--listen', listen, '--log-level', 'warn']
  command(args.slice(0, 5).join(' '))
  const { promise, resolve, reject } = Promise.withResolvers<string>()
  const said: string[] = []
  const cluster = background(args, line => {
    said.push(line)
    if (line.startsWith('ready ')) resolve(line.slice('ready '.length))
    else tell(line)
  })
  cluster.once('exit', code =>
    reject(new ShowError(`the cluster ended with exit code ${code}: ${said.slice(-3).join('; ')}`)),
  )
  const address = await promise
  tell(`ready at ${address}`)
  return { address, directory, cluster }
}

function isFree(port: number): Promise<boolean> {
  const { promise, resolve } = Promise.withResolvers<boolean>()
  const server = createServer()
  server.once('error', () => resolve(false))
  server.listen(port, '127.0.0.1', () => server.close(() => resolve(true)))
  return promise
}
