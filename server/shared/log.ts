/**
 * Logs: JSON lines on stderr, so that stdout stays the commands' own. Fields that mean the same have the same name
 * everywhere: `node` (id of the server), `timeline` (its id, never its name), `timelineName`, `lsn` and others that end in
 * `Lsn`, `peer` (HOST:PORT), `request` (name of the message), `err` (an error with its stack), `kind` (of an error).
 * `name` is pino's own: the part that speaks.
 */
import { type DestinationStream, destination, type Logger, pino } from 'pino'

export type Log = Pick<Logger, 'debug' | 'info' | 'warn' | 'error' | 'fatal'> & {
  child(fields: Record<string, unknown>): Log
}

export interface LogOptions {
  /** The part that speaks: `safekeeper`, `pageserver`, `attach`. */
  readonly name: string
  /** pino's levels; `silent` for none. */
  readonly level?: string | undefined
  /** Id of this node, where it has one from its start on. */
  readonly node?: string | undefined
  readonly stream?: DestinationStream | undefined
}

export function createLog(options: LogOptions): Log {
  // Synchronous, so that the last words before the end of a process are not lost.
  const stream = options.stream ?? destination({ fd: 2, sync: true })
  return pino(
    { name: options.name, level: options.level ?? 'info', base: { pid: process.pid, node: options.node } },
    stream,
  )
}

export const silentLog: Log = pino({ level: 'silent' })
