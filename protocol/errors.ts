/**
 * The one error that crosses boundaries. Its kind tells the caller what to do, so that nobody has to match texts:
 *
 *     retry     a passing state (disk full, starting up, connection lost): try again, perhaps elsewhere
 *     refresh   the caller's view is stale (trimmed, moved, not there yet): look again, then decide
 *     fenced    a newer writer or owner exists: stop, never retry
 *     corrupt   bytes are damaged; the message says where
 *     invalid   the request itself is wrong: it will fail the same way again
 *     internal  a fault of ours
 *
 * It stands in protocol/ because the client throws it too; servers import it through server/shared/errors.ts.
 */
import type { Lsn } from './ids.ts'

/** In the order of their numbers on the wire, which begin with 1. */
export const ERROR_KINDS = ['retry', 'refresh', 'fenced', 'corrupt', 'invalid', 'internal'] as const
export type ErrorKind = (typeof ERROR_KINDS)[number]

export interface PalimpsestErrorOptions {
  /** Where in the log, if the error is about a place in it. */
  readonly lsn?: Lsn | undefined
  readonly cause?: unknown
  readonly askAt?: string | undefined
}

export class PalimpsestError extends Error {
  override name = 'PalimpsestError'
  readonly kind: ErrorKind
  readonly lsn: Lsn | undefined
  /** `HOST:PORT` of the server that said so, or that could not be reached; set by the client connection. */
  address: string | undefined
  /** `HOST:PORT` of the server whose business it is; only with kind refresh. */
  readonly askAt: string | undefined

  constructor(kind: ErrorKind, message: string, options: PalimpsestErrorOptions = {}) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause })
    this.kind = kind
    this.lsn = options.lsn
    this.askAt = options.askAt
  }
}

/**
 * Bytes that are not what the protocol says. `fatal` when the place of the next frame is no longer known, so that the
 * connection cannot go on; otherwise only the one message is refused.
 */
export class MalformedError extends PalimpsestError {
  override name = 'MalformedError'
  readonly fatal: boolean

  constructor(message: string, fatal = false, options: PalimpsestErrorOptions = {}) {
    super('invalid', message, options)
    this.fatal = fatal
  }
}

/** Wraps whatever was thrown; errors that already have a kind pass unchanged. */
export function toPalimpsestError(thrown: unknown, what?: string): PalimpsestError {
  if (thrown instanceof PalimpsestError) return thrown
  const text = thrown instanceof Error ? thrown.message : String(thrown)
  return new PalimpsestError(kindOf(thrown), what ? `${what}: ${text}` : text, { cause: thrown })
}

/** Passing states of the operating system. Everything else that was not thrown on purpose is a fault of ours. */
const RETRY_CODES = new Set([
  'ENOSPC',
  'EDQUOT',
  'EMFILE',
  'ENFILE',
  'ECONNREFUSED',
  'ECONNRESET',
  'ECONNABORTED',
  'EPIPE',
  'ETIMEDOUT',
  'EHOSTUNREACH',
  'ENETUNREACH',
  'EAI_AGAIN',
  'EADDRNOTAVAIL',
])

function kindOf(thrown: unknown): ErrorKind {
  if (!(thrown instanceof Error)) return 'internal'
  if (thrown.name === 'InvalidIdError') return 'invalid'
  const code = (thrown as NodeJS.ErrnoException).code
  return code !== undefined && RETRY_CODES.has(code) ? 'retry' : 'internal'
}
