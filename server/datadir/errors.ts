import { PalimpsestError } from '../shared/errors.ts'

/**
 * A datadir, or a file in it, that cannot be used. The message names the file and says what to do about it.
 * Of kind `invalid`: trying again without a change gives the same result.
 */
export class DatadirError extends PalimpsestError {
  override name = 'DatadirError'
  readonly path: string

  constructor(path: string, message: string, options: { cause?: unknown } = {}) {
    super('invalid', `${path}: ${message}`, options)
    this.path = path
  }
}

/** A page that is damaged in its file although it is in use. */
export class DamagedPageError extends PalimpsestError {
  override name = 'DamagedPageError'

  constructor(path: string, space: number, page: number, reason: string) {
    super(
      'corrupt',
      `${path}: page ${page} of tablespace ${space} is damaged: ${reason}; ` +
        'check the file with innochecksum, and restore or rebuild the table',
    )
  }
}

/** Turns what the operating system said into what a person can act upon; other errors stay what they are. */
export function explainSystemError(path: string, error: unknown): Error {
  const code = (error as NodeJS.ErrnoException | undefined)?.code
  if (code === 'EACCES' || code === 'EPERM')
    return new DatadirError(
      path,
      'permission denied; run this as the user that owns the datadir (usually mysql), or as root',
      {
        cause: error,
      },
    )
  if (code === 'ENOENT') return new DatadirError(path, 'no such file or directory', { cause: error })
  if (code === 'ENOTDIR') return new DatadirError(path, 'is not a directory', { cause: error })
  if (code === 'ENOSPC' || code === 'EDQUOT')
    return new DatadirError(path, 'no space left on this disk; make room, or choose another one', {
      cause: error,
    })
  if (code === 'EROFS') return new DatadirError(path, 'is read-only; choose another place', { cause: error })
  if (error instanceof Error && (error as NodeJS.ErrnoException).syscall !== undefined)
    return new DatadirError(path, error.message, { cause: error })
  return error instanceof Error ? error : new Error(String(error))
}

export function isMissing(error: unknown): boolean {
  const code = (error as NodeJS.ErrnoException | undefined)?.code
  return code === 'ENOENT' || code === 'ENOTDIR'
}
