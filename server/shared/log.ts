/** Logs: JSON lines on stderr, so that stdout stays the commands' own. */
import { type DestinationStream, destination, type Logger, pino } from 'pino'

export type Log = Pick<Logger, 'debug' | 'info' | 'warn' | 'error' | 'fatal'> & {
  child(fields: Record<string, unknown>): Log
}

export interface LogOptions {
  /** The part that speaks: `safekeeper`, `pageserver`, `attach`. */
  readonly name: string
  /** pino's levels; `silent` for none. */
  readonly level?: string | undefined
  readonly stream?: DestinationStream | undefined
}

export function createLog(options: LogOptions): Log {
  // Synchronous, so that the last words before the end of a process are not lost.
  const stream = options.stream ?? destination({ fd: 2, sync: true })
  return pino({ name: options.name, level: options.level ?? 'info', base: { pid: process.pid } }, stream)
}

export const silentLog: Log = pino({ level: 'silent' })
