/** Palimpsest as its users run it: processes started from the command line, for tests with a real server. */
import { type ChildProcess, execFile, spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { createInterface } from 'node:readline'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import type { Test } from 'tap'

const BIN = resolve(fileURLToPath(import.meta.url), '../../../bin/palimpsest.js')
const READY_MS = 30_000

export interface CliResult {
  readonly code: number
  readonly stdout: string
  readonly stderr: string
}

// A test process that ends in the middle must not leave its children behind.
const running = new Set<ChildProcess>()
process.on('exit', () => {
  for (const child of running) child.kill('SIGKILL')
})

function start(args: readonly string[]): ChildProcess {
  const child = spawn(process.execPath, [BIN, ...args], { stdio: ['ignore', 'pipe', 'pipe'] })
  running.add(child)
  child.once('exit', () => running.delete(child))
  return child
}

/** Runs one command to its end. */
export function palimpsest(args: readonly string[]): Promise<CliResult> {
  return new Promise((done, fail) => {
    execFile(
      process.execPath,
      [BIN, ...args],
      { maxBuffer: 256 << 20, encoding: 'utf8' },
      (error, stdout, stderr) => {
        if (error && typeof error.code !== 'number') fail(error)
        else done({ code: error ? (error.code as number) : 0, stdout, stderr })
      },
    )
  })
}

/** `palimpsest dev`, with a store of its own that goes away with the test. */
export class Cluster {
  readonly dataDir: string
  #listen = '127.0.0.1:0'
  readonly #args: readonly string[]
  #child: ChildProcess | undefined
  /** Everything it wrote to stderr: its log. */
  log = ''

  readonly #command: string

  private constructor(dataDir: string, command: string, args: readonly string[]) {
    this.dataDir = dataDir
    this.#command = command
    this.#args = args
  }

  static start(t: Test, args: readonly string[] = []): Promise<Cluster> {
    return Cluster.#run(t, 'dev', args)
  }

  /** A safekeeper alone. */
  static safekeeper(t: Test, args: readonly string[] = []): Promise<Cluster> {
    return Cluster.#run(t, 'safekeeper', args)
  }

  /** Another page server that follows the safekeepers of `cluster`. */
  static pageserver(t: Test, cluster: Cluster, args: readonly string[] = []): Promise<Cluster> {
    return Cluster.#run(t, 'pageserver', ['--safekeepers', cluster.address, ...args])
  }

  static async #run(t: Test, command: string, args: readonly string[]): Promise<Cluster> {
    const home = mkdtempSync(join(process.env['PALIMPSEST_TEST_TMP'] ?? tmpdir(), 'pal-cluster-'))
    const cluster = new Cluster(join(home, command), command, args)
    t.teardown(async () => {
      await cluster.kill9()
      rmSync(home, { recursive: true, force: true })
    })
    await cluster.restart()
    return cluster
  }

  /** Starts it again where it listened before. */
  async restart(): Promise<void> {
    const child = start([this.#command, '--data', this.dataDir, '--listen', this.#listen, ...this.#args])
    this.#child = child
    child.stderr!.setEncoding('utf8').on('data', (text: string) => {
      this.log = (this.log + text).slice(-1_000_000)
    })
    const timeout = AbortSignal.timeout(READY_MS)
    for await (const line of createInterface({ input: child.stdout!, signal: timeout })) {
      const match = /^ready (\S+)$/.exec(line)
      if (!match) continue
      this.#listen = match[1]!
      return
    }
    throw new Error(`palimpsest ${this.#command} did not become ready:\n${this.log.slice(-3000)}`)
  }

  /** For --connect. */
  get address(): string {
    return this.#listen
  }

  get addresses(): { host: string; port: number }[] {
    const [host, port] = this.#listen.split(':')
    return [{ host: host!, port: Number(port) }]
  }

  /** Its memory, as the kernel counts it; 0 where that cannot be asked. */
  get residentBytes(): number {
    try {
      const status = readFileSync(`/proc/${this.#child!.pid}/status`, 'utf8')
      return Number(/VmRSS:\s*(\d+) kB/.exec(status)?.[1] ?? 0) * 1024
    } catch {
      return 0
    }
  }

  signal(signal: NodeJS.Signals): void {
    this.#child!.kill(signal)
  }

  async kill9(): Promise<void> {
    await end(this.#child, 'SIGKILL')
  }

  async stop(): Promise<void> {
    await end(this.#child, 'SIGTERM')
  }

  /** A command that talks to this cluster. */
  cli(...args: string[]): Promise<CliResult> {
    return palimpsest([...args, '--connect', this.address])
  }

  async cliJson(...args: string[]): Promise<Record<string, unknown>> {
    const { code, stdout, stderr } = await this.cli(...args, '--json')
    if (code !== 0) throw new Error(`palimpsest ${args.join(' ')} exited with ${code}: ${stderr}`)
    return JSON.parse(stdout.trim().startsWith('{\n') ? stdout : stdout.trim().split('\n').at(-1)!)
  }

  attach(t: Test, datadir: string, timeline: string, ...args: string[]): AttachAgent {
    return new AttachAgent(t, [
      'attach',
      '--datadir',
      datadir,
      '--timeline',
      timeline,
      '--connect',
      this.address,
      '--json',
      ...args,
    ])
  }
}

async function end(child: ChildProcess | undefined, signal: NodeJS.Signals): Promise<void> {
  if (!child || child.exitCode !== null || child.signalCode !== null) return
  const exited = once(child, 'exit')
  child.kill('SIGCONT')
  child.kill(signal)
  await exited
}

/** `palimpsest attach` as a process of its own. */
export class AttachAgent {
  readonly events: Record<string, unknown>[] = []
  stderr = ''
  readonly #child: ChildProcess
  readonly exited: Promise<number | null>

  constructor(t: Test, args: readonly string[]) {
    const child = start(args)
    this.#child = child
    child.stderr!.setEncoding('utf8').on('data', (text: string) => {
      this.stderr += text
    })
    createInterface({ input: child.stdout! }).on('line', line => this.events.push(JSON.parse(line)))
    this.exited = once(child, 'exit').then(([code]) => code as number | null)
    t.teardown(() => this.kill9())
  }

  /**
   * Waits for an event, by its name, or by what its message says.
   * @param after an event that was seen: only those that came after it count
   */
  async saw(
    name: string | RegExp,
    { after, timeoutMs = 120_000 }: { after?: Record<string, unknown>; timeoutMs?: number } = {},
  ): Promise<Record<string, unknown>> {
    const from = after ? this.events.indexOf(after) + 1 : 0
    const matches = (event: Record<string, unknown>): boolean =>
      typeof name === 'string' ? event['event'] === name : name.test(String(event['message'] ?? ''))
    const deadline = performance.now() + timeoutMs
    for (;;) {
      const found = this.events.slice(from).find(matches)
      if (found) return found
      if (this.#child.exitCode !== null || this.#child.signalCode !== null || performance.now() > deadline)
        throw new Error(
          `attach did not say ${name}; it said ${JSON.stringify(this.events.slice(-5))} ${this.stderr}`,
        )
      await sleep(20)
    }
  }

  get pid(): number {
    return this.#child.pid!
  }

  signal(signal: NodeJS.Signals): void {
    this.#child.kill(signal)
  }

  async kill9(): Promise<void> {
    await end(this.#child, 'SIGKILL')
  }

  /** Stops it as an operator does. @returns its last words */
  async stop(): Promise<Record<string, unknown>> {
    await end(this.#child, 'SIGTERM')
    const code = await this.exited
    if (code !== 0) throw new Error(`attach exited with ${code}: ${this.stderr}`)
    return this.events.find(event => event['event'] === 'done')!
  }
}
