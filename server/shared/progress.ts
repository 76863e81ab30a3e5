/**
 * Tells people (or programs) how far a long job is: bars with rate and remaining time on a terminal, a line now and then
 * elsewhere, JSON lines if asked for. Written to stderr, or to stdout as JSON.
 */
import { type MultiBar, Presets, type SingleBar } from 'cli-progress'
import { formatBytes, formatSeconds } from './format.ts'

export type ProgressMode = 'bar' | 'lines' | 'json' | 'silent'

export interface ProgressTask {
  /** Advances to a position; the total may be corrected at any time. */
  update(done: number, total?: number): void
  finish(): void
}

export interface ProgressOptions {
  readonly mode: ProgressMode
  /** Default: process.stderr; for json process.stdout. */
  readonly write?: (text: string) => void
  readonly now?: () => number
}

const LINE_MS = 2000

export function progressMode(json: boolean, quiet = false): ProgressMode {
  if (quiet) return 'silent'
  if (json) return 'json'
  return process.stderr.isTTY ? 'bar' : 'lines'
}

export class Progress {
  readonly #mode: ProgressMode
  readonly #write: (text: string) => void
  readonly #now: () => number
  #bars: MultiBar | undefined
  /** Bars that are not finished. */
  #open = 0

  constructor(options: ProgressOptions) {
    this.#mode = options.mode
    this.#write =
      options.write ?? (text => void (options.mode === 'json' ? process.stdout : process.stderr).write(text))
    this.#now = options.now ?? (() => performance.now())
  }

  /** A line of text for people; for programs an object with `event: "message"` and whatever `fields` add. */
  message(text: string, fields: Record<string, unknown> = {}): void {
    if (this.#mode === 'silent') return
    if (this.#mode === 'json')
      this.#write(`${JSON.stringify({ event: 'message', message: text, ...fields })}\n`)
    else if (this.#bars) this.#bars.log(`${text}\n`)
    else this.#write(`${text}\n`)
  }

  /** Something that programs want to know and people are told otherwise. */
  event(event: string, fields: Record<string, unknown>): void {
    if (this.#mode === 'json') this.#write(`${JSON.stringify({ event, ...fields })}\n`)
  }

  /** A job that is measured in bytes. */
  async task(name: string, totalBytes: number): Promise<ProgressTask> {
    if (this.#mode === 'bar') return await this.#barTask(name, totalBytes)
    const started = this.#now()
    let total = totalBytes
    let done = 0
    let last = started
    const line = (final: boolean): void => {
      const seconds = (this.#now() - started) / 1000
      const rate = seconds > 0 ? done / seconds : 0
      const left = rate > 0 ? Math.max(0, total - done) / rate : Number.POSITIVE_INFINITY
      if (this.#mode === 'json')
        this.#write(
          `${JSON.stringify({ event: 'progress', task: name, doneBytes: done, totalBytes: total, bytesPerSecond: Math.round(rate), secondsLeft: Number.isFinite(left) ? Math.round(left) : null, finished: final })}\n`,
        )
      else if (this.#mode === 'lines')
        this.#write(
          final
            ? `${name}: ${formatBytes(done)} in ${formatSeconds(seconds)}, ${formatBytes(rate)}/s\n`
            : `${name}: ${formatBytes(done)} of ${formatBytes(total)} (${percent(done, total)}), ${formatBytes(rate)}/s, ${formatSeconds(left)} left\n`,
        )
    }
    return {
      update: (now, newTotal) => {
        done = now
        if (newTotal !== undefined) total = newTotal
        if (this.#now() - last < LINE_MS) return
        last = this.#now()
        line(false)
      },
      finish: () => line(true),
    }
  }

  async #barTask(name: string, totalBytes: number): Promise<ProgressTask> {
    if (!this.#bars) {
      const { MultiBar } = (await import('cli-progress')).default
      this.#bars = new MultiBar(
        {
          format: '{name} {bar} {percentage} % | {done} of {size} | {rate}/s | {left} left',
          hideCursor: true,
          stopOnComplete: false,
          clearOnComplete: false,
          stream: process.stderr,
          autopadding: true,
        },
        await import('cli-progress').then(m => (m.default?.Presets ?? Presets).shades_classic),
      )
    }
    const started = this.#now()
    let total = totalBytes
    const payload = (done: number): Record<string, string> => {
      const seconds = (this.#now() - started) / 1000
      const rate = seconds > 0 ? done / seconds : 0
      return {
        name: name.padEnd(8),
        done: formatBytes(done),
        size: formatBytes(total),
        rate: formatBytes(rate),
        left: formatSeconds(rate > 0 ? Math.max(0, total - done) / rate : Number.POSITIVE_INFINITY),
      }
    }
    this.#open++
    const bar: SingleBar = this.#bars.create(Math.max(1, total), 0, payload(0))
    let position = 0
    return {
      update: (done, newTotal) => {
        position = done
        if (newTotal !== undefined && newTotal !== total) {
          total = newTotal
          bar.setTotal(Math.max(1, total))
        }
        bar.update(done, payload(done))
      },
      finish: () => {
        bar.update(Math.max(position, total), payload(Math.max(position, total)))
        bar.stop()
        // With the last bar done, what is said next goes to the terminal as it is.
        if (--this.#open === 0) this.close()
      },
    }
  }

  /** Leaves the terminal as it was. */
  close(): void {
    this.#bars?.stop()
    this.#bars = undefined
  }
}

function percent(done: number, total: number): string {
  return total > 0 ? `${Math.min(100, Math.floor((done / total) * 100))} %` : '100 %'
}
