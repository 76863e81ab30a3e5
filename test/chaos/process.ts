/** Palimpsest's commands as processes of their own: servers that are killed, stopped and started again, and commands run to their end. */
import { type ChildProcess, execFile, spawn } from 'node:child_process'
import { appendFileSync, openSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'

const BIN = fileURLToPath(new URL('../../bin/palimpsest.js', import.meta.url))
const READY_MS = 90_000
const STOP_MS = 60_000

// A run that ends in the middle must not leave its children behind.
const running = new Set<ChildProcess>()
process.on('exit', () => {
  for (const child of running) child.kill('SIGKILL')
})

export interface ServerProcessOptions {
  /** For its log file, DIR/NAME.log. */
  readonly name: string
  readonly dir: string
  readonly args: readonly string[]
  /** Before the command: `ip netns exec NAME`, for instance. */
  readonly prefix?: readonly string[]
  /** Told if it ends and nobody here has ended it. */
  readonly onDied: (why: string) => void
}

export class ServerProcess {
  readonly options: ServerProcessOptions
  readonly logFile: string
  /** What it wrote to stdout, a line each; the newest only. */
  readonly lines: string[] = []
  private child: ChildProcess | undefined
  private exited: Promise<number | null> = Promise.resolve(null)
  private isWanted = false

  constructor(options: ServerProcessOptions) {
    this.options = options
    this.logFile = join(options.dir, `${options.name}.log`)
  }

  get isRunning(): boolean {
    return this.child !== undefined
  }

  /** Starts it and waits for the first line that `ready` matches. */
  async start(ready: RegExp = /^ready /): Promise<void> {
    const { name, args, prefix = [], onDied } = this.options
    appendFileSync(this.logFile, `--- ${new Date().toISOString()} started: palimpsest ${args.join(' ')}\n`)
    const log = openSync(this.logFile, 'a')
    const command = [...prefix, process.execPath, BIN, ...args]
    const child = spawn(command[0]!, command.slice(1), { stdio: ['ignore', 'pipe', log] })
    this.child = child
    this.isWanted = true
    this.lines.length = 0
    running.add(child)
    this.exited = new Promise(resolve => {
      child.once('error', error => {
        appendFileSync(this.logFile, `--- ${error.message}\n`)
        resolve(null)
      })
      child.once('exit', (code, signal) => {
        running.delete(child)
        this.child = undefined
        const how = signal ?? `exit code ${code}`
        appendFileSync(this.logFile, `--- ${new Date().toISOString()} ended: ${how}\n`)
        if (this.isWanted) onDied(`${name} ended by itself (${how})`)
        resolve(code)
      })
    })
    createInterface({ input: child.stdout! }).on('line', line => {
      this.lines.push(line)
      if (this.lines.length > 1000) this.lines.splice(0, 500)
    })
    await this.says(ready, READY_MS)
  }

  /** Waits for a line. @throws with the end of its log if it ends before, or does not say it in time */
  async says(pattern: RegExp, timeoutMs: number): Promise<string> {
    const until = performance.now() + timeoutMs
    for (;;) {
      const line = this.lines.find(line => pattern.test(line))
      if (line !== undefined) return line
      if (this.child === undefined || performance.now() > until)
        throw new Error(`${this.options.name} did not say ${pattern}; its log ends\n${this.logTail()}`)
      await sleep(10)
    }
  }

  logTail(lines = 15): string {
    return readFileSync(this.logFile, 'utf8').trimEnd().split('\n').slice(-lines).join('\n')
  }

  signal(signal: NodeJS.Signals): void {
    this.child?.kill(signal)
  }

  /** Sends SIGKILL now; the promise waits for the end. */
  async kill9(): Promise<void> {
    this.isWanted = false
    this.child?.kill('SIGKILL')
    await this.exited
  }

  /** As an operator does it. @throws if it does not end cleanly */
  async stop(): Promise<void> {
    if (this.child === undefined) return
    this.isWanted = false
    this.child.kill('SIGCONT')
    this.child.kill('SIGTERM')
    const timeout = new AbortController()
    const code = await Promise.race([
      this.exited,
      sleep(STOP_MS, 'timeout' as const, { signal: timeout.signal }).catch(() => 'timeout' as const),
    ])
    timeout.abort()
    if (code === 0) return
    await this.kill9()
    throw new Error(`${this.options.name} did not stop cleanly (${code}); its log ends\n${this.logTail()}`)
  }
}

export interface CommandResult {
  readonly code: number
  readonly stdout: string
  readonly stderr: string
}

/** Runs one command of palimpsest to its end, whatever its exit code. */
export function palimpsest(args: readonly string[], timeoutMs = 180_000): Promise<CommandResult> {
  return run(process.execPath, [BIN, ...args], timeoutMs)
}

/** @throws with what it wrote if the exit code is not 0 */
export async function palimpsestOk(args: readonly string[], timeoutMs?: number): Promise<string> {
  const { code, stdout, stderr } = await palimpsest(args, timeoutMs)
  if (code !== 0) throw new Error(`palimpsest ${args.join(' ')} ended with ${code}: ${stderr || stdout}`)
  return stdout
}

/** Any command. @throws with what it wrote if the exit code is not 0 */
export async function command(...line: string[]): Promise<string> {
  const { code, stdout, stderr } = await run(line[0]!, line.slice(1), 30_000)
  if (code !== 0) throw new Error(`${line.join(' ')} ended with ${code}: ${stderr || stdout}`)
  return stdout
}

function run(file: string, args: readonly string[], timeoutMs: number): Promise<CommandResult> {
  return new Promise((done, fail) => {
    const child = execFile(
      file,
      args,
      { maxBuffer: 512 << 20, encoding: 'utf8', timeout: timeoutMs, killSignal: 'SIGKILL' },
      (error, stdout, stderr) => {
        running.delete(child)
        if (error?.killed) fail(new Error(`${args.join(' ')} took more than ${timeoutMs} ms: ${stderr}`))
        else if (error && typeof error.code !== 'number') fail(error)
        else done({ code: error ? (error.code as number) : 0, stdout, stderr })
      },
    )
    running.add(child)
  })
}
