/** Ctrl-C and SIGTERM in commands that end by themselves: they stop what they do, say what is left, and exit as a shell expects. */
import { constants } from 'node:os'

const SIGNALS = ['SIGINT', 'SIGTERM'] as const

/** Exit code 130 for SIGINT, 143 for SIGTERM, as if the signal itself had ended the process. */
export class InterruptedError extends Error {
  override name = 'InterruptedError'
  readonly exitCode: number

  constructor(signal: (typeof SIGNALS)[number], left: string, options: { cause?: unknown } = {}) {
    super(`stopped by ${signal === 'SIGINT' ? 'Ctrl-C' : signal}; ${left}`, options)
    this.exitCode = 128 + constants.signals[signal]
  }
}

/**
 * Runs `work`, whose signal is aborted by the first Ctrl-C or SIGTERM; a second one ends the process at once. Work that succeeds
 * all the same has succeeded.
 * @param left what is left of the work, and how to go on
 * @throws InterruptedError in place of whatever `work` throws after a signal
 */
export async function interruptible<T>(
  left: string | (() => string),
  work: (signal: AbortSignal) => Promise<T>,
): Promise<T> {
  const stop = new AbortController()
  const stopSignalled = (name: NodeJS.Signals): void => {
    forget()
    stop.abort(new InterruptedError(name as 'SIGINT', typeof left === 'string' ? left : left()))
  }
  const forget = (): void => {
    for (const name of SIGNALS) process.off(name, stopSignalled)
  }
  for (const name of SIGNALS) process.on(name, stopSignalled)
  try {
    return await work(stop.signal)
  } catch (error) {
    throw stop.signal.aborted ? stop.signal.reason : error
  } finally {
    forget()
  }
}

/** For work that cannot be told to stop, and may be left where it is: settles as soon as the signal is aborted. */
export function orAborted<T>(signal: AbortSignal, work: Promise<T>): Promise<T> {
  const { promise, reject } = Promise.withResolvers<never>()
  const abort = () => reject(signal.reason)
  if (signal.aborted) abort()
  else signal.addEventListener('abort', abort, { once: true })
  work.catch(() => {})
  return Promise.race([work, promise]).finally(() => signal.removeEventListener('abort', abort))
}
