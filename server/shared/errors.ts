/**
 * The errors of the servers: those of the protocol (protocol/errors.ts says what each kind asks of the caller) and short
 * ways to make them. A message says what happened, where (file, LSN, offset), and what to do about it.
 */
import { PalimpsestError } from '../../protocol/errors.ts'
import type { Lsn } from '../../protocol/ids.ts'

export {
  ERROR_KINDS,
  type ErrorKind,
  MalformedError,
  PalimpsestError,
  type PalimpsestErrorOptions,
  toPalimpsestError,
} from '../../protocol/errors.ts'

export const retryError = (message: string, cause?: unknown) =>
  new PalimpsestError('retry', message, { cause })
export const refreshError = (message: string, lsn?: Lsn) => new PalimpsestError('refresh', message, { lsn })
export const fencedError = (message: string) => new PalimpsestError('fenced', message)
export const corruptError = (message: string, lsn?: Lsn, cause?: unknown) =>
  new PalimpsestError('corrupt', message, { lsn, cause })
export const invalidError = (message: string, lsn?: Lsn) => new PalimpsestError('invalid', message, { lsn })
export const internalError = (message: string, cause?: unknown) =>
  new PalimpsestError('internal', message, { cause })

/** Whether something that is kept does not read back as it was written, as those who read it found out. */
export const isCorrupt = (error: unknown): error is PalimpsestError =>
  error instanceof PalimpsestError && error.kind === 'corrupt'
