/** Asks the server behind a socket whether the datadir is its own and can be followed. */
import { execFile } from 'node:child_process'
import { realpath } from 'node:fs/promises'
import { promisify } from 'node:util'
import { DatadirError } from '../datadir/errors.ts'

const execFileAsync = promisify(execFile)
const QUERY =
  'SELECT @@datadir, @@innodb_log_group_home_dir, IFNULL(@@innodb_undo_directory, "./"), @@innodb_encrypt_log, @@version'

/**
 * Uses the mariadb client program with its own configuration, so that credentials come from where they always do.
 * @throws DatadirError if this is another server's datadir, or if its log lies elsewhere
 */
export async function checkServer(socket: string, datadir: string): Promise<void> {
  let output: string
  try {
    const { stdout } = await execFileAsync(
      'mariadb',
      [`--socket=${socket}`, '--batch', '--skip-column-names', `--execute=${QUERY}`],
      {
        timeout: 15_000,
      },
    )
    output = stdout
  } catch (error) {
    const text = ((error as { stderr?: string }).stderr ?? (error as Error).message).trim()
    throw new DatadirError(socket, `cannot ask the server: ${text}; leave out --socket to do without`)
  }
  const [serverDatadir = '', logDir = './', undoDir = './', encrypted = '0', version = ''] = output
    .trim()
    .split('\t')
  const [a, b] = await Promise.all([realpath(datadir), realpath(serverDatadir).catch(() => serverDatadir)])
  if (a !== b)
    throw new DatadirError(
      datadir,
      `is not the datadir of the server at ${socket}, which has ${serverDatadir}`,
    )
  for (const [name, value] of [
    ['innodb_log_group_home_dir', logDir],
    ['innodb_undo_directory', undoDir],
  ] as const)
    if (value !== './' && (await realpath(value).catch(() => value)) !== b)
      throw new DatadirError(datadir, `the server has ${name}=${value}; only the datadir itself is supported`)
  if (encrypted === '1')
    throw new DatadirError(datadir, 'the server has innodb_encrypt_log=ON; encrypted redo cannot be read')
  if (!/^1[01]\./.test(version))
    throw new DatadirError(datadir, `the server is ${version}; MariaDB 10.8 to 11.x can be followed`)
}
