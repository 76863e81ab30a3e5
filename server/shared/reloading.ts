/**
 * What is read from files and read again when they change: certificates, keys, tokens. A new version that cannot be used
 * is logged, and the old one stays.
 *
 * Files are looked at by time, inode and size rather than watched: secret stores swap symbolic links above the file, and
 * editors rename, neither of which a watch on the file survives. A pair of files is replaced one after the other, so what
 * changed is read only when it looked the same twice.
 */
import { stat } from 'node:fs/promises'
import type { Log } from './log.ts'

const LOOK_MS = 2000

export interface ReloadingOptions<T> {
  /** For logs: `TLS certificate`. */
  readonly what: string
  readonly files: readonly string[]
  /** Reads the files and checks them. */
  readonly load: () => Promise<T>
  readonly log: Log
  readonly lookMs?: number | undefined
}

export class Reloading<T> {
  private readonly options: ReloadingOptions<T>
  private readonly listeners: ((value: T) => void)[] = []
  private value_: T
  private loaded: string
  private seen: string
  private readonly timer: NodeJS.Timeout
  private running: Promise<void> | undefined
  private closed = false

  /** Throws what the first `load` throws. */
  static async open<T>(options: ReloadingOptions<T>): Promise<Reloading<T>> {
    const signature = await signatureOf(options.files)
    return new Reloading(options, await options.load(), signature)
  }

  private constructor(options: ReloadingOptions<T>, value: T, signature: string) {
    this.options = options
    this.value_ = value
    this.loaded = signature
    this.seen = signature
    this.timer = setInterval(() => void this.look(), options.lookMs ?? LOOK_MS)
    this.timer.unref()
  }

  get value(): T {
    return this.value_
  }

  /** Called with each new value. */
  onChange(run: (value: T) => void): void {
    this.listeners.push(run)
  }

  /** Reads the files now, whether they changed or not. Never throws. */
  reload(): Promise<void> {
    this.running ??= this.load().finally(() => {
      this.running = undefined
    })
    return this.running
  }

  close(): void {
    this.closed = true
    clearInterval(this.timer)
  }

  private async look(): Promise<void> {
    if (this.running !== undefined) return
    const now = await signatureOf(this.options.files)
    const settled = now === this.seen
    this.seen = now
    if (settled && now !== this.loaded) await this.reload()
  }

  private async load(): Promise<void> {
    const { what, files, log } = this.options
    const signature = await signatureOf(files)
    // Even if it fails: it is not tried again until something changes.
    this.loaded = signature
    this.seen = signature
    try {
      const value = await this.options.load()
      if (this.closed) return
      this.value_ = value
      log.info({ files }, `${what} loaded again`)
      for (const run of this.listeners) run(value)
    } catch (error) {
      log.error(
        { files, reason: (error as Error).message },
        `${what} cannot be used; the previous one stays in force`,
      )
    }
  }
}

async function signatureOf(files: readonly string[]): Promise<string> {
  const parts = await Promise.all(
    files.map(async file => {
      try {
        const { ino, size, mtimeNs, ctimeNs } = await stat(file, { bigint: true })
        return `${ino}/${size}/${mtimeNs}/${ctimeNs}`
      } catch (error) {
        return (error as NodeJS.ErrnoException).code ?? 'unreadable'
      }
    }),
  )
  return parts.join(' ')
}
